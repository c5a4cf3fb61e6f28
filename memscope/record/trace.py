"""Run a model on any text and see, per token and layer, the entries that fired: a recording of one text in memory."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from memscope.base.errors import InputError
from memscope.record.rows import RowCollector
from memscope.recording.token_table import Trace, make_trace
from memscope.run.capture import run_windows
from memscope.run.checkpoint import LoadedRun
from memscope.run.provenance import start_table
from memscope.text.corpus import DocumentWindow, PackedCorpus

N_PREDICTED = 5


class TextTrace(NamedTuple):
    """Selections and predictions of a model on a text."""

    trace: Trace
    """Tokens and selections, as from a recording; the first token is bos."""
    predictions: pd.DataFrame
    """``pos rank text probability``: the most likely next tokens after every token."""
    slots: np.ndarray
    """Read weight of every slot, mean over read heads, float32 ``[token, layer, K, L]``; column ``k`` of the
    selections is the K axis."""


def trace_text(run: LoadedRun, text: str) -> TextTrace:
    """Run a model on ``text`` and capture its memory.

    Raises:
        InputError: the model is an FFN baseline, or the text is empty or longer than the model's window.
    """
    if not run.config.model.memory_layers:
        raise InputError(f"{run.path}: an FFN baseline has no memory to trace")
    ids = run.tokenizer.encode(text)
    limit = run.config.model.max_seq_len
    if not ids:
        raise InputError("the text is empty; give at least one word")
    if len(ids) + 1 > limit:
        raise InputError(f"the text has {len(ids)} tokens, the model reads {limit - 1} at once; shorten it")
    tokens = np.array([run.tokenizer.bos, *ids], np.uint32)
    corpus = PackedCorpus(tokens, np.array([0, len(tokens)]), [""], path="text", sha256="")
    window = DocumentWindow(doc=0, pos=0, start=0, end=len(tokens))
    layers = run.config.model.memory_layers
    [done] = run_windows(run.model, corpus, [window], run.tokenizer.pad, run.config.train.dtype)
    rows = RowCollector(corpus, layers).collect([window], [done])
    slots = torch.stack([done.captured[layer].slot_weights[0] for layer in layers], 1)
    top = done.logits[0].float().softmax(-1).topk(N_PREDICTED)
    predictions = pd.DataFrame(
        {
            "pos": np.repeat(np.arange(len(tokens)), N_PREDICTED),
            "rank": np.tile(np.arange(N_PREDICTED), len(tokens)),
            "text": [run.tokenizer.token_texts[i] for i in top.indices.flatten().tolist()],
            "probability": top.values.flatten().cpu().numpy(),
        }
    )
    return TextTrace(make_trace(rows, layers, run.tokenizer), predictions, slots.cpu().numpy())


def describe_trace(run: LoadedRun, traced: TextTrace) -> list[dict[str, Any]]:
    """A trace as nested plain values, one per token, with the init sentence of every entry.

    A token is ``{pos, text, loss, next: [{text, probability}], layers: [{layer, entries: [...]}]}``, a fired entry
    ``{entry, gate, read, slots, sentence}``; ``slots`` is there when entries have several.
    """
    bank = start_table(run, ["sentence"])["sentence"]
    layer_axis = {layer: axis for axis, layer in enumerate(run.config.model.memory_layers)}
    n_slots = traced.slots.shape[-1]
    selections = dict(list(traced.trace.selections.groupby(["pos", "layer"])))
    predictions = dict(list(traced.predictions.groupby("pos")))
    described = []
    for token in traced.trace.tokens.itertuples():
        layers = []
        for layer, axis in layer_axis.items():
            entries = [
                {
                    "entry": int(s.entry),
                    "gate": float(s.gate),
                    "read": float(s.read),
                    **({"slots": traced.slots[token.pos, axis, s.k].tolist()} if n_slots > 1 else {}),
                    "sentence": bank[int(s.entry)].as_py(),
                }
                for s in selections[token.pos, layer].itertuples()
            ]
            layers.append({"layer": layer, "entries": entries})
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
