"""Questions about a recording, answered as DataFrames from its Parquet files; no torch, no streamlit.

    recording = Recording(Path("recordings/demo"))
    recording.entries(search="philosopher", sort="count")
    recording.contexts(entry=4711)

The command line, the app and the report ask here and nowhere else.
"""

import glob
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pandas as pd

from memscope.errors import InputError
from memscope.files import read_json
from memscope.metrics_log import read_metrics
from memscope.store import RecordingInfo, read_info, read_parquet, read_rows
from memscope.token_table import Trace, make_trace
from memscope.tokenizer import Tokenizer

SORT_COLUMNS = ("entry", "count", "gate_sum", "read_sum", "drift", "kept", "layers_used")
_WEIGHTS = {"by_count": "count", "by_gate_score": "gate_sum", "by_read_weight": "read_sum"}
_TABLES = {"usage": "usage", "contexts": "contexts", "decodings": "decodings", "bank": "bank_init", "docs": "documents"}


class EntryCard(NamedTuple):
    """Everything known of one entry."""

    entry: int
    sentence: str | None
    """Init sentence; none when the entry started random."""
    triples: pd.DataFrame
    """``subject predicate object uuid``."""
    drift: float
    kept: float | None
    kept_at_init: float | None
    nearest: pd.DataFrame
    """``token cosine in_sentence``, nearest first; one row per slot when entries have several."""
    lens: pd.DataFrame
    """``layer top bottom``: tokens the entry raises and lowers when read in a layer."""
    usage: pd.DataFrame
    """``layer count gate_sum read_sum share`` for every memory layer; share of the layer's selections."""


class Recording:
    """A finished recording, read-only.

    Raises:
        InputError: not a recording, or one that is not finished.
    """

    def __init__(self, path: Path | str):
        self.path = path = Path(path)
        self.info: RecordingInfo = read_info(path)
        if not self.info.complete:
            raise InputError(
                f"{path}: this recording is unfinished ({self.info.rows:,} of {self.info.total_tokens:,} tokens); "
                "run the same 'memscope record' command again to complete it"
            )
        self._db = duckdb.connect()
        for view, file in _TABLES.items():
            source = path / f"{file}.parquet"
            if not source.is_file():
                raise InputError(f"{source}: missing; record again")
            quoted = glob.escape(str(source)).replace("'", "''")  # DuckDB reads [ and * in a path as a pattern
            self._run(self._db, f"CREATE VIEW {view} AS SELECT * FROM read_parquet('{quoted}')", [])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return Tokenizer.load(self.path / "tokenizer.json")

    @cached_property
    def census(self) -> dict[str, Any]:
        """``census.json``: metrics per layer and over all layers."""
        census: dict[str, Any] = read_json(self.path / "census.json")
        return census

    @cached_property
    def run_summary(self) -> dict[str, Any]:
        """``run.json`` of the run: parameters, losses, speed; empty if training had not finished."""
        path = self.path / "run.json"
        summary: dict[str, Any] = read_json(path) if path.is_file() else {}
        return summary

    def training_curve(self) -> pd.DataFrame:
        """Lines of the run's ``metrics.jsonl``: ``kind step`` and numbers."""
        return pd.DataFrame(read_metrics(self.path / "metrics.jsonl"))

    def layer_metrics(self, weighting: str = "by_count") -> pd.DataFrame:
        """Evenness of selection, one row per layer.

        Args:
            weighting: ``by_count``, ``by_gate_score`` or ``by_read_weight``.
        """
        return pd.DataFrame([{"layer": layer["layer"], **layer[weighting]} for layer in self.census["layers"]])

    def reading_metrics(self) -> pd.DataFrame:
        """How gate and attention weigh what was selected, one row per layer."""
        return pd.DataFrame([{"layer": layer["layer"], **layer["reading"]} for layer in self.census["layers"]])

    def usage(self, weighting: str = "by_count") -> np.ndarray:
        """Usage of every entry under a weighting of ``layer_metrics``, ``[layer, N]``: int64 counts or float64 sums.

        Layers stand in the order of ``info.layers``.
        """
        frame = self._sql(f"SELECT layer, entry, {_WEIGHTS[weighting]} AS weight FROM usage")
        axis = {layer: number for number, layer in enumerate(self.info.layers)}
        usage = np.zeros((len(self.info.layers), self.info.knowledge_num), frame["weight"].to_numpy().dtype)
        usage[frame["layer"].map(axis).to_numpy(), frame["entry"].to_numpy()] = frame["weight"].to_numpy()
        return usage

    def most_used(self, layer: int, weighting: str = "by_count", limit: int = 20) -> pd.DataFrame:
        """Entries with the largest share of a layer's usage: ``entry count gate_sum read_sum share sentence``."""
        weight = _WEIGHTS[weighting]
        return self._sql(
            f"""SELECT entry, count, gate_sum, read_sum, share, sentence
                FROM (SELECT *, {weight} / sum({weight}) OVER () AS share FROM usage WHERE layer = ?)
                JOIN bank USING (entry) ORDER BY {weight} DESC, entry LIMIT ?""",
            [layer, limit],
        )

    def usage_table(self) -> pd.DataFrame:
        """Selections of every entry in use: ``layer entry count gate_sum read_sum``."""
        return self._sql("SELECT * FROM usage ORDER BY layer, entry")

    def drift_summary(self) -> dict[str, float]:
        """Drift of used and unused entries, and the share of nearest tokens from the init sentence; NaN if none."""
        frame = self._sql(
            """SELECT median(drift) FILTER (used) AS median_used, quantile_cont(drift, 0.9) FILTER (used) AS p90_used,
                      median(drift) FILTER (NOT used) AS median_unused, avg(kept) FILTER (used) AS kept,
                      avg(kept_at_init) FILTER (used) AS kept_at_init
               FROM (SELECT *, entry IN (SELECT entry FROM usage) AS used FROM decodings)"""
        )
        return {name: float("nan") if pd.isna(value) else float(value) for name, value in frame.iloc[0].items()}

    def entries(
        self, search: str = "", sort: str = "count", descending: bool = True, limit: int = 50, offset: int = 0
    ) -> pd.DataFrame:
        """A page of the table of entries.

        Args:
            search: an entry number, or words that must all occur in sentence, subject, predicate or object.
            sort: one of ``SORT_COLUMNS``.
            descending: largest first.
            limit: rows of the page.
            offset: rows before it.

        Raises:
            InputError: an unknown sort column.
        """
        if sort not in SORT_COLUMNS:
            raise InputError(f"cannot sort by '{sort}'; known are {', '.join(SORT_COLUMNS)}")
        where, values = _search_condition(search)
        order = f"{sort} {'DESC' if descending else 'ASC'} NULLS LAST, entry"
        return self._sql(
            f"SELECT * FROM ({_ENTRY_TABLE}) WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?", [*values, limit, offset]
        )

    def count_entries(self, search: str = "") -> int:
        """Number of entries that a search finds."""
        where, values = _search_condition(search)
        return int(self._sql(f"SELECT count(*) AS n FROM ({_ENTRY_TABLE}) WHERE {where}", values)["n"][0])

    def sentences(self, entries: Iterable[int]) -> dict[int, str | None]:
        """Init sentences of some entries."""
        frame = self._sql("SELECT entry, sentence FROM bank WHERE entry IN (SELECT unnest(?))", [_unique(entries)])
        return {int(e): s if isinstance(s, str) else None for e, s in zip(frame.entry, frame.sentence, strict=True)}

    def entry(self, entry: int) -> EntryCard:
        """Everything known of one entry.

        Raises:
            InputError: no such entry.
        """
        if not 0 <= entry < self.info.knowledge_num:
            raise InputError(f"entry {entry} does not exist; entries are 0 to {self.info.knowledge_num - 1}")
        bank = self._sql("SELECT * FROM bank WHERE entry = ?", [entry]).iloc[0]
        decoding = self._sql("SELECT * FROM decodings WHERE entry = ?", [entry]).iloc[0]
        usage = self._sql("SELECT layer, count, gate_sum, read_sum FROM usage WHERE entry = ?", [entry])
        usage = usage.set_index("layer").reindex(list(self.info.layers), fill_value=0).reset_index()
        usage["share"] = usage["count"] / (self.info.rows * self.info.selected)
        has_sentence = isinstance(bank["sentence"], str)
        own = set(bank["token_ids"].tolist()) if has_sentence else set()
        nearest = decoding["nearest"].tolist()
        lens = [
            {"layer": layer, **{end: self._texts(decoding[f"l{layer}_{end}"]) for end in ("top", "bottom")}}
            for layer in self.info.layers
            if isinstance(decoding[f"l{layer}_top"], np.ndarray)  # null where the layer never selected the entry
        ]
        return EntryCard(
            entry=entry,
            sentence=bank["sentence"] if has_sentence else None,
            triples=pd.DataFrame(
                {key: bank[key] if has_sentence else [] for key in ("subject", "predicate", "object", "uuid")}
            ),
            drift=float(decoding["drift"]),
            kept=_optional(decoding["kept"]),
            kept_at_init=_optional(decoding["kept_at_init"]),
            nearest=pd.DataFrame(
                {
                    "token": self._texts(nearest),
                    "cosine": decoding["nearest_cosine"],
                    "in_sentence": [token in own for token in nearest],
                }
            ),
            lens=pd.DataFrame(lens, columns=["layer", "top", "bottom"]),
            usage=usage,
        )

    def contexts(self, entry: int, layer: int | None = None, before: int = 16, after: int = 8) -> pd.DataFrame:
        """Tokens on which an entry got its highest gate scores.

        Returns ``layer rank gate read doc title pos before token after``, by falling gate score; ``before`` and
        ``after`` are the text around the token inside its document.
        """
        where, values = ("entry = ?", [entry]) if layer is None else ("entry = ? AND layer = ?", [entry, layer])
        found = self._sql(
            f"SELECT layer, rank, row, gate, read FROM contexts WHERE {where} ORDER BY gate DESC, row", values
        )
        around = [self._around(int(row), before, after) for row in found.pop("row")]
        columns = ["doc", "title", "pos", "before", "token", "after"]
        return pd.concat([found, pd.DataFrame(around, columns=columns)], axis=1)

    @cached_property
    def documents(self) -> pd.DataFrame:
        """Recorded documents: ``doc title first_row rows``."""
        return self._sql("SELECT * FROM docs ORDER BY doc")

    def trace(self, doc: int, first: int = 0, count: int = 256) -> Trace:
        """A stretch of a recorded document, token by token.

        Raises:
            InputError: no such document, or nothing recorded at that position.
        """
        if not 0 <= doc < len(self.documents):
            raise InputError(f"document {doc} does not exist; the recording has {len(self.documents)}")
        place = self.documents.iloc[doc]
        if not 0 <= first < place["rows"]:
            raise InputError(f"document {doc} has {place['rows']} recorded tokens, none at position {first}")
        count = min(count, int(place["rows"]) - first)
        rows = read_rows(self.path, self.info, int(place["first_row"]) + first, count)
        return make_trace(rows, self.info.layers, self.tokenizer)

    def _around(self, row: int, before: int, after: int) -> tuple[int, str, int, str, str, str]:
        doc = int(np.searchsorted(self.documents["first_row"].to_numpy(), row, side="right")) - 1
        place = self.documents.iloc[doc]
        start, end = int(place["first_row"]), int(place["first_row"] + place["rows"])
        first = max(start, row - before)
        ids = self._token_ids[first : min(end, row + after + 1)].tolist()
        split = row - first
        decode = self.tokenizer.decode
        return (
            doc,
            str(place["title"]),
            row - start,
            decode(ids[:split]),
            decode(ids[split : split + 1]),
            decode(ids[split + 1 :]),
        )

    @cached_property
    def _token_ids(self) -> np.ndarray:
        """Token ids of all rows: two bytes a token, read once for the texts of contexts."""
        files = [self.path / "tokens" / part.name for part in self.info.parts]
        return np.concatenate([read_parquet(file, ["token"])["token"].to_numpy() for file in files])

    def _texts(self, ids: Iterable[Any]) -> list[str]:
        return [self.tokenizer.token_texts[int(i)] for i in ids]

    def _sql(self, query: str, values: list[Any] | None = None) -> pd.DataFrame:
        # A cursor per question: one recording serves many threads.
        frame: pd.DataFrame = self._run(self._db.cursor(), query, values or []).df()
        return frame

    def _run(self, cursor: Any, query: str, values: list[Any]) -> Any:
        try:
            return cursor.execute(query, values)
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise InputError(f"{self.path}: damaged ({str(error).splitlines()[0]}); record again") from error


_ENTRY_TABLE = """
    SELECT bank.entry, sentence, subject, predicate, object, drift, kept,
           coalesce(u.count, 0)::BIGINT AS count, coalesce(u.gate_sum, 0) AS gate_sum,
           coalesce(u.read_sum, 0) AS read_sum, coalesce(u.layers_used, 0)::BIGINT AS layers_used
    FROM bank JOIN decodings USING (entry) LEFT JOIN (
        SELECT entry, sum(count) AS count, sum(gate_sum) AS gate_sum, sum(read_sum) AS read_sum,
               count(*) AS layers_used
        FROM usage GROUP BY entry) u USING (entry)"""


def _search_condition(search: str) -> tuple[str, list[Any]]:
    """SQL condition on ``_ENTRY_TABLE`` and its values; every word must occur."""
    words = search.split()
    parts = [f"array_to_string({column}, ' ')" for column in ("subject", "predicate", "object")]
    text = f"concat_ws(' ', sentence, {', '.join(parts)})"
    conditions = [f"{text} ILIKE ? ESCAPE '\\'" for _ in words]
    values: list[Any] = [f"%{_escape_like(word)}%" for word in words]
    condition = " AND ".join(conditions) or "TRUE"
    if len(words) == 1 and words[0].isdecimal() and len(words[0]) < 18:  # fits the column's type
        return f"(entry = ? OR {condition})", [int(words[0]), *values]
    return condition, values


def _escape_like(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _unique(values: Iterable[int]) -> list[int]:
    return sorted({int(value) for value in values})


def _optional(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
