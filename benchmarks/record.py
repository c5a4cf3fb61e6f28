"""What does recording cost on top of the same model's bare forward pass?

    python benchmarks/record.py --set gate=product --rounds 5

Builds a model of the founding experiment's sizes with random weights (speed does not depend on them) and runs random
tokens through it, bare and recorded (hooks, loss, Parquet part, census), alternating. Prints the median tokens/s of
each, their ratio, bytes per token on disk and peak RSS.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from memscope.aggregate import Census
from memscope.capture import run_windows
from memscope.config import load_config
from memscope.corpus import PackedCorpus, document_windows
from memscope.model import MemoryTransformer
from memscope.record import collect_rows
from memscope.runtime import autocast, keep_freed_memory, peak_rss_bytes
from memscope.store import FORMAT_VERSION, RecordingInfo, write_part

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "experiment_1_4_1.yaml"
BATCH = 16


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a config value")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16384, help="tokens a round")
    arguments = parser.parse_args()
    keep_freed_memory()
    config = load_config(CONFIG, arguments.set)
    model = MemoryTransformer(config).eval()
    tokens = np.random.default_rng(0).integers(3, config.model.vocab_size, arguments.tokens, dtype=np.uint16)
    corpus = PackedCorpus(tokens, np.array([0, len(tokens)]), ["random"], path="random", sha256="")
    info = RecordingInfo(
        format_version=FORMAT_VERSION,
        run="",
        fingerprint="",
        corpus="",
        corpus_sha256="",
        layers=config.model.memory_layers,
        knowledge_num=config.memory.knowledge_num,
        knowledge_length=config.memory.knowledge_length,
        selected=config.memory.selected,
        dtype=config.train.dtype,
        part_tokens=len(tokens),
        total_tokens=len(tokens),
        complete=False,
        seconds=0.0,
        parts=(),
    )
    census = Census(info)
    bare, recorded, size = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds + 1):  # the first round warms up
            started = time.perf_counter()
            _bare(model, corpus, config.train.dtype)
            bare.append(len(tokens) / (time.perf_counter() - started))
            started = time.perf_counter()
            windows = document_windows(corpus, config.model.max_seq_len)
            passes = run_windows(model, corpus, windows, 0, config.train.dtype, BATCH)
            rows = collect_rows(corpus, windows, passes, info.layers, info.selected)
            part = write_part(Path(folder), 0, rows, info, config.model.vocab_size)
            census.update(rows, 0)
            recorded.append(len(tokens) / (time.perf_counter() - started))
            size = (Path(folder) / "tokens" / part.name).stat().st_size
    print(f"bare forward   {median(bare[1:]):10,.0f} tokens/s")
    print(f"recording      {median(recorded[1:]):10,.0f} tokens/s")
    print(f"ratio          {median(r / b for r, b in zip(recorded[1:], bare[1:], strict=True)):10.2f}")
    print(f"on disk        {size / len(tokens):10,.0f} bytes/token, {len(info.layers)} layers x {info.selected}")
    print(f"peak RSS       {peak_rss_bytes() / 2**30:10.2f} GiB, {torch.get_num_threads()} threads, {info.dtype}")


@torch.no_grad()
def _bare(model: MemoryTransformer, corpus: PackedCorpus, dtype: str) -> None:
    length = model.cfg.model.max_seq_len
    windows = torch.from_numpy(corpus.tokens[: len(corpus.tokens) // length * length].astype(np.int64))
    with autocast(model.embed.weight.device, dtype):
        for batch in windows.view(-1, length).split(BATCH):
            model(batch)


if __name__ == "__main__":
    main()
