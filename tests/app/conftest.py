"""What every test of the app needs around it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit import config
from streamlit.components.v2 import manifest_scanner

from app.parts.report import kept


@pytest.fixture(scope="session", autouse=True)
def _packages_are_not_scanned() -> Iterator[None]:
    """Each AppTest has Streamlit look for components in all installed packages, for seconds; the app uses none. Nor
    does it use the magic that each would have to rewrite all pages for.
    """
    config.set_option("runner.magicEnabled", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", list)
        yield


@pytest.fixture(scope="module", autouse=True)
def _blank(blank_figures: None) -> None:
    """No test looks at the figures of pages; those of plots and of reports are drawn."""


@pytest.fixture(autouse=True)
def _recordings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app opens the module's ``folder``."""
    folder: Path = request.getfixturevalue("folder")
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(folder))


@pytest.fixture(autouse=True)
def _own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """AppTest leaves the app as ``__main__``, which processes that later tests start would run again."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture(scope="module", autouse=True)
def _close_what_the_app_opened() -> Iterator[None]:
    yield
    st.cache_resource.clear()
    st.cache_data.clear()
    kept.drop_reports()
