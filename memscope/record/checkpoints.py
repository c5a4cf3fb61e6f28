"""One recording per checkpoint of a run, on the same text; ``report/compare/history.py`` compares them.

memscope record runs/demo --corpus data/wiki/valid.jsonl --out recordings/history --checkpoints all

history/step-00000150/ ...          one recording per checkpoint
"""

from pathlib import Path

from memscope.base.errors import InputError
from memscope.base.runtime import pick_device
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import list_checkpoints, load_run


def record_checkpoints(run: Path, corpus: Path, out: Path, options: RecordOptions, device: str) -> list[Path]:
    """Record every checkpoint that a run kept, oldest first; returns the recordings' folders.

    Raises:
        InputError: see ``record``; or the run keeps no checkpoint.
    """
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise InputError(f"{run}: no checkpoints; train with --set keep_checkpoints=N to keep the last N")
    for checkpoint in checkpoints:
        record(OwnRun(load_run(run, pick_device(device), checkpoint)), corpus, out / checkpoint.name, options)
    return [out / checkpoint.name for checkpoint in checkpoints]
