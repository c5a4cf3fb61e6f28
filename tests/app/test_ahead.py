"""What the server does before a reader asks."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st

from app import ahead, live
from app.model import asked
from app.model.process import OFF
from tests.app.open_page import open_page
from tests.app_folder import make_folder


@pytest.fixture(scope="module")
def folder(tiny_recording_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tiny_recording_path, tmp_path_factory.mktemp("ahead") / "recordings")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ahead, "_started", False)
    monkeypatch.setattr(ahead, "_SWITCH", 0.005)
    monkeypatch.delenv(OFF, raising=False)
    st.cache_resource.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number for every time that what lives was taken out of the search for garbage; nothing is."""
    times: list[int] = []
    monkeypatch.setattr(ahead, "search_from_here", lambda: times.append(1))
    return times


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs whose models were loaded; none can be."""
    runs: list[Path] = []

    def load(where: asked.Where) -> None:
        runs.append(where.run)
        raise MemoryError("there is no room for it")

    monkeypatch.setattr(asked, "warmed", load)
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


def test_what_is_imported_is_not_searched_for_garbage_again(frozen: list[int]) -> None:
    assert frozen == []
    ahead.start()
    wait()
    assert len(frozen) == 1


def test_nothing_is_done_ahead_where_that_is_off(
    monkeypatch: pytest.MonkeyPatch, loaded: list[Path], frozen: list[int]
) -> None:
    monkeypatch.setenv(OFF, "1")
    names: list[str] = []
    monkeypatch.setattr(ahead, "import_module", names.append)
    ahead.start()
    wait()
    assert not open_page("overview").exception
    wait()
    assert names == [] and loaded == [] and len(frozen) == 1


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
