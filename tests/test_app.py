"""Every page of the app, run without a browser on a small recording with hostile text in it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import app
from app.token_view import MEASURES, color_levels, color_range, visible
from memscope.checkpoint import LoadedRun
from memscope.query import Recording
from memscope.record import record

FRAME = Path(app.__file__).parent / "streamlit_app.py"
PAGES = ("overview", "prompts", "entries", "gate_bias")
MARKUP = ("<script", "<img", "**bold**", "<b>Hostile")


@pytest.fixture(autouse=True)
def _recordings(tiny_recording_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(tiny_recording_path))


@pytest.fixture(scope="module", autouse=True)
def _close_what_the_app_opened() -> Iterator[None]:
    yield
    st.cache_resource.clear()


@pytest.fixture(autouse=True)
def _own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """AppTest leaves the app as ``__main__``, which processes that later tests start would run again."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


def open_page(name: str, **address: object) -> AppTest:
    """A page as its address opens it."""
    test = AppTest.from_file(str(FRAME), default_timeout=60).run()
    if name != "overview":
        test.switch_page(f"app_pages/{name}.py")
    for key, value in address.items():
        test.query_params[key] = str(value)
    return test.run()


def markdown(test: AppTest) -> str:
    """Everything on the page that is read as Markdown."""
    parts = [*test.markdown, *test.caption, *test.title, *test.header, *test.subheader, *test.info, *test.warning]
    return "\n".join(str(part.value) for part in parts)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_runs_and_is_titled(name: str) -> None:
    test = open_page(name)
    assert not test.exception
    assert test.title[0].value.lower().replace(" ", "_") == name
    assert not any(sign in markdown(test) for sign in MARKUP)


def test_the_overview_states_tokens_selections_and_losses(tiny_recording: Recording) -> None:
    test = open_page("overview")
    info, run = tiny_recording.info, tiny_recording.run_summary
    values = {metric.label: metric.value for metric in test.metric}
    assert values["Recorded tokens"] == f"{info.rows:,}"
    assert values["Selections (D)"] == f"{info.rows * len(info.layers) * info.selected:,}"
    assert values["Validation loss"] == f"{run['valid_loss']:.3f}"
    assert any("even selection would use" in text.value for text in test.text)
    usage = test.dataframe[2].value
    assert usage["coverage"].tolist() == tiny_recording.layer_metrics()["coverage"].tolist()


def test_a_token_shows_its_selections_in_every_layer(tiny_recording: Recording) -> None:
    test = open_page("prompts", doc=1, token=5)
    assert not test.exception
    fired = tiny_recording.trace(1, 5, 1).selections
    shown = [table.value for table in test.dataframe]
    assert len(shown) == len(tiny_recording.info.layers)
    for layer, table in zip(tiny_recording.info.layers, shown, strict=True):
        assert table["entry"].tolist() == fired[fired["layer"] == layer]["entry"].tolist()
    test.number_input(key="token").set_value(6).run()
    assert test.subheader[0].value == "Token 6"


def test_long_documents_are_read_in_parts() -> None:
    test = open_page("prompts", doc=0)
    test.pagination[0].set_value(2).run()
    assert not test.exception
    assert test.number_input(key="token").value == 256
    assert test.subheader[0].value == "Token 256"


@pytest.mark.parametrize("measure", MEASURES)
def test_tokens_can_be_coloured_by_every_measure(measure: str) -> None:
    test = open_page("prompts")
    assert not test.selectbox(key="measure").select(measure).run().exception


def test_choosing_another_document_starts_at_its_first_token() -> None:
    test = open_page("prompts", doc=1, token=50)
    test.selectbox(key="document").select(2).run()
    assert test.query_params["doc"] in ("2", ["2"])
    assert test.number_input(key="token").value == 0


def test_a_typed_text_is_read_and_predicted(tiny_recording: Recording) -> None:
    test = open_page("prompts", source="Your own text")
    assert len(test.dataframe) == 0  # nothing before a text is typed
    test.text_area(key="text").input("Ada Holm was <b>born</b> in")
    test.button[0].click().run()
    assert not test.exception
    predicted = test.dataframe[0].value
    assert list(predicted) == ["next token", "probability"]
    assert len(test.dataframe) == 1 + len(tiny_recording.info.layers)
    assert "<b>born" not in markdown(test)


def test_a_text_that_is_too_long_gets_a_sentence() -> None:
    test = open_page("prompts", source="Your own text", text="word " * 500)
    assert not test.exception
    assert "the model reads" in test.code[0].value


@pytest.mark.parametrize("change", ["gone", "trained further"])
def test_a_run_that_no_longer_matches_is_named_with_the_command_that_helps(
    change: str, tiny_recording_path: Path, tiny_run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(tiny_recording_path, tmp_path / "copy")
    info = json.loads((copy / "recording.json").read_text())
    info |= {"run": str(tmp_path / "gone")} if change == "gone" else {"fingerprint": "0" * 64}
    (copy / "recording.json").write_text(json.dumps(info))
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(copy))
    test = open_page("prompts", source="Your own text", text="Ada Holm")
    assert not test.exception
    assert info["run"] in test.code[0].value
    assert "memscope record" in test.code[0].value


def test_entries_are_sorted_searched_and_opened(tiny_recording: Recording) -> None:
    test = open_page("entries", sort="drift")
    drift = test.dataframe[0].value["drift"].tolist()
    assert drift == sorted(drift, reverse=True)
    test.text_input(key="q").input("script").run()
    [found] = test.dataframe[0].value["entry"]
    test.number_input(key="entry").set_value(int(found)).run()
    assert not test.exception
    assert test.subheader[0].value == f"Entry {found}"
    assert "<script>window.hacked = true</script>" in test.text[0].value
    assert not any(sign in markdown(test) for sign in MARKUP)
    test.button[0].click().run()
    assert test.dataframe[0].value["entry"].tolist() == [found]


def test_every_entry_opens(tiny_recording: Recording) -> None:
    test = open_page("entries", entry=0)
    for entry in range(0, tiny_recording.info.knowledge_num, 3):
        test.number_input(key="entry").set_value(entry).run()
        assert not test.exception
        assert test.subheader[0].value == f"Entry {entry}"


def test_an_untrained_run_with_several_slots_opens_on_every_page(
    slot_run: LoadedRun, corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(slot_run, corpus_dir / "valid.jsonl", tmp_path / "slots", max_tokens=200)
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(tmp_path))
    for name in PAGES:
        assert not open_page(name).exception
    assert not open_page("prompts", source="Your own text", text="Ada Holm").exception
    without_sentence = open_page("entries", entry=63)
    assert not without_sentence.exception
    assert "no sentence" in without_sentence.caption[0].value


def test_a_search_without_a_hit_says_so() -> None:
    test = open_page("entries", q="zebra crossing")
    assert not test.exception
    assert "No entry holds" in test.info[0].value


@pytest.mark.parametrize("by", ["count", "gate score", "read weight"])
def test_gate_bias_follows_weighting_and_layers(by: str, tiny_recording: Recording) -> None:
    test = open_page("gate_bias", by=by)
    weighting = f"by_{by.replace(' ', '_')}"
    metrics = tiny_recording.layer_metrics(weighting)
    assert test.dataframe[0].value["gini"].tolist() == metrics["gini"].tolist()
    test.get_by_key("layers").set_value([1]).run()
    assert not test.exception
    assert test.dataframe[0].value["layer"].tolist() == [1]
    most = test.dataframe[2].value
    assert most["entry"].tolist() == tiny_recording.most_used(1, weighting)["entry"].tolist()
    assert all("D = " in caption.value for caption in test.caption)


@pytest.mark.parametrize(
    ("name", "address", "says"),
    [
        ("entries", {"entry": "99999"}, "no such entry"),
        ("entries", {"entry": "<b>"}, "no such entry"),
        ("prompts", {"doc": "-1"}, "no such doc"),
        ("prompts", {"token": "1e9"}, "no such token"),
        ("overview", {"recording": "../../etc"}, "no such recording"),
        ("gate_bias", {"layers": "77", "by": "x"}, None),
        ("entries", {"page": "900", "sort": "; DROP TABLE usage"}, None),
    ],
)
def test_a_bad_address_gets_a_sentence_and_a_usable_page(name: str, address: dict[str, str], says: str | None) -> None:
    test = open_page(name, **address)
    assert not test.exception
    if says:
        assert says in test.warning[0].value
    assert not any(value in markdown(test) for value in address.values() if not value.isdecimal() and len(value) > 2)


def test_without_a_recording_the_page_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(tmp_path))
    test = AppTest.from_file(str(FRAME), default_timeout=60).run()
    assert not test.exception
    assert test.code[0].value == "memscope record RUN --corpus FILE --out recordings/NAME"


def test_a_broken_recording_beside_a_whole_one_is_named(
    tiny_recording_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_recording_path, tmp_path / "whole")
    broken = shutil.copytree(tiny_recording_path, tmp_path / "broken")
    (broken / "usage.parquet").unlink()
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(tmp_path))
    test = AppTest.from_file(str(FRAME), default_timeout=60).run()
    assert "usage.parquet" in test.code[0].value
    test.selectbox(key="chosen").select("whole").run()
    assert not test.exception
    assert test.title[0].value == "Overview"


def test_streamlit_and_torch_stay_out_of_what_pages_do_not_need() -> None:
    code = (
        "import sys, memscope.serve; assert 'streamlit' not in sys.modules and 'app' not in sys.modules\n"
        "import app.state; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FRAME.parent.parent)


@pytest.mark.parametrize(
    ("text", "shown"), [(" the", "␣the"), ("\n", "↵"), (" ", "␣"), ("", "∅"), ("a\tb", "a⇥b"), ("x ", "x␣")]
)
def test_white_space_in_tokens_can_be_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_colours_run_from_the_lowest_to_the_98th_percentile() -> None:
    values = np.array([*np.linspace(1, 2, 100), 1000.0, np.nan])
    low, high = color_range(values)
    assert (low, round(high)) == (1.0, 2)
    levels = color_levels(values, low, high)
    assert levels[0] == 0 and levels[100] == 1 and levels[101] == 0
    assert color_range(np.array([np.nan])) == (0.0, 0.0)
    assert color_levels(np.array([3.0, 3.0]), 3.0, 3.0).tolist() == [0.0, 0.0]
