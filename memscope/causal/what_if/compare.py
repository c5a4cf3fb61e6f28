"""Compare a text, or recorded text, before and after a change: entries ablated, forced, swapped or rewritten.

    change = Change("ablate", entries=(4711,))
    compare_text(subject, "Ada Lovelace was born in", change)    # one row per token: loss, KL, the next token
    changed_contexts(subject, recording, change)                 # the recorded tokens that changed most

The app shows these tables; ``causal/selections.py`` makes the changes. ``change.py`` has the values that are passed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from memscope.base.errors import InputError
from memscope.causal.ablation import recorded_corpus
from memscope.causal.edit import encode_sentence
from memscope.causal.effects import Trial, mean_change, measure_effects, most_changed, run_once
from memscope.causal.intervene import rewrite
from memscope.causal.selections import ablate, force, scale, swap
from memscope.causal.what_if.change import NEEDS, Change, Changed
from memscope.query.recording import Recording
from memscope.record.trace import one_document, text_ids
from memscope.recording.token_table import token_columns
from memscope.run.adapters.own import OwnRun
from memscope.run.subject import Subject, WindowPass
from memscope.run.text_bank import typed_sentences
from memscope.text.corpus import DocumentWindow, document_windows

_WINDOW, _WINDOWS, _AT_ONCE = 128, 16, 4


def open_change(subject: Subject, change: Change) -> AbstractContextManager[None]:
    """The block in which a change holds.

    Raises:
        InputError: the change needs another number of entries, or ``selections`` refuses it, or it rewrites an entry of
            a model that memscope did not train.
    """
    needed, entries, layers = NEEDS[change.kind], change.entries, change.layers
    if len(entries) != needed if needed is not None else not entries:
        one, many = subject.sites[0].word(), subject.sites[0].word(2)
        wanted = {None: f"one {one} or more", 0: f"no {one}", 1: f"one {one}", 2: f"two {many}"}[needed]
        raise InputError(f"{change.kind} takes {wanted}, not {len(entries)}")
    match change.kind:
        case "ablate":
            return ablate(subject, entries, layers=layers)
        case "zero":
            return ablate(subject, entries, "zero", layers=layers)
        case "force":
            return force(subject, entries[0], change.amount, layers=layers)
        case "swap":
            return swap(subject, *entries, layers=layers)
        case "rewrite":
            if not isinstance(subject, OwnRun):
                raise InputError(f"{subject.name}: only entries of a run of memscope can be rewritten by a sentence")
            first = subject.run.config.first_sentence
            if subject.model.text_bank is not None and entries[0] >= first:
                return _typed(subject, entries[0] - first, change)
            slots = encode_sentence(subject.run, change.sentence)
            return rewrite(subject.model, entries[0], slots, layers=layers)
        case "scale":
            return scale(subject, change.amount, layers=layers)


def _typed(subject: OwnRun, sentence: int, change: Change) -> AbstractContextManager[None]:
    """The block in which a sentence reads otherwise, for all layers: they share their sentences."""
    texts = subject.model.cfg.model.text_layers
    if change.layers is not None and not set(texts) <= set(change.layers):
        raise InputError(f"a sentence reads alike for all text layers; choose layers {', '.join(map(str, texts))}")
    return typed_sentences(subject.model, subject.tokenizer, {sentence: change.sentence})


def compare_text(subject: Subject, text: str, change: Change) -> pd.DataFrame:
    """Read a text as it is and under a change.

    Returns one row per token, those that open the text first: ``pos``, those of ``token_columns``, ``loss_before
    loss_after`` (nats, of the next token; NaN at the end), ``kl`` = KL(before || after), and the likeliest next token
    ``next_before next_after`` with its probability ``p_before p_after``.

    Raises:
        InputError: the text is empty or too long, or the change cannot be made.
    """
    corpus = one_document(text_ids(subject.tokenizer, text))
    texts, n = subject.tokenizer.token_texts, len(corpus.tokens)
    compared = []
    for window in document_windows(corpus, subject.window):
        before = run_once(subject, corpus, [window])
        with open_change(subject, change):
            after = run_once(subject, corpus, [window])
        compared.append(_compared(before, after, texts))
    places = pd.DataFrame({"pos": np.arange(n), **token_columns(subject.tokenizer, corpus.tokens)})
    return pd.concat([places, pd.concat(compared, ignore_index=True)], axis=1)


def _compared(before: WindowPass, after: WindowPass, texts: list[str]) -> pd.DataFrame:
    """Tokens of one window, whose two passes are batches of one."""
    logprobs = [done.logits[0].float().log_softmax(-1).cpu() for done in (before, after)]
    untold = torch.from_numpy(before.batch.targets[0] < 0)
    kl = (logprobs[0].exp() * (logprobs[0] - logprobs[1])).sum(-1).clamp(min=0)
    columns: dict[str, Any] = {"kl": kl.numpy()}
    for name, done, values in zip(("before", "after"), (before, after), logprobs, strict=True):
        best = values.max(-1)
        columns[f"loss_{name}"] = done.losses[0].float().cpu().masked_fill(untold, torch.nan).numpy()
        columns[f"next_{name}"] = [texts[i] for i in best.indices.tolist()]
        columns[f"p_{name}"] = best.values.exp().numpy()
    return pd.DataFrame(columns)


def changed_contexts(
    subject: Subject,
    recording: Recording,
    change: Change,
    limit: int = 20,
    watch: Callable[[int, int], None] = lambda done, all_: None,
) -> Changed:
    """Read recorded text where a change acts, in short windows, and find the tokens that changed most.

    Reads the windows that select the entries most often, at most 2,048 tokens. For changes that act everywhere (force,
    scale), the windows are from all parts of the recording. ``watch`` is called with the windows that are done and with
    all of them.
    """
    windows = _windows(recording, change)
    corpus = recorded_corpus(recording)
    trials = {"": Trial(partial(open_change, subject, change))}
    effects = measure_effects(subject, corpus, windows, trials, _AT_ONCE, watch)[""]
    contexts = most_changed(effects, corpus, windows, subject.tokenizer, limit)
    return Changed(mean_change(effects), len(effects), contexts)


def _windows(recording: Recording, change: Change) -> list[DocumentWindow]:
    windows = document_windows(recorded_corpus(recording), min(_WINDOW, recording.info.window))
    starts = np.array([window.start for window in windows])
    counts = np.zeros(len(windows), np.int64)
    if change.kind not in ("force", "scale"):
        for entry in change.entries:
            for layer in _owners(recording, entry, change.layers):
                rows = recording.selections(entry, layer)["row"].to_numpy()
                counts += np.bincount(np.searchsorted(starts, rows, side="right") - 1, minlength=len(windows))
        if not counts.any():
            raise InputError(
                f"none of these {recording.info.word(2)} was selected in the recorded text, so nothing can change there"
            )
        chosen = np.argsort(-counts, kind="stable")[:_WINDOWS]
        chosen = chosen[counts[chosen] > 0]
    else:
        chosen = np.unique(np.linspace(0, len(windows) - 1, _WINDOWS).astype(int))
    return [windows[number] for number in np.sort(chosen)]


def _owners(recording: Recording, entry: int, layers: tuple[int, ...] | None) -> list[int]:
    """The layers of a change that can select an entry."""
    chosen = recording.info.layers if layers is None else layers
    return [layer for layer in chosen if entry in range(*recording.info.entries_of(layer).indices(2**31))]
