"""A folder has one writer: the process that writes it holds its lock, and a second process is told which one does.

    with one_writer(Path("recordings/demo")):
        ...

A ``flock`` ends with its process, however the process ends, so a killed command can simply be started again.
"""

import errno
import fcntl
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from memscope.base.errors import InputError
from memscope.base.files import make_folder, remove_unfinished

LOCK = ".lock"
_PLACES = ("", "tokens", "selections", "checkpoints", "figures")
"""Parts of a folder in which files are written, and in which a killed writer may have left unfinished ones."""
_HOLDER = re.compile(r"process (?P<pid>\d{1,9}) on (?P<host>\S+) since ")
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
_held: set[Path] = set()
"""Locks of this process."""


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Let this process alone write ``folder`` in this block. Creates it and removes files that a killed writer left.

    Under torchrun the first process holds the lock for all. A block inside another one on the same folder does nothing.

    Raises:
        InputError: another process writes there, or the folder cannot be created.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    made = not folder.exists()
    make_folder(folder)
    try:
        with _lock(folder / LOCK, folder) as first:
            for part in _PLACES if first else ():
                remove_unfinished(folder / part)
            yield
    finally:
        if made:
            with suppress(OSError):  # nothing was written
                folder.rmdir()


def has_writer(folder: Path) -> bool:
    """Whether a process writes ``folder`` now, as its lock file tells; one of another machine counts as alive."""
    match = _HOLDER.match(_holder(folder / LOCK))
    if match is None or not (folder / LOCK).is_file():
        return False
    if match["host"] != socket.gethostname():
        return True
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        pass
    return True


@contextmanager
def one_maker(target: Path, waits: bool = False) -> Iterator[None]:
    """Let this process alone make ``target`` in this block; for files and folders that are renamed into place.

    The lock file lies beside the target.

    Args:
        target: the file or folder to make.
        waits: wait for another process that makes it, with a message, in place of an error. The target may then exist.

    Raises:
        InputError: another process makes it, or its parent folder cannot be created.
    """
    make_folder(target.parent)
    with _lock(target.with_name(f".{target.name}{LOCK}"), target, waits) as first:
        if first:
            remove_unfinished(target.parent, target.name)
        yield


@contextmanager
def _lock(path: Path, target: Path, waits: bool = False) -> Iterator[bool]:
    """Hold a lock file; yields whether this process did not hold it before."""
    path = path.absolute()
    if path in _held:
        yield False
        return
    with _take(path, target, waits) as file:
        _held.add(path)
        try:
            file.truncate(0)
            file.write(
                f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
            )
            file.flush()
            yield True
        finally:
            _held.remove(path)
            path.unlink(missing_ok=True)  # under the lock: a process that waits for it sees that it is gone


def _take(path: Path, target: Path, waits: bool) -> TextIO:
    """Open and lock a file that is still there once it is locked."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(path)
            if not waits:
                file.close()
                raise InputError(
                    f"{target}: {holder} writes there; wait until it is done, or choose another place"
                ) from None
            print(f"memscope: {target}: waiting for {holder}, which makes it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"memscope: {target}: this file system has no locks; see that nothing else writes there",
                file=sys.stderr,
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # its holder has finished and removed it


def _holder(path: Path) -> str:
    """The process that a lock file names, as one printable line: the file may hold anything."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return "".join(sign for sign in text[:200] if sign.isprintable()) or "another process"
