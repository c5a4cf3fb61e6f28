"""The pages on interventions and facts, run without a browser on a small recording."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from memscope.causal.fact_tables import write_audit
from memscope.causal.facts import audit_facts
from memscope.query.recording import Recording
from memscope.record.trace import trace_text
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from memscope.text.fact_files import read_facts
from tests.app.open_page import open_page
from tests.causal.test_facts import write_facts

pytestmark = pytest.mark.slow

TEXT = "Ada Holm was born in Aston ."


@pytest.fixture(scope="module")
def folder(tiny_run: LoadedRun, tiny_recording_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording twice: ``asked`` with an audit of facts, ``tiny`` without."""
    folder = tmp_path_factory.mktemp("causal") / "recordings"
    shutil.copytree(tiny_recording_path, folder / "tiny")
    shutil.copytree(tiny_recording_path, folder / "asked")
    facts = read_facts(write_facts(tiny_run.path, folder / "facts.jsonl"))
    write_audit(audit_facts(tiny_run, facts), folder / "asked")
    return folder


def compared(test: AppTest) -> pd.DataFrame:
    """The table of every token before and after a change."""
    return next(table.value for table in test.dataframe if "loss_before" in table.value and "pos" in table.value)


def popular(recording: Recording) -> int:
    return int(recording.entries(sort="count", limit=1)["entry"].iloc[0])


@pytest.mark.parametrize(
    ("kind", "entries", "more"),
    [
        ("ablate", "{e}", {}),
        ("zero", "{e}, 3", {}),
        ("force", "5", {"amount": "2.5"}),
        ("swap", "{e},7", {"layers": "1"}),
        ("rewrite", "{e}", {"sentence": "Bo Lind works as a farmer in Calder ."}),
        ("scale", "", {"amount": "0"}),
    ],
)
def test_every_change_is_shown_before_and_after(
    kind: str, entries: str, more: dict[str, str], tiny_recording: Recording
) -> None:
    named = {"entries": entries.format(e=popular(tiny_recording))} if entries else {}
    test = open_page("what_if", change=kind, text=TEXT, **named, **more)
    assert not test.exception
    table = compared(test)
    assert table["text"].iloc[0] == "<|im_start|>"
    assert table["kl"].max() > 0
    assert (table["loss_before"] != table["loss_after"]).any()


def test_the_page_opens_on_the_token_that_moved_most_and_offers_what_the_text_selects(
    tiny_run: LoadedRun, tiny_recording: Recording
) -> None:
    entry = popular(tiny_recording)
    test = open_page("what_if", entries=entry, text=TEXT)
    moved = compared(test)["kl"].iloc[1:].idxmax()
    assert f"**Token {moved}**" in [one.value for one in test.markdown]
    offered = test.dataframe[0].value
    assert entry in offered["entry"].tolist() and offered["read"].is_monotonic_decreasing
    selected = set(trace_text(OwnRun(tiny_run), TEXT).trace.selections["entry"])
    unused = next(number for number in range(64) if number not in selected)
    test = open_page("what_if", entries=unused, text=TEXT)
    assert any("No token of this text selects" in info.value for info in test.info)


def test_the_model_goes_on_with_and_without_a_change(tiny_recording: Recording) -> None:
    test = open_page("what_if", change="scale", amount=0, text=TEXT, go=1, new=6, temperature=0)
    assert not test.exception and not test.warning
    assert any("They part at token" in caption.value for caption in test.caption)
    test = open_page("what_if", change="scale", amount=1, text=TEXT, go=1, new=6, temperature=0)
    assert any("Both are the same" in caption.value for caption in test.caption)


def test_contexts_that_change_most_are_listed_on_demand(tiny_recording: Recording) -> None:
    test = open_page("what_if", entries=popular(tiny_recording), text=TEXT)
    assert len(test.dataframe) == 2
    test.toggle(key="what_if.contexts").set_value(True).run()
    assert not test.exception
    shown = test.dataframe[-1].value
    assert shown["kl"].is_monotonic_decreasing and shown["kl"].iloc[0] > 0
    assert any(metric.label == "Loss" for metric in test.metric)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"entries": "9999"}, "entry 9999 is not in the bank"),
        ({"entries": "one"}, "names no entry"),
        ({"entries": ","}, "takes one entry or more"),
        ({"entries": "1,2,3", "change": "swap"}, "takes two entries, not 3"),
        ({"change": "rewrite", "entries": "1"}, "has no tokens"),
    ],
)
def test_what_cannot_be_done_is_said(values: dict[str, str], message: str) -> None:
    test = open_page("what_if", **({"text": TEXT} | values))
    assert not test.exception
    assert message in test.code[0].value


@pytest.mark.parametrize("change", ["ablate", "force", "swap", "rewrite"])
def test_before_an_entry_is_named_nothing_is_wrong(change: str) -> None:
    test = open_page("what_if", text=TEXT, change=change)
    assert not test.exception and not test.warning
    assert any("select rows of the table" in caption.value for caption in test.caption)


@pytest.mark.parametrize("part", ["recall", "ablation", "predicates", "facts"])
def test_an_audit_of_facts_is_shown(part: str) -> None:
    test = open_page("facts", "asked", part=part)
    assert not test.exception
    assert test.title[0].value == "Facts"
    assert "select an entry that states them" in test.markdown[0].value


def test_without_an_audit_the_page_says_how_to_make_one() -> None:
    test = open_page("facts")
    assert not test.exception
    assert "memscope facts" in test.code[0].value
