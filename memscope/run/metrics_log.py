"""``metrics.jsonl`` of a run: one JSON object a line with ``kind`` (train, eval, sample), ``step`` and numbers.

The file is the source of truth; an experiment tracker gets the same numbers. A line ends with ``crc32``, the checksum
of the line before it; files of earlier versions have none.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from memscope.base.errors import InputError
from memscope.base.files import write_text


class MetricsLog:
    """Append-only metrics of the main process; after a resume, lines that will be written again are dropped.

    A ``train`` line of step s describes the update that made s; ``eval`` and ``sample`` lines describe the state
    after s updates, which a run resumed at s writes anew.
    """

    def __init__(self, path: Path, first_step: int, accelerator: Any):
        self.path, self.accelerator = path, accelerator
        if accelerator.is_main_process:
            kept = [line for line in read_metrics(path) if _is_before(line, first_step)]
            write_text(path, "".join(_dump(line) for line in kept))

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one line, and pass its numbers to the tracker under ``kind/name``."""
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_dump({"kind": kind, "step": step, **values}))
        numbers = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, int | float)}
        if numbers:
            self.accelerator.log(numbers, step=step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file, oldest first; a last line that a crash cut off is left out.

    Raises:
        InputError: a line before the last is not JSON, or the checksum of a line does not match.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().rstrip(b"\n").split(b"\n")  # bytes: a crash may have cut inside a character
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                records.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if number < len(lines):
                raise InputError(f"{path}:{number}: not JSON; the file was damaged") from error
    sums = [record.pop("crc32", None) for record in records]
    for number, (record, checksum) in enumerate(zip(records, sums, strict=True), start=1):
        if checksum != _checksum(record) and any(sums):
            raise InputError(f"{path}:{number}: not what was written; the file was damaged: delete this line of it")
    return records


def _is_before(line: dict[str, Any], first_step: int) -> bool:
    return bool(line["step"] <= first_step if line["kind"] == "train" else line["step"] < first_step)


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line | {"crc32": _checksum(line)}, ensure_ascii=False) + "\n"


def _checksum(line: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(line).encode())
