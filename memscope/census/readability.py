"""How readable an entry is: can one tell from its typical tokens where it fires in other documents?

    readability(recording, info, strata)      # one table of all layers; readability.parquet

A rule is made for every entry from half of the documents: its most typical input tokens, and pairs of a token and the
one before that say more. Then it is asked about the other half: is the entry selected at this token? The answers are
scored by AUROC and by balanced accuracy, both 0.5 for a rule that knows nothing, and the halves change places. This is
delphi's detection score (Paulo et al. 2024, arXiv 2410.13928) with a rule in place of a language model's explanation:
a lower bound of what a reader could explain. ``control`` asks the same rule where another entry of the layer fires.

Scores are exact: a rule sees input token and pair alone, so the tokens of the other half fall into few classes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from memscope.base.parquet import matrix, write_table
from memscope.base.work import ALONE, Processes
from memscope.census.anomalies.looks import RowText, row_text
from memscope.census.strata import Strata
from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import read_columns

RULES = 10
"""Typical tokens of a rule, and pairs, at most."""
LEAST = 10
"""Tokens of each half that must select an entry for it to be scored."""
MOST = 1 << 23
"""Selections of a layer looked at; of more, those of evenly spread rows."""
COLUMNS = {
    **dict.fromkeys(("layer", "entry", "tokens"), pa.int64()),
    **dict.fromkeys(("readability", "balanced_accuracy", "control", "purity"), pa.float64()),
}


class _Selections(NamedTuple):
    """Selections of a layer in one half, each entry of a token once, and that half's rows."""

    entry: np.ndarray
    token: np.ndarray
    pair: np.ndarray
    of_token: np.ndarray
    """Rows with each input token."""
    of_pair: np.ndarray
    """Rows with each pair."""
    token_of_pair: np.ndarray
    rows: int


class _Rules(NamedTuple):
    """Elements of all entries' rules, sorted by entry and label; pairs are numbered behind the tokens."""

    key: np.ndarray
    """entry * (number of labels) + label, rising."""
    entry: np.ndarray
    label: np.ndarray
    value: np.ndarray
    """Share of the rows with this label that select the entry."""


def write_readability(recording: Path, info: RecordingInfo, strata: Strata, group: Processes = ALONE) -> None:
    """Write ``readability.parquet``: ``layer entry tokens readability balanced_accuracy control purity``.

    ``readability`` is the AUROC of an entry's rule, ``tokens`` the tokens of both halves that select the entry,
    ``purity`` the share of these on the token that is most frequent in the other half. Entries that fewer tokens of a
    half select than ``LEAST`` have no row.
    """
    text = row_text(recording, info)

    def score(layer: int) -> pd.DataFrame:
        return layer_readability(recording, info, layer, text, strata)

    def write(of_layers: Iterator[pd.DataFrame]) -> None:
        table = pd.concat(of_layers, ignore_index=True)
        arrays = {name: pa.array(table[name], kind) for name, kind in COLUMNS.items()}
        write_table(recording / "readability.parquet", pa.table(arrays))

    group.share(score, info.layers, write)


def layer_readability(recording: Path, info: RecordingInfo, layer: int, text: RowText, strata: Strata) -> pd.DataFrame:
    """The rows of one layer, sorted by entry."""
    halves = _halves(recording, info, layer, text, strata)
    n = info.knowledge_num
    fired = [np.bincount(half.entry, minlength=n) for half in halves]
    scored = np.flatnonzero((fired[0] >= LEAST) & (fired[1] >= LEAST))
    asked = [_ask(_learn(halves[a], n), halves[b], scored, n) for a, b in ((0, 1), (1, 0))]
    mean = {name: (asked[0][name] + asked[1][name]) / 2 for name in asked[0]}
    return pd.DataFrame({"layer": layer, "entry": scored, "tokens": (fired[0] + fired[1])[scored], **mean})


def _halves(
    recording: Path, info: RecordingInfo, layer: int, text: RowText, strata: Strata
) -> tuple[_Selections, _Selections]:
    name, site = f"l{layer}_indices", info.site(layer)
    step = max(1, -(-info.rows * site.selected // MOST))
    token_of_pair = np.zeros(int(text.bigram.max()) + 1, np.int64)
    token_of_pair[text.bigram] = text.token
    entries: list[list[np.ndarray]] = [[], []]
    rows: list[list[np.ndarray]] = [[], []]
    seen: list[list[np.ndarray]] = [[], []]
    for part, first in zip(info.parts, info.first_rows(), strict=True):
        at = np.arange(first, first + part.rows, step)
        chosen = np.sort(matrix(read_columns(recording, info, part, [name])[name])[::step].astype(np.int64), axis=1)
        again = np.zeros(chosen.shape, bool)
        again[:, 1:] = chosen[:, 1:] == chosen[:, :-1]  # two heads that select one entry count once
        half = strata.cell_of(text.doc[first : first + part.rows], first)[::step] % strata.folds % 2
        for number in (0, 1):
            own = half == number
            kept = (chosen[own] >= 0) & ~again[own]
            seen[number].append(at[own])
            rows[number].append(np.repeat(at[own], kept.sum(1)))
            entries[number].append(chosen[own][kept])
    made = []
    for number in (0, 1):
        row, all_rows = np.concatenate(rows[number]), np.concatenate(seen[number])
        made.append(
            _Selections(
                entry=np.concatenate(entries[number]),
                token=text.token[row].astype(np.int64),
                pair=text.bigram[row].astype(np.int64),
                of_token=np.bincount(text.token[all_rows], minlength=info.vocab_size),
                of_pair=np.bincount(text.bigram[all_rows], minlength=len(token_of_pair)),
                token_of_pair=token_of_pair,
                rows=len(all_rows),
            )
        )
    return made[0], made[1]


def _learn(half: _Selections, n: int) -> _Rules:
    """Rules of all entries from one half."""
    fired, vocab = np.maximum(np.bincount(half.entry, minlength=n), 1), len(half.of_token)
    labels = vocab + len(half.of_pair)
    tokens = _typical(half.entry, half.token, half.of_token, fired, half.rows)
    pairs = _typical(half.entry, half.pair, half.of_pair, fired, half.rows)
    entry, pair, value = pairs
    keys, count = np.unique(half.entry * vocab + half.token, return_counts=True)
    token = half.token_of_pair[pair]
    of_token = count[np.searchsorted(keys, entry * vocab + token)]
    says_more = value > of_token / half.of_token[token]
    entry, label, value = (
        np.concatenate([a, b[says_more]]) for a, b in zip(tokens, (entry, pair + vocab, value), strict=True)
    )
    key = entry * labels + label
    order = np.argsort(key, kind="stable")
    return _Rules(key[order], entry[order], label[order], value[order])


def _typical(
    entry: np.ndarray, label: np.ndarray, of_label: np.ndarray, fired: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per entry the labels that add most to sum p ln(p / share), seen twice at least: entry, label, share of rows."""
    wide = len(of_label)
    keys, count = np.unique(entry * wide + label, return_counts=True)
    keys, count = keys[count > 1], count[count > 1]
    entry, label = keys // wide, keys % wide
    p = count / fired[entry]
    score = p * np.log(p * rows / of_label[label])
    order = np.lexsort((-score, entry))
    rank = np.arange(len(order)) - np.searchsorted(entry[order], entry[order])
    best = order[(rank < RULES) & (score[order] > 0)]
    return entry[best], label[best], count[best] / of_label[label[best]]


def _ask(rules: _Rules, half: _Selections, scored: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Scores of rules on the other half, ``[scored]`` each."""
    other = np.arange(n)
    order = np.random.default_rng(0).permutation(scored)
    other[order] = np.roll(order, -1)
    auroc, accuracy, purity = _score(rules, half, half.entry, n)
    control, _, _ = _score(rules, half, other[half.entry], n)
    named = {"readability": auroc, "balanced_accuracy": accuracy, "control": control, "purity": purity}
    return {name: values[scored] for name, values in named.items()}


def _score(rules: _Rules, half: _Selections, asked: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUROC and balanced accuracy of every entry's rule, and the share of selections on the first rule's token.

    Args:
        rules: of all entries.
        half: where they are asked.
        asked: the entry whose rule is asked about each selection.
        n: entries.
    """
    vocab = len(half.of_token)
    labels = vocab + len(half.of_pair)
    by_pair, by_token = (
        _find(rules.key, asked * labels + vocab + half.pair),
        _find(rules.key, asked * labels + half.token),
    )
    element = np.where(by_pair >= 0, by_pair, by_token)
    hits = np.bincount(element[element >= 0], minlength=len(rules.key)).astype(np.float64)
    is_pair = rules.label >= vocab
    of_label = np.concatenate([half.of_token, half.of_pair]).astype(np.float64)
    rows = of_label[rules.label]
    token = half.token_of_pair[rules.label[is_pair] - vocab]
    parent = _find(rules.key, rules.entry[is_pair] * labels + token)  # rows that a pair takes from its token's element
    np.subtract.at(rows, parent[parent >= 0], rows[is_pair][parent >= 0])
    misses = np.maximum(rows - hits, 0)
    fired = np.bincount(asked, minlength=n).astype(np.float64)
    hit, miss = (np.bincount(rules.entry, values, n) for values in (hits, misses))
    others = half.rows - fired
    order = np.lexsort((-rules.value, rules.entry))
    new = np.ones(len(order), bool)  # elements of equal value tie
    new[1:] = (np.diff(rules.entry[order]) != 0) | (np.diff(rules.value[order]) != 0)
    tie, entry = np.cumsum(new) - 1, rules.entry[order][new]
    right, wrong = (np.bincount(tie, values[order], len(entry)) for values in (hits, misses))
    before = np.cumsum(wrong) - wrong
    above = before - before[np.searchsorted(entry, entry)]  # wrong rows that the rule ranks higher
    won = right * (others[entry] - above - wrong / 2)
    without = (fired - hit) * (others - miss) / 2  # rows without any element of the rule tie
    pairs = np.maximum(fired * others, 1)
    auroc = (np.bincount(entry, won, n) + without) / pairs
    accuracy = (hit / np.maximum(fired, 1) + 1 - miss / np.maximum(others, 1)) / 2
    first = np.full(n, -1)
    tokens = order[rules.label[order] < vocab]
    first[rules.entry[tokens[::-1]]] = rules.label[tokens[::-1]]
    purity = np.bincount(half.entry, half.token == first[half.entry], n) / np.maximum(fired, 1)
    return auroc, accuracy, purity


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of each wanted number in rising ``keys``, -1 where it is not there."""
    if not len(keys):
        return np.full(len(wanted), -1)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
