"""Specialisation by vocabulary, and the share of routing that a token alone foretells.

    vocabulary(recording, layer)      # one row per kind of token: input, true next, predicted

For every token id the K entries that it selects most often are learned on all folds of documents but one, and asked on
the one left out: what share of that fold's selections are among them. OLMoE (arXiv 2409.02060) counts the share of a
token's most frequent expert on the same text, which is high for rare tokens by itself; held-out text has no such
excess. Beside each share stand what the K entries of most load foretell without any token, and the same rule for tokens
that were shuffled within their fold.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from memscope.query.recording import Recording
from memscope.routing.rows import layer_rows, once, routed_site, strata_of
from memscope.stats.jackknife import Jackknife

KINDS = ("input", "next", "predicted")
MOST_ROWS = 2_000_000
"""Rows looked at; of more, evenly spread ones are taken."""
_CHUNK = 4096


class _Rows(NamedTuple):
    """Rows that have a token of one kind."""

    token: np.ndarray
    fold: np.ndarray
    entries: np.ndarray
    """``[token, K]``."""


@once
def vocabulary(recording: Recording, layer: int) -> pd.DataFrame:
    """How much of a layer's routing a token alone foretells in other documents.

    Returns ``kind rows share share_se low high load shuffled explained``. ``share`` is the share of selections among
    the K entries that the token selects most often in the other documents, with its 95% interval over documents;
    ``load`` the same for the K entries of most load, whatever the token; ``shuffled`` for shuffled tokens.
    ``explained`` is ``(share - load) / (1 - load)``: 0 where tokens tell nothing, 1 where they decide.

    Example:
        >>> vocabulary(recording, layer=0)[["kind", "share", "load", "explained"]]
    """
    site, strata = routed_site(recording, layer), strata_of(recording)
    columns: dict[str, list[_Rows]] = {kind: [] for kind in KINDS}
    step = -(-recording.info.rows // MOST_ROWS)
    for rows in layer_rows(recording, layer):
        fold = strata.cell_of(rows.doc, rows.first) % strata.folds
        following = np.where(rows.doc[1:] == rows.doc[:-1], rows.token[1:], -1)
        tokens = {"input": rows.token, "next": np.append(following, -1), "predicted": rows.predicted}
        for kind, token in tokens.items():
            known = np.flatnonzero(token >= 0)[::step]
            columns[kind].append(_Rows(token[known], fold[known], rows.entries[known]))
    jackknife = strata.jackknife()
    return pd.DataFrame(
        [
            {"kind": kind, **_foretold(_Rows(*map(np.concatenate, zip(*parts, strict=True))), site.entries, jackknife)}
            for kind, parts in columns.items()
            if sum(len(part.token) for part in parts)
        ]
    )


def _foretold(rows: _Rows, n_entries: int, spread: Jackknife) -> dict[str, Any]:
    n_folds = len(spread.kept)
    chance = np.random.default_rng(0)
    mixed = rows.token.copy()
    for fold in range(n_folds):
        here = np.flatnonzero(rows.fold == fold)
        mixed[here] = chance.permutation(mixed[here])
    hits, load, made = _hits(rows, n_entries, n_folds)
    shuffled, _, _ = _hits(rows._replace(token=mixed), n_entries, n_folds)
    value, without_token = hits.sum() / max(made.sum(), 1), load.sum() / max(made.sum(), 1)
    left = spread.without(hits) / np.maximum(spread.without(made), 1) if spread.known else np.empty(0)
    low, high = spread.interval(value, left) if spread.known else (np.nan, np.nan)
    return {
        "rows": len(rows.token),
        "share": float(value),
        "share_se": float(spread.errors(value, left)),
        "low": float(low),
        "high": float(high),
        "load": float(without_token),
        "shuffled": float(shuffled.sum() / max(made.sum(), 1)),
        "explained": float((value - without_token) / max(1 - without_token, 1e-12)),
    }


def _hits(rows: _Rows, n_entries: int, n_folds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per fold: selections that the token foretells, that load alone foretells, and all, int64 ``[fold]`` each."""
    vocab, number = np.unique(rows.token, return_inverse=True)
    k = rows.entries.shape[1]
    tables = [_table(rows, number, fold, len(vocab), n_entries) for fold in range(n_folds)]
    total = sum(tables[1:], tables[0])
    load = np.asarray(total.sum(0)).ravel()
    out = np.zeros((3, n_folds), np.int64)
    for fold, table in enumerate(tables):
        here = rows.fold == fold
        if not here.any():
            continue
        others = load - np.asarray(table.sum(0)).ravel()
        by_load = np.zeros(n_entries, bool)
        by_load[np.argsort(-others, kind="stable")[:k]] = True
        learned = total - table
        for start in range(0, len(vocab), _CHUNK):
            mine = table[start : start + _CHUNK].tocoo()
            known = learned[start : start + _CHUNK].toarray().astype(np.float64)
            # Ties, and tokens that the other documents lack, go by load.
            ranked = np.argsort(-(known + others / (others.sum() + 1)), axis=1, kind="stable")[:, :k]
            chosen = np.zeros(known.shape, bool)
            np.put_along_axis(chosen, ranked, True, axis=1)
            out[0, fold] += int(mine.data[chosen[mine.row, mine.col]].sum())
            out[1, fold] += int(mine.data[by_load[mine.col]].sum())
            out[2, fold] += int(mine.data.sum())
    return out[0], out[1], out[2]


def _table(rows: _Rows, number: np.ndarray, fold: int, n_tokens: int, n_entries: int) -> sparse.csr_matrix:
    """Selections of every entry by every token in a fold."""
    here = rows.fold == fold
    entries = rows.entries[here]
    token, flat = np.repeat(number[here], entries.shape[1]), entries.ravel()
    known = flat >= 0
    cell = (token[known], flat[known])
    return sparse.csr_matrix((np.ones(int(known.sum()), np.int64), cell), shape=(n_tokens, n_entries))
