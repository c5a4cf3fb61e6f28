"""Measure anew what the README and the docs say of speed, and write docs/results.md: one command for all benchmarks.

    python benchmarks/results.py                      # some 40 minutes on two cores; leave the machine alone
    python benchmarks/results.py --only training --only census
    python benchmarks/results.py --list

Each section is one benchmark's command with what it printed, its commit, its date and the machine. A section that is
measured again takes its old place; the others stay as they are. What needs a corpus that does not ship is left to
the lab book.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from memscope.base.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
HEAD = """# Results

How fast memscope is, as one command measured it: `python benchmarks/results.py`. Each section is a benchmark with what
it printed; `--only NAME` measures one again and leaves the others, `--list` names them all. Speeds are of the machine
that a section names, and ratios are against a peer in the same run. What a model reaches, and every measurement that
needs a corpus of yours, is in [the lab book](log/README.md).
"""
_SECTION = re.compile(r"^## (?P<name>[\w-]+): ", re.MULTILINE)


class Benchmark(NamedTuple):
    """A benchmark of the page."""

    question: str
    command: str
    """Script and options, after ``python benchmarks/``."""


SMALL = "--config configs/memory_small.yaml --batch 16"
BENCHMARKS = {
    "training": Benchmark(
        "what does a training step cost at dim 256, beside feed-forward layers?",
        f"train_step.py {SMALL} --rss --rounds 12",
    ),
    "training-512": Benchmark(
        "and at the founding experiment's sizes, beside released layers?",
        "train_step.py --rss --peers --rounds 5 --variant a-million:knowledge_num=1048576",
    ),
    "layers": Benchmark("is a memory layer faster than the released layers that do the same?", "peers.py"),
    "busy": Benchmark(
        "how much of its speed does training keep beside a busy process?",
        "busy.py --rounds 5 --way as-it-is: --way spin-1000:GOMP_SPINCOUNT=1000",
    ),
    "recording": Benchmark(
        "what does recording cost, beside the bare forward pass?",
        "record.py --set gate=product --rounds 3 --tokens 16384 --memory-tokens 32768",
    ),
    "recording-experts": Benchmark(
        "what does recording a mixture of experts cost?",
        "record_experts.py --rounds 3",
    ),
    "census": Benchmark(
        "how long do the aggregates of a large recording take, and are they right?",
        "census.py --selections 20000000",
    ),
    "pages": Benchmark(
        "how fast does a recording answer a page of the app?",
        "query.py --selections 10000000",
    ),
    "intervals": Benchmark(
        "how often do 95% intervals hold the truth?",
        "intervals.py --corpora 50",
    ),
}


def main() -> None:
    """Measure and write the page, section by section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="just this one; may be repeated")
    parser.add_argument("--list", action="store_true", help="say what would be measured")
    arguments = parser.parse_args()
    for name in arguments.only or BENCHMARKS:
        if arguments.list:
            print(f"{name:20} python benchmarks/{BENCHMARKS[name].command}")
        else:
            _keep(name, _measured(name))


def _measured(name: str) -> str:
    """The section of a benchmark, run now."""
    benchmark = BENCHMARKS[name]
    print(f"python benchmarks/{benchmark.command}", file=sys.stderr)
    words = [sys.executable, *benchmark.command.split()]
    words[1] = f"benchmarks/{words[1]}"
    load, started = os.getloadavg()[0], time.monotonic()
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    minutes = (time.monotonic() - started) / 60
    printed = "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
    return (
        f"## {name}: {benchmark.question}\n\n"
        f"{_where()} It took {minutes:.1f} minutes; the load was {load:.1f} before.\n\n"
        f"```text\n$ python benchmarks/{benchmark.command}\n{printed}\n```\n"
    )


def _where() -> str:
    """Date, commit and machine of a measurement, in a line."""
    changed = [line for line in _git("status", "--porcelain", "-uno").splitlines() if not line.endswith(PAGE.name)]
    commit = f"`{_git('rev-parse', '--short', 'HEAD').strip() or 'unknown'}`" + " with changes" * bool(changed)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d} at commit {commit}: {_processor()}, {os.cpu_count()} cores, {memory}, "
        f"{gpu}; Python {sys.version.split()[0]}, torch {torch.__version__}."
    )


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    kinds = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in found.get("flags", "").split()]
    return f"{found.get('model name', 'unknown processor')} ({', '.join(kinds)})"


def _keep(name: str, section: str) -> None:
    """Write a section to the page, in the order of ``BENCHMARKS``, with all others that it has."""
    text = PAGE.read_text() if PAGE.exists() else ""
    starts = [*_SECTION.finditer(text)]
    ends = [*(match.start() for match in starts), len(text)][1:]
    sections = {
        match["name"]: text[match.start() : end].strip() + "\n" for match, end in zip(starts, ends, strict=True)
    }
    sections[name] = section
    with atomic_path(PAGE) as temporary:
        temporary.write_text("\n".join([HEAD, *(sections[each] for each in BENCHMARKS if each in sections)]))


if __name__ == "__main__":
    main()
