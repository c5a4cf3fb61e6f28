"""AdamW whose work follows what was selected: rows of a bank without a gradient cost no time and do not move."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from memscope.base.runtime import gather_rows, in_huge_pages
from memscope.config.training import TrainConfig
from memscope.model.ops.adam_rows import AdamRates, AdamTables, adam_rows
from memscope.model.transformer import MemoryTransformer


class LazyAdamW(torch.optim.AdamW):
    """PyTorch's AdamW; of a parameter with a sparse gradient, only the rows that the gradient holds are updated.

    Moments of other rows do not decay, as in ``torch.optim.SparseAdam``, of which this is a faster form. Such a
    parameter must not have weight decay. In bfloat16 its moments are bfloat16 too; a row is updated in float32 and
    written by stochastic rounding.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.register_step_pre_hook(lambda *_: self._step_sparse())  # not by overriding step: hooks would run twice

    @torch.no_grad()
    def _step_sparse(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._update_rows(parameter, _coalesced(parameter.grad), group)
                    parameter.grad = None  # done; AdamW refuses sparse gradients

    def _update_rows(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        assert group["weight_decay"] == 0, "rows cannot decay only when they are selected"
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = in_huge_pages(torch.empty_like(parameter)).zero_()
        state["step"] = state["step"].cpu() + 1  # a checkpoint was read to the GPU, which would be waited for
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        rates = AdamRates(step, beta1, beta2, group["lr"], group["eps"])
        tables = [tensor.detach().flatten(1) for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"])]
        adam_rows(AdamTables(*tables), gradient.indices()[0], gradient.values().flatten(1), rates)


_WEIGHT_DECAY = 0.01
"""AdamW's decay of matrices; norms, embeddings, bank and keys have none."""
_BETAS = (0.9, 0.95)
"""AdamW's decays of first and second moments."""


def make_optimizer(model: MemoryTransformer, config: TrainConfig) -> LazyAdamW:
    """AdamW over three groups: matrices (decayed), norms and embeddings (not), bank, keys and bigrams (not, own
    rate).

    Every group keeps its peak in ``peak_lr``; the schedule multiplies it, so the groups' ratio holds throughout.
    """
    memory, matrices, rest = [], [], []
    for name, parameter in model.named_parameters():
        if name in ("bank.entries", "bigrams.weight") or name.endswith("gate.keys"):
            memory.append(parameter)
        elif parameter.dim() >= 2 and name != "embed.weight":
            matrices.append(parameter)
        else:
            rest.append(parameter)
    rate, scale = config.learning_rate, config.memory_lr_scale
    groups = [
        {"params": matrices, "peak_lr": rate, "weight_decay": _WEIGHT_DECAY},
        {"params": rest, "peak_lr": rate, "weight_decay": 0.0},
        {"params": memory, "peak_lr": rate * scale, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = model.embed.weight.device.type in ("cpu", "cuda")
    return LazyAdamW(groups, lr=rate, betas=_BETAS, fused=fused)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients, dense and sparse, to a common norm of at most ``max_norm``; returns the norm before."""
    values = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = _coalesced(parameter.grad)
            values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    norm = nn.utils.get_total_norm(values)
    if isinstance(norm, DTensor):  # of shards: each process has the norm of its own
        norm = norm.full_tensor()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(values, scale)
    return norm


def average_sparse_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average sparse gradients over the processes of a group; DDP averages the others and is told to leave these alone.

    Processes read different entries, so rows are gathered and added up. Without a group it does nothing.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    n = distributed.get_world_size()
    for parameter in parameters:
        if parameter.grad is None or not parameter.grad.is_sparse:
            continue
        gradient = _coalesced(parameter.grad)
        rows, values = gather_rows(gradient.indices()[0], gradient.values() / n)
        parameter.grad = torch.sparse_coo_tensor(rows[None], values, gradient.shape).coalesce()


def _coalesced(gradient: Tensor) -> Tensor:
    """A sparse gradient with every entry once; one backward pass gives it so, but autograd forgets."""
    if gradient.is_coalesced():  # to look at the entries would wait for a GPU
        return gradient
    entries = gradient._indices()[0]
    once = bool((entries[1:] > entries[:-1]).all())
    return gradient._coalesced_(True) if once else gradient.coalesce()
