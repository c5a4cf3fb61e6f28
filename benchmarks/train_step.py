"""What does a training step of a memory model cost against its FFN baseline?

    python benchmarks/train_step.py --set gate=product --batch 4 --rounds 5

Both models have the founding experiment's sizes; whole steps (forward, backward, clipping, AdamW) alternate. Prints
the median tokens/s of each and their ratio.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from memscope.config import Config, load_config
from memscope.model import MemoryTransformer, next_token_loss
from memscope.optimizer import clip_gradients, make_optimizer
from memscope.runtime import autocast, keep_freed_memory, peak_rss_bytes

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "experiment_1_4_1.yaml"


class Trainee:
    """A model with its optimiser; ``step`` returns the seconds of one training step."""

    def __init__(self, config: Config):
        self.config = config
        self.model = MemoryTransformer(config)
        self.optimizer = make_optimizer(self.model, config.train)

    def step(self, tokens: torch.Tensor) -> float:
        """One step on ``tokens [batch, pos + 1]``."""
        started = time.perf_counter()
        with autocast(tokens.device, self.config.train.dtype):
            loss = next_token_loss(self.model(tokens[:, :-1]), tokens[:, 1:]).mean()
        loss.backward()
        clip_gradients(self.model.parameters(), self.config.train.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the memory model")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    memory, baseline = load_config(CONFIG, arguments.set), load_config(CONFIG, ["block=ffn"])
    trainees = {"memory": Trainee(memory), "FFN baseline": Trainee(baseline)}
    length = memory.model.max_seq_len
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in trainees}
    for _ in range(arguments.rounds + 1):  # the first round warms up
        tokens = torch.randint(3, memory.model.vocab_size, (arguments.batch, length + 1), generator=generator)
        for name, trainee in trainees.items():
            seconds[name].append(trainee.step(tokens))
    for name, times in seconds.items():
        parameters = trainees[name].model.count_parameters()
        rate = arguments.batch * length / median(times[1:])
        print(f"{name:14} {rate:10,.0f} tokens/s   {parameters:12,} parameters")
    ratios = [b / m for m, b in zip(seconds["memory"][1:], seconds["FFN baseline"][1:], strict=True)]
    print(f"ratio          {median(ratios):10.2f}")
    print(f"peak RSS       {peak_rss_bytes() / 2**30:10.2f} GiB for both, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
