"""The read of sentences in one pass: a softmax over nothing and all slots of a token's sentences, and the sum by it.

The loops are ``cpu/softmax_read.cpp``. They equal ``TextRead`` without them (memscope/model/text/read.py), which makes
``[batch, pos, head, slot]`` several times over, as long for a short sentence as for the longest.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from memscope.model.ops.fused import autocast_dtype
from memscope.model.ops.native import native_for
from memscope.model.ops.sparse_read import OpenTable


def can_softmax_read(tensor: Tensor) -> bool:
    """Whether there are loops for the device of a tensor."""
    return hasattr(native_for(tensor), "softmax_read")


def softmax_read(
    vectors: Float[Tensor, "batch pos head width"],
    table: OpenTable,
    starts: Int[Tensor, "batch pos sentence"],
    lengths: Int[Tensor, "batch pos sentence"],
    biases: Float[Tensor, "batch pos sentence"],
    nothing: Float[Tensor, " head"],
) -> Float[Tensor, "batch pos head width"]:
    """What every head reads: sums of slots by the softmax of ``nothing`` and ``vector . slot + bias``.

    Args:
        vectors: the queries.
        table: of slots, in rows.
        starts: row of the first slot of each sentence.
        lengths: how many rows from there on are its slots; 0 for a sentence that is not read.
        biases: what the logits of all slots of a sentence have in common.
        nothing: logit of reading nothing.
    """
    flat = vectors.flatten(0, 1).contiguous(), biases.float().flatten(0, 1).contiguous(), nothing.float()
    place = starts.flatten(0, 1).contiguous(), lengths.flatten(0, 1).contiguous()
    out: Tensor = _SoftmaxRead.apply(table.anchor, *flat, table, place)  # type: ignore[no-untyped-call]
    return out.unflatten(0, vectors.shape[:2])


class _SoftmaxRead(Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, vectors: Tensor, biases: Tensor, nothing: Tensor, table: OpenTable, place: Any
    ) -> Tensor:
        dtype = autocast_dtype(vectors.device)
        loops = native_for(vectors)
        out, log_totals = loops.softmax_read(vectors, table.rows, *place, biases, nothing, dtype)
        ctx.save_for_backward(vectors, biases, nothing, log_totals)
        ctx.table, ctx.place = table, place
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None, None]:
        table, gradient = ctx.table, gradient.contiguous()
        vectors, *softmax = ctx.saved_tensors
        wants_table = ctx.needs_input_grad[0]
        sums = table.sums()[0] if wants_table else None
        to_vectors, to_biases, to_nothing = native_for(gradient).softmax_read_backward(
            gradient, vectors, table.rows, *ctx.place, *softmax, sums
        )
        return (
            torch.zeros((), device=gradient.device) if wants_table else None,
            to_vectors,
            to_biases,
            to_nothing.sum(0),
            None,
            None,
        )
