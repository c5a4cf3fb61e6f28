"""Every page of the app, run without a browser on a small recording with hostile text in it."""

import json
import os
import shlex
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app import address
from app.components.component import color_levels, color_range, scale_ends
from app.parts.entry.pins import Pin, read_pins
from app.parts.report import kept as reports
from app.parts.texts.typed import EXAMPLE
from memscope.base.errors import InputError
from memscope.base.lock import one_writer
from memscope.base.seals import read_sealed, write_sealed
from memscope.query.bank_table import entry_numbers
from memscope.query.charts import map_points
from memscope.query.charts.map_points import inside, unit_places
from memscope.query.recording import Recording
from memscope.record.checkpoints import record_checkpoints
from memscope.record.loop import RecordOptions, record
from memscope.recording.info import read_info, write_info
from memscope.report.anomalies import anomalies_in_words
from memscope.report.compare.history import write_history
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from memscope.testing.anomalies import plant_anomalies
from tests.app.open_page import FRAME, open_page
from tests.app_folder import make_folder

PARTS = {
    "overview": ("health", "model", "training", "recordings"),
    "prompts": ("",),
    "entries": ("",),
    "map": ("",),
    "gate_bias": ("evenness", "concentration", "preferences", "profiles", "layers", "anomalies", "report"),
    "reading": ("shares", "gate against read", "unread entries", "certainty"),
    "compare": ("metrics", "entries", "prompt"),
}
VIEWS = [(page, part) for page, parts in PARTS.items() for part in parts]
MARKUP = ("<script", "<img", "**bold**", "<b>Hostile", "javascript:")


@pytest.fixture(scope="module")
def folder(tiny_recording_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tiny_recording_path, tmp_path_factory.mktemp("app") / "recordings")


def markdown(test: AppTest) -> str:
    """Everything on the page that is read as Markdown."""
    parts = [*test.markdown, *test.caption, *test.title, *test.header, *test.subheader]
    parts += [*test.info, *test.warning, *test.success]
    return "\n".join(str(part.value) for part in parts)


def press(test: AppTest, label: str) -> None:
    """Click the button of a label."""
    next(button for button in test.button if button.label == label).click().run()


def asked(test: AppTest, name: str) -> str | None:
    """What the address says of a field."""
    value = test.query_params.get(name)
    return value[0] if isinstance(value, list) else value


@pytest.mark.parametrize(("typed", "read"), [("Ada Holm was born in", "Ada Holm was born in"), ("", EXAMPLE)])
def test_a_text_typed_on_the_first_page_is_read(typed: str, read: str) -> None:
    test = open_page("overview")
    test.text_input(key="read.text").input(typed)
    press(test, "Read it")
    assert not test.exception and not test.warning
    assert test.title[0].value == "Prompts"
    assert (asked(test, "source"), asked(test, "text")) == ("your text", read)
    assert "What comes next" in markdown(test)


@pytest.mark.parametrize(("page", "part"), VIEWS)
def test_every_view_runs_and_is_titled(page: str, part: str) -> None:
    test = open_page(page, **({"part": part} if part else {}))
    assert not test.exception
    assert test.title[0].value.lower().replace(" ", "_") == page
    assert not any(sign in markdown(test) for sign in MARKUP)
    assert asked(test, "recording") == "tiny"


@pytest.mark.parametrize(("page", "part"), [view for view in VIEWS if view[0] in ("gate_bias", "reading", "map")])
def test_captions_say_over_how_much_they_hold(page: str, part: str) -> None:
    captions = " ".join(caption.value for caption in open_page(page, part=part).caption)
    if part != "report":
        assert any(word in captions for word in ("D = ", " tokens", "selections"))


def test_the_overview_states_tokens_selections_and_health(tiny_recording: Recording) -> None:
    test = open_page("overview")
    info = tiny_recording.info
    values = {metric.label: metric.value for metric in test.metric}
    assert values["Recorded tokens"] == f"{info.rows:,}"
    assert values["Selections (D)"] == f"{info.rows * len(info.layers) * info.selected:,}"
    assert values["Loss on this corpus"] == f"{tiny_recording.census.loss:.3f}"
    said = " ".join(box.value for box in [*test.warning, *test.info, *test.success])
    assert "of entries never selected in layer" in said and "even selection would leave" in said
    assert test.dataframe[0].value["coverage"].tolist() == tiny_recording.layer_metrics()["coverage"].tolist()


def test_the_overview_lists_recordings_and_opens_one() -> None:
    test = open_page("overview", part="recordings")
    assert test.dataframe[0].value["recording"].tolist() == ["deeper/twin", "tiny"]
    test.selectbox(key="chosen").select("deeper/twin").run()
    assert not test.exception
    assert asked(test, "recording") == "deeper/twin"


def test_a_missing_value_is_a_dash() -> None:
    for page, part in (("entries", ""), ("overview", "recordings"), ("gate_bias", "layers")):
        shown = open_page(page, **({"part": part} if part else {})).dataframe
        assert [table.proto.placeholder for table in shown] == ["–"] * len(shown) != []


def test_heads_are_a_part_where_they_were_recorded(
    slot_run: LoadedRun, corpus_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = RecordOptions(max_tokens=200, head_weights=True)
    record(OwnRun(slot_run), corpus_dir / "valid.jsonl", tmp_path / "heads", options)
    parts = [open_page("reading").button_group[0].options]
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(tmp_path))
    test = open_page("reading", "heads", part="heads")
    assert not test.exception
    parts.append(test.button_group[0].options)
    assert ["Heads" in options for options in parts] == [False, True]
    assert "Each head has 1,600 selections" in markdown(test)


def test_what_changed_between_checkpoints_is_shown_beside_the_training(
    tiny_run_path: Path, corpus_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    title = "From checkpoint to checkpoint"
    assert title not in [heading.value for heading in open_page("overview", part="training").subheader]
    shutil.copytree(folder / "tiny", tmp_path / "tiny")
    steps = record_checkpoints(tiny_run_path, corpus_dir / "valid.jsonl", tmp_path / "steps", RecordOptions(300), "cpu")
    write_history([Recording(path) for path in steps], tmp_path / "steps")
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(tmp_path))
    test = open_page("overview", part="training")
    assert not test.exception and title in [heading.value for heading in test.subheader]
    assert "Checkpoints at steps 10, 20, each recorded on the same text, D = 1,200 selections" in markdown(test)
    compared = open_page("compare", "tiny")
    assert not compared.exception and "compare recordings of equally many" in markdown(compared)
    read = open_page("compare", "steps/step-00000010", part="prompt", text="Ada Holm was", **{"with": "tiny"})
    assert not read.exception and not read.warning, [code.value for code in read.code]
    assert "Mean loss" in markdown(read)


def test_a_token_is_chosen_by_its_number() -> None:
    test = open_page("prompts", doc=1, token=5)
    assert test.subheader[0].value == "Token 5"
    test.number_input(key="prompts.token").set_value(6).run()
    assert test.subheader[0].value == "Token 6" and asked(test, "token") == "6"


def test_long_documents_are_read_in_parts() -> None:
    test = open_page("prompts", doc=0)
    test.pagination[0].set_value(2).run()
    assert not test.exception
    assert test.number_input(key="prompts.token").value == 256
    assert test.subheader[0].value == "Token 256"


@pytest.mark.parametrize(
    "measure",
    ["loss", "gate entropy", "top gate score", "top gate share", "effective entries", "drift of the read entry"],
)
def test_tokens_can_be_coloured_by_every_measure(measure: str) -> None:
    test = open_page("prompts", by=measure)
    assert not test.exception
    assert test.selectbox(key="prompts.by").value == measure


def test_one_entry_lights_up(tiny_recording: Recording) -> None:
    entry = int(tiny_recording.trace(1, 0, 64).selections["entry"].iloc[0])
    test = open_page("prompts", doc=1, by="one entry", entry=entry)
    assert not test.exception and test.text_input(key="prompts.entry.named").value == str(entry)


@pytest.mark.slow
def test_words_that_were_read_are_shown_or_the_way_to_them_is(
    slot_run: LoadedRun, corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kept, said in ((True, "the more it was read"), (False, "--per-slot")):
        folder = tmp_path / str(kept)
        record(
            OwnRun(slot_run),
            corpus_dir / "valid.jsonl",
            folder / "tiny",
            RecordOptions(max_tokens=60, slot_weights=kept),
        )
        monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(folder))
        assert said in markdown(open_page("prompts", token=3))
    assert "the more it was read" in markdown(open_page("prompts", source="your text", text="Ada Holm", token=1))


def test_many_documents_are_found_by_title_or_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.parts.texts.document.TITLES", 2)
    test = open_page("prompts")
    test.text_input(key="title").input("5").run()
    offered = test.selectbox(key="prompts.doc").options
    assert [option.split(":")[0] for option in offered] == ["0", "5"]
    test.selectbox(key="prompts.doc").select(5).run()
    assert not test.exception and asked(test, "doc") == "5"


def test_choosing_another_document_starts_at_its_first_token() -> None:
    test = open_page("prompts", doc=1, token=50)
    test.selectbox(key="prompts.doc").select(2).run()
    assert asked(test, "doc") == "2" and asked(test, "token") is None
    assert test.number_input(key="prompts.token").value == 1  # behind the token that opens every text


def test_a_typed_text_is_counted_read_and_predicted(tiny_recording: Recording) -> None:
    test = open_page("prompts", source="your text")
    assert len(test.dataframe) == 0  # nothing before a text is typed
    text = "Ada Holm was <b>born</b> in"
    test.text_area(key="prompts.text.draft").input(text).run()
    count = len(tiny_recording.tokenizer.encode(text)) + 1
    assert len(test.dataframe) == 0 and f"{count} tokens; a window of the model holds 64." in markdown(test)
    next(button for button in test.button if button.label == "Read it").click().run()
    assert not test.exception
    assert list(test.dataframe[0].value) == ["next token", "probability"]
    assert "<b>born" not in markdown(test)
    assert asked(test, "text") == text
    assert test.subheader[0].value == f"Token {count - 1}"  # the last one


def test_the_model_goes_on_from_a_text(tiny_recording: Recording) -> None:
    going = {"source": "your text, continued", "text": "Ada Holm was", "new": 5, "seed": 3}
    test = open_page("prompts", **going)
    assert not test.exception and not test.warning
    count = len(tiny_recording.tokenizer.encode("Ada Holm was")) + 1
    assert test.subheader[0].value == f"Token {count - 1}"  # the last one that was given
    assert f"of {count + 5} tokens" in markdown(test) and "underlined" in markdown(test)
    assert len(test.dataframe[0].value) == 5
    test.number_input(key="prompts.new").set_value(9).run()
    assert f"of {count + 9} tokens" in markdown(test) and asked(test, "new") == "9"
    test.text_input(key="prompts.temperature").input("warm").run()
    assert not test.exception and "the temperature is 'warm'" in test.code[0].value


def test_probabilities_of_a_recorded_token_are_those_of_the_recorded_model() -> None:
    test = open_page("prompts", doc=1, token=5)
    likeliest = next(text.value for text in test.main.text if text.value.startswith("Likeliest: "))
    next(button for button in test.button if button.label == "Probabilities").click().run()
    assert not test.exception and asked(test, "next") == "1"
    table = test.dataframe[0].value
    assert likeliest == f"Likeliest: {table['next token'].iloc[0]}"
    assert table["probability"].is_monotonic_decreasing and len(table) == 5


def test_two_texts_are_compared() -> None:
    test = open_page(
        "prompts", source="two texts", text="Ada Holm was born", other="Ada Holm was born", token=2, token_b=2
    )
    assert not test.exception
    assert (test.dataframe[0].value["share"] == 1).all()


def test_a_long_text_is_read_in_windows_and_stays_out_of_the_address() -> None:
    test = open_page("prompts", source="your text")
    test.text_area(key="prompts.text.draft").input("word " * 2500).run()
    assert "windows, each without the text before it" in markdown(test) and "too long for the address" in markdown(test)
    next(button for button in test.button if button.label == "Read it").click().run()
    assert not test.exception and not test.warning
    assert asked(test, "text") is None and "The page shows" in markdown(test)
    test.pagination[0].set_value(1).run()
    assert test.subheader[0].value == "Token 0"


@pytest.mark.parametrize("change", ["gone", "trained further"])
def test_a_run_that_no_longer_matches_is_named_with_the_command_that_helps(
    change: str, tiny_recording_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(tiny_recording_path, tmp_path / "tiny")
    changed = {"run": str(tmp_path / "gone")} if change == "gone" else {"fingerprint": "0" * 64}
    info = read_info(copy).model_copy(update=changed)
    write_info(copy, info)
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(copy))
    test = open_page("prompts", source="your text", text="Ada Holm")
    assert not test.exception
    assert info.run in test.code[0].value
    assert "memscope record" in test.code[0].value


def test_entries_are_sorted_searched_and_opened(tiny_recording: Recording) -> None:
    test = open_page("entries", sort="drift", **{"in": "sentence"})
    drift = test.dataframe[0].value["drift"].tolist()
    assert drift == sorted(drift, reverse=True)
    test.text_input(key="entries.q").input("script").run()
    [found] = test.dataframe[0].value["entry"]
    test.text_input(key="entries.entry.named").set_value(str(found)).run()
    assert not test.exception
    assert test.subheader[0].value == f"Entry {found}"
    assert "<script>window.hacked = true</script>" in test.text[0].value
    assert not any(sign in markdown(test) for sign in MARKUP)
    next(button for button in test.button if button.label == "All entries").click().run()
    assert test.dataframe[0].value["entry"].tolist() == [found]


@pytest.mark.slow
@pytest.mark.parametrize("entry", range(0, 64, 7))
def test_entries_open(entry: int) -> None:
    test = open_page("entries", entry=entry)
    assert not test.exception
    assert test.subheader[0].value == f"Entry {entry}"


@pytest.mark.slow
def test_an_untrained_run_with_several_slots_opens_on_every_page(
    slot_run: LoadedRun, corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RecordOptions(max_tokens=200, head_weights=True, slot_weights=True)
    record(OwnRun(slot_run), corpus_dir / "valid.jsonl", tmp_path / "tiny", options)
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(tmp_path))
    for page, part in VIEWS:
        assert not open_page(page, **({"part": part} if part else {})).exception, (page, part)
    assert not open_page("prompts", source="your text", text="Ada Holm").exception
    without_sentence = open_page("entries", entry=63)
    assert not without_sentence.exception
    assert "no sentence" in markdown(without_sentence)


def test_entries_are_walked_in_the_order_of_the_table() -> None:
    test = open_page("entries", sort="drift")
    order = test.dataframe[0].value["entry"].tolist()
    test = open_page("entries", sort="drift", entry=order[1])
    press(test, "Next")
    assert asked(test, "entry") == str(order[2])
    press(test, "Previous")
    press(test, "Previous")
    assert asked(test, "entry") == str(order[0])
    assert next(button for button in test.button if button.label == "Previous").disabled


def test_two_entries_stand_beside_one_another_and_contexts_are_ordered_by_read(tiny_recording: Recording) -> None:
    test = open_page("entries", entry=3, contexts="by read weight")
    assert not test.exception and "The tokens whose read of it is largest" in markdown(test)
    test.text_input(key="entries.beside.named").set_value("5").run()
    assert not test.exception
    assert [one.value for one in test.subheader] == ["Entry 3", "Entry 5"]
    press(test, "One alone")
    assert test.subheader[0].value == "Entry 3" and asked(test, "beside") is None


def test_pins_and_notes_are_in_the_address() -> None:
    test = open_page("entries", entry=7, pins="3 of gods, and towns;5")
    press(test, "Pin")
    test.text_input(key="note.7").set_value("dates; years").run()
    assert not test.exception
    assert asked(test, "pins") == "3 of gods, and towns;5;7 dates, years"
    press(test, "Take the pin away")
    press(test, "All entries")
    pinned = test.dataframe[1].value
    assert pinned["entry"].tolist() == [3, 5] and pinned["note"].tolist() == ["of gods, and towns", ""]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("number\n3\n", "no 'entry'"),
        ("entry,note\n3,a\n64,b\n", "line 3: '64' is no entry of this recording, which has 64"),
        ("entry\n" + "1\n" * 201, "201 pins; a page keeps at most 200"),
    ],
)
def test_a_file_that_holds_no_pins_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_pins(text, 64)


def test_pins_come_back_from_their_file() -> None:
    assert read_pins('entry,count,note\n3,9,"a, b"\n7,1,\n', 64) == (Pin(3, "a, b"), Pin(7))


def test_what_is_chosen_in_histograms_filters_the_table(tiny_recording: Recording) -> None:
    used = entry_numbers(tiny_recording).set_index("entry")["count"]
    test = open_page("entries", usage="1_8", sort="entry", order="smallest first")
    assert not test.exception and not test.warning
    expected = used.index[used.between(1, 7)].tolist()
    assert expected and test.dataframe[0].value["entry"].tolist() == expected[:50]
    test.text_input(key="entries.q").input("zebra").run()
    assert "left by this search and filter" in test.info[0].value
    test.text_input(key="entries.q").input("").run()
    press(test, "On the map")
    assert not test.exception and test.title[0].value == "Map" and asked(test, "usage") == "1_8"
    assert sorted(test.dataframe[0].value["entry"]) == expected
    press(test, "In the whole table")
    assert test.title[0].value == "Entries" and asked(test, "usage") == "1_8"
    lost = open_page("entries", usage="9e9_9e10", predicate="<b>nowhere</b>")
    assert not lost.exception and len(lost.dataframe[0].value) == 50
    assert lost.warning[0].value == "This recording has nothing of what the address chooses: usage, predicate."


@pytest.mark.parametrize(("page", "q"), [("entries", "zebra crossing"), ("map", "zebra crossing")])
def test_a_search_without_a_hit_says_so(page: str, q: str) -> None:
    test = open_page(page, q=q)
    assert not test.exception
    assert "No entry" in test.info[0].value


def test_a_search_and_a_lasso_choose_points_of_the_map(folder: Path) -> None:
    places = Recording(folder / "tiny").map()
    assert places is not None
    right = inside(unit_places(places), [(0, -2000), (2000, -2000), (2000, 2000), (0, 2000)])
    test = open_page("map", lasso="0_-2000.2000_-2000.2000_2000.0_2000", by="cluster")
    assert not test.exception
    assert sorted(test.dataframe[0].value["entry"]) == right.tolist()
    next(button for button in test.button if button.label == "Drop the lasso").click().run()
    assert asked(test, "lasso") is None and not test.dataframe


def test_many_points_stand_behind_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not open_page("map").toggle
    monkeypatch.setattr(map_points, "DENSE", 32)
    test = open_page("map")
    assert "density first" in markdown(test) and not test.toggle[0].value
    test.toggle(key="map.every").set_value(True).run()
    assert not test.exception and asked(test, "every") == "1"


def test_a_recording_without_a_map_names_the_command() -> None:
    test = open_page("map", recording="deeper/twin")
    assert test.code[0].value.startswith("memscope map")


def test_a_map_that_is_not_trusted_says_so_first_and_colours_no_clusters(folder: Path) -> None:
    path = folder / "tiny" / "map.json"
    before, said = path.read_bytes(), read_sealed(path, "")
    try:
        write_sealed(path, said | {"trusted": False, "why_not": ["It keeps too little."]})
        os.utime(folder / "tiny" / "map.parquet")  # what caches look at
        test = open_page("map")
        assert not test.exception
        assert "Do not trust this map" in test.warning[0].value and "It keeps too little." in test.warning[0].value
        assert "Cluster" not in test.selectbox(key="map.by").options
        assert open_page("map", by="cluster").selectbox(key="map.by").value == "usage"
        del said["trusted"]  # made before maps were checked
        write_sealed(path, said)
        os.utime(folder / "tiny" / "map.parquet")
        assert open_page("map").code[0].value.startswith("memscope map")
    finally:
        path.write_bytes(before)
        os.utime(folder / "tiny" / "map.parquet")


@pytest.mark.parametrize("by", ["count", "gate score", "read weight"])
def test_gate_bias_follows_weighting_and_layers(by: str, tiny_recording: Recording) -> None:
    test = open_page("gate_bias", by=by)
    metrics = tiny_recording.layer_metrics(f"by_{by.replace(' ', '_')}")
    assert test.dataframe[0].value["gini"].tolist() == metrics["gini"].tolist()
    test.get_by_key("gate_bias.layers").set_value([1]).run()
    assert not test.exception
    assert test.dataframe[0].value["layer"].tolist() == [1]
    assert asked(test, "layers") == "1"


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [("concentration", "drawn", "histogram, linear"), ("profiles", "value", "effective_entries_read")],
)
def test_the_way_to_draw_is_in_the_address(part: str, field: str, value: str) -> None:
    test = open_page("gate_bias", part=part, **{field: value})
    assert not test.exception and not test.warning
    assert test.session_state[f"gate_bias.{field}"] == value and asked(test, field) == value


@pytest.mark.slow
def test_anomalies_are_listed_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant_anomalies(tmp_path / "planted", seed=0)
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(tmp_path))
    offered: dict[str, Callable[[], str]] = {}
    with monkeypatch.context() as patch:
        patch.setattr(st, "download_button", lambda label, data, name, *_, **__: offered.update({name: data}))
        assert not open_page("gate_bias", recording="planted", part="anomalies").exception
    made: list[str] = []
    thread = threading.Thread(target=lambda: made.append(offered["planted-anomalies.csv"]()))  # knows of no session
    thread.start()
    thread.join()
    test = open_page("gate_bias", recording="planted", part="anomalies")
    assert not test.exception
    every = anomalies_in_words(Recording(planted.path))
    assert test.dataframe[0].value["text"].tolist() == every["text"].tolist()
    assert len(made[0].splitlines()) == len(every) + 1
    test.get_by_key("gate_bias.kind").set_value("exclusive").run()
    [row] = test.dataframe[0].value.itertuples()
    assert row.text.startswith("takes turns with entry") and asked(test, "kind") == "exclusive"
    monkeypatch.setattr("app.parts.anomalies.anomalies_in_words", lambda _: every[:0])
    st.cache_data.clear()
    none = open_page("gate_bias", recording="planted", part="anomalies")
    assert not none.exception and none.success[0].value.startswith("No anomalies.")


@pytest.mark.slow
def test_a_report_is_made_once_and_one_that_is_stopped_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, before = Recording(folder / "tiny"), set((folder / "tiny").iterdir())
    making = reports.make_report(recording)
    next(making)
    making.close()
    assert reports.report_file(recording) is None
    assert set((folder / "tiny").iterdir()) == before and not list(reports._folder().iterdir())
    test = open_page("overview")
    press(test, "Make the report")
    assert not test.exception and test.title[0].value == "Gate bias" and asked(test, "part") == "report"
    made = reports.report_file(Recording(folder / "tiny"))
    assert made is not None and b"<title>Gate-bias report" in reports.report_page(made)
    monkeypatch.setattr("app.parts.report.page.make_report", None)  # nothing makes it again
    press(open_page("overview"), "Open the report")
    again = open_page("gate_bias", part="report")
    assert not again.exception and not any(button.label == "Make the report" for button in again.button)
    assert Recording(folder / "tiny").info.complete  # it stands beside a whole recording
    with monkeypatch.context() as patch:
        patch.setattr(reports, "_code", lambda: "another version")
        assert reports.report_file(recording) is None
    changed = recording.info.model_copy(update={"corpus": "another"})
    monkeypatch.setattr(recording, "info", changed)
    assert reports.report_file(recording) is None
    made.write_bytes(b"no archive")
    assert reports.report_file(Recording(folder / "tiny")) is None
    made.unlink()


def test_equal_recordings_compare_as_equal() -> None:
    test = open_page("compare", **{"with": "deeper/twin"})
    next(button for button in test.button if button.label == "Measure it").click().run()
    assert not test.exception
    assert (test.dataframe[2].value["jaccard"] == 1).all()


def test_one_prompt_is_read_by_both_models() -> None:
    test = open_page("compare", part="prompt", text="Ada Holm was born in", **{"with": "deeper/twin"})
    assert not test.exception
    assert "Mean loss" in " ".join(caption.value for caption in test.caption)
    [ours] = [table.value for table in test.dataframe if "A: next token" in table.value]
    read = open_page("prompts", source="your text", text="Ada Holm was born in")  # opens on its last token, too
    assert ours["A: next token"].tolist() == read.dataframe[0].value["next token"].tolist()


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("entries", {"entry": "99999"}, "no such entry"),
        ("entries", {"entry": "<b>"}, "no such entry"),
        ("prompts", {"doc": "-1"}, "no such doc"),
        ("prompts", {"token": "1e9"}, "no such token"),
        ("overview", {"recording": "../../etc"}, "no such recording"),
        ("overview", {"recording": "/etc"}, "no such recording"),
        ("gate_bias", {"layers": "77", "by": "x"}, "no such layer"),
        ("map", {"lasso": "1_2.3"}, "lasso"),
        ("compare", {"with": "../x"}, "no such recording"),
        ("entries", {"page": "900", "sort": "; DROP TABLE usage"}, "no such"),
    ],
)
def test_a_bad_address_gets_a_sentence_and_a_usable_page(name: str, values: dict[str, str], says: str) -> None:
    test = open_page(name, **values)
    assert not test.exception
    assert any(says in warning.value for warning in test.warning)
    assert not any(value in markdown(test) for value in values.values() if not value.isdecimal() and len(value) > 2)


def test_a_long_text_in_the_address_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        address.words().parse("x" * (address.MAX_TEXT + 1))


def test_coming_back_to_a_page_shows_what_was_open() -> None:
    test = open_page("prompts", doc=1, token=5)
    test.switch_page("app_pages/entries.py").run()
    assert asked(test, "token") is None
    del test.query_params["recording"]
    test.switch_page("app_pages/prompts.py").run()
    assert test.subheader[0].value == "Token 5" and asked(test, "token") == "5"


def test_a_run_is_followed_without_a_recording(
    tiny_run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "under way"
    run.mkdir(parents=True)
    (run / "config.yaml").write_bytes((tiny_run_path / "config.yaml").read_bytes())
    lines = (tiny_run_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 10))
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(tmp_path / "recordings"))
    with one_writer(run):
        test = AppTest.from_file(str(FRAME), default_timeout=60).run()
    assert not test.exception
    values = {metric.label: metric.value for metric in test.metric}
    assert set(values) == {"Training loss", "Validation loss", "Speed", "Time left"}
    assert test.dataframe[0].value["layer"].tolist() == [0, 1]
    assert any(text.value.startswith("step 10: ") for text in test.main.text)
    said = shlex.split(test.code[0].value)
    assert said[:4] == ["memscope", "record", str(run), "--corpus"] and Path(said[4]).name == "valid.jsonl"
    test = AppTest.from_file(str(FRAME), default_timeout=60).run()
    assert "Time left" not in {metric.label for metric in test.metric}  # it has stopped


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
    assert not test.exception
    assert test.title[0].value == "Overview" and asked(test, "recording") == "whole"
    test.selectbox(key="chosen").select("broken").run()
    assert not test.exception
    assert "usage.parquet" in test.code[0].value
    test.selectbox(key="chosen").select("whole").run()
    assert not test.exception
    assert test.title[0].value == "Overview"


def test_a_recording_that_is_made_again_while_it_is_open_is_named(
    tiny_recording_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = shutil.copytree(tiny_recording_path, tmp_path / "tiny")
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(tmp_path))
    test = open_page("gate_bias")
    info = read_info(tiny)
    write_info(tiny, info.model_copy(update={"complete": False}))
    test.run()
    assert not test.exception and "unfinished" in test.code[0].value
    (tiny / "recording.json").unlink()
    test.run()
    assert not test.exception and "not a recording" in test.code[0].value
    write_info(tiny, info)
    test.run()
    assert not test.exception and test.title[0].value == "Gate bias"


def test_nothing_is_loaded_from_other_sites() -> None:
    for path in [*(FRAME.parent / "frontend").iterdir(), *FRAME.parent.rglob("*.py")]:
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text, path
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text, path


def test_colours_run_from_the_lowest_to_the_98th_percentile() -> None:
    values = np.array([*np.linspace(1, 2, 100), 1000.0, np.nan])
    low, high = color_range(values)
    assert (low, round(high)) == (1.0, 2)
    levels = color_levels(values, low, high)
    assert levels[0] == 0 and levels[100] == 1 and levels[101] == 0
    assert color_range(np.array([np.nan])) == (0.0, 0.0)
    assert color_levels(np.array([3.0, 3.0]), 3.0, 3.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.0, 2.7726, ("0", "2.77")),
        (5.46e-05, 0.0222, ("0.0001", "0.0222")),
        (-8.63, 8.63, ("-8.63", "8.63")),
        (-0.0, 0.0, ("0", "0")),
        (3.0, 12345.6, ("3", "12,346")),
        (0.0, 3.2e-9, ("0", "3.2e-09")),
    ],
)
def test_ends_of_a_scale_are_plain_numbers(low: float, high: float, said: tuple[str, str]) -> None:
    assert scale_ends(low, high) == said
