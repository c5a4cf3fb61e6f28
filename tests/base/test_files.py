"""Files appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from memscope.base.errors import InputError
from memscope.base.files import atomic_path, make_folder, read_json, sha256_file, write_json


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_is_replaced_only_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert target.read_text() == "old"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_a_folder_is_replaced_only_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content, fails in (("old", False), ("half", True)):
        try:
            with atomic_path(target) as temporary:
                temporary.mkdir()
                (temporary / content).touch()
                if fails:
                    raise RuntimeError
        except RuntimeError:
            pass
    assert names(target) == ["old"]
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file.json"
    write_json(target, {"version": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(target, {"version": 2})
    assert read_json(target) == {"version": 1}
    assert names(tmp_path) == ["file.json"]


def test_a_folder_under_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"cannot create this folder .*; choose another one"):
            make_folder(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="not writable"):
        make_folder(tmp_path)


def test_text_round_trips_as_utf8_json(tmp_path: Path) -> None:
    value = {"text": "Straße \u2028 漢字 🙂", "list": [1, None, 0.5]}
    write_json(tmp_path / "deep" / "file.json", value)
    assert read_json(tmp_path / "deep" / "file.json") == value
    assert "漢字" in (tmp_path / "deep" / "file.json").read_text(encoding="utf-8")


def test_nan_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", float("nan"))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": 1', "file.json:1: not valid JSON .* truncated"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "file.json"),  # nested deeper than Python recurses
    ],
)
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(path)


def test_a_missing_file_and_a_folder_are_not_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="this is a folder"):
        read_json(tmp_path)


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")  # the test vector of FIPS 180-2
    assert sha256_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
