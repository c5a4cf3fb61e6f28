"""How alike two usage distributions are, beside the effect of other text alone. numpy and scipy only.

Two recordings never show the same counts, even of the same gate on other text of the same kind. Every measure
therefore comes with a yardstick: its value for two halves of one recording's documents, under one gate. A second
yardstick is for samples of independent selections from the pooled distribution. It is a lower bound: selections of one
document resemble each other, so other text moves the measures several times as much.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import binom, rankdata

from memscope.stats.jackknife import Jackknife

LIVELY = 10
"""An entry died or woke when one recording selected it at least this often and the other never."""
DRAWS = 20
"""A yardstick is the mean of this many pairs of samples, or of halves."""


class Likeness(NamedTuple):
    """How alike two usage distributions are."""

    rank_correlation: float | None
    """Spearman's rho over all N entries, unused ones included; none where one side is constant."""
    rank_correlation_both: float | None
    """Spearman's rho over the entries that both use."""
    jensen_shannon: float
    """Jensen-Shannon divergence in nats: 0 = equal, ln 2 = disjoint."""
    jaccard: float
    """Entries used by both / entries used by either."""


class Switches(NamedTuple):
    """Entries that one side uses and the other never does."""

    died: np.ndarray
    """Entries with at least ``LIVELY`` selections in a and none in b, most used first."""
    woke: np.ndarray
    """Entries with at least ``LIVELY`` selections in b and none in a, most used first."""
    died_by_sampling: float
    """Expected number of such entries in two samples from the pooled distribution."""
    woke_by_sampling: float


def likeness(a: np.ndarray, b: np.ndarray) -> Likeness:
    """Compare usage per entry, ``[N]`` each; see ``Likeness``."""
    both = (a > 0) & (b > 0)
    return Likeness(rank_correlation(a, b), rank_correlation(a[both], b[both]), jensen_shannon(a, b), jaccard(a, b))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rho, ties at their mean rank; none for fewer than three entries or a constant side.

    Equal to ``scipy.stats.spearmanr``, which warns about a constant side.
    """
    if len(a) < 3 or (a == a[0]).all() or (b == b[0]).all():
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def jensen_shannon(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of KL(p || m) and KL(q || m) in nats, p and q being the shares of each entry and m = (p + q) / 2."""
    if a.sum() <= 0 or b.sum() <= 0:
        return 0.0 if a.sum() == b.sum() else float(np.log(2))
    p, q = a / a.sum(), b / b.sum()
    middle = (p + q) / 2
    return float(max(0.0, sum(0.5 * (r[r > 0] * np.log(r[r > 0] / middle[r > 0])).sum() for r in (p, q))))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Entries used by both over entries used by either; 1 when neither uses any."""
    either = int(((a > 0) | (b > 0)).sum())
    return int(((a > 0) & (b > 0)).sum()) / either if either else 1.0


def independent_jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Expected Jaccard index of two independent random sets of these sizes (ratio of expectations)."""
    p, q = float((a > 0).mean()), float((b > 0).mean())
    return p * q / (p + q - p * q) if p + q > 0 else 1.0


def sampled_likeness(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Likeness:
    """The yardstick: mean ``Likeness`` of ``DRAWS`` pairs of samples of sizes sum(a), sum(b) from (a + b) / sum(a + b).

    Args:
        a: selections per entry, int64 ``[N]``.
        b: likewise, of the other recording.
        seed: of the samples.
    """
    pool = a + b
    used = pool > 0
    chance = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        pair = []
        for total in (int(a.sum()), int(b.sum())):
            sample = np.zeros_like(pool)
            sample[used] = chance.multinomial(total, pool[used] / pool.sum())
            pair.append(sample)
        drawn.append(likeness(*pair))
    columns = ([value for value in column if value is not None] for column in zip(*drawn, strict=True))
    rho, rho_both, divergence, index = (float(np.mean(column)) if column else None for column in columns)
    assert divergence is not None and index is not None
    return Likeness(rho, rho_both, divergence, index)


def switches(a: np.ndarray, b: np.ndarray) -> Switches:
    """Entries that died or woke between two recordings, and how many would in two samples from their pool.

    Args:
        a: selections per entry, int64 ``[N]``.
        b: likewise, of the other recording.
    """
    died, woke = (np.flatnonzero((now >= LIVELY) & (then == 0)) for now, then in ((a, b), (b, a)))
    p = (a + b) / max(1, int((a + b).sum()))

    def expected(lively: np.ndarray, silent: np.ndarray) -> float:
        return float((binom.sf(LIVELY - 1, int(lively.sum()), p) * binom.pmf(0, int(silent.sum()), p)).sum())

    return Switches(
        died[np.argsort(-a[died], kind="stable")],
        woke[np.argsort(-b[woke], kind="stable")],
        expected(a, b),
        expected(b, a),
    )


class Halves(NamedTuple):
    """How alike two halves of the documents of one recording are, D/2 each: other text, same gate."""

    jensen_shannon: float
    jaccard: float
    rank_correlation: float | None
    switched: float
    """Entries with at least ``LIVELY`` selections in one half and none in the other, per direction."""


def halves(folds: np.ndarray, seed: int = 0) -> Halves | None:
    """Mean over ``DRAWS`` random splits of the folds in two; none where fewer than two have usage.

    Args:
        folds: selections per fold of documents and entry, ``[fold, N]``.
        seed: of the splits.
    """
    folds = folds[folds.any(1)].astype(np.int64)
    if len(folds) < 2:
        return None
    chance, total, measures = np.random.default_rng(seed), folds.sum(0), []
    for _ in range(DRAWS):
        first = folds[chance.permutation(len(folds))[: len(folds) // 2]].sum(0)
        second = total - first
        lost = [np.count_nonzero((a >= LIVELY) & (b == 0)) for a, b in ((first, second), (second, first))]
        rho = rank_correlation(first, second)
        measures.append(
            (
                jensen_shannon(first, second),
                jaccard(first, second),
                np.nan if rho is None else rho,
                float(np.mean(lost)),
            )
        )
    divergence, index, rho, lost = np.mean(measures, axis=0).tolist()
    return Halves(divergence, index, None if np.isnan(rho) else rho, lost)


class PairedChange(NamedTuple):
    """Change of a mean over text that both sides share."""

    change: float
    """b - a, over all tokens."""
    se: float | None
    """Its standard error over documents; none for fewer than two."""
    lower: int
    """Documents in which b is lower."""


def paired_change(tokens: np.ndarray, a: np.ndarray, b: np.ndarray) -> PairedChange:
    """Change of a token mean between two sides of the same documents.

    The error is the jackknife's with documents as the unit (``stats/jackknife.py``).

    Args:
        tokens: tokens per document, ``[document]``.
        a: mean per document, ``[document]``.
        b: likewise, of the other side.
    """
    spread, sums = Jackknife(tokens), tokens * (b - a)
    total, error = float(sums.sum() / tokens.sum()), None
    if spread.known:
        error = float(spread.errors(total, spread.without(sums) / spread.without(tokens)))
    return PairedChange(total, error, int((b < a).sum()))
