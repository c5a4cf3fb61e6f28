"""What is known of single entries: cards, contexts in their text, firing, neighbours, all selections."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from memscope.base.errors import InputError
from memscope.query import entry_cards as entry_pages
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.recording.token_rows import TokenRows
from memscope.run.adapters.own import OwnRun
from memscope.text.corpus import PackedCorpus, read_documents
from tests.conftest import HOSTILE, tiny_config, untrained_run
from tests.synthetic import all_rows, selections_of


@pytest.fixture(scope="module")
def rows(tiny_recording: Recording, tiny_recording_path: Path) -> TokenRows:
    return all_rows(tiny_recording_path, tiny_recording.info)


@pytest.fixture(scope="module")
def most_used(tiny_recording: Recording) -> int:
    return int(tiny_recording.entries(limit=1)["entry"][0])


@pytest.fixture(scope="module")
def short_recording(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Forty tokens of an untrained model: many entries are never selected."""
    folder = tmp_path_factory.mktemp("short")
    run = untrained_run(tiny_config(corpus_dir, memory={"knowledge_length": 3}), folder / "run")
    record(OwnRun(run), corpus_dir / "valid.jsonl", folder / "recording", RecordOptions(max_tokens=40))
    return Recording(folder / "recording")


# --- cards ------------------------------------------------------------------------------------------------------------


def test_a_card_holds_sentence_triples_usage_and_decodings(tiny_recording: Recording) -> None:
    table = tiny_recording.entries(limit=64).set_index("entry")
    entry = int(table["sentence"].dropna().index[0])  # the most used that has a sentence
    card = tiny_recording.entry(entry)
    assert (card.entry, card.sentence) == (entry, table["sentence"][entry])
    assert card.triples[["subject", "predicate", "object"]].to_numpy().tolist() == [
        ["Ada Holm", "place of birth", "Aston"]
    ]
    assert (card.title, card.words) == (table["title"][entry], table["words"][entry])
    assert card.drift == pytest.approx(table["drift"][entry])
    assert card.slot_drift == [pytest.approx(card.drift)]  # one slot
    assert card.usage["layer"].tolist() == [0, 1]
    assert card.usage["count"].sum() == table["count"][entry]
    selections = tiny_recording.info.rows * tiny_recording.info.selected
    np.testing.assert_allclose(card.usage["share"], card.usage["count"] / selections)
    own = set(tiny_recording.tokenizer.encode(card.sentence))
    texts = {tiny_recording.tokenizer.token_texts[i] for i in own}
    assert all(
        inside == (token in texts) for token, inside in zip(card.nearest.token, card.nearest.in_sentence, strict=True)
    )
    assert card.nearest["cosine"].is_monotonic_decreasing
    assert card.kept == pytest.approx(card.nearest["in_sentence"].mean())
    assert all(len(row.top) == len(row.bottom) == 10 for row in card.lens.itertuples())


def test_an_entry_that_started_random_has_no_sentence(tiny_recording: Recording) -> None:
    card = tiny_recording.entry(63)
    assert (card.sentence, card.kept, card.kept_at_init, len(card.triples)) == (None, None, None, 0)
    assert not card.nearest["in_sentence"].any()
    assert tiny_recording.sentences([63, 0, 63]) == {63: None, 0: tiny_recording.entry(0).sentence}


def test_an_entry_that_nothing_selects_has_a_card_of_zeros(short_recording: Recording) -> None:
    unused = int(short_recording.entries(sort="count", descending=False, limit=1)["entry"][0])
    card = short_recording.entry(unused)
    assert (card.title, card.words) == (None, None)
    assert card.usage["count"].tolist() == [0, 0]
    assert len(card.lens) == 0
    for found in (short_recording.contexts(unused), short_recording.firing_of([unused])):
        assert len(found) == 0
    assert len(short_recording.neighbours_of([unused])) == 0
    assert len(short_recording.selections(unused, 0)) == 0
    assert {"before", "token", "after", "kind", "title"} <= set(short_recording.contexts(unused).columns)
    assert {"input_tokens", "next_lift"} <= set(short_recording.firing_of([unused]).columns)


def test_an_entry_of_several_slots_has_a_drift_and_a_nearest_token_for_each(short_recording: Recording) -> None:
    card = short_recording.entry(0)
    assert len(card.slot_drift) == len(card.nearest) == 3
    assert card.drift == pytest.approx(np.mean(card.slot_drift), abs=1e-6)


def test_many_cards_stand_in_the_order_asked_and_equal_single_ones(
    tiny_recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry_pages, "_CHUNK", 3)
    asked = [9, 2, 63, 2, 0, 41, 5]
    cards = list(tiny_recording.cards(asked))
    assert [card.entry for card in cards] == asked
    for card in cards:
        alone = tiny_recording.entry(card.entry)
        for one, other in zip(card, alone, strict=True):
            if isinstance(one, pd.DataFrame):
                pd.testing.assert_frame_equal(one, other)
            else:
                assert one == other
    assert list(tiny_recording.cards([])) == []


def test_the_lens_of_an_entry_is_that_of_its_card_with_logits(tiny_recording: Recording, most_used: int) -> None:
    table, card = tiny_recording.lens_of([most_used]), tiny_recording.entry(most_used)
    assert len(card.lens) and list(table) == ["entry", "layer", "end", "rank", "token", "logit"]
    for row in card.lens.itertuples():
        for end, tokens in (("top", row.top), ("bottom", row.bottom)):
            rows = table[(table["layer"] == row.layer) & (table["end"] == end)]
            assert rows["token"].tolist() == tokens and rows["rank"].tolist() == list(range(len(tokens)))
            assert rows["logit"].is_monotonic_decreasing if end == "top" else rows["logit"].is_monotonic_increasing
    assert len(table) == sum(len(row.top) + len(row.bottom) for row in card.lens.itertuples())


@pytest.mark.parametrize("asked", [[-1], [3, 64], [10**12]])
def test_cards_of_unknown_entries_are_refused(tiny_recording: Recording, asked: list[int]) -> None:
    with pytest.raises(InputError, match=rf"entry {asked[-1]} does not exist; entries are 0 to 63"):
        list(tiny_recording.cards(asked))


# --- contexts ---------------------------------------------------------------------------------------------------------


def test_contexts_show_the_token_in_its_document(
    tiny_recording: Recording, tiny_corpus: PackedCorpus, corpus_dir: Path, most_used: int
) -> None:
    documents = [document.text for document in read_documents(corpus_dir / "valid.jsonl")]
    frame = tiny_recording.contexts(most_used)
    assert len(frame) > 20
    tokenizer = tiny_recording.tokenizer
    for row in frame.itertuples():
        token = int(tiny_corpus.tokens[tiny_corpus.starts[row.doc] + row.pos])
        assert row.row == tiny_corpus.starts[row.doc] + row.pos
        assert row.token == tokenizer.token_texts[token] or token in tokenizer.partial
        around = f"{row.before}{row.token}{row.after}"
        assert around in f"<|im_start|>{documents[row.doc]}<|im_end|>"
        assert row.title == ("<b>Hostile</b>" if row.doc == 0 else f"Article {row.doc}")
        trace = tiny_recording.trace(row.doc, row.pos, 1)
        fired = trace.selections[(trace.selections["layer"] == row.layer) & (trace.selections["entry"] == most_used)]
        assert (fired["gate"].tolist(), fired["read"].tolist()) == ([row.gate], [row.read])


def test_contexts_begin_with_a_window_and_end_with_a_document(
    tiny_recording: Recording, tiny_corpus: PackedCorpus
) -> None:
    frame = tiny_recording.contexts_of(range(64), before=3, after=2)
    ids = [tiny_recording.tokenizer.token_texts[token] for token in tiny_corpus.tokens]
    lengths, partial = np.diff(tiny_corpus.starts), tiny_recording.tokenizer.partial
    window = tiny_recording.info.window
    for row in frame.itertuples():
        start, end = int(tiny_corpus.starts[row.doc]), int(tiny_corpus.starts[row.doc + 1])
        start += row.pos // window * window  # what the model saw begins with its window
        if partial.isdisjoint(tiny_corpus.tokens[max(start, row.row - 3) : row.row + 3].tolist()):
            assert row.before == "".join(ids[max(start, row.row - 3) : row.row])
            assert row.after == "".join(ids[row.row + 1 : min(end, row.row + 3)])
    assert (frame["pos"] == 0).any()  # nothing before
    assert ((frame["pos"] > 0) & (frame["pos"] % window == 0) & (frame["before"] == "")).any()
    assert (frame["pos"].to_numpy() == lengths[frame["doc"]] - 1).any()  # nothing behind


def test_contexts_of_many_entries_are_those_of_each(tiny_recording: Recording, most_used: int) -> None:
    asked = sorted({most_used, 3, 17, 60})
    many = tiny_recording.contexts_of([*asked[::-1], asked[0]])  # order and repeats do not matter
    assert many["entry"].drop_duplicates().tolist() == [entry for entry in asked if entry in set(many["entry"])]
    for entry in asked:
        alone = tiny_recording.contexts(entry)
        pd.testing.assert_frame_equal(many[many["entry"] == entry].reset_index(drop=True), alone)
    for _, here in many.groupby("entry"):
        kinds = here["kind"].tolist()
        assert kinds == sorted(kinds, reverse=True)  # top first
        for kind in ("top", "quantile"):
            assert here[here["kind"] == kind]["gate"].is_monotonic_decreasing


def test_contexts_of_one_layer(tiny_recording: Recording, most_used: int) -> None:
    only = tiny_recording.contexts(most_used, layer=1, before=2, after=0)
    assert set(only["layer"]) == {1}
    assert only.index.tolist() == list(range(len(only)))
    assert (only["after"] == "").all()
    assert all(len(tiny_recording.tokenizer.encode(text)) <= 3 for text in only["before"])


def test_hostile_text_stays_text_in_contexts_and_titles(tiny_recording: Recording) -> None:
    frame = tiny_recording.contexts_of(range(64), before=200, after=200)
    first = frame[(frame["doc"] == 0) & (frame["pos"] < tiny_recording.info.window)].iloc[0]
    assert HOSTILE in f"{first['before']}{first['token']}{first['after']}"
    titles = tiny_recording.sql("SELECT title FROM titles")["title"]
    assert titles.map(lambda title: isinstance(title, str) and len(title) > 0).all()


# --- firing, neighbours, selections -----------------------------------------------------------------------------------


def test_firing_shows_tokens_as_texts_without_what_fills_up(tiny_recording: Recording, rows: TokenRows) -> None:
    table = tiny_recording.firing_of(range(64))
    raw = tiny_recording.sql("SELECT * FROM firing ORDER BY entry, layer")
    texts = tiny_recording.tokenizer.token_texts
    assert len(table) == len(raw) == (tiny_recording.usage() > 0).sum()
    for kind in ("input", "predicted", "next"):
        shorter = 0
        for here, stored in zip(table.itertuples(), raw.itertuples(), strict=True):
            tokens = [token for token in getattr(stored, f"{kind}_token") if token >= 0]
            assert getattr(here, f"{kind}_tokens") == [texts[token] for token in tokens]
            for name in ("lift", "count"):
                values = getattr(here, f"{kind}_{name}")
                assert values == getattr(stored, f"{kind}_{name}")[: len(tokens)].tolist()
            shorter += len(tokens) < 5
        assert shorter > 0  # so that something was left out
    for here in table.itertuples():
        at = (rows.indices[:, here.layer] == here.entry).any(1)
        assert here.count == (rows.indices[:, here.layer] == here.entry).sum()
        assert here.docs == len(set(rows.doc[at].tolist()))
        assert len(here.gate_deciles) == 11


def test_neighbours_come_with_sentence_and_title(tiny_recording: Recording) -> None:
    table = tiny_recording.neighbours_of(range(64))
    assert len(table) > 20
    order = table.sort_values(["entry", "layer", "rank"])
    assert table.equals(order)
    known = tiny_recording.entries(limit=64).set_index("entry")
    for row in table.iloc[::17].itertuples():
        for name in ("sentence", "title"):
            value = getattr(row, name)
            assert value == known[name][row.other] or (pd.isna(value) and pd.isna(known[name][row.other]))
    some = tiny_recording.neighbours_of([17, 3, 17])
    pd.testing.assert_frame_equal(some, table[table["entry"].isin([3, 17])].reset_index(drop=True))


def test_selections_of_an_entry_are_all_of_them(tiny_recording: Recording, rows: TokenRows) -> None:
    for axis, layer in enumerate(tiny_recording.info.layers):
        expected: dict[int, list[tuple[int, float]]] = {entry: [] for entry in range(64)}
        for row, _, entry, gate, _ in selections_of(rows, axis):
            expected[entry].append((row, gate))
        for entry in range(64):
            found = tiny_recording.selections(entry, layer)
            assert list(found.itertuples(index=False, name=None)) == expected[entry]


def test_token_ids_are_those_of_the_corpus(tiny_recording: Recording, tiny_corpus: PackedCorpus) -> None:
    np.testing.assert_array_equal(tiny_recording.token_ids, tiny_corpus.tokens)


def test_the_most_read_selections_are_those_of_all(tiny_recording: Recording, most_used: int) -> None:
    layers = tiny_recording.info.layers
    naive = []
    for doc in range(len(tiny_recording.documents)):
        rows = tiny_recording.trace(doc, 0, 100_000).selections
        naive += [(doc, *one) for one in rows.loc[rows["entry"] == most_used, ["pos", "layer", "read"]].values.tolist()]
    for layer in (None, layers[0]):
        expected = sorted((abs(read) for *_, at, read in naive if layer in (None, at)), reverse=True)[:20]
        found = tiny_recording.most_read(most_used, layer)
        assert found["read"].abs().tolist() == expected
        known = {(doc, pos, at, np.float32(read)) for doc, pos, at, read in naive}
        assert set(zip(found["doc"], found["pos"], found["layer"], found["read"], strict=True)) <= known
    assert tiny_recording.most_read(most_used)["token"].str.len().gt(0).all()
