"""Entries whose tokens have one thing in common, and layers that read all alike; from a recording's parts.

    found = pd.concat(layer_anomalies(recording, info, layer, text) for layer in info.layers)

An entry is looked at as the set of tokens that select it: two gate heads, or two slots, that select it for one token
count once. ``report/anomalies.py`` says which kinds there are; here each is first named by its effect, over all tokens,
and then gets the chance of that effect at its looks (``census/anomalies/looks.py``), times everything that the kind
looked at.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from memscope.base.parquet import matrix, read_parquet, write_table
from memscope.base.work import ALONE, Processes
from memscope.census.anomalies.kernels import (
    CLASSES,
    EntryTokens,
    EvennessSum,
    ReadCount,
    count_negative,
    describe_tokens,
    distinct,
    sum_evenness,
)
from memscope.census.anomalies.looks import RowText, first_indices, pick_looks, row_text, stretch_length, upper_tail
from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import SelectionReader, read_columns
from memscope.stats.usage import UNREAD_SHARE
from memscope.text.tokenizer import Tokenizer

MIN_TOKENS = 20
"""Tokens that must select an entry for it to be named."""
EXACT = 0.95
"""Precision of whatever an entry's tokens have in common, and the recall of a single token."""
HALF = 0.5
"""Recall of what many tokens have in common: a class, the start of a window."""
EVERYWHERE = 0.99
"""Share of all tokens that an entry "on every token" is selected at."""
UNIFORM = 0.98
"""exp(entropy) of a token's read shares / their number, in a layer that reads all alike."""
NEGATIVE = 0.95
"""Share of its tokens at which an entry is read with a negative weight."""
BLOCK = 1 << 21
"""Selections in memory at once."""
ANOMALIES = pa.schema(
    [
        *(("kind", pa.string()), ("layer", pa.int32()), ("entry", pa.int64()), ("other", pa.int64())),
        *(("label", pa.string()), ("effect", pa.float64()), ("p", pa.float64()), ("tokens", pa.int64())),
    ]
)
"""Columns of ``anomalies.parquet``."""


class _Layer(NamedTuple):
    """The data of one layer that all kinds of anomaly use."""

    info: RecordingInfo
    layer: int
    text: RowText
    stretch: int
    texts: list[str]
    bits: np.ndarray

    def row(self, kind: str, entry: int, label: str, effect: float, p: float, tokens: int) -> dict[str, object]:
        return {"kind": kind, "layer": self.layer, "entry": entry, "label": label, "effect": effect, "p": p} | {
            "tokens": tokens
        }


def write_anomalies(recording: Path, info: RecordingInfo, pairs: pd.DataFrame | None, group: Processes = ALONE) -> None:
    """Write ``anomalies.parquet``: what may stand out, by how far and by what chance; ``report/anomalies.py`` decides.

    Args:
        recording: its folder.
        info: its description.
        pairs: of ``write_neighbours``, in the main process.
        group: the processes that share the layers.
    """
    text, tokenizer = row_text(recording, info), Tokenizer.load(recording / "tokenizer.json")

    def write(of_layers: Iterator[pd.DataFrame]) -> None:
        found = [*of_layers, *([] if pairs is None else [pairs])]
        rows = [row for table in found for row in table.to_dict("records")]
        blank = {"entry": -1, "other": -1, "label": ""}
        table = pa.Table.from_pylist([blank | row for row in rows], schema=ANOMALIES)
        order = [(name, "ascending") for name in ANOMALIES.names[:4]]
        write_table(recording / "anomalies.parquet", table.sort_by(order))

    group.share(lambda layer: layer_anomalies(recording, info, layer, text, tokenizer), info.layers, write)


def layer_anomalies(
    recording: Path, info: RecordingInfo, layer: int, text: RowText, tokenizer: Tokenizer
) -> pd.DataFrame:
    """Candidates of one layer: ``kind layer entry label effect p tokens``; ``p`` is corrected within the kind.

    Args:
        recording: its folder.
        info: its description.
        layer: number of the layer.
        text: of all rows.
        tokenizer: of the model.
    """
    stretch = stretch_length(first_indices(recording, info, layer), text)
    shared = _Layer(info, layer, text, stretch, tokenizer.token_texts, class_bits(tokenizer.token_texts))
    rows = [row for block in _blocks(recording, shared) for row in block]
    reads = "reads" in info.site(layer).has
    return pd.DataFrame([*rows, *(_reading(recording, shared) if reads else ())])


def class_bits(texts: list[str]) -> np.ndarray:
    """Classes of every token id by its text, spaces aside, as bits in the order of ``CLASSES``, uint8 ``[vocab]``.

    Digits only; signs only; begins with a capital letter.
    """
    bare = [text.strip() for text in texts]
    found = np.array(
        [
            (
                text.isdecimal(),
                bool(text) and all(not sign.isalnum() and sign.isprintable() and sign != "\ufffd" for sign in text),
                text[:1].isupper(),
            )
            for text in bare
        ]
    )
    return np.asarray((found << np.arange(len(CLASSES))).sum(1).astype(np.uint8))


def _blocks(recording: Path, shared: _Layer) -> Iterator[list[dict[str, object]]]:
    """Anomalies of single entries, for some entries after the others, of ``BLOCK`` selections or so."""
    usage = read_parquet(recording / "usage.parquet", ["layer", "entry", "count"])
    here = usage["layer"].to_numpy() == shared.layer
    entries, counts = usage["entry"].to_numpy()[here], usage["count"].to_numpy()[here]
    reader = SelectionReader(recording, shared.info)
    block_of = np.cumsum(counts) // BLOCK
    for block in np.unique(block_of):
        own = entries[block_of == block]
        entry, row, _ = reader.read(shared.layer, int(own[0]), int(own[-1]))
        order = np.argsort(entry, kind="stable")  # every part is sorted by itself
        entry, row = entry[order], row[order].astype(np.int64)
        first = distinct(entry, row)
        entry, row = entry[first], row[first]
        starts = np.append(np.searchsorted(entry, own), len(entry))
        found = describe_tokens(starts, row, shared.text, shared.bits)
        yield [
            *_detectors(shared, own, starts, row, found),
            *_marked(shared, own, starts, row, found),
            *_everywhere(shared, own, found),
            *_in_one_document(shared, own, starts, row, found),
        ]


def _detectors(
    shared: _Layer, entries: np.ndarray, starts: np.ndarray, rows: np.ndarray, found: EntryTokens
) -> Iterator[dict[str, object]]:
    """Entries selected at one token, after one, or at one after another, and nowhere else.

    The effect is the smaller one of precision and recall. Both tokens are named only where one of them is not enough.
    """
    text, texts = shared.text, shared.texts
    enough = np.zeros(len(entries), bool)
    for kind, looked_at in (("token", len(texts)), ("previous", len(texts)), ("bigram", int(text.bigram.max()) + 1)):
        label, hits = getattr(found, kind)
        of_row = getattr(text, kind)
        occurrences = np.bincount(of_row + 1, minlength=int(label.max(initial=0)) + 2)[1:]
        effect = np.minimum(hits / found.tokens, hits / np.maximum(occurrences[label], 1))
        named = (found.tokens >= MIN_TOKENS) & (effect >= EXACT) & ~(enough & (kind == "bigram"))
        for place in np.flatnonzero(named):
            own = rows[starts[place] : starts[place + 1]]
            special = of_row == label[place]
            row = own[special[own]][0]
            before = texts[text.previous[row]] if text.previous[row] >= 0 else ""
            name = {"token": texts[text.token[row]], "previous": before, "bigram": before + texts[text.token[row]]}[
                kind
            ]
            p = _p_of(shared, own, special, looked_at)
            yield shared.row(kind, int(entries[place]), name, effect[place], p, int(found.tokens[place]))
        enough |= named


def _marked(
    shared: _Layer, entries: np.ndarray, starts: np.ndarray, rows: np.ndarray, found: EntryTokens
) -> Iterator[dict[str, object]]:
    """Entries selected at starts of windows, or in one class of tokens, and at half of these at least."""
    classes = [("start", "", found.starts, shared.text.starts)]
    for number, name in enumerate(CLASSES):
        special = (shared.bits[shared.text.token] >> number & 1).astype(bool)
        one_token = found.token.hits >= EXACT * found.tokens  # that it is of a class says nothing more
        classes.append(("class", name, np.where(one_token, 0, found.classes[:, number]), special))
    for kind, name, hits, special in classes:
        precision, recall = hits / found.tokens, hits / max(1, int(special.sum()))
        for place in np.flatnonzero((found.tokens >= MIN_TOKENS) & (precision >= EXACT) & (recall >= HALF)):
            looked_at = len(CLASSES) if kind == "class" else 1
            p = _p_of(shared, rows[starts[place] : starts[place + 1]], special, looked_at)
            yield shared.row(kind, int(entries[place]), name, precision[place], p, int(found.tokens[place]))


def _everywhere(shared: _Layer, entries: np.ndarray, found: EntryTokens) -> Iterator[dict[str, object]]:
    """Entries that (nearly) every token selects; a token selects K of N, and no chance comes near where K < N / 2."""
    site = shared.info.site(shared.layer)
    if 2 * site.selected > site.entries:
        return
    effect = found.tokens / len(shared.text.token)
    for place in np.flatnonzero((found.tokens >= MIN_TOKENS) & (effect >= EVERYWHERE)):
        yield shared.row("everywhere", int(entries[place]), "", effect[place], 0.0, int(found.tokens[place]))


def _in_one_document(
    shared: _Layer, entries: np.ndarray, starts: np.ndarray, rows: np.ndarray, found: EntryTokens
) -> Iterator[dict[str, object]]:
    """Entries selected in one document only: a look hits by the document's share of the text."""
    text = shared.text
    effect = found.doc.hits / found.tokens
    share = text.length[found.doc.label] / len(text.token)
    for place in np.flatnonzero((found.tokens >= MIN_TOKENS) & (effect >= EXACT) & (share < EXACT)):
        own = rows[starts[place] : starts[place + 1]]
        looks = pick_looks(own, text.stretch_of(own, shared.stretch))
        hits = int((text.doc[looks] == found.doc.label[place]).sum())
        p = _corrected(shared, upper_tail(hits, np.full(len(looks), share[place])), len(text.length))
        label = str(int(found.doc.label[place]))
        yield shared.row("document", int(entries[place]), label, effect[place], p, int(found.tokens[place]))


def _reading(recording: Path, shared: _Layer) -> Iterator[dict[str, object]]:
    """Entries that are not read, or read negatively, set against the layer's reads, and layers that read all alike.

    Where read heads differ in sign, entries count as read by the weights that do not cancel (``read_norm``).
    """
    info, layer, n = shared.info, shared.layer, shared.info.knowledge_num
    counts, last = np.zeros((n, len(ReadCount)), np.int64), np.full(n, -1, np.int64)
    gate_sum, read_sum, sums = np.zeros(n), np.zeros(n), np.zeros(len(EvennessSum))
    kinds = ["indices", "gate", "read", *["read_norm"] * info.site(layer).signed_reads]
    for part, first in zip(info.parts, info.first_rows(), strict=True):
        table = read_columns(recording, info, part, [f"l{layer}_{kind}" for kind in kinds])
        found = {kind: matrix(table[f"l{layer}_{kind}"]) for kind in kinds}
        indices, gate, read = (
            found["indices"].astype(np.int64),
            found["gate"].astype(float),
            found["read"].astype(float),
        )
        norm = np.abs(found.get("read_norm", read)).astype(float)
        there = indices >= 0
        gate = np.where(there, gate, 0)
        gate_sum += np.bincount(indices[there], gate[there], minlength=n)
        read_sum += np.bincount(indices[there], norm[there], minlength=n)
        stretch = shared.text.stretch_of(np.arange(first, first + part.rows), shared.stretch)
        count_negative(indices, read, stretch, last, counts)
        sum_evenness(gate, norm, sums)
    tokens, negative = counts[:, ReadCount.TOKENS], counts[:, ReadCount.NEGATIVE_TOKENS]
    looks, negative_looks = counts[:, ReadCount.LOOKS], counts[:, ReadCount.NEGATIVE_LOOKS]
    often = (tokens >= MIN_TOKENS) & (gate_sum > 0)
    read_each = read_sum / np.maximum(gate_sum, 1e-30) / max(read_sum.sum() / max(gate_sum.sum(), 1e-30), 1e-30)
    for entry in np.flatnonzero(often & (read_each < UNREAD_SHARE)):
        yield shared.row("unread", int(entry), "", float(read_each[entry]), 0.0, int(tokens[entry]))
    layer_share = float(negative.sum() / max(1, tokens.sum()))
    effect = negative / np.maximum(tokens, 1)
    for entry in np.flatnonzero((tokens >= MIN_TOKENS) & (effect >= NEGATIVE)):
        chances = np.full(looks[entry], layer_share)
        p = _corrected(shared, upper_tail(int(negative_looks[entry]), chances), 1)
        yield shared.row("negative", int(entry), "", effect[entry], p, int(tokens[entry]))
    readers, compared = sums[EvennessSum.READERS], sums[EvennessSum.COMPARED]
    of_read, of_gate = sums[EvennessSum.OF_READ] / max(readers, 1), sums[EvennessSum.OF_GATE] / max(readers, 1)
    of_attention = sums[EvennessSum.OF_ATTENTION] / max(compared, 1)
    if of_read >= UNIFORM > of_gate and readers >= MIN_TOKENS:
        yield shared.row("uniform", -1, "read", float(of_read), 0.0, int(readers))
    if of_attention >= UNIFORM and compared >= MIN_TOKENS:
        yield shared.row("uniform", -1, "attention", float(of_attention), 0.0, int(compared))


def _p_of(shared: _Layer, rows: np.ndarray, special: np.ndarray, looked_at: int) -> float:
    """Probability of at least this many special looks, if the entry ignored what is special inside a document."""
    text = shared.text
    looks = pick_looks(rows, text.stretch_of(rows, shared.stretch))
    chances = text.share_in_document(special)[text.doc[looks]]
    return _corrected(shared, upper_tail(int(special[looks].sum()), chances), looked_at)


def _corrected(shared: _Layer, p: float, looked_at: int) -> float:
    """p times everything that a kind looked at: every entry of every layer, and what else."""
    return min(1.0, p * sum(site.entries for site in shared.info.sites) * looked_at)
