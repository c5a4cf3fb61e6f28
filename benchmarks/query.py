"""How fast does a recording answer the questions of a page of the app?

    python benchmarks/query.py --selections 10000000

Writes a synthetic recording with all aggregates, opens it once, and asks for the pages of entries (card, contexts with
text, tokens it fires on, neighbours): entries drawn evenly, by usage, and the most used one. Prints medians, the 95th
percentile and the ratio to a DuckDB scan of the token-major parts for the same entry's rows, which is the cost of a
page without the entry-major aggregates.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from synthetic import write_recording, zipf_shares

from memscope.base.parquet import ENTRY_ROW_GROUP, fixed_lists, write_table
from memscope.census.aggregate import write_aggregates
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo, write_info

CONTEXTS = 25


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=65_536)
    parser.add_argument("--selections", type=int, default=10_000_000)
    parser.add_argument("--pages", type=int, default=200)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        _measure(folder, arguments.entries, arguments.selections, arguments.pages)
    finally:
        shutil.rmtree(folder)


def _measure(folder: Path, n_entries: int, selections: int, pages: int) -> None:
    info = write_recording(folder, n_entries, selections)
    write_aggregates(folder, info)
    write_decodings(folder, info)
    write_info(folder, info.model_copy(update={"complete": True}))
    recording = Recording(folder)
    rng = np.random.default_rng(0)
    shares = zipf_shares(n_entries)
    by_usage = rng.choice(n_entries, pages, p=shares).tolist()
    chosen = {
        "entry page, entries drawn evenly": rng.integers(0, n_entries, pages).tolist(),
        "entry page, drawn by usage": by_usage,
        "entry page, the most used": [int(shares.argmax())] * 20,
    }
    page(recording, 0)  # opens files and loads token ids
    scan = _times(lambda entry: _scan(folder, entry), by_usage[:10])
    print(f"{n_entries:,} entries, {selections:,} selections, {info.rows:,} tokens\n")
    print(f"{'':36}{'median ms':>11}{'95% ms':>9}{'x scan':>8}")
    print(f"{'scan of the token-major parts':36}{np.median(scan):11.1f}{np.quantile(scan, 0.95):9.1f}{1:8.2f}")
    for name, entries in chosen.items():
        times = _times(lambda entry: page(recording, entry), entries)
        ratio = np.median(times) / np.median(scan)
        print(f"{name:36}{np.median(times):11.1f}{np.quantile(times, 0.95):9.1f}{ratio:8.2f}")
    questions: dict[str, Callable[[int], object]] = {
        "256 tokens of a document": lambda _: recording.trace(int(rng.integers(len(recording.documents)))),
        "page of the table of entries": lambda _: recording.entries(limit=50),
        "search in sentences": lambda entry: recording.entries(search=f"w{entry % 6000}", limit=50),
        "all selections of an entry": lambda entry: recording.selections(entry, 0),
    }
    for name, work in questions.items():
        times = _times(work, by_usage[:50])
        print(
            f"{name:36}{np.median(times):11.1f}{np.quantile(times, 0.95):9.1f}{np.median(times) / np.median(scan):8.2f}"
        )


def page(recording: Recording, entry: int) -> None:
    """Ask for all that the page of an entry shows."""
    recording.entry(entry)
    assert len(recording.contexts(entry).head(CONTEXTS)) <= CONTEXTS
    recording.firing_of([entry])
    recording.neighbours_of([entry])


def _scan(folder: Path, entry: int) -> None:
    database = duckdb.connect()
    files = str(folder / "tokens" / "*.parquet")
    for layer in range(8):
        database.execute(
            f"""SELECT doc, pos, token, l{layer}_gate FROM read_parquet(?)
                WHERE list_contains(l{layer}_indices::INTEGER[], ?)""",
            [files, entry],
        ).fetchall()


def _times(work: Callable[[int], object], entries: list[int]) -> np.ndarray:
    """Milliseconds of every call."""
    times = []
    for entry in entries:
        started = time.perf_counter()
        work(entry)
        times.append(1000 * (time.perf_counter() - started))
    return np.array(times)


def write_decodings(folder: Path, info: RecordingInfo) -> None:
    """Decodings of the usual shape; their values do not matter here."""
    n = info.knowledge_num
    rng = np.random.default_rng(4)
    tokens = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 10 * n + 1, 10, dtype=np.int32)),
        pa.array(rng.integers(0, 6400, 10 * n).astype(np.uint32)),
    )
    write_table(
        folder / "decodings.parquet",
        {
            "entry": np.arange(n, dtype=np.uint32),
            "drift": rng.random(n, np.float32),
            "nearest": tokens,
            "nearest_cosine": pa.ListArray.from_arrays(tokens.offsets, pa.array(rng.random(10 * n, np.float32))),
            "kept": rng.random(n, np.float32),
            "kept_at_init": rng.random(n, np.float32),
            "slot_drift": fixed_lists(rng.random((n, 1), np.float32), pa.float32()),
            **{f"l{layer}_{end}": tokens for layer in info.layers for end in ("top", "bottom")},
        },
        ENTRY_ROW_GROUP,
    )


if __name__ == "__main__":
    main()
