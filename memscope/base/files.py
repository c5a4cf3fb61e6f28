"""Write files whole or not at all, and fingerprint files that are read.

memscope writes every file under a temporary name beside its target and renames it into place. A full disk or a killed
process therefore never leaves half a file under a name that other code trusts.
"""

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from memscope.base.errors import InputError
from memscope.base.printable import printable, printable_json
from memscope.base.stop import at_end

if TYPE_CHECKING:
    import pandas as pd


_SUFFIX = ".unfinished"
_mine: set[Path] = set()
"""Temporary paths that this process has not finished writing."""


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it to ``target`` when the block succeeds.

    The block may create a file or a folder there. On an error the temporary is removed and ``target`` is
    untouched. A folder replaces an existing folder. The content is on the disk before the rename, and the rename is on
    the disk before the block ends, so files that rely on each other survive a power failure in the order of writing.

    Raises:
        InputError: the parent folder cannot be created or written.
    """
    make_folder(target.parent)
    name = f".{target.name}.{secrets.token_hex(4)}"  # not the process's number: other machines may write there too
    temporary = target.with_name(name + _SUFFIX)
    try:
        _mine.add(temporary)
        yield temporary
        for path in (temporary, *temporary.rglob("*")):
            _fsync(path)
        if temporary.is_dir() and target.exists():
            old = target.with_name(f"{name}.old{_SUFFIX}")
            target.rename(old)
            try:
                temporary.rename(target)
            except BaseException:
                old.rename(target)
                raise
            _remove(old)
        else:
            temporary.replace(target)
        _fsync(target.parent)
    finally:
        _remove(temporary)
        _mine.discard(temporary)


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Remove files that a killed process left half-written in ``folder``; with a ``name``, only those of that target.

    Call it only while no other process writes there (``base/lock.py``).
    """
    for path in folder.glob(f".{glob.escape(name) or '*'}.*{_SUFFIX}"):
        _remove(path)


def make_folder(path: Path) -> Path:
    """Create ``path`` and its parents and check that it is a writable folder."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot create this folder ({error.strerror}); choose another one") from error
    if not os.access(path, os.W_OK):
        raise InputError(f"{path}: this folder is not writable; choose another one or change its permissions")
    return path


def expect_file(path: Path, kind: str) -> None:
    """Check that ``path`` is a file; ``kind`` names its use in the message.

    Raises:
        InputError: it is not a file.
    """
    if not path.is_file():
        problem = "this is a folder, not a" if path.is_dir() else "no such"
        raise InputError(f"{path}: {problem} {kind}")


def write_text(target: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; invisible characters become escape sequences."""
    write_text(target, printable_json(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)) + "\n")


def write_csv(target: Path, frame: "pd.DataFrame") -> None:
    """Write a table as CSV, atomically; see ``csv_text``."""
    write_text(target, csv_text(frame))


def csv_text(frame: "pd.DataFrame") -> str:
    """A table as CSV; invisible characters are written out (``printable``).

    A text cell that a spreadsheet could take for a formula gets a leading '.
    """
    text = frame.select_dtypes(include=["object", "string"]).columns
    safe = frame.assign(**{column: frame[column].map(_unformula) for column in text})
    return str(safe.to_csv(index=False))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, is not UTF-8 or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: this is a folder; a JSON file was expected") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; a JSON file was expected") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); is the file truncated?") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON that can be read ({error})") from error
    except RecursionError as error:
        raise InputError(f"{path}: JSON nested too deeply") from error


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the error that safetensors raises when it cannot write ``path`` (a full disk) into an ``OSError``."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, f"cannot be written ({error})", str(path)) from error


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unformula(value: Any) -> Any:
    if hasattr(value, "tolist"):  # a list column of Parquet
        value = "; ".join(str(item) for item in value.tolist())
    value = printable(value) if isinstance(value, str) else value
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _fsync(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@at_end
def _remove_mine() -> None:
    for path in list(_mine):
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
