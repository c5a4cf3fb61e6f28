"""The page of measured speeds is what ``benchmarks/results.py`` wrote, and a section measured again takes its place."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import results

    yield results
    del sys.modules["results"]


def test_every_section_is_of_a_benchmark_as_it_is_now(results) -> None:
    page = results.PAGE.read_text(encoding="utf-8")
    assert page.startswith(results.HEAD)
    found = re.findall(r"^## ([\w-]+): (.+)\n\nMeasured .+\n\n```text\n\$ python benchmarks/(.+)$", page, re.MULTILINE)
    named = [name for name, *_ in found]
    assert len(found) >= 4 and named == [name for name in results.BENCHMARKS if name in named]
    assert found == [(name, *results.BENCHMARKS[name]) for name in named]
    for benchmark in results.BENCHMARKS.values():
        script, *words = benchmark.command.split()
        source = (ROOT / "benchmarks" / script).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words if word.startswith("--")), benchmark.command


def test_a_section_measured_again_takes_its_place(results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PAGE", tmp_path / "results.md")
    first, second, *_ = results.BENCHMARKS
    results._keep(second, f"## {second}: b?\n\nold\n")
    results._keep(first, f"## {first}: a?\n\nfirst\n")
    results._keep(second, f"## {second}: b?\n\nnew\n")
    assert results.PAGE.read_text() == f"{results.HEAD}\n## {first}: a?\n\nfirst\n\n## {second}: b?\n\nnew\n"


def test_a_section_holds_what_the_benchmark_printed(results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(results.BENCHMARKS, "short", results.Benchmark("what is there?", "results.py --list"))
    section = results._measured("short")
    assert section.startswith("## short: what is there?\n\nMeasured 20") and "torch" in section
    assert "$ python benchmarks/results.py --list\ntraining " in section
