"""Questions to a recording."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from memscope.base.errors import InputError
from memscope.query.recording import SORT_COLUMNS, Recording
from memscope.record.loop import RecordOptions, record
from memscope.recording.part_reader import read_part
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from memscope.stats.usage import usage_metrics
from memscope.text.corpus import PackedCorpus
from tests.conftest import HOSTILE, tiny_config, untrained_run
from tests.synthetic import all_rows


@pytest.fixture(scope="module")
def odd_recording(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A recording of a bank whose sentences hold characters that mean something in SQL patterns."""
    folder = tmp_path_factory.mktemp("odd")
    sentences = ["100% of it", "100 of it", "snake_case here", "snakeXcase here", r"back\slash", "it's quoted", "7 up"]
    (folder / "sentences.txt").write_text("\n".join(sentences))
    config = tiny_config(corpus_dir, memory={"database_init_path": str(folder / "sentences.txt")})
    run = untrained_run(config, folder / "run")
    record(OwnRun(run), corpus_dir / "valid.jsonl", folder / "recording", RecordOptions(max_tokens=128))
    return Recording(folder / "recording")


def found(recording: Recording, search: str) -> set[str]:
    return set(recording.entries(search=search, limit=100)["sentence"].dropna())


def test_usage_counts_add_up_to_the_selections_of_the_recording(tiny_recording: Recording) -> None:
    info = tiny_recording.info
    assert tiny_recording.usage().sum() == info.rows * len(info.layers) * info.selected


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("100%", {"100% of it"}),
        ("snake_case", {"snake_case here"}),
        ("\\", {r"back\slash"}),
        ("it's", {"it's quoted"}),
        ("of it", {"100% of it", "100 of it"}),
        ("IT of", {"100% of it", "100 of it"}),  # any order, any case
        ("snakeXcase quoted", set()),  # every word must occur
        ("'; DROP VIEW bank; --", set()),
        ("nothing like this", set()),
    ],
)
def test_search_finds_words_as_they_are_written(odd_recording: Recording, search: str, expected: set[str]) -> None:
    assert found(odd_recording, search) == expected


def test_search_by_number_finds_the_entry_and_texts_with_the_number(odd_recording: Recording) -> None:
    frame = odd_recording.entries(search="7", sort="entry", descending=False)
    assert 7 in frame["entry"].tolist()
    assert "7 up" in frame["sentence"].tolist()
    assert len(frame) == 2


@pytest.mark.parametrize("search", ["9" * 12, "9" * 40, "-1", "0x10", "²"])
def test_odd_numbers_find_nothing(odd_recording: Recording, search: str) -> None:
    assert found(odd_recording, search) == set()


def test_an_empty_search_finds_every_entry(tiny_recording: Recording) -> None:
    for search in ("", "  "):
        assert len(tiny_recording.entries(search=search, limit=100)) == 64


def test_search_finds_what_entries_fire_on(tiny_recording: Recording) -> None:
    entry, title, words = tiny_recording.entries(limit=64)[["entry", "title", "words"]].dropna().iloc[0]
    for text in (title.split("“")[1].split("”")[0], words.replace(" · ", " ")):
        assert entry in tiny_recording.entries(search=text, limit=64)["entry"].tolist()
    for text in ("firings", "clear pattern"):
        assert len(tiny_recording.entries(search=text)) == 0


def test_search_reads_triples_too(tiny_recording: Recording) -> None:
    assert len(tiny_recording.entries(search="birth Holm Aston", limit=100)) == 53  # every sentence has this triple


@pytest.mark.parametrize("sort", SORT_COLUMNS)
@pytest.mark.parametrize("descending", [True, False])
def test_pages_are_sorted_complete_and_without_repeats(tiny_recording: Recording, sort: str, descending: bool) -> None:
    order = {"sort": sort, "descending": descending}
    pages = [tiny_recording.entries(limit=10, offset=offset, **order) for offset in range(0, 70, 10)]
    assert [len(page) for page in pages] == [10] * 6 + [4]
    frame = pd.concat(pages, ignore_index=True)
    assert sorted(frame["entry"]) == list(range(64))
    assert frame["entry"].tolist() == tiny_recording.entries(limit=64, **order)["entry"].tolist()
    values = frame[sort].dropna()
    assert values.is_monotonic_decreasing if descending else values.is_monotonic_increasing
    assert frame[sort].isna().sum() == 0 or frame[sort].isna().iloc[len(values) :].all()  # unknown comes last


def test_an_unknown_sort_column_is_refused(tiny_recording: Recording) -> None:
    with pytest.raises(InputError, match="cannot sort by 'count; DROP'; did you mean 'count'"):
        tiny_recording.entries(sort="count; DROP")


def test_the_table_counts_what_the_parts_hold(tiny_recording: Recording, tiny_recording_path: Path) -> None:
    info = tiny_recording.info
    parts = [read_part(tiny_recording_path, part, info) for part in info.parts]
    indices, gates, reads = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("indices", "gate", "read")
    )
    frame = tiny_recording.entries(limit=64).set_index("entry")
    for entry in (0, 17, 63, int(frame.index[0])):
        at = indices == entry
        assert frame["count"][entry] == at.sum()
        assert frame["gate_sum"][entry] == pytest.approx(gates[at].astype(float).sum())
        assert frame["read_sum"][entry] == pytest.approx(np.abs(reads[at].astype(float)).sum())
        assert frame["read_signed_sum"][entry] == pytest.approx(reads[at].astype(float).sum())
        assert frame["layers_used"][entry] == at.any((0, 2)).sum()


def test_a_trace_equals_the_stored_rows(
    tiny_recording: Recording, tiny_recording_path: Path, tiny_corpus: PackedCorpus
) -> None:
    first = read_part(tiny_recording_path, tiny_recording.info.parts[0], tiny_recording.info)
    trace = tiny_recording.trace(doc=0, first=10, count=5)
    assert trace.tokens["pos"].tolist() == [10, 11, 12, 13, 14]
    assert trace.tokens["token"].tolist() == tiny_corpus.tokens[10:15].tolist()
    np.testing.assert_array_equal(trace.tokens["loss"], first.loss[10:15])
    for row in trace.selections.itertuples():
        at = first.indices[row.pos, row.layer].tolist().index(row.entry)
        assert first.gate[row.pos, row.layer, at] == row.gate
        assert first.read[row.pos, row.layer, at] == row.read
    for _, group in trace.selections.groupby(["pos", "layer"]):
        assert group["rank"].tolist() == [0, 1, 2, 3]
        assert group["read"].abs().is_monotonic_decreasing


def test_a_trace_ends_with_its_document(tiny_recording: Recording, tiny_corpus: PackedCorpus) -> None:
    length = int(tiny_corpus.starts[1])
    assert len(tiny_recording.trace(0, first=length - 3, count=256).tokens) == 3
    assert np.isnan(tiny_recording.trace(0, first=length - 1).tokens["loss"]).tolist() == [True]


def test_hostile_text_comes_back_as_it_is(tiny_recording: Recording) -> None:
    assert tiny_recording.documents["title"][0] == "<b>Hostile</b>"
    text = "".join(tiny_recording.tokenizer.token_texts[t] for t in tiny_recording.trace(0, count=400).tokens["token"])
    assert HOSTILE in text


@pytest.mark.parametrize("entry", [-1, 64, 10**12])
def test_an_unknown_entry_is_refused(tiny_recording: Recording, entry: int) -> None:
    with pytest.raises(InputError, match=rf"entry {entry} does not exist; entries are 0 to 63"):
        tiny_recording.entry(entry)


def test_an_unknown_document_or_position_is_refused(tiny_recording: Recording) -> None:
    for doc in (-1, 6):
        with pytest.raises(InputError, match=f"document {doc} does not exist; the recording has 6"):
            tiny_recording.trace(doc)
    with pytest.raises(InputError, match="none at position 100000"):
        tiny_recording.trace(0, first=100_000)


@pytest.mark.parametrize("name", ["rec[1]", "what? *", "it's", "größe 漢字"])
def test_a_recording_may_lie_in_a_folder_of_any_name(tiny_recording_path: Path, tmp_path: Path, name: str) -> None:
    recording = Recording(shutil.copytree(tiny_recording_path, tmp_path / name))
    assert len(recording.entries(limit=100)) == 64
    assert len(recording.trace(0).tokens) > 0


def test_metrics_per_layer_and_the_training_curve_are_tables(tiny_recording: Recording, tiny_run: LoadedRun) -> None:
    for weighting in ("by_count", "by_gate_score", "by_read_weight"):
        assert tiny_recording.layer_metrics(weighting)["layer"].tolist() == [0, 1]
    counts = tiny_recording.usage()
    np.testing.assert_allclose(tiny_recording.layer_metrics()["coverage"], (counts > 0).mean(1))
    assert "read_entropy" in tiny_recording.reading_metrics()
    assert tiny_recording.training_curve()["kind"].value_counts()["eval"] == 3
    assert tiny_recording.run_summary["parameters"] == sum(p.numel() for p in tiny_run.model.parameters())


def test_evenness_of_any_weighting_is_that_of_usage(tiny_recording: Recording) -> None:
    for weighting in ("by_count", "by_gate_score", "by_read_weight"):
        usage = tiny_recording.usage(weighting)
        assert usage.shape == (2, 64)
        expected = [usage_metrics(row, tiny_recording.info.rows * 4).gini for row in usage]
        assert tiny_recording.layer_metrics(weighting)["gini"].tolist() == expected
        most = tiny_recording.most_used(1, weighting, limit=5)
        assert most["entry"].tolist() == np.argsort(-usage[1], kind="stable")[:5].tolist()
        np.testing.assert_allclose(most["share"], usage[1][most["entry"]] / usage[1].sum())


def test_folds_of_usage_are_blocks_of_rows_in_a_recording_of_few_documents(
    tiny_recording: Recording, tiny_recording_path: Path
) -> None:
    rows = all_rows(tiny_recording_path, tiny_recording.info)
    folds = tiny_recording.usage_folds()
    assert folds.shape == (20, 2, 64)
    for fold in range(20):
        here = np.arange(len(rows.doc)) // 256 % 20 == fold
        for axis in (0, 1):
            expected = np.bincount(rows.indices[here, axis].ravel(), minlength=64)
            np.testing.assert_array_equal(folds[fold, axis], expected)
    np.testing.assert_array_equal(folds.sum(0), tiny_recording.usage())


def test_documents_have_their_mean_loss(tiny_recording: Recording, tiny_recording_path: Path) -> None:
    rows = all_rows(tiny_recording_path, tiny_recording.info)
    table = tiny_recording.document_losses()
    assert list(table.columns) == ["doc", "title", "group", "tokens", "loss"]
    assert table["doc"].tolist() == list(range(6))
    for document in table.itertuples():
        losses = rows.loss[rows.doc == document.doc]
        assert document.tokens == len(losses) - 1
        assert document.loss == pytest.approx(np.nanmean(losses.astype(float)))
        assert document.title == ("<b>Hostile</b>" if document.doc == 0 else f"Article {document.doc}")


def test_drift_stands_for_every_entry(tiny_recording: Recording) -> None:
    drift = tiny_recording.drift()
    table = tiny_recording.entries(limit=64).set_index("entry").sort_index()
    np.testing.assert_array_equal(drift, table["drift"])
    used = tiny_recording.usage().sum(0) > 0
    summary = tiny_recording.drift_summary()
    assert summary["median_used"] == pytest.approx(np.median(drift[used].astype(float)), rel=1e-5)


def test_preferences_have_a_row_per_layer_and_label(tiny_recording: Recording) -> None:
    table = tiny_recording.preferences()
    assert set(table["layer"]) == {0, 1}
    assert not table.duplicated(["layer", "attribute", "label"]).any()
    origin = table[table["attribute"] == "origin"]
    assert sorted(set(origin["label"])) == ["random", "sentence"]
    for layer in (0, 1):
        assert origin[origin["layer"] == layer]["selections"].sum() == tiny_recording.usage()[layer].sum()


def test_a_recording_has_no_map_before_one_is_made(tiny_recording: Recording) -> None:
    assert (tiny_recording.map(), tiny_recording.map_info) == (None, {})


def test_the_config_of_the_run_comes_along(tiny_recording: Recording, tiny_run: LoadedRun) -> None:
    assert tiny_recording.config == tiny_run.config.model_dump(mode="json")


def test_questions_in_sql_may_ask_any_view(tiny_recording: Recording) -> None:
    views = ["usage", "bias", "contexts", "firing", "neighbours", "titles", "decodings", "bank", "docs"]
    for view in views:
        assert tiny_recording.sql(f"SELECT count(*) AS n FROM {view}")["n"][0] > 0
    found = tiny_recording.sql("SELECT count(*) AS n FROM usage WHERE layer = ?", [1])
    assert found["n"][0] == (tiny_recording.usage()[1] > 0).sum()


def test_the_query_layer_answers_several_threads_at_once(tiny_recording: Recording) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        cards = list(pool.map(tiny_recording.entry, range(64)))
        selections = list(pool.map(lambda entry: tiny_recording.selections(entry, 0), range(64)))
    assert [card.entry for card in cards] == list(range(64))
    assert [len(found) for found in selections] == tiny_recording.usage()[0].tolist()
