"""Run a model on any text and see, per token and layer, the entries that fired: a recording of one text in memory."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from memscope.base.errors import InputError
from memscope.record.rows import RowCollector
from memscope.recording.sites import Site, entry_label
from memscope.recording.token_table import Trace, make_trace
from memscope.run.subject import Subject, run_windows
from memscope.text.corpus import DocumentWindow, PackedCorpus

N_PREDICTED = 5


class TextTrace(NamedTuple):
    """Selections and predictions of a model on a text."""

    trace: Trace
    """Tokens and selections, as from a recording; the first token is bos."""
    predictions: pd.DataFrame
    """``pos rank text probability``: the most likely next tokens after every token."""
    slots: dict[int, np.ndarray]
    """Read weight of every slot, mean over read heads, float32 ``[token, K, L]``, of each layer whose entries have
    several; column ``k`` of the selections is the K axis."""


def text_window(subject: Subject, text: str) -> tuple[PackedCorpus, DocumentWindow]:
    """A text as a corpus of one document, opened as the model's tokenizer opens texts, and its only window.

    Raises:
        InputError: the text is empty or longer than the model's window.
    """
    tokenizer, limit = subject.tokenizer, subject.window
    ids = tokenizer.encode(text)
    if not ids:
        raise InputError("the text is empty; give at least one word")
    if len(ids) + len(tokenizer.opening) > limit:
        most = limit - len(tokenizer.opening)
        raise InputError(f"the text has {len(ids)} tokens, the model reads {most} at once; shorten it")
    tokens = np.array([*tokenizer.opening, *ids], np.uint32)
    corpus = PackedCorpus(tokens, np.array([0, len(tokens)]), [""], path="text", sha256="")
    return corpus, DocumentWindow(doc=0, pos=0, start=0, end=len(tokens))


def trace_text(subject: Subject, text: str) -> TextTrace:
    """Run a model on ``text`` and capture what it selects.

    Raises:
        InputError: the text is empty or longer than the model's window.
    """
    corpus, window = text_window(subject, text)
    tokenizer, tokens = subject.tokenizer, corpus.tokens
    [done] = run_windows(subject, corpus, [window], tokenizer.pad, detail=True)
    rows = RowCollector(corpus, subject.sites).collect([window], [done])
    several = {site.layer: done.captured[site.layer].slot_weights for site in subject.sites if site.slots > 1}
    slots = {layer: weights[0].cpu().numpy() for layer, weights in several.items() if weights is not None}
    top = done.logits[0].float().softmax(-1).topk(N_PREDICTED)
    predictions = pd.DataFrame(
        {
            "pos": np.repeat(np.arange(len(tokens)), N_PREDICTED),
            "rank": np.tile(np.arange(N_PREDICTED), len(tokens)),
            "text": [tokenizer.token_texts[i] for i in top.indices.flatten().tolist()],
            "probability": top.values.flatten().cpu().numpy(),
        }
    )
    return TextTrace(make_trace(rows, subject.sites, tokenizer), predictions, slots)


def describe_trace(subject: Subject, traced: TextTrace) -> list[dict[str, Any]]:
    """A trace as nested plain values, one per token, with the init sentence of every entry that has one.

    A token is ``{pos, text, loss, next: [{text, probability}], layers: [{layer, entries: [...]}]}``, a fired entry
    ``{entry, label, gate, read, slots, sentence}``; ``gate`` and ``read`` are there where the layer has them, ``slots``
    when entries have several, ``sentence`` where entries have a text.
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
                "loss": None if np.isnan(token.loss) else float(token.loss),
                "next": predictions[token.pos][["text", "probability"]].to_dict("records"),
                "layers": layers,
            }
        )
    return described
