"""One Adam step on the selected rows of a table; in bfloat16 a row is written by stochastic rounding.

``adam_rows`` is the reference in plain PyTorch, and the way where there is no compiler or no Triton. The loop of
``cpu/adam_rows.cpp`` and the kernel of ``gpu/adam_rows.py`` equal it and draw the same random bits.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memscope.model.ops.native import native_for


class AdamTables(NamedTuple):
    """A parameter and its moments, of one type; an update writes to their rows."""

    weight: Float[Tensor, "entry width"]
    mean: Float[Tensor, "entry width"]
    """Mean of gradients, the first moment."""
    square: Float[Tensor, "entry width"]
    """Mean of squared gradients, the second moment."""


class AdamRates(NamedTuple):
    """The numbers of one step of Adam (arXiv 1412.6980)."""

    step: int
    """Number of this step, from 1."""
    beta1: float
    beta2: float
    rate: float
    """Learning rate, without the correction of the mean's start."""
    epsilon: float


@torch.no_grad()
def adam_rows(
    tables: AdamTables, rows: Int[Tensor, " row"], gradient: Float[Tensor, "row width"], rates: AdamRates
) -> None:
    """Update rows of a parameter and of its moments in place; every row once.

    A row is updated in float32. Rounding to nearest would lose every update of less than half a last place of bfloat16
    (Zamirai et al. 2020, arXiv 2010.06192).
    """
    step, beta1, beta2, rate, epsilon = rates
    rate, correction = rate / (1 - beta1**step), 1 / (1 - beta2**step)
    compiled, dtype = native_for(tables.weight), tables.weight.dtype
    if compiled is not None and dtype in (torch.float32, torch.bfloat16):
        compiled.adam_rows(*tables, rows, gradient, step, beta1, beta2, rate, correction, epsilon)
        return
    weight, mean, square = (table[rows].to(gradient.dtype) for table in tables)
    mean = beta1 * mean + (1 - beta1) * gradient
    square = beta2 * square + (1 - beta2) * gradient.square()
    weight = weight - rate * mean / ((square * correction).sqrt() + epsilon)
    updated = [weight, mean, square]
    if dtype == torch.bfloat16:
        random_bits = rounding_bits(step, rows, gradient.shape[1])
        updated = [round_stochastically(*pair) for pair in zip(updated, random_bits, strict=True)]
    for table, new in zip(tables, updated, strict=True):
        table[rows] = new


def rounding_bits(step: int, rows: Int[Tensor, " row"], width: int) -> tuple[Int[Tensor, "row width"], ...]:
    """16 random bits for each number of updated rows: weights, first and second moments.

    They are a hash of step, row and column: a resumed run rounds as one that was never stopped.
    """
    row_hash = _hash_bits(_hash_bits(torch.tensor(step, device=rows.device)) + rows)
    first = _hash_bits(row_hash[:, None] + torch.arange(width, device=rows.device))
    return first & 0xFFFF, first >> 16, _hash_bits(first) & 0xFFFF


def round_stochastically(
    numbers: Float[Tensor, "row width"], random_bits: Int[Tensor, "row width"]
) -> Float[Tensor, "row width"]:
    """The bfloat16 below or above each float32, chosen by 16 random bits; its mean is the number itself."""
    bits = numbers.view(torch.int32) + random_bits.int()
    return (bits & -0x10000).view(torch.float32).bfloat16()


def _hash_bits(x: Tensor) -> Tensor:
    """A hash of 32 bits (C. Wellons' "lowbias32"), in int64: PyTorch has no unsigned arithmetic."""
    low = 0xFFFFFFFF
    x = x & low
    x = (x ^ (x >> 16)) * 0x7FEB352D & low
    x = (x ^ (x >> 15)) * 0x846CA68B & low
    return x ^ (x >> 16)
