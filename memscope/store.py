"""A recording on disk: names, types and parts. No torch; questions are asked in ``query.py``.

    recording/recording.json             what was recorded, of which model, and the list of finished parts
    recording/tokens/part-000000.parquet  one row per token; rows are numbered through all parts
    recording/documents.parquet          doc, title, first_row, rows
    recording/usage.parquet ...          aggregates (aggregate.py, decode.py)

Columns of a part: ``doc pos token loss`` and for every memory layer l ``l{l}_indices``, ``l{l}_gate``,
``l{l}_read``: lists of K numbers, best gate score first within a gate head. A part counts only once
``recording.json`` lists it with its hash.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from memscope.errors import InputError
from memscope.files import atomic_path, read_json, sha256_file, write_json

FORMAT_VERSION = 1
INFO = "recording.json"
ROW_GROUP = 8192
"""Rows per Parquet row group: what one look-up decompresses."""


@dataclass(frozen=True)
class TokenRows:
    """Recorded tokens; axes ``token``, memory ``layer`` and selection ``K``."""

    doc: np.ndarray
    """Document number, uint32 ``[token]``."""
    pos: np.ndarray
    """Position in the document, uint32 ``[token]``."""
    token: np.ndarray
    """Token id, uint32 ``[token]``."""
    loss: np.ndarray
    """Loss of predicting the next token in nats, float32 ``[token]``; NaN at the end of a document."""
    indices: np.ndarray
    """Selected entries, uint32 ``[token, layer, K]``."""
    gate: np.ndarray
    """Gate scores, float16 ``[token, layer, K]``."""
    read: np.ndarray
    """Read weights, mean over read heads and sum over slots, float16 ``[token, layer, K]``."""


class Part(BaseModel):
    """A finished part."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    rows: int
    sha256: str


class RecordingInfo(BaseModel):
    """``recording.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    format_version: int
    run: str
    """Run folder the model came from."""
    fingerprint: str
    """SHA-256 of its model file."""
    corpus: str
    corpus_sha256: str
    layers: tuple[int, ...]
    """Memory layers, in the order of the layer axis."""
    knowledge_num: int
    knowledge_length: int
    selected: int
    """Selections per token and layer (K)."""
    dtype: str
    part_tokens: int
    total_tokens: int
    """Tokens that the finished recording holds."""
    complete: bool
    """Whether all parts and aggregates are there."""
    seconds: float
    """Time spent in recording so far, aggregates included."""
    parts: tuple[Part, ...]

    @property
    def run_name(self) -> str:
        """The run folder's name: what reports show, since a path tells of the machine it is on."""
        return Path(self.run).name

    @property
    def corpus_name(self) -> str:
        """The corpus file's name, likewise."""
        return Path(self.corpus).name

    @property
    def rows(self) -> int:
        """Tokens recorded so far."""
        return sum(part.rows for part in self.parts)

    def same_source(self, other: "RecordingInfo") -> list[str]:
        """Names of the settings in which two recordings differ; progress and mere paths are left out."""
        left_out = {"complete", "seconds", "parts", "run", "corpus"}
        mine, its = self.model_dump(exclude=left_out), other.model_dump(exclude=left_out)
        return [name for name, value in mine.items() if its[name] != value]


def read_info(recording: Path) -> RecordingInfo:
    """Read ``recording.json``.

    Raises:
        InputError: not a recording, a damaged file, or one of another format version.
    """
    if not (recording / INFO).is_file():
        raise InputError(f"{recording}: not a recording (no {INFO}); make one with 'memscope record'")
    raw = read_json(recording / INFO)
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{recording / INFO}: format version {version}, this memscope reads {FORMAT_VERSION}")
    try:
        return RecordingInfo.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{recording / INFO}: {key}: {first['msg']}; record again") from error


def write_info(recording: Path, info: RecordingInfo) -> None:
    """Write ``recording.json``, atomically."""
    write_json(recording / INFO, info.model_dump(mode="json"))


def write_part(recording: Path, number: int, rows: TokenRows, info: RecordingInfo, vocab_size: int) -> Part:
    """Write one part, atomically, and return its entry for ``recording.json``."""
    name = part_name(number)
    entry_type = pa.uint16() if info.knowledge_num <= 65536 else pa.uint32()
    columns: dict[str, Any] = {
        "doc": pa.array(rows.doc, pa.uint32()),
        "pos": pa.array(rows.pos, pa.uint32()),
        "token": pa.array(rows.token, pa.uint32()).cast(pa.uint16() if vocab_size <= 65536 else pa.uint32()),
        "loss": pa.array(rows.loss, pa.float32(), mask=np.isnan(rows.loss)),
    }
    for axis, layer in enumerate(info.layers):
        columns[f"l{layer}_indices"] = _lists(rows.indices[:, axis], entry_type)
        columns[f"l{layer}_gate"] = _lists(rows.gate[:, axis], pa.float16())
        columns[f"l{layer}_read"] = _lists(rows.read[:, axis], pa.float16())
    with atomic_path(recording / "tokens" / name) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd", row_group_size=ROW_GROUP)
        digest = sha256_file(temporary)
    return Part(name=name, rows=len(rows.doc), sha256=digest)


def read_part(recording: Path, part: Part, info: RecordingInfo) -> TokenRows:
    """Read a whole part back."""
    return _to_rows(read_parquet(part_path(recording, part)), info)


def read_rows(recording: Path, info: RecordingInfo, first: int, count: int) -> TokenRows:
    """Read ``count`` rows from row number ``first`` on, decompressing only the row groups they lie in."""
    tables = []
    offset = 0
    for part in info.parts:
        begin, end = max(first, offset), min(first + count, offset + part.rows)
        if begin < end:
            groups = range((begin - offset) // ROW_GROUP, (end - 1 - offset) // ROW_GROUP + 1)
            table = read_parquet(part_path(recording, part), row_groups=list(groups))
            tables.append(table.slice(begin - offset - groups[0] * ROW_GROUP, end - begin))
        offset += part.rows
    if not tables:
        raise InputError(f"{recording}: has no rows {first} to {first + count} (it holds {info.rows})")
    return _to_rows(pa.concat_tables(tables), info)


def part_is_whole(recording: Path, part: Part) -> bool:
    """Whether a listed part is on disk as it was written."""
    path = part_path(recording, part)
    return path.is_file() and sha256_file(path) == part.sha256


def part_name(number: int) -> str:
    """File name of a part; names sort as the parts do."""
    return f"part-{number:06d}.parquet"


def part_path(recording: Path, part: Part) -> Path:
    """Where a part lies."""
    return recording / "tokens" / part.name


def read_parquet(path: Path, columns: list[str] | None = None, row_groups: list[int] | None = None) -> pa.Table:
    """Read a Parquet file, or some columns or row groups of it.

    Raises:
        InputError: missing or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            groups = list(range(file.num_row_groups)) if row_groups is None else row_groups
            return file.read_row_groups(groups, columns=columns)
    except (OSError, pa.ArrowException) as error:
        what = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({str(error).splitlines()[0]})"
        raise InputError(f"{path}: {what}; run the command that made it again") from error


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """Write an aggregate as Parquet, atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd", row_group_size=16384)


def _lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(kind.to_pandas_dtype()), kind), values.shape[1])


def _to_rows(table: pa.Table, info: RecordingInfo) -> TokenRows:
    def stack(kind: str, dtype: type) -> np.ndarray:
        layers = [table[f"l{layer}_{kind}"].combine_chunks() for layer in info.layers]
        return np.stack([_unlist(values).astype(dtype).reshape(-1, info.selected) for values in layers], axis=1)

    return TokenRows(
        doc=table["doc"].to_numpy(),
        pos=table["pos"].to_numpy(),
        token=table["token"].to_numpy().astype(np.uint32),
        loss=table["loss"].to_numpy(),
        indices=stack("indices", np.uint32),
        gate=stack("gate", np.float16),
        read=stack("read", np.float16),
    )


def _unlist(values: pa.Array) -> np.ndarray:
    flat: np.ndarray = values.flatten().to_numpy(zero_copy_only=False)  # flatten respects slices, .values does not
    return flat
