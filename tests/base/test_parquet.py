"""Tables come back as they were written; what is damaged is named."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from memscope.base.errors import InputError
from memscope.base.parquet import TableWriter, fixed_lists, matrix, open_parquet, part_writer, read_parquet, write_table


@pytest.mark.parametrize("kind", [pa.uint16(), pa.uint32(), pa.float16(), pa.float32(), pa.int32()])
@pytest.mark.parametrize("shape", [(7, 3), (5, 1), (0, 4)])
def test_a_matrix_comes_back_from_its_column(tmp_path: Path, kind: pa.DataType, shape: tuple[int, int]) -> None:
    values = np.arange(shape[0] * shape[1]).reshape(shape).astype(kind.to_pandas_dtype())
    write_table(tmp_path / "m.parquet", {"m": fixed_lists(values, kind)})
    found = matrix(read_parquet(tmp_path / "m.parquet")["m"]) if len(values) else values
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_a_slice_and_the_chunks_of_a_column_are_the_rows_they_show() -> None:
    values = np.arange(24, dtype=np.float32).reshape(8, 3)
    table = pa.table({"m": fixed_lists(values, pa.float32())})
    np.testing.assert_array_equal(matrix(table.slice(2, 4)["m"]), values[2:6])
    several = pa.concat_tables([table.slice(5, 3), table.slice(0, 1), table.slice(1, 2)])["m"]
    assert several.num_chunks == 3
    np.testing.assert_array_equal(matrix(several), values[[5, 6, 7, 0, 1, 2]])


def test_only_the_rows_of_a_view_become_lists() -> None:
    values = np.arange(24, dtype=np.float32).reshape(8, 3)
    np.testing.assert_array_equal(matrix(pa.chunked_array([fixed_lists(values[::2], pa.float32())])), values[::2])
    np.testing.assert_array_equal(matrix(pa.chunked_array([fixed_lists(values.T, pa.float32())])), values.T)


def test_columns_and_row_groups_are_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, {"a": np.arange(35), "b": np.arange(35) * 2}, 10)
    with open_parquet(path) as file:
        assert file.num_row_groups == 4
    assert read_parquet(path, ["b"]).column_names == ["b"]
    assert read_parquet(path, ["a"], [1, 3])["a"].to_pylist() == [*range(10, 20), *range(30, 35)]
    assert read_parquet(path, ["a"], [])["a"].to_pylist() == []
    with open_parquet(path) as file:
        known = file.metadata
    assert read_parquet(path, ["a"], [0], known)["a"].to_pylist() == list(range(10))


def test_a_writer_appends_tables_into_one_file(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "t.parquet")
    for start in (0, 5, 5):
        writer.write({"a": np.arange(start, start + 3), "m": fixed_lists(np.full((3, 2), start), pa.uint16())})
    writer.close()
    table = read_parquet(tmp_path / "t.parquet")
    assert table["a"].to_pylist() == [0, 1, 2, 5, 6, 7, 5, 6, 7]
    assert matrix(table["m"])[:, 0].tolist() == [0] * 3 + [5] * 6


def test_a_table_that_fails_to_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, {"a": np.arange(3)})
    with pytest.raises(pa.ArrowInvalid):
        write_table(path, {"a": np.arange(3), "b": np.arange(4)})
    assert read_parquet(path).column_names == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


@pytest.mark.parametrize("entries", [pa.uint16(), pa.uint32()])
def test_a_part_comes_back_with_every_kind_of_column(tmp_path: Path, entries: pa.DataType) -> None:
    chance = np.random.default_rng(0)
    gate = chance.random((500, 2)).astype(np.float16)
    gate[3], gate[4] = np.nan, 0
    table = pa.table(
        {
            "doc": pa.array(np.arange(500) // 50, pa.uint32()),
            "token": pa.array(chance.integers(0, 2**32, 500), pa.uint32()),
            "loss": pa.array([None, *chance.random(499)], pa.float32()),
            "layer": pa.array(np.full(500, 7), pa.uint16()),
            "entry": pa.array(np.sort(chance.integers(0, 60000, 500)), pa.uint32()),
            "gate": pa.array(gate[:, 0]),
            "l0_indices": fixed_lists(chance.integers(0, 65536, (500, 3)), entries),
            "l0_gate": fixed_lists(gate, pa.float16()),
        }
    )
    path = tmp_path / "part.parquet"
    writer = part_writer(path, table.schema)
    for start in (0, 300):
        writer.write_table(table.slice(start, 300), row_group_size=128)
    writer.close()
    found = read_parquet(path)
    assert found.schema == table.schema
    for name in table.column_names:
        one, other = (t[name].combine_chunks() for t in (found, table))
        if name in ("gate", "l0_gate"):  # NaN is not equal to itself
            one, other = (matrix(t[name]) if name == "l0_gate" else t[name].to_numpy() for t in (found, table))
            np.testing.assert_array_equal(one, other)
        else:
            assert one.equals(other), name
    with open_parquet(path) as file:  # the smallest and largest entry of a row group is what look-ups go by
        statistics = [file.metadata.row_group(n).column(4).statistics for n in range(file.num_row_groups)]
    assert [s.has_min_max for s in statistics] == [True] * len(statistics)
    frame = duckdb.sql(f"SELECT * FROM read_parquet('{path}')").df()
    np.testing.assert_array_equal(np.stack(frame["l0_gate"]).astype(np.float16), gate)
    assert frame["entry"].tolist() == table["entry"].to_pylist()


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"PAR1 and not more than that PAR1", b"\xff\x00" * 500])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "t.parquet"
    if content is not None:
        path.write_bytes(content)
    for read in (read_parquet, open_parquet):
        with pytest.raises(InputError, match=r"t\.parquet: (missing|damaged)"):
            read(path)


def test_damage_inside_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, {"a": [f"row {number}" for number in range(4000)]})
    content = bytearray(path.read_bytes())
    content[100:400] = b"\xff" * 300  # footer and metadata stay whole
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.parquet: damaged"):
        read_parquet(path)
