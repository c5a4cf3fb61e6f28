"""Every page on recordings of every kind of layer: it runs, and speaks only of what the recording has."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Dataframe

from tests.app.open_page import open_page
from tests.kinds import ENTRIES, KINDS, SCORES, absent, write_kind

PARTS = {
    "overview": ("health", "model", "recordings"),
    "prompts": ("",),
    "entries": ("",),
    "map": ("",),
    "gate_bias": ("evenness", "concentration", "profiles", "layers", "anomalies", "report"),
    "reading": ("shares", "gate against read", "unread entries", "certainty"),
    "routing": ("load", "atlas", "domains", "tokens", "pairs", "paths"),
    "facts": ("",),
    "what_if": ("",),
    "compare": ("metrics", "entries"),
}
VIEWS = [(page, part) for page, parts in PARTS.items() for part in parts]
ABOUT = {
    "routing": {"random"},  # documents dealt at random
    "facts": {"memory", "entries"},
    "overview": {"entries"},  # the table of all recordings counts them
    "compare": {"entries"},  # with another kind
    "gate_bias": {"random"},  # tokens at random
}
"""Words that a page says of something else."""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(kinds_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(kinds_folder, tmp_path_factory.mktemp("app") / "recordings")
    write_kind("experts", folder / "twin")
    return folder


def said(test: AppTest) -> str:
    """All words on a page, columns and cells of tables included, but not the titles of pages and the sidebar."""
    main = test.main
    parts = [*main.markdown, *main.caption, *main.subheader, *main.info, *main.warning, *main.success, *main.text]
    words = [str(part.value) for part in parts]
    for metric in main.metric:
        words += [metric.label, str(metric.value), str(metric.delta)]
    for box in (*main.selectbox, *main.multiselect):
        words += [box.label, *map(str, box.options)]
    words += [group.label for group in (*main.number_input, *main.text_input, *main.button_group)]
    words += [str(option) for group in main.button_group for option in group.options]
    for table in main.dataframe:
        words += shown_columns(table).values()
        cells = table.value[list(shown_columns(table))].to_numpy().ravel().tolist()
        words += [str(cell) for cell in cells if isinstance(cell, (str, list, np.ndarray))]
    return "\n".join(words)


def shown_columns(table: Dataframe) -> dict[str, str]:
    """Columns that a reader sees, with their heads."""
    said = json.loads(table.proto.columns or "{}")
    order = [name for name in table.proto.column_order or table.value.columns if name in table.value.columns]
    there = [name for name in order if name not in said or said[name] is not None]
    return {name: (said.get(name) or {}).get("label") or str(name) for name in there}


def spoken(text: str, words: tuple[str, ...]) -> set[str]:
    return {word for word in words if re.search(rf"\b{word}\b", text, re.IGNORECASE)}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mixed"])
@pytest.mark.parametrize(("page", "part"), VIEWS)
def test_a_page_speaks_only_of_what_the_recording_has(page: str, part: str, kind: str) -> None:
    test = open_page(page, kind, **({"part": part} if part else {}))
    assert not test.exception
    text = said(test)
    about = ABOUT.get(page, set()) | ({"memory"} if part == "model" else set())  # a section of the config
    assert not spoken(text, absent(kind)) - about
    if kind == "selections":
        assert not spoken(text, SCORES) - {"entropy"}  # of load


@pytest.mark.parametrize(("page", "part"), VIEWS)
def test_a_page_of_a_mixed_recording_runs(page: str, part: str) -> None:
    test = open_page(page, "mixed", **({"part": part} if part else {}))
    assert not test.exception
    assert not spoken(said(test), ("nan",))


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_cannot_be_changed_is_refused_with_the_reason(kind: str) -> None:
    test = open_page("what_if", kind, text="w5 w6", entries="1")
    assert not test.exception
    if kind in ("experts", "neurons", "text"):
        assert "the recorded model is missing" in test.code[0].value
        return
    assert not test.text_input
    reason = "another program returned" if kind == "selections" else "were recorded from Python"
    assert reason in test.info[0].value


def test_reading_offers_only_layers_that_read() -> None:
    test = open_page("reading", "mixed", part="unread entries")
    assert [group.options for group in test.button_group if group.label == "Layer"] == [["0"]]
    other = open_page("reading", "experts")
    assert "Nothing weighs the selected experts apart from the router" in other.info[0].value
    assert not other.dataframe


@pytest.mark.parametrize(("kind", "entry", "name"), [("experts", 22, "Layer 1, expert 6"), ("mixed", 3, "Entry 3")])
def test_an_entry_is_named_by_its_layer(kind: str, entry: int, name: str) -> None:
    test = open_page("entries", kind, entry=entry)
    assert not test.exception
    assert test.main.subheader[0].value == name
    if kind == "experts":
        assert "mean output of this expert" in said(test)
        assert not spoken(said(test), absent("experts"))
        assert {metric.label for metric in test.metric} == {"Selections", "Layers that select it", "Mean router weight"}


@pytest.mark.parametrize("kind", list(KINDS))
def test_tokens_are_coloured_by_measures_that_are_there(kind: str) -> None:
    test = open_page("prompts", kind, doc=1, token=4)
    [box] = [box for box in test.selectbox if box.label == "Colour by"]
    names = [name.removeprefix("Colour by ") for name in box.options]
    for name in names:
        assert not open_page("prompts", kind, by=name).exception
    assert ("loss" in names) == (kind != "selections")
    several = {"mixed": "effective entries", "peer": "effective experts", "text": "effective sentences"}
    assert {name for name in names if name.startswith("effective")} == {*filter(None, [several.get(kind)])}


def test_weightings_are_those_that_the_recording_has() -> None:
    for kind, names in (("selections", ["count"]), ("experts", ["count", "router weight"])):
        test = open_page("gate_bias", kind, part="evenness")
        assert [group.options for group in test.button_group if group.label.startswith("Weigh")] == [names]


def test_the_same_kind_is_compared_number_by_number() -> None:
    for part in ("metrics", "entries"):
        test = open_page("compare", "experts", part=part, **{"with": "twin"})
        assert not test.exception
        assert not spoken(said(test), absent("experts"))


MENU = {
    "experts": ["Experts", "Router bias"],
    "selections": ["Experts", "Router bias"],
    "features": ["Features", "Selection bias"],
    "neurons": ["Neurons", "Selection bias"],
    "peer": ["Experts", "Gate bias"],
    "mixed": ["Entries", "Selection bias"],
    "text": ["Sentences", "Gate bias"],
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_menu_speaks_of_what_the_recording_has(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []
    page = st.Page

    def note(path: str, **more: Any) -> Any:
        made.append((more["title"], more["help"]))
        return page(path, **more)

    monkeypatch.setattr(st, "Page", note)
    test = open_page("entries", kind)
    titles = list(dict.fromkeys(title for title, _ in made))
    assert [title for title in titles if title in MENU[kind]] == MENU[kind]
    assert test.title[0].value in titles
    said = "\n".join(f"{title} {help_}" for title, help_ in made if title != "Facts")
    allowed = set(ENTRIES) | {"reads", "attention"} if kind == "mixed" else set()
    assert not spoken(said, absent(kind)) - allowed


@pytest.mark.parametrize(
    ("text", "entry", "wrong"),
    [
        ("layer 2, expert 6", 38, ""),
        ("Layer 2 expert 6", 38, ""),
        ("22", 22, ""),
        ("", None, ""),
        ("layer 2, expert 16", 5, "layer 2 has no expert 16"),
        ("48", 5, "there is no expert 48; the last one is layer 2, expert 15"),
        ("the best", 5, "'the best' names no expert; write 47, or layer 2, expert 15"),
    ],
)
@pytest.mark.parametrize("page", ["entries", "prompts"])
def test_an_entry_is_opened_by_its_name_or_its_number(page: str, text: str, entry: int | None, wrong: str) -> None:
    test = open_page(page, "experts", entry=5, **({"by": "one entry"} if page == "prompts" else {}))
    box = test.text_input(key=f"{page}.entry.named")
    assert box.value == "layer 0, expert 5"
    box.set_value(text).run()
    assert not test.exception
    assert test.session_state[f"{page}.entry"] == entry
    name = {38: "layer 2, expert 6", 22: "layer 1, expert 6", 5: "layer 0, expert 5", None: ""}[entry]
    assert test.text_input(key=f"{page}.entry.named").value == name
    said = [code.value for code in test.code if " no " in code.value or "names" in code.value]
    assert [one.startswith(wrong) for one in said] == [True] * bool(wrong)
