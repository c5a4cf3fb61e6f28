"""Parts of a recording round-trip in both orders, and any stretch of rows and any entry is found again."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from memscope.base.errors import InputError
from memscope.base.files import write_json
from memscope.base.parquet import read_parquet
from memscope.recording import part_reader
from memscope.recording import parts as store
from memscope.recording.info import FORMAT_VERSION, Part, RecordingInfo, read_info, write_info
from memscope.recording.part_reader import SelectionReader, read_part, read_rows
from memscope.recording.parts import (
    TokenRows,
    drop_progress,
    finished_parts,
    part_bytes,
    selections_path,
    tokens_path,
    write_part,
    write_progress,
)
from tests.synthetic import all_rows, cut, make_info, make_rows, selections_of, write_recording


def assert_equal_rows(one: TokenRows, two: TokenRows) -> None:
    for field in fields(TokenRows):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if a is None or b is None:
            assert a is b, field.name
            continue
        assert a.dtype == b.dtype, field.name
        np.testing.assert_array_equal(a, b, err_msg=field.name)


@pytest.mark.parametrize("knowledge_num", [64, 65536, 65537, 1_000_000])
def test_a_part_comes_back_exactly_in_both_orders(tmp_path: Path, knowledge_num: int) -> None:
    rows = make_rows([30, 20], beside=True)
    info = make_info(knowledge_num=knowledge_num, selection_bias=True, signed_reads=True)
    rows.indices[3, 1, 2] = rows.indices[7, 0, 0] = knowledge_num - 1  # the largest that must fit
    rows.token[5] = rows.predicted[6] = 2**32 - 1
    part = write_part(tmp_path, 3, 100, rows, info)
    assert (part.name, part.rows) == ("part-000003.parquet", 50)
    assert_equal_rows(read_part(tmp_path, part, info), rows)
    stored = pq.read_schema(tokens_path(tmp_path, part)).field("l0_indices").type.value_type
    assert str(stored) == ("uint16" if knowledge_num <= 65536 else "uint32")

    table = read_parquet(selections_path(tmp_path, part)).to_pydict()
    found = list(zip(*(table[name] for name in ("layer", "entry", "row", "gate")), strict=True))
    expected = [
        (layer, entry, 100 + row, gate)
        for axis, layer in enumerate(info.layers)
        for entry, row, _, gate in sorted((e, r, k, g) for r, k, e, g, _ in selections_of(rows, axis))
    ]
    assert found == expected  # sorted by layer, entry and row


def test_weights_per_head_and_slot_come_back_when_they_were_recorded(tmp_path: Path) -> None:
    rows, chance = make_rows([12]), np.random.default_rng(0)
    info = make_info(head_weights=True, slot_weights=True, read_heads=2, slots=3)
    wide = TokenRows(
        **{field.name: getattr(rows, field.name) for field in fields(TokenRows)}
        | {
            "head_read": chance.standard_normal((12, 2, 2 * 4)).astype(np.float16),
            "slot_read": chance.standard_normal((12, 2, 4 * 3)).astype(np.float16),
        }
    )
    part = write_part(tmp_path, 0, 0, wide, info)
    assert_equal_rows(read_part(tmp_path, part, info), wide)
    assert_equal_rows(read_part(tmp_path, part, make_info()), rows)  # who does not ask does not get them


LENGTHS = [20, 30, 15, 7]
BOUNDS = [0, 25, 65, 72]


@pytest.fixture
def three_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RecordingInfo, TokenRows]:
    """Parts of 25, 40 and 7 rows, in row groups of 10 rows and of 16 selections."""
    monkeypatch.setattr(store, "ROW_GROUP", 10)
    monkeypatch.setattr(store, "SELECTION_ROW_GROUP", 16)
    rows = make_rows(LENGTHS, entries=40)
    return write_recording(tmp_path, rows, bounds=BOUNDS), rows


def test_any_stretch_of_rows_equals_a_slice_of_the_whole(
    tmp_path: Path, three_parts: tuple[RecordingInfo, TokenRows]
) -> None:
    info, whole = three_parts
    assert_equal_rows(all_rows(tmp_path, info), whole)
    assert (info.first_rows(), info.rows) == ([0, 25, 65], 72)
    chance = np.random.default_rng(1)
    stretches = [(0, 72), (9, 2), (10, 10), (24, 2), (25, 40), (64, 8), (71, 1)]
    stretches += [(int(first), int(chance.integers(1, 73 - first))) for first in chance.integers(0, 72, 40)]
    for first, count in stretches:
        assert_equal_rows(read_rows(tmp_path, info, first, count), cut(whole, first, first + count))


def test_rows_past_the_end_are_refused(tmp_path: Path, three_parts: tuple[RecordingInfo, TokenRows]) -> None:
    with pytest.raises(InputError, match="it holds 72"):
        read_rows(tmp_path, three_parts[0], 72, 1)


def test_the_reader_of_entries_finds_what_a_filter_over_all_tokens_finds(
    tmp_path: Path, three_parts: tuple[RecordingInfo, TokenRows]
) -> None:
    info, rows = three_parts
    reader = SelectionReader(tmp_path, info)
    chance = np.random.default_rng(2)
    spans = [(0, 63), (0, 0), (39, 39), (40, 63), (63, 63)]
    spans += [tuple(sorted(chance.integers(0, 45, 2).tolist())) for _ in range(30)]
    spans += [(entry, entry) for entry in range(0, 40, 3)]
    for axis, layer in enumerate(info.layers):
        for first, last in spans:
            entry, row, gate = reader.read(layer, first, last)
            found = sorted(zip(entry.tolist(), row.tolist(), gate.astype(float).tolist(), strict=True))
            assert found == sorted((e, r, g) for r, _, e, g, _ in selections_of(rows, axis) if first <= e <= last)
        for only in (0, 7, 39):
            assert (np.diff(reader.read(layer, only, only)[1].astype(int)) > 0).all()  # rows rise
    assert all(len(column) == 0 for column in reader.read(1, 0, 63))  # a layer that was not recorded


def test_row_groups_never_span_two_layers(tmp_path: Path, three_parts: tuple[RecordingInfo, TokenRows]) -> None:
    for part in three_parts[0].parts:
        with pq.ParquetFile(selections_path(tmp_path, part)) as file:
            for number in range(file.num_row_groups):
                assert len(set(file.read_row_group(number, ["layer"])["layer"].to_pylist())) == 1


def test_the_reader_opens_only_row_groups_that_may_hold_the_entry(
    tmp_path: Path, three_parts: tuple[RecordingInfo, TokenRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    info, _ = three_parts
    reader, opened = SelectionReader(tmp_path, info), []

    def counting(path: Path, columns: list[str] | None = None, row_groups: list[int] | None = None) -> object:
        opened.append(len(row_groups or []))
        return read_parquet(path, columns, row_groups)

    monkeypatch.setattr(part_reader, "read_parquet", counting)
    reader.read(0, 39, 39)  # the rarest entry, in the last row groups
    groups = sum(len(part) for part in reader._groups)
    assert sum(opened) <= 3 < groups / 4


@pytest.mark.parametrize("order", ["tokens", "selections"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "empty"])
def test_damage_of_either_file_makes_a_part_unfinished(tmp_path: Path, order: str, damage: str) -> None:
    info = write_recording(tmp_path, make_rows(LENGTHS))
    path = tmp_path / order / info.parts[1].name
    content = path.read_bytes()
    assert finished_parts(tmp_path) == {part.name: part for part in info.parts}
    match damage:
        case "truncated":
            path.write_bytes(content[:-1])
        case "changed":
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
    assert list(finished_parts(tmp_path)) == [info.parts[0].name, info.parts[2].name]


def test_parts_listed_by_single_processes_count_until_all_are_gathered(tmp_path: Path) -> None:
    info = write_recording(tmp_path, make_rows(LENGTHS))
    one, two, three = info.parts
    write_info(tmp_path, info.model_copy(update={"parts": (one,)}))
    write_progress(tmp_path, 0, [three])
    write_progress(tmp_path, 1, [two])
    write_progress(tmp_path, 1, [two])
    assert set(finished_parts(tmp_path)) == {part.name for part in info.parts}
    write_progress(
        tmp_path, 3, [Part(name="part-000009.parquet", rows=1, tokens_sha256="0" * 64, selections_sha256="0" * 64)]
    )
    assert set(finished_parts(tmp_path)) == {part.name for part in info.parts}  # listed, but not on disk
    drop_progress(tmp_path)
    assert set(finished_parts(tmp_path)) == {one.name}
    assert list(tmp_path.glob("progress*")) == []


def test_a_part_that_fails_to_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, table: object, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write_part(tmp_path, 0, 0, make_rows([9]), make_info())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_part_bytes_are_those_on_disk(tmp_path: Path) -> None:
    info = write_recording(tmp_path, make_rows(LENGTHS))
    files = [path for order in ("tokens", "selections") for path in (tmp_path / order).iterdir()]
    assert part_bytes(tmp_path, info) == sum(path.stat().st_size for path in files)


def test_info_comes_back_and_names_what_differs(tmp_path: Path) -> None:
    info = make_info()
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info
    progress = {"complete": True, "seconds": 5.0, "run": "moved/run", "corpus": "moved/corpus.jsonl"}
    assert info.same_source(make_info(**progress)) == []
    other = make_info(knowledge_num=128, corpus_sha256="t", score_bits=10, step=5, **progress)
    assert sorted(info.same_source(other)) == ["corpus_sha256", "score_bits", "sites", "step"]
    assert (info.run_name, info.corpus_name) == ("run", "corpus.jsonl")  # names, not places


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format_version": 1}, f"format version 1, this memscope reads {FORMAT_VERSION}; record again"),
        ({"format_version": FORMAT_VERSION}, "damaged or edited .*; record again"),
        ([1], "format version None"),
    ],
)
def test_a_foreign_recording_json_is_refused(tmp_path: Path, content: object, message: str) -> None:
    write_json(tmp_path / "recording.json", content)
    with pytest.raises(InputError, match=message):
        read_info(tmp_path)


def test_a_folder_without_recording_json_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make a recording with 'memscope record'"):
        read_info(tmp_path)
