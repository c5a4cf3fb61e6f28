"""Is a memory layer faster than the released layers that do the same? product-key-memory and PEER-pytorch, one layer.

    python benchmarks/peers.py

The layers of each pair compute the same function (tests/model/test_peers.py compares outputs and gradients), with
equally many entries, heads and selections. The two alternate, and medians are printed: of forward and backward, and of
a whole step with AdamW. All is in float32, because product-key-memory cannot run under autocast (its
``embedding_bag`` refuses mixed types). Our layer multiplies by an output matrix that theirs do not have, and as PEER
also by a matrix for read queries.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from statistics import median

import torch
from PEER_pytorch import PEER
from product_key_memory import PKM
from torch import Tensor, nn

from memscope.base.runtime import keep_freed_memory
from memscope.config.memory import MemoryConfig
from memscope.model.bank import MemoryBank
from memscope.model.gate import MemoryGate
from memscope.train.optimizer import LazyAdamW

HEADS, SELECTED, KEY = 4, 8, 128
"""Gate heads, entries each selects, and the width of a gate query."""


def product_key_memory(dim: int, side: int) -> nn.Module:
    """Lample et al.'s layer: values as wide as the residual stream, summed by their scores."""
    layer: nn.Module = PKM(dim, HEADS, side, SELECTED, KEY // 2, non_competitive_gates=True)
    return layer


def peer(dim: int, side: int) -> nn.Module:
    """He's layer: an entry is one hidden unit, its key as wide as the residual stream and so its value.

    With a softmax over the selected: ``non_competing_scores`` would select one entry per head for any setting.
    """
    layer: nn.Module = PEER(
        dim,
        heads=HEADS,
        num_experts=side**2,
        num_experts_per_head=SELECTED,
        dim_key=KEY // 2,
        non_competing_scores=False,
        activation=nn.GELU,
    )
    return layer


class OurLayer(nn.Module):
    """Our gate, bank and loops, put together as one of the peers."""

    def __init__(self, dim: int, side: int, experts: bool):
        super().__init__()
        config = MemoryConfig(
            knowledge_num=side**2,
            knowledge_dim=2 * dim if experts else dim,
            gate="product",
            gate_heads=HEADS,
            query_dim=KEY,
            num_selected=SELECTED,
            score_fn="softmax" if experts else "relu",
        )
        self.gate, self.bank = MemoryGate(dim, config), MemoryBank(config)
        self.q_proj = nn.Linear(dim, dim, bias=False) if experts else None
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """PKM: values by their scores. PEER: second halves of entries, by the GELU of first half and token."""
        selection = self.gate.select(self.gate.query(x))
        slots, width = self.bank.open()(selection.indices), x.shape[-1]
        if self.q_proj is None:
            read = slots.sum(selection.scores.unsqueeze(2), 0, width)
        else:
            read = slots.gelu_read(self.q_proj(x).unsqueeze(2), selection.scores, value_column=width)
        out: Tensor = self.o_proj(read.flatten(2))
        return out


def optimizer_of(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The same AdamW for all; rows without a gradient cost nothing where the gradient is sparse."""
    return LazyAdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--side", type=int, default=256, help="square root of the number of entries")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    dim, side = arguments.dim, arguments.side
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {
        "product-key-memory": (product_key_memory(dim, side), OurLayer(dim, side, experts=False)),
        "PEER-pytorch": (peer(dim, side), OurLayer(dim, side, experts=True)),
    }
    for name, (theirs, ours) in pairs.items():
        passes = compare([theirs, ours], arguments, with_optimizer=False)
        steps = compare([theirs, ours], arguments, with_optimizer=True)
        for label, (a, b) in (("forward + backward", passes), ("with AdamW", steps)):
            print(f"{name:20} {label:20} theirs {a * 1e3:8.1f} ms   ours {b * 1e3:8.1f} ms   {a / b:6.2f}x")


def compare(layers: list[nn.Module], arguments: argparse.Namespace, with_optimizer: bool) -> list[float]:
    """Median seconds of a pass or step of each layer, taken in turns."""
    for layer in layers:
        if isinstance(layer, OurLayer):
            layer.bank.sparse = with_optimizer  # rows that were not read cost nothing in the optimiser only
    works = [work(layer, arguments, with_optimizer) for layer in layers]
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(arguments.rounds + 1):  # the first round warms up
        for times, run in zip(seconds, works, strict=True):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    return [median(times[1:]) for times in seconds]


def work(layer: nn.Module, arguments: argparse.Namespace, with_optimizer: bool) -> Callable[[], None]:
    """A pass of the layer, with or without the optimiser's step."""
    x = torch.randn(4, arguments.tokens // 4, arguments.dim, requires_grad=True)
    optimizer = optimizer_of(layer.parameters()) if with_optimizer else None

    def run() -> None:
        layer(x).square().mean().backward()
        if optimizer is not None:
            optimizer.step()
        layer.zero_grad(set_to_none=True)

    return run


if __name__ == "__main__":
    main()
