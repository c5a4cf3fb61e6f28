"""Pressure toward even use of the keys of a gate: noise, dropout, a selection bias, and losses.

A **key** is an entry's under the full gate and half an entry's (a row or a column) under the product gate, where a
bias for every single entry would not split into halves. Everything is off by default.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memscope.config.memory import MemoryConfig


class Balance(nn.Module):
    """What selection sees instead of the scores, and what uneven use costs; per gate head.

    Args:
        keys: shape of one token's scores, ``[head, key]`` or ``[head, half, key]``.
        config: the memory's.
    """

    def __init__(self, keys: tuple[int, ...], config: MemoryConfig):
        super().__init__()
        self.noise, self.dropout = config.score_noise, config.score_dropout
        self.bias_rate, self.balance_loss, self.z_loss = config.balance_bias, config.balance_loss, config.z_loss
        self.bias: Tensor | None
        self.load: Tensor
        self.register_buffer("bias", torch.zeros(keys) if self.bias_rate else None)
        self.register_buffer("load", torch.zeros(keys), persistent=False)
        self.penalty: Tensor | None = None
        """Weighted losses of the last forward pass in training; none if both weights are 0."""

    @property
    def penalises(self) -> bool:
        """Whether scores with their gradient are needed."""
        return self.training and bool(self.balance_loss or self.z_loss)

    @property
    def observes(self) -> bool:
        """Whether ``observe`` has to be told what is chosen."""
        return self.training and bool(self.bias_rate or self.penalises)

    @property
    def disturbs(self) -> bool:
        """Whether ``disturbed`` changes scores."""
        return self.training and bool(self.noise or self.dropout)

    @torch.no_grad()
    def disturbed(self, scores: Tensor) -> Tensor:
        """Scores ``[..., *keys]`` as selection sees them while training: plus noise, without dropouts.

        Selection sees them plus ``bias``; the gate scores of what is selected stay those of the scores themselves.
        """
        if self.training and self.noise:
            scores = scores + self.noise * torch.randn_like(scores)
        if self.training and self.dropout:
            scores = scores.masked_fill(torch.rand_like(scores) < self.dropout, -torch.inf)
        return scores

    def observe(self, scores: Float[Tensor, "*token key"] | None, chosen: Int[Tensor, "*token k"]) -> None:
        """Count the chosen keys of a training pass and price it; for passes that ``observes`` asks for.

        The balance loss is Switch's ``n * sum_i f_i P_i`` (arXiv 2101.03961, equation 4): f the share of selections, P
        the mean of the softmax of scores; 1 under even use. The z-loss is the mean square of the log-sum-exp
        (ST-MoE, arXiv 2202.08906).

        Args:
            scores: ``[token, *keys]`` with their gradient; none if nothing is to be priced.
            chosen: numbers of the chosen keys, ``[token, *keys[:-1], k]``.
        """
        n = self.load.shape[-1]
        slots = chosen.flatten(1, -2).transpose(0, 1).flatten(1)  # [head and half, token and k]
        load = torch.zeros(self.load.numel() // n, n, device=chosen.device)
        load.scatter_add_(1, slots, torch.ones_like(slots, dtype=load.dtype))
        self.load += load.view_as(self.load)
        if scores is not None and self.penalises:
            logits = scores.float().flatten(1, -2)  # [token, head and half, key]
            share = load / load.sum(-1, keepdim=True)
            uneven = n * (share * logits.softmax(-1).mean(0)).sum(-1).mean()
            self.penalty = self.balance_loss * uneven + self.z_loss * logits.logsumexp(-1).square().mean()

    @torch.no_grad()
    def step(self, schedule: float) -> None:
        """After an optimiser step: raise the bias of keys chosen less than the mean by the rate, lower the others'.

        The loss-free balancing of Wang et al. 2024 (arXiv 2408.15664). Loads of several processes are added up.

        Args:
            schedule: share of the rate, that of the learning rate: where weights hardly move any more, a bias that
                moves on changes what is selected for nothing (DeepSeek-V3, arXiv 2412.19437, ends at a rate of 0).
        """
        if self.bias is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.load)
        self.bias += schedule * self.bias_rate * (self.load.mean(-1, keepdim=True) - self.load).sign()
        self.load.zero_()
