"""One Adam step on the selected rows of a table, in float32 or in bfloat16 with stochastic rounding.

The reference is ``adam_rows`` in memscope/model/ops/adam_rows.py, which calls this: its plain PyTorch path updates the
same rows, and its rounding draws the same random bits.
"""

from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from memscope.model.ops.gpu.tiles import start


def adam_rows(
    weight: Float[Tensor, "entry width"],
    mean: Float[Tensor, "entry width"],
    square: Float[Tensor, "entry width"],
    rows: Int[Tensor, " row"],
    gradient: Float[Tensor, "row width"],
    step: int,
    beta1: float,
    beta2: float,
    rate: float,
    correction: float,
    epsilon: float,
) -> None:
    """Adam (arXiv 1412.6980) on some rows of weight and moments, in one pass.

    ``rate`` includes ``1 / (1 - beta1**step)``, and ``correction`` is ``1 / (1 - beta2**step)``. The rounding of
    bfloat16 depends on ``step``, the number of this step.
    """
    width = weight.shape[1]
    block = min(1024, triton.next_power_of_2(width))
    grid = (len(rows), triton.cdiv(width, block))
    numbers = (step, beta1, beta2, rate, correction, epsilon)
    sizes = {"WIDTH": width, "BLOCK": block, "num_warps": max(1, block // 256)}
    start(_adam, grid, weight, weight, mean, square, rows, gradient, *numbers, **sizes)


@triton.jit(do_not_specialize=["step"])
@no_type_check
def _adam(
    weights,
    means,
    squares,
    rows,
    gradients,
    step,
    beta1,
    beta2,
    rate,
    correction,
    epsilon,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, d = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row, there = tl.load(rows + i), d < WIDTH
    at = row * WIDTH + d
    gradient = tl.load(gradients + i * WIDTH + d, mask=there, other=0)
    mean = tl.load(means + at, mask=there, other=0).to(tl.float32)
    square = tl.load(squares + at, mask=there, other=0).to(tl.float32)
    weight = tl.load(weights + at, mask=there, other=0).to(tl.float32)
    mean = beta1 * mean + (1 - beta1) * gradient
    square = beta2 * square + (1 - beta2) * gradient * gradient
    weight -= rate * mean / (tl.sqrt_rn(square * correction) + epsilon)
    if weights.dtype.element_ty == tl.bfloat16:
        row_hash = _hash_bits(_hash_bits(step.to(tl.uint32)) + row.to(tl.uint32))
        first = _hash_bits(row_hash + d.to(tl.uint32))
        weight = _round_stochastically(weight, first & 0xFFFF)
        mean = _round_stochastically(mean, first >> 16)
        square = _round_stochastically(square, _hash_bits(first) & 0xFFFF)
    tl.store(weights + at, weight, mask=there)
    tl.store(means + at, mean, mask=there)
    tl.store(squares + at, square, mask=there)


@triton.jit
@no_type_check
def _hash_bits(x):
    """A hash of 32 bits, one to one; the constants are those of C. Wellons' "lowbias32"."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
@no_type_check
def _round_stochastically(number, random_bits):
    """The bfloat16 below or above a number, chosen by 16 random bits; its mean is the number itself."""
    bits = number.to(tl.uint32, bitcast=True) + random_bits
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
