"""How fast does training stay beside a process that keeps a core busy, by how its threads wait for one another?

    python benchmarks/busy.py                                       # as it is, and other ways to wait
    python benchmarks/busy.py --session                             # the neighbour is of another session
    python benchmarks/busy.py --way "spin 1000:GOMP_SPINCOUNT=1000" --way "one thread:OMP_NUM_THREADS=1"

A process per way trains a few steps, alone and beside a busy loop, in turns; the others sleep meanwhile. Prints medians
over rounds: tokens/s, its speed over that of the first way in the same round, and the share of its own speed alone that
a way keeps beside the neighbour. Linux shares cores between sessions first where ``kernel.sched_autogroup_enabled`` is
1, and so a neighbour of another session takes another share. What else runs on the machine is a neighbour too: the load
is printed.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "memory_small.yaml"
WAYS = ["as it is:", "passive:OMP_WAIT_POLICY=PASSIVE", "one thread:OMP_NUM_THREADS=1"]
WAYS += [f"spin {count}:GOMP_SPINCOUNT={count}" for count in (1000, 10000, 100000)]
LOOP = "while True: pass"


class Trainee:
    """A process that trains when it is asked to."""

    def __init__(self, variables: str, config: Path, batch: int):
        changed = dict(pair.split("=") for pair in variables.split(",") if pair)
        command = [sys.executable, __file__, "--config", str(config), "--batch", str(batch), "--trainee"]
        environment = os.environ | changed
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def rate(self, steps: int) -> float:
        """Tokens per second of some steps."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def neighbours(count: int, session: bool) -> Iterator[None]:
    """Busy loops, each in a process."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP], start_new_session=session) for _ in range(count)]
    try:
        time.sleep(0.3)  # until they run
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def train(config_path: Path, batch: int) -> None:
    """Make as many steps as each line of the standard input says, and print how fast they were."""
    import torch
    from train_step import Trainee as Model

    from memscope.base.runtime import keep_freed_memory
    from memscope.config.load import load_config

    keep_freed_memory()
    config = load_config(config_path)
    model = Model(config, time.perf_counter, torch.device("cpu"))
    positions, vocab = config.model.max_seq_len, config.model.vocab_size
    tokens = torch.randint(3, vocab, (batch, positions + 1), generator=torch.Generator().manual_seed(0))
    model.step(tokens)
    for line in sys.stdin:
        seconds = [model.step(tokens) for _ in range(int(line))]
        print(batch * positions * len(seconds) / sum(seconds), flush=True)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--way", action="append", metavar="NAME:VARIABLE=VALUE,...", help="in place of the usual ones")
    parser.add_argument("--neighbours", type=int, default=1, help="busy processes")
    parser.add_argument("--session", action="store_true", help="each in a session of its own")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="at a time")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trainee", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trainee:
        train(arguments.config, arguments.batch)
        return
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    ways = dict(way.split(":", 1) for way in arguments.way or WAYS)
    trainees = {name: Trainee(variables, arguments.config, arguments.batch) for name, variables in ways.items()}
    alone: dict[str, list[float]] = {name: [] for name in ways}
    beside: dict[str, list[float]] = {name: [] for name in ways}
    for trainee in trainees.values():
        trainee.rate(1)
    for _ in range(arguments.rounds):
        for name, trainee in trainees.items():
            alone[name].append(trainee.rate(arguments.steps))
        with neighbours(arguments.neighbours, arguments.session):
            for name, trainee in trainees.items():
                beside[name].append(trainee.rate(arguments.steps))
    for trainee in trainees.values():
        trainee.close()
    first = next(iter(ways))
    for name in ways:
        kept = median(b / a for a, b in zip(alone[name], beside[name], strict=True))
        against = [
            median(mine / its for mine, its in zip(rates[name], rates[first], strict=True)) for rates in (alone, beside)
        ]
        print(
            f"{name:14} alone {median(alone[name]):7,.0f} tokens/s, {against[0]:4.2f}x {first};   "
            f"beside {median(beside[name]):7,.0f}, {against[1]:4.2f}x;   keeps {kept:4.2f}"
        )
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
