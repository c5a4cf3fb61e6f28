"""Code that studies of a run and its recording share: arguments, errors, recorded text, intervals, output files.

Text comes from the recording, so no corpus is needed; a token's context is its window, as in recording.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from memscope.base.errors import InputError
from memscope.base.files import make_folder, write_csv
from memscope.query.recording import Recording
from memscope.stats.jackknife import Interval, ratio_interval


def command_line(doc: str | None, *inputs: str) -> argparse.ArgumentParser:
    """Parser of a script: the question that its docstring starts with, paths to read, and ``--out``."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    for name in inputs:
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def run_script(main: Callable[[], None]) -> None:
    """Run a script; bad input is one line on standard error and exit status 2."""
    try:
        main()
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


def sample_windows(recording: Recording, tokens: int, seed: int = 0) -> list[np.ndarray]:
    """Random windows of the recorded text with at least ``tokens`` tokens if there are, int64 ``[pos]`` each."""
    size = recording.info.window
    starts = [
        (first + begin, min(first + begin + size, first + rows))
        for first, rows in recording.documents[["first_row", "rows"]].to_numpy().tolist()
        for begin in range(0, rows, size)
    ]
    windows, total = [], 0
    for number in np.random.default_rng(seed).permutation(len(starts)).tolist():
        begin, end = starts[number]
        windows.append(recording.token_ids[begin:end].astype(np.int64))
        total += end - begin
        if total >= tokens:
            break
    return windows


def contexts_before(recording: Recording, rows: Sequence[int]) -> list[np.ndarray]:
    """Tokens from the start of each row's window up to the row, itself included, int64 ``[pos]`` each."""
    first = recording.documents["first_row"].to_numpy()
    of_document = first[np.searchsorted(first, rows, side="right") - 1]
    starts = of_document + (np.asarray(rows) - of_document) // recording.info.window * recording.info.window
    return [
        recording.token_ids[start : row + 1].astype(np.int64) for start, row in zip(starts.tolist(), rows, strict=True)
    ]


def batches(texts: Sequence[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Texts a few at a time, shortest first: their numbers, tokens ``[batch, pos]`` padded with 0, and lengths."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        lengths = np.array([len(texts[number]) for number in numbers])
        tokens = np.zeros((len(numbers), lengths.max()), np.int64)
        for row, number in enumerate(numbers):
            tokens[row, : lengths[row]] = texts[number]
        yield numbers, tokens, lengths


def mean_interval(values: np.ndarray) -> Interval:
    """Mean of independent values with its 95% interval; NaN where there is nothing."""
    return ratio_interval(values, np.ones(len(values))) if len(values) else Interval(np.nan, np.nan, np.nan)


def save(out: Path, name: str, table: pd.DataFrame, figure: Figure) -> None:
    """Write ``NAME.csv`` and ``NAME.png``."""
    make_folder(out)
    write_csv(out / f"{name}.csv", table)
    figure.savefig(out / f"{name}.png", dpi=150)
