"""Pages of runs whose layers read sentences: which words were read, and what a sentence that is typed anew changes."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import streamlit as st

from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.own import OwnRun
from tests.app.open_page import open_page
from tests.app.test_causal import compared
from tests.app.test_kinds import PARTS, VIEWS, said, spoken
from tests.conftest import HOSTILE, CliResult, untrained_run
from tests.text_runs import text_config, write_world

pytestmark = pytest.mark.slow

QUESTION = "Eva Lind works as a"
BLOCKS = {"beside": ["memory", "text"], "alone": ["text_ffn", "text"]}


@pytest.fixture(scope="module")
def folder(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of a text layer beside a memory, and of two that share their sentences; one sentence is hostile."""
    root = tmp_path_factory.mktemp("sentences")
    for name, block in BLOCKS.items():
        run = root / name
        run.mkdir()
        write_world(run)
        rows = json.loads((run / "sentences.json").read_text())
        rows[0]["target"][0]["sentence"] = HOSTILE.strip()
        (run / "sentences.json").write_text(json.dumps(rows))
        config = text_config(corpus_dir, run, model={"block": block}, text={"sentence_length": 200})
        options = RecordOptions(part_tokens=300, slot_weights=True)
        record(OwnRun(untrained_run(config, run)), corpus_dir / "valid.jsonl", root / "recordings" / name, options)
    return root


@pytest.fixture(autouse=True)
def _open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(folder / "recordings"))


def sentence_of(folder: Path, name: str, text: str) -> int:
    """The entry whose sentence begins so."""
    sentences = Recording(folder / "recordings" / name).entries(search=text, limit=9)
    [entry] = [int(row.entry) for row in sentences.itertuples() if str(row.sentence).startswith(text)]
    return entry


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize(("page", "part"), VIEWS)
def test_every_page_runs(name: str, page: str, part: str) -> None:
    test = open_page(page, name, **({"part": part} if part else {}))
    assert not test.exception and part in PARTS[page]
    assert not spoken(said(test), ("nan",))


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize("source", [{"doc": 1, "token": 40}, {"source": "your text", "text": QUESTION, "token": 5}])
def test_words_of_sentences_are_shaded_by_what_was_read_of_them(name: str, source: dict[str, object]) -> None:
    test = open_page("prompts", name, **source)
    assert not test.exception and not test.warning
    assert "The deeper the shade of a word, the more it was read" in said(test)


@pytest.mark.parametrize("name", list(BLOCKS))
def test_a_sentence_has_contexts_and_triples_and_neither_drift_nor_nearest_tokens(folder: Path, name: str) -> None:
    entry = sentence_of(folder, name, "People knew Eva Lind")
    test = open_page("entries", name, entry=entry)
    assert not test.exception
    words = said(test)
    assert not spoken(words, ("nearest", "random", "nan"))
    assert {metric.label for metric in test.metric} == {"Selections", "Layers that select it", "Read per selection"}
    assert "People knew Eva Lind as a" in words and "occupation" in words
    if name == "beside":
        assert test.main.subheader[0].value == f"Layer 1, sentence {entry - 64}"


def test_a_hostile_sentence_is_shown_as_text(folder: Path) -> None:
    recording = Recording(folder / "recordings" / "beside")
    found = recording.entries(search="onerror", limit=99)
    [entry] = found["entry"][found["sentence"].str.contains("<script>", na=False) & (found["entry"] >= 64)].tolist()
    test = open_page("entries", "beside", entry=entry)
    assert not test.exception
    assert any("<script>" in text.value for text in test.main.text)
    assert not any("<script>" in text.value for text in (*test.main.markdown, *test.main.caption))


@pytest.mark.parametrize("name", list(BLOCKS))
def test_a_text_is_read_again_with_a_sentence_that_is_typed(folder: Path, name: str) -> None:
    entry = sentence_of(folder, name, "People knew Eva Lind")
    test = open_page("entries", name, entry=entry)
    assert not test.dataframe[-1].value.columns.isin(["kl"]).any()
    [box] = [area for area in test.text_area if area.label == "The sentence reads"]
    assert box.value == Recording(folder / "recordings" / name).sentences([entry])[entry]
    box.set_value("People knew Eva Lind as a spy of the new school .")
    [text] = [area for area in test.text_area if area.label == "Text to read"]
    text.set_value(QUESTION)
    [send] = [button for button in test.button if button.label == "Read the text with it"]
    send.click().run()
    assert not test.exception and not test.warning
    [table] = [table.value for table in test.dataframe if "kl" in table.value]
    assert len(table) > 5 and table["kl"].iloc[-1] > 0
    assert "".join(table["text"][1:]).replace("␣", " ").strip() == QUESTION
    box.set_value(" ")
    send.click().run()
    assert not test.exception
    assert any("the new text is empty" in code.value for code in test.code)


def test_sentences_are_changed_on_the_page_what_if(folder: Path) -> None:
    entry = sentence_of(folder, "beside", "People knew Eva Lind")
    named = f"layer 1, sentence {entry - 64}"
    for change, more in (
        ("ablate", {}),
        ("zero", {}),
        ("force", {"amount": "0.9"}),
        ("rewrite", {"sentence": "People knew Eva Lind as a spy ."}),
    ):
        test = open_page("what_if", "beside", change=change, entries=named, text=QUESTION, **more)
        assert not test.exception
        assert not test.warning, [code.value for code in test.code]
        assert compared(test)["kl"].max() > 0
    test = open_page("what_if", "beside", change="rewrite", entries=named, text=QUESTION, sentence="Spy .", layers="0")
    assert "choose layers 1" in test.code[0].value


def test_a_sentence_keeps_its_name_on_the_way_to_what_if(folder: Path) -> None:
    entry = sentence_of(folder, "beside", "People knew Eva Lind")
    test = open_page("entries", "beside", entry=entry)
    [ablate] = [button for button in test.button if button.label == "Ablate"]
    ablate.click().run()
    assert not test.exception
    assert test.title[0].value == "What if"
    assert test.text_input(key="what_if.entries").value == f"layer 1, sentence {entry - 64}"
    [there] = [part for part in test.expander if "that this text selects" in part.label]
    assert not there.proto.expanded  # what changes stands higher


def test_facts_are_explained_and_shown_once_they_were_asked(
    folder: Path, cli: Callable[..., CliResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    test = open_page("facts", "beside")
    assert not test.exception and not test.dataframe
    run, recording = folder / "beside", folder / "recordings" / "beside"
    assert test.code[0].value == f"memscope facts {run} FACTS --recording {recording}"
    assert cli("facts", run, run / "facts.json", "--recording", recording).code == 0
    written = [recording / f"sentence_facts.{kind}" for kind in ("json", "parquet")]
    summary, answers = json.loads(written[0].read_text()), pd.read_parquet(written[1])
    offered: dict[str, Callable[[], str]] = {}
    monkeypatch.setattr(st, "download_button", lambda label, data, name, *_, **__: offered.update({name: data}))
    try:
        test = open_page("facts", "beside")
    finally:
        for path in written:
            path.unlink()
    assert not test.exception
    shares, facts = (table.value for table in test.dataframe)
    assert shares.columns.tolist() == ["measure", "held out", "taught"]
    for group in ("held out", "taught"):
        assert shares[group][0].startswith(f"{summary[group]['selected']['mean']:.1%}  (")
    assert not spoken(said(test), ("nan", "none"))
    assert f"Of {int(summary['held out']['selected']['facts'])} facts" in test.main.markdown[0].value
    assert len(facts) == len(answers) and facts["group"].tolist() == sorted(facts["group"])
    assert (facts["group"] == "taught").sum() == answers["taught"].sum()
    assert sorted(facts["rank"]) == sorted(answers["rank"])
    assert "Eva Lind works as a" in facts["question"].tolist()
    assert len(offered["beside-facts.csv"]().splitlines()) == len(answers) + 1
