"""Entries selected together, against pairs counted one by one."""

import math
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from memscope.base.parquet import read_parquet
from memscope.census import neighbours
from memscope.census.neighbours import MIN_TOGETHER, N_NEIGHBOURS, co_selection, neighbour_columns, write_neighbours
from memscope.recording.info import RecordingInfo
from memscope.recording.token_rows import TokenRows
from tests.synthetic import make_rows, write_recording

LENGTHS = [60, 25, 60, 33, 150]
Pairs = dict[tuple[int, int], tuple[int, float]]


def layer_neighbours(recording: Path, info: RecordingInfo, layer: int) -> dict[str, np.ndarray]:
    return neighbour_columns(co_selection(recording, info, layer), layer)


def naive_npmi(indices: np.ndarray) -> Pairs:
    """Tokens together and NPMI of every ordered pair seen often enough and more often than by chance."""
    n = len(indices)
    tokens = [set(entries) for entries in indices.tolist()]
    single = Counter(entry for entries in tokens for entry in entries)
    pairs = Counter(pair for entries in tokens for pair in combinations(sorted(entries), 2))
    found: Pairs = {}
    for (a, b), together in pairs.items():
        p = together / n
        npmi = 1.0 if p == 1 else math.log(p / (single[a] / n) / (single[b] / n)) / -math.log(p)
        if together >= MIN_TOGETHER and npmi > 1e-7:
            found[a, b] = found[b, a] = (together, npmi)
    return found


def assert_neighbours(table: dict[str, np.ndarray], expected: Pairs) -> None:
    """Every entry has its best, in order; equal ones in the order of their numbers."""
    entries = table["entry"].tolist()
    assert entries == sorted(entries)
    assert set(entries) == {a for a, _ in expected}
    for entry in set(entries):
        here = table["entry"] == entry
        others, npmi, together = (table[name][here].tolist() for name in ("other", "npmi", "together"))
        best = sorted((-round(value, 5), b) for (a, b), (_, value) in expected.items() if a == entry)[:N_NEIGHBOURS]
        assert table["rank"][here].tolist() == list(range(len(best)))
        assert npmi == pytest.approx([-value for value, _ in best], abs=2e-5)
        assert together == [expected[entry, other][0] for other in others]
        assert npmi == pytest.approx([expected[entry, other][1] for other in others], rel=1e-5)
        assert entry not in others
        for (a, other_a), (b, other_b) in zip(
            zip(npmi, others, strict=True), list(zip(npmi, others, strict=True))[1:], strict=False
        ):
            assert a > b or (a == b and other_a < other_b)


@pytest.mark.parametrize(("entries", "selected"), [(12, 3), (30, 6), (64, 4)])
def test_neighbours_are_the_pairs_of_highest_npmi(tmp_path: Path, entries: int, selected: int) -> None:
    rows = make_rows(LENGTHS, entries=entries, selected=selected, seed=entries)
    rows.indices[::3, :, 0] = rows.indices[::3, :, 1] // 2 * 2  # some pairs on purpose, and some entries twice
    info = write_recording(tmp_path, rows, knowledge_num=entries)
    for axis, layer in enumerate(info.layers):
        table = layer_neighbours(tmp_path, info, layer)
        expected = naive_npmi(rows.indices[:, axis])
        assert_neighbours(table, expected)
        assert len(table["entry"]) > 5
        assert set(table["layer"].tolist()) == {layer}
        assert set(table["tokens"].tolist()) == {sum(LENGTHS)}
    assert entries != 30 or max(table["rank"]) == 9


def test_a_worked_example(tmp_path: Path) -> None:
    # 16 tokens: 8 select 1 and 2, 4 select 1 and 3, 4 select 4 and 5.
    rows = make_rows([16], entries=6, selected=2, layers=1)
    rows.indices[:, 0] = [[1, 2]] * 8 + [[1, 3]] * 4 + [[4, 5]] * 4
    info = write_recording(tmp_path, rows, knowledge_num=6)
    table = layer_neighbours(tmp_path, info, 0)
    # p(1) = 3/4, p(2) = p(1, 2) = 1/2: ln(4/3) / ln 2. The other pairs are seen four times, once too few.
    assert (table["entry"].tolist(), table["other"].tolist()) == ([1, 2], [2, 1])
    assert table["npmi"].tolist() == pytest.approx([math.log(4 / 3) / math.log(2)] * 2)
    assert table["together"].tolist() == [8, 8]


def test_entries_always_selected_together_have_an_npmi_of_one(tmp_path: Path) -> None:
    rows = make_rows([40], entries=9, selected=2, layers=1)
    rows.indices[:, 0] = np.where(np.arange(40)[:, None] < 10, [3, 7], [0, 1])
    table = layer_neighbours(tmp_path, write_recording(tmp_path, rows, knowledge_num=9), 0)
    found = {(e, o): v for e, o, v in zip(table["entry"], table["other"], table["npmi"], strict=True)}
    assert found == {(3, 7): 1, (7, 3): 1, (0, 1): 1, (1, 0): 1}


def test_a_pair_at_every_token_has_an_npmi_of_one(tmp_path: Path) -> None:
    rows = make_rows([40], entries=2, selected=2, layers=1)
    table = layer_neighbours(tmp_path, write_recording(tmp_path, rows, knowledge_num=2), 0)
    assert table["npmi"].tolist() == [1, 1]
    assert table["together"].tolist() == [40, 40]


def test_the_last_token_of_one_entry_may_be_the_first_of_the_next(tmp_path: Path) -> None:
    # 0 and 2 at tokens 0 to 5, 1 and 2 at 5 to 10, something else at 11 to 39.
    rows = make_rows([40], entries=6, selected=3, layers=1)
    rows.indices[:, 0] = [[0, 2, 3]] * 5 + [[0, 1, 2]] + [[1, 2, 4]] * 5 + [[3, 4, 5]] * 29
    table = layer_neighbours(tmp_path, write_recording(tmp_path, rows, knowledge_num=6), 0)
    together = {(e, o): n for e, o, n in zip(table["entry"], table["other"], table["together"], strict=True)}
    assert together[0, 2] == together[1, 2] == together[2, 0] == together[2, 1] == 6
    assert_neighbours(table, naive_npmi(rows.indices[:, 0]))


def test_two_heads_that_select_one_entry_count_once(tmp_path: Path) -> None:
    rows = make_rows([60], entries=8, selected=2, layers=1, heads=2)
    doubled = make_rows([60], entries=8, selected=4, layers=1, heads=2)
    doubled.indices[:, 0] = rows.indices[:, 0][:, [0, 1, 1, 0]]
    one, two = (
        layer_neighbours(folder, write_recording(folder, some, knowledge_num=8), 0)
        for folder, some in ((tmp_path / "one", rows), (tmp_path / "two", doubled))
    )
    assert len(one["entry"]) > 0
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("step", [2, 5])
def test_of_too_many_tokens_evenly_spread_ones_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    rows = make_rows(LENGTHS, entries=12, selected=3)
    bounds = [0, 101, 102, 200, 328]
    monkeypatch.setattr(neighbours, "MAX_VISITS", -(-328 * 9 // step))
    table = layer_neighbours(tmp_path, write_recording(tmp_path, rows, knowledge_num=12, bounds=bounds), 2)
    kept = [row for first, last in pairwise(bounds) for row in range(first, last, step)]
    assert_neighbours(table, naive_npmi(rows.indices[kept, 1]))
    assert set(table["tokens"].tolist()) == {len(kept)}


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return make_rows(LENGTHS, entries=12, selected=3, layers=3)


def test_all_layers_stand_in_one_file_in_order(tmp_path: Path, rows: TokenRows) -> None:
    info = write_recording(tmp_path, rows, knowledge_num=12)
    write_neighbours(tmp_path, info)
    table = read_parquet(tmp_path / "neighbours.parquet").to_pandas()
    assert list(table.columns) == ["layer", "entry", "rank", "other", "together", "npmi", "tokens"]
    assert table.equals(table.sort_values(["layer", "entry", "rank"]))
    for layer in info.layers:
        here = table[table["layer"] == layer]
        for name, values in layer_neighbours(tmp_path, info, layer).items():
            np.testing.assert_array_equal(here[name], values)


def test_parts_of_any_size_give_the_same(tmp_path: Path, rows: TokenRows) -> None:
    files = []
    for bounds in ([0, 328], [0, 1, 2, 150, 328]):
        folder = tmp_path / str(len(bounds))
        write_neighbours(folder, write_recording(folder, rows, knowledge_num=12, bounds=bounds))
        files.append((folder / "neighbours.parquet").read_bytes())
    assert files[0] == files[1]


def test_entries_that_are_rarely_seen_have_no_neighbours(tmp_path: Path) -> None:
    rows = make_rows([4], entries=8, selected=4, layers=2)
    write_neighbours(tmp_path, write_recording(tmp_path, rows, knowledge_num=8, bounds=[0, 4]))
    assert len(read_parquet(tmp_path / "neighbours.parquet")) == 0
