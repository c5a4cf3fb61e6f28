"""Columns of all rows, against the rows as they were written; parts cut documents in two."""

from pathlib import Path

import numpy as np
import pytest

from memscope.query.recording import Recording
from memscope.recording import row_columns as module
from memscope.recording.row_columns import disk_array, distinct_pairs, row_columns, tally


def test_columns_are_those_of_the_rows(tiny_recording: Recording) -> None:
    info, documents = tiny_recording.info, tiny_recording.documents
    assert len(info.parts) > 1
    names = ["token", "previous", "following", "predicted", "doc", "position"]
    found = row_columns(tiny_recording.path, info, names)
    token = tiny_recording.token_ids
    for number, (first, rows) in enumerate(zip(documents["first_row"], documents["rows"], strict=True)):
        here = slice(first, first + rows)
        position = np.arange(rows) % info.window
        before = np.append(-1, token[here][:-1])
        np.testing.assert_array_equal(found["token"][here], token[here])
        np.testing.assert_array_equal(found["doc"][here], number)
        np.testing.assert_array_equal(found["position"][here], position)
        np.testing.assert_array_equal(found["previous"][here], np.where(position > 0, before, -1))
        np.testing.assert_array_equal(found["following"][here], np.append(token[here][1:], -1))
    assert any(  # a document goes on behind a part, so that its next token is in another file
        found["following"][first - 1] == token[first] for first in info.first_rows()[1:]
    )
    assert not list(tiny_recording.path.glob("tmp*"))  # the files have no names


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_pieces_add_up(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    chance = np.random.default_rng(0)
    labels, other = chance.integers(-1, 5, 60), chance.integers(0, 5, 60)
    np.testing.assert_array_equal(tally(labels, 5), np.bincount(labels[labels >= 0], minlength=5))
    found, expected = distinct_pairs(other, other[::-1], 5), np.unique(other * 5 + other[::-1], return_counts=True)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_an_array_on_disk_outlives_its_file(tmp_path: Path) -> None:
    array = disk_array(tmp_path, 10)
    array[3] = 7
    assert array.dtype == np.int32 and array.tolist() == [0, 0, 0, 7, 0, 0, 0, 0, 0, 0]
    assert not list(tmp_path.iterdir()) and len(disk_array(tmp_path, 0)) == 0


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        disk_array(tmp_path, 1 << 55)
