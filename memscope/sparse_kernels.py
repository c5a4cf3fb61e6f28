"""The loops of a sparse read, compiled by numba: nothing of the size ``[token, slot, width]`` is ever built.

All work on float32 rows in C order, a range of tokens (or of sorted selections) at a time, and release the GIL, so that
``sparse_read.py`` can run ranges in threads. Reductions are reassociated (``fastmath``) to use vector registers.
"""

from typing import Any, no_type_check

import numpy as np
from numba import njit

BLOCKS = 16
"""Blocks of scores whose maxima are kept while the largest are taken out."""
LOWEST = np.iinfo(np.int64).min


@njit(nogil=True, cache=True, fastmath=True)
@no_type_check
def gather_dot(vectors: Any, table: Any, column: int, rows: Any, out: Any, first: int, last: int) -> None:
    """``out[t, a, s] = vectors[t, a] . table[rows[t, s], column:]`` for tokens ``first`` to ``last``."""
    heads, width, slots = vectors.shape[1], vectors.shape[2], rows.shape[1]
    end, fours = column + width, slots // 4 * 4
    for t in range(first, last):
        v = vectors[t]
        for s in range(0, fours, 4):  # four at a time: their loads from far memory overlap
            r0, r1 = table[rows[t, s], column:end], table[rows[t, s + 1], column:end]
            r2, r3 = table[rows[t, s + 2], column:end], table[rows[t, s + 3], column:end]
            for a in range(heads):
                t0 = t1 = t2 = t3 = np.float32(0)
                for d in range(width):
                    t0 += v[a, d] * r0[d]
                    t1 += v[a, d] * r1[d]
                    t2 += v[a, d] * r2[d]
                    t3 += v[a, d] * r3[d]
                out[t, a, s] = t0
                out[t, a, s + 1] = t1
                out[t, a, s + 2] = t2
                out[t, a, s + 3] = t3
        for s in range(fours, slots):
            row = table[rows[t, s], column:end]
            for a in range(heads):
                total = np.float32(0)
                for d in range(width):
                    total += v[a, d] * row[d]
                out[t, a, s] = total


@njit(nogil=True, cache=True, fastmath=True)
@no_type_check
def gather_sum(weights: Any, table: Any, column: int, rows: Any, out: Any, first: int, last: int) -> None:
    """``out[t, a] = sum over s of weights[t, a, s] * table[rows[t, s], column:]`` for tokens ``first`` to ``last``."""
    heads, width, slots = out.shape[1], out.shape[2], rows.shape[1]
    end, fours = column + width, slots // 4 * 4
    for t in range(first, last):
        out[t] = 0
        for s in range(0, fours, 4):  # four at a time: the sum is loaded and stored once for them
            r0, r1 = table[rows[t, s], column:end], table[rows[t, s + 1], column:end]
            r2, r3 = table[rows[t, s + 2], column:end], table[rows[t, s + 3], column:end]
            for a in range(heads):
                total = out[t, a]
                w0, w1, w2, w3 = weights[t, a, s], weights[t, a, s + 1], weights[t, a, s + 2], weights[t, a, s + 3]
                for d in range(width):
                    total[d] += w0 * r0[d] + w1 * r1[d] + w2 * r2[d] + w3 * r3[d]
        for s in range(fours, slots):
            row = table[rows[t, s], column:end]
            for a in range(heads):
                total = out[t, a]
                weight = weights[t, a, s]
                for d in range(width):
                    total[d] += weight * row[d]


@njit(nogil=True, cache=True, fastmath=True)
@no_type_check
def scatter_sum(
    weights: Any,
    vectors: Any,
    column: int,
    weights_2: Any,
    vectors_2: Any,
    column_2: int,
    order: Any,
    starts: Any,
    rows: Any,
    out: Any,
    first: int,
    last: int,
) -> None:
    """``out[r, column:] += sum over selections (t, s) of row r and heads a of weights[t, a, s] * vectors[t, a]``.

    Selections come sorted by row, so every row is written by one thread, in one order: no atomics, same sum each time.
    Two terms at once, because fetching a row costs more than adding to it.

    Args:
        weights: ``[token, head, slot]``.
        vectors: ``[token, head, width]``.
        column: first column of ``out`` to add to.
        weights_2: of the second term; no heads = none.
        vectors_2: likewise.
        column_2: likewise.
        order: numbers ``t * S + s`` of the selections, sorted by row.
        starts: where the selections of each of ``rows`` start in ``order``, one more than rows.
        rows: the distinct rows selected.
        out: ``[row of the table, table width]``, added to.
        first: first of ``rows`` to do.
        last: one after the last.
    """
    slots = weights.shape[2]
    end, end_2 = column + vectors.shape[2], column_2 + vectors_2.shape[2]
    for i in range(first, last):
        total, total_2 = out[rows[i], column:end], out[rows[i], column_2:end_2]
        for place in range(starts[i], starts[i + 1]):
            t, s = order[place] // slots, order[place] % slots
            _add_heads(weights[t], vectors[t], s, total)
            _add_heads(weights_2[t], vectors_2[t], s, total_2)


@njit(nogil=True, cache=True, fastmath=True, inline="always")
@no_type_check
def _add_heads(weights: Any, vectors: Any, s: int, total: Any) -> None:
    heads, width = vectors.shape
    fours = heads // 4 * 4
    for a in range(0, fours, 4):
        w0, w1, w2, w3 = weights[a, s], weights[a + 1, s], weights[a + 2, s], weights[a + 3, s]
        for d in range(width):
            total[d] += w0 * vectors[a, d] + w1 * vectors[a + 1, d] + w2 * vectors[a + 2, d] + w3 * vectors[a + 3, d]
    for a in range(fours, heads):
        weight = weights[a, s]
        for d in range(width):
            total[d] += weight * vectors[a, d]


@njit(nogil=True, cache=True)
@no_type_check
def sort_by_row(rows: Any, places: Any) -> Any:
    """Counting sort of selections by row.

    Args:
        rows: row of every selection, int64 ``[selection]``.
        places: zeros, int32 ``[row of the table]``; zeros again on return.

    Returns:
        Distinct rows in order of first selection, where each one's selections start (one more), and selections sorted.
    """
    distinct = np.empty(len(rows), np.int64)
    used = 0
    for row in rows:
        if places[row] == 0:
            distinct[used] = row
            used += 1
        places[row] += 1
    starts = np.empty(used + 1, np.int64)
    starts[0] = 0
    for i in range(used):
        starts[i + 1] = starts[i] + places[distinct[i]]
        places[distinct[i]] = starts[i]
    order = np.empty(len(rows), np.int32)
    for i in range(len(rows)):
        order[places[rows[i]]] = i
        places[rows[i]] += 1
    for i in range(used):
        places[distinct[i]] = 0
    return distinct[:used], starts, order


@njit(nogil=True, cache=True)
@no_type_check
def product_top(halves: Any, bits: Any, selected: int, indices: Any, margin: Any, first: int, last: int) -> None:
    """The best sums of one score of each half, exactly, for tokens ``first`` to ``last``.

    Only the k + 1 best of each half can be part of the k + 1 best sums. Sums with the i-th best of the first half fall
    with the rank of the second, so the best sums are merged from these sorted rows. Ties go to the better first half,
    and within a half to the lower number.

    Args:
        halves: float32 ``[token, head, 2, side]``.
        bits: the same numbers as int32.
        selected: how many sums to choose (k), at most side squared.
        indices: int64 ``[token, head, k]``, filled with ``row * side + column``, best first.
        margin: float32 ``[token, head]``, filled with the k-th best sum above the next; NaN if there is none.
        first: first token.
        last: one after the last.
    """
    heads, side = halves.shape[1], halves.shape[3]
    n = min(selected + 1, side)
    number = np.empty((2, n), np.int64)
    keys = np.empty(BLOCKS * -(-side // BLOCKS), np.int64)
    maxima = np.empty(BLOCKS, np.int64)
    following = np.empty(n + 1, np.int64)  # per row of sums: the rank in the second half of its best sum not yet taken
    sums = np.empty(n + 1, np.float32)
    for t in range(first, last):
        for h in range(heads):
            for half in range(2):
                _top(bits[t, h, half], keys, maxima, number[half])
            rows, columns = number
            row_scores, column_scores = halves[t, h]
            following[:] = 0
            started = 1
            sums[0] = row_scores[rows[0]] + column_scores[columns[0]]
            taken = np.float32(0)
            margin[t, h] = np.nan
            for place in range(min(selected + 1, n * n)):
                best = 0
                for i in range(1, started):
                    if sums[i] > sums[best]:
                        best = i
                if place == selected:
                    margin[t, h] = taken - sums[best]
                    break
                taken = sums[best]
                indices[t, h, place] = rows[best] * side + columns[following[best]]
                following[best] += 1
                rank = following[best]
                sums[best] = row_scores[rows[best]] + column_scores[columns[rank]] if rank < n else -np.inf
                if rank == 1 and best + 1 < n:
                    sums[best + 1] = row_scores[rows[best + 1]] + column_scores[columns[0]]
                    started = best + 2


@njit(nogil=True, cache=True, inline="always")
@no_type_check
def _top(bits: Any, keys: Any, maxima: Any, number: Any) -> None:
    """Numbers of the largest of some floats, given as their bits, largest first.

    A key holds a float as an integer of the same order and, below it, its number, so that a maximum of keys names the
    place of the maximum. Maxima of blocks are kept, so that to take one out costs a block, not all.
    """
    side, size = len(bits), len(keys) // BLOCKS
    for i in range(side):
        order = bits[i] ^ ((bits[i] >> 31) & 0x7FFFFFFF)
        keys[i] = (np.int64(order) << 32) | (side - i)
    keys[side:] = LOWEST
    for b in range(BLOCKS):
        largest = LOWEST
        for i in range(size):
            largest = max(largest, keys[b * size + i])
        maxima[b] = largest
    for place in range(len(number)):
        largest = LOWEST
        for b in range(BLOCKS):
            largest = max(largest, maxima[b])
        i = side - (largest & 0xFFFFFFFF)
        number[place] = i
        keys[i] = LOWEST
        b = i // size
        largest = LOWEST
        for j in range(size):
            largest = max(largest, keys[b * size + j])
        maxima[b] = largest


@njit(nogil=True, cache=True, fastmath=True)
@no_type_check
def adam_rows(
    rows: Any,
    gradient: Any,
    weight: Any,
    mean: Any,
    square: Any,
    beta1: float,
    beta2: float,
    rate: float,
    correction: float,
    epsilon: float,
    first: int,
    last: int,
) -> None:
    """One Adam step (1412.6980) on some rows of ``weight``, in one pass.

    Args:
        rows: numbers of the rows with a gradient, each once.
        gradient: theirs, ``[row, width]``.
        weight: all rows, ``[N, width]``; as are
        mean: the first moments and
        square: the second.
        beta1: decay of the first.
        beta2: decay of the second.
        rate: learning rate / (1 - beta1 ** step).
        correction: 1 / (1 - beta2 ** step).
        epsilon: added to the root of the second moment.
        first: first of ``rows`` to do.
        last: one after the last.
    """
    b1, b2, lr = np.float32(beta1), np.float32(beta2), np.float32(rate)
    scale, eps, one = np.float32(correction), np.float32(epsilon), np.float32(1)
    for i in range(first, last):
        g, w, m, v = gradient[i], weight[rows[i]], mean[rows[i]], square[rows[i]]
        for d in range(len(g)):
            m[d] = b1 * m[d] + (one - b1) * g[d]
            v[d] = b2 * v[d] + (one - b2) * g[d] * g[d]
            w[d] -= lr * m[d] / (np.sqrt(v[d] * scale) + eps)
