"""Root mean square norm over the last axis, one pass forward and one backward.

The reference is ``torch.nn.RMSNorm``; ``RMSNorm`` in memscope/model/ops/fused.py, which calls this, falls back to it.
Unlike it, this writes the type of autocast at once, so that no float32 copy is kept for the gradient.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from memscope.model.ops.gpu.tiles import start

_MOST_PROGRAMS = 1024
"""Of the backward pass: each has a sum of the gain's gradient of its own."""


def rms_norm(
    vectors: Float[Tensor, "*shape width"], gain: Float[Tensor, " width"], epsilon: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "*shape width"], Float[Tensor, " vector"]]:
    """``vectors / rms * gain``, and ``1 / rms`` of every vector."""
    out = torch.empty(vectors.shape, dtype=dtype, device=vectors.device)
    n, tiles, sizes = _tiles(vectors)
    inverse = torch.empty(n, dtype=torch.float32, device=vectors.device)
    start(_norm, (tiles,), vectors, vectors, gain, out, inverse, n, epsilon, **sizes)
    return out, inverse


def rms_norm_backward(
    gradient: Float[Tensor, "*shape width"],
    vectors: Float[Tensor, "*shape width"],
    gain: Float[Tensor, " width"],
    inverse: Float[Tensor, " vector"],
) -> tuple[Float[Tensor, "*shape width"], Float[Tensor, " width"]]:
    """Gradients of ``rms_norm`` with respect to vectors, in their type, and gain."""
    to_vectors, (n, tiles, sizes) = torch.empty_like(vectors), _tiles(vectors)
    programs = max(1, min(tiles, _MOST_PROGRAMS))
    parts = gain.new_empty(programs, len(gain))
    given = (gradient, vectors, gain, inverse)
    start(_norm_backward, (programs,), vectors, *given, to_vectors, parts, n, triton.cdiv(tiles, programs), **sizes)
    return to_vectors, parts.sum(0)


def _tiles(vectors: Tensor) -> tuple[int, int, dict[str, int]]:
    """Vectors, tiles that they fill, and the sizes of a tile: narrow vectors stand several to a tile."""
    width = vectors.shape[-1]
    n, padded = vectors.numel() // max(1, width), triton.next_power_of_2(width)
    at_once = max(1, 1024 // padded)
    sizes = {"WIDTH": width, "AT_ONCE": at_once, "PADDED": padded, "num_warps": min(8, max(1, at_once * padded // 512))}
    return n, triton.cdiv(n, at_once), sizes


@triton.jit
@no_type_check
def _norm(vectors, gain, out, inverse, n, epsilon, WIDTH: tl.constexpr, AT_ONCE: tl.constexpr, PADDED: tl.constexpr):
    i, d = tl.program_id(0).to(tl.int64) * AT_ONCE + tl.arange(0, AT_ONCE), tl.arange(0, PADDED)
    at, there = i[:, None] * WIDTH + d[None, :], (i[:, None] < n) & (d[None, :] < WIDTH)
    vector = tl.load(vectors + at, mask=there, other=0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(vector * vector, 1) / WIDTH + epsilon)
    tl.store(inverse + i, scale, mask=i < n)
    gains = tl.load(gain + d, mask=d < WIDTH, other=0)
    tl.store(out + at, vector * scale[:, None] * gains[None, :], mask=there)


@triton.jit
@no_type_check
def _norm_backward(
    gradient,
    vectors,
    gain,
    inverse,
    to_vectors,
    to_gain,
    n,
    rounds,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PADDED: tl.constexpr,
):
    d = tl.arange(0, PADDED)
    gains = tl.load(gain + d, mask=d < WIDTH, other=0)[None, :]
    gain_sum = tl.zeros((PADDED,), tl.float32)
    for number in range(rounds):
        i = (tl.program_id(0).to(tl.int64) + number * tl.num_programs(0)) * AT_ONCE + tl.arange(0, AT_ONCE)
        at, there = i[:, None] * WIDTH + d[None, :], (i[:, None] < n) & (d[None, :] < WIDTH)
        vector = tl.load(vectors + at, mask=there, other=0).to(tl.float32)
        given = tl.load(gradient + at, mask=there, other=0).to(tl.float32)
        scale = tl.load(inverse + i, mask=i < n, other=0)[:, None]
        along = tl.sum(given * gains * vector, 1)[:, None] * scale * scale / WIDTH  # the part along the vector
        tl.store(to_vectors + at, (given * gains - vector * along) * scale, mask=there)
        gain_sum += tl.sum(given * vector * scale, 0)
    tl.store(to_gain + tl.program_id(0) * WIDTH + d, gain_sum, mask=d < WIDTH)
