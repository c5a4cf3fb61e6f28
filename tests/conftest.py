"""What every process of the tests begins with, and fixtures that take no time; the others are in ``made.py``."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from memscope.cli import main as command_line
from memscope.config.load import Config, dump_config, validate_config
from tests.once import made_once
from tests.processes import run_group

if TYPE_CHECKING:
    from memscope.run.checkpoint import LoadedRun

# Tensors here are so small that a second thread only waits; processes that tests start inherit the variable.
THREADS = os.environ.get("MEMSCOPE_TEST_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = THREADS
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more are processes that import torch first
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")  # else its first question compiles six programs

# Every search for garbage looks at all that was imported, and collecting makes no garbage: a third of its time.
gc.disable()

# A shell has its background jobs ignore Ctrl-C, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared" / "data"

FIRST = ("browser/test_pages.py", "train/test_parallel.py", "testing/test_recordings.py", "testing/test_models.py")
"""The modules that take longest: one that began last would keep one process at work alone."""

STARTING = ("base/test_lock", "base/test_stop", "cli/test_main", "model/test_bank_groups", "model/test_entry_dtype")
STARTING += ("record/test_loop", "run/test_generate", "train/test_lessons", "train/test_parallel", "train/test_resume")
STARTING += ("train/test_revive",)
"""Modules that start processes, which are forked from one that takes seconds to load: one worker needs one."""

IMPORTED_FIRST = (
    ("torch",),
    ("scipy.stats", "sklearn.feature_extraction.text", "numba"),
    ("pandas", "matplotlib.figure", "duckdb", "huggingface_hub", "pyarrow.parquet"),
)
"""What each process imports before the rest. In a new environment an import first makes bytecode, and a process that
comes later to the same package reads what another one made."""

HOSTILE = (
    "The <script>window.hacked = true</script> tag and <img src=x onerror='window.hacked = true'> are text here. "
    "So are **bold**, `code`, $x^2$, [a link](javascript:alert(1)) and =HYPERLINK(1). "
)
"""Text that must never be interpreted: in a document, a sentence and a title."""

_PEOPLE = ["Ada Holm", "Bo Lind", "Cora Wells", "Dan Frost", "Eva Stone", "Finn Hale"]
_TOWNS = ["Aston", "Berrow", "Calder", "Dunmore", "Elham", "Farley"]
_WORK = ["a painter", "an engineer", "a physician", "a composer", "a farmer", "a printer"]


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        worker = getattr(config, "workerinput", {}).get("workerid", "gw0")
        for name in IMPORTED_FIRST[int(worker[2:]) % len(IMPORTED_FIRST)]:
            import_module(name)
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton, which reads it then
        config.pluginmanager.import_plugin("tests.made")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A module's tests go to one worker, those of the modules that start processes to one too."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    modules = {f"tests/{name}.py" for name in STARTING}

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.split("::")[0]
            return "modules that start processes" if module in modules else module

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_order(items))  # else one process is long at work when the others are done
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no shared data at {SHARED}"))


def _order(items: list[pytest.Item]) -> Callable[[pytest.Item], tuple[int, bool]]:
    """The longest modules, then those that have slow tests, then the others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    first = {TESTS / name: place for place, name in enumerate(FIRST)}
    return lambda item: (first.get(item.path, len(first)), item.path not in slow)


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays: each training collects garbage, and need not look at it again
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def make_sentences(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    patterns = ["{p} was born in {t} .", "{p} works as {w} in {t} .", "The town of {t} is known for {p} , {w} ."]
    return [
        chance.choice(patterns).format(p=chance.choice(_PEOPLE), t=chance.choice(_TOWNS), w=chance.choice(_WORK))
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl (40 documents), valid.jsonl (6, the first with hostile text) and sentences.json (T-REx shape)."""
    return made_once(tmp_path_factory, "corpus", write_corpus)


def write_corpus(folder: Path) -> None:
    """Write what ``corpus_dir`` says."""
    folder.mkdir()
    for name, documents, seed in (("train", 40, 1), ("valid", 6, 2)):
        lines = []
        for number in range(documents):
            text = " ".join(make_sentences(12, seed * 1000 + number))
            title = f"Article {number}"
            if number == 0:
                text, title = HOSTILE + text, "<b>Hostile</b>"
            lines.append(json.dumps({"text": text, "title": title}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    rows = [
        {"sentence": text, "uuid": f"u{n}", "subject": "Ada Holm", "predicate": "place of birth", "object": "Aston"}
        for n, text in enumerate([HOSTILE.strip(), *dict.fromkeys(make_sentences(60, 3))])
    ]
    (folder / "sentences.json").write_text(json.dumps([{"target": [row]} for row in rows]))


def tiny_config(corpus_dir: Path, **sections: dict[str, object]) -> Config:
    """A config that trains in seconds; keyword arguments override values by section."""
    raw: dict[str, dict[str, object]] = {
        "model": {
            "vocab_size": 320,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "max_seq_len": 64,
        },
        "memory": {
            "knowledge_num": 64,
            "knowledge_dim": 16,
            "num_selected": 4,
            "gate": "product",
            "database_init_path": str(corpus_dir / "sentences.json"),
        },
        "data": {
            "train_path": str(corpus_dir / "train.jsonl"),
            "valid_path": str(corpus_dir / "valid.jsonl"),
            "cache_dir": str(corpus_dir / "cache"),
        },
        "train": {
            "steps": 20,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "dtype": "float32",
            "eval_interval": 10,
            "save_interval": 10,
            "log_interval": 5,
            "eval_tokens": 1024,
            "tracker": "none",
        },
    }
    for section, values in sections.items():
        raw[section] = raw.get(section, {}) | values
    return validate_config(raw, source="tiny_config")


def untrained_run(config: Config, run: Path) -> LoadedRun:
    """A run folder as it is before the first step."""
    from safetensors.torch import save_file

    from memscope.run.checkpoint import load_run
    from memscope.train.prepare import prepare_run

    prepared = prepare_run(config, run, write=True)
    (run / "config.yaml").write_text(dump_config(config))
    save_file(prepared.model.state_dict(), run / "model.safetensors")
    return load_run(run)


class CliResult(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., CliResult]:
    """Call the command line in this process: ``cli("train", config, "--out", run)``."""

    def call(*words: object) -> CliResult:
        monkeypatch.setattr("sys.argv", ["memscope", *map(str, words)])
        code = 0
        try:
            command_line.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return CliResult(code, *capsys.readouterr())

    return call


@pytest.fixture
def group(tmp_path: Path) -> Callable[..., Any]:
    """Trains in processes as torchrun starts them, in no time: ``group(config, run, *words, processes=2, **variables)``
    has their ``returncode``, ``stdout`` and ``stderr``.
    """

    def call(
        config: Config,
        run: Path,
        *words: str,
        processes: int = 2,
        before: Callable[[], None] | None = None,
        **variables: str,
    ) -> Any:
        (tmp_path / "config.yaml").write_text(dump_config(config))
        train = ["train", tmp_path / "config.yaml", "--out", run, "--device", "cpu", *words]
        return run_group([str(word) for word in train], tmp_path, processes, variables, before)

    return call
