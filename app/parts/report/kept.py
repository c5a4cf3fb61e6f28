"""The report of a recording as one zip file, made on request and kept in the recording's folder.

What decides a report is noted in the file: the recording, and the code of memscope. A report of anything else counts as
not made, and the next one takes its place. Where the folder cannot be written, reports are kept until the server stops.
"""

import functools
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import memscope
from memscope.base.files import atomic_path
from memscope.base.stop import at_end
from memscope.causal.fact_tables import SUMMARY as AUDIT
from memscope.query.recording import Recording

NAME = "report.zip"
PAGE = "gate_bias.html"
"""The report as one page, in the zip file."""


def report_file(recording: Recording) -> Path | None:
    """The zipped report of a recording, if it was made of the same recording by the same code."""
    path = _path(recording)
    try:
        with zipfile.ZipFile(path) as archive:
            return path if archive.comment.decode("ascii", "replace") == _decided_by(recording) else None
    except (OSError, zipfile.BadZipFile):
        return None


def report_page(path: Path) -> bytes:
    """The report as one HTML page that needs no other file."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(PAGE)


def make_report(recording: Recording) -> Iterator[str]:
    """Make the report; yields the name of every file when written. Leaving it early leaves nothing behind."""
    from memscope.report.gate_bias.write import write_report

    with tempfile.TemporaryDirectory(dir=_folder()) as folder, atomic_path(_path(recording)) as packed:
        out = Path(folder) / recording.path.name  # the report names it in its command
        for path in write_report(recording, out):
            yield path.name
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
            for path in sorted(out.rglob("*")):
                archive.write(path, path.relative_to(out))
            archive.comment = _decided_by(recording).encode("ascii")


@at_end
def drop_reports() -> None:
    """Forget the reports whose recordings cannot be written; called when the server stops."""
    if _folder.cache_info().currsize:
        shutil.rmtree(_folder(), ignore_errors=True)
        _folder.cache_clear()


def _path(recording: Recording) -> Path:
    folder = recording.path.resolve()
    if os.access(folder, os.W_OK):
        return folder / NAME
    return _folder() / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.zip"


def _decided_by(recording: Recording) -> str:
    """A hash of the code, of the recording, which lists the hashes of its files, of its audit of facts and its path."""
    audit, path = recording.path / AUDIT, str(recording.path.resolve())
    asked = audit.read_bytes() if audit.is_file() else b""
    parts = [_code().encode(), recording.info.model_dump_json().encode(), asked, path.encode("utf-8", "replace")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


@functools.cache
def _code() -> str:
    folder = Path(memscope.__file__).parent
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".j2"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="memscope-app-"))
