"""Read the parts of a recording; every row is checked against ``recording.json``.

    table = read_columns(recording, info, part, ["token", "l0_indices"])

Compiled loops use entries, tokens and documents as array indices without bounds checks; a number out of range would
crash the interpreter. So this module alone checks columns, types, numbers of rows, ranges and finiteness, once.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memscope.base.errors import InputError
from memscope.base.parquet import matrix, open_parquet, read_parquet
from memscope.recording.info import Part, RecordingInfo
from memscope.recording.parts import SELECTION_SCHEMA, token_schema, whole_selections, whole_tokens
from memscope.recording.token_rows import NONE, TokenRows, from_table

_HALF_INFINITY = 0x7C00
"""Bits of the float16 that stands for infinity; larger ones, without the sign, are NaN."""
_HALF_SIGN = 0x8000


def read_columns(
    recording: Path, info: RecordingInfo, part: Part, columns: Sequence[str], row_groups: list[int] | None = None
) -> pa.Table:
    """Some columns of a part's token-major rows, or of some of its row groups.

    Raises:
        InputError: the file is missing, damaged, or holds values that ``info`` rules out.
    """
    path = whole_tokens(recording, part)
    with open_parquet(path) as file:
        metadata = file.metadata
        _check_columns(path, file.schema_arrow, token_schema(info), columns)
    _check_rows(path, metadata, part.rows)
    table = read_parquet(path, list(columns), row_groups, metadata)
    for name in columns:
        if problem := _problem(name, table[name], info):
            raise InputError(f"{path}: {name} {problem}; record again")
    return table


def read_rows(recording: Path, info: RecordingInfo, first: int, count: int) -> TokenRows:
    """Read ``count`` token-major rows from row number ``first`` on, decompressing only their row groups.

    Raises:
        InputError: see ``read_columns``; also rows that the recording does not have.
    """
    names = token_schema(info).names
    tables = []
    for part, offset in zip(info.parts, info.first_rows(), strict=True):
        begin, end = max(first - offset, 0), min(first + count - offset, part.rows)
        if begin < end:
            with open_parquet(whole_tokens(recording, part)) as file:
                sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            low, high = np.searchsorted(starts, [begin, end - 1], side="right") - 1
            table = read_columns(recording, info, part, names, list(range(low, high + 1)))
            tables.append(table.slice(begin - int(starts[low]), end - begin))
    if not tables:
        raise InputError(f"{recording}: has no rows {first} to {first + count} (it holds {info.rows})")
    return _rows(pa.concat_tables(tables), info)


def read_part(recording: Path, part: Part, info: RecordingInfo) -> TokenRows:
    """Read all token-major rows of a part.

    Raises:
        InputError: see ``read_columns``.
    """
    return _rows(read_columns(recording, info, part, token_schema(info).names), info)


def _rows(table: pa.Table, info: RecordingInfo) -> TokenRows:
    return from_table(table, info.sites, [info.columns_of(site) for site in info.sites])


class SelectionReader:
    """Looks entries up in the entry-major parts; the statistics of row groups are read once.

    Raises:
        InputError: a file is missing, damaged, or holds values that ``info`` rules out.
    """

    def __init__(self, recording: Path, info: RecordingInfo):
        self._info = info
        self._paths = [whole_selections(recording, part) for part in info.parts]
        self._groups: list[np.ndarray] = []  # per part: layer, smallest and largest entry of every row group
        self._rows = list(zip(info.first_rows(), (part.rows for part in info.parts), strict=True))
        for path, part in zip(self._paths, info.parts, strict=True):
            with open_parquet(path) as file:
                _check_columns(path, file.schema_arrow, SELECTION_SCHEMA, SELECTION_SCHEMA.names)
                if not any(site.varies for site in info.sites):
                    _check_rows(path, file.metadata, part.rows * info.per_token)
                self._groups.append(_entry_spans(path, file.metadata))

    def read(self, layer: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A layer's selections of entries first to last, inclusive: entry, row and gate score, ``[selection]`` each.

        Rows rise within an entry. Gate scores are NaN where the layer has none.
        """
        parts = [self._of_part(number, layer, first, last) for number in range(len(self._paths))]
        entry, row, gate = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return entry, row, gate

    def _of_part(self, number: int, layer: int, first: int, last: int) -> list[np.ndarray]:
        path, groups, (first_row, n_rows) = self._paths[number], self._groups[number], self._rows[number]
        chosen = (groups[:, 0] == layer) & (groups[:, 1] <= last) & (groups[:, 2] >= first)
        table = read_parquet(path, ["entry", "row", "gate"], np.flatnonzero(chosen).tolist())
        entry, row = table["entry"].to_numpy(), table["row"].to_numpy()
        gate = table["gate"].to_numpy() if not table["gate"].null_count else np.full(len(row), np.nan, np.float16)
        if len(entry):
            reachable = self._info.entries_of(layer)
            if entry[0] < reachable.start or entry[-1] >= reachable.stop or (entry[1:] < entry[:-1]).any():
                raise InputError(f"{path}: entries of layer {layer} are out of range or order; record again")
            if row.min() < first_row or row.max() >= first_row + n_rows:
                raise InputError(f"{path}: has rows that are not of this part; record again")
            if "scores" in self._info.site(layer).has and _not_scores(gate):
                raise InputError(f"{path}: has gate scores that are negative or not finite; record again")
        begin, end = np.searchsorted(entry, [first, last + 1])
        return [column[begin:end] for column in (entry, row, gate)]


def _check_columns(path: Path, schema: pa.Schema, expected: pa.Schema, names: Sequence[str]) -> None:
    for name in names:
        number = schema.get_field_index(name)
        if number < 0 or schema.field(number).type != expected.field(name).type:
            is_there = "is not there" if number < 0 else f"is of type {schema.field(number).type}"
            raise InputError(
                f"{path}: column {name} {is_there}, recording.json asks for {expected.field(name).type}; record again"
            )


def _check_rows(path: Path, metadata: pq.FileMetaData, rows: int) -> None:
    if metadata.num_rows != rows:
        raise InputError(f"{path}: has {metadata.num_rows:,} rows, recording.json says {rows:,}; record again")


def _entry_spans(path: Path, metadata: pq.FileMetaData) -> np.ndarray:
    """Layer, smallest and largest entry of every row group of an entry-major file, int64 ``[group, 3]``."""
    spans = []
    for number in range(metadata.num_row_groups):
        layer, entry = (metadata.row_group(number).column(column).statistics for column in (0, 1))
        if layer is None or entry is None or not entry.has_min_max or layer.min != layer.max:
            raise InputError(f"{path}: row group {number} does not say which layer and entries it has; record again")
        spans.append((layer.min, entry.min, entry.max))
    return np.array(spans, np.int64).reshape(-1, 3)


def _problem(name: str, column: pa.ChunkedArray, info: RecordingInfo) -> str | None:
    """The problem of a token-major column, as words that follow its name; none for a good column."""
    if not len(column):
        return None
    if column.null_count and name != "loss" and (name != "predicted" or info.predictions):
        return "has empty rows"
    if name == "predicted" and not info.predictions:
        return None if column.null_count == len(column) else "has values, recording.json says that there are none"
    if name in ("doc", "token", "predicted"):
        limit = info.documents if name == "doc" else info.vocab_size
        largest = int(column.to_numpy().max())
        return f"has {largest}, the largest may be {limit - 1}" if largest >= limit else None
    if name == "loss":
        return "is infinite" if np.isinf(column.to_numpy()).any() else None
    if name == "pos":
        return None
    layer, _, kind = name.removeprefix("l").partition("_")
    if kind == "by_score":
        return None
    values = matrix(column)
    if kind == "indices":
        site = info.site(int(layer))
        values = np.where(values == NONE, site.first_entry, values) if site.varies else values
        reachable, low, high = site.own, int(values.min()), int(values.max())
        is_inside = reachable.start <= low and high < reachable.stop
        return (
            None
            if is_inside
            else f"has entries {low} to {high}, the layer's are {reachable.start} to {reachable.stop - 1}"
        )
    if kind == "gate":
        return "has scores that are negative or not finite" if _not_scores(values) else None
    bits = values.view(np.uint16) & ~np.uint16(_HALF_SIGN)
    if "margin" in kind:  # NaN where nothing was rejected
        return "is infinite" if (bits == _HALF_INFINITY).any() else None
    return "is not finite" if bits.max() >= _HALF_INFINITY else None


def _not_scores(values: np.ndarray) -> bool:
    """Whether some float16 are negative, infinite or NaN, by their bits: arithmetic of halves is slow."""
    bits = np.ascontiguousarray(values).view(np.uint16)
    return bool(((bits >= _HALF_INFINITY) & (bits != _HALF_SIGN)).any())
