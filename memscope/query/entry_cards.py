"""Cards, contexts and firing of single entries. ``Recording`` answers through these functions; no torch.

Files of a recording are sorted by entry within a layer, so each question opens the few row groups that hold it.
"""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from memscope.base.errors import InputError
from memscope.base.parquet import matrix
from memscope.base.printable import one_line
from memscope.base.words import first_upper, visible
from memscope.notebook import markup
from memscope.query.needs import known_columns
from memscope.query.tables import RecordingTables
from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import read_columns
from memscope.recording.sites import is_private
from memscope.recording.token_table import text_around

_CHUNK = 1024
_NEAREST = 8
"""Nearest tokens that a notebook shows."""
FIRES_ON = "array_to_string(regexp_extract_all(title, '“(.*?)”', 1), ' '), words"
"""SQL of what a search looks at in a headline: its tokens, not the numbers and words around them."""
_KINDS = ("input", "previous", "predicted", "next")


class EntryCard(NamedTuple):
    """Everything known of one entry."""

    entry: int
    title: str | None
    """The tokens it fires on most often, in the layer where it fires most (``census/firing/fires_on.py``); none for an
    entry never selected."""
    words: str | None
    """Words that set it apart, by TF-IDF; none where it fires in no word more than once."""
    sentence: str | None
    """Init sentence; none when the entry started random."""
    triples: pd.DataFrame
    """``subject predicate object uuid``."""
    drift: float | None
    """1 - cosine to its start; none where no start is known."""
    kept: float | None
    kept_at_init: float | None
    slot_drift: list[float]
    """Drift of every slot."""
    nearest: pd.DataFrame
    """``token cosine in_sentence``, nearest first; one row per slot when entries have several."""
    lens: pd.DataFrame
    """``layer top bottom``: tokens the entry raises and lowers when read in a layer."""
    usage: pd.DataFrame
    """``layer count gate_sum read_sum read_signed_sum share`` for every memory layer; share of its selections."""
    label: str
    """What it is called: "entry 70", or "layer 1, expert 6"."""

    def __repr__(self) -> str:
        said = self.sentence or self.title or "no text of its own"
        return f"EntryCard({self.label}: {one_line(said)[:60]!r}, {int(self.usage['count'].sum()):,} selections)"

    def _repr_html_(self) -> str:
        used = self.usage[self.usage["count"] > 0]
        shares = used["share"].map("{:.2%}".format)
        usage = zip(used["layer"].tolist(), used["count"].tolist(), shares, strict=True)
        nearest = [f"{row.token} {row.cosine:.2f}" for row in self.nearest.head(_NEAREST).itertuples()]
        said = {
            "started as": self.sentence,
            "fires on": self.title,
            "words": self.words,
            "drift": None if self.drift is None else f"{self.drift:.3f}",
            "nearest tokens": ", ".join(map(visible, nearest)),
        }
        tables = [markup.table(["layer", "selections", "share"], usage)]
        if len(self.lens):
            tables.append(markup.table(["layer", "makes likely", "makes unlikely"], self.lens.to_numpy().tolist()))
        return markup.card(first_upper(self.label), markup.facts(said), *tables)


def cards(recording: RecordingTables, entries: Iterable[int]) -> Iterator[EntryCard]:
    """Cards of entries, in the order asked."""
    asked = [_known(recording, entry) for entry in entries]
    for start in range(0, len(asked), _CHUNK):
        chunk = asked[start : start + _CHUNK]
        bank, decodings, titles = (
            recording.rows_of(name, chunk).set_index("entry") for name in ("bank", "decodings", "titles")
        )
        sums = ["gate_sum", "read_sum", "read_signed_sum"]
        usage = recording.rows_of("usage", chunk, ["entry", "layer", "count", *sums])
        usages = dict(list(usage.groupby("entry")))
        for entry in chunk:
            fires_on = titles["title"].get(entry), titles["words"].get(entry)
            yield _card(
                recording, entry, fires_on, bank.loc[entry], decodings.loc[entry], usages.get(entry, usage.iloc[:0])
            )


def contexts(recording: RecordingTables, entries: Iterable[int], before: int, after: int) -> pd.DataFrame:
    """Contexts of entries with the text around them."""
    found = recording.rows_of("contexts", entries)
    found = found.astype({"kind": str, "gate": np.float32, "read": np.float32})  # pandas cannot group float16
    found = found.sort_values(["entry", "kind", "gate", "row"], ascending=[True, False, False, True])
    found = found[["entry", "layer", "kind", "rank", "row", "gate", "read"]].reset_index(drop=True)
    around = _around(recording, found["row"].tolist(), before, after)
    return pd.concat([known_columns(recording.info, found), around], axis=1)


def most_read(recording: RecordingTables, entry: int, layers: Iterable[int], limit: int) -> pd.DataFrame:
    """Selections of an entry with the largest read weights, with the text around them; looks at all selections."""
    info, found = recording.info, []
    for layer in layers:
        names = [f"l{layer}_{name}" for name in ("indices", "gate", "read")]
        for part, first in zip(info.parts, info.first_rows(), strict=True):
            table = read_columns(recording.path, info, part, names)
            indices, gate, read = (matrix(table[name]) for name in names)
            row, k = np.nonzero(indices == entry)
            best = np.argsort(-np.abs(read[row, k]), kind="stable")[:limit]
            row, k = row[best], k[best]
            values = {"row": first + row, "gate": gate[row, k], "read": read[row, k]}
            found.append(pd.DataFrame({"entry": entry, "layer": layer, **values}))
    empty = pd.DataFrame(columns=["entry", "layer", "row", "gate", "read"])
    table = pd.concat(found, ignore_index=True) if found else empty
    table = table.astype({"gate": np.float32, "read": np.float32})
    table = table.sort_values("read", key=np.abs, ascending=False, kind="stable").head(limit).reset_index(drop=True)
    return pd.concat([table, _around(recording, table["row"].tolist(), 24, 12)], axis=1)


def lens(recording: RecordingTables, entries: Iterable[int]) -> pd.DataFrame:
    """The logit lens of entries, one row a token: ``entry layer end rank token logit``."""
    found: list[dict[str, Any]] = []
    for decoding in recording.rows_of("decodings", [_known(recording, entry) for entry in entries]).to_dict("records"):
        for layer, end in product(recording.info.layers, ("top", "bottom")):
            tokens, logits = (_list(decoding.get(f"l{layer}_{end}{more}")) for more in ("", "_logits"))
            texts = _texts(recording, tokens)
            found += [
                {"entry": decoding["entry"], "layer": layer, "end": end, "rank": rank, "token": text, "logit": logit}
                for rank, (text, logit) in enumerate(zip(texts, logits, strict=True))
            ]
    return pd.DataFrame(found, columns=["entry", "layer", "end", "rank", "token", "logit"])


def firing(recording: RecordingTables, entries: Iterable[int]) -> pd.DataFrame:
    """The tokens that entries fire on, as texts."""
    found = recording.rows_of("firing", entries).sort_values(["entry", "layer"], ignore_index=True)
    for kind in _KINDS:
        real = [tokens >= 0 for tokens in found[f"{kind}_token"]]  # -1 fills up
        tokens = found.pop(f"{kind}_token")
        found[f"{kind}_tokens"] = [_texts(recording, t[ok]) for t, ok in zip(tokens, real, strict=True)]
        for name in (f"{kind}_lift", f"{kind}_count"):
            found[name] = [values[ok].tolist() for values, ok in zip(found[name], real, strict=True)]
    return found


def neighbours(recording: RecordingTables, entries: Iterable[int]) -> pd.DataFrame:
    """Entries that are selected together with some entries, with sentence and title."""
    found = recording.rows_of("neighbours", entries).sort_values(["entry", "layer", "rank"], ignore_index=True)
    others = found["other"].unique().tolist()
    for view, column in (("bank", "sentence"), ("titles", "title")):
        texts = recording.rows_of(view, others, ["entry", column]).set_index("entry")[column]
        found[column] = found["other"].map(texts)
    columns = ["entry", "layer", "rank", "other", "together", "npmi", "sentence", "title"]
    return known_columns(recording.info, found[columns])


def numbered(info: RecordingInfo, number: int) -> list[int]:
    """Entries of a number: a bank that is private to a layer counts its own from 0, all others count through."""
    found = set()
    for site, *_ in info.banks:
        entry = number + (site.first_entry if is_private(info.sites, site) else 0)
        found |= {entry} if site.own.start <= entry < site.own.stop else set()
    return sorted(found)


def search_condition(search: str, info: RecordingInfo) -> tuple[str, list[Any]]:
    """SQL condition on a column ``entry``, and its values; every word must occur."""
    words = search.split()
    if not words:
        return "TRUE", []
    parts = [f"array_to_string({column}, ' ')" for column in ("subject", "predicate", "object")]
    text = f"concat_ws(' ', sentence, {FIRES_ON}, {', '.join(parts)})"
    found = " AND ".join([f"{text} ILIKE ? ESCAPE '\\'"] * len(words))
    condition = f"entry IN (SELECT bank.entry FROM bank LEFT JOIN titles USING (entry) WHERE {found})"
    values: list[Any] = [f"%{_escape_like(word)}%" for word in words]
    if len(words) == 1 and words[0].isdecimal() and len(words[0]) < 18:  # fits the column's type
        return f"(entry IN (SELECT unnest(?)) OR {condition})", [numbered(info, int(words[0])), *values]
    return condition, values


def _escape_like(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _card(
    recording: RecordingTables,
    entry: int,
    fires_on: tuple[Any, Any],
    bank: pd.Series,
    decoding: pd.Series,
    usage: pd.DataFrame,
) -> EntryCard:
    info = recording.info
    usage = usage.drop(columns="entry").set_index("layer").reindex(list(info.layers), fill_value=0).reset_index()
    usage["share"] = usage["count"] / usage["layer"].map(recording.total_selections).clip(lower=1)
    has_sentence = isinstance(bank["sentence"], str)
    own = set(bank["token_ids"].tolist()) if has_sentence else set()
    nearest, cosine, slot_drift = (_list(decoding[name]) for name in ("nearest", "nearest_cosine", "slot_drift"))
    lens = [
        {"layer": layer, **{end: _texts(recording, decoding[f"l{layer}_{end}"]) for end in ("top", "bottom")}}
        for layer in info.layers
        if isinstance(decoding.get(f"l{layer}_top"), np.ndarray)  # null where the layer never selected the entry
    ]
    return EntryCard(
        entry=entry,
        title=fires_on[0] if isinstance(fires_on[0], str) else None,
        words=fires_on[1] if isinstance(fires_on[1], str) else None,
        sentence=bank["sentence"] if has_sentence else None,
        triples=pd.DataFrame(
            {key: bank[key] if has_sentence else [] for key in ("subject", "predicate", "object", "uuid")}
        ),
        drift=_optional(decoding["drift"]),
        kept=_optional(decoding["kept"]),
        kept_at_init=_optional(decoding["kept_at_init"]),
        slot_drift=slot_drift,
        nearest=pd.DataFrame(
            {
                "token": _texts(recording, nearest),
                "cosine": cosine,
                "in_sentence": [token in own for token in nearest],
            }
        ),
        lens=pd.DataFrame(lens, columns=["layer", "top", "bottom"]),
        usage=usage,
        label=info.label(entry),
    )


def _known(recording: RecordingTables, entry: int) -> int:
    if not 0 <= entry < recording.info.knowledge_num:
        raise InputError(f"entry {entry} does not exist; entries are 0 to {recording.info.knowledge_num - 1}")
    return int(entry)


def _around(recording: RecordingTables, rows: list[int], before: int, after: int) -> pd.DataFrame:
    """Document, position and surrounding text of rows; text before the window that the model saw is left out."""
    documents = recording.documents
    docs = np.searchsorted(documents["first_row"].to_numpy(), rows, side="right") - 1
    starts = documents["first_row"].to_numpy()[docs]
    window = recording.info.window
    seen = (starts + (np.asarray(rows, np.int64) - starts) // window * window).tolist()
    ends = (documents["first_row"] + documents["rows"]).to_numpy()[docs].tolist()
    ids, texts = recording.token_ids, []
    for row, start, first, end in zip(rows, starts.tolist(), seen, ends, strict=True):
        begin, stop = max(first, row - before), min(end, row + after + 1)
        preceding = ids[max(start, begin - 1) : begin].tolist()
        texts.append(text_around(recording.tokenizer, ids[begin:stop].tolist(), row - begin, preceding))
    place = pd.DataFrame({"doc": docs, "title": documents["title"].to_numpy()[docs]})
    place["pos"] = np.array(rows, np.int64) - starts
    return pd.concat([place, pd.DataFrame(texts, columns=["before", "token", "after"])], axis=1)


def _texts(recording: RecordingTables, ids: Iterable[Any]) -> list[str]:
    return [recording.tokenizer.token_texts[int(i)] for i in ids]


def _list(value: Any) -> list[Any]:
    """Values of a list column; none where the column is null."""
    return value.tolist() if isinstance(value, np.ndarray) else []


def _optional(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
