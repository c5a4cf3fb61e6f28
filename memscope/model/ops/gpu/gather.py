"""Dot products with selected rows of a table, and weighted sums of them, without gathering the rows.

The reference is ``GatheredSlots`` in memscope/model/ops/sparse_read.py, whose ``dot`` and ``sum`` work on a gathered
tensor ``[batch, pos, slot, width]``. Nothing of that size is built here. ``TableSlots`` in the same module calls these.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from memscope.model.ops.gpu.tiles import head_places, layout, places, row_numbers, slot_numbers, start, weight_places


def gather_dot(
    vectors: Float[Tensor, "token head width"],
    table: Float[Tensor, "row stride"],
    column: int,
    slices: int,
    rows: Int[Tensor, "token slot"],
) -> Float[Tensor, "token head slot"]:
    """``vectors[t, a] . table[rows[t, s], columns of head a]`` of every head and slot, in float32."""
    heads, width = vectors.shape[1:]
    out = vectors.new_empty((len(rows), heads, rows.shape[1]), dtype=torch.float32)
    grid, sizes = layout(rows, heads, width, slices)
    start(_dot, grid, table, vectors, table, rows, out, column, table.stride(0), **sizes)
    return out


def gather_sum(
    weights: Float[Tensor, "token head slot"],
    table: Float[Tensor, "row stride"],
    column: int,
    width: int,
    slices: int,
    rows: Int[Tensor, "token slot"],
    dtype: torch.dtype,
) -> Float[Tensor, "token head width"]:
    """The sum over slots of ``weights[t, a, s] * table[rows[t, s], columns of head a]``."""
    heads = weights.shape[1]
    plan = layout(rows, heads, width, slices)
    parts = weights.new_empty((plan.blocks, len(rows), heads, width), dtype=dtype if plan.blocks == 1 else None)
    start(_sum, plan.grid, table, weights, table, rows, parts, column, table.stride(0), **plan.sizes)
    return summed(parts, dtype)


def summed(parts: Float[Tensor, "block token head width"], dtype: torch.dtype) -> Float[Tensor, "token head width"]:
    """What the blocks of a token's slots add up to."""
    return parts[0] if len(parts) == 1 else parts.sum(0).to(dtype)


@triton.jit
@no_type_check
def _dot(
    vectors,
    table,
    rows,
    out,
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
    tile = tl.load(table + at, mask=there, other=0).to(tl.float32)
    for i in range(HEADS // SLICES):
        vector_at, is_column = head_places(i, HEADS, WIDTH, SLICES, SLICES_PADDED, WIDTH_PADDED)
        vector = tl.load(vectors + vector_at, mask=is_column, other=0).to(tl.float32)
        weight_at, is_slot = weight_places(i, slot, HEADS, SLICES, N_SLOTS, SLICES_PADDED)
        tl.store(out + weight_at, tl.sum(tile * vector[None], 2), mask=is_slot)


@triton.jit
@no_type_check
def _sum(
    weights,
    table,
    rows,
    out,
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
    tile = tl.load(table + at, mask=there, other=0).to(tl.float32)
    out += tl.program_id(1).to(tl.int64) * tl.num_programs(0) * (HEADS * WIDTH)
    for i in range(HEADS // SLICES):
        weight_at, is_slot = weight_places(i, slot, HEADS, SLICES, N_SLOTS, SLICES_PADDED)
        weight = tl.load(weights + weight_at, mask=is_slot, other=0)
        vector_at, is_column = head_places(i, HEADS, WIDTH, SLICES, SLICES_PADDED, WIDTH_PADDED)
        tl.store(out + vector_at, tl.sum(tile * weight[:, :, None], 0), mask=is_column)
