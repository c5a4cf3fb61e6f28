"""What does a training step of a memory model cost against its FFN baseline, and against decoders of peers' layers?

    python benchmarks/train_step.py                                          # configs/memory.yaml against the FFN
    python benchmarks/train_step.py --set knowledge_num=1048576 --peers
    python benchmarks/train_step.py --variant "4 heads:gate_heads=4" --variant "2 heads:gate_heads=2"
    python benchmarks/train_step.py --device cuda --batch 64 --rss --peers --variant "a million:knowledge_num=1048576"

All have the same decoder. Whole steps (forward, backward, clipping, AdamW) alternate in one process, so that other work
of the machine slows all alike. Prints median tokens/s, the median ratio to the FFN's step of the same round, and with
``--rss`` the peak memory of each model, trained in a separate process: resident, and on a GPU that of tensors. On a
busy machine, ``--cpu`` measures CPU time (with OMP_NUM_THREADS=1: threads that wait for one another count). All is in
the type that ``dtype`` gives, except product-key-memory's layer, which refuses bfloat16 and runs in float32.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memscope.base.runtime import autocast, keep_freed_memory, peak_rss_bytes, pick_device, pick_dtype
from memscope.config.load import Config, load_config
from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.train.optimizer import clip_gradients, make_optimizer

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "memory.yaml"
BASELINE, PEERS = "FFN", ("product-key-memory", "PEER-pytorch")
IN_FLOAT32 = PEERS[0]
"""Whose layer runs in float32: under autocast its ``embedding_bag`` is given two types and refuses."""


class PeerMemory(nn.Module):
    """A peer's layer in place of a memory; it holds its entries and reads no bank."""

    def __init__(self, name: str, config: Config):
        super().__init__()
        from peers import peer, product_key_memory

        self.in_float32 = name == IN_FLOAT32
        make = product_key_memory if name == PEERS[0] else peer
        self.layer = make(config.model.dim, round(config.memory.knowledge_num**0.5))

    def forward(self, x: Float[Tensor, "batch pos dim"], bank: object) -> Float[Tensor, "batch pos dim"]:
        """The output of the layer."""
        if not self.in_float32:
            half: Tensor = self.layer(x)
            return half
        with autocast(x.device, "float32"):
            full: Tensor = self.layer(x.float())
        return full


class NoBank(nn.Module):
    """A placeholder for the shared bank: peers' layers hold their entries."""

    def open(self) -> "NoBank":
        """Nothing to share."""
        return self


class Trainee:
    """A model with its optimiser; ``step`` returns the seconds of one training step, by a clock."""

    def __init__(self, config: Config, clock: Callable[[], float], device: torch.device, peer: str | None = None):
        self.config, self.clock = config, clock
        self.model = MemoryTransformer(config)
        if peer is not None:
            self.model.bank = NoBank()  # type: ignore[assignment]
            for block in self.model.blocks:
                block.memory = PeerMemory(peer, config)
        self.model.to(device)
        if config.train.compile:
            self.model.compile_layers()
        self.optimizer = make_optimizer(self.model, config.train)

    def step(self, tokens: torch.Tensor) -> float:
        """One step on ``tokens [batch, pos + 1]``."""
        started = self.clock()
        with autocast(tokens.device, self.config.train.dtype):
            loss = next_token_loss(self.model(tokens[:, :-1]), tokens[:, 1:]).mean()
        loss.backward()
        clip_gradients(self.model.parameters(), self.config.train.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.clock() - started


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change all models")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME:KEY=VALUE,...", help="one more model")
    parser.add_argument("--peers", action="store_true", help="also decoders of the released peers' layers")
    parser.add_argument("--rss", action="store_true", help="also peak memory, each model in its own process")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds in place of the clock's")
    parser.add_argument("--only", metavar="NAME", help="just this model, and its peak memory")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ...")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    settings: dict[str, list[str]] = {BASELINE: [*arguments.set, "block=ffn"], "memory": arguments.set}
    for variant in arguments.variant:
        name, _, changes = variant.partition(":")
        settings[name] = [*arguments.set, *re.split(r",(?=\w+=)", changes)]  # a value may be a list
    if arguments.peers:
        settings |= {name: arguments.set for name in PEERS}
    if arguments.only:
        settings = {arguments.only: settings[arguments.only]}
    device = pick_device(arguments.device)
    clock = time.process_time if arguments.cpu else waiting_clock(device)
    trainees = {
        name: Trainee(load_config(arguments.config, changes), clock, device, name if name in PEERS else None)
        for name, changes in settings.items()
    }
    dtype = pick_dtype(next(iter(trainees.values())).config.train.dtype, device)
    print(f"{named(device)}, {dtype}, batch {arguments.batch}, PyTorch {torch.__version__}")
    seconds = measure(trainees, arguments.batch, arguments.rounds, device)
    for name, times in seconds.items():
        model = trainees[name].model
        rate = arguments.batch * model.cfg.model.max_seq_len / median(times)
        label = f"{name} (float32)" if name == IN_FLOAT32 else name
        line = f"{label:28} {rate:8,.0f} tokens/s   {model.count_parameters():12,} parameters"
        if BASELINE in seconds:
            ratios = [theirs / ours for ours, theirs in zip(times, seconds[BASELINE], strict=True)]
            line += f"   {median(ratios):5.2f}x the FFN's speed"
        print(line, flush=True)
    del trainees
    if arguments.only:
        gpu = f", peak GPU memory {torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB"
        print(f"peak RSS {peak_rss_bytes() / 2**20:,.0f} MiB{gpu if device.type == 'cuda' else ''}")
    elif arguments.rss:
        for name in settings:
            command = [sys.executable, *sys.argv, "--only", name, "--rounds", "2"]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"{name:24} {result.stdout.splitlines()[-1]}", flush=True)


def waiting_clock(device: torch.device) -> Callable[[], float]:
    """The clock, which on a GPU waits for what was started."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def named(device: torch.device) -> str:
    """A device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"


def measure(trainees: dict[str, Trainee], batch: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every step, the models in turns; a first round that warms up is left out."""
    model = next(iter(trainees.values())).config.model
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in trainees}
    for _ in range(rounds + 1):
        tokens = torch.randint(3, model.vocab_size, (batch, model.max_seq_len + 1), generator=generator)
        tokens = tokens.to(device)
        for name, trainee in trainees.items():
            seconds[name].append(trainee.step(tokens))
    return {name: times[1:] for name, times in seconds.items()}


if __name__ == "__main__":
    main()
