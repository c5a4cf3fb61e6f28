"""Detect damage: compare files with the hashes noted when they were written, and JSON with the hash inside it.

    write_sealed(folder / "map.json", {"seed": 0, "files": hashes(folder, ["map.parquet"])})
    read_sealed(folder / "map.json", "map again")       # an InputError if a bit of it changed
    check_file(folder / "map.parquet", sha256, "map again")

A sealed JSON file vouches for its neighbours. Code that writes those again removes it first and writes it last, so a
killed process leaves files without a hash, never a wrong hash.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any

from memscope.base.errors import DamageError, InputError
from memscope.base.files import read_json, sha256_file, write_json

SEAL = "sha256"
"""Key of the hash in a sealed JSON file."""
LIST = "files.json"
"""Name of the file that lists the hashes of a folder's files, where no other file does."""
_checked: dict[Path, tuple[object, ...]] = {}
_lock = Lock()


def hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of those files among ``names`` that exist, by name."""
    return {name: sha256_file(folder / name) for name in names if (folder / name).is_file()}


def check_file(path: Path, sha256: str, advice: str) -> None:
    """Compare a file with the hash noted when it was written: once per process, and again when the file changes.

    Raises:
        DamageError: the file is missing or damaged; ``advice`` says what to do.
        InputError: the file is a link that leads out of its folder.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DamageError(f"{path}: missing; {advice}") from error
    if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"{path}: is a link that leads out of its folder; {advice}")
    known = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, sha256)
    with _lock:  # threads that need the same file wait until one of them has read it
        if _checked.get(path) != known:
            if sha256_file(path) != sha256:
                raise DamageError(f"{path}: damaged (its bytes are not those that were written); {advice}")
            _checked[path] = known


def listed(folder: Path, advice: str) -> dict[str, str]:
    """Hashes by file name that ``folder/files.json`` lists; empty without this file, as in folders of old versions.

    Raises:
        DamageError: the list itself is damaged.
    """
    path = folder / LIST
    return read_sealed(path, advice)["files"] if path.is_file() else {}


def check_listed(folder: Path, names: Iterable[str], advice: str) -> None:
    """``check_file`` for those of ``names`` that ``folder/files.json`` lists."""
    known = listed(folder, advice)
    for name in names:
        if name in known:
            check_file(folder / name, known[name], advice)


def write_sealed(target: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as JSON with its own hash, atomically."""
    write_json(target, value | {SEAL: _digest(value)})


def read_sealed(path: Path, advice: str, required: bool = True) -> dict[str, Any]:
    """Read a file of ``write_sealed``, without the hash.

    Args:
        path: of the file.
        advice: how to mend a damaged file, as the end of a sentence.
        required: refuse a file without a hash; earlier versions of memscope wrote some.

    Raises:
        DamageError: the file is missing, not JSON, or damaged.
    """
    raw = read_own_json(path)
    return unseal(raw, path, advice) if required or (isinstance(raw, dict) and SEAL in raw) else raw


def read_vouching(path: Path, advice: str) -> dict[str, Any]:
    """``read_sealed``, then ``check_file`` for all neighbours that the file lists."""
    value = read_sealed(path, advice)
    for name, sha256 in value["files"].items():
        check_file(path.parent / name, sha256, advice)
    return value


def read_own_json(path: Path) -> Any:
    """Read JSON that memscope wrote: a file that is not JSON is damaged.

    Raises:
        DamageError: the file is missing or not JSON.
    """
    try:
        return read_json(path)
    except InputError as error:
        raise DamageError(str(error)) from error


def unseal(raw: Any, path: Path, advice: str) -> dict[str, Any]:
    """The parsed content of a sealed JSON file, checked and without its hash.

    Raises:
        DamageError: the hash is not that of the content; ``path`` and ``advice`` are for the message.
    """
    value = {key: item for key, item in raw.items() if key != SEAL} if isinstance(raw, dict) else {}
    if not isinstance(raw, dict) or raw.get(SEAL) != _digest(value):
        raise DamageError(f"{path}: damaged or edited (its {SEAL} is not that of its content); {advice}")
    return value


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
