"""Questions of the app that ``memscope.query`` does not answer yet: each takes a recording and returns tables.

They hold no state and no streamlit, so that they can move there as they are.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.errors import InputError
from memscope.query import Recording
from memscope.store import ROW_GROUP, read_rows
from memscope.token_table import Trace
from memscope.usage import HOT_FACTOR, UNREAD_SHARE

SORTS = ("count", "read_sum", "read_per_selection", "gate_sum", "drift", "kept", "layers_used", "entry")
"""Columns that the table of entries sorts by."""
FIELDS = ("everything", "sentence", "subject", "predicate", "object", "decoded tokens", "title")
STATES = ("all", "used", "never selected", "hot")
_TEXT = {
    "everything": "concat_ws(' ', sentence, title, array_to_string(subject, ' '), array_to_string(predicate, ' '), "
    "array_to_string(object, ' '))",
    "sentence": "sentence",
    "subject": "array_to_string(subject, ' | ')",
    "predicate": "array_to_string(predicate, ' | ')",
    "object": "array_to_string(object, ' | ')",
    "title": "title",
}


def entry_numbers(recording: Recording) -> pd.DataFrame:
    """Numbers of every entry, one row each in the order of entries.

    Columns ``entry count gate_sum read_sum layers_used top_layer drift kept read_per_selection``; sums are over
    layers, ``top_layer`` is the layer that selects it most (-1 for none).
    """
    frame = recording.sql(
        """SELECT d.entry, coalesce(count, 0)::BIGINT AS count, coalesce(gate_sum, 0) AS gate_sum,
                  coalesce(read_sum, 0) AS read_sum, coalesce(layers_used, 0)::TINYINT AS layers_used,
                  coalesce(top_layer, -1)::SMALLINT AS top_layer, drift, kept,
                  coalesce(read_sum / count, 0) AS read_per_selection
           FROM (SELECT entry, drift, kept FROM decodings) d LEFT JOIN (
               SELECT entry, sum(count) AS count, sum(gate_sum) AS gate_sum, sum(read_sum) AS read_sum,
                      count(*) AS layers_used, arg_max(layer, count) AS top_layer FROM usage GROUP BY entry) u
           USING (entry) ORDER BY d.entry"""
    )
    return frame


def search_entries(recording: Recording, search: str, field: str = "everything") -> np.ndarray:
    """Entries that hold all words of a search, rising, int64; a number alone also finds the entry of that number.

    Args:
        recording: where to look.
        search: words; each must occur, as part of a word, in any case.
        field: one of ``FIELDS``; ``decoded tokens`` looks at the tokens that entries decode to now.
    """
    parts = search.split()
    if not parts:
        return np.arange(recording.info.knowledge_num)
    if field == "decoded tokens":
        found = _decoded_to(recording, parts)
    else:
        text = _TEXT[field]
        condition = " AND ".join([f"contains(lower({text}), ?)"] * len(parts))
        source = (
            "bank" if field in ("sentence", "subject", "predicate", "object") else "bank LEFT JOIN titles USING (entry)"
        )
        frame = recording.sql(f"SELECT entry FROM {source} WHERE {condition}", [part.lower() for part in parts])
        found = frame["entry"].to_numpy().astype(np.int64)
    if len(parts) == 1 and parts[0].isdecimal() and len(parts[0]) < 18 and int(parts[0]) < recording.info.knowledge_num:
        found = np.append(found, int(parts[0]))
    return np.unique(found)


def _decoded_to(recording: Recording, parts: list[str]) -> np.ndarray:
    lowered = [text.lower() for text in recording.tokenizer.token_texts]
    found: np.ndarray | None = None
    for part in parts:
        ids = [number for number, text in enumerate(lowered) if part.lower() in text]
        frame = recording.sql("SELECT entry FROM decodings WHERE list_has_any(nearest, ?::UINTEGER[])", [ids])
        entries = frame["entry"].to_numpy().astype(np.int64)
        found = entries if found is None else np.intersect1d(found, entries)
    assert found is not None
    return found


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
        info = recording.info
        rows = rows[count > HOT_FACTOR * info.rows * info.selected * len(info.layers) / info.knowledge_num]
    values = rows[sort].to_numpy(dtype=np.float64)
    order = np.argsort(np.nan_to_num(-values if descending else values, nan=np.inf), kind="stable")
    return rows["entry"].to_numpy(dtype=np.int64)[order]


def entry_rows(recording: Recording, numbers: pd.DataFrame, entries: Iterable[int]) -> pd.DataFrame:
    """Rows of the table of entries, in the order given: the numbers with ``title sentence predicate decoded``."""
    asked = [int(entry) for entry in entries]
    texts = recording.sql(
        """SELECT entry, title, sentence, array_to_string(list_distinct(predicate), ', ') AS predicate
           FROM bank LEFT JOIN titles USING (entry) WHERE entry IN (SELECT unnest(?))""",
        [asked],
    ).set_index("entry")
    rows = numbers.iloc[asked].set_index("entry").join(texts).loc[asked].reset_index()
    nearest = decoded(recording, asked)
    return rows.assign(decoded=[" ".join(text.strip() for text, _ in nearest[entry][:6]) for entry in asked])


class Words(NamedTuple):
    """The words of an entry."""

    sentence: list[str]
    """Tokens of the init sentence; empty when it started random."""
    decoded: list[tuple[str, bool]]
    """Nearest tokens now, with whether each stands in the sentence."""
    title: str | None
    text: str | None
    """The init sentence."""


def words_of(recording: Recording, entries: Iterable[int]) -> dict[int, Words]:
    """Sentence tokens and nearest tokens of entries."""
    asked = sorted({int(entry) for entry in entries})
    frame = recording.sql(
        """SELECT bank.entry, token_ids, nearest, title, sentence
           FROM bank JOIN decodings USING (entry) LEFT JOIN titles USING (entry)
           WHERE bank.entry IN (SELECT unnest(?))""",
        [asked],
    )
    texts = recording.tokenizer.token_texts
    found = {}
    for row in frame.itertuples():
        ids = row.token_ids.tolist() if isinstance(row.token_ids, np.ndarray) else []
        own = set(ids)
        found[int(row.entry)] = Words(
            [texts[i] for i in ids],
            [(texts[i], i in own) for i in row.nearest.tolist()],
            row.title if isinstance(row.title, str) else None,
            row.sentence if isinstance(row.sentence, str) else None,
        )
    return found


def decoded(recording: Recording, entries: Iterable[int]) -> dict[int, list[tuple[str, bool]]]:
    """Nearest tokens of entries, with whether each stands in the init sentence."""
    return {entry: words.decoded for entry, words in words_of(recording, entries).items()}


def grid(trace: Trace, layers: tuple[int, ...], measure: str, drift: np.ndarray, entry: int | None) -> np.ndarray:
    """A measure of every layer and position, ``[layer, token]``; NaN where there is none.

    Args:
        trace: what happened on a text.
        layers: memory layers, rows of the result.
        measure: ``gate entropy`` (nats), ``top gate score``, ``top gate share``, ``effective entries`` (exp of the
            entropy of read shares), ``drift of the read entry`` (most read), or ``one entry`` (its gate score).
        drift: of every entry.
        entry: whose gate score ``one entry`` shows.
    """
    n, n_layers = len(trace.tokens), len(layers)
    shape = (n, n_layers, -1)  # make_trace's rows run by token, layer and read weight
    entries = trace.selections["entry"].to_numpy().reshape(shape)
    gate = trace.selections["gate"].to_numpy(np.float64).reshape(shape)
    read = np.abs(trace.selections["read"].to_numpy(np.float64)).reshape(shape)
    if measure == "one entry":
        fires = np.where(entries == entry, gate, np.nan)
        values = np.nanmax(np.where(np.isnan(fires), -np.inf, fires), axis=-1)
        return np.where(np.isinf(values), np.nan, values).T
    if measure == "drift of the read entry":
        return np.where(read[..., 0] > 0, drift[entries[..., 0]], np.nan).T
    if measure == "top gate score":
        return gate.max(-1).T
    weights = read if measure == "effective entries" else gate
    total = weights.sum(-1, keepdims=True)
    share = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    if measure == "top gate share":
        return share.max(-1).T
    entropy = -(share * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(-1)
    return (np.exp(entropy) if measure == "effective entries" else entropy).T


def predicates(recording: Recording, most: int = 8) -> tuple[np.ndarray, list[str]]:
    """The first relation of every entry as a number into the most frequent ones: int8 ``[N]``, and their names.

    Entries with another relation get the number ``len(names)``, those without one ``len(names)`` + 1.
    """
    frame = recording.sql(
        "SELECT entry, coalesce(nullif(predicate[1], ''), NULL) AS predicate FROM bank ORDER BY entry"
    )
    names = frame["predicate"].value_counts().head(most).index.tolist()
    codes = pd.Categorical(frame["predicate"], categories=names).codes.astype(np.int8)
    other = (codes < 0) & frame["predicate"].notna().to_numpy()
    codes[(codes < 0) & ~other] = len(names) + 1
    codes[other] = len(names)
    return codes, names


class ReadSample(NamedTuple):
    """Gate and read of some tokens in one layer."""

    tokens: int
    entries: np.ndarray
    """Selected entries, ``[token, K]``."""
    gate: np.ndarray
    """Gate shares: gate scores over their token's sum."""
    read: np.ndarray
    """Read shares."""


def read_sample(recording: Recording, layer: int, groups: int = 4) -> ReadSample:
    """Gate and read shares of some row groups, spread evenly through the recording."""
    info = recording.info
    axis = info.layers.index(layer)
    starts = np.unique(np.linspace(0, max(0, info.rows - ROW_GROUP), groups).astype(int) // ROW_GROUP * ROW_GROUP)
    rows = [read_rows(recording.path, info, int(start), ROW_GROUP) for start in starts]
    gate, read = (
        np.concatenate([np.abs(getattr(part, name)[:, axis].astype(np.float32)) for part in rows])
        for name in ("gate", "read")
    )
    shares = [values / np.maximum(values.sum(-1, keepdims=True), 1e-30) for values in (gate, read)]
    return ReadSample(len(gate), np.concatenate([part.indices[:, axis] for part in rows]), *shares)


def unread_entries(recording: Recording, sample: ReadSample, limit: int = 50) -> pd.DataFrame:
    """Entries with most unread selections in a sample: ``entry selections unread unread_share sentence``."""
    unread = sample.read < UNREAD_SHARE
    selected = np.bincount(sample.entries.ravel(), minlength=recording.info.knowledge_num)
    missed = np.bincount(sample.entries[unread], minlength=recording.info.knowledge_num)
    top = np.argsort(-missed, kind="stable")[:limit]
    top = top[missed[top] > 0]
    sentences = recording.sentences(top.tolist())
    return pd.DataFrame(
        {
            "entry": top,
            "selections": selected[top],
            "unread": missed[top],
            "unread_share": missed[top] / np.maximum(1, selected[top]),
            "sentence": [sentences[int(entry)] for entry in top],
        }
    )


def head_shares(recording: Recording, layer: int, groups: int = 4, bins: int = 50) -> np.ndarray | None:
    """Histogram of read shares per read head, ``[head, bin]`` over [0, 1]; none if heads were not recorded."""
    info = recording.info
    if not info.head_weights:
        return None
    axis = info.layers.index(layer)
    starts = np.unique(np.linspace(0, max(0, info.rows - ROW_GROUP), groups).astype(int) // ROW_GROUP * ROW_GROUP)
    histogram = np.zeros((info.read_heads, bins), np.int64)
    for start in starts:
        rows = read_rows(recording.path, info, int(start), ROW_GROUP)
        assert rows.head_read is not None
        read = np.abs(rows.head_read[:, axis].astype(np.float32)).reshape(len(rows.doc), info.read_heads, -1)
        share = read / np.maximum(read.sum(-1, keepdims=True), 1e-30)
        number = np.minimum((share * bins).astype(int), bins - 1)
        for head in range(info.read_heads):
            histogram[head] += np.bincount(number[:, head].ravel(), minlength=bins)
    return histogram


def predicted(recording: Recording, doc: int, pos: int) -> str:
    """The next token that the recorded model found most likely after a recorded token."""
    rows = read_rows(recording.path, recording.info, int(recording.documents["first_row"][doc]) + pos, 1)
    return recording.tokenizer.token_texts[int(rows.predicted[0])]
