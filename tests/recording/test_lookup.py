"""Rows of single entries, against a filter over the whole file."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from memscope.base.errors import InputError
from memscope.base.parquet import TableWriter, fixed_lists, read_parquet, write_table
from memscope.recording import lookup
from memscope.recording.lookup import EntryTable


def columns(layer: int, entries: list[int]) -> dict[str, object]:
    values = np.arange(2 * len(entries)).reshape(-1, 2) + 100 * layer
    return {
        "layer": np.full(len(entries), layer, np.uint16),
        "entry": np.array(entries, np.uint32),
        "text": pa.array([f"entry {entry}" for entry in entries], pa.string()),
        "list": fixed_lists(values, pa.int32()),
    }


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two layers, entries 0 to 60 with gaps and repeats, in row groups of 8."""
    chance, path = np.random.default_rng(0), tmp_path / "t.parquet"
    writer = TableWriter(path, row_group=8)
    for layer in (0, 3):
        writer.write(columns(layer, sorted(chance.integers(0, 30, 40).tolist() + chance.integers(45, 60, 20).tolist())))
    writer.close()
    return path


def assert_rows(path: Path, asked: list[int], names: list[str] | None = None) -> None:
    everything = read_parquet(path, names).to_pandas()
    expected = everything[everything["entry"].isin(asked)].reset_index(drop=True)
    pd.testing.assert_frame_equal(EntryTable(path).rows(asked, names), expected)


@pytest.mark.parametrize("asked", [[0], [59], [7, 7, 50], list(range(60)), [59, 0, 30], [35], [10**9], [], [29, 45]])
def test_rows_are_those_of_a_filter(table: Path, asked: list[int]) -> None:
    assert_rows(table, asked)
    assert_rows(table, asked, ["entry", "text"])


def test_random_questions_are_answered_like_a_filter(table: Path) -> None:
    chance = np.random.default_rng(1)
    for _ in range(30):
        assert_rows(table, chance.integers(0, 62, chance.integers(1, 5)).tolist())


def test_only_row_groups_that_may_hold_the_entry_are_opened(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def counting(path: Path, names: object, row_groups: list[int], metadata: object) -> object:
        opened.extend(row_groups)
        return read_parquet(path, names, row_groups, metadata)  # type: ignore[arg-type]

    monkeypatch.setattr(lookup, "read_parquet", counting)
    EntryTable(table).rows([50])
    assert 2 <= len(opened) <= 6  # of 16: both layers have it
    opened.clear()
    assert len(EntryTable(table).rows([35])) == 0  # in the gap of every layer
    assert opened == [] or len(opened) <= 2


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_layer_without_rows_does_not_shift_the_others(tmp_path: Path, empty: int) -> None:
    path = tmp_path / "t.parquet"
    writer = TableWriter(path)
    for layer in range(3):
        writer.write(columns(layer, [] if layer == empty else [10 * layer + 1, 10 * layer + 2]))
    writer.close()
    for entry in (1, 2, 11, 12, 21, 22):
        assert_rows(path, [entry])


def test_a_table_without_rows_answers_nothing(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", columns(0, []))
    assert_rows(tmp_path / "t.parquet", [3])
    assert_rows(tmp_path / "t.parquet", [])


def test_many_threads_may_ask_at_once(table: Path) -> None:
    one = EntryTable(table)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda entry: one.rows([entry]), list(range(60)) * 3))
    for entry, rows in enumerate(found):
        pd.testing.assert_frame_equal(rows, found[entry % 60])
        assert set(rows["entry"]) <= {entry % 60}


def test_a_missing_or_damaged_table_is_named(tmp_path: Path, table: Path) -> None:
    with pytest.raises(InputError, match=r"none\.parquet: missing"):
        EntryTable(tmp_path / "none.parquet")
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"t\.parquet: damaged"):
        EntryTable(table)
