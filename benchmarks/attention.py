"""Is causal attention in blocks of plain products faster on this CPU than PyTorch's fused kernel?

    python benchmarks/attention.py

One layer, forward and backward, at the sizes of configs/memory.yaml (4 x 512 tokens) and configs/memory_small.yaml
(16 x 256), in bfloat16 and float32, the two in turns; medians. Also how far either is from the result in float64.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from memscope.base.runtime import keep_freed_memory
from memscope.config.load import load_config
from memscope.config.model import ModelConfig
from memscope.model.attention import causal_attention, fused_attention

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    for name, batch in (("memory", 4), ("memory_small", 16)):
        model = load_config(CONFIGS / f"{name}.yaml").model
        for dtype in (torch.bfloat16, torch.float32):
            (theirs, their_error), (ours, our_error) = compare(model, batch, dtype, rounds)
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            print(
                f"{label:21} PyTorch {theirs * 1e3:6.1f} ms (error {their_error:.4f})"
                f"   in blocks {ours * 1e3:6.1f} ms ({our_error:.4f})   {theirs / ours:5.2f}x"
            )


def compare(model: ModelConfig, batch: int, dtype: torch.dtype, rounds: int) -> list[tuple[float, float]]:
    """Median seconds, and the largest error of result and gradients relative to their norm, of either."""
    torch.manual_seed(0)
    shapes = [(batch, model.max_seq_len, heads, model.head_dim) for heads in (model.n_heads, *[model.n_kv_heads] * 2)]
    tensors = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    weights = torch.randn(shapes[0]).to(dtype)
    exact = run(fused_attention, [t.detach().double().requires_grad_() for t in tensors], weights.double())
    seconds: dict[Attend, list[float]] = {fused_attention: [], causal_attention: []}
    errors = {attend: error(run(attend, tensors, weights), exact) for attend in seconds}  # warms up, too
    for _ in range(rounds):
        for attend, times in seconds.items():
            started = time.perf_counter()
            run(attend, tensors, weights)
            times.append(time.perf_counter() - started)
    return [(median(times), errors[attend]) for attend, times in seconds.items()]


def run(attend: Attend, tensors: list[Tensor], weights: Tensor) -> list[Tensor]:
    """A forward and a backward pass: the result and the gradients of a weighted sum of it."""
    z = attend(*tensors)
    return [z.detach(), *torch.autograd.grad(z, tensors, weights)]


def error(results: list[Tensor], exact: list[Tensor]) -> float:
    """The largest distance of any of the results to the exact one, relative to its norm."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(results, exact, strict=True))


if __name__ == "__main__":
    main()
