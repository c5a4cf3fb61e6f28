"""A recording on disk: names, types and parts. No torch; questions are asked in ``query.py``.

    recording/recording.json                 what was recorded, of which model, and the list of finished parts
    recording/tokens/part-000000.parquet     token-major: one row per token; rows are numbered through all parts
    recording/selections/part-000000.parquet entry-major: one row per selection, sorted by layer, entry and token
    recording/documents.parquet              doc, title, group, first_row, rows
    recording/usage.parquet ...              aggregates (aggregate.py, firing.py, neighbours.py, decode.py)

A token-major row is ``doc pos token predicted loss`` and for every memory layer l ``l{l}_indices``, ``l{l}_gate``,
``l{l}_read`` (K numbers, best gate score first within a gate head) and ``l{l}_margin`` (one per gate head); with a
selection bias also ``l{l}_score_margin`` and ``l{l}_by_score``, where read weights have signs ``l{l}_read_norm``, on
request ``l{l}_head_read`` and ``l{l}_slot_read``. An entry-major row is ``layer entry row gate``, where row is
the number of the token-major row. A part counts only once it is listed with the hashes of both its files.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from memscope.errors import InputError
from memscope.files import atomic_path, read_json, sha256_file, write_json
from memscope.parquet import open_parquet, part_writer, read_parquet
from memscope.sections import reachable_entries
from memscope.token_rows import KINDS, TokenRows, from_table, to_table

FORMAT_VERSION = 4
INFO = "recording.json"
ROW_GROUP = 8192
"""Tokens per row group of token-major parts: what one look-up decompresses."""
SELECTION_ROW_GROUP = 32768
"""Selections per row group of entry-major parts; a row group never spans two layers."""
AGGREGATES = (
    *(f"{name}.parquet" for name in ("documents", "usage", "bias", "contexts", "firing", "titles", "neighbours")),
    *("decodings.parquet", "bank_init.parquet", "census.json", "tokenizer.json", "config.yaml"),
)
"""Files that a finished recording has beside its parts."""
_PROGRESS = "progress-*.json"


class Part(BaseModel):
    """A finished part: both its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    rows: int
    tokens_sha256: str
    selections_sha256: str


class RecordingInfo(BaseModel):
    """``recording.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    format_version: int = FORMAT_VERSION
    run: str
    """Run folder the model came from."""
    fingerprint: str
    """SHA-256 of its model file."""
    step: int | None = None
    """Training step of the model, where it was read from a checkpoint."""
    corpus: str
    corpus_sha256: str
    layers: tuple[int, ...]
    """Memory layers, in the order of the layer axis."""
    knowledge_num: int
    bank_groups: int = 1  # equal parts that layers and entries are split in, one with the other
    knowledge_length: int
    selected: int
    """Selections per token and layer (K)."""
    gate_heads: int
    read_heads: int
    window: int
    """Most tokens the model sees at once; documents are cut into such windows."""
    dtype: str
    score_bits: int
    """Mantissa bits kept of scores and weights; they are off by at most 2^-(score_bits + 1) of their value."""
    selection_bias: bool = False
    """Whether a selection bias takes part in the choice (``balance_bias``): then it is compared with raw scores."""
    signed_reads: bool = False
    """Whether read weights can be negative: then they were also recorded without their signs."""
    head_weights: bool = False
    """Whether read weights per read head were recorded."""
    slot_weights: bool = False
    """Whether read weights per slot were recorded."""
    part_tokens: int
    total_tokens: int
    """Tokens that the finished recording holds."""
    complete: bool = False
    """Whether all parts and aggregates are there."""
    seconds: float = 0.0
    """Wall time spent on parts so far, aggregates excluded."""
    parts: tuple[Part, ...] = ()

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

    @property
    def group_size(self) -> int:
        """Entries that a layer can select."""
        return self.knowledge_num // self.bank_groups

    def entries_of(self, layer: int) -> slice:
        """The entries that a memory layer can select."""
        return reachable_entries(layer, self.layers, self.knowledge_num, self.bank_groups)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What token-major rows hold of every layer beside the entries, names of ``TokenRows``."""
        compared = ("score_margin", "by_score") * self.selection_bias
        more = ("read_norm",) * self.signed_reads + ("head_read",) * self.head_weights
        return KINDS + compared + more + ("slot_read",) * self.slot_weights

    def first_rows(self) -> list[int]:
        """Number of every part's first row."""
        return np.cumsum([0, *(part.rows for part in self.parts)]).tolist()[:-1]

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
        raise InputError(
            f"{recording / INFO}: format version {version}, this memscope reads {FORMAT_VERSION}; record again"
        )
    try:
        return RecordingInfo.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{recording / INFO}: {key}: {first['msg']}; record again") from error


def write_info(recording: Path, info: RecordingInfo) -> None:
    """Write ``recording.json``, atomically."""
    write_json(recording / INFO, info.model_dump(mode="json"))


def write_progress(recording: Path, process: int, parts: Iterable[Part]) -> None:
    """List the parts that one of several recording processes has finished; only that process writes this file."""
    path = recording / _PROGRESS.replace("*", f"{process:05d}")
    write_json(path, [part.model_dump() for part in parts])


def finished_parts(recording: Path) -> dict[str, Part]:
    """Parts by name that ``recording.json`` or any process lists and whose two files are on disk as written."""
    listed = list(read_info(recording).parts)
    for path in sorted(recording.glob(_PROGRESS)):
        listed += [Part.model_validate(part) for part in read_json(path)]
    return {part.name: part for part in listed if _is_whole(recording, part)}


def drop_progress(recording: Path) -> None:
    """Forget the processes' lists, once ``recording.json`` has all parts."""
    for path in recording.glob(_PROGRESS):
        path.unlink()


def write_part(recording: Path, number: int, first_row: int, rows: TokenRows, info: RecordingInfo) -> Part:
    """Write the two files of one part, each atomically, and return what lists it.

    Args:
        recording: the recording's folder.
        number: of the part.
        first_row: number of its first row.
        rows: its tokens.
        info: what is being recorded.
    """
    name = f"part-{number:06d}.parquet"
    entry_type = pa.uint16() if info.knowledge_num <= 65536 else pa.uint32()
    with atomic_path(recording / "tokens" / name) as temporary:
        _write(temporary, [to_table(rows, info.layers, info.kinds, entry_type)], ROW_GROUP)
        tokens_sha256 = sha256_file(temporary)
    with atomic_path(recording / "selections" / name) as temporary:
        tables = (_selection_table(rows, axis, first_row, info) for axis in range(len(info.layers)))
        _write(temporary, tables, SELECTION_ROW_GROUP)
        selections_sha256 = sha256_file(temporary)
    return Part(name=name, rows=len(rows.doc), tokens_sha256=tokens_sha256, selections_sha256=selections_sha256)


def read_rows(recording: Path, info: RecordingInfo, first: int, count: int) -> TokenRows:
    """Read ``count`` token-major rows from row number ``first`` on, decompressing only their row groups."""
    tables = []
    for part, offset in zip(info.parts, info.first_rows(), strict=True):
        begin, end = max(first, offset), min(first + count, offset + part.rows)
        if begin < end:
            groups = range((begin - offset) // ROW_GROUP, (end - 1 - offset) // ROW_GROUP + 1)
            table = read_parquet(tokens_path(recording, part), row_groups=list(groups))
            tables.append(table.slice(begin - offset - groups[0] * ROW_GROUP, end - begin))
    if not tables:
        raise InputError(f"{recording}: has no rows {first} to {first + count} (it holds {info.rows})")
    return from_table(pa.concat_tables(tables), info.layers, info.kinds)


def read_part(recording: Path, part: Part, info: RecordingInfo) -> TokenRows:
    """Read all token-major rows of a part."""
    return from_table(read_parquet(tokens_path(recording, part)), info.layers, info.kinds)


class SelectionReader:
    """Looks entries up in the entry-major parts; row groups are found by their statistics, read once."""

    def __init__(self, recording: Path, info: RecordingInfo):
        self._paths = [selections_path(recording, part) for part in info.parts]
        self._groups: list[np.ndarray] = []  # per part: layer, smallest and largest entry of every row group
        for path in self._paths:
            with open_parquet(path) as file:
                groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
                statistics = [(g.column(0).statistics, g.column(1).statistics) for g in groups]
                self._groups.append(np.array([(layer.min, entry.min, entry.max) for layer, entry in statistics]))

    def read(self, layer: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A layer's selections of entries first to last, inclusive: entry, row and gate score, ``[selection]`` each.

        Within an entry rows rise.
        """
        found = []
        for path, groups in zip(self._paths, self._groups, strict=True):
            chosen = (groups[:, 0] == layer) & (groups[:, 1] <= last) & (groups[:, 2] >= first)
            found.append(self._of_part(path, np.flatnonzero(chosen), first, last))
        entry, row, gate = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return entry, row, gate

    def _of_part(self, path: Path, groups: np.ndarray, first: int, last: int) -> list[np.ndarray]:
        table = read_parquet(path, ["entry", "row", "gate"], groups.tolist())
        entries = table["entry"].to_numpy()
        begin, end = np.searchsorted(entries, [first, last + 1])
        return [entries[begin:end], *(table[name].to_numpy()[begin:end] for name in ("row", "gate"))]


def tokens_path(recording: Path, part: Part) -> Path:
    """Where a part's token-major file lies."""
    return recording / "tokens" / part.name


def selections_path(recording: Path, part: Part) -> Path:
    """Where a part's entry-major file lies."""
    return recording / "selections" / part.name


def part_bytes(recording: Path, info: RecordingInfo) -> int:
    """Size on disk of all parts, both orders."""
    return sum(path(recording, part).stat().st_size for part in info.parts for path in (tokens_path, selections_path))


def _is_whole(recording: Path, part: Part) -> bool:
    files = ((tokens_path, part.tokens_sha256), (selections_path, part.selections_sha256))
    return all(path(recording, part).is_file() and sha256_file(path(recording, part)) == sha for path, sha in files)


def _write(path: Path, tables: Iterable[pa.Table], row_group: int) -> None:
    writer = None
    for table in tables:
        writer = writer or part_writer(path, table.schema)
        writer.write_table(table, row_group_size=row_group)
    assert writer is not None
    writer.close()


def _selection_table(rows: TokenRows, axis: int, first_row: int, info: RecordingInfo) -> pa.Table:
    entries = rows.indices[:, axis].ravel()
    narrow = entries.astype(np.uint16) if info.knowledge_num <= 65536 else entries
    order = np.argsort(narrow, kind="stable")  # radix sort for 16 bits; stable keeps rows rising within an entry
    return pa.table(
        {
            "layer": pa.array(np.full(len(order), info.layers[axis], np.uint16)),
            "entry": pa.array(entries[order], pa.uint32()),
            "row": pa.array(first_row + order // info.selected, pa.uint32()),
            "gate": pa.array(rows.gate[:, axis].ravel()[order], pa.float16()),
        }
    )
