"""How long do the aggregates of a large recording take, and do they find what was planted?

    python benchmarks/census.py --entries 65536 --entries 1048576 --selections 100000000
    python benchmarks/census.py --selections 32000000 --selections 128000000 --selections 320000000

Writes a synthetic recording with a known distribution (synthetic.py) and makes every aggregate. Prints seconds and peak
RSS of each, the ratio to DuckDB, which counts only selections per layer and entry from the same files, and every metric
beside its true value.
"""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from synthetic import LAYERS, K, write_recording, zipf_shares

from memscope.base.runtime import peak_rss_bytes
from memscope.census.aggregate import CountedUsage, write_usage
from memscope.census.firing.firing import write_firing
from memscope.census.neighbours import write_neighbours
from memscope.census.strata import divide_recording
from memscope.recording.info import RecordingInfo
from memscope.stats.usage import usage_metrics


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, action="append", help="size of the bank; may be repeated")
    parser.add_argument("--selections", type=int, action="append", help="size of the recording; may be repeated")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    for n_entries, selections in product(arguments.entries or [65_536], arguments.selections or [100_000_000]):
        folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            _measure(folder, n_entries, selections)
        finally:
            shutil.rmtree(folder)


def _measure(folder: Path, n_entries: int, selections: int) -> None:
    info, seconds, _ = timed(write_recording, folder, n_entries, selections)
    size = sum(path.stat().st_size for path in folder.rglob("part-*.parquet"))
    n_tokens = info.rows
    print(f"\n{n_entries:,} entries, {selections:,} selections, {n_tokens:,} tokens, {size / n_tokens:.0f} bytes/token")
    print(f"(written in {seconds:.0f} s; {multiprocessing.cpu_count()} cores)\n")
    timed(_warm_up)  # numba compiles or loads what it compiled before
    peer, peer_seconds, peer_rss = timed(count_in_duckdb, folder, info)
    print(f"{'':38}{'seconds':>9}{'x DuckDB':>10}{'M selections/s':>16}{'peak RSS GiB':>14}")
    _line("DuckDB, counts only", peer_seconds, peer_seconds, selections, peer_rss)
    counted, census_seconds, rss = timed(_count, folder, info)
    _line("census: evenness, reading, profiles ...", census_seconds, peer_seconds, selections, rss)
    _, firing_seconds, rss = timed(write_firing, folder, info)
    _line("contexts, typical tokens, titles", firing_seconds, peer_seconds, selections, rss)
    _, neighbour_seconds, rss = timed(write_neighbours, folder, info)
    _line("co-selection", neighbour_seconds, peer_seconds, selections, rss)
    _compare(counted, n_entries, peer)


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """Result, wall seconds and peak RSS in GiB of ``work`` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (work, arguments))


def _run(work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float, float]:
    started = time.perf_counter()
    result = work(*arguments)
    return result, time.perf_counter() - started, peak_rss_bytes() / 2**30


def _warm_up() -> None:
    folder = Path(tempfile.mkdtemp())
    info = write_recording(folder, 64, 64_000)
    _count(folder, info)
    write_firing(folder, info)
    write_neighbours(folder, info)
    shutil.rmtree(folder)


def _count(folder: Path, info: RecordingInfo) -> CountedUsage | None:
    return write_usage(folder, info, divide_recording(folder, info))


def count_in_duckdb(folder: Path, info: RecordingInfo) -> int:
    """Used (layer, entry) pairs, counted by DuckDB from the token-major parts."""
    database = duckdb.connect()
    total = 0
    for layer in info.layers:
        total += database.execute(
            f"""SELECT count(*) FROM (SELECT entry, count(*) FROM (SELECT unnest(l{layer}_indices) AS entry
                FROM read_parquet(?)) GROUP BY entry)""",
            [str(folder / "tokens" / "*.parquet")],
        ).fetchone()[0]
    return total


def _line(name: str, seconds: float, peer: float, selections: int, rss: float) -> None:
    print(f"{name:38}{seconds:9.1f}{seconds / peer:10.1f}{selections / seconds / 1e6:16.1f}{rss:14.2f}")


def _compare(counted: CountedUsage, n_entries: int, used_pairs: int) -> None:
    """Every metric of layer 0 beside the truth: that of a second draw of D selections from what was planted.

    A finite D lowers coverage and top counts and raises Gini and KL against the distribution itself. A second draw has
    the same effect, so only sampling noise is left.
    """
    layer = counted.layers[0]
    count, weight, reading = layer.evenness.by_count, layer.evenness.by_gate_score, layer.reading
    d = count.selections
    rng = np.random.default_rng(3)
    gate = np.exp(-np.arange(K)) / np.exp(-np.arange(K)).sum()
    draws = rng.multinomial(d // K, zipf_shares(n_entries), size=K)  # the entries of every place among a token's K
    again, weighted = (usage_metrics(usage, d) for usage in (draws.sum(0), gate @ draws))
    read = gate * rng.random((1_000_000, K))
    share = read / read.sum(1, keepdims=True)
    entropy = -(share * np.log(share)).sum(1)
    names = ("coverage", "kl_to_uniform", "relative_perplexity", "gini", "top50", "top90", "top99", "max_violation")
    truth = {f"{name} by count": (getattr(count, name), getattr(again, name)) for name in (*names, "dead", "hot")}
    truth |= {f"{name} by gate score": (getattr(weight, name), getattr(weighted, name)) for name in names}
    truth |= {
        "gate entropy": (reading.gate_entropy, -(gate * np.log(gate)).sum()),
        "read entropy": (reading.read_entropy, entropy.mean()),
        "effective entries read": (reading.effective_entries_read, np.exp(entropy).mean()),
        "unread share": (reading.unread_share, (share < 0.01).mean()),
        "margin": (reading.margin, 0.1),
        "loss": (reading.loss, 5.0),
        "used (layer, entry) pairs, DuckDB": (
            sum(round(part.evenness.by_count.coverage * n_entries) for part in counted.layers),
            used_pairs,
        ),
    }
    print(f"\n{'':38}{'census':>14}{'truth':>14}{'difference':>12}")
    for name, (value, true) in truth.items():
        print(f"{name:38}{value:14.5f}{true:14.5f}{value / max(true, 1e-300) - 1 if true else 0:12.2%}")
    information = layer.information
    print(f"information entry-position {information['position']:.5f} nats, shuffled {information['even_position']:.5f}")
    assert len(counted.layers) == LAYERS


if __name__ == "__main__":
    main()
