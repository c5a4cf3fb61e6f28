"""What kernels that read or add to slots share: the tile ``[slot, slice, column]`` that one program works on.

A program has one token and a block of its slots. Sizes are padded to powers of two, as Triton needs; what is padded
reads as 0 and is never written. Tables and vectors are float32 or bfloat16 and are read as float32.
"""

from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST = 4096
"""Numbers of a tile: float32 in the registers of four warps, with room for as many again."""


class Layout(NamedTuple):
    """How tokens, heads and slots are dealt out to programs."""

    grid: tuple[int, int]
    """Tokens, blocks of slots."""
    sizes: dict[str, Any]
    """Arguments of a kernel: true and padded sizes, and how many warps a program has."""

    @property
    def blocks(self) -> int:
        """Programs that share a token."""
        return self.grid[1]


def layout(rows: Tensor, heads: int, width: int, slices: int) -> Layout:
    """The layout of a kernel for ``rows [token, slot]`` read by heads of a width, each in its slice of columns."""
    n_tokens, n_slots = rows.shape
    columns = triton.next_power_of_2(slices) * triton.next_power_of_2(width)
    block = min(triton.next_power_of_2(n_slots), max(1, _MOST // columns))
    sizes = {
        "N_SLOTS": n_slots,
        "HEADS": heads,
        "WIDTH": width,
        "SLICES": slices,
        "BLOCK": block,
        "SLICES_PADDED": triton.next_power_of_2(slices),
        "WIDTH_PADDED": triton.next_power_of_2(width),
        "num_warps": min(8, max(1, block * columns // 512)),
    }
    return Layout((n_tokens, triton.cdiv(n_slots, block)), sizes)


def start(kernel: Any, grid: tuple[int, ...], on: Tensor, *arguments: Any, **sizes: Any) -> None:
    """Run a kernel on the device of a tensor, which need not be the current one; nothing for an empty grid."""
    if 0 not in grid:
        with torch.cuda.device_of(on):
            kernel[grid](*arguments, **sizes)


@triton.jit
@no_type_check
def slot_numbers(BLOCK: tl.constexpr):
    """The slots of this program, which may be past the end."""
    return tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
@no_type_check
def row_numbers(rows, slot, N_SLOTS: tl.constexpr):
    """Rows of the table that this token's slots are, 0 past the end."""
    token = tl.program_id(0).to(tl.int64)
    return tl.load(rows + token * N_SLOTS + slot, mask=slot < N_SLOTS, other=0)


@triton.jit
@no_type_check
def places(
    row,
    slot,
    column,
    row_stride,
    N_SLOTS: tl.constexpr,
    SLICES: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICES_PADDED: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
):
    """Where the tile's numbers are in the table, and which of them are there, both ``[slot, slice, column]``."""
    part, d = tl.arange(0, SLICES_PADDED), tl.arange(0, WIDTH_PADDED)
    columns = column + part[:, None] * WIDTH + d[None, :]
    there = (part[:, None] < SLICES) & (d[None, :] < WIDTH)
    return row[:, None, None] * row_stride + columns[None], (slot < N_SLOTS)[:, None, None] & there[None]


@triton.jit
@no_type_check
def head_places(
    i,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICES: tl.constexpr,
    SLICES_PADDED: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
):
    """Where this token's vectors of the i-th head of every slice are, and which are there, ``[slice, column]``."""
    token = tl.program_id(0).to(tl.int64)
    part, d = tl.arange(0, SLICES_PADDED), tl.arange(0, WIDTH_PADDED)
    head = part * (HEADS // SLICES) + i
    there = (part[:, None] < SLICES) & (d[None, :] < WIDTH)
    return (token * HEADS + head)[:, None] * WIDTH + d[None, :], there


@triton.jit
@no_type_check
def weight_places(
    i,
    slot,
    HEADS: tl.constexpr,
    SLICES: tl.constexpr,
    N_SLOTS: tl.constexpr,
    SLICES_PADDED: tl.constexpr,
):
    """Where this token's weights of the i-th head of every slice are, and which are there, ``[slot, slice]``."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, SLICES_PADDED)
    head = part * (HEADS // SLICES) + i
    there = (slot < N_SLOTS)[:, None] & (part < SLICES)[None, :]
    return (token * HEADS + head)[None, :] * N_SLOTS + slot[:, None], there
