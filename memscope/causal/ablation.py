"""Measure what a model loses on a text without some entries or experts, beside control entries.

    study = study_ablation(subject, recorded_corpus(Recording("recordings/demo")), [4711], usage)
    study.table              # loss, logit of the target and KL, with intervals; the controls; the difference
    write_study(study, Path("ablations/4711"))

An ablation always changes something. The question is whether it changes more than the ablation of other entries. So
the same table holds controls: entries of nearly equal usage (``usage``), or any used entries (``random``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from memscope.base.errors import InputError
from memscope.base.files import write_json
from memscope.base.parquet import write_table
from memscope.base.printable import brief
from memscope.causal.effects import (
    Trial,
    banks_of,
    compare_change,
    interval_unit,
    mean_change,
    measure_effects,
    most_changed,
    random_entries,
    usage_matched,
)
from memscope.causal.intervene import Mode
from memscope.causal.selections import ablate
from memscope.query.recording import Recording
from memscope.run.subject import Subject
from memscope.text.corpus import DocumentWindow, PackedCorpus, document_windows

Control = Literal["usage", "random"]
MEASURES = ("loss", "logit", "kl")
_WINDOW = 256
"""Most tokens of a window: long windows only cost memory, and fewer short windows select an entry."""


@dataclass(frozen=True, repr=False)
class AblationStudy:
    """An ablation and its controls."""

    __repr__ = brief

    table: pd.DataFrame
    """One row for the ablation, one for each control, one for the difference: ``what entries usage`` and per measure
    ``{measure} {measure}_low {measure}_high``, means per token."""
    effects: pd.DataFrame
    """Every token, see ``effects.measure_effects``."""
    contexts: pd.DataFrame
    """The tokens that changed most, with their text."""
    summary: dict[str, Any]
    """The settings, and the table as plain values."""


def recorded_corpus(recording: Recording) -> PackedCorpus:
    """The text of a recording as a corpus, without the corpus file.

    Example:
        >>> corpus = recorded_corpus(recording)
    """
    documents = recording.documents
    starts = np.concatenate([documents["first_row"], [recording.info.rows]]).astype(np.int64)
    info = recording.info
    return PackedCorpus(
        recording.token_ids, starts, documents["title"].tolist(), path=info.corpus, sha256=info.corpus_sha256
    )


def study_ablation(
    subject: Subject,
    corpus: PackedCorpus,
    entries: Sequence[int] | np.ndarray,
    usage: np.ndarray,
    mode: Mode = "renormalise",
    layers: Sequence[int] | None = None,
    tokens: int | None = None,
    controls: int = 3,
    control: Control = "usage",
    seed: int = 0,
) -> AblationStudy:
    """Ablate entries, and ``controls`` times as many control entries.

    Args:
        subject: the model.
        corpus: text to read.
        entries: entries to ablate.
        usage: selections of every entry in the same layers, ``[N]`` (``effects.entry_usage``).
        mode: see ``selections.ablate``.
        layers: layers that select; default all.
        tokens: read about this many, in windows from all parts of the corpus.
        controls: draws of control entries.
        control: ``usage`` draws entries of nearly equal usage, ``random`` any used ones.
        seed: of the draws.

    Raises:
        InputError: an entry or layer is unknown, or too few entries are left for controls.
    """
    entries, banks = np.unique(np.asarray(entries, np.int64)), banks_of(subject.sites)
    if not len(entries):
        raise InputError("no entry to ablate; name at least one")
    with ablate(subject, entries, mode, layers=layers):
        pass  # refuses unknown entries and layers before controls are drawn
    chosen = {"ablated": entries}
    for draw in range(controls):
        if control == "usage":
            chosen[f"control {draw + 1}"] = usage_matched(usage, entries, seed + draw, banks=banks)
        else:
            chosen[f"control {draw + 1}"] = _random_controls(usage, entries, seed + draw, banks)
    trials = {
        trial: Trial(partial(ablate, subject, ablated_entries, mode, layers=layers), ablated_entries, layers)
        for trial, ablated_entries in chosen.items()
    }
    windows = spread_windows(subject, corpus, tokens)
    effects = measure_effects(subject, corpus, windows, trials)
    table = _table(chosen, usage, effects)
    ablated = effects["ablated"]
    summary = {
        "mode": mode,
        "layers": [site.layer for site in subject.sites] if layers is None else list(layers),
        "entries": entries.tolist(),
        "control": control,
        "tokens": len(ablated),
        "documents": int(ablated["doc"].nunique()),
        "interval_unit": interval_unit(ablated),
        "loss_before": float(ablated["loss_before"].mean()),
        "reached_tokens": int(ablated["reached"].sum()),
        "table": table.astype(object).where(table.notna(), None).to_dict("records"),
    }
    return AblationStudy(table, ablated, most_changed(ablated, corpus, windows, subject.tokenizer), summary)


def write_study(study: AblationStudy, folder: Path) -> list[Path]:
    """Write ``ablation.json``, ``effects.parquet`` (every token) and ``contexts.parquet`` (those changed most)."""
    frames = {"effects": study.effects, "contexts": study.contexts}
    for name, frame in frames.items():
        write_table(folder / f"{name}.parquet", pa.Table.from_pandas(frame, preserve_index=False))
    write_json(folder / "ablation.json", study.summary)
    return [folder / "ablation.json", *(folder / f"{name}.parquet" for name in frames)]


def _random_controls(usage: np.ndarray, entries: np.ndarray, seed: int, banks: list[range]) -> np.ndarray:
    """Random used entries other than ``entries``, as many in each bank."""
    drawn = []
    for bank in banks:
        own = entries[(entries >= bank.start) & (entries < bank.stop)] - bank.start
        drawn.append(bank.start + random_entries(usage[bank.start : bank.stop], len(own), seed, exclude=own))
    return np.concatenate(drawn)


def spread_windows(subject: Subject, corpus: PackedCorpus, tokens: int | None) -> list[DocumentWindow]:
    """Evenly spaced windows of about ``tokens`` tokens: many documents tell more than few long ones."""
    windows = document_windows(corpus, min(_WINDOW, subject.window))
    total = sum(window.end - window.start for window in windows)
    if tokens is None or tokens >= total:
        return windows
    count = max(1, round(len(windows) * tokens / total))
    return [windows[number] for number in np.linspace(0, len(windows) - 1, count).astype(int)]


def _table(chosen: dict[str, np.ndarray], usage: np.ndarray, effects: dict[str, pd.DataFrame]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for trial, trial_entries in chosen.items():
        changes = {name: mean_change(effects[trial], name) for name in MEASURES}
        rows.append(
            {
                "what": trial,
                "entries": len(trial_entries),
                "usage": int(usage[trial_entries].sum()),
                **_columns(changes),
            }
        )
    controls = [frame for trial, frame in effects.items() if trial != "ablated"]
    if controls:
        changes = {name: compare_change(effects["ablated"], controls, name) for name in MEASURES}
        rows.append({"what": "difference", "entries": None, "usage": None, **_columns(changes)})
    return pd.DataFrame(rows).astype({"entries": "Int64", "usage": "Int64"})


def _columns(changes: dict[str, Any]) -> dict[str, float]:
    return {
        f"{name}{end}": value
        for name, change in changes.items()
        for end, value in zip(("", "_low", "_high"), change, strict=True)
    }
