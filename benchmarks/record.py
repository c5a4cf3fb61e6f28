"""What does recording cost, in time and in memory, beside the same model's bare forward pass and a cache in RAM?

    python benchmarks/record.py --set gate=product --set read_heads=8

Builds a model of the founding experiment's sizes with random weights (speed does not depend on them) and runs random
tokens through it in four ways, in turn: bare; recorded (hooks, loss, prediction, both orders of Parquet parts); with
TransformerLens' ``run_with_cache`` of the same hooks, kept in RAM batch by batch; and the same with losses and
predictions, joined to one tensor per hook and saved, which equals the result of recording. Prints the median of
tokens/s and of the ratios of a round, bytes per token on disk, and the memory that each way adds to the bare pass,
measured in separate processes.
"""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import save_file

from memscope.base.runtime import autocast, keep_freed_memory, peak_rss_bytes
from memscope.config.load import Config, load_config
from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.record.loop import plan_parts, record_parts
from memscope.recording.info import RecordingInfo
from memscope.run.adapters.own import OwnModel, memory_sites
from memscope.text.corpus import PackedCorpus, document_windows

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "experiment_1_4_1.yaml"
BATCH = 16
WAYS = ("bare forward", "recording", "cache in RAM", "cache saved")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a config value")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=65536, help="tokens a round")
    parser.add_argument("--memory-tokens", type=int, default=131072, help="tokens in RAM when memory is measured")
    arguments = parser.parse_args()
    config = load_config(CONFIG, arguments.set)
    work = Work(config, arguments.tokens)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds + 1):  # the first round warms up
        for way in WAYS:
            started = time.perf_counter()
            work.run(way)
            rates[way].append(arguments.tokens / (time.perf_counter() - started))
    peaks = {way: _peak(arguments.set, arguments.memory_tokens, way) for way in WAYS}
    print(f"\n{'':16}{'tokens/s':>10}{'ratio':>8}{'peak RSS GiB':>14}{'added MiB':>12}")
    for way in WAYS:
        ratio = median(r / b for r, b in zip(rates[way][1:], rates["bare forward"][1:], strict=True))
        added = (peaks[way] - peaks["bare forward"]) / 2**20
        print(f"{way:16}{median(rates[way][1:]):10,.0f}{ratio:8.2f}{peaks[way] / 2**30:14.2f}{added:12.0f}")
    added_by = [peaks[way] - peaks["bare forward"] for way in WAYS[1:]]
    times = added_by[1] / max(added_by[0], 1)
    print(
        f"\nrun_with_cache adds {times:.1f} times the memory that recording adds ({arguments.memory_tokens:,} tokens)"
    )
    print(f"on disk {work.bytes_per_token:.0f} bytes/token: {len(config.model.memory_layers)} layers x ", end="")
    print(f"{config.memory.selected} selections, {work.info.score_bits} mantissa bits, both orders")
    print(f"{torch.get_num_threads()} threads, {config.train.dtype}")


class Work:
    """A model and random tokens, to be run in one of the four ways."""

    def __init__(self, config: Config, n_tokens: int):
        keep_freed_memory()
        self.config = config
        self.model = MemoryTransformer(config).eval()
        for balance in self.model.balances:
            if balance.bias is not None:  # as far from zero as scores are, so that it changes what is selected
                balance.bias.normal_(generator=torch.Generator().manual_seed(0))
        tokens = np.random.default_rng(0).integers(3, config.model.vocab_size, n_tokens, dtype=np.uint16)
        self.corpus = PackedCorpus(tokens, np.array([0, len(tokens)]), ["random"], path="random", sha256="")
        self.info = RecordingInfo(
            run="",
            fingerprint="",
            corpus="",
            corpus_sha256="",
            sites=memory_sites(config),
            window=config.model.max_seq_len,
            dtype=config.train.dtype,
            score_bits=6,
            part_tokens=32768,
            total_tokens=n_tokens,
            documents=1,
            vocab_size=config.model.vocab_size,
        )
        self.bytes_per_token = 0.0

    def run(self, way: str) -> None:
        """Run all tokens once."""
        match way:
            case "bare forward":
                self._each_batch(self.model)
            case "recording":
                self._record()
            case _:
                self._cache(save=way == "cache saved")

    def _record(self) -> None:
        folder = Path(tempfile.mkdtemp())
        plan = plan_parts(document_windows(self.corpus, self.info.window), self.info.part_tokens)
        record_parts(OwnModel(self.model, self.config.train.dtype), 0, self.corpus, folder, self.info, plan)
        size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
        self.bytes_per_token = size / self.info.total_tokens
        shutil.rmtree(folder)

    def _cache(self, save: bool) -> None:
        kept: list[dict[str, torch.Tensor]] = []

        def cache(batch: torch.Tensor) -> None:
            logits, cached = self.model.run_with_cache(batch, names_filter=_is_recorded)
            kept.append(dict(cached))
            if save:
                kept[-1]["loss"] = next_token_loss(logits[:, :-1], batch[:, 1:])
                kept[-1]["prediction"] = logits.argmax(-1)

        self._each_batch(cache)
        if save:
            joined = {name: torch.cat([batch.pop(name) for batch in kept]) for name in list(kept[0])}
            with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
                save_file(joined, file.name)

    @torch.no_grad()
    def _each_batch(self, forward: Callable[[torch.Tensor], object]) -> None:
        length = self.info.window
        whole = len(self.corpus.tokens) // length * length
        windows = torch.from_numpy(self.corpus.tokens[:whole].astype(np.int64)).view(-1, length)
        with autocast(self.model.embed.weight.device, self.info.dtype):
            for batch in windows.split(BATCH):
                forward(batch)


def _is_recorded(name: str) -> bool:
    return name.endswith(("memory.hook_indices", "memory.hook_gate_scores", "memory.hook_pattern"))


def _peak(settings: list[str], n_tokens: int, way: str) -> int:
    """Peak RSS in bytes of a process that does nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_here, (settings, n_tokens, way))


def _peak_here(settings: list[str], n_tokens: int, way: str) -> int:
    Work(load_config(CONFIG, settings), n_tokens).run(way)
    return peak_rss_bytes()


if __name__ == "__main__":
    main()
