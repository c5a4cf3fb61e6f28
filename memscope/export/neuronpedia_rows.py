"""One entry in one layer as rows of Neuronpedia's tables, for ``export/neuronpedia.py``.

Field names are the columns of Neuronpedia's tables Neuron, Activation and Explanation; SAEDashboard's feature has the
same. An activation is a stretch of text with the entry's gate score at every token, 0 where the entry is not selected.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from memscope.base.words import first_upper
from memscope.export.interchange import latents, read_activations
from memscope.query.recording import Recording
from memscope.recording.part_reader import SelectionReader
from memscope.recording.sites import Site
from memscope.report.words import start_name

CREATOR = "clkht01d40000jv08hvalcvly"
"""Account that Neuronpedia's database seed creates and its exports name as creator."""
BEFORE, AFTER = 96, 32
"""Most tokens of a context before its token, and from it on: 128 together, as in Neuronpedia's prompts."""
BARS = 50
"""Bars of the histogram of activations, as SAEDashboard has."""
MISSING_LOGIT = -10000.0
"""A value that Neuronpedia shows as blank: the logit of the token is unknown."""
_NOT_RECORDED = (
    *("vector", "topkCosSimIndices", "topkCosSimValues"),
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1"),
    *("correlated_features_indices", "correlated_features_pearson", "correlated_features_l1"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist"),
)


class Source(NamedTuple):
    """One layer of the export."""

    recording: Recording
    reader: SelectionReader
    site: Site
    keys: dict[str, str]
    """``modelId`` and ``layer``, by which Neuronpedia joins its tables."""
    first_rows: np.ndarray
    """First row of every document."""
    past_rows: np.ndarray
    """One past its last row."""

    def number(self, entry: int) -> str:
        """The number by which an entry is a feature of the layer."""
        return str(entry - latents(self.recording.info, self.site).start)


class Rows(NamedTuple):
    """The rows of one entry in one layer, table by table."""

    features: list[dict[str, Any]]
    activations: list[dict[str, Any]]
    explanations: list[dict[str, Any]]


def entry_rows(source: Source, batch: list[int]) -> Iterator[Rows]:
    """Features, activations and explanations of some entries, entry by entry."""
    recording, layer = source.recording, source.site.layer
    entry, row, gate = read_activations(source.reader, layer, batch[0], batch[-1])
    order = np.argsort(entry, kind="stable")  # rows of an entry stay in order
    bounds = np.searchsorted(entry[order], np.array([batch, np.add(batch, 1)])).T
    contexts = recording.sql(
        "SELECT * FROM contexts WHERE layer = ? AND entry IN (SELECT unnest(?)) ORDER BY entry, kind DESC, rank",
        [layer, batch],
    )
    by_entry = dict(iter(contexts.groupby("entry")))
    decodings = recording.sql(
        """SELECT d.*, sentence, fires_on, words FROM decodings d JOIN bank USING (entry)
           LEFT JOIN titles t ON t.entry = d.entry LEFT JOIN firing f ON f.entry = d.entry AND f.layer = ?
           WHERE d.entry IN (SELECT unnest(?))""",
        [layer, batch],
    ).set_index("entry")
    for number, (begin, end) in zip(batch, bounds, strict=True):
        mine = order[begin:end]
        rows, scores = row[mine].astype(np.int64), gate[mine].astype(np.float64)
        activations = _activations(source, number, rows, scores, by_entry[number])
        feature = _feature(source, number, scores, decodings.loc[number])
        yield Rows([feature], activations, _explanations(source, number, decodings.loc[number]))


def activation_bin(scores: np.ndarray, score: float, total: int) -> dict[str, float | None]:
    """The fifth of an entry's activations in which a score lies, as ``binMin``, ``binMax`` and ``binContains``.

    Args:
        scores: all activations of the entry, highest first.
        score: one of them.
        total: tokens of the recording; ``binContains`` is the share of them whose activation lies in the fifth.
    """
    n = len(scores)
    fifth = int(np.searchsorted(-scores, -score)) * 5 // n
    first, past = -(-fifth * n // 5), -(-(fifth + 1) * n // 5)
    return {
        "binMin": short_float(scores[past - 1]),
        "binMax": short_float(scores[first]),
        "binContains": short_float((past - first) / total),
    }


def _feature(source: Source, entry: int, gate: np.ndarray, decoding: pd.Series) -> dict[str, Any]:
    active = gate[gate != 0]
    heights, edges = np.histogram(active, BARS if len(np.unique(active)) > 1 else 1)
    return {
        **source.keys,
        "index": source.number(entry),
        "creatorId": CREATOR,
        "sourceSetName": source.site.kind,
        "maxActApprox": short_float(gate.max()),
        "hasVector": False,
        "frac_nonzero": short_float(len(active) / source.recording.info.rows),
        "freq_hist_data_bar_heights": heights.tolist(),
        "freq_hist_data_bar_values": [short_float(value) for value in (edges[:-1] + edges[1:]) / 2],
        **_logits(source, "pos", "top", decoding),
        **_logits(source, "neg", "bottom", decoding),
        **{name: [] for name in _NOT_RECORDED},
    }


def _logits(source: Source, name: str, end: str, decoding: pd.Series) -> dict[str, list[Any]]:
    """Tokens that the entry raises (``pos``) or lowers (``neg``) most, by the logit lens; none without a lens."""
    ids = decoding.get(f"l{source.site.layer}_{end}")
    ids = ids if isinstance(ids, np.ndarray) else []
    logits = decoding.get(f"l{source.site.layer}_{end}_logits")
    logits = logits if isinstance(logits, np.ndarray) else [MISSING_LOGIT] * len(ids)
    return {f"{name}_str": _texts(source, ids), f"{name}_values": [short_float(float(logit)) for logit in logits]}


def _activations(
    source: Source, entry: int, row: np.ndarray, gate: np.ndarray, contexts: pd.DataFrame
) -> list[dict[str, Any]]:
    """The contexts of an entry: text around the token, with the entry's activation at every token."""
    falling = np.sort(gate)[::-1]
    top = {"binMin": -1.0, "binMax": short_float(falling[0]), "binContains": None}  # -1 marks top activations
    lines = []
    for context in contexts.drop_duplicates(["kind", "row"]).itertuples():  # gate heads may share a token
        start, end = _stretch(source, context.row)
        here = slice(*np.searchsorted(row, [start, end]))
        values = [0.0] * (end - start)
        for at, score in zip((row[here] - start).tolist(), gate[here].tolist(), strict=True):
            values[at] = short_float(score)
        gate_score = float(gate[np.searchsorted(row, context.row)])
        lines.append(
            {
                **source.keys,
                "index": source.number(entry),
                "id": _identity(source, entry, context.kind, context.rank),
                "creatorId": CREATOR,
                "tokens": _texts(source, source.recording.token_ids[start:end]),
                "values": values,
                "maxValue": max(values),
                "maxValueTokenIndex": values.index(max(values)),
                "minValue": min(values),
                "qualifyingTokenIndex": int(context.row - start),
                **(top if context.kind == "top" else activation_bin(falling, gate_score, source.recording.info.rows)),
            }
        )
    return lines


def _explanations(source: Source, entry: int, decoding: pd.Series) -> list[dict[str, Any]]:
    """The init sentence, tokens and words of an entry, as far as it has them; no model wrote these explanations."""
    sentence, fires_on, words = decoding["sentence"], decoding["fires_on"], decoding["words"]
    said = "What the entry started from, not a description of what it does now."
    if "drift" not in source.site.has:
        said = "What is read of it, word by word."
    known = [
        (sentence, f"{first_upper(start_name(source.site))}: {sentence}", said),
        (fires_on, f"Fires on: {fires_on}", "Its most frequent tokens in this layer, with their shares."),
        (words, f"Words that set it apart: {words}", "Of highest TF-IDF among the words it fires in."),
    ]
    return [
        {
            **source.keys,
            "index": source.number(entry),
            "id": _identity(source, entry, notes),
            "authorId": CREATOR,
            "description": description,
            "notes": notes,
        }
        for text, description, notes in known
        if isinstance(text, str)
    ]


def _identity(source: Source, entry: int, *parts: object) -> str:
    """A primary key as long as Neuronpedia's keys; the same in every export of the same recording."""
    info = source.recording.info
    name = " ".join(map(str, (info.fingerprint, info.corpus_sha256, source.site.layer, entry, *parts)))
    return hashlib.sha256(name.encode()).hexdigest()[:25]


def _stretch(source: Source, row: int) -> tuple[int, int]:
    """First row and one past the last of the text around a row, inside the window that the model saw."""
    doc = int(np.searchsorted(source.first_rows, row, side="right")) - 1
    first, window = int(source.first_rows[doc]), source.recording.info.window
    begin = first + (row - first) // window * window
    end = min(begin + window, int(source.past_rows[doc]))
    start = max(begin, min(row - BEFORE, end - BEFORE - AFTER))
    return start, min(end, start + BEFORE + AFTER)


def _texts(source: Source, ids: Iterable[Any]) -> list[str]:
    """Tokens as text; Neuronpedia takes no empty one."""
    tokenizer = source.recording.tokenizer
    return [tokenizer.token_texts[int(i)] or tokenizer.name(int(i)) for i in ids]


def short_float(value: float) -> float:
    """Five digits: more than a float16 holds."""
    return float(f"{value:.5g}")
