"""Loops over the selections of single entries, compiled by numba; ``census/firing/firing.py`` writes what they find."""

from enum import IntEnum
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit


class Order(IntEnum):
    """Columns of ``EntryFiring.information``: the order of the tokens that it was counted with."""

    RECORDED = 0
    SHUFFLED = 1
    """At random, which shows what chance alone gives."""


class EntryFiring(NamedTuple):
    """The documents, contexts, tokens and words that entries fire on, one row per entry; -1 fills up short rows."""

    count: Any
    """Selections, int64 ``[entry]``."""
    docs: Any
    """Different documents, int32 ``[entry]``."""
    position: Any
    """Mean position in the window, float64 ``[entry]``."""
    deciles: Any
    """Gate scores at 0, 10 ... 100% of the entry's selections, float32 ``[entry, 11]``."""
    context_row: Any
    """Rows of the top and then the quantile contexts, int64 ``[entry, context]``."""
    context_gate: Any
    """Their gate scores, float32 ``[entry, context]``."""
    token: Any
    """Typical tokens, int32 ``[kind, entry, top]``."""
    lift: Any
    """(share of the token among the entry's selections) / (its share among all rows), float32 like ``token``."""
    token_count: Any
    """Selections on that token, int64 like ``token``."""
    word: Any
    """Typical words, int32 ``[entry, top]``."""
    word_count: Any
    """Selections in that word, int64 ``[entry, top]``."""
    information: Any
    """Sum over selections of ln(p(entry, token) / p(entry) p(token)), float64 ``[kind, Order]``."""
    known: Any
    """Selections of tokens that are known, int64 ``[kind, Order]``."""


def sort_keys(entry: np.ndarray, gate: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Selections as uint64 that sort by entry (below 65,536), falling gate score (float16) and row (32 bits)."""
    bits = np.ascontiguousarray(gate).view(np.uint16)
    rising = np.where(bits >> 15 == 1, ~bits, bits | np.uint16(0x8000))  # order of floats as order of integers
    keys = (entry.astype(np.uint64) << np.uint64(48)) | ((~rising).astype(np.uint64) << np.uint64(32))
    return np.asarray(keys | row.astype(np.uint64))


def _gates(keys: np.ndarray) -> np.ndarray:
    """Gate scores of ``sort_keys``, float32."""
    rising = ~(keys >> np.uint64(32)).astype(np.uint16)
    bits = np.where(rising >> 15 == 1, rising & np.uint16(0x7FFF), ~rising)
    return np.asarray(bits.astype(np.uint16).view(np.float16).astype(np.float32))


def describe_entries(
    keys: np.ndarray,
    entries: np.ndarray,
    tokens: tuple[np.ndarray, ...],
    shuffled: tuple[np.ndarray, ...],
    share: np.ndarray,
    doc: np.ndarray,
    position: np.ndarray,
    word_of_row: np.ndarray,
    word_share: np.ndarray,
    keep: tuple[int, int, int, int],
) -> EntryFiring:
    """Describe on what entries fire.

    Args:
        keys: sorted ``sort_keys`` of all selections of the entries.
        entries: the entries, as in the keys, rising, int64.
        tokens: input token, the one before, predicted and next one of every row, int32 ``[row]`` each, -1 for none.
        shuffled: the first kinds in random order, int32 ``[row]`` each.
        share: share of every token among rows, float64 ``[kind, vocab]``.
        doc: document of every row, int32.
        position: position in the window of every row, int32.
        word_of_row: word of every row, int32, -1 for none.
        word_share: share of every word among rows that are in one, float64.
        keep: how many top contexts, quantile contexts, tokens and words to keep.
    """
    starts = np.append(np.searchsorted(keys, entries.astype(np.uint64) << np.uint64(48)), len(keys))
    rows = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    n, (top, quantiles, kept_tokens, kept_words) = len(entries), keep
    out = EntryFiring(
        count=np.diff(starts),
        docs=np.zeros(n, np.int32),
        position=np.zeros(n),
        deciles=np.zeros((n, 11), np.float32),
        context_row=np.full((n, top + quantiles), -1, np.int64),
        context_gate=np.zeros((n, top + quantiles), np.float32),
        token=np.full((len(tokens), n, kept_tokens), -1, np.int32),
        lift=np.zeros((len(tokens), n, kept_tokens), np.float32),
        token_count=np.zeros((len(tokens), n, kept_tokens), np.int64),
        word=np.full((n, kept_words), -1, np.int32),
        word_count=np.zeros((n, kept_words), np.int64),
        information=np.zeros((len(shuffled), len(Order))),
        known=np.zeros((len(shuffled), len(Order)), np.int64),
    )
    gates = _gates(keys)
    _contexts(starts, rows, gates, doc, position, top, quantiles, out)
    for kind in range(len(tokens)):
        _typical(starts, rows, tokens[kind], share[kind], out.token[kind], out.lift[kind], out.token_count[kind])
    no_lift = np.zeros((0, 0), np.float32)
    _typical(starts, rows, word_of_row, word_share, out.word, no_lift, out.word_count)
    for kind in range(len(shuffled)):
        for order, of_row in ((Order.RECORDED, tokens[kind]), (Order.SHUFFLED, shuffled[kind])):
            out.information[kind, order], out.known[kind, order] = _information(starts, rows, of_row, share[kind])
    return out


@njit(nogil=True, cache=True)
@no_type_check
def _contexts(starts: Any, rows: Any, gates: Any, doc: Any, position: Any, top: int, quantiles: int, out: Any) -> None:
    seen = np.full(doc.max() + 1, -1, np.int64)
    for e in range(len(starts) - 1):
        begin, n = starts[e], starts[e + 1] - starts[e]
        for decile in range(11):
            out.deciles[e, decile] = gates[begin + round((10 - decile) / 10 * (n - 1))]
        for rank in range(min(top, n)):
            out.context_row[e, rank] = rows[begin + rank]
            out.context_gate[e, rank] = gates[begin + rank]
        for fifth in range(quantiles):
            place = int((2 * fifth + 1) * n / (2 * quantiles))
            if n > top and place >= top:
                out.context_row[e, top + fifth] = rows[begin + place]
                out.context_gate[e, top + fifth] = gates[begin + place]
        total = 0.0
        for s in range(begin, begin + n):
            total += position[rows[s]]
            d = doc[rows[s]]
            if seen[d] != e:
                seen[d] = e
                out.docs[e] += 1
        out.position[e] = total / n


@njit(nogil=True, cache=True)
@no_type_check
def _count_labels(rows: Any, of_row: Any, counts: Any, touched: Any) -> tuple[int, int]:
    """Add the labels of rows to ``counts``; returns how many rows have one, and how many labels are in ``touched``."""
    n, n_touched = 0, 0
    for row in rows:
        label = of_row[row]
        if label >= 0:
            n += 1
            if counts[label] == 0:
                touched[n_touched] = label
                n_touched += 1
            counts[label] += 1
    return n, n_touched


@njit(nogil=True, cache=True)
@no_type_check
def _typical(starts: Any, rows: Any, of_row: Any, share: Any, best: Any, lift: Any, count: Any) -> None:
    """Per entry the labels that add most to sum p ln(p / share), seen twice at least; best first."""
    counts = np.zeros(len(share), np.int64)
    touched = np.empty(len(share), np.int64)
    keep = best.shape[1]
    scores = np.empty(keep)
    for e in range(len(starts) - 1):
        n, n_touched = _count_labels(rows[starts[e] : starts[e + 1]], of_row, counts, touched)
        scores[:] = 0
        for i in range(n_touched):
            label = touched[i]
            p = counts[label] / n
            score = p * np.log(p / share[label]) if counts[label] > 1 else 0.0
            place = keep
            while place > 0 and (
                score > scores[place - 1] or (score == scores[place - 1] and score > 0 and label < best[e, place - 1])
            ):
                place -= 1
            if score > 0 and place < keep:
                for j in range(keep - 1, place, -1):
                    scores[j] = scores[j - 1]
                    best[e, j] = best[e, j - 1]
                    count[e, j] = count[e, j - 1]
                scores[place] = score
                best[e, place] = label
                count[e, place] = counts[label]
        if len(lift):
            for j in range(keep):
                if best[e, j] >= 0:
                    lift[e, j] = count[e, j] / n / share[best[e, j]]
        for i in range(n_touched):
            counts[touched[i]] = 0


@njit(nogil=True, cache=True)
@no_type_check
def _information(starts: Any, rows: Any, of_row: Any, share: Any) -> tuple[float, int]:
    counts = np.zeros(len(share), np.int64)
    touched = np.empty(len(share), np.int64)
    information = 0.0
    known = 0
    for e in range(len(starts) - 1):
        n, n_touched = _count_labels(rows[starts[e] : starts[e + 1]], of_row, counts, touched)
        known += n
        for i in range(n_touched):
            label = touched[i]
            information += counts[label] * np.log(counts[label] / n / share[label])
            counts[label] = 0
    return information, known


@njit(nogil=True, cache=True)
@no_type_check
def best_of_rows(starts: Any, columns: Any, weights: Any, keep: int) -> Any:
    """Columns of the largest weights in every row of a sparse matrix (CSR), ``[row, keep]``; -1 fills up.

    Equal weights go to the smaller column.
    """
    best = np.full((len(starts) - 1, keep), -1, np.int64)
    for row in range(len(starts) - 1):
        taken = np.zeros(keep)
        for i in range(starts[row], starts[row + 1]):
            place = keep
            while place > 0 and (
                best[row, place - 1] < 0
                or weights[i] > taken[place - 1]
                or (weights[i] == taken[place - 1] and columns[i] < best[row, place - 1])
            ):
                place -= 1
            if place < keep:
                for j in range(keep - 1, place, -1):
                    taken[j] = taken[j - 1]
                    best[row, j] = best[row, j - 1]
                taken[place] = weights[i]
                best[row, place] = columns[i]
    return best
