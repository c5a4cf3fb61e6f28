"""Check the files beside the parts of a recording, when it is opened or counted.

``check_files`` compares their bytes with ``recording.json``, ``check_sources`` checks the files that the census reads,
and ``check_tables`` the columns that the query layer reads; further columns may be there.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

from memscope.base.errors import InputError
from memscope.base.parquet import open_parquet, read_parquet
from memscope.base.seals import check_file, hashes
from memscope.recording.info import AGGREGATES, COPIES, INFO, STARTS, RecordingInfo
from memscope.text.tokenizer import Tokenizer

_TOKENS = "_token:[int] ", "_lift:[number] ", "_count:[int] "
COLUMNS = {
    "documents": "doc:int title:text group:text first_row:int rows:int",
    "bank_init": "entry:int sentence:text token_ids:[int] uuid:[text] subject:[text] predicate:[text] object:[text]",
    "usage": "layer:int entry:int count:int gate_sum:number read_sum:number read_signed_sum:number folds:[int]",
    "bias": "layer:int attribute:text label:text entries:int selections:int lift:number low:number high:number p:number"
    " significant:bool",
    "contexts": "layer:int entry:int kind:text rank:int row:int gate:number read:number",
    "firing": "layer:int entry:int count:int docs:int position_mean:number gate_deciles:[number] "
    + "".join(kind + end for kind in ("input", "previous", "predicted", "next") for end in _TOKENS),
    "neighbours": "layer:int entry:int rank:int other:int together:int npmi:number tokens:int",
    "anomalies": "kind:text layer:int entry:int other:int label:text effect:number p:number tokens:int",
    "titles": "entry:int title:text",
    "readability": "layer:int entry:int tokens:int readability:number balanced_accuracy:number control:number "
    "purity:number",
    "decodings": "entry:int drift:number nearest:[int] nearest_cosine:[number] kept:number kept_at_init:number "
    "slot_drift:[number]",
}
"""Columns and kinds of values of every Parquet file beside the parts; brackets are lists."""


def list_files(recording: Path, info: RecordingInfo) -> RecordingInfo:
    """``info`` with the hashes of the files that a recording has beside its parts, as they are now."""
    return info.model_copy(update={"files": hashes(recording, (*AGGREGATES, *COPIES))})


def check_recording(recording: Path, info: RecordingInfo) -> None:
    """Run all checks of this module; ``census_file.read_census`` checks the census.

    Raises:
        InputError: a file is missing, damaged, or not of this recording.
    """
    check_files(recording, info)
    check_sources(recording, info)
    check_tables(recording)


def check_files(recording: Path, info: RecordingInfo) -> None:
    """Compare the files beside the parts with the hashes that ``recording.json`` lists.

    Raises:
        InputError: one is missing or damaged.
    """
    for name, sha256 in info.files.items():
        check_file(recording / name, sha256, "record again")


def check_sources(recording: Path, info: RecordingInfo) -> None:
    """Check documents, tokenizer and bank, which the census reads beside the parts.

    Raises:
        InputError: one of them is missing, damaged, or not of this recording.
    """
    for name in ("documents.parquet", "tokenizer.json", STARTS):
        if name in info.files:
            check_file(recording / name, info.files[name], "record again")
    check_tables(recording, ["documents", "bank_init"])
    _check_documents(recording / "documents.parquet", info)
    with open_parquet(recording / STARTS) as file:
        _agree(recording / STARTS, "entries", file.metadata.num_rows, info.knowledge_num)
    vocab = Tokenizer.load(recording / "tokenizer.json").vocab_size
    _agree(recording / "tokenizer.json", "token ids", vocab, info.vocab_size)


def check_tables(recording: Path, names: list[str] | None = None) -> None:
    """Check columns and types of the Parquet files beside the parts, of all by default; reads footers alone.

    Raises:
        InputError: a file is missing or damaged, or lacks a column.
    """
    for name in names or COLUMNS:
        path = recording / f"{name}.parquet"
        with open_parquet(path) as file:
            schema = file.schema_arrow
        for column in COLUMNS[name].split():
            title, _, kind = column.partition(":")
            number = schema.get_field_index(title)
            kind_there = schema.field(number).type if number >= 0 else "not there"
            if number < 0 or not _is(schema.field(number).type, kind):
                raise InputError(f"{path}: column {title} is {kind_there}, expected {kind}; record again")


def _check_documents(path: Path, info: RecordingInfo) -> None:
    table = read_parquet(path, ["doc", "first_row", "rows"])
    doc, first_row, rows = (table[name].to_numpy() for name in ("doc", "first_row", "rows"))
    _agree(path, "documents", len(doc), info.documents)
    _agree(path, "tokens", int(rows.sum()), info.rows)
    if (rows < 0).any() or (doc != np.arange(len(doc))).any() or (first_row != np.cumsum(rows) - rows).any():
        raise InputError(f"{path}: documents do not follow one another; record again")


def _agree(path: Path, what: str, count: int, expected: int) -> None:
    if count != expected:
        raise InputError(f"{path}: has {count:,} {what}, {INFO} says {expected:,}; record again")


def _is(data_type: pa.DataType, kind: str) -> bool:
    if kind.startswith("["):
        is_list = kinds.is_list(data_type) or kinds.is_large_list(data_type) or kinds.is_fixed_size_list(data_type)
        return is_list and _is(data_type.value_type, kind[1:-1])
    if kinds.is_dictionary(data_type):
        return _is(data_type.value_type, kind)
    match kind:
        case "int":
            return kinds.is_integer(data_type)
        case "number":
            return kinds.is_floating(data_type) or kinds.is_integer(data_type) or kinds.is_null(data_type)
        case "bool":
            return kinds.is_boolean(data_type)
        case _:
            return kinds.is_string(data_type) or kinds.is_large_string(data_type) or kinds.is_null(data_type)
