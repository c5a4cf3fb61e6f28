"""The read of non-competing slots, ``gelu(logit) * score``, fused with the gather and the sum around it.

The reference is ``Slots.gelu_read`` in memscope/model/ops/sparse_read.py: it equals ``gather_dot``, ``gated_gelu`` and
``gather_sum``. Logits and read weights never leave the registers; the backward pass makes them again.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memscope.model.ops.gpu.gather import summed
from memscope.model.ops.gpu.scatter import marks
from memscope.model.ops.gpu.tiles import head_places, layout, places, row_numbers, slot_numbers, start


def gelu_read(
    vectors: Float[Tensor, "token head width"],
    scores: Float[Tensor, "token slot"],
    table: Float[Tensor, "row stride"],
    key_column: int,
    value_column: int,
    slices: int,
    rows: Int[Tensor, "token slot"],
    dtype: torch.dtype,
) -> Float[Tensor, "token head width"]:
    """Weighted sums of the slots' columns from ``value_column`` on, by ``gelu(dot) * score``."""
    plan = layout(rows, vectors.shape[1], vectors.shape[2], slices)
    parts = vectors.new_empty((plan.blocks, *vectors.shape), dtype=dtype if plan.blocks == 1 else torch.float32)
    apart = value_column - key_column
    start(
        _read, plan.grid, table, vectors, scores, table, rows, parts, key_column, table.stride(0), apart, **plan.sizes
    )
    return summed(parts, dtype)


def gelu_read_backward(
    gradient: Float[Tensor, "token head width"],
    vectors: Float[Tensor, "token head width"],
    scores: Float[Tensor, "token slot"],
    table: Float[Tensor, "row stride"],
    key_column: int,
    value_column: int,
    slices: int,
    rows: Int[Tensor, "token slot"],
    table_gradient: Float[Tensor, "row stride"] | None,
    touched: Bool[Tensor, " entry"] | None,
) -> tuple[Float[Tensor, "token head width"], Float[Tensor, "token slot"]]:
    """Gradients with respect to vectors and scores; the table's is added to ``table_gradient``, if there is one."""
    plan = layout(rows, vectors.shape[1], vectors.shape[2], slices)
    dtype = vectors.dtype if plan.blocks == 1 else torch.float32
    parts, to_scores = vectors.new_empty((plan.blocks, *vectors.shape), dtype=dtype), torch.empty_like(scores)
    sums = (None, None, 1) if table_gradient is None else (table_gradient, *marks(table_gradient, touched))
    given, columns = (gradient, vectors, scores, table, rows), (key_column, table.stride(0), value_column - key_column)
    start(_read_backward, plan.grid, table, *given, parts, to_scores, *sums, *columns, **plan.sizes)
    return summed(parts, vectors.dtype), to_scores


@triton.jit
@no_type_check
def _score_places(slot, N_SLOTS: tl.constexpr):
    return tl.program_id(0).to(tl.int64) * N_SLOTS + slot


@triton.jit
@no_type_check
def _normal_cdf(x):
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
@no_type_check
def _read(
    vectors,
    scores,
    table,
    rows,
    out,
    key_column,
    row_stride,
    APART: tl.constexpr,
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
    score = tl.load(scores + _score_places(slot, N_SLOTS), mask=slot < N_SLOTS, other=0)
    at, there = places(row, slot, key_column, row_stride, N_SLOTS, SLICES, WIDTH, SLICES_PADDED, WIDTH_PADDED)
    keys = tl.load(table + at, mask=there, other=0).to(tl.float32)
    values = keys if APART == 0 else tl.load(table + at + APART, mask=there, other=0).to(tl.float32)
    out += tl.program_id(1).to(tl.int64) * tl.num_programs(0) * (HEADS * WIDTH)
    for i in range(HEADS // SLICES):
        vector_at, is_column = head_places(i, HEADS, WIDTH, SLICES, SLICES_PADDED, WIDTH_PADDED)
        vector = tl.load(vectors + vector_at, mask=is_column, other=0).to(tl.float32)
        logit = tl.sum(keys * vector[None], 2)
        weight = logit * _normal_cdf(logit) * score[:, None]
        tl.store(out + vector_at, tl.sum(values * weight[:, :, None], 0), mask=is_column)


@triton.jit
@no_type_check
def _read_backward(
    gradient,
    vectors,
    scores,
    table,
    rows,
    to_vectors,
    to_scores,
    to_table,
    touched,
    rows_per_entry,
    key_column,
    row_stride,
    APART: tl.constexpr,
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
    score_at = _score_places(slot, N_SLOTS)
    score = tl.load(scores + score_at, mask=slot < N_SLOTS, other=0)[:, None]
    at, there = places(row, slot, key_column, row_stride, N_SLOTS, SLICES, WIDTH, SLICES_PADDED, WIDTH_PADDED)
    keys = tl.load(table + at, mask=there, other=0).to(tl.float32)
    values = keys if APART == 0 else tl.load(table + at + APART, mask=there, other=0).to(tl.float32)
    to_keys = tl.zeros((BLOCK, SLICES_PADDED, WIDTH_PADDED), tl.float32)
    to_values = tl.zeros((BLOCK, SLICES_PADDED, WIDTH_PADDED), tl.float32)  # unused if both are the same columns
    to_score = tl.zeros((BLOCK, SLICES_PADDED), tl.float32)
    to_vectors += tl.program_id(1).to(tl.int64) * tl.num_programs(0) * (HEADS * WIDTH)
    for i in range(HEADS // SLICES):
        vector_at, is_column = head_places(i, HEADS, WIDTH, SLICES, SLICES_PADDED, WIDTH_PADDED)
        vector = tl.load(vectors + vector_at, mask=is_column, other=0).to(tl.float32)
        given = tl.load(gradient + vector_at, mask=is_column, other=0).to(tl.float32)
        logit, to_weight = tl.sum(keys * vector[None], 2), tl.sum(values * given[None], 2)
        below, density = _normal_cdf(logit), tl.exp(-0.5 * logit * logit) * 0.3989422804014327
        to_logit = to_weight * score * (below + logit * density)
        to_score += to_weight * logit * below
        tl.store(to_vectors + vector_at, tl.sum(keys * to_logit[:, :, None], 0), mask=is_column)
        if to_table is not None:
            to_keys += to_logit[:, :, None] * vector[None]
            from_weight = (logit * below * score)[:, :, None] * given[None]
            if APART == 0:
                to_keys += from_weight
            else:
                to_values += from_weight
    tl.store(to_scores + score_at, tl.sum(to_score, 1), mask=slot < N_SLOTS)
    if to_table is not None:
        tl.atomic_add(to_table + at, to_keys, mask=there, sem="relaxed")
        if APART != 0:
            tl.atomic_add(to_table + at + APART, to_values, mask=there, sem="relaxed")
        if touched is not None:
            tl.store(touched + row // rows_per_entry, 1, mask=slot < N_SLOTS)
