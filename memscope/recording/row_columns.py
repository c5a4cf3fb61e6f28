"""Columns of all recorded rows, in arrays over files, so that memory does not grow with a recording.

    columns = row_columns(recording, info, ["token", "previous"])         # int32 [token] each
    counts = tally(columns["token"], info.vocab_size)                     # piece by piece

Aggregates look up single rows in random order, so they need whole columns. Each column is an array over a file whose
name is already removed: the kernel caches it as far as memory allows, and a killed process leaves no file behind.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import read_columns

PIECE = 1 << 20
"""Rows that are processed at once."""
_READ = {
    **{name: (name,) for name in ("token", "predicted", "doc")},
    **{"position": ("pos",), "previous": ("token", "pos"), "following": ("token", "doc")},
}


def disk_array(folder: Path, rows: int, dtype: type[np.generic] = np.int32) -> np.ndarray:
    """Zeros, ``[rows]``, over a nameless file in ``folder``; its disk space is allocated at once.

    Raises:
        OSError: the disk is full.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, max(rows, 1) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "r+", shape=(max(rows, 1),)).view(np.ndarray)[:rows]


def row_columns(recording: Path, info: RecordingInfo, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of all rows, int32 ``[token]``.

    ``token``, ``predicted`` and ``doc`` are as in the parts. ``position`` is the position in the window, ``previous``
    the token before (-1 at the start of a window), ``following`` the next token (-1 at the end of a document).

    Raises:
        InputError: see ``part_reader.read_columns``.
    """
    wanted = list(dict.fromkeys(column for name in names for column in _READ[name]))
    columns = {name: disk_array(recording, info.rows) for name in names}
    last_doc = last_token = -1
    for part, first in zip(info.parts, info.first_rows(), strict=True):
        table = read_columns(recording, info, part, wanted)
        stored = {name: _integers(table[name]) for name in wanted}
        rows = slice(first, first + part.rows)
        for name in names:
            match name:
                case "position":
                    columns[name][rows] = stored["pos"] % info.window
                case "previous":
                    before = np.append(last_token, stored["token"][:-1])
                    columns[name][rows] = np.where(stored["pos"] % info.window > 0, before, -1)
                    last_token = int(stored["token"][-1])
                case "following":
                    same = stored["doc"][1:] == stored["doc"][:-1]
                    columns[name][rows] = np.append(np.where(same, stored["token"][1:], -1), -1)
                    if first and stored["doc"][0] == last_doc:  # a document that continues from the part before
                        columns[name][first - 1] = stored["token"][0]
                    last_doc = int(stored["doc"][-1])
                case _:
                    columns[name][rows] = stored[name]
    return columns


def _integers(column: pa.ChunkedArray) -> np.ndarray:
    """A column as int32, -1 for what is null (predictions that were not recorded)."""
    filled = column.cast(pa.int64()).fill_null(-1) if column.null_count else column
    return np.asarray(filled.to_numpy()).astype(np.int32)


def pieces(rows: int) -> Iterator[slice]:
    """Slices of ``PIECE`` rows that cover all ``rows``."""
    for start in range(0, rows, PIECE):
        yield slice(start, min(start + PIECE, rows))


def tally(labels: np.ndarray, size: int) -> np.ndarray:
    """Count of each of ``size`` labels among ``labels [row]``, int64 ``[size]``; negative labels do not count."""
    counts = np.zeros(size, np.int64)
    for piece in pieces(len(labels)):
        known = labels[piece]
        counts += np.bincount(known[known >= 0], minlength=size)
    return counts


def distinct_pairs(high: np.ndarray, low: np.ndarray, wide: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct pairs as ``high * wide + low``, rising, and the count of each; ``0 <= low < wide``."""
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for piece in pieces(len(high)):
        new, times = np.unique(high[piece].astype(np.int64) * wide + low[piece], return_counts=True)
        together, position = np.unique(np.concatenate([keys, new]), return_inverse=True)
        total = np.zeros(len(together), np.int64)
        np.add.at(total, position, np.concatenate([counts, times]))
        keys, counts = together, total
    return keys, counts
