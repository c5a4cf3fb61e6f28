"""A folder has one writer: whoever writes a folder holds its lock, and a second start is told who does.

    with one_writer(Path("recordings/demo")):
        ...

Locks are ``flock``'s: they end with their process, however it ends, so that a killed command is simply started again.
"""

import errno
import fcntl
import os
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
"""Where in a folder files are written, and a killed writer may have left some unfinished."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
_held: set[Path] = set()
"""Locks of this process."""


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Write ``folder`` alone in this block. It is made; what a killed writer left unfinished in it is removed.

    Under torchrun the first process holds the lock for all. A block inside another one on the same folder does nothing.

    Raises:
        InputError: another process writes there, or the folder cannot be made.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    made = not folder.exists()
    make_folder(folder)
    try:
        with _lock(folder / LOCK, folder) as first:
            for place in _PLACES if first else ():
                remove_unfinished(folder / place)
            yield
    finally:
        if made:
            with suppress(OSError):  # nothing was written
                folder.rmdir()


@contextmanager
def one_maker(target: Path, waits: bool = False) -> Iterator[None]:
    """Make the file or folder ``target`` alone in this block, for what appears whole, by rename: its lock lies beside.

    Args:
        target: what is made.
        waits: wait for another process that makes it, and say so, in place of an error. Look then whether it is there.

    Raises:
        InputError: another process makes it, or the folder around cannot be made.
    """
    make_folder(target.parent)
    with _lock(target.with_name(f".{target.name}{LOCK}"), target, waits) as first:
        if first:
            remove_unfinished(target.parent, target.name)
        yield


@contextmanager
def _lock(path: Path, what: Path, waits: bool = False) -> Iterator[bool]:
    """Hold a lock file; yields whether this process did not hold it before."""
    path = path.absolute()
    if path in _held:
        yield False
        return
    with _take(path, what, waits) as file:
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
            path.unlink(missing_ok=True)  # before the lock ends with the file: whoever waits for it sees it gone


def _take(path: Path, what: Path, waits: bool) -> TextIO:
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
                    f"{what}: {holder} writes there; wait until it is done, or choose another place"
                ) from None
            print(f"memscope: {what}: waiting for {holder}, which makes it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"memscope: {what}: this file system has no locks; see that nothing else writes there", file=sys.stderr
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # its holder was done, and has removed it


def _holder(path: Path) -> str:
    """What the lock file says of its process; anything may stand in a file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return "".join(sign for sign in text[:200] if sign.isprintable()) or "another process"
