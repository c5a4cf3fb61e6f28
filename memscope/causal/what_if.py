"""Compare a text, or recorded text, before and after a change: entries ablated, forced, swapped or rewritten.

    change = Change("ablate", entries=(4711,))
    compare_text(run, "Ada Lovelace was born in", change)        # one row per token: loss, KL, the next token
    changed_contexts(run, recording, change)                     # the recorded tokens that changed most

The app shows these tables; ``causal/intervene.py`` makes the changes.
"""

from contextlib import AbstractContextManager
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from memscope.base.errors import InputError
from memscope.causal.ablation import recorded_corpus
from memscope.causal.edit import encode_sentence
from memscope.causal.effects import Trial, mean_change, measure_effects, most_changed
from memscope.causal.intervene import ablate, force, rewrite, scale, swap
from memscope.query.recording import Recording
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from memscope.stats.jackknife import Interval
from memscope.text.corpus import DocumentWindow, document_windows

Kind = Literal["ablate", "zero", "force", "swap", "rewrite", "scale"]
NEEDS = {"ablate": None, "zero": None, "force": 1, "swap": 2, "rewrite": 1, "scale": 0}
"""Number of entries that each kind of change takes; none = one or more."""
_WINDOW, _WINDOWS = 128, 32


class Change(NamedTuple):
    """An intervention in plain values."""

    kind: Kind
    entries: tuple[int, ...] = ()
    layers: tuple[int, ...] | None = None
    """Memory layers; none = all."""
    amount: float = 0.0
    """Gate score of ``force``, factor of ``scale``."""
    sentence: str = ""
    """Sentence of ``rewrite``."""


class Changed(NamedTuple):
    """Effects of a change on recorded text."""

    loss: Interval
    """Mean change per token in nats, over the tokens that were read."""
    tokens: int
    contexts: pd.DataFrame
    """The tokens that changed most, see ``effects.most_changed``."""


def open_change(run: LoadedRun, change: Change) -> AbstractContextManager[None]:
    """The block in which a change holds.

    Raises:
        InputError: the change needs another number of entries, or ``intervene`` refuses it.
    """
    needed, entries, model, layers = NEEDS[change.kind], change.entries, run.model, change.layers
    if len(entries) != needed if needed is not None else not entries:
        wanted = {None: "one entry or more", 0: "no entry", 1: "one entry", 2: "two entries"}[needed]
        raise InputError(f"{change.kind} takes {wanted}, not {len(entries)}")
    match change.kind:
        case "ablate":
            return ablate(model, entries, layers=layers)
        case "zero":
            return ablate(model, entries, "zero", layers=layers)
        case "force":
            return force(model, entries[0], change.amount, layers=layers)
        case "swap":
            return swap(model, *entries, layers=layers)
        case "rewrite":
            return rewrite(model, entries[0], encode_sentence(run, change.sentence), layers=layers)
        case "scale":
            return scale(model, change.amount, layers=layers)


@torch.no_grad()
def compare_text(run: LoadedRun, text: str, change: Change) -> pd.DataFrame:
    """Read a text as it is and under a change.

    Returns one row per token, begin-of-text first: ``pos text loss_before loss_after`` (nats, of the next token; NaN at
    the end), ``kl`` = KL(before || after), and the likeliest next token ``next_before next_after`` with its
    probability ``p_before p_after``.

    Raises:
        InputError: the text is empty or longer than the model's window, or the change cannot be made.
    """
    ids = run.tokenizer.encode(text)
    limit = run.config.model.max_seq_len
    if not ids or len(ids) + 1 > limit:
        raise InputError(f"the text has {len(ids)} tokens; give between 1 and {limit - 1}")
    tokens = torch.tensor([[run.tokenizer.bos, *ids]], device=run.model.embed.weight.device)
    before = run.model(tokens)[0].float().log_softmax(-1).cpu()
    with open_change(run, change):
        after = run.model(tokens)[0].float().log_softmax(-1).cpu()
    texts = run.tokenizer.token_texts
    frame = pd.DataFrame({"pos": np.arange(len(ids) + 1), "text": [texts[i] for i in tokens[0].tolist()]})
    frame["kl"] = (before.exp() * (before - after)).sum(-1).clamp(min=0).numpy()
    for name, logprobs in (("before", before), ("after", after)):
        loss = -logprobs[:-1].gather(-1, torch.tensor(ids)[:, None])[:, 0]
        best = logprobs.max(-1)
        frame[f"loss_{name}"] = np.append(loss.numpy(), np.nan)
        frame[f"next_{name}"] = [texts[i] for i in best.indices.tolist()]
        frame[f"p_{name}"] = best.values.exp().numpy()
    return frame


def changed_contexts(run: LoadedRun, recording: Recording, change: Change, limit: int = 20) -> Changed:
    """Read recorded text where a change acts, in short windows, and find the tokens that changed most.

    Reads the windows that select the entries most often, at most 4,096 tokens. For changes that act everywhere (force,
    scale), the windows are from all parts of the recording.
    """
    windows = _windows(recording, change)
    corpus = recorded_corpus(recording)
    effects = measure_effects(OwnRun(run), corpus, windows, {"": Trial(partial(open_change, run, change))})[""]
    contexts = most_changed(effects, corpus, windows, run.tokenizer, limit)
    return Changed(mean_change(effects), len(effects), contexts)


def _windows(recording: Recording, change: Change) -> list[DocumentWindow]:
    windows = document_windows(recorded_corpus(recording), min(_WINDOW, recording.info.window))
    starts = np.array([window.start for window in windows])
    counts = np.zeros(len(windows), np.int64)
    if change.kind not in ("force", "scale"):
        for entry in change.entries:
            for layer in recording.info.layers if change.layers is None else change.layers:
                rows = recording.selections(entry, layer)["row"].to_numpy()
                counts += np.bincount(np.searchsorted(starts, rows, side="right") - 1, minlength=len(windows))
        if not counts.any():
            raise InputError("none of these entries was selected in the recorded text, so nothing can change there")
        chosen = np.argsort(-counts, kind="stable")[:_WINDOWS]
        chosen = chosen[counts[chosen] > 0]
    else:
        chosen = np.unique(np.linspace(0, len(windows) - 1, _WINDOWS).astype(int))
    return [windows[number] for number in np.sort(chosen)]
