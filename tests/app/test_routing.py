"""The page of routing, run without a browser: every part on layers of experts, and what it says where it cannot."""

from pathlib import Path

import numpy as np
import pytest
import streamlit as st

from tests.app.open_page import open_page
from tests.routing.conftest import DOCUMENTS, LENGTH, VOCAB, K, N, write_routed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of one model, "tiny" and "later", on the same text of two domains."""
    root = tmp_path_factory.mktemp("app") / "recordings"
    chance = np.random.default_rng(0)
    n = DOCUMENTS * LENGTH
    token = chance.integers(3, VOCAB, n)
    for name in ("tiny", "later"):
        indices = np.argsort(chance.random((n, 2, N)), -1)[..., :K]
        write_routed(root / name, indices, token, ["code", "prose"] * (DOCUMENTS // 2))
    return root


@pytest.fixture(autouse=True)
def _open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(folder))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("load", "over the even share of its layer"),
        ("atlas", "All experts of layer 2, most loaded first"),
        ("domains", "where documents are dealt to groups at random"),
        ("tokens", "selects most often in other documents"),
        ("pairs", "over what their loads alone would give"),
        ("paths", "ways of first choices through 2 layers"),
        ("saturation", "that it makes in both recordings"),
    ],
)
def test_every_part_shows_its_question(part: str, said: str) -> None:
    page = open_page("routing", part=part, layer=2)
    assert not page.exception
    assert not page.error
    assert any(said in caption.value for caption in page.caption), [caption.value for caption in page.caption]
    assert page.dataframe


def test_lifts_of_domains_are_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    offered: dict[str, object] = {}
    monkeypatch.setattr(st, "download_button", lambda label, data, name, *_, **__: offered.update({name: data}))
    page = open_page("routing", part="domains", layer=2)
    assert not page.exception
    assert list(offered) == ["tiny-domains-layer-2.csv"]


def test_a_recording_of_layers_with_many_entries_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memscope.routing.rows.MOST_ENTRIES", N - 1)
    page = open_page("routing")
    assert not page.exception
    assert "too many for tables of all of them" in page.info[0].value
