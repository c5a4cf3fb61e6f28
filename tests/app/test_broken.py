"""A broken recording in the folder is a row that says what is wrong; the others work, on every page."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streamlit as st

from memscope.base.seals import SEAL, write_sealed
from memscope.query.catalog import find_recordings, recordings_table
from memscope.recording.info import INFO
from tests.app.open_page import FRAME, open_page
from tests.app_folder import make_folder

pytestmark = pytest.mark.slow

PAGES = ("overview", "prompts", "entries", "map", "gate_bias", "reading", "facts", "what_if", "compare")


def rewrite(path: Path, **values: object) -> None:
    """Change values of a JSON file; a value of None removes its key."""
    content = json.loads(path.read_text()) | values
    content = {key: value for key, value in content.items() if value is not None and key != SEAL}
    if path.name == INFO:
        write_sealed(path, content)
    else:
        path.write_text(json.dumps(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_link(path: Path) -> None:
    """Moved out of the folder that the app was started on, and linked."""
    outside = path.parents[2] / "outside" / path.name
    outside.parent.mkdir(exist_ok=True)
    path.rename(outside)
    path.symlink_to(outside)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "census-cut": (lambda rec: cut(rec / "census.json"), "census.json:"),
    "census-without-loss": (lambda rec: rewrite(rec / "census.json", loss=None), "'loss' is not there"),
    "census-of-nothing": (lambda rec: (rec / "census.json").write_text("[]"), "not a census"),
    "census-of-other-layers": (lambda rec: rewrite(rec / "census.json", layers=[]), "is not about the layers"),
    "census-gone": (lambda rec: (rec / "census.json").unlink(), "census.json: missing"),
    "census-a-folder": (lambda rec: into_folder(rec / "census.json"), "census.json: missing"),
    "info-cut": (lambda rec: cut(rec / "recording.json"), "recording.json:"),
    "info-empty": (lambda rec: (rec / "recording.json").write_text(""), "recording.json:1: not valid JSON"),
    "info-a-folder": (lambda rec: into_folder(rec / "recording.json"), "not a recording"),
    "other-version": (lambda rec: rewrite(rec / "recording.json", format_version=99), "format version 99"),
    "unfinished": (lambda rec: rewrite(rec / "recording.json", complete=False), "unfinished"),
    "table-gone": (lambda rec: (rec / "usage.parquet").unlink(), "usage.parquet: missing"),
    "link-in-it": (lambda rec: into_link(rec / "config.yaml"), "a link that leads out of"),
    "link": (into_link, "a link that leads out of"),
}


@pytest.fixture(scope="module")
def folder(tiny_recording_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole recordings among broken ones, and other things."""
    folder = make_folder(tiny_recording_path, tmp_path_factory.mktemp("broken") / "recordings")
    for name, (damage, _) in BROKEN.items():
        damage(shutil.copytree(tiny_recording_path, folder / name))
    (folder / "empty").mkdir()
    (folder / "a-file").write_text("no folder")
    (folder / "loop").symlink_to(folder / "loop")
    return folder


def test_every_broken_recording_is_a_row_that_says_what_is_wrong(folder: Path) -> None:
    table = recordings_table(find_recordings(folder), folder).set_index("recording")
    assert sorted(table.index) == sorted([*BROKEN, "tiny", "deeper/twin"])
    assert {name for name, state in table["state"].items() if state == "whole"} == {"tiny", "deeper/twin"}
    for name, (_, message) in BROKEN.items():
        assert message in table.loc[name, "state"], name


@pytest.mark.parametrize("page", PAGES)
def test_the_whole_ones_work_on_every_page(page: str) -> None:
    test = open_page(page, recording="tiny")
    assert not test.exception and not test.error
    assert test.title[0].value.lower().replace(" ", "_") == page


def test_a_whole_one_is_opened_unless_the_address_says_otherwise() -> None:
    test = open_page("overview", recording=None)
    assert not test.exception and not test.error
    assert test.selectbox(key="chosen").value == "deeper/twin"


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_says_what_is_wrong_and_lists_all(name: str) -> None:
    test = open_page("overview", recording=name)
    assert not test.exception
    assert test.error[0].value == "This recording cannot be opened."
    said = test.code[0].value
    expected = BROKEN[name][1].removesuffix(": missing")
    assert expected in said or "damaged" in said
    assert "tiny" in test.dataframe[0].value["recording"].tolist()
    test.selectbox(key="chosen").select("tiny").run()
    assert not test.exception and not test.error and test.title[0].value == "Overview"


def test_a_broken_one_to_compare_with_says_what_is_wrong() -> None:
    test = open_page("compare", recording="tiny", **{"with": "census-cut"})
    assert not test.exception
    assert test.error[0].value == "The other recording cannot be opened."
    assert "census.json" in test.code[0].value


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_one_that_may_not_be_read_is_a_row_too(tiny_recording_path: Path, tmp_path: Path) -> None:
    closed = shutil.copytree(tiny_recording_path, tmp_path / "closed")
    (closed / "census.json").chmod(0)
    [row] = recordings_table(find_recordings(tmp_path), tmp_path).to_dict("records")
    assert "Permission denied" in row["state"]


def test_a_file_that_goes_while_a_page_is_open_is_named(
    tiny_recording_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = shutil.copytree(tiny_recording_path, tmp_path / "tiny")
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(tmp_path))
    test = open_page("overview", recording="tiny", part="model")
    assert not test.exception and not test.error
    (tiny / "config.yaml").unlink()
    test.run()
    assert not test.exception
    assert "config.yaml" in test.code[0].value


DOWNLOADS = {
    ("overview", "model"): {"tiny.yaml"},
    ("gate_bias", "evenness"): {"tiny-evenness.csv"},
    ("gate_bias", "concentration"): {"tiny-most-used-layer-0.csv", "tiny-usage.csv"},
    ("gate_bias", "preferences"): {"tiny-preferences.csv"},
    ("reading", "shares"): {"tiny-reading.csv"},
    ("routing", "load"): {"tiny-load.csv"},
    ("routing", "atlas"): {"tiny-atlas-layer-0.csv"},
    ("routing", "tokens"): {"tiny-routing-by-token.csv"},
    ("routing", "pairs"): {"tiny-pairs-layer-0.csv"},
    ("map", None): {"tiny-map-entries.csv"},
    ("entries", None): {"tiny-entries.csv"},
    ("entries", "card"): {f"tiny-{table}-3.csv" for table in ("contexts", "logit-lens", "ngrams", "typical-tokens")},
    ("entries", "pins"): {"tiny-entries.csv", "tiny-pins.csv"},
    ("prompts", None): {"tiny-document-0.csv"},
}
ASKED: dict[tuple[str, str | None], dict[str, str]] = {
    ("map", None): {"lasso": "0_-2000.2000_-2000.2000_2000.0_2000"},
    ("entries", None): {},
    ("entries", "card"): {"entry": "3"},
    ("entries", "pins"): {"pins": "3"},
    ("prompts", None): {},
}
"""The addresses that open them, where a part alone does not."""


@pytest.mark.parametrize(("page", "part"), DOWNLOADS)
def test_every_download_is_made_outside_of_the_session(
    page: str, part: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: dict[str, Any] = {}
    monkeypatch.setattr(st, "download_button", lambda label, data, name, *_, **__: offered.update({name: data}))
    asked = ASKED.get((page, part), {"part": part})
    test = open_page(page, recording="tiny", **asked)
    assert not test.exception
    assert set(offered) == DOWNLOADS[page, part], offered.keys()
    for name, data in offered.items():
        assert len(_downloaded(data)) > 50, name


def _downloaded(data: Any) -> str | bytes:
    """What the server sends: it asks in a thread that knows of no session."""
    if not callable(data):
        return data  # type: ignore[no-any-return]
    made: list[str] = []
    thread = threading.Thread(target=lambda: made.append(data()))
    thread.start()
    thread.join()
    [text] = made
    return text


def test_all_downloads_are_downloaded_in_these_tests() -> None:
    """Facts have theirs in test_causal.py and test_sentences.py, anomalies in test_pages.py, domains in
    test_routing.py, the report in the browser."""
    calls = sum(path.read_text().count("state.download(") for path in FRAME.parent.rglob("*.py"))
    tested = len(set.union(*DOWNLOADS.values())) - 1  # the config's button is Streamlit's own
    assert calls == tested + 4  # those of the facts, twice, of the anomalies and of domains
