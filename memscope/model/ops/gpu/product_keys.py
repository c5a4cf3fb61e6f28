"""The search of a product-key gate (arXiv 1907.05242), and the scores of the entries that it chose.

The references are ``search_product`` and ``score_product`` in memscope/model/ops/product_keys.py, which call these.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from memscope.model.ops.gpu.tiles import start

_NONE = tl.constexpr(-(2**63))
"""A sort key below all others."""


def product_top(
    halves: Float[Tensor, "token head 2 side"], bias: Float[Tensor, "head 2 side"] | None, selected: int
) -> tuple[Int[Tensor, "token head k"], Float[Tensor, "token head"]]:
    """The best sums of one score of each half, exactly, and the margin of the last above the next (NaN: there is none).

    The sum of the i-th best of one half and the j-th best of the other is beaten by i * j - 1 others, so only pairs
    with i * j <= k + 1 can be among the k + 1 best. Ties go to the better first half, and within a half to the lower
    number.
    """
    n_tokens, heads, _, side = halves.shape
    n = min(selected + 1, side)
    wanted = min(selected + 1, n * n)
    indices = torch.empty((n_tokens, heads, selected), dtype=torch.int64, device=halves.device)
    margins = torch.empty((n_tokens, heads), dtype=torch.float32, device=halves.device)
    pairs = triton.next_power_of_2(n) ** 2
    sizes = {
        "SIDE": side,
        "N": n,
        "WANTED": wanted,
        "SELECTED": selected,
        "SIDE_PADDED": triton.next_power_of_2(side),
        "N_PADDED": triton.next_power_of_2(n),
        "WANTED_PADDED": triton.next_power_of_2(wanted),
        "num_warps": min(8, max(1, max(pairs, side) // 1024)),
    }
    start(_top, (n_tokens, heads), halves, halves, *halves.stride(), bias, indices, margins, **sizes)
    return indices, margins


def product_scores(
    halves: Float[Tensor, "token head 2 query"],
    keys: Float[Tensor, "head 2 side query"],
    indices: Int[Tensor, "token head k"],
) -> Float[Tensor, "token head k"]:
    """The sum over both halves of ``halves[t, h, p]`` . the half key p of entry ``indices[t, h, i]``, in float32."""
    out = torch.empty(indices.shape, dtype=torch.float32, device=indices.device)
    start(_scores, indices.shape[:2], halves, halves, keys, indices, out, **_sizes(keys, indices))
    return out


def product_scores_backward(
    gradient: Float[Tensor, "token head k"],
    halves: Float[Tensor, "token head 2 query"],
    keys: Float[Tensor, "head 2 side query"],
    indices: Int[Tensor, "token head k"],
) -> tuple[Float[Tensor, "token head 2 query"], Float[Tensor, "head 2 side query"]]:
    """Gradients of ``product_scores`` with respect to halves and keys; keys are added to by atomic additions."""
    to_halves, to_keys = torch.empty_like(halves), torch.zeros_like(keys)
    given = (gradient, halves, keys, indices)
    start(_scores_backward, indices.shape[:2], halves, *given, to_halves, to_keys, **_sizes(keys, indices))
    return to_halves, to_keys


def _sizes(keys: Tensor, indices: Tensor) -> dict[str, int]:
    side, width, selected = *keys.shape[2:], indices.shape[2]
    padded = {
        "SELECTED_PADDED": triton.next_power_of_2(selected),
        "WIDTH_PADDED": triton.next_power_of_2(width),
    }
    warps = min(8, max(1, padded["SELECTED_PADDED"] * padded["WIDTH_PADDED"] // 1024))
    return {"SIDE": side, "WIDTH": width, "SELECTED": selected, **padded, "num_warps": warps}


@triton.jit
@no_type_check
def _sort_keys(scores, numbers):
    """A score and a number as one integer, whose order is that of the scores; of equal scores the lower number wins."""
    bits = scores.to(tl.int32, bitcast=True)
    bits ^= (bits >> 31) & 0x7FFFFFFF  # negative floats fall as their bits grow
    return (bits.to(tl.int64) << 32) | (0x7FFFFFFF - numbers).to(tl.int64)


@triton.jit
@no_type_check
def _score_of(keys):
    bits = (keys >> 32).to(tl.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    return bits.to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _number_of(keys):
    return (0x7FFFFFFF - (keys & 0xFFFFFFFF)).to(tl.int32)


@triton.jit
@no_type_check
def _best(keys, N: tl.constexpr, N_PADDED: tl.constexpr):
    """The N largest sort keys, best first."""
    place = tl.arange(0, N_PADDED)
    best = tl.full((N_PADDED,), _NONE, tl.int64)
    for i in range(N):
        largest = tl.max(keys, 0)
        best = tl.where(place == i, largest, best)
        keys = tl.where(keys == largest, _NONE, keys)
    return best


@triton.jit
@no_type_check
def _best_of_half(
    scores, bias, half, SIDE: tl.constexpr, N: tl.constexpr, SIDE_PADDED: tl.constexpr, N_PADDED: tl.constexpr
):
    """Sort keys of the best half keys; ``half`` is their number among the halves of all heads."""
    number = tl.arange(0, SIDE_PADDED)
    score = tl.load(scores + number, mask=number < SIDE, other=0).to(tl.float32)
    if bias is not None:
        score += tl.load(bias + half * SIDE + number, mask=number < SIDE, other=0)
    score = tl.where(score == score, score, float("-inf"))  # NaN, of a model that diverged, has no order
    return _best(tl.where(number < SIDE, _sort_keys(score, number), _NONE), N, N_PADDED)


@triton.jit
@no_type_check
def _top(
    halves,
    token_stride,
    head_stride,
    half_stride,
    _,
    bias,
    indices,
    margins,
    SIDE: tl.constexpr,
    N: tl.constexpr,
    WANTED: tl.constexpr,
    SELECTED: tl.constexpr,
    SIDE_PADDED: tl.constexpr,
    N_PADDED: tl.constexpr,
    WANTED_PADDED: tl.constexpr,
):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    halves += token * token_stride + head * head_stride
    rows = _best_of_half(halves, bias, head * 2, SIDE, N, SIDE_PADDED, N_PADDED)
    columns = _best_of_half(halves + half_stride, bias, head * 2 + 1, SIDE, N, SIDE_PADDED, N_PADDED)
    place = tl.arange(0, N_PADDED)
    i, j = place[:, None], place[None, :]
    sums = _sort_keys(_score_of(rows)[:, None] + _score_of(columns)[None, :], i * N_PADDED + j)
    sums = tl.where((i < N) & (j < N) & ((i + 1) * (j + 1) <= WANTED), sums, _NONE)
    best = _best(tl.reshape(sums, (N_PADDED * N_PADDED,)), WANTED, WANTED_PADDED)
    pair = _number_of(best)
    is_row, is_column = (pair // N_PADDED)[:, None] == place[None, :], (pair % N_PADDED)[:, None] == place[None, :]
    row = tl.sum(tl.where(is_row, _number_of(rows)[None, :], 0), 1)
    column = tl.sum(tl.where(is_column, _number_of(columns)[None, :], 0), 1)
    rank = tl.arange(0, WANTED_PADDED)
    at = token * tl.num_programs(1) + head
    tl.store(indices + at * SELECTED + rank, row.to(tl.int64) * SIDE + column, mask=rank < SELECTED)
    score = _score_of(best)
    last = tl.sum(tl.where(rank == SELECTED - 1, score, 0), 0)
    margin = last - tl.sum(tl.where(rank == SELECTED, score, 0), 0) if WANTED > SELECTED else float("nan")
    tl.store(margins + at, margin)


@triton.jit
@no_type_check
def _chosen(
    indices,
    half: tl.constexpr,
    SIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    SELECTED: tl.constexpr,
    SELECTED_PADDED: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
):
    """Where the half keys of this token's and head's entries are, and which are there, ``[k, column]``."""
    k, d = tl.arange(0, SELECTED_PADDED), tl.arange(0, WIDTH_PADDED)
    at = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    index = tl.load(indices + at * SELECTED + k, mask=k < SELECTED, other=0)
    key = index // SIDE if half == 0 else index % SIDE
    first = (tl.program_id(1) * 2 + half) * SIDE
    there = (k[:, None] < SELECTED) & (d[None, :] < WIDTH)
    return (first + key)[:, None] * WIDTH + d[None, :], there


@triton.jit
@no_type_check
def _scores(
    halves,
    keys,
    indices,
    out,
    SIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    SELECTED: tl.constexpr,
    SELECTED_PADDED: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
):
    k, d = tl.arange(0, SELECTED_PADDED), tl.arange(0, WIDTH_PADDED)
    at = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    score = tl.zeros((SELECTED_PADDED,), tl.float32)
    for half in tl.static_range(2):
        query = tl.load(halves + (at * 2 + half) * WIDTH + d, mask=d < WIDTH, other=0).to(tl.float32)
        key_at, there = _chosen(indices, half, SIDE, WIDTH, SELECTED, SELECTED_PADDED, WIDTH_PADDED)
        score += tl.sum(tl.load(keys + key_at, mask=there, other=0) * query[None, :], 1)
    tl.store(out + at * SELECTED + k, score, mask=k < SELECTED)


@triton.jit
@no_type_check
def _scores_backward(
    gradient,
    halves,
    keys,
    indices,
    to_halves,
    to_keys,
    SIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    SELECTED: tl.constexpr,
    SELECTED_PADDED: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
):
    k, d = tl.arange(0, SELECTED_PADDED), tl.arange(0, WIDTH_PADDED)
    at = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    given = tl.load(gradient + at * SELECTED + k, mask=k < SELECTED, other=0)[:, None]
    for half in tl.static_range(2):
        query_at = (at * 2 + half) * WIDTH + d
        query = tl.load(halves + query_at, mask=d < WIDTH, other=0).to(tl.float32)
        key_at, there = _chosen(indices, half, SIDE, WIDTH, SELECTED, SELECTED_PADDED, WIDTH_PADDED)
        to_half = tl.sum(given * tl.load(keys + key_at, mask=there, other=0), 0)
        tl.store(to_halves + query_at, to_half, mask=d < WIDTH)
        tl.atomic_add(to_keys + key_at, given * query[None, :], mask=there, sem="relaxed")
