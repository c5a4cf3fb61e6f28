"""A recording on disk: names, types and parts. No torch; questions are asked in ``query/recording.py``.

    recording/recording.json                 what was recorded, of which model, and the list of finished parts
    recording/tokens/part-000000.parquet     token-major: one row per token; rows are numbered through all parts
    recording/selections/part-000000.parquet entry-major: one row per selection, sorted by layer, entry and token
    recording/documents.parquet              doc, title, group, first_row, rows
    recording/usage.parquet ...              aggregates (census/aggregate.py, census/firing/firing.py,
    census/neighbours.py, record/decode.py)

A token-major row is ``doc pos token predicted loss`` and for every memory layer l ``l{l}_indices``, ``l{l}_gate``,
``l{l}_read`` (K numbers, best gate score first within a gate head) and ``l{l}_margin`` (one per gate head); with a
selection bias also ``l{l}_score_margin`` and ``l{l}_by_score``, where read weights have signs ``l{l}_read_norm``, on
request ``l{l}_head_read`` and ``l{l}_slot_read``. An entry-major row is ``layer entry row gate``, where row is
the number of the token-major row. A part counts only once it is listed with the hashes of both its files.
``recording/part_reader.py`` reads parts.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from memscope.base.errors import DamageError, InputError
from memscope.base.files import atomic_path, sha256_file
from memscope.base.parquet import part_writer
from memscope.base.seals import SEAL, check_file, read_own_json, read_sealed, unseal, write_sealed
from memscope.config.sections import reachable_entries
from memscope.recording.token_rows import KINDS, TokenRows, to_table
from memscope.run.folder import INFO as INFO
from memscope.text.special_tokens import ROLES_FILE

FORMAT_VERSION = 4
ROW_GROUP = 8192
"""Tokens per row group of token-major parts: what one look-up decompresses."""
SELECTION_ROW_GROUP = 32768
"""Selections per row group of entry-major parts; a row group never spans two layers."""
AGGREGATES = (
    *(f"{name}.parquet" for name in ("documents", "usage", "bias", "contexts", "firing", "titles", "neighbours")),
    *("anomalies.parquet", "decodings.parquet", "bank_init.parquet", "census.json", "tokenizer.json", "config.yaml"),
)
"""Files that a finished recording has beside its parts."""
COPIES = (ROLES_FILE, "run.json", "metrics.jsonl")
"""Further ones, if the run has them."""
SELECTION_SCHEMA = pa.schema(
    {"layer": pa.uint16(), "entry": pa.uint32(), "row": pa.uint32(), "gate": pa.float16()}.items()
)
"""Columns of an entry-major part."""
_PROGRESS = "progress-*.json"
_AGAIN = "record again"
_Count = Annotated[int, Field(ge=1, le=2**32)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """A finished part: both its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(pattern=r"^part-[0-9]{6,}\.parquet$")]
    rows: _Count
    tokens_sha256: _Sha256
    selections_sha256: _Sha256


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
    documents: _Count
    """Documents of the corpus that are recorded, whole or in part."""
    vocab_size: _Count
    """Token ids of the model's tokenizer."""
    layers: tuple[Annotated[int, Field(ge=0, lt=2**16)], ...]
    """Memory layers, in the order of the layer axis."""
    knowledge_num: _Count
    bank_groups: _Count = 1  # equal parts that layers and entries are split in, one with the other
    knowledge_length: _Count
    selected: _Count
    """Selections per token and layer (K)."""
    gate_heads: _Count
    read_heads: _Count
    window: _Count
    """Most tokens the model sees at once; documents are cut into such windows."""
    dtype: str
    score_bits: Annotated[int, Field(ge=1, le=10)]
    """Mantissa bits kept of scores and weights; they are off by at most 2^-(score_bits + 1) of their value."""
    selection_bias: bool = False
    """Whether a selection bias takes part in the choice (``balance_bias``): then it is compared with raw scores."""
    signed_reads: bool = False
    """Whether read weights can be negative: then they were also recorded without their signs."""
    head_weights: bool = False
    """Whether read weights per read head were recorded."""
    slot_weights: bool = False
    """Whether read weights per slot were recorded."""
    part_tokens: _Count
    total_tokens: Annotated[int, Field(ge=0)]
    """Tokens that the finished recording holds."""
    complete: bool = False
    """Whether all parts and aggregates are there."""
    seconds: float = 0.0
    """Wall time spent on parts so far, aggregates excluded."""
    parts: tuple[Part, ...] = ()
    files: dict[Annotated[str, Field(pattern=r"^\w[\w.]*$")], _Sha256] = {}
    """SHA-256 of the finished recording's other files, by name."""

    @model_validator(mode="after")
    def _check(self) -> "RecordingInfo":
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError("layers must be there and rise")
        if len(self.layers) % self.bank_groups or self.knowledge_num % self.bank_groups:
            raise ValueError("bank_groups must divide the number of layers and knowledge_num")
        if self.selected % self.gate_heads or self.selected > self.gate_heads * self.group_size:
            raise ValueError("selected must be a multiple of gate_heads, and each can select what a layer has")
        if len({part.name for part in self.parts}) < len(self.parts):
            raise ValueError("a part is listed twice")
        return self

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

    @property
    def distinct(self) -> int:
        """Entries that a gate head selects for a token: no two of them are the same."""
        return self.selected // self.gate_heads

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
        left_out = {"complete", "seconds", "parts", "files", "documents", "run", "corpus"}
        mine, its = self.model_dump(exclude=left_out), other.model_dump(exclude=left_out)
        return [name for name, value in mine.items() if its[name] != value]


def read_info(recording: Path) -> RecordingInfo:
    """Read ``recording.json``.

    Raises:
        DamageError: not what ``write_info`` wrote.
        InputError: not a recording, or one of another format version.
    """
    if not (recording / INFO).is_file():
        parts = any((recording / name).exists() for name in (INFO, "tokens"))
        is_run = (recording / "config.yaml").is_file() and not parts
        what = "a run" if is_run else f"not a recording (no {INFO})"
        raise InputError(f"{recording}: {what}; make a recording with 'memscope record'")
    raw = read_own_json(recording / INFO)
    if isinstance(raw, dict) and SEAL in raw:
        unseal(raw, recording / INFO, _AGAIN)  # before anything of it is believed
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{recording / INFO}: format version {version}, this memscope reads {FORMAT_VERSION}; record again, "
            "into another folder or after removing this one"
        )
    try:
        return RecordingInfo.model_validate(unseal(raw, recording / INFO, _AGAIN))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{recording / INFO}: {key}: {first['msg']}; record again") from error


def write_info(recording: Path, info: RecordingInfo) -> None:
    """Write ``recording.json``, atomically."""
    write_sealed(recording / INFO, info.model_dump(mode="json"))


def write_progress(recording: Path, process: int, parts: Iterable[Part]) -> None:
    """List the parts that one of several recording processes has finished; only that process writes this file."""
    path = recording / _PROGRESS.replace("*", f"{process:05d}")
    write_sealed(path, {"parts": [part.model_dump() for part in parts]})


def finished_parts(recording: Path) -> dict[str, Part]:
    """Parts by name that ``recording.json`` or any process lists and whose two files are on disk as written.

    A process's list that is damaged lists nothing: its parts are recorded again.
    """
    listed = list(read_info(recording).parts)
    for path in sorted(recording.glob(_PROGRESS)):
        with suppress(DamageError, ValidationError):
            listed += [Part.model_validate(part) for part in read_sealed(path, _AGAIN)["parts"]]
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
    entry_type = token_schema(info).field(f"l{info.layers[0]}_indices").type.value_type
    with atomic_path(recording / "tokens" / name) as temporary:
        _write(temporary, [to_table(rows, info.layers, info.kinds, entry_type)], ROW_GROUP)
        tokens_sha256 = sha256_file(temporary)
    with atomic_path(recording / "selections" / name) as temporary:
        tables = (_selection_table(rows, axis, first_row, info) for axis in range(len(info.layers)))
        _write(temporary, tables, SELECTION_ROW_GROUP)
        selections_sha256 = sha256_file(temporary)
    return Part(name=name, rows=len(rows.doc), tokens_sha256=tokens_sha256, selections_sha256=selections_sha256)


def tokens_path(recording: Path, part: Part) -> Path:
    """Where a part's token-major file lies."""
    return recording / "tokens" / part.name


def selections_path(recording: Path, part: Part) -> Path:
    """Where a part's entry-major file lies."""
    return recording / "selections" / part.name


def whole_tokens(recording: Path, part: Part) -> Path:
    """A part's token-major file, compared with its hash (``check_file``)."""
    check_file(tokens_path(recording, part), part.tokens_sha256, _AGAIN)
    return tokens_path(recording, part)


def whole_selections(recording: Path, part: Part) -> Path:
    """A part's entry-major file, compared with its hash (``check_file``)."""
    check_file(selections_path(recording, part), part.selections_sha256, _AGAIN)
    return selections_path(recording, part)


def part_bytes(recording: Path, info: RecordingInfo) -> int:
    """Size on disk of all parts, both orders."""
    return sum(path(recording, part).stat().st_size for part in info.parts for path in (tokens_path, selections_path))


def _is_whole(recording: Path, part: Part) -> bool:
    try:
        whole_tokens(recording, part), whole_selections(recording, part)
    except InputError:
        return False
    return True


def _write(path: Path, tables: Iterable[pa.Table], row_group: int) -> None:
    writer = None
    for table in tables:
        writer = writer or part_writer(path, table.schema)
        writer.write_table(table, row_group_size=row_group)
    assert writer is not None
    writer.close()


def token_schema(info: RecordingInfo) -> pa.Schema:
    """Columns of a token-major part."""
    k = info.selected
    widths = {"margin": info.gate_heads, "score_margin": info.gate_heads}
    widths |= {"head_read": info.read_heads * k, "slot_read": info.knowledge_length * k}
    columns = dict.fromkeys(("doc", "pos", "token", "predicted"), pa.uint32()) | {"loss": pa.float32()}
    for layer in info.layers:
        columns[f"l{layer}_indices"] = pa.list_(pa.uint16() if info.knowledge_num <= 65536 else pa.uint32(), k)
        for kind in info.kinds:
            values = pa.bool_() if kind == "by_score" else pa.float16()
            columns[f"l{layer}_{kind}"] = pa.list_(values, widths.get(kind, k))
    return pa.schema(columns.items())


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
