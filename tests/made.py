"""What tests share: runs, recordings of them and what is done around every test; made once.

A plugin of pytest that ``conftest.py`` adds in processes that run tests: the one that only deals tests out to others
need not load what this takes.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure

from memscope.model.ops.native import native
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.report import document
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.text.corpus import PackedCorpus, pack_corpus
from memscope.train import measures
from memscope.train.loop import train
from tests import compiled  # noqa: F401
from tests.conftest import THREADS, tiny_config, untrained_run
from tests.kinds import KINDS, write_kind
from tests.once import made_once

torch.set_num_threads(int(THREADS))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Shapes and types are checked at each call but in slow tests, which call what the others call many times over.
    jaxtyping.config.update("jaxtyping_disable", item.get_closest_marker("slow") is not None)
    if item.get_closest_marker("compiler") and native() is None:  # not while collecting: the first call builds them
        pytest.skip("no C++ compiler: plain PyTorch takes the place of the loops")
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no GPU that PyTorch can use")


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


@pytest.fixture(scope="session")
def tiny_run_path(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "runs/tiny", lambda run: train(tiny_config(corpus_dir), run, device="cpu"))


@pytest.fixture(scope="session")
def tiny_run(tiny_run_path: Path) -> LoadedRun:
    return load_run(tiny_run_path)


@pytest.fixture(scope="session")
def tiny_recording_path(tiny_run: LoadedRun, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus, options = corpus_dir / "valid.jsonl", RecordOptions(part_tokens=500)
    return made_once(tmp_path_factory, "recordings/tiny", lambda path: record(OwnRun(tiny_run), corpus, path, options))


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

    def write(folder: Path) -> None:
        for name in KINDS:
            write_kind(name, folder / name)

    return made_once(tmp_path_factory, "kinds", write)


EMPTY_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


@contextmanager
def rough_drawing() -> Iterator[None]:
    """Draw figures small, once and without a layout, which takes most of the time, where no test looks at them."""
    savefig = Figure.savefig

    def draw(figure: Figure, target: Any, **options: Any) -> None:
        if options.get("format") == "svg" and isinstance(target, io.BytesIO):
            target.write(EMPTY_SVG)  # the figure is drawn as PNG too
            return
        figure.set_layout_engine(None)
        savefig(figure, target, **options | {"dpi": 20, "bbox_inches": None})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", draw)
        patch.setattr(document, "lay_out", lambda figure: figure.bbox_inches)
        yield


@pytest.fixture(scope="module")
def rough_figures() -> Iterator[None]:
    """``rough_drawing`` in all tests of a module."""
    with rough_drawing():
        yield


@pytest.fixture(scope="module")
def blank_figures() -> Iterator[None]:
    """In all tests of a module figures are made but not drawn: their pictures are empty."""
    dot = io.BytesIO()
    Figure((0.1, 0.1)).savefig(dot, format="png", dpi=10)
    pictures = {"png": dot.getvalue(), "svg": EMPTY_SVG}

    def draw(figure: Figure, target: Any, *, format: str, **options: Any) -> None:
        with target.open("wb") if isinstance(target, Path) else nullcontext(target) as file:
            file.write(pictures[format])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", draw)
        patch.setattr(document, "lay_out", lambda figure: figure.bbox_inches)
        yield
