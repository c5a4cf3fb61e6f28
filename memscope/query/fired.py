"""The entries that one token of a text selected, or two tokens, with the words of the entries.

trace = recording.trace(doc=3)
for layer in fired_entries(recording, trace, pos=17):
    layer.layer, [(one.entry, one.gate, one.read, one.words.text) for one in layer.entries]
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.query.bank_table import Words, words_of
from memscope.query.needs import known_columns
from memscope.query.recording import Recording
from memscope.recording.part_reader import read_rows
from memscope.recording.token_table import Trace


class FiredEntry(NamedTuple):
    """An entry that a token selected in one layer."""

    entry: int
    gate: float | None
    """Gate score; none where selections have no scores."""
    gate_share: float
    """Gate score over the largest of the token and layer."""
    read: float | None
    """Read weight, mean over read heads and sum over slots; may be negative where the read is not a softmax. None where
    nothing reads apart from the gate."""
    read_share: float
    """Absolute read weight over the largest of the token and layer."""
    words: Words
    slots: np.ndarray | None
    """Absolute read weight of each word of the init sentence, ``[slot]``; none for entries of one slot."""


class FiredLayer(NamedTuple):
    """The entries that a token selected in one layer."""

    layer: int
    effective: float | None
    """Entries effectively read, exp(entropy of read shares); 0 where nothing is read, none where the layer has no read
    apart from the gate."""
    entries: list[FiredEntry]
    """Most read first, or of the highest score."""


def fired_entries(
    recording: Recording, trace: Trace, pos: int, slots: Mapping[int, np.ndarray] | None = None
) -> list[FiredLayer]:
    """The entries that the token at ``pos`` selected in every layer; layers that read sentences come first.

    Args:
        recording: whose bank.
        trace: a stretch of text around the token.
        pos: the token.
        slots: read weights of its slots by layer, ``[K, L]`` each (``recorded_slots``, or from
            ``trace_text(...).slots``); none where entries have one slot or the weights were not kept.
    """
    fired = trace.selections[trace.selections["pos"] == pos]
    words = words_of(recording, fired["entry"])
    layers = []
    for layer, rows in fired.groupby("layer"):
        has = recording.info.site(int(layer)).has
        gates, reads = (np.nan_to_num(rows[name].to_numpy(np.float64)) for name in ("gate", "read"))
        sizes = np.abs(reads)
        shares = sizes / max(float(sizes.sum()), 1e-30)
        entropy = -float((shares * np.log(np.maximum(shares, 1e-30))).sum())
        entries = [
            FiredEntry(
                entry=int(entry),
                gate=float(gate) if "scores" in has else None,
                gate_share=float(max(gate, 0) / max(gates.max(), 1e-30)),
                read=float(read) if "reads" in has else None,
                read_share=float(abs(read) / max(sizes.max(), 1e-30)),
                words=words[int(entry)],
                slots=_word_reads(words[int(entry)], slots[int(layer)][k]) if slots and int(layer) in slots else None,
            )
            for entry, k, gate, read in zip(rows["entry"], rows["k"], gates, reads, strict=True)
        ]
        effective = float(np.exp(entropy)) if sizes.any() else 0.0
        layers.append(FiredLayer(int(layer), effective if "reads" in has else None, entries))
    return sorted(layers, key=lambda fired: recording.info.site(fired.layer).kind != "text")


def selected_entries(recording: Recording, trace: Trace, layers: Sequence[int] | None = None) -> pd.DataFrame:
    """Entries that a text selects: ``entry tokens layers gate read sentence title``, those that count most first.

    ``tokens`` are those that select it and ``layers`` the layers in which they do, of the given ones; ``gate`` and
    ``read`` are sums of sizes. Most read first, or of the largest sum of scores, or at most tokens. Columns that the
    recording has not are left out. Tokens that are no text, such as bos, do not count.
    """
    control = trace.tokens.loc[trace.tokens["control"], "pos"]
    rows = trace.selections[~trace.selections["pos"].isin(control)]
    rows = rows if layers is None else rows[rows["layer"].isin(layers)]
    rows = rows.assign(gate=rows["gate"].abs(), read=rows["read"].abs())
    groups = rows.groupby("entry")
    table = pd.DataFrame(
        {
            "tokens": groups["pos"].nunique(),
            "layers": groups["layer"].unique().map(lambda found: ", ".join(map(str, sorted(found)))),
            **{name: groups[name].sum() for name in ("gate", "read")},
        }
    ).sort_values(["read", "gate", "tokens"], ascending=False)
    table = table.rename_axis("entry").reset_index()
    words = words_of(recording, table["entry"])
    table["sentence"] = [words[entry].text for entry in table["entry"]]
    table["title"] = [words[entry].title for entry in table["entry"]]
    return known_columns(recording.info, table)


def recorded_slots(recording: Recording, doc: int, pos: int) -> dict[int, np.ndarray] | None:
    """Read weights of the slots at a recorded token, float32 ``[K, L]`` per layer, if the recording keeps them."""
    info = recording.info
    if not info.slot_weights:
        return None
    rows = read_rows(recording.path, info, int(recording.documents["first_row"][doc]) + pos, 1)
    assert rows.slot_read is not None
    weights = zip(info.sites, rows.slot_read[0].astype(np.float32), strict=True)
    several = [(site, own) for site, own in weights if site.slots > 1]
    return {site.layer: own[: site.selected * site.slots].reshape(site.selected, site.slots) for site, own in several}


def predicted_token(recording: Recording, doc: int, pos: int) -> str:
    """The next token that the recorded model found most likely after a recorded token."""
    rows = read_rows(recording.path, recording.info, int(recording.documents["first_row"][doc]) + pos, 1)
    return recording.tokenizer.token_texts[int(rows.predicted[0])]


def shared_selections(a: Trace, b: Trace, pos_a: int, pos_b: int) -> pd.DataFrame:
    """Entries that either of two tokens selects, ``layer entry gate_a gate_b read_a read_b shared``; NaN where one does
    not.

    By layer, those that both select first, then by falling gate score. An entry that several gate heads select counts
    once, with its largest score.
    """
    sides = [t.selections[t.selections["pos"] == pos] for t, pos in ((a, pos_a), (b, pos_b))]
    sides = [side.groupby(["layer", "entry"], as_index=False)[["gate", "read"]].max() for side in sides]
    both = sides[0].merge(sides[1], on=["layer", "entry"], how="outer", suffixes=("_a", "_b"), indicator=True)
    both["shared"] = (both.pop("_merge") == "both").to_numpy()
    both = both.sort_values(["layer", "shared", "gate_a", "gate_b"], ascending=[True, False, False, False])
    return both.reset_index(drop=True)


def shared_by_layer(shared: pd.DataFrame, layers: tuple[int, ...]) -> pd.Series:
    """Number of entries that both tokens select in every layer, from ``shared_selections``."""
    both = shared[shared["shared"]].groupby("layer").size()
    return both.reindex(list(layers), fill_value=0)


def _word_reads(words: Words, weights: np.ndarray) -> np.ndarray | None:
    if len(weights) == 1 or not words.sentence:
        return None
    return np.abs(weights[: len(words.sentence)])
