"""What the server does before a reader asks."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st

from app import ahead, live
from tests.app.open_page import open_page
from tests.app_folder import make_folder


@pytest.fixture(scope="module")
def folder(tiny_recording_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tiny_recording_path, tmp_path_factory.mktemp("ahead") / "recordings")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ahead, "_started", False)
    monkeypatch.setattr(live, "QUIET", 0)
    monkeypatch.setattr(ahead, "_SWITCH", 0.005)
    monkeypatch.delenv(ahead.OFF, raising=False)
    st.cache_resource.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number for every time that garbage was left to later searches; nothing is."""
    times: list[int] = []
    monkeypatch.setattr(ahead.gc, "freeze", lambda: times.append(1))
    return times


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs whose models were loaded; none can be."""
    runs: list[Path] = []

    def load(run: Path, *how: object) -> None:
        runs.append(run)
        raise MemoryError("there is no room for it")

    monkeypatch.setattr(live, "_load", load)
    return runs


def wait() -> None:
    """Wait for what is done in the background."""
    for thread in threading.enumerate():
        if thread.name == "memscope-ahead":
            thread.join()


def test_modules_are_imported_once_and_one_that_fails_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def fail(name: str) -> None:
        names.append(name)
        raise ImportError(name)

    monkeypatch.setattr(ahead, "import_module", fail)
    ahead.start()
    ahead.start()
    wait()
    assert names == ["app.recordings"]


def test_what_is_loaded_is_not_searched_for_garbage_again(frozen: list[int], loaded: list[Path]) -> None:
    ahead.settle()
    assert frozen == []
    ahead.start()
    wait()
    assert len(frozen) == 1
    assert not open_page("overview").exception
    wait()
    assert len(loaded) == 1 and len(frozen) == 2


def test_nothing_is_done_ahead_where_that_is_off(monkeypatch: pytest.MonkeyPatch, loaded: list[Path]) -> None:
    monkeypatch.setenv(ahead.OFF, "1")
    names: list[str] = []
    monkeypatch.setattr(ahead, "import_module", names.append)
    ahead.start()
    wait()
    assert not open_page("overview").exception
    wait()
    assert names == [] and loaded == []


def test_the_first_page_loads_the_model_once_and_shows_no_error(
    monkeypatch: pytest.MonkeyPatch, loaded: list[Path]
) -> None:
    ahead.start()
    page = open_page("overview").run()
    wait()
    assert not page.exception and not page.error
    assert len(loaded) == 1


def test_a_large_model_waits_for_its_reader(monkeypatch: pytest.MonkeyPatch, loaded: list[Path]) -> None:
    monkeypatch.setattr(live, "SMALL", 0)
    ahead.start()
    assert not open_page("overview").exception
    wait()
    assert loaded == []
    assert not open_page("prompts", source="your text").exception
    wait()
    assert len(loaded) == 1
