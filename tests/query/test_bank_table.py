"""Searches, orders and rows of the bank, against loops over its entries."""

import re

import duckdb
import numpy as np
import pandas as pd
import pytest

from memscope.base.errors import InputError
from memscope.query.bank_table import (
    FIELDS,
    SORTS,
    STATES,
    entry_numbers,
    entry_rows,
    predicates,
    search_entries,
    select_entries,
    words_of,
)
from memscope.query.recording import Recording
from memscope.stats.usage import HOT_FACTOR

EVERYTHING = np.arange(64)


def holds(recording: Recording, field: str, words: list[str]) -> list[int]:
    """Entries that hold every word, by a loop."""
    query = "SELECT * FROM bank LEFT JOIN titles USING (entry) JOIN decodings USING (entry) ORDER BY entry"
    texts = recording.tokenizer.token_texts
    found = []
    for row in recording.sql(query).itertuples():
        texts_of = {name: [getattr(row, name)] for name in ("sentence", "title", "words")}
        parts = {name: [text for text in found_in if isinstance(text, str)] for name, found_in in texts_of.items()}
        parts["title"] = re.findall("“(.*?)”", " ".join(parts["title"]))  # tokens, without numbers and words around
        for name in ("subject", "predicate", "object"):
            parts[name] = list(getattr(row, name)) if isinstance(getattr(row, name), np.ndarray) else []
        parts["everything"] = [text for values in parts.values() for text in values]
        parts["fires on"] = parts["title"] + parts["words"]
        parts["decoded tokens"] = [texts[token] for token in row.nearest]
        if all(any(word in text.lower() for text in parts[field]) for word in words):
            found.append(int(row.entry))
    return found


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("search", ["ada", "born", "%", "Born ada", "in born"])
def test_searches_find_what_a_loop_finds(field: str, search: str, tiny_recording: Recording) -> None:
    found = search_entries(tiny_recording, search, field)
    assert found.dtype == np.int64
    assert found.tolist() == holds(tiny_recording, field, search.lower().split())


def test_some_searches_find_some_entries(tiny_recording: Recording) -> None:
    # else the loops above would agree on nothing
    for search, field in (("born", "everything"), ("born", "sentence"), ("place", "predicate"), ("aston", "object")):
        assert len(search_entries(tiny_recording, search, field))


def test_a_number_finds_its_entry_and_nothing_finds_all(tiny_recording: Recording) -> None:
    assert 7 in search_entries(tiny_recording, "7", "subject")
    assert 64 not in search_entries(tiny_recording, "64")
    assert search_entries(tiny_recording, "  ").tolist() == EVERYTHING.tolist()
    assert search_entries(tiny_recording, "9" * 30).size == 0


@pytest.mark.parametrize("state", STATES)
def test_entries_of_every_state_are_shown(state: str, tiny_recording: Recording) -> None:
    numbers = entry_numbers(tiny_recording)
    usage = tiny_recording.usage()
    assert numbers["count"].tolist() == usage.sum(0).tolist()
    used = usage.sum(0) > 0
    top = np.array(tiny_recording.info.layers)[usage.argmax(0)]
    assert (numbers["top_layer"].to_numpy()[used] == top[used]).mean() > 0.9  # ties may go to another layer
    chosen = select_entries(tiny_recording, numbers, EVERYTHING, state, "count", True)
    count = numbers["count"].to_numpy()
    hot = count > HOT_FACTOR * count.sum() / 64
    expected = {"all": EVERYTHING, "used": np.flatnonzero(used), "never selected": np.flatnonzero(~used)}
    assert sorted(chosen.tolist()) == expected.get(state, np.flatnonzero(hot)).tolist()
    assert count[chosen].tolist() == sorted(count[chosen].tolist(), reverse=True)


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("descending", [True, False])
def test_entries_are_sorted_with_missing_values_last(sort: str, descending: bool, tiny_recording: Recording) -> None:
    numbers = entry_numbers(tiny_recording)
    numbers.loc[3, "kept"] = np.nan
    order = select_entries(tiny_recording, numbers, EVERYTHING, "all", sort, descending)
    values = numbers[sort].to_numpy(np.float64)[order]
    known = values[~np.isnan(values)]
    assert known.tolist() == sorted(known, reverse=descending)
    assert np.isnan(values[len(known) :]).all() and sorted(order.tolist()) == EVERYTHING.tolist()


def test_an_unknown_column_is_refused(tiny_recording: Recording) -> None:
    with pytest.raises(InputError, match="cannot sort by 'entry; DROP'"):
        select_entries(tiny_recording, entry_numbers(tiny_recording), EVERYTHING, "all", "entry; DROP", True)


def test_rows_stand_in_the_order_asked_with_the_words_of_their_entries(tiny_recording: Recording) -> None:
    asked = [9, 2, 40]
    rows = entry_rows(tiny_recording, entry_numbers(tiny_recording), asked)
    cards = list(tiny_recording.cards(asked))
    assert rows["entry"].tolist() == asked
    assert rows["sentence"].tolist() == [card.sentence for card in cards]
    assert rows["drift"].tolist() == pytest.approx([card.drift for card in cards])
    assert [text.split()[0] for text in rows["decoded"]] == [card.nearest["token"][0].strip() for card in cards]
    for card, said in zip(cards, rows["predicate"], strict=True):
        assert set(said.split(", ")) == set(card.triples["predicate"])


def test_words_mark_the_nearest_tokens_that_stand_in_the_sentence(tiny_recording: Recording) -> None:
    words = words_of(tiny_recording, [2, 2, 9])
    assert set(words) == {2, 9}
    for entry, said in words.items():
        card = tiny_recording.entry(entry)
        assert said.text == card.sentence
        assert said.decoded == list(zip(card.nearest["token"], card.nearest["in_sentence"], strict=True))


def test_predicates_are_numbered_by_frequency(tiny_recording: Recording) -> None:
    first = tiny_recording.sql("SELECT predicate[1] AS name FROM bank ORDER BY entry")["name"]
    codes, names = predicates(tiny_recording, most=1)
    assert names == [first.value_counts().index[0]]
    assert (codes == 0).tolist() == (first == names[0]).tolist()
    assert (codes == 1).tolist() == (first.notna() & (first != names[0])).tolist()
    assert (codes == 2).tolist() == first.isna().tolist()


def test_of_layers_that_select_an_entry_as_often_the_first_counts(tiny_recording: Recording) -> None:
    usage = tiny_recording.usage()
    assert ((usage == usage.max(0)).sum(0) > 1)[usage.max(0) > 0].any()  # there are such entries
    numbers = entry_numbers(tiny_recording)
    first = np.array(tiny_recording.info.layers)[usage.argmax(0)]
    assert numbers["top_layer"].tolist() == np.where(usage.any(0), first, -1)[numbers["entry"]].tolist()
    tables = {
        name: tiny_recording.sql(f"SELECT * FROM {name} ORDER BY layer DESC") for name in ("usage", "readability")
    }
    tables["decodings"] = tiny_recording.sql("SELECT entry, drift, kept FROM decodings")

    class Reordered(Recording):
        """The recording with the rows of its tables in another order, which DuckDB may read them in."""

        def sql(self, query: str, *values: object) -> pd.DataFrame:
            with duckdb.connect() as connection:
                for name, table in tables.items():
                    connection.register(name, table)
                return connection.execute(query).df()

    other = entry_numbers(Reordered(tiny_recording.path))
    pd.testing.assert_frame_equal(other[["entry", "top_layer"]], numbers[["entry", "top_layer"]])
    pd.testing.assert_series_equal(other["readability"], numbers["readability"])


def test_readability_is_that_of_the_layer_that_selects_an_entry_most(tiny_recording: Recording) -> None:
    rows = tiny_recording.sql("SELECT * FROM readability")
    numbers = entry_numbers(tiny_recording).set_index("entry")["readability"]
    assert numbers.notna().sum() == rows["entry"].nunique() > 0
    for entry, own in rows.groupby("entry"):
        assert numbers[entry] == own.loc[own["tokens"].idxmax(), "readability"]
    best = tiny_recording.entries(sort="readability", limit=1)["readability"].iloc[0]
    assert best == numbers.max()
