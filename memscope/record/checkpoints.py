"""The census over training time: one recording per checkpoint of a run, on the same text, and what changed between.

memscope record runs/demo --corpus data/wiki/valid.jsonl --out recordings/history --checkpoints all

history/step-00000150/ ...          a recording each, as any other
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

from memscope.base.errors import InputError
from memscope.base.files import atomic_path, write_csv
from memscope.base.parquet import fixed_lists, write_table
from memscope.base.runtime import pick_device, processes
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.report.plots.history import history_curves
from memscope.run.checkpoint import list_checkpoints, load_run

TABLE = "history.parquet"
_METRICS = ("coverage", "even_coverage", "kl_to_uniform", "gini", "top50", "dead", "hot")


def record_checkpoints(run: Path, corpus: Path, out: Path, options: RecordOptions, device: str) -> Path:
    """Record every checkpoint that a run kept, oldest first, and write their history; returns ``history.parquet``.

    Raises:
        InputError: see ``record``; also a run that keeps no checkpoint.
    """
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise InputError(f"{run}: no checkpoints; train with --set keep_checkpoints=N to keep the last N")
    for checkpoint in checkpoints:
        record(load_run(run, pick_device(device), checkpoint), corpus, out / checkpoint.name, options)
    if processes().is_main:
        write_history([Recording(out / checkpoint.name) for checkpoint in checkpoints], out)
    return out / TABLE


def write_history(recordings: Sequence[Recording], out: Path) -> None:
    """Write the tables and the figure of recordings of one run's checkpoints, oldest first."""
    usage = np.stack([recording.usage() for recording in recordings])  # [step, layer, N]
    own = [recordings[0].info.entries_of(layer) for layer in recordings[0].info.layers]
    drift = np.stack([recording.drift() for recording in recordings])  # [step, N]
    layers, steps = recordings[0].info.layers, [recording.info.step or 0 for recording in recordings]
    table = pd.concat(
        [
            _changes(recording, step, usage[number], usage[number - 1] if number else None, drift[number], own)
            for number, (recording, step) in enumerate(zip(recordings, steps, strict=True))
        ],
        ignore_index=True,
    )
    write_table(out / TABLE, pa.Table.from_pandas(table, preserve_index=False))
    write_csv(out / "history.csv", table)
    write_table(out / "history_entries.parquet", _entries(usage, drift, layers, steps))
    for kind in ("svg", "png"):
        with atomic_path(out / "figures" / f"history.{kind}") as temporary:
            history_curves(table).savefig(temporary, format=kind, dpi=150)


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
    table = metrics.assign(loss=recording.census["loss"])
    table.insert(0, "step", step)
    used = usage > 0
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


def _entries(usage: np.ndarray, drift: np.ndarray, layers: tuple[int, ...], steps: list[int]) -> dict[str, object]:
    """Usage and drift of every entry that is ever used, and the steps at which it woke and was used last."""
    axis, entry = np.nonzero(usage.any(0))
    counts = usage[:, axis, entry].T  # [pair, step]
    used, at = counts > 0, np.array(steps)
    return {
        "layer": np.array(layers, np.uint16)[axis],
        "entry": entry.astype(np.uint32),
        "first_step": at[used.argmax(1)],
        "last_step": at[len(steps) - 1 - used[:, ::-1].argmax(1)],
        "steps": fixed_lists(np.broadcast_to(at, counts.shape), pa.int64()),
        "count": fixed_lists(counts, pa.int64()),
        "drift": fixed_lists(drift[:, entry].T, pa.float32()),
    }
