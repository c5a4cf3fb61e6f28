"""The search of a product-key gate (Lample et al. 2019, arXiv 1907.05242), and the scores of what it selected.

Entry ``i * side + j`` has half key i in the first half and half key j in the second. The plain PyTorch here is the
reference, and the way where there is no compiler or no Triton. The loops of ``cpu/product_keys.cpp`` and the kernels of
``gpu/product_keys.py`` equal it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from memscope.model.ops.native import native_for


@torch.no_grad()
def search_product(
    scores: Float[Tensor, "batch pos head 2 side"], bias: Float[Tensor, "head 2 side"] | None, selected: int
) -> tuple[Int[Tensor, "batch pos head k"], Float[Tensor, "batch pos head"]]:
    """The ``selected`` entries with the best sums of half scores plus bias, best first, and their selection margins."""
    compiled, side = native_for(scores), scores.shape[-1]
    if compiled is not None and scores.stride(-1) == 1:
        indices, margin = compiled.product_top(scores.flatten(0, 1), bias, selected)
        return indices.unflatten(0, scores.shape[:2]), margin.unflatten(0, scores.shape[:2])
    best, number = add_bias(scores, bias).topk(min(selected + 1, side))  # [b, t, h, 2, k + 1]
    best = best.float()  # sums of bfloat16 scores have more bits than these
    sums = (best[..., 0, :, None] + best[..., 1, None, :]).flatten(-2)
    found, order = sums.topk(min(selected + 1, sums.shape[-1]))
    flat = order[..., :selected]
    row = number[..., 0, :].gather(-1, flat // best.shape[-1])
    column = number[..., 1, :].gather(-1, flat % best.shape[-1])
    return row * side + column, selection_margin(found, selected)


def score_product(
    halves: Float[Tensor, "batch pos head 2 query"],
    keys: Float[Tensor, "head 2 side query"],
    indices: Int[Tensor, "batch pos head k"],
) -> Float[Tensor, "batch pos head k"]:
    """Scores of selected entries, with gradient to both halves of the query and to the keys."""
    compiled = native_for(halves)
    if compiled is not None:
        flat = halves.flatten(0, 1).contiguous(), keys, indices.flatten(0, 1)
        scores: Tensor = _ProductScores.apply(*flat, compiled)  # type: ignore[no-untyped-call]
        return scores.view_as(indices)
    heads, two, side, _ = keys.shape
    first = torch.arange(heads * two, device=indices.device).view(heads, two, 1) * side
    chosen = F.embedding(half_keys(indices, side) + first, keys.flatten(0, 2))
    return torch.einsum("bthpq,bthpkq->bthpk", halves, chosen).sum(-2)


def half_keys(indices: Int[Tensor, "batch pos head k"], side: int) -> Int[Tensor, "batch pos head 2 k"]:
    """Numbers of the two half keys of entries: row and column in their square."""
    return torch.stack([indices // side, indices % side], -2)


def add_bias(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Scores plus the selection bias, if there is one."""
    return scores if bias is None else scores + bias


def selection_margin(best: Float[Tensor, "*shape best"], selected: int) -> Float[Tensor, "*shape"]:
    """The last selected score above the first rejected one, of the best scores, best first; NaN if none is rejected."""
    if best.shape[-1] <= selected:
        return torch.full_like(best[..., 0], torch.nan).detach()
    return (best[..., selected - 1] - best[..., selected]).detach()


class _ProductScores(Function):
    @staticmethod
    def forward(ctx: Any, halves: Tensor, keys: Tensor, indices: Tensor, compiled: Any) -> Tensor:
        ctx.compiled = compiled
        ctx.save_for_backward(halves, keys, indices)
        return compiled.product_scores(halves, keys, indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_halves, to_keys = ctx.compiled.product_scores_backward(gradient.contiguous(), *ctx.saved_tensors)
        return to_halves, to_keys, None, None
