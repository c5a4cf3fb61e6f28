"""The whole bank as a table: numbers of every entry, searches, orders, pages of rows, and the words of entries.

    numbers = entry_numbers(recording)
    found = search_entries(recording, "river")
    order = select_entries(recording, numbers, found, "used", "drift", descending=True)
    entry_rows(recording, numbers, order[:50])

The numbers stay in memory (a million entries: 45 MB) and texts are asked for by the page, so that a bank of any size is
sorted and leafed through at once. No torch, no streamlit.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.base.errors import InputError
from memscope.query.entry_cards import FIRES_ON, numbered
from memscope.query.needs import is_known, known_columns, known_numbers
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.stats.usage import HOT_FACTOR

SORTS = ("count", "read_sum", "read_per_selection", "gate_sum", "drift", "kept", "readability", "layers_used", "entry")
"""Columns that the table of entries sorts by, as far as a recording has them (``known_sorts``)."""
FIELDS = ("everything", "sentence", "subject", "predicate", "object", "decoded tokens", "fires on")
"""Fields that a search looks in, as far as a recording has them (``known_fields``)."""
STATES = ("all", "used", "never selected", "hot")
"""States of entries; hot ones have more than ``HOT_FACTOR`` times the even share of selections."""
_LISTS = {name: f"array_to_string({name}, ' ')" for name in ("subject", "predicate", "object")}
_FIRES_ON = {"titles": f"concat_ws(' ', {FIRES_ON})"}
_TEXTS = {
    "everything": {"bank": f"concat_ws(' ', sentence, {', '.join(_LISTS.values())})", **_FIRES_ON},
    "sentence": {"bank": "sentence"},
    "fires on": _FIRES_ON,
    **{name: {"bank": text} for name, text in _LISTS.items()},
}
"""SQL of the text that a field searches, by view."""
_DECODED = 6
"""Nearest tokens in the table."""


def known_sorts(info: RecordingInfo) -> list[str]:
    """Those of ``SORTS`` that a recording has."""
    return [name for name in SORTS if is_known(info, name)]


def known_fields(info: RecordingInfo) -> list[str]:
    """Those of ``FIELDS`` that a recording has."""
    return [name for name in FIELDS if is_known(info, "decoded" if name == "decoded tokens" else name)]


def entry_numbers(recording: Recording) -> pd.DataFrame:
    """Numbers of every entry that a recording has, one row each in the order of entries.

    Columns ``entry count gate_sum read_sum layers_used top_layer drift kept read_per_selection signed_per_selection``
    (below 0: subtracted on the whole) and ``readability``, that of the layer in which most tokens select it; sums are
    over layers, ``top_layer`` is the layer that selects it most (-1 for none).
    """
    frame = recording.sql(
        """SELECT d.entry, coalesce(count, 0)::BIGINT AS count, if(count IS NULL, 0, gate_sum) AS gate_sum,
                  if(count IS NULL, 0, read_sum) AS read_sum, coalesce(layers_used, 0)::TINYINT AS layers_used,
                  coalesce(top_layer, -1)::SMALLINT AS top_layer, drift, kept,
                  if(count IS NULL, 0, read_sum / count) AS read_per_selection,
                  if(count IS NULL, 0, read_signed_sum / count) AS signed_per_selection, readability
           FROM (SELECT entry, drift, kept FROM decodings) d LEFT JOIN (
               SELECT entry, sum(count) AS count, sum(gate_sum) AS gate_sum, sum(read_sum) AS read_sum,
                      sum(read_signed_sum) AS read_signed_sum, count(*) AS layers_used,
                      arg_max(layer, row(count, -layer::INT)) AS top_layer FROM usage GROUP BY entry) u
           USING (entry) LEFT JOIN (
               SELECT entry, arg_max(readability, row(tokens, -layer)) AS readability FROM readability GROUP BY entry) r
           USING (entry) ORDER BY d.entry"""
    )
    return known_numbers(recording.info, frame)


def search_entries(recording: Recording, search: str, field: str = "everything") -> np.ndarray:
    """Entries that hold all words of a search, rising, int64; a number alone also finds entries of that number.

    Args:
        recording: where to look.
        search: words; each must occur, as part of a word, in any case.
        field: one of ``FIELDS``; ``decoded tokens`` looks at the tokens that entries decode to now.
    """
    words = search.lower().split()
    if not words:
        return np.arange(recording.info.knowledge_num)
    holds = _decoding_holds(recording, words) if field == "decoded tokens" else _text_holds(recording, words, field)
    found = np.flatnonzero(holds.all(0))
    if len(words) == 1 and words[0].isdecimal() and len(words[0]) < 18:
        found = np.union1d(found, np.array(numbered(recording.info, int(words[0])), np.int64))
    return found


def _text_holds(recording: Recording, words: list[str], field: str) -> np.ndarray:
    """Whether each word stands in each entry's text, ``[word, N]``; one scan of the field, whatever the words."""
    holds = np.zeros((len(words), recording.info.knowledge_num), bool)
    flags = [f"contains(text, ${number + 1})" for number in range(len(words))]
    for view, text in _TEXTS[field].items():
        frame = recording.sql(
            f"""SELECT entry, {", ".join(flags)} FROM (SELECT entry, lower({text}) AS text FROM {view})
                WHERE {" OR ".join(flags)}""",
            words,
        )
        holds[:, frame["entry"].to_numpy()] |= frame.iloc[:, 1:].to_numpy(bool).T
    return holds


def _decoding_holds(recording: Recording, words: list[str]) -> np.ndarray:
    """Whether each word stands in one of each entry's nearest tokens, ``[word, N]``."""
    holds = np.zeros((len(words), recording.info.knowledge_num), bool)
    tokens = [text.lower() for text in recording.tokenizer.token_texts]
    for row, word in zip(holds, words, strict=True):
        ids = [number for number, text in enumerate(tokens) if word in text]
        frame = recording.sql("SELECT entry FROM decodings WHERE list_has_any(nearest, ?::UINTEGER[])", [ids])
        row[frame["entry"].to_numpy()] = True
    return holds


def select_entries(
    recording: Recording, numbers: pd.DataFrame, found: np.ndarray, state: str, sort: str, descending: bool
) -> np.ndarray:
    """Entries in the order of a table: those found and in a state, sorted.

    Args:
        recording: whose entries.
        numbers: ``entry_numbers``.
        found: ``search_entries``.
        state: one of ``STATES``.
        sort: one of ``SORTS``.
        descending: largest first; ties by number, missing values last.
    """
    if sort not in SORTS or state not in STATES:
        raise InputError(f"cannot sort by '{sort}' or show '{state}'")
    rows = numbers.iloc[found] if len(found) < len(numbers) else numbers
    count = rows["count"].to_numpy()
    if state == "used":
        rows = rows[count > 0]
    elif state == "never selected":
        rows = rows[count == 0]
    elif state == "hot":
        rows = rows[count > HOT_FACTOR * recording.total_selections() / recording.info.knowledge_num]
    values = rows[sort].to_numpy(dtype=np.float64)
    order = np.argsort(np.nan_to_num(-values if descending else values, nan=np.inf), kind="stable")
    return rows["entry"].to_numpy(dtype=np.int64)[order]


def entry_rows(recording: Recording, numbers: pd.DataFrame, entries: Iterable[int]) -> pd.DataFrame:
    """Rows of the table of entries, in the order given: the numbers with ``title words sentence predicate decoded``."""
    asked = [int(entry) for entry in entries]
    words = words_of(recording, asked)
    texts = [words[entry] for entry in asked]
    rows = (
        numbers.iloc[asked]
        .reset_index(drop=True)
        .assign(
            title=[one.title for one in texts],
            words=[one.words for one in texts],
            sentence=[one.text for one in texts],
            predicate=[", ".join(one.predicates) or None for one in texts],
            decoded=[" ".join(token.strip() for token, _ in one.decoded[:_DECODED]) for one in texts],
        )
    )
    return known_columns(recording.info, rows)


class Words(NamedTuple):
    """The words of an entry."""

    sentence: list[str]
    """Tokens of the init sentence; empty when it started random."""
    decoded: list[tuple[str, bool]]
    """Nearest tokens now, nearest first, with whether each stands in the sentence; empty where no start is known."""
    title: str | None
    """The tokens it fires on most often, with their shares; none for an entry never selected."""
    words: str | None
    """Words that set it apart, by TF-IDF."""
    text: str | None
    """The init sentence."""
    predicates: list[str]
    """Relations of the triples that came with the sentence, each once."""


def words_of(recording: Recording, entries: Iterable[int]) -> dict[int, Words]:
    """Sentence tokens, nearest tokens, and what entries fire on."""
    frame = recording.sql(
        """SELECT bank.entry, token_ids, nearest, title, words, sentence, list_distinct(predicate) AS predicates
           FROM bank JOIN decodings USING (entry) LEFT JOIN titles USING (entry)
           WHERE bank.entry IN (SELECT unnest(?))""",
        [sorted({int(entry) for entry in entries})],
    )
    texts = recording.tokenizer.token_texts
    found = {}
    for row in frame.itertuples():
        ids, relations, nearest = (
            values.tolist() if isinstance(values, np.ndarray) else []
            for values in (row.token_ids, row.predicates, row.nearest)
        )
        own = set(ids)
        found[int(row.entry)] = Words(
            [texts[i] for i in ids],
            [(texts[i], i in own) for i in nearest],
            row.title if isinstance(row.title, str) else None,
            row.words if isinstance(row.words, str) else None,
            row.sentence if isinstance(row.sentence, str) else None,
            [name for name in relations if name],
        )
    return found


def predicates(recording: Recording, most: int = 8) -> tuple[np.ndarray, list[str]]:
    """The first relation of every entry as a number into the most frequent ones: int8 ``[N]``, and their names.

    Entries with another relation get the number ``len(names)``, those without one ``len(names)`` + 1.
    """
    frame = recording.sql(
        "SELECT entry, coalesce(nullif(predicate[1], ''), NULL) AS predicate FROM bank ORDER BY entry"
    )
    names = frame["predicate"].value_counts().head(most).index.tolist()
    codes = frame["predicate"].map({name: code for code, name in enumerate(names)}).fillna(len(names))
    return codes.mask(frame["predicate"].isna(), len(names) + 1).to_numpy(np.int8), names
