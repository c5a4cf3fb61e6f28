"""Parts of a recording round-trip, and any stretch of rows is found again."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from memscope import store
from memscope.errors import InputError
from memscope.files import write_json
from memscope.store import RecordingInfo, TokenRows, part_is_whole, read_info, read_part, read_rows, write_part

FIELDS = ("doc", "pos", "token", "loss", "indices", "gate", "read")


def make_rows(n: int, seed: int = 0, knowledge_num: int = 64) -> TokenRows:
    chance = np.random.default_rng(seed)
    loss = chance.random(n, np.float32) * 9
    loss[chance.random(n) < 0.2] = np.nan
    return TokenRows(
        doc=np.sort(chance.integers(0, 5, n)).astype(np.uint32),
        pos=np.arange(n, dtype=np.uint32),
        token=chance.integers(0, 300, n).astype(np.uint32),
        loss=loss,
        indices=chance.integers(0, knowledge_num, (n, 2, 4)).astype(np.uint32),
        gate=chance.random((n, 2, 4)).astype(np.float16),
        read=chance.standard_normal((n, 2, 4)).astype(np.float16),
    )


def make_info(knowledge_num: int = 64, **values: object) -> RecordingInfo:
    settings = {"run": "run", "fingerprint": "f", "corpus": "c", "corpus_sha256": "s", "dtype": "float32"}
    sizes = {"knowledge_length": 1, "selected": 4, "part_tokens": 100, "total_tokens": 0}
    progress = {"complete": True, "seconds": 0.0, "parts": ()}
    raw = {"format_version": 1, "layers": (0, 2), "knowledge_num": knowledge_num, **settings, **sizes, **progress}
    return RecordingInfo.model_validate(raw | values)


def assert_equal_rows(one: TokenRows, two: TokenRows) -> None:
    for field in FIELDS:
        a, b = getattr(one, field), getattr(two, field)
        assert a.dtype == b.dtype, field
        np.testing.assert_array_equal(a, b, err_msg=field)


@pytest.mark.parametrize(("knowledge_num", "vocab"), [(64, 300), (1_000_000, 300), (65536, 100_000), (65537, 65536)])
def test_a_part_comes_back_exactly(tmp_path: Path, knowledge_num: int, vocab: int) -> None:
    rows, info = make_rows(50, knowledge_num=knowledge_num), make_info(knowledge_num)
    rows.token[0], rows.indices[0, 0, 0] = vocab - 1, knowledge_num - 1  # the largest that must fit
    part = write_part(tmp_path, 3, rows, info, vocab)
    assert (part.name, part.rows) == ("part-000003.parquet", 50)
    assert part_is_whole(tmp_path, part)
    assert_equal_rows(read_part(tmp_path, part, info), rows)


@pytest.fixture
def three_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RecordingInfo, TokenRows]:
    """Parts of 25, 40 and 7 rows in row groups of 10."""
    monkeypatch.setattr(store, "ROW_GROUP", 10)
    whole, bounds = make_rows(72), [0, 25, 65, 72]
    parts = []
    for number, (a, b) in enumerate(pairwise(bounds)):
        piece = TokenRows(*(getattr(whole, field)[a:b] for field in FIELDS))
        parts.append(write_part(tmp_path, number, piece, make_info(), 300))
    return make_info(parts=tuple(parts), total_tokens=72), whole


def test_any_stretch_of_rows_equals_a_slice_of_the_whole(
    tmp_path: Path, three_parts: tuple[RecordingInfo, TokenRows]
) -> None:
    info, whole = three_parts
    chance = np.random.default_rng(1)
    stretches = [(0, 72), (9, 2), (10, 10), (24, 2), (25, 40), (64, 8), (71, 1)]
    stretches += [(int(first), int(chance.integers(1, 73 - first))) for first in chance.integers(0, 72, 40)]
    for first, count in stretches:
        expected = TokenRows(*(getattr(whole, field)[first : first + count] for field in FIELDS))
        assert_equal_rows(read_rows(tmp_path, info, first, count), expected)


def test_rows_past_the_end_are_refused(tmp_path: Path, three_parts: tuple[RecordingInfo, TokenRows]) -> None:
    with pytest.raises(InputError, match="it holds 72"):
        read_rows(tmp_path, three_parts[0], 72, 1)


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_part_is_noticed(tmp_path: Path, damage: str) -> None:
    part = write_part(tmp_path, 0, make_rows(50), make_info(), 300)
    path = tmp_path / "tokens" / part.name
    content = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(content[:-1])
        case "changed":
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "missing":
            path.unlink()
    assert not part_is_whole(tmp_path, part)


def test_info_comes_back_and_names_what_differs(tmp_path: Path) -> None:
    info = make_info()
    store.write_info(tmp_path, info)
    assert read_info(tmp_path) == info
    other = make_info(knowledge_num=128, corpus_sha256="t", complete=False, seconds=5.0)
    assert info.same_source(other) == ["corpus_sha256", "knowledge_num"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format_version": 2}, "format version 2, this memscope reads 1"),
        ({"format_version": 1}, "Field required; record again"),
        ([1], "format version None"),
    ],
)
def test_a_foreign_recording_json_is_refused(tmp_path: Path, content: object, message: str) -> None:
    write_json(tmp_path / "recording.json", content)
    with pytest.raises(InputError, match=message):
        read_info(tmp_path)


def test_a_folder_without_recording_json_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make one with 'memscope record'"):
        read_info(tmp_path)
