"""What does a recording of a thousand million selections cost, from its parts to a page of the app?

    python benchmarks/large.py --selections 100000000 --selections 1000000000 --processes 2

Writes a synthetic recording (synthetic.py) and makes all aggregates, with ``memscope census`` and again with processes
of torchrun, which must write the same bytes. Opens it and asks for pages of entries drawn by usage. Prints seconds and
peak RSS of each step beside DuckDB, which counts only selections per layer and entry from the same files.
"""

import argparse
import hashlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from census import count_in_duckdb, timed
from query import page, write_decodings
from synthetic import write_recording, zipf_shares

from memscope.census.aggregate import write_aggregates
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo, read_info, write_info

PAGES = 100


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=65_536)
    parser.add_argument("--selections", type=int, action="append", help="size of the recording; may be repeated")
    parser.add_argument("--processes", type=int, default=0, help="make the census again with so many processes")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    for selections in arguments.selections or [100_000_000]:
        folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            _measure(folder, arguments.entries, selections, arguments.processes)
        finally:
            shutil.rmtree(folder)


def _measure(folder: Path, n_entries: int, selections: int, processes: int) -> None:
    info, seconds, rss = timed(write_recording, folder, n_entries, selections)
    size = sum(path.stat().st_size for path in folder.rglob("part-*.parquet"))
    print(f"\n{n_entries:,} entries, {selections:,} selections, {info.rows:,} tokens; parts {size / 2**30:.1f} GiB\n")
    print(f"{'':38}{'seconds':>9}{'M selections/s':>16}{'peak RSS GiB':>14}", flush=True)
    _line("parts written", seconds, selections, rss)
    _, seconds, rss = timed(count_in_duckdb, folder, info)
    _line("DuckDB, counts only", seconds, selections, rss)
    _, seconds, rss = timed(write_aggregates, folder, info)
    _line("all aggregates, one process", seconds, selections, rss)
    if processes:
        alone = _hashes(folder, info)
        rss, seconds, _ = timed(_census_by, folder, processes)
        _line(f"all aggregates, {processes} processes, each", seconds, selections, rss)
        print(f"{'the same bytes':38}{'yes' if _hashes(folder, info) == alone else 'NO':>9}")
    size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    print(f"{'aggregates, GiB':38}{size / 2**30:9.2f}")
    (opened, pages), _, rss = timed(_pages, folder, n_entries)
    print(f"{'recording opened, s':38}{opened:9.2f}")
    print(f"{'page of an entry, ms: median, 95%':38}{np.median(pages):9.1f}{np.quantile(pages, 0.95):16.1f}{rss:14.2f}")


def _line(name: str, seconds: float, selections: int, rss: float) -> None:
    print(f"{name:38}{seconds:9.1f}{selections / seconds / 1e6:16.1f}{rss:14.2f}", flush=True)


def _hashes(folder: Path, info: RecordingInfo) -> dict[str, str]:
    names = [path for path in sorted(folder.glob("*.*")) if path.suffix in (".parquet", ".json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names if path.name != "recording.json"}


def _census_by(folder: Path, processes: int) -> float:
    """Make the census by processes of torchrun; the largest peak RSS of one of them in GiB."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    subprocess.run([*launcher, "-m", "memscope", "census", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def _pages(folder: Path, n_entries: int) -> tuple[float, list[float]]:
    """Seconds to open the recording, and milliseconds of each page of an entry."""
    info = read_info(folder)
    write_decodings(folder, info)
    write_info(folder, info.model_copy(update={"complete": True}))
    started = time.perf_counter()
    recording = Recording(folder)
    page(recording, 0)
    opened, took = time.perf_counter() - started, []
    for entry in np.random.default_rng(0).choice(n_entries, PAGES, p=zipf_shares(n_entries)).tolist():
        started = time.perf_counter()
        page(recording, entry)
        took.append(1000 * (time.perf_counter() - started))
    return opened, took


if __name__ == "__main__":
    main()
