"""What every entry of a layer is worth to each group of documents: each is ablated in turn over the same windows.

    found = domain_effects(subject, recording, layer=1)
    found.table                  # one row per group and entry: change of loss, beside the layer's other entries
    write_domain_effects(found, Path("ablations/layer1"))

Selection by domain (``routing/domains.py``) says where an entry is used; this says where it is missed. Ablating any
entry changes something, and some groups are more sensitive than others. So the change of an entry is set against the
mean change of the layer's other entries in the same group, and that difference against the same in the other groups.
The control deals documents to groups at random: then no entry should matter to one group more than to others.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import false_discovery_control, t

from memscope.base.errors import InputError
from memscope.base.parquet import write_table
from memscope.base.printable import brief
from memscope.base.seals import hashes, write_sealed
from memscope.causal.ablation import recorded_corpus, spread_windows
from memscope.causal.effects import Trial, effects_by_batch
from memscope.causal.intervene import Mode
from memscope.causal.selections import ablate
from memscope.query.recording import Recording
from memscope.routing.group_effects import SUMMARY, TABLE
from memscope.routing.rows import routed_site
from memscope.run.subject import Subject
from memscope.stats.jackknife import Jackknife
from memscope.text.corpus import DocumentWindow, PackedCorpus

FALSE_DISCOVERY_RATE = 0.05
FOLDS = 200
"""Most folds of a group's documents."""


class DomainEffects(NamedTuple):
    """Effects by group of documents."""

    def __repr__(self) -> str:
        return brief(self)

    table: pd.DataFrame
    """See ``domain_effects``."""
    summary: dict[str, Any]
    """The settings, and what was found in short."""


class _Sums(NamedTuple):
    """Of every document that was read."""

    tokens: np.ndarray
    """Predicted tokens, ``[document]``."""
    loss: np.ndarray
    """Sum of changes of loss without each entry, nats, ``[document, entry]``."""
    kl: np.ndarray
    reached: np.ndarray
    """Windows of a document in which an entry is selected, ``[document, entry]``."""


class _Means(NamedTuple):
    """Means per token over some documents with their standard errors, ``[entry]`` each."""

    value: np.ndarray
    error: np.ndarray
    df: float
    critical: float


def domain_effects(
    subject: Subject,
    recording: Recording,
    layer: int,
    mode: Mode = "renormalise",
    tokens: int | None = 16384,
    batch_size: int = 8,
) -> DomainEffects:
    """Ablate every entry of a layer in turn, over recorded text, and compare groups of documents.

    Args:
        subject: the model that was recorded.
        recording: of a corpus whose documents have a ``group``.
        layer: layer that selects among at most 1,024 entries.
        mode: see ``selections.ablate``.
        tokens: read about this many, shared evenly among groups, in windows from all parts of their documents; default
            all of the recording.
        batch_size: windows that the model reads at once.

    Returns a table of one row per group and entry, entries numbered as in the recording: ``group entry name documents
    tokens``; ``loss kl``, means per token in nats, with ``loss_low loss_high``; ``others``, the mean ``loss`` of the
    layer's other entries in the group; ``difference`` of the two with ``difference_low difference_high p q``; and
    ``contrast``, this difference less that in the other groups, with ``contrast_low contrast_high contrast_p
    contrast_q control_q``. Intervals are 95%, over documents (jackknife), NaN with fewer than two. ``q`` is p adjusted
    for all groups and entries of the layer (Benjamini-Hochberg), NaN where nothing was measured; ``control_q`` is
    ``contrast_q`` with documents dealt to groups at random.

    Raises:
        InputError: there are fewer than two groups, the layer has too many entries, or cannot be changed.

    Example:
        >>> effects = domain_effects(subject, recording, layer=0, tokens=512)
    """
    site = routed_site(recording, layer)
    names = recording.documents["group"].fillna("").tolist()
    if len(set(names)) < 2:
        raise InputError(
            f'{recording.path}: its documents are of one group; record a corpus whose documents have a "group"'
        )
    if site.entries < 2:
        raise InputError(f"{recording.path}: layer {layer} has one {site.word()}; there is no other to compare with")
    corpus, entries = recorded_corpus(recording), range(site.own.start, site.own.stop)
    windows = _windows(subject, corpus, names, tokens)
    trials = {
        str(entry): Trial(partial(ablate, subject, [entry], mode, layers=[layer]), [entry], [layer])
        for entry in entries
    }
    docs, sums = _measure(subject, corpus, windows, trials, batch_size)
    table = _compare([names[doc] for doc in docs], sums)
    table.insert(1, "entry", table.pop("number") + site.own.start)
    table.insert(2, "name", [recording.info.label(entry) for entry in table["entry"]])
    found = {name: int((table[name] <= FALSE_DISCOVERY_RATE).sum()) for name in ("q", "contrast_q", "control_q")}
    summary = {
        "layer": layer,
        "entries": [entries.start, entries.stop - 1],
        "mode": mode,
        "fingerprint": subject.fingerprint,
        "corpus_sha256": recording.info.corpus_sha256,
        "groups": sorted(set(names)),
        "documents": len(docs),
        "tokens": int(sums.tokens.sum()),
        "false_discovery_rate": FALSE_DISCOVERY_RATE,
        "discoveries": found,
    }
    return DomainEffects(table, summary)


def write_domain_effects(found: DomainEffects, folder: Path) -> list[Path]:
    """Write ``group_effects.parquet`` (the table) and ``group_effects.json`` (the settings, with its hash).

    Example:
        >>> write_domain_effects(effects, Path("effects/new"))
    """
    (folder / SUMMARY).unlink(missing_ok=True)
    write_table(folder / TABLE, pa.Table.from_pandas(found.table, preserve_index=False))
    write_sealed(folder / SUMMARY, {**found.summary, "files": hashes(folder, [TABLE])})
    return [folder / SUMMARY, folder / TABLE]


def _windows(subject: Subject, corpus: PackedCorpus, names: list[str], tokens: int | None) -> list[DocumentWindow]:
    """Windows of every group, about as many tokens each."""
    every = spread_windows(subject, corpus, None)
    if tokens is None:
        return every
    chosen: list[DocumentWindow] = []
    groups = sorted(set(names))
    for group in groups:
        own = [window for window in every if names[window.doc] == group]
        size = sum(window.end - window.start for window in own)
        count = min(len(own), max(2, round(len(own) * tokens / len(groups) / max(size, 1))))
        chosen += [own[number] for number in np.linspace(0, len(own) - 1, count).astype(int)]
    return chosen


def _measure(
    subject: Subject, corpus: PackedCorpus, windows: list[DocumentWindow], trials: dict[str, Trial], batch_size: int
) -> tuple[np.ndarray, _Sums]:
    """The documents that were read, and sums over their tokens."""
    docs, place = np.unique([window.doc for window in windows], return_inverse=True)
    shape, columns = (len(docs), len(trials)), {name: number for number, name in enumerate(trials)}
    sums = _Sums(np.zeros(len(docs)), np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64))
    for numbers, name, frames in effects_by_batch(subject, corpus, windows, trials, batch_size):
        for number, frame in zip(numbers, frames, strict=True):
            at = (place[number], columns[name])
            if at[1] == 0:
                sums.tokens[at[0]] += len(frame)
            sums.loss[at] += (frame["loss_after"] - frame["loss_before"]).sum()
            sums.kl[at] += frame["kl"].sum()
            sums.reached[at] += bool(frame["reached"].any())
    read = sums.tokens > 0
    if not read.any():
        raise InputError("nothing to predict in this text; give more tokens")
    return docs[read], _Sums(*(values[read] for values in sums))


def _compare(names: list[str], sums: _Sums) -> pd.DataFrame:
    groups, label = np.unique(names, return_inverse=True)
    table = pd.concat([_of_group(str(name), label == number, sums) for number, name in enumerate(groups)])
    dealt = np.random.default_rng(0).permutation(label)
    control = pd.concat([_of_group(str(name), dealt == number, sums) for number, name in enumerate(groups)])
    table = table.reset_index(drop=True)
    table.insert(table.columns.get_loc("p") + 1, "q", _adjusted(table["p"]))
    return table.assign(contrast_q=_adjusted(table["contrast_p"]), control_q=_adjusted(control["contrast_p"]))


def _of_group(name: str, own: np.ndarray, sums: _Sums) -> pd.DataFrame:
    """One row per entry: its effect on the documents ``own``, beside other entries and other documents."""
    entries = sums.loss.shape[1]
    total = sums.loss.sum(1, keepdims=True)
    beyond = sums.loss - (total - sums.loss) / (entries - 1)  # an entry's change less the mean of the others
    loss, here, there = (
        _means(values, sums.tokens[which])
        for values, which in ((sums.loss[own], own), (beyond[own], own), (beyond[~own], ~own))
    )
    untouched = (sums.reached == 0).all(0)  # selected nowhere in what was read: its effect is 0, and known
    error, df = np.hypot(here.error, there.error), _welch(here, there)
    contrast = here.value - there.value
    return pd.DataFrame(
        {
            "group": name,
            "number": np.arange(entries),
            "documents": int(own.sum()),
            "tokens": int(sums.tokens[own].sum()),
            "loss": loss.value,
            **_interval("loss", loss.value, loss.critical * loss.error),
            "kl": sums.kl[own].sum(0) / max(sums.tokens[own].sum(), 1),
            "others": loss.value - here.value,
            "difference": here.value,
            **_interval("difference", here.value, here.critical * here.error),
            "p": _p_values(here.value, here.error, here.df, untouched),
            "contrast": contrast,
            **_interval("contrast", contrast, t.isf(0.025, df) * error),
            "contrast_p": _p_values(contrast, error, df, untouched),
        }
    )


def _means(values: np.ndarray, tokens: np.ndarray) -> _Means:
    """Of sums ``[document, entry]``; errors are NaN with fewer than two documents."""
    fold = np.arange(len(tokens)) % FOLDS
    spread = Jackknife(np.bincount(fold, tokens), np.bincount(fold, tokens**2))
    folds = np.zeros((int(fold.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(folds, fold, values)
    mean = values.sum(0) / max(tokens.sum(), 1)
    if not spread.known:
        return _Means(mean, np.full(mean.shape, np.nan), 1.0, np.nan)
    left = spread.without(folds) / spread.without(np.bincount(fold, tokens))[:, None]
    return _Means(mean, spread.errors(mean, left), max(spread.equal_documents - 1, 1.0), spread.critical)


def _welch(first: _Means, second: _Means) -> np.ndarray:
    """Degrees of freedom of a difference of means (Welch and Satterthwaite), ``[entry]``."""
    squares, parts = first.error**2 + second.error**2, first.error**4 / first.df + second.error**4 / second.df
    return np.where(parts > 0, squares**2 / np.where(parts > 0, parts, 1.0), 1.0)


def _interval(name: str, value: np.ndarray, half: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{name}_low": value - half, f"{name}_high": value + half}


def _p_values(value: np.ndarray, error: np.ndarray, df: float | np.ndarray, untouched: np.ndarray) -> np.ndarray:
    """Of a t-test; NaN where the error is unknown or the entry is not in the text."""
    known = (error > 0) & ~untouched
    return np.where(known, 2 * t.sf(np.abs(value) / np.where(known, error, 1.0), df), np.nan)


def _adjusted(p: pd.Series) -> np.ndarray:
    q, known = np.full(len(p), np.nan), p.notna().to_numpy()
    if known.any():
        q[known] = false_discovery_control(p.to_numpy()[known])
    return q
