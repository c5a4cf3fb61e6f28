"""Compile every kernel for a GPU that need not be here, at the sizes of a preset, and print their names.

    python tests/model/ops/compile_kernels.py

Triton's interpreter takes what its compiler refuses, and the other way round. Nothing is run.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from memscope.model.ops.gpu import loops


class Gpu:
    """What Triton asks a driver before it starts a kernel: an H100."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: Any, grid: tuple[int, ...], on: Tensor, *arguments: Any, **sizes: Any) -> None:
    assert kernel.warmup(*arguments, grid=grid, **sizes).asm["cubin"]
    print(kernel.__name__)


def main() -> None:
    driver.set_active(Gpu())
    for name in loops.__all__:
        module = sys.modules[getattr(loops, name).__module__]
        module.start = compile_only  # type: ignore[attr-defined]
    half, tokens, heads, width, slices, slots, columns = torch.bfloat16, 64, 32, 16, 8, 16, 128
    rows, scores = torch.zeros(tokens, slots, dtype=torch.int64), torch.zeros(tokens, slots)
    table, touched = torch.zeros(1024, columns), torch.zeros(512, dtype=torch.bool)
    vectors, weights = torch.zeros(tokens, heads, width, dtype=half), torch.zeros(tokens, heads, slots)
    loops.gather_dot(vectors, table, 0, slices, rows)
    loops.gather_sum(weights, table, 0, width, slices, rows, half)
    loops.scatter_sum(table, touched, rows, slices, vectors, weights, 0, vectors, weights, 0)
    loops.gelu_read(vectors, scores, table, 0, 0, slices, rows, half)
    loops.gelu_read_backward(vectors, vectors, scores, table, 0, 0, slices, rows, table, touched)
    keys, halves = torch.zeros(2, 2, 256, 32), torch.zeros(tokens, 2, 2, 32, dtype=half)
    indices, _ = loops.product_top(halves, torch.zeros(2, 2, 32), 8)
    loops.product_scores(halves, keys, indices)
    loops.product_scores_backward(torch.zeros(indices.shape), halves, keys, indices)
    _, inverse = loops.rms_norm(vectors, torch.ones(width), 1e-5, half)
    loops.rms_norm_backward(vectors, vectors, torch.ones(width), inverse)
    moments = torch.zeros(3, 1024, columns, dtype=half)
    loops.adam_rows(*moments, rows.flatten(), torch.zeros(rows.numel(), columns), 1, 0.9, 0.95, 1e-3, 1.0, 1e-8)


if __name__ == "__main__":
    main()
