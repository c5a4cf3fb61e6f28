"""No number that a part holds reaches a compiled loop unless recording.json allows it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memscope.base.errors import InputError
from memscope.base.files import sha256_file, write_json
from memscope.base.parquet import fixed_lists, matrix, read_parquet
from memscope.base.seals import write_sealed
from memscope.census.aggregate import write_aggregates
from memscope.recording.info import Part, RecordingInfo, read_info, write_info
from memscope.recording.part_reader import SelectionReader, read_columns, read_part, read_rows
from memscope.recording.parts import selections_path, token_schema, tokens_path
from tests.synthetic import make_rows, write_recording

Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    write_recording(tmp_path, make_rows([30, 20, 25]), knowledge_num=64)
    return tmp_path


def rewrite(
    recording: Path, order: str, change: Callable[[pa.Table], pa.Table], row_group: int = 8192
) -> RecordingInfo:
    """Change the first part and list it with its new hash, as a program would that writes recordings itself."""
    info = read_info(recording)
    path = recording / order / info.parts[0].name
    pq.write_table(change(read_parquet(path)), path, row_group_size=row_group)
    part = info.parts[0].model_copy(update={f"{order}_sha256": sha256_file(path)})
    info = info.model_copy(update={"parts": (part, *info.parts[1:])})
    write_info(recording, info)
    return info


def replaced(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place, kind = table.schema.get_field_index(name), table.schema.field(name).type
        if pa.types.is_fixed_size_list(kind):
            values = make(matrix(table[name]).copy())
            return table.set_column(place, name, fixed_lists(values, kind.value_type))
        return table.set_column(place, name, pa.array(make(table[name].to_numpy().copy()), kind))

    return change


def first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values.reshape(-1)[0] = value
        return values

    return change


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("l0_indices", first(64), r"l0_indices has entries \d+ to 64, the layer's are 0 to 63"),
        ("l2_indices", first(60000), r"to 60000, the layer's are 0 to 63"),
        ("token", first(2**32 - 1), r"token has 4294967295, the largest may be \d+"),
        ("predicted", first(10**6), "predicted has 1000000"),
        ("doc", first(3), "doc has 3, the largest may be 2"),
        ("l0_gate", first(np.nan), "l0_gate has scores that are negative or not finite"),
        ("l0_gate", first(-1), "negative or not finite"),
        ("l2_read", first(np.inf), "l2_read is not finite"),
        ("l0_margin", first(-np.inf), "l0_margin is infinite"),
        ("loss", first(np.inf), "loss is infinite"),
    ],
)
def test_a_number_out_of_range_is_named(
    recording: Path, column: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    info = rewrite(recording, "tokens", replaced(column, change))
    for read in (
        lambda: read_columns(recording, info, info.parts[0], [column]),
        lambda: read_part(recording, info.parts[0], info),
        lambda: read_rows(recording, info, 0, 3),
    ):
        with pytest.raises(InputError, match=rf"part-000000\.parquet: .*{message}.*; record again"):
            read()
    if column in ("l0_indices", "token", "doc", "l0_gate"):
        with pytest.raises(InputError, match=message):
            write_aggregates(recording, info)


def test_not_a_number_stands_where_nothing_was_rejected_and_where_a_document_ends(recording: Path) -> None:
    info = rewrite(recording, "tokens", replaced("l0_margin", first(np.nan)))
    rows = read_part(recording, info.parts[0], info)
    assert np.isnan(rows.margin).any()
    assert np.isnan(read_rows(recording, info, 0, info.rows).loss).sum() == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["l0_gate"]), "column l0_gate is not there"),
        (lambda table: table.slice(1), "rows, recording.json says"),
        (lambda table: table.set_column(2, "token", table["token"].cast(pa.int64())), "column token is of type int64"),
        (
            lambda table: table.set_column(
                5, "l0_indices", fixed_lists(matrix(table["l0_indices"])[:, :3], pa.uint16())
            ),
            "column l0_indices is of type fixed_size_list",
        ),
        (lambda table: table.set_column(0, "doc", pa.nulls(len(table), pa.uint32())), "doc has empty rows"),
    ],
)
def test_other_columns_types_and_sizes_are_named(
    recording: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    info = rewrite(recording, "tokens", change)
    with pytest.raises(InputError, match=message):
        read_part(recording, info.parts[0], info)


def test_row_groups_of_any_size_are_found(recording: Path) -> None:
    whole = read_rows(recording, read_info(recording), 0, 75)
    info = rewrite(recording, "tokens", lambda table: table, row_group=7)
    for begin, count in ((0, 75), (5, 3), (6, 2), (13, 12), (20, 40)):
        np.testing.assert_array_equal(
            read_rows(recording, info, begin, count).indices, whole.indices[begin : begin + count]
        )


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("entry", lambda values: np.full_like(values, 64), "entries of layer 0 are out of range or order"),
        ("entry", lambda values: values[::-1], "out of range or order|does not say"),
        ("row", first(10**9), "rows that are not of this part"),
        ("gate", first(np.nan), "gate scores that are negative or not finite"),
    ],
)
def test_selections_out_of_range_are_named(recording: Path, column: str, change: Any, message: str) -> None:
    size = read_info(recording).parts[0].rows * 4  # a row group per layer, as they are written
    info = rewrite(recording, "selections", replaced(column, change), row_group=size)
    with pytest.raises(InputError, match=message):
        SelectionReader(recording, info).read(0, 0, 70)


def test_selections_that_are_not_those_of_the_tokens_are_named(recording: Path) -> None:
    size = read_info(recording).parts[0].rows * 4
    info = rewrite(recording, "selections", replaced("entry", lambda values: np.sort(values * 0 + 7)), row_group=size)
    with pytest.raises(InputError, match="do not hold the same entries"):
        write_aggregates(recording, info)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entries": 48}, "has 64 entries, recording.json says 48|the layer's are 0 to 47"),
        ({"entries": 4096}, "has 64 entries, recording.json says 4,096"),
        ({"documents": 4}, "has 3 documents, recording.json says 4"),
        ({"vocab_size": 7}, r"token ids, recording.json says 7"),
        ({"selected": 2}, "column l0_indices is of type"),
        ({"gate_heads": 2}, "column l0_margin is of type"),
        ({"layer": [0, 1]}, "column l1_indices is not there"),
        ({"entries": -1}, r"sites\.0\.entries: Input should be greater than or equal to 1"),
        ({"layer": [2, 0]}, "layers must be there and rise"),
        ({"first_entry": [0, 32]}, "banks must follow one another without gaps"),  # they overlap
        ({"first_entry": [0, 65]}, "banks must follow one another without gaps"),
        ({"first_entry": 1}, "banks must follow one another without gaps, from entry 0 on"),
        ({"gate_heads": 3}, "selected must be a multiple of gate_heads"),
        ({"selected": 65}, "each can select what a layer has"),
    ],
)
def test_an_edited_description_that_its_files_contradict_is_refused(
    recording: Path, change: dict[str, Any], message: str
) -> None:
    raw = json.loads((recording / "recording.json").read_text())
    for name, value in change.items():
        if name in raw:
            raw[name] = value
        else:  # of every site
            for site, own in zip(raw["sites"], value if isinstance(value, list) else [value, value], strict=True):
                assert name in site
                site[name] = own
    del raw["sha256"]
    write_sealed(recording / "recording.json", raw)
    with pytest.raises(InputError, match=message):
        write_aggregates(recording, read_info(recording))


@pytest.mark.parametrize("name", ["../../secret.parquet", "/etc/passwd", "part-000000.parquet/../x", "", "part-0"])
def test_a_part_has_a_name_not_a_path(recording: Path, name: str) -> None:
    raw = json.loads((recording / "recording.json").read_text())
    raw["parts"][0]["name"] = name
    del raw["sha256"]
    write_sealed(recording / "recording.json", raw)
    with pytest.raises(InputError, match=r"parts\.0\.name"):
        read_info(recording)


def test_a_link_out_of_the_folder_is_not_followed(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    info, elsewhere = read_info(recording), tmp_path_factory.mktemp("elsewhere") / "part.parquet"
    path = tokens_path(recording, info.parts[0])
    path.replace(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(InputError, match="is a link that leads out of its folder"):
        read_part(recording, info.parts[0], info)


def test_what_is_written_is_what_the_reader_expects(recording: Path) -> None:
    info = read_info(recording)
    for part in info.parts:
        assert read_parquet(tokens_path(recording, part)).schema.equals(token_schema(info))


@pytest.mark.parametrize("order", ["tokens", "selections"])
def test_a_part_of_other_bytes_is_damaged(recording: Path, order: str) -> None:
    info = read_info(recording)
    path = recording / order / info.parts[1].name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"part-000001\.parquet: damaged .*; record again"):
        read_rows(recording, info, 0, info.rows) if order == "tokens" else SelectionReader(recording, info)


def test_an_edited_recording_json_is_refused(recording: Path) -> None:
    raw = json.loads((recording / "recording.json").read_text())
    write_json(recording / "recording.json", raw | {"documents": 65})
    with pytest.raises(InputError, match=r"recording\.json: damaged or edited"):
        read_info(recording)
    write_json(recording / "recording.json", raw)
    assert isinstance(read_info(recording).parts[0], Part)
    assert selections_path(recording, read_info(recording).parts[0]).is_file()
