"""A selection bias that evens out the use of the keys of a gate.

A **key** is an entry's under the full gate and half an entry's (a row or a column) under the product gate, where a
bias for every single entry would not split into halves.
"""

import torch
from jaxtyping import Int
from torch import Tensor, nn


class Balance(nn.Module):
    """The bias that selection adds to scores, per gate head. It is the loss-free balancing of arXiv 2408.15664.

    Selection sees scores plus ``bias``; the gate scores of what is selected stay those of the scores themselves.

    Args:
        keys: shape of one token's scores, ``[head, key]`` or ``[head, half, key]``.
        rate: step of the bias at the peak of the learning rate (``balance_bias``); 0 makes no bias.
    """

    def __init__(self, keys: tuple[int, ...], rate: float):
        super().__init__()
        self.rate = rate
        self.bias: Tensor | None
        self.load: Tensor
        self.register_buffer("bias", torch.zeros(keys) if rate else None)
        self.register_buffer("load", torch.zeros(keys), persistent=False)

    @torch.no_grad()
    def observe(self, chosen: Int[Tensor, "*token k"]) -> None:
        """Count the keys that a pass chose; only passes in training count, and only where there is a bias.

        Args:
            chosen: numbers of the chosen keys, ``[token, *keys[:-1], k]``.
        """
        if not self.training or self.bias is None:
            return
        n = self.load.shape[-1]
        slots = chosen.flatten(1, -2).transpose(0, 1).flatten(1)  # [head and half, token and k]
        load = torch.zeros(self.load.numel() // n, n, device=chosen.device)
        load.scatter_add_(1, slots, torch.ones_like(slots, dtype=load.dtype))
        self.load += load.view_as(self.load)

    @torch.no_grad()
    def step(self, schedule: float) -> None:
        """After an optimiser step: raise the bias of keys chosen less than the mean by the rate, lower the others'.

        Loads of several processes are added up.

        Args:
            schedule: share of the rate, that of the learning rate: where weights hardly move any more, a bias that
                moves on changes what is selected for nothing (DeepSeek-V3, arXiv 2412.19437, ends at a rate of 0).
        """
        if self.bias is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.load)
        self.bias += schedule * self.rate * (self.load.mean(-1, keepdim=True) - self.load).sign()
        self.load.zero_()
