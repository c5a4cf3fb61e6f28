"""Run a model on any text and see, per token and layer, the entries that fired: a recording of one text in memory.

traced = trace_text(subject, "Ada Lovelace was born in")
traced.trace.selections                                    # the entries of every token and layer
trace_ids(subject, [*subject.tokenizer.opening, 17, 4])    # the same of token ids
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from memscope.base.errors import InputError
from memscope.record.rows import RowCollector
from memscope.record.traced import TextTrace
from memscope.recording.sites import Site, entry_label
from memscope.recording.token_table import make_trace, token_label
from memscope.run.subject import Subject, WindowPass, run_windows
from memscope.text.corpus import PackedCorpus, document_windows
from memscope.text.tokenizer import Tokenizer

N_PREDICTED = 5
MOST_TOKENS = 65536
"""Tokens of a text that is traced, at most: the trace of all is in memory."""


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that a model reads: behind the tokens that open texts, without those that close them.

    Raises:
        InputError: the text is empty, or has more than ``MOST_TOKENS`` tokens.
    """
    ids = tokenizer.prompt(text)
    if len(ids) == len(tokenizer.opening):
        raise InputError("the text is empty; give at least one word")
    if len(ids) > MOST_TOKENS:
        raise InputError(f"the text has {len(ids):,} tokens, more than {MOST_TOKENS:,}; record it as a corpus instead")
    return ids


def one_document(ids: Sequence[int]) -> PackedCorpus:
    """Token ids as a corpus of one document."""
    return PackedCorpus(np.array(ids, np.uint32), np.array([0, len(ids)]), [""], path="text", sha256="")


def trace_text(subject: Subject, text: str) -> TextTrace:
    """Run a model on ``text`` and capture what it selects; a long text is read window by window, as when recorded.

    Raises:
        InputError: the text is empty, or has more than ``MOST_TOKENS`` tokens.
    """
    return trace_ids(subject, text_ids(subject.tokenizer, text))


def trace_ids(subject: Subject, ids: Sequence[int]) -> TextTrace:
    """``trace_text`` of token ids, which include those that open a text."""
    corpus = one_document(ids)
    windows = document_windows(corpus, subject.window)
    sites = [site for site in subject.sites if site.slots > 1]
    top: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(windows)
    slots: dict[int, list[np.ndarray]] = {site.layer: [np.empty(0)] * len(windows) for site in sites}

    def keep(done: WindowPass) -> WindowPass:
        for row, window in enumerate(done.windows):
            number, length = windows.index(window), window.end - window.start
            values, best = done.logits[row, :length].float().softmax(-1).topk(N_PREDICTED)
            top[number] = values.cpu(), best.cpu()
            for layer, kept in slots.items():
                weights = done.captured[layer].slot_weights
                assert weights is not None, "entries of several slots are read"
                kept[number] = weights[row, :length].cpu().numpy()
        return done

    passes = map(keep, run_windows(subject, corpus, windows, subject.tokenizer.pad, detail=True))
    rows = RowCollector(corpus, subject.sites).collect(windows, passes)
    probabilities, tokens = (torch.cat(side).flatten() for side in zip(*top, strict=True))
    predictions = pd.DataFrame(
        {
            "pos": np.repeat(np.arange(len(ids)), N_PREDICTED),
            "rank": np.tile(np.arange(N_PREDICTED), len(ids)),
            "text": [subject.tokenizer.token_texts[i] for i in tokens.tolist()],
            "probability": probabilities.numpy(),
        }
    )
    trace = make_trace(rows, subject.sites, subject.tokenizer)
    return TextTrace(trace, predictions, {layer: np.concatenate(kept) for layer, kept in slots.items()})


def describe_trace(subject: Subject, traced: TextTrace) -> list[dict[str, Any]]:
    """A trace as nested plain values, one per token, with the init sentence of every entry that has one.

    A token is ``{pos, text, loss, next: [{text, probability}], layers: [{layer, entries: [...]}]}``; one that spells a
    part of a character also has the ``bytes`` and is named by the ``label`` ``中 1/2``. A fired entry is ``{entry,
    label, gate, read, slots, sentence}``; ``gate`` and ``read`` are there where the layer has them, ``slots`` when
    entries have several, ``sentence`` where entries have a text.
    """
    starts = subject.starts()
    sentences = None if starts is None else starts["sentence"]
    groups = traced.trace.selections.groupby(["pos", "layer"])
    fired = {key: list(rows.itertuples()) for key, rows in groups}

    def describe(site: Site, selection: Any) -> dict[str, Any]:
        entry, slots = int(selection.entry), traced.slots.get(site.layer)
        described: dict[str, Any] = {"entry": entry, "label": entry_label(subject.sites, entry)}
        described |= {"gate": float(selection.gate)} if "scores" in site.has else {}
        described |= {"read": float(selection.read)} if "reads" in site.has else {}
        described |= {} if slots is None else {"slots": slots[selection.pos, selection.k].tolist()}
        return described | ({} if sentences is None else {"sentence": sentences[entry].as_py()})

    predictions = dict(list(traced.predictions.groupby("pos")))
    described = []
    for token in traced.trace.tokens.itertuples():
        layers = [
            {"layer": site.layer, "entries": [describe(site, s) for s in fired.get((token.pos, site.layer), ())]}
            for site in subject.sites
        ]
        described.append(
            {
                "pos": int(token.pos),
                "text": token.text,
                **({"label": token_label(token.whole, token.part, token.parts)} if token.bytes else {}),
                **({"bytes": token.bytes} if token.bytes else {}),
                "loss": None if np.isnan(token.loss) else float(token.loss),
                "next": predictions[token.pos][["text", "probability"]].to_dict("records"),
                "layers": layers,
            }
        )
    return described
