"""Effects of an intervention on a corpus: loss, logit of the target and KL of the next-token distribution, per token.

    windows = document_windows(corpus, subject.window, 65536)
    trials = {"4711": Trial(partial(ablate, subject, [4711]), entries=[4711])}
    effects = measure_effects(subject, corpus, windows, trials)
    mean_change(effects["4711"])                          # nats per token, with a 95% interval

A change means little alone: ``usage_matched`` and ``random_entries`` choose control entries, and ``compare_change``
compares a change with theirs. Both passes of a run of memscope are in float32, whatever it was trained in, so that
differences come from the intervention and not from rounding. Other models keep the precision of their weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from memscope.base.errors import InputError
from memscope.base.parquet import read_parquet
from memscope.base.runtime import on_device, on_host
from memscope.base.work import progress
from memscope.causal.intervene import Entries
from memscope.census.strata import BLOCK, FEW_DOCUMENTS
from memscope.recording.info import read_info
from memscope.recording.sites import Site
from memscope.recording.token_table import text_around
from memscope.run.adapters.own import OwnModel
from memscope.run.subject import Subject, WindowPass, run_windows
from memscope.stats.jackknife import Interval, ratio_interval
from memscope.text.corpus import DocumentWindow, PackedCorpus
from memscope.text.tokenizer import Tokenizer

Intervention = Callable[[], AbstractContextManager[None]]
"""Opens the block in which the altered pass runs: ``partial(ablate, subject, [3, 5])``."""

_ROWS = 256
_BEHIND = 8
"""Tokens behind one that are looked at for the rest of its character."""


class Trial(NamedTuple):
    """An intervention to measure."""

    intervention: Intervention
    entries: Entries | None = None
    """Entries without whose selection the intervention changes nothing: windows that select none are not run again."""
    layers: Sequence[int] | None = None
    """Layers in which it acts; default all."""


def measure_effects(
    subject: Subject,
    corpus: PackedCorpus,
    windows: list[DocumentWindow],
    trials: Mapping[str, Trial],
    batch_size: int = 8,
    watch: Callable[[int, int], None] = lambda done, all_: None,
) -> dict[str, pd.DataFrame]:
    """Run every window as it is and under each intervention.

    Returns, per trial, one row per predicted token in the order of the windows: ``doc pos token target``, and in
    nats or logits ``loss_before loss_after logit_before logit_after`` (of the target) and ``kl`` = KL(before || after)
    of the next-token distribution. ``pos`` counts from the start of the document. ``reached`` is false before the
    first selection of a trial's ``entries`` in the window: attention is causal, so nothing can change there. ``watch``
    is called with the passes over windows that are done and with all of them.
    """
    parts: dict[str, dict[int, pd.DataFrame]] = {name: {} for name in trials}
    for numbers, name, frames in effects_by_batch(subject, corpus, windows, trials, batch_size):
        parts[name] |= zip(numbers, frames, strict=True)
        watch(sum(map(len, parts.values())), len(windows) * len(trials))
    return {name: _in_order(frames) for name, frames in parts.items()}


def effects_by_batch(
    subject: Subject,
    corpus: PackedCorpus,
    windows: list[DocumentWindow],
    trials: Mapping[str, Trial],
    batch_size: int = 8,
) -> Iterator[tuple[list[int], str, list[pd.DataFrame]]]:
    """``measure_effects`` batch by batch: numbers of its windows, a trial, and a table of each window."""
    length = [window.end - window.start for window in windows]
    by_length = sorted(range(len(windows)), key=length.__getitem__)
    with progress("intervening", sum(length) * len(trials), "tokens") as bar:
        for start in range(0, len(windows), batch_size):  # shortest first: little padding
            numbers = by_length[start : start + batch_size]
            before = run_once(subject, corpus, [windows[number] for number in numbers])
            for name, trial in trials.items():
                yield numbers, name, _compare(subject, corpus, before, trial)
                bar.update(sum(length[number] for number in numbers))


def entry_usage(recording: Path, layers: Sequence[int] | None = None) -> np.ndarray:
    """Selections of every entry in a recording, summed over layers (default: all), int64 ``[N]``."""
    table = read_parquet(recording / "usage.parquet", ["layer", "entry", "count"]).to_pandas()
    if layers is not None:
        table = table[table["layer"].isin(list(layers))]
    size = read_info(recording).knowledge_num
    return np.bincount(table["entry"], weights=table["count"], minlength=size).astype(np.int64)


def top_entries(usage: np.ndarray, share: float) -> np.ndarray:
    """The most used ``share`` of the bank, rounded up: entry numbers, most used first."""
    if not 0 < share <= 1:
        raise InputError(f"a share of {share} of the bank; give one above 0% and up to 100%")
    return np.argsort(-usage, kind="stable")[: int(np.ceil(share * len(usage)))]


def random_entries(
    usage: np.ndarray, count: int, seed: int, used_only: bool = True, exclude: Sequence[int] | np.ndarray = ()
) -> np.ndarray:
    """``count`` different random entries, by default of those in use."""
    allowed = usage > 0 if used_only else np.ones(len(usage), bool)
    allowed[list(exclude)] = False
    candidates = np.flatnonzero(allowed)
    if len(candidates) < count:
        raise InputError(f"{count} random entries asked for, only {len(candidates)} are left to choose from")
    return np.random.default_rng(seed).choice(candidates, count, replace=False)


def usage_matched(
    usage: np.ndarray,
    entries: Sequence[int] | np.ndarray,
    seed: int,
    pool: int = 20,
    banks: Sequence[range] | None = None,
) -> np.ndarray:
    """For every entry another one that is used about as often: a random one of the ``pool`` nearest in usage rank.

    All are different and none is among ``entries``. Used entries are matched to used entries and, where layers have
    ``banks`` of their own (``banks_of``), to entries of the same bank, because others are selected in other layers.
    Many entries, or the most used ones, leave no close match: compare ``usage`` of both before trusting a contrast.
    """
    rng = np.random.default_rng(seed)
    free = np.ones(len(usage), bool)
    free[entries] = False
    order = rng.permutation(len(usage))  # ties in random order
    order = order[np.argsort(usage[order], kind="stable")]
    matched = np.empty(len(entries), np.int64)
    for number, entry in enumerate(entries):
        bank = next(bank for bank in banks or [range(len(usage))] if entry in bank)
        near = order[(order >= bank.start) & (order < bank.stop)]
        candidates = near[free[near] & ((usage[near] > 0) | (usage[entry] == 0))]
        if not len(candidates):
            raise InputError("no entry is left for a control of equal usage; choose fewer entries")
        at = int(np.searchsorted(usage[candidates], usage[entry]))
        first = int(np.clip(at - pool // 2, 0, max(0, len(candidates) - pool)))
        matched[number] = rng.choice(candidates[first : first + pool])
        free[matched[number]] = False
    return matched


def banks_of(sites: Sequence[Site]) -> list[range]:
    """The entries of every bank; layers that select from the same one share it."""
    return [range(first, end) for first, end in sorted({(site.own.start, site.own.stop) for site in sites})]


def mean_change(effects: pd.DataFrame, column: str = "loss") -> Interval:
    """Mean of ``{column}_after - {column}_before`` per token (``kl``: of itself), jackknife by document.

    With fewer than 10 documents, blocks of 256 tokens replace them: the interval is then about these documents.
    """
    sums, counts = _per_unit([effects], column)
    return ratio_interval(sums[0], counts)


def compare_change(effects: pd.DataFrame, controls: Sequence[pd.DataFrame], column: str = "loss") -> Interval:
    """Mean change of an intervention minus that of its controls.

    The interval adds two in quadrature: that of the difference over documents, and that of the mean of the controls
    over other draws of them (Student's t; unknown for a single control).
    """
    sums, counts = _per_unit([effects, *controls], column)
    mean, low, high = ratio_interval(sums[0] - sums[1:].mean(0), counts)
    drawn = sums[1:].sum(1) / counts.sum()
    chance = ratio_interval(drawn, np.ones(len(drawn))) if len(drawn) > 1 else Interval(0.0, 0.0, 0.0)
    half = float(np.hypot((high - low) / 2, (chance.high - chance.low) / 2))
    return Interval(mean, mean - half, mean + half)


def most_changed(
    effects: pd.DataFrame,
    corpus: PackedCorpus,
    windows: Sequence[DocumentWindow],
    tokenizer: Tokenizer,
    limit: int = 20,
    before: int = 16,
) -> pd.DataFrame:
    """The tokens whose prediction changed most by KL, with the text that led to them in the ``windows`` that were read.

    Columns of ``effects`` and ``title before token_text target_text``.
    """
    shown = effects.nlargest(limit, "kl").reset_index(drop=True)
    start = corpus.starts[shown["doc"]] + shown["pos"].to_numpy()
    seen = np.sort([window.start for window in windows])
    left = np.maximum(start - before, seen[np.searchsorted(seen, start, side="right") - 1])
    docs = shown["doc"].to_numpy()
    places = np.stack([corpus.starts[docs], corpus.starts[docs + 1], left, start], axis=1).tolist()

    def text(first: int, end: int, begin: int, at: int) -> tuple[str, str, str]:
        ids = corpus.tokens[begin : min(at + _BEHIND, end)].tolist()
        return text_around(tokenizer, ids, at - begin, corpus.tokens[max(begin - 1, first) : begin].tolist())

    return shown.assign(
        title=[corpus.titles[doc] for doc in shown["doc"]],
        before=[text(*place)[0] for place in places],
        token_text=[text(*place)[1] for place in places],
        target_text=[text(first, end, begin, at + 1)[1] for first, end, begin, at in places],
    )


def run_once(subject: Subject, corpus: PackedCorpus, windows: list[DocumentWindow]) -> WindowPass:
    """One pass over one batch of windows; that of a run of memscope is in float32."""
    exact = OwnModel(subject.model) if isinstance(subject, OwnModel) else subject
    [done] = run_windows(exact, corpus, windows, subject.tokenizer.pad, batch_size=len(windows))
    return done


def _compare(subject: Subject, corpus: PackedCorpus, before: WindowPass, trial: Trial) -> list[pd.DataFrame]:
    """One table per window of the batch."""
    reach = _reach(before, trial)
    rows = [row for row, start in enumerate(reach) if start < before.batch.tokens.shape[1]]
    after: dict[int, Tensor] = {}
    if rows:
        with trial.intervention():
            logits = run_once(subject, corpus, [before.windows[row] for row in rows]).logits
        after = dict(zip(rows, logits, strict=True))
    return [_table(before, row, start, after.get(row)) for row, start in enumerate(reach)]


def _reach(before: WindowPass, trial: Trial) -> list[int]:
    """Per row of the batch the first position that the intervention can change; its length where there is none.

    Attention is causal and rows do not see one another, so nothing changes before the first selection of an entry: a
    second pass would differ by rounding alone.
    """
    length = before.batch.tokens.shape[1]
    if trial.entries is None:
        return [0] * len(before.windows)
    layers = list(before.captured) if trial.layers is None else trial.layers
    device = before.losses.device
    wanted = torch.as_tensor(trial.entries, device=device).flatten()
    mask = on_device(before.batch.mask, device)
    hit = torch.zeros_like(mask)
    for layer in layers:
        hit |= torch.isin(before.captured[layer].indices.to(device), wanted).any(-1) & mask
    return torch.where(hit.any(1), hit.int().argmax(1), length).tolist()


def _table(before: WindowPass, row: int, start: int, after: Tensor | None) -> pd.DataFrame:
    """A window's tokens; those from ``start`` on are compared with the logits ``after [pos, vocab]``."""
    window = before.windows[row]
    at = np.flatnonzero(before.batch.targets[row] >= 0)
    targets = before.batch.targets[row, at]
    known = {"loss": before.losses[row].float(), "logit": before.logits[row, at, targets].float()}
    loss, logit = on_host(known).values()
    loss = loss[at]
    values = {"loss_before": loss, "loss_after": loss, "logit_before": logit, "logit_after": logit}
    values = {name: value.copy() for name, value in values.items()} | {"kl": np.zeros_like(loss)}
    reached = at >= start
    if after is not None:
        pairs = zip(
            torch.from_numpy(at[reached]).split(_ROWS), torch.from_numpy(targets[reached]).split(_ROWS), strict=True
        )
        pieces = [
            _token_changes(before.logits[row, some], after[some], wanted.to(after.device)) for some, wanted in pairs
        ]
        for name in values:
            values[name][reached] = (
                np.concatenate([piece[name] for piece in pieces]) if pieces else values[name][reached]
            )
    places = {"doc": window.doc, "pos": window.pos + at, "token": before.batch.tokens[row, at], "target": targets}
    return pd.DataFrame(places | values | {"reached": reached})


def _token_changes(before: Tensor, after: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
    """From logits ``[row, vocab]`` of both passes."""
    log_before, log_after = F.log_softmax(before.float(), -1), F.log_softmax(after.float(), -1)
    kl = (log_before.exp() * (log_before - log_after)).sum(-1).clamp(min=0.0)
    picked = [values.gather(-1, targets[:, None])[:, 0] for values in (log_before, log_after, before, after)]
    names = ("loss_before", "loss_after", "logit_before", "logit_after")
    signs = (-1, -1, 1, 1)
    columns = {name: sign * value.float() for name, sign, value in zip(names, signs, picked, strict=True)}
    return on_host(columns | {"kl": kl})


def _in_order(frames: dict[int, pd.DataFrame]) -> pd.DataFrame:
    known = [frames[number] for number in sorted(frames) if len(frames[number])]
    if not known:
        raise InputError("nothing to predict in this text; give more tokens")
    return pd.concat(known, ignore_index=True)


def interval_unit(effects: pd.DataFrame) -> str:
    """The unit of intervals: ``documents``, or ``blocks of 256 tokens`` where documents are few."""
    return "documents" if effects["doc"].nunique() >= FEW_DOCUMENTS else f"blocks of {BLOCK} tokens"


def _per_unit(tables: Sequence[pd.DataFrame], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Sums of changes ``[table, unit]`` and tokens ``[unit]``; all tables have the same rows."""
    unit = tables[0]["doc"].to_numpy(np.int64)
    if interval_unit(tables[0]) != "documents":
        block = tables[0]["pos"].to_numpy(np.int64) // BLOCK
        unit = unit * (int(block.max()) + 1) + block
    _, unit = np.unique(unit, return_inverse=True)
    changes = [
        table["kl"] if column == "kl" else table[f"{column}_after"] - table[f"{column}_before"] for table in tables
    ]
    sums = [np.bincount(unit, weights=change.to_numpy(np.float64)) for change in changes]
    return np.stack(sums), np.bincount(unit).astype(np.float64)
