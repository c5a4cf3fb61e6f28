"""Shared fixtures: a small corpus, a run trained on it and a recording of it, made once per test session."""

import gc
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jaxtyping
import pytest
import torch
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure
from safetensors.torch import save_file

from memscope.cli import main as command_line
from memscope.config.load import Config, dump_config, validate_config
from memscope.model.ops.native import native
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.text.corpus import PackedCorpus, pack_corpus
from memscope.train import measures
from memscope.train.loop import train
from memscope.train.prepare import prepare_run
from tests.kinds import KINDS, write_kind
from tests.processes import run_group

# Tensors here are so small that a second thread only waits; processes that tests start inherit the variable.
THREADS = os.environ.get("MEMSCOPE_TEST_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = THREADS
torch.set_num_threads(int(THREADS))
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more are processes that import torch first

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton, which reads it then

# A shell has its background jobs ignore Ctrl-C, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared" / "data"

FIRST = ("browser/test_pages.py", "testing/test_recordings.py", "testing/test_models.py", "train/test_parallel.py")
"""The modules that take longest: one that began last would keep one process at work alone."""

HOSTILE = (
    "The <script>window.hacked = true</script> tag and <img src=x onerror='window.hacked = true'> are text here. "
    "So are **bold**, `code`, $x^2$, [a link](javascript:alert(1)) and =HYPERLINK(1). "
)
"""Text that must never be interpreted: in a document, a sentence and a title."""

_PEOPLE = ["Ada Holm", "Bo Lind", "Cora Wells", "Dan Frost", "Eva Stone", "Finn Hale"]
_TOWNS = ["Aston", "Berrow", "Calder", "Dunmore", "Elham", "Farley"]
_WORK = ["a painter", "an engineer", "a physician", "a composer", "a farmer", "a printer"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_order(items))  # else one process is long at work when the others are done
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no shared data at {SHARED}"))
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU that PyTorch can use"))


def _order(items: list[pytest.Item]) -> Callable[[pytest.Item], tuple[int, bool]]:
    """The longest modules, then those that have slow tests, then the others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    first = {TESTS / name: place for place, name in enumerate(FIRST)}
    return lambda item: (first.get(item.path, len(first)), item.path not in slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Shapes and types are checked at each call but in slow tests, which call what the others call many times over.
    jaxtyping.config.update("jaxtyping_disable", item.get_closest_marker("slow") is not None)
    if item.get_closest_marker("compiler") and native() is None:  # not while collecting: the first call builds them
        pytest.skip("no C++ compiler: plain PyTorch takes the place of the loops")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what was imported stays: each training collects garbage, and need not look at it again


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_what_no_test_looks_at() -> Iterator[None]:
    """In this process files are not forced to the disk, for no test takes its power away, and the texts that a
    training ends with are short. Processes that tests start do both as always.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(measures, "_NEW_TOKENS", 8)
        yield


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps its settings in a singleton; every test starts without one."""
    AcceleratorState._reset_state(True)


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
    folder = tmp_path_factory.mktemp("corpus")
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
    return folder


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


@pytest.fixture(scope="session")
def tiny_run_path(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_config(corpus_dir), run, device="cpu")
    return run


@pytest.fixture(scope="session")
def tiny_run(tiny_run_path: Path) -> LoadedRun:
    return load_run(tiny_run_path)


@pytest.fixture(scope="session")
def tiny_recording_path(tiny_run: LoadedRun, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "tiny"
    record(OwnRun(tiny_run), corpus_dir / "valid.jsonl", path, RecordOptions(part_tokens=500))
    return path


@pytest.fixture(scope="session")
def tiny_recording(tiny_recording_path: Path) -> Recording:
    return Recording(tiny_recording_path)


@pytest.fixture(scope="session")
def tiny_corpus(tiny_run: LoadedRun, corpus_dir: Path) -> PackedCorpus:
    """``valid.jsonl`` packed with the tokenizer of the tiny run."""
    return pack_corpus(corpus_dir / "valid.jsonl", tiny_run.tokenizer, corpus_dir / "cache")


@pytest.fixture(scope="session")
def ffn_run(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """A baseline run: its model has feed-forward layers and no bank."""
    run = tmp_path_factory.mktemp("runs") / "ffn"
    train(tiny_config(corpus_dir, model={"block": "ffn"}, train={"steps": 2}), run, device="cpu")
    return load_run(run)


@pytest.fixture(scope="session")
def slot_run(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """An untrained run whose entries have one slot per sentence token, read by two gate heads."""
    config = tiny_config(corpus_dir, memory={"knowledge_length": 32, "gate_heads": 2})
    return untrained_run(config, tmp_path_factory.mktemp("runs") / "slots")


@pytest.fixture(scope="session")
def kinds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of every kind of layer, in a folder of its name."""
    folder = tmp_path_factory.mktemp("kinds")
    for name in KINDS:
        write_kind(name, folder / name)
    return folder


@pytest.fixture(scope="module")
def rough_figures() -> Iterator[None]:
    """Figures are drawn small and without a layout, which takes most of the time, where no test looks at them."""
    savefig = Figure.savefig

    def draw(figure: Figure, target: object, **options: Any) -> None:
        figure.set_layout_engine("none")
        savefig(figure, target, **options | {"dpi": 20, "bbox_inches": None})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", draw)
        yield
