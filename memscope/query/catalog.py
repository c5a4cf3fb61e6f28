"""Which recordings and runs are in a folder, and which documents in a recording.

root = Path("recordings")
for name, path in find_recordings(root).items(): ...
recordings_table(find_recordings(root), root)
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from memscope.base.errors import InputError
from memscope.base.lock import has_writer
from memscope.base.parquet import read_parquet
from memscope.query.recording import Recording
from memscope.recording.census_file import read_census
from memscope.recording.info import AGGREGATES, INFO, read_info
from memscope.run.metrics_log import read_metrics

HISTORY = "history.parquet"
"""Beside recordings of all checkpoints of a run: what changed from one to the next (``report/compare/history.py``)."""
DEPTH = 3
"""Folders below the given one in which recordings are found."""


def find_recordings(folder: Path) -> dict[str, Path]:
    """Recordings by name: ``folder`` itself, or those up to ``DEPTH`` folders below it, named by their path there."""
    if (folder / INFO).is_file():
        return {folder.name: folder}
    found = [path.parent for depth in range(1, DEPTH + 1) for path in folder.glob("*/" * depth + INFO)]
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}


def open_recording(path: Path, root: Path) -> Recording:
    """A recording that lies in the folder ``root``, or is it.

    Raises:
        InputError: it cannot be used (see ``Recording``), or links lead out of ``root``.
    """
    check_inside(path, root)
    return Recording(path)


def check_inside(path: Path, root: Path) -> None:
    """Refuse a recording that is reached by a link out of ``root``, or has one.

    Raises:
        InputError: for it.
    """
    root = root.resolve()
    for one in [path, *path.rglob("*")]:
        if (one == path or one.is_symlink()) and not Path(os.path.realpath(one)).is_relative_to(root):
            raise InputError(f"{one}: a link that leads out of {root}; open what it leads to by itself")


def trouble(path: Path, root: Path) -> str | None:
    """Why a recording cannot be used, found without opening its tables; none if nothing is wrong."""
    try:
        check_inside(path, root)
        info = read_info(path)
        if not info.complete:
            return "unfinished: run the same command again"
        if missing := [name for name in AGGREGATES if not (path / name).is_file()]:
            return f"{missing[0]}: missing; record again"
        read_census(path, info)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ").removeprefix(f"{path}{os.sep}")
    except OSError as error:  # without permission, say
        return f"{error.filename}: {error.strerror}"
    return None


def opening_order(found: dict[str, Path], root: Path) -> list[str]:
    """Names of recordings in the order in which a reader expects to open them.

    Those that can be used come first, of these those of whole runs before those of checkpoints, then the newest.
    """

    def place(name: str) -> tuple[int, float]:
        if trouble(found[name], root):
            return 2, 0.0
        return int(read_info(found[name]).step is not None), -(found[name] / INFO).stat().st_mtime

    return sorted(found, key=place)


def recordings_table(found: dict[str, Path], root: Path) -> pd.DataFrame:
    """One row per recording in ``root``: ``recording run step corpus tokens selections entries loss map state``.

    ``state`` says what is wrong with those that cannot be read or are unfinished; columns without any value are left
    out.
    """
    rows = [{"recording": name, **_row(path, root)} for name, path in found.items()]
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def runs_without_recording(folder: Path, found: dict[str, Path]) -> list[Path]:
    """Runs that none of the recordings is of: the folder itself, in it, or in the folder ``runs`` beside it."""
    recorded = set()
    for path in found.values():
        try:
            recorded.add(Path(read_info(path).run).resolve())
        except (InputError, OSError):
            continue  # the table of recordings says what is wrong with it
    configs = [config for place in (folder, folder.parent / "runs") for config in place.glob("*/config.yaml")]
    configs.append(folder / "config.yaml")
    runs = {path.parent for path in configs if (path.parent / "metrics.jsonl").is_file()}
    return sorted(run for run in runs if not (run / INFO).is_file() and run.resolve() not in recorded)


def training_history(recording: Recording, found: dict[str, Path], root: Path) -> pd.DataFrame | None:
    """What changed between the checkpoints of the run of a recording; none where they were not recorded in ``root``.

    Raises:
        InputError: the table is damaged, or links lead out of ``root``.
    """
    for path in found.values():
        table = path.parent / HISTORY
        if table.is_file() and read_info(path).run == recording.info.run:
            check_inside(table, root)
            return read_parquet(table).to_pandas()
    return None


class RunProgress(NamedTuple):
    """How far a training run is, from what it logs."""

    path: Path
    running: bool
    """Whether a process trains it now."""
    step: int
    steps: int | None
    """Steps in all, none where the run's log does not say."""
    left_seconds: float | None
    """Seconds of training that are left, validations apart; none where the run's log does not say."""
    tokens_per_second: float | None
    curve: pd.DataFrame
    """Lines of ``metrics.jsonl``, as ``Recording.training_curve``."""
    samples: pd.DataFrame
    """``step prompt text``, newest first: how the model continued validation documents."""


def run_progress(path: Path) -> RunProgress:
    """How far the run in a folder is.

    Raises:
        InputError: its log is damaged.
    """
    lines = read_metrics(path / "metrics.jsonl")
    last: dict[str, Any] = next((line for line in reversed(lines) if line["kind"] == "train"), {})
    samples = [{key: line[key] for key in ("step", "prompt", "text")} for line in lines if line["kind"] == "sample"]
    return RunProgress(
        path,
        has_writer(path),
        max((line["step"] for line in lines), default=0),
        last.get("of_steps"),
        last.get("left_seconds"),
        last.get("tokens_per_second"),
        pd.DataFrame([line for line in lines if line["kind"] != "sample"], columns=None if lines else ["kind", "step"]),
        pd.DataFrame(samples[::-1], columns=["step", "prompt", "text"]),
    )


def usage_now(progress: RunProgress) -> pd.DataFrame:
    """Evenness of every layer at the newest validation: ``layer coverage kl_to_uniform gini top50 dead``."""
    names = ["coverage", "kl_to_uniform", "gini", "top50", "dead"]
    curve = progress.curve
    evaluations = curve[curve["kind"] == "eval"]
    if evaluations.empty:
        return pd.DataFrame(columns=["layer", *names])
    newest = evaluations.iloc[-1]
    layers = sorted(
        int(name.split("/")[0].removeprefix("layer_")) for name in curve.columns if name.endswith("/coverage")
    )
    return pd.DataFrame([{"layer": one, **{name: newest[f"layer_{one}/{name}"] for name in names}} for one in layers])


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


def _row(path: Path, root: Path) -> dict[str, Any]:
    wrong = trouble(path, root)
    try:
        info = read_info(path)
        census = None if wrong else read_census(path, info)
    except (InputError, OSError):
        return {"state": wrong}
    return {
        "run": info.run_name,
        "step": "newest" if info.step is None else f"{info.step:,}",
        "corpus": info.corpus_name,
        "tokens": info.rows,
        "selections": census and sum(layer.by_count.selections for layer in census.layers),
        "entries": info.knowledge_num,
        "loss": census and census.loss,
        "map": (path / "map.parquet").is_file(),
        "state": wrong or "whole",
    }
