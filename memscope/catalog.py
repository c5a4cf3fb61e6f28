"""Which recordings and runs are in a folder, and which documents in a recording.

for name, path in find_recordings(Path("recordings")).items(): ...
recordings_table(find_recordings(Path("recordings")))
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memscope.errors import InputError
from memscope.files import read_json
from memscope.store import INFO, read_info

DEPTH = 3
"""Folders below the given one in which recordings are found."""


def find_recordings(folder: Path) -> dict[str, Path]:
    """Recordings by name: ``folder`` itself, or those up to ``DEPTH`` folders below it, named by their path there."""
    if (folder / INFO).is_file():
        return {folder.name: folder}
    found = [path.parent for depth in range(1, DEPTH + 1) for path in folder.glob("*/" * depth + INFO)]
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}


def recordings_table(found: dict[str, Path]) -> pd.DataFrame:
    """What each recording is of: ``recording run step corpus tokens selections entries loss map state``.

    ``state`` says what is wrong with those that cannot be read or are unfinished; columns without any value are left
    out.
    """
    return pd.DataFrame([{"recording": name, **_row(path)} for name, path in found.items()]).dropna(axis=1, how="all")


def runs_without_recording(folder: Path, found: dict[str, Path]) -> list[Path]:
    """Runs in a folder of recordings, or in the folder ``runs`` beside it, that none of the recordings is of."""
    recorded = set()
    for path in found.values():
        try:
            recorded.add(Path(read_info(path).run).resolve())
        except InputError:
            continue  # the table of recordings says what is wrong with it
    configs = [config for place in (folder, folder.parent / "runs") for config in place.glob("*/config.yaml")]
    runs = {path.parent for path in configs if (path.parent / "metrics.jsonl").is_file()}
    return sorted(run for run in runs if not (run / INFO).is_file() and run.resolve() not in recorded)


def find_documents(titles: pd.Series, search: str, limit: int) -> list[int]:
    """The first documents whose title holds a text, in any case; a number also finds the document of that number.

    Args:
        titles: of all documents (``Recording.documents["title"]``).
        search: part of a title, or a number.
        limit: most documents to return.
    """
    found = np.flatnonzero(titles.str.contains(search, case=False, regex=False).to_numpy(bool))[:limit].tolist()
    if search.isdecimal() and len(search) < 18 and int(search) < len(titles):
        found = [int(search), *(doc for doc in found if doc != int(search))][:limit]
    return found


def _row(path: Path) -> dict[str, Any]:
    try:
        info = read_info(path)
    except InputError as error:
        return {"state": str(error).split(": ", 1)[-1]}
    census = path / "census.json"
    return {
        "run": info.run_name,
        "step": "newest" if info.step is None else f"{info.step:,}",
        "corpus": info.corpus_name,
        "tokens": info.rows,
        "selections": info.rows * info.selected * len(info.layers),
        "entries": info.knowledge_num,
        "loss": read_json(census)["loss"] if info.complete and census.is_file() else None,
        "map": (path / "map.parquet").is_file(),
        "state": "whole" if info.complete else "unfinished: run the same command again",
    }
