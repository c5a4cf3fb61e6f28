"""The backward pass of gathered rows: adds outer products to the rows of a table's gradient, and takes summed rows out.

The reference is the gradient that autograd gives ``GatheredSlots`` in memscope/model/ops/sparse_read.py. ``OpenTable``
and ``SparseSum`` in the same module call these. Tokens that read one row add to it by atomic additions, in an order
that differs from run to run, and so do the last bits of sums.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from memscope.model.ops.gpu.tiles import head_places, layout, places, row_numbers, slot_numbers, start, weight_places


def scatter_sum(
    gradient: Float[Tensor, "row stride"],
    touched: Bool[Tensor, " entry"] | None,
    rows: Int[Tensor, "token slot"],
    slices: int,
    vectors: Float[Tensor, "token head width"],
    weights: Float[Tensor, "token head slot"],
    column: int,
    vectors_2: Float[Tensor, "token head width_2"] | None,
    weights_2: Float[Tensor, "token head slot"] | None,
    column_2: int,
) -> None:
    """Add one or two terms to the gradient of a table's rows, and mark their entries.

    Terms on the same columns are added up before they go to the table.
    """
    apart = column != column_2 or (vectors_2 is not None and vectors.shape != vectors_2.shape)
    if vectors_2 is not None and weights_2 is not None and apart:
        scatter_sum(gradient, touched, rows, slices, vectors, weights, column, None, None, 0)
        scatter_sum(gradient, None, rows, slices, vectors_2, weights_2, column_2, None, None, 0)
        return
    grid, sizes = layout(rows, vectors.shape[1], vectors.shape[2], slices)
    terms = (vectors, weights, vectors_2, weights_2)
    start(
        _scatter, grid, gradient, gradient, *marks(gradient, touched), rows, *terms, column, gradient.stride(0), **sizes
    )


def marks(
    gradient: Float[Tensor, "row stride"], touched: Bool[Tensor, " entry"] | None
) -> tuple[UInt8[Tensor, " entry"] | None, int]:
    """Bytes that are set where an entry was added to, if that is kept, and how many rows an entry has."""
    return (None, 1) if touched is None else (touched.view(torch.uint8), len(gradient) // len(touched))


def take_rows(table: Float[Tensor, "entry width"], rows: Int[Tensor, " row"]) -> Float[Tensor, "row width"]:
    """Copy rows out of a table and leave zeros in them."""
    values = table.index_select(0, rows)
    table.index_fill_(0, rows, 0)
    return values


@triton.jit
@no_type_check
def _scatter(
    gradient,
    touched,
    rows_per_entry,
    rows,
    vectors,
    weights,
    vectors_2,
    weights_2,
    column,
    row_stride,
    N_SLOTS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK: tl.constexpr,
    SLICES_PADDED: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
):
    slot = slot_numbers(BLOCK)
    row = row_numbers(rows, slot, N_SLOTS)
    at, there = places(row, slot, column, row_stride, N_SLOTS, SLICES, WIDTH, SLICES_PADDED, WIDTH_PADDED)
    tile = tl.zeros((BLOCK, SLICES_PADDED, WIDTH_PADDED), tl.float32)
    for i in range(HEADS // SLICES):
        vector_at, is_column = head_places(i, HEADS, WIDTH, SLICES, SLICES_PADDED, WIDTH_PADDED)
        weight_at, is_slot = weight_places(i, slot, HEADS, SLICES, N_SLOTS, SLICES_PADDED)
        vector = tl.load(vectors + vector_at, mask=is_column, other=0).to(tl.float32)
        tile += tl.load(weights + weight_at, mask=is_slot, other=0)[:, :, None] * vector[None]
        if vectors_2 is not None:
            vector = tl.load(vectors_2 + vector_at, mask=is_column, other=0).to(tl.float32)
            tile += tl.load(weights_2 + weight_at, mask=is_slot, other=0)[:, :, None] * vector[None]
    tl.atomic_add(gradient + at, tile, mask=there, sem="relaxed")
    if touched is not None:
        tl.store(touched + row // rows_per_entry, 1, mask=slot < N_SLOTS)
