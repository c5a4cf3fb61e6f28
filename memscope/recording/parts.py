"""A recording on disk: names, types and parts. No torch; questions are asked in ``query/recording.py``.

    recording/recording.json                 model, corpus, settings and the list of finished parts
    recording/tokens/part-000000.parquet     token-major: one row per token; rows are numbered through all parts
    recording/selections/part-000000.parquet entry-major: one row per selection, sorted by layer, entry and token
    recording/documents.parquet              doc, title, group, first_row, rows
    recording/usage.parquet ...              aggregates (census/aggregate.py, census/firing/firing.py,
    census/neighbours.py, record/decode.py)

A token-major row is ``doc pos token predicted loss`` and for every layer l that selects ``l{l}_indices``; where there
are such, ``l{l}_gate``, ``l{l}_read`` (K numbers, best gate score first within a gate head) and ``l{l}_margin`` (one
per gate head); with a selection bias also ``l{l}_score_margin`` and ``l{l}_by_score``, where read weights have signs
``l{l}_read_norm``, on request ``l{l}_head_read`` and ``l{l}_slot_read``. An entry-major row is ``layer entry row
gate``, where row is the number of the token-major row, and gate is null where a layer has no scores. A part counts only
once it is listed with the hashes of both its files. ``recording/part_reader.py`` reads parts.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from memscope.base.errors import DamageError, InputError
from memscope.base.files import atomic_path, sha256_file
from memscope.base.parquet import part_writer
from memscope.base.seals import check_file, read_sealed, write_sealed
from memscope.recording.info import AGAIN, Part, RecordingInfo, read_info
from memscope.recording.sites import Site
from memscope.recording.token_rows import TokenRows, to_table

ROW_GROUP = 8192
"""Tokens per row group of token-major parts; one look-up decompresses one row group."""
SELECTION_ROW_GROUP = 32768
"""Selections per row group of entry-major parts; a row group never spans two layers."""
SELECTION_SCHEMA = pa.schema(
    {"layer": pa.uint16(), "entry": pa.uint32(), "row": pa.uint32(), "gate": pa.float16()}.items()
)
"""Columns of an entry-major part."""
VALUE_TYPES = {"by_score": pa.bool_()}
"""Types on disk of numbers beside the entries; float16 unless named."""
_PROGRESS = "progress-*.json"


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
            listed += [Part.model_validate(part) for part in read_sealed(path, AGAIN)["parts"]]
    return {part.name: part for part in listed if _is_whole(recording, part)}


def drop_progress(recording: Path) -> None:
    """Forget the processes' lists, once ``recording.json`` has all parts."""
    for path in recording.glob(_PROGRESS):
        path.unlink()


def write_part(recording: Path, number: int, first_row: int, rows: TokenRows, info: RecordingInfo) -> Part:
    """Write the two files of one part, each atomically, and return its entry for the list of parts.

    Args:
        recording: the recording's folder.
        number: of the part.
        first_row: number of its first row.
        rows: its tokens.
        info: what is being recorded.
    """
    name = f"part-{number:06d}.parquet"
    table = to_table(rows, token_schema(info), info.sites, [info.columns_of(site) for site in info.sites])
    with atomic_path(recording / "tokens" / name) as temporary:
        _write(temporary, [table], ROW_GROUP)
        tokens_sha256 = sha256_file(temporary)
    with atomic_path(recording / "selections" / name) as temporary:
        tables = (_selection_table(rows, axis, first_row, info) for axis in range(len(info.layers)))
        _write(temporary, tables, SELECTION_ROW_GROUP)
        selections_sha256 = sha256_file(temporary)
    return Part(name=name, rows=len(rows.doc), tokens_sha256=tokens_sha256, selections_sha256=selections_sha256)


def tokens_path(recording: Path, part: Part) -> Path:
    """Path of a part's token-major file."""
    return recording / "tokens" / part.name


def selections_path(recording: Path, part: Part) -> Path:
    """Path of a part's entry-major file."""
    return recording / "selections" / part.name


def whole_tokens(recording: Path, part: Part) -> Path:
    """Path of a part's token-major file, after a check of its hash (``check_file``)."""
    check_file(tokens_path(recording, part), part.tokens_sha256, AGAIN)
    return tokens_path(recording, part)


def whole_selections(recording: Path, part: Part) -> Path:
    """Path of a part's entry-major file, after a check of its hash (``check_file``)."""
    check_file(selections_path(recording, part), part.selections_sha256, AGAIN)
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
    columns = dict.fromkeys(("doc", "pos", "token", "predicted"), pa.uint32()) | {"loss": pa.float32()}
    for site in info.sites:
        k = site.selected
        widths = {"margin": site.gate_heads, "score_margin": site.gate_heads}
        widths |= {"head_read": site.read_heads * k, "slot_read": site.slots * k}
        columns[f"l{site.layer}_indices"] = pa.list_(_entry_type(info, site), k)
        for name in info.columns_of(site):
            columns[f"l{site.layer}_{name}"] = pa.list_(VALUE_TYPES.get(name, pa.float16()), widths.get(name, k))
    return pa.schema(columns.items())


def _entry_type(info: RecordingInfo, site: Site) -> pa.DataType:
    """Type of entry numbers on disk; one with a sign where a token may select none."""
    if site.varies:
        return pa.int32()
    return pa.uint16() if info.knowledge_num <= 65536 else pa.uint32()


def _selection_table(rows: TokenRows, axis: int, first_row: int, info: RecordingInfo) -> pa.Table:
    site = info.sites[axis]
    entries = rows.indices[:, axis, : site.selected].ravel()
    narrow = entries.astype(np.uint16) if info.knowledge_num <= 65536 - site.varies else entries  # -1: the largest
    order = np.argsort(narrow, kind="stable")  # radix sort for 16 bits; stable keeps rows rising within an entry
    if site.varies:
        order = order[entries[order] >= 0]
    gate = None if rows.gate is None or "scores" not in site.has else rows.gate[:, axis, : site.selected].ravel()[order]
    return pa.table(
        {
            "layer": pa.array(np.full(len(order), site.layer, np.uint16)),
            "entry": pa.array(entries[order], pa.uint32()),
            "row": pa.array(first_row + order // site.selected, pa.uint32()),
            "gate": pa.nulls(len(order), pa.float16()) if gate is None else pa.array(gate, pa.float16()),
        }
    )
