"""What notebooks show in place of a repr is self-contained, escaped and in the page's own ink; reprs are a line."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import memscope
from memscope.notebook import markup
from memscope.query.recording import Recording
from memscope.record.trace import trace_text
from memscope.run.adapters.own import OwnRun, capture_memory
from memscope.run.checkpoint import LoadedRun
from tests.conftest import HOSTILE


class Checker(HTMLParser):
    """Elements that are opened, attributes that they have, and the text between them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.titles: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.titles += [value or "" for name, value in attrs if name == "title"]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def shown(tiny_recording: Recording, tiny_run: LoadedRun) -> dict[str, object]:
    entry = int(tiny_recording.entries(limit=1)["entry"][0])
    return {
        "recording": tiny_recording,
        "card": tiny_recording.entry(entry),
        "trace": tiny_recording.trace(0, count=64),
        "typed": trace_text(OwnRun(tiny_run), f"Ada Holm {HOSTILE[:40]}"),
    }


@pytest.mark.parametrize("name", ["recording", "card", "trace", "typed"])
def test_what_a_notebook_shows_loads_nothing_runs_nothing_and_escapes_all(shown: dict[str, object], name: str) -> None:
    html = shown[name]._repr_html_()  # type: ignore[attr-defined]
    checker = Checker(html)
    assert set(checker.tags) <= {"div", "style", "strong", "table", "tr", "th", "td", "span"}
    assert checker.attributes <= {"class", "style", "title"}
    assert not re.search(r"https?:|url\(|@import", html)
    assert not re.search(r"[;{\"](color|background-color):", html)  # the page's ink, light or dark


def test_tokens_of_a_trace_are_coloured_by_loss_and_name_their_entries(shown: dict[str, object]) -> None:
    checker = Checker(shown["typed"]._repr_html_())  # type: ignore[attr-defined]
    assert "Ada Holm The <script>" in checker.text
    trace = shown["typed"].trace  # type: ignore[attr-defined]
    most = trace.selections[(trace.selections["pos"] == 2) & (trace.selections["rank"] == 0)]
    [tip] = [title for title in checker.titles if title.startswith("token 2 ")]
    assert all(f"layer {row.layer}: entry {row.entry} {row.read:+.3f}" in tip for row in most.itertuples())
    assert "next: " in tip and len(checker.titles) == len(trace.tokens)


def test_large_values_are_deep_and_parts_of_a_character_share_a_place() -> None:
    html = markup.tokens(["a", "中", "", "\n"], np.array([0.0, 9.0, np.nan, 4.5]), list("ABCD"), "loss")
    assert re.findall(r"rgba\(230,159,0,([\d.]+)\)\" title=\"(.*?)\">", html.replace("\n", "|")) == [
        ("0.00", "A"),
        ("0.60", "B|C"),
        ("0.30", "D"),
    ]
    assert html.endswith("↵\n</span></div>")
    assert "nan" not in markup.tokens(["a"], np.array([np.nan]), ["A"], "loss")


def test_values_are_escaped_and_those_that_are_missing_left_out() -> None:
    html = markup.card("<b>", markup.facts({"a": "<i>", "b": None}), markup.table(["<u>"], [[1234], [["<s>", " x"]]]))
    checker = Checker(html)
    assert all(text in checker.text for text in ("<b>", "<i>", "<u>", "1,234", "<s>", "␣x"))
    assert not {"b", "i", "u", "s"} & set(checker.tags)


def test_reprs_say_what_a_thing_is_in_a_line_or_two(
    shown: dict[str, object], tiny_run: LoadedRun, tiny_recording: Recording
) -> None:
    with capture_memory(tiny_run.model) as captured:
        tiny_run.model(tiny_run.tokens("Ada Holm"))
    expected = {
        "2 layers that select 4 of 64 entries": [tiny_recording, tiny_recording.info, OwnRun(tiny_run)],
        "64 tokens, 512 selections": [shown["trace"]],
        "parameters, 2 layers of memory": [tiny_run],
        "tokens, 2 layers; fields: ": [tiny_recording.census],
        "indices=Tensor[1 x ": [captured[0]],
        "predictions=DataFrame[": [shown["typed"]],
        "selections)": [shown["card"]],
    }
    for part, things in expected.items():
        for thing in things:
            assert part in repr(thing) and len(repr(thing)) < 250, repr(thing)
            assert "\n" not in repr(thing)


def test_the_package_lists_its_public_names_alone() -> None:
    assert dir(memscope) == ["Recording", "__version__", "capture_memory", "load_run"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", memscope.__version__)


def test_tokens_of_a_text_are_those_that_a_trace_reads(tiny_run: LoadedRun) -> None:
    traced = trace_text(OwnRun(tiny_run), "Ada Holm").trace.tokens["token"].tolist()
    assert tiny_run.tokens("Ada Holm").tolist() == [traced] and traced[0] == tiny_run.tokenizer.bos
