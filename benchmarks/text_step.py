"""What does a training step of a model that reads sentences cost against one of a memory?

    python benchmarks/text_step.py --data pretrain.jsonl --tokenizer tokenizer.json \
        --sentences sentences.jsonl --facts facts_train.jsonl

Both are set up as ``memscope train`` does it, from ``text_small`` and ``memory_small``, and make whole steps of their
own batches (statements, search, forward, backward, AdamW) in turns in one process, so that other work of the machine
slows both alike. Prints seconds of a step (CPU seconds with ``--cpu``; set OMP_NUM_THREADS=1 then), the ratio of their
means, and peak memory of both together. With 26 rounds one of the steps makes the keys of all sentences anew.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from memscope.base.runtime import autocast, keep_freed_memory, peak_rss_bytes
from memscope.config.load import load_config
from memscope.model.transformer import next_token_loss
from memscope.train.lessons.batches import taught_loss, teaching
from memscope.train.setup import Training, set_up, settle_dtype

PRESETS = Path(__file__).resolve().parents[1] / "memscope" / "presets"


def step(training: Training, number: int, clock: Callable[[], float]) -> float:
    """Seconds of one training step, as ``train/loop.py`` makes it, without schedule and log."""
    net, parallel, settings = training.net, training.parallel, training.config.train
    started = clock()
    tokens, lesson = training.batches.batch(number, 0)
    with autocast(tokens.device, settings.dtype), teaching(net, lesson):
        logits = parallel.model(tokens[:, :-1])
    loss = next_token_loss(logits, tokens[:, 1:]).mean()
    parallel.backward(loss + taught_loss(lesson))
    parallel.step(settings.grad_clip)
    for balance in net.balances:
        balance.step(1.0)
    return clock() - started


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("data", "tokenizer", "sentences", "facts"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change both models")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds in place of the clock's")
    parser.add_argument("--rounds", type=int, default=26, help="steps of each; the first, which warms up, is left out")
    arguments = parser.parse_args()
    keep_freed_memory()
    clock = time.process_time if arguments.cpu else time.perf_counter
    shared = [f"{key}_path={arguments.data}" for key in ("data.train", "data.valid")]
    shared += [f"data.tokenizer_path={arguments.tokenizer}", *arguments.set]
    text = [f"text.sentences_path={arguments.sentences}", f"text.facts_path={arguments.facts}"]
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, Training] = {}
        for name, changes in (("text_small", text), ("memory_small", [])):
            config = load_config(PRESETS / f"{name}.yaml", shared + changes)
            run = Path(folder) / name
            models[name] = set_up(settle_dtype(config, run, "cpu"), run, "cpu")
            models[name].net.train()
            seconds[name] = []
        for number in range(arguments.rounds):
            for name, training in models.items():
                seconds[name].append(step(training, number, clock))
    for name, times in seconds.items():
        print(f"{name:14} {mean(times[1:]):.3f} s a step, {models[name].config.train.dtype}")
    ratio = sum(seconds["memory_small"][1:]) / sum(seconds["text_small"][1:])
    print(f"text_small has {ratio:.2f}x the speed of memory_small; peak RSS {peak_rss_bytes() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
