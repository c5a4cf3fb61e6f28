"""The tables and the census of a recording: opened, checked, looked up by entry or by SQL.

``entry_cards.py`` answers about single entries from these tables, ``recording.py`` about everything.
"""

import glob
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from memscope.base.errors import InputError
from memscope.recording.aggregates import check_recording
from memscope.recording.census_file import Census, read_census
from memscope.recording.info import RecordingInfo, read_info
from memscope.recording.lookup import EntryTable
from memscope.recording.part_reader import read_columns
from memscope.text.tokenizer import Tokenizer

_VIEWS = {"usage": "usage", "bias": "bias", "contexts": "contexts", "firing": "firing", "neighbours": "neighbours"}
_VIEWS |= {"titles": "titles", "decodings": "decodings", "bank": "bank_init", "docs": "documents"}
_VIEWS |= {"anomalies": "anomalies", "readability": "readability"}


class RecordingTables:
    """The tables and the census of a finished recording, read-only.

    Raises:
        InputError: not a recording, one that is not finished, or one with a damaged file.
    """

    def __init__(self, path: Path | str):
        self.path = path = Path(path)
        self.info: RecordingInfo = read_info(path)
        if not self.info.complete:
            raise InputError(
                f"{path}: this recording is unfinished ({self.info.rows:,} of {self.info.total_tokens:,} tokens); "
                "run the same 'memscope record' command again to complete it"
            )
        self._tables: dict[str, EntryTable] = {}
        self._db = duckdb.connect()
        check_recording(path, self.info)
        self._census = read_census(path, self.info)
        for view, file in _VIEWS.items():
            source = path / f"{file}.parquet"
            quoted = glob.escape(str(source)).replace("'", "''")  # DuckDB reads [ and * in a path as a pattern
            self._run(self._db, f"CREATE VIEW {view} AS SELECT * FROM read_parquet('{quoted}')", [])

    @property
    def census(self) -> Census:
        """``census.json``: metrics per layer and over all layers, as they were when the recording was opened."""
        return self._census

    def total_selections(self, layer: int | None = None) -> int:
        """D: selections of a layer, or of all layers."""
        counts = {metrics.layer: metrics.by_count.selections for metrics in self.census.layers}
        return sum(counts.values()) if layer is None else counts[layer]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return Tokenizer.load(self.path / "tokenizer.json")

    @cached_property
    def documents(self) -> pd.DataFrame:
        """Recorded documents: ``doc title first_row rows``."""
        return self.sql("SELECT * FROM docs ORDER BY doc")

    @cached_property
    def token_ids(self) -> np.ndarray:
        """Token ids of all rows: two bytes a token, read once for the texts of contexts."""
        parts = (read_columns(self.path, self.info, part, ["token"]) for part in self.info.parts)
        return np.concatenate([part["token"].to_numpy() for part in parts])

    def rows_of(self, view: str, entries: Iterable[int], columns: list[str] | None = None) -> pd.DataFrame:
        """Rows of some entries in one of the views that have a column ``entry``: a look-up, not a scan."""
        if view not in self._tables:
            self._tables[view] = EntryTable(self.path / f"{_VIEWS[view]}.parquet")
        return self._tables[view].rows(entries, columns)

    def sql(self, query: str, values: list[Any] | None = None) -> pd.DataFrame:
        """Answer SQL on ``usage bias contexts firing neighbours anomalies readability titles decodings bank docs``."""
        # A cursor per question: one recording serves many threads.
        frame: pd.DataFrame = self._run(self._db.cursor(), query, values or []).df()
        return frame

    def _run(self, cursor: Any, query: str, values: list[Any]) -> Any:
        try:
            return cursor.execute(query, values)
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise InputError(f"{self.path}: damaged ({str(error).splitlines()[0]}); record again") from error
