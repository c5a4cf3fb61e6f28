"""Parquet in and out: atomic writing, readable errors, and the encodings that keep recordings small."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memscope.base.errors import InputError
from memscope.base.files import atomic_path

TABLE_ROW_GROUP = 4096
"""Rows per row group of an aggregate; a look-up of one entry decompresses one row group."""
ENTRY_ROW_GROUP = 512
"""Rows per row group where an entry is one wide row and pages read a few dozen scattered rows."""

_FEW_GROUPS = 16
"""Up to this many row groups, one thread is faster than several."""


def read_parquet(
    path: Path,
    columns: list[str] | None = None,
    row_groups: list[int] | None = None,
    metadata: pq.FileMetaData | None = None,
) -> pa.Table:
    """Read a Parquet file, or some columns or row groups of it; ``metadata`` from an earlier read saves time.

    Raises:
        InputError: the file is missing or damaged.
    """
    with open_parquet(path, metadata) as file:
        groups = list(range(file.num_row_groups)) if row_groups is None else row_groups
        try:
            return file.read_row_groups(groups, columns=columns, use_threads=len(groups) > _FEW_GROUPS)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, error) from error


def open_parquet(path: Path, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a Parquet file for its metadata or single row groups; close it, or use it as a context manager.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return pq.ParquetFile(path, metadata=metadata)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def write_table(path: Path, columns: dict[str, Any] | pa.Table, row_group: int = TABLE_ROW_GROUP) -> None:
    """Write an aggregate as Parquet, atomically."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=row_group)


class TableWriter:
    """Writes tables of equal columns, one after the other, into one Parquet file."""

    def __init__(self, path: Path, row_group: int = TABLE_ROW_GROUP):
        self.path, self.row_group = path, row_group
        self._writer: pq.ParquetWriter | None = None

    def write(self, columns: dict[str, Any]) -> None:
        """Append rows."""
        table = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=self.row_group)

    def close(self) -> None:
        """Finish the file."""
        assert self._writer is not None
        self._writer.close()


def part_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of recorded parts, with the encoding that suits each column.

    Rounded scores have few different values: dictionary. Entries, rows, tokens and losses have many, but nearly
    constant high bytes: byte-stream-split. Sorted columns: deltas. All of them are read by DuckDB and Spark as well
    (DuckDB has no byte-stream-split for float16).
    """
    dictionary, encoding = [], {}
    for field in schema:
        is_list = pa.types.is_fixed_size_list(field.type)
        name = f"{field.name}.list.element" if is_list else field.name
        if field.name == "layer" or (field.type.value_type if is_list else field.type) == pa.float16():
            dictionary.append(name)
        elif (field.type.value_type if is_list else field.type) != pa.bool_():  # bits are packed as they are
            encoding[name] = "DELTA_BINARY_PACKED" if field.name in ("doc", "pos", "entry") else "BYTE_STREAM_SPLIT"
    return pq.ParquetWriter(
        path, schema, compression="zstd", compression_level=3, use_dictionary=dictionary, column_encoding=encoding
    )


def fixed_lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Rows of a matrix as Arrow lists of fixed size."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(kind.to_pandas_dtype()), kind), values.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of fixed size as a matrix; the inverse of ``fixed_lists``."""
    lists = column.combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)  # flatten respects slices, .values does not
    return np.asarray(flat).reshape(len(lists), -1)


def _damaged(path: Path, error: Exception) -> InputError:
    problem = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({str(error).splitlines()[0]})"
    return InputError(f"{path}: {problem}; run the command that made it again")
