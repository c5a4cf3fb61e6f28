"""What does recording a mixture of experts cost, in time and in memory, beside the same model's bare forward pass?

    python benchmarks/record_experts.py --model configs/olmoe_small.json

Builds a model of these sizes with random weights (speed does not depend on them) and runs random tokens through it
in two ways, in turn: bare, and recorded (hooks, loss, prediction, both orders of Parquet parts). Prints medians
of tokens/s and of the ratios of a round, bytes per token on disk, and the peak memory of each way, measured in separate
processes.
The loss takes time by the vocabulary, and the model by its size: the smaller the model, the larger the ratio.
"""

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import models

from memscope.base.runtime import keep_freed_memory, peak_rss_bytes
from memscope.record.loop import BATCH, RecordOptions, describe, plan_parts, record_parts
from memscope.run.adapters.experts import HuggingFaceExperts
from memscope.text.corpus import PackedCorpus, document_windows, window_batch
from memscope.text.special_tokens import Roles
from memscope.text.tokenizer import Tokenizer

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "olmoe_small.json"
VOCAB = 6400
WAYS = ("bare forward", "recording")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=CONFIG, help="config.json of an OlmoeForCausalLM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16384, help="tokens a round")
    asked = parser.parse_args()
    work = Work(asked.model, asked.tokens)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    busy: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(asked.rounds + 1):  # the first round warms up
        for way in WAYS:
            started, worked = time.perf_counter(), time.process_time()
            work.run(way)
            busy[way].append(time.process_time() - worked)
            rates[way].append(asked.tokens / (time.perf_counter() - started))
    bare, recorded = WAYS
    slower = median(b / r for r, b in zip(rates[recorded][1:], rates[bare][1:], strict=True))
    costlier = median(r / b for r, b in zip(busy[recorded][1:], busy[bare][1:], strict=True))
    print(f"{'':16}{'tokens/s':>10}{'CPU s':>8}{'peak RSS GiB':>14}")
    for way in WAYS:
        peak = _peak(asked.model, asked.tokens, way) / 2**30
        print(f"{way:16}{median(rates[way][1:]):10,.0f}{median(busy[way][1:]):8.2f}{peak:14.2f}")
    sites = work.subject.sites
    print(f"recording takes {slower:.2f} times the time and {costlier:.2f} times the CPU time of the bare forward pass")
    print(f"on disk {work.bytes_per_token:.0f} bytes/token: ", end="")
    print(f"{len(sites)} layers x {sites[0].selected} of {sites[0].entries} experts")
    print(f"{torch.get_num_threads()} threads, {work.subject.dtype}")


class Work:
    """A model and random tokens, to be run in one of the two ways."""

    def __init__(self, config: Path, n_tokens: int):
        from transformers import OlmoeConfig, OlmoeForCausalLM

        keep_freed_memory()
        settings = json.loads(config.read_text(encoding="utf-8"))
        model: Any = OlmoeForCausalLM(OlmoeConfig(**settings, vocab_size=VOCAB, eos_token_id=2))
        words = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
        tokenizer = Tokenizer(words, Roles(bos="w1", eos="w2"))
        self.subject = HuggingFaceExperts(model.eval(), tokenizer, "random", "0" * 64)
        tokens = np.random.default_rng(0).integers(3, VOCAB, n_tokens, dtype=np.uint16)
        self.corpus = PackedCorpus(tokens, np.array([0, n_tokens]), ["random"], path="random", sha256="0" * 64)
        self.windows = document_windows(self.corpus, self.subject.window)
        self.info = describe(self.subject, self.corpus, self.windows, RecordOptions())
        self.bytes_per_token = 0.0

    @torch.no_grad()
    def run(self, way: str) -> None:
        """Run all tokens once."""
        if way == "recording":
            folder = Path(tempfile.mkdtemp())
            plan = plan_parts(self.windows, self.info.part_tokens)
            record_parts(self.subject, self.subject.tokenizer.pad, self.corpus, folder, self.info, plan)
            size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
            self.bytes_per_token = size / len(self.corpus.tokens)
            shutil.rmtree(folder)
            return
        for start in range(0, len(self.windows), BATCH):
            batch = window_batch(self.corpus, self.windows[start : start + BATCH], 0)
            self.subject.model(
                input_ids=torch.from_numpy(batch.tokens),
                attention_mask=torch.from_numpy(batch.mask).long(),
                use_cache=False,
            )


def _peak(config: Path, n_tokens: int, way: str) -> int:
    """Peak RSS in bytes of a process that does nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_here, (config, n_tokens, way))


def _peak_here(config: Path, n_tokens: int, way: str) -> int:
    Work(config, n_tokens).run(way)
    return peak_rss_bytes()


if __name__ == "__main__":
    main()
