"""The census over training time: what changed between the recordings of a run's checkpoints, on the same text.

history/history.parquet, .csv       one row per step and layer: evenness, loss, drift, entries that woke and died
history/history_entries.parquet     one row per layer and entry that any step uses: usage and drift at every step
history/figures/history.svg, .png
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import spearmanr

from memscope.base.files import atomic_path, write_csv
from memscope.base.parquet import fixed_lists, write_table
from memscope.query.catalog import HISTORY
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.report.plots.history import history_curves

_METRICS = ("coverage", "even_coverage", "kl_to_uniform", "gini", "top50", "dead", "hot")


def write_history(recordings: Sequence[Recording], out: Path) -> Path:
    """Write the tables and the figure of recordings of one run's checkpoints, oldest first; returns the table."""
    usage = np.stack([recording.usage() for recording in recordings])  # [step, layer, N]
    own = [recordings[0].info.entries_of(layer) for layer in recordings[0].info.layers]
    drift = np.stack([recording.drift() for recording in recordings])  # [step, N]
    steps = [recording.info.step or 0 for recording in recordings]
    table = pd.concat(
        [
            _changes(recording, step, usage[number], usage[number - 1] if number else None, drift[number], own)
            for number, (recording, step) in enumerate(zip(recordings, steps, strict=True))
        ],
        ignore_index=True,
    )
    write_table(out / HISTORY, pa.Table.from_pandas(table, preserve_index=False))
    write_csv(out / "history.csv", table)
    write_table(out / "history_entries.parquet", _entries(recordings[0].info, usage, drift, steps))
    for kind in ("svg", "png"):
        with atomic_path(out / "figures" / f"history.{kind}") as temporary:
            history_curves(table, recordings[0].info.word(2)).savefig(temporary, format=kind, dpi=150)
    return out / HISTORY


def _changes(
    recording: Recording,
    step: int,
    usage: np.ndarray,
    before: np.ndarray | None,
    drift: np.ndarray,
    own: list[slice],
) -> pd.DataFrame:
    """One row per layer: evenness at a step, and what changed since the step before, in the entries of its own."""
    metrics = recording.layer_metrics()[["layer", "selections", *_METRICS]]
    table = metrics.assign(loss=recording.census.loss)
    table.insert(0, "step", step)
    used = usage > 0
    if recording.info.has("drift"):
        table["drift_used"] = [float(np.median(drift[row])) if row.any() else np.nan for row in used]
        unused = [drift[part][~row[part]] for row, part in zip(used, own, strict=True)]
        table["drift_unused"] = [float(np.median(values)) if len(values) else np.nan for values in unused]
    was = used if before is None else before > 0
    table["woke"], table["died"] = (used & ~was).sum(1), (was & ~used).sum(1)
    table["rank_correlation"] = [
        np.nan if before is None else float(spearmanr(now[part], then[part]).statistic)
        for now, then, part in zip(usage, usage if before is None else before, own, strict=True)
    ]
    return table


def _entries(info: RecordingInfo, usage: np.ndarray, drift: np.ndarray, steps: list[int]) -> dict[str, object]:
    """Usage and drift of every entry that is ever used, and the steps at which it woke and was used last."""
    axis, entry = np.nonzero(usage.any(0))
    counts = usage[:, axis, entry].T  # [pair, step]
    used, at = counts > 0, np.array(steps)
    return {
        "layer": np.array(info.layers, np.uint16)[axis],
        "entry": entry.astype(np.uint32),
        "first_step": at[used.argmax(1)],
        "last_step": at[len(steps) - 1 - used[:, ::-1].argmax(1)],
        "steps": fixed_lists(np.broadcast_to(at, counts.shape), pa.int64()),
        "count": fixed_lists(counts, pa.int64()),
        **({"drift": fixed_lists(drift[:, entry].T, pa.float32())} if info.has("drift") else {}),
    }
