"""The headline of every entry: the tokens that it fires on most often, with their shares.

An entry *fires* once for every token that selects it in a layer; two gate heads on one token count once. Its headline
in a layer names the ``SHOWN`` most frequent of those tokens; layers are told apart, since each has a gate of its own.
A token gets in brackets how much of its share comes after one token, where that token stands before it more than half
of the time and twice as often as elsewhere in the text.

The tokens make a *clear pattern* if those of them above chance level (binomial test, at ``ERROR`` after Bonferroni over
all tokens) hold at least ``COVERAGE`` of the firings, and ``TIMES`` what they hold of all text.
Where they do not and the tokens before do, the headline names those; where neither does, it says so.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, no_type_check

import numpy as np
import pyarrow as pa
from numba import njit
from scipy.stats import binom

from memscope.base.parquet import fixed_lists
from memscope.base.words import visible
from memscope.recording.row_columns import distinct_pairs, tally

SHOWN = 3
"""Tokens that a headline names."""
COVERAGE = 0.25
"""Share of an entry's firings that its pattern holds at least."""
TIMES = 2.0
"""How many times more that is than the same tokens' share of all text, at least; likewise for the token before."""
PAIRED = 0.5
"""Share of a token's firings that follow one token, at least, where the headline names that one."""
ERROR = 0.01
"""Probability that an entry which fires at random has any token that counts as more frequent than chance level."""
FEW = 20
"""Fewer firings than these are said in the headline, since shares of a few mean little."""
READINGS = ("token", "before", "none")
"""The basis of a headline: the token, the one before it, or nothing if there is no clear pattern."""
NONE, START = -1, -2
"""In place of a token: none at all, and the start of a window, before which the model saw nothing."""


@dataclass(frozen=True)
class RowPairs:
    """Every recorded token and the one before it."""

    token: np.ndarray
    """Input token, int32 ``[row]``."""
    before: np.ndarray
    """The one before it in the window, int32 ``[row]``; the size of the vocabulary at a window's start."""
    texts: list[str]
    """Texts of all tokens."""

    @property
    def vocab(self) -> int:
        """Size of the vocabulary."""
        return len(self.texts)

    @cached_property
    def token_share(self) -> np.ndarray:
        """Share of every token among rows, ``[vocab + 1]``."""
        return tally(self.token, self.vocab + 1) / max(len(self.token), 1)

    @cached_property
    def before_share(self) -> np.ndarray:
        """The same of tokens before, the start of a window last."""
        return tally(self.before, self.vocab + 1) / max(len(self.before), 1)

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Every pair in the text as ``token * (vocab + 1) + before``, rising, and how often it occurs."""
        return distinct_pairs(self.token, self.before, self.vocab + 1)

    @cached_property
    def named(self) -> list[str]:
        """All tokens in quotes."""
        return [f"“{visible(text)}”" for text in self.texts]


class Firings(NamedTuple):
    """The labels that entries fire on most often, ``[entry]`` and ``[entry, SHOWN]``; -1 fills up."""

    total: np.ndarray
    """Firings."""
    token: np.ndarray
    token_count: np.ndarray
    before: np.ndarray
    """Most frequent tokens before."""
    before_count: np.ndarray
    pair: np.ndarray
    """The most frequent token before each of ``token``."""
    pair_count: np.ndarray


def count_firings(entries: np.ndarray, entry: np.ndarray, row: np.ndarray, rows: RowPairs) -> Firings:
    """Count what entries fire on in one layer.

    Args:
        entries: the entries, rising, within 65,536 numbers.
        entry: of every selection of theirs; as ``SelectionReader.read`` gives them, so that twins are neighbours.
        row: of every selection.
        rows: every recorded token and the one before.
    """
    once = np.ones(len(row), bool)
    once[1:] = (row[1:] != row[:-1]) | (entry[1:] != entry[:-1])
    own = (entry[once] - entries[0]).astype(np.uint16)
    order = np.argsort(own, kind="stable")  # a radix sort, of 16 bits
    row = row[once][order]
    starts = np.append(np.searchsorted(own[order], (entries - entries[0]).astype(np.uint16)), len(row))

    def labels() -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(entries), SHOWN), NONE, np.int32), np.zeros((len(entries), SHOWN), np.int64)

    counted = Firings(np.diff(starts), *labels(), *labels(), *labels())
    _most_frequent(starts, row, rows.token, rows.vocab, counted.token, counted.token_count)
    _most_frequent(starts, row, rows.before, rows.vocab + 1, counted.before, counted.before_count)
    _most_frequent_before(
        starts, row, rows.token, rows.before, rows.vocab + 1, counted.token, counted.pair, counted.pair_count
    )
    return counted


def headlines(firings: Firings, rows: RowPairs) -> dict[str, Any]:
    """Columns of ``firing.parquet`` that say what entries fire on; docs/reference/metrics.md describes them."""
    (coverage, clear), (coverage_before, clear_before) = (
        _pattern(firings.total, labels, counts, share)
        for labels, counts, share in (
            (firings.token, firings.token_count, rows.token_share),
            (firings.before, firings.before_count, rows.before_share),
        )
    )
    reading = np.where(clear, 0, np.where(clear_before, 1, 2)).astype(np.int8)
    by_before = reading == 1
    label = np.where(by_before[:, None], firings.before, firings.token)
    count = np.where(by_before[:, None], firings.before_count, firings.token_count)
    says_more = _says_more(firings, rows) & ~by_before[:, None]
    pair, pair_count = np.where(says_more, firings.pair, NONE), np.where(says_more, firings.pair_count, 0)
    total = np.maximum(firings.total, 1)[:, None]
    title = _titles(firings.total, reading, label, count / total, pair, pair_count / total, rows.named)
    return {
        "firings": firings.total,
        "fires_on": pa.array(title, pa.string()),
        "pattern_by": pa.DictionaryArray.from_arrays(reading, list(READINGS)),
        "pattern_share": np.where(by_before, coverage_before, coverage).astype(np.float32),
        "top_token": fixed_lists(_starts_named(label, rows.vocab), pa.int32()),
        "top_share": fixed_lists(count / total, pa.float32()),
        "top_pair": fixed_lists(_starts_named(pair, rows.vocab), pa.int32()),
        "top_pair_share": fixed_lists(pair_count / total, pa.float32()),
    }


class Titles:
    """The headline of every entry: that of the layer in which it fires most, which it names where there are several."""

    def __init__(self, n_entries: int):
        self._most = np.zeros(n_entries, np.int64)
        self._total = np.zeros(n_entries, np.int64)
        self._layer = np.zeros(n_entries, np.int64)
        self._text = np.full(n_entries, None, object)

    def add(self, layer: int, entry: np.ndarray, firings: np.ndarray, fires_on: pa.Array) -> None:
        """Take in the headlines of a layer; of layers with equally many firings the first stays."""
        self._total[entry] += firings
        more = firings > self._most[entry]
        chosen = entry[more]
        self._most[chosen], self._layer[chosen] = firings[more], layer
        self._text[chosen] = fires_on.filter(pa.array(more)).to_pylist()

    def table(self) -> dict[str, Any]:
        """``entry title firings`` of all entries in use."""
        used = np.flatnonzero(self._total)
        columns = (self._layer[used], self._most[used], self._total[used], self._text[used])
        title = [
            text if most == total else f"{text} (layer {layer}, {most / total:.0%} of its firings)"
            for layer, most, total, text in zip(*(column.tolist() for column in columns), strict=True)
        ]
        return {
            "entry": used.astype(np.uint32),
            "title": pa.array(title, pa.string()),
            "firings": self._total[used],
        }


def _pattern(
    total: np.ndarray, labels: np.ndarray, counts: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Share of firings on those of the shown labels that exceed chance level; whether the pattern is clear."""
    elsewhere = np.where(labels >= 0, share[labels], 1.0)
    chance = binom.sf(counts - 1, total[:, None], elsewhere) * max(np.count_nonzero(share), 1)
    counts = np.where(chance <= ERROR, counts, 0)
    coverage = counts.sum(1) / np.maximum(total, 1)
    expected = np.where(counts > 0, elsewhere, 0).sum(1)
    return coverage, (coverage >= COVERAGE) & (coverage >= TIMES * expected)


def _says_more(firings: Firings, rows: RowPairs) -> np.ndarray:
    """Whether the token that is most often before a shown one says more than the text does, ``[entry, SHOWN]``."""
    wide = rows.vocab + 1
    pairs, times = rows.pairs
    wanted = firings.token.astype(np.int64) * wide + firings.pair
    place = np.searchsorted(pairs, wanted).clip(max=max(len(pairs) - 1, 0))
    seen = np.where(firings.token >= 0, times[place] if len(pairs) else 0, 0)
    elsewhere = seen / np.maximum(rows.token_share[firings.token] * len(rows.token), 1)
    here = firings.pair_count / np.maximum(firings.token_count, 1)
    chance = binom.sf(firings.pair_count - 1, firings.token_count, elsewhere) * wide
    found: np.ndarray = (firings.token >= 0) & (here >= PAIRED) & (here >= TIMES * elsewhere) & (chance <= ERROR)
    return found


def _starts_named(labels: np.ndarray, vocab: int) -> np.ndarray:
    return np.where(labels == vocab, START, labels)


def _titles(
    total: np.ndarray,
    reading: np.ndarray,
    label: np.ndarray,
    share: np.ndarray,
    pair: np.ndarray,
    pair_share: np.ndarray,
    named: list[str],
) -> list[str]:
    """Headlines such as ``“␣York” 40% (38% after “␣New”) · “,” 12%``; ``named`` are all tokens in quotes."""
    after = [*(f"after {name}" for name in named), "at the start of a window"]
    titles = []
    columns = (total, reading, label, share, pair, pair_share)
    for n, by, labels, shares, pairs, pair_shares in zip(*(column.tolist() for column in columns), strict=True):
        names = after if by == 1 else named
        parts = [
            f"{names[one]} {part:.0%}" + (f" ({both:.0%} {after[before]})" if before >= 0 else "")
            for one, part, before, both in zip(labels, shares, pairs, pair_shares, strict=True)
            if one >= 0
        ]
        text = " · ".join(parts)
        few = f" of {n} {'firing' if n == 1 else 'firings'}" if n < FEW else ""
        titles.append(f"no clear pattern ({text}{few})" if READINGS[by] == "none" else f"{text}{few}")
    return titles


@njit(nogil=True, cache=True)
@no_type_check
def _most_frequent(starts: Any, rows: Any, of_row: Any, n_labels: int, best: Any, count: Any) -> None:
    """Per entry its most frequent labels, of equally frequent ones the lower."""
    counts = np.zeros(n_labels, np.int64)
    for e in range(len(starts) - 1):
        for s in range(starts[e], starts[e + 1]):
            counts[of_row[rows[s]]] += 1
        for s in range(starts[e], starts[e + 1]):
            label = of_row[rows[s]]
            n = counts[label]
            counts[label] = 0  # each label is ranked once
            place = best.shape[1]
            while place > 0 and (
                n > count[e, place - 1] or (n == count[e, place - 1] and n > 0 and label < best[e, place - 1])
            ):
                place -= 1
            if n > 0 and place < best.shape[1]:
                for j in range(best.shape[1] - 1, place, -1):
                    best[e, j], count[e, j] = best[e, j - 1], count[e, j - 1]
                best[e, place], count[e, place] = label, n


@njit(nogil=True, cache=True)
@no_type_check
def _most_frequent_before(
    starts: Any, rows: Any, token: Any, before: Any, n_labels: int, shown: Any, best: Any, count: Any
) -> None:
    """Per entry and shown token the most frequent token before it, of equally frequent ones the lower."""
    counts = np.zeros(n_labels, np.int64)
    for e in range(len(starts) - 1):
        for j in range(shown.shape[1]):
            if shown[e, j] < 0:
                continue
            for s in range(starts[e], starts[e + 1]):
                if token[rows[s]] == shown[e, j]:
                    counts[before[rows[s]]] += 1
            for s in range(starts[e], starts[e + 1]):
                label = before[rows[s]]
                n = counts[label]
                counts[label] = 0
                if n > count[e, j] or (n == count[e, j] and n > 0 and label < best[e, j]):
                    best[e, j], count[e, j] = label, n
