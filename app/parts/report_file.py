"""The report of a recording as one zip file, made on request and kept until the server stops."""

import functools
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from memscope.base.stop import at_end
from memscope.query.recording import Recording


def report_file(recording: Recording) -> Path | None:
    """The zipped report, if it has been made since the server started."""
    path = _path(recording)
    return path if path.is_file() else None


def make_report(recording: Recording) -> Iterator[str]:
    """Make the report; yields the name of every file when written. Leaving it early leaves nothing behind."""
    from memscope.report.gate_bias.write import write_report

    with tempfile.TemporaryDirectory(dir=_folder()) as folder:
        out = Path(folder) / "report"
        for path in write_report(recording, out):
            yield path.name
        packed = Path(folder) / "report.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
            for path in sorted(out.rglob("*")):
                archive.write(path, path.relative_to(out))
        packed.replace(_path(recording))


@at_end
def drop_reports() -> None:
    """Forget all reports; called when the server stops."""
    if _folder.cache_info().currsize:
        shutil.rmtree(_folder(), ignore_errors=True)
        _folder.cache_clear()


def _path(recording: Recording) -> Path:
    identity = f"{recording.path.resolve()} {recording.info.model_dump_json()}"
    return _folder() / f"{recording.path.name}-{abs(hash(identity)):x}.zip"


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="memscope-app-"))
