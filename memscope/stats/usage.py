"""How evenly a bank is used: mergeable counts and the metrics on them, for the trainer, the recorder and every view.

Of D selections over N entries, z is the share of each entry. A finite D makes even perfectly even selection look
uneven, so every metric that depends on D comes with ``even_*``: its value at this D for a gate that draws at random. A
gate head never selects an entry twice for one token, so a draw is of k distinct entries, and counts are binomial.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.special import gammaln, xlogy

from memscope.stats.jackknife import Jackknife

HOT_FACTOR = 10
"""An entry is hot when it takes more than this many times the even share."""
UNREAD_SHARE = 0.01
"""A selection is unread when it gets less than this share of its token's read."""


class UsageCounts:
    """Selections per layer and entry; the sum of two equals the counts of one pass over both parts.

    Weights are sums of float16 values in float64 and therefore exact: the order of adding does not matter.
    """

    def __init__(self, n_layers: int, n_entries: int):
        self.count = np.zeros((n_layers, n_entries), dtype=np.int64)
        self.gate = np.zeros((n_layers, n_entries))
        """Sum of gate scores."""
        self.read = np.zeros((n_layers, n_entries))
        """Sum of absolute read weights."""

    def update(self, layer: int, indices: np.ndarray, gate: np.ndarray, read: np.ndarray) -> None:
        """Add the selections of some tokens in one layer: three arrays of equal shape, row number of the layer."""
        entries, n = indices.ravel(), self.count.shape[1]
        self.count[layer] += np.bincount(entries, minlength=n)
        self.gate[layer] += np.bincount(entries, weights=gate.ravel(), minlength=n)
        self.read[layer] += np.bincount(entries, weights=np.abs(read.ravel()), minlength=n)

    def merge(self, other: "UsageCounts") -> None:
        """Add the counts of another part."""
        if self.count.shape != other.count.shape:
            raise ValueError(f"cannot merge counts of shape {other.count.shape} into {self.count.shape}")
        self.count += other.count
        self.gate += other.gate
        self.read += other.read


class UsageMetrics(BaseModel):
    """How evenly a bank is used; z is the share of each entry. docs/reference/metrics.md has the definitions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    entries: int
    """N."""
    selections: int
    """D."""
    coverage: float
    """Share of entries with any usage."""
    even_coverage: float
    """1 - (1 - k/N)^draws: a draw takes the k entries that a gate head selects for a token, all different."""
    kl_to_uniform: float
    """ln N + sum z ln z in nats; 0 = even, ln N = one entry takes all."""
    even_kl_to_uniform: float
    """Expectation of the same when every draw takes its entries at random."""
    relative_perplexity: float
    """exp(entropy of z) / N; 1 = even."""
    gini: float
    """1 - 2 mean(cumsum(sort z)) + 1/N; 0 = even."""
    even_gini: float
    """Expectation of the same when every draw takes its entries at random."""
    top50: int
    """Most used entries that hold 50% of the usage."""
    top90: int
    """Most used entries that hold 90% of the usage."""
    top99: int
    """Most used entries that hold 99% of the usage."""
    max_violation: float
    """(largest load - mean load) / mean load."""
    dead: int
    """Entries without any usage."""
    hot: int
    """Entries with more than 10 times the even share."""


class Bank(NamedTuple):
    """Entries side by side, and how they are drawn."""

    entries: int
    selections: int
    distinct: int = 1
    """Entries per draw, all different (k of a gate head); 1 = independent selections."""


def usage_metrics(
    usage: np.ndarray, selections: int, distinct: int = 1, banks: Sequence[Bank] | None = None
) -> UsageMetrics:
    """Metrics of usage.

    The Gini index is that of XLM's product-key evaluator, shifted so that even use is exactly 0; ``max_violation`` is
    MaxVio (arXiv 2408.15664).

    Args:
        usage: counts or summed weights per entry, ``[N]``.
        selections: number of selections.
        distinct: different entries per draw, see ``even_selection``.
        banks: in place of it, where entries are in several banks, each with draws of its own.
    """
    n = len(usage)
    total = float(usage.sum())
    even = even_selection(tuple(banks) if banks else (Bank(n, selections, distinct),))
    if total <= 0:
        zeros: dict[str, Any] = dict.fromkeys(UsageMetrics.model_fields, 0)
        expected = {"even_coverage": even.coverage, "even_kl_to_uniform": even.kl, "even_gini": even.gini}
        return UsageMetrics(**(zeros | expected | {"entries": n, "selections": selections, "dead": n}))
    z = np.sort(usage / total)
    used = z[z > 0]
    kl = float(np.log(n) + (used * np.log(used)).sum())
    cumulative, from_top = np.cumsum(z), np.cumsum(z[::-1])
    # The tolerance keeps rounding from adding an entry where the share is met exactly.
    top50, top90, top99 = (int(np.searchsorted(from_top, share - 1e-12)) + 1 for share in (0.5, 0.9, 0.99))
    return UsageMetrics(
        entries=n,
        selections=selections,
        coverage=len(used) / n,
        even_coverage=even.coverage,
        kl_to_uniform=max(kl, 0.0),
        even_kl_to_uniform=even.kl,
        relative_perplexity=float(np.exp(-kl)),
        gini=float(1 - 2 * cumulative.mean() + 1 / n),
        even_gini=even.gini,
        top50=top50,
        top90=top90,
        top99=top99,
        max_violation=float(z[-1] * n - 1),
        dead=n - len(used),
        hot=int((z > HOT_FACTOR / n).sum()),
    )


JACKKNIFED = ("coverage", "kl_to_uniform", "relative_perplexity", "gini", "top50")
"""Metrics that get a standard error."""


def jackknife_errors(folds: np.ndarray, spread: Jackknife) -> dict[str, float]:
    """Standard errors ``{metric}_se`` of metrics of usage, by leaving out one fold of documents after the other.

    Also ``kl_to_uniform_few``: the fall of the KL with many more documents of the same kind. All are NaN for less than
    two folds. The errors are about other documents of the same kind, not about another model. Coverage and top50 have
    ceilings and steps, for which the jackknife is too wide.

    Args:
        folds: usage per fold and entry, ``[F, N]``.
        spread: of the same folds.
    """
    value, left = _jackknifed(folds.sum(0, dtype=np.int64)), np.empty((0, len(JACKKNIFED)))
    if spread.known:
        left = np.stack([_jackknifed(usage) for usage in spread.without(folds)])
    few = spread.excess(value, left)[JACKKNIFED.index("kl_to_uniform")]
    errors = zip(JACKKNIFED, spread.errors(value, left), strict=True)
    return {f"{name}_se": float(error) for name, error in errors} | {"kl_to_uniform_few": float(few)}


def _jackknifed(usage: np.ndarray) -> np.ndarray:
    metrics = usage_metrics(usage, int(usage.sum()))
    return np.array([getattr(metrics, name) for name in JACKKNIFED], np.float64)


class EvenSelection(NamedTuple):
    """Expected metrics of even selection after D selections."""

    coverage: float
    kl: float
    gini: float


@lru_cache(maxsize=256)
def even_selection(banks: tuple[Bank, ...]) -> EvenSelection:
    """Expected coverage, KL to uniform and Gini when every draw takes its entries at random, in each bank by itself.

    Exact: an entry's count is binomial over the draws, and the difference of two counts of a bank is a random walk that
    moves where a draw takes one entry and not the other. A layer's gate head makes one draw a token. The KL is to equal
    use of all entries, so banks of unequal use per entry are uneven by their sizes alone.
    """
    n_entries, selections = sum(bank.entries for bank in banks), sum(bank.selections for bank in banks)
    if selections <= 0:
        return EvenSelection(0.0, 0.0, 0.0)
    mean = selections / n_entries
    coverage = kl = apart = 0.0
    for number, bank in enumerate(banks):
        draws, share = _draws(bank)
        counts = _range(draws, share)
        relative = counts / mean
        # E[relative] = 1 over all banks, which allows terms without cancellation.
        terms = _binomial(draws, share).pmf(counts) * (xlogy(relative, relative) - relative + 1)
        kl += bank.entries / n_entries * float(terms.sum())
        coverage += bank.entries / n_entries * float(_binomial(draws, share).sf(0))
        one_of_two = (  # probability that a draw takes one of two entries and not the other
            share * (bank.entries - bank.distinct) / max(bank.entries - 1, 1)
        )
        part = bank.entries / n_entries
        apart += part * (bank.entries - 1) * _mean_distance(draws, one_of_two)
        apart += 2 * part * sum(other.entries * _between(bank, other) for other in banks[number + 1 :])
    return EvenSelection(coverage, kl, apart / (2 * n_entries * mean))


def _draws(bank: Bank) -> tuple[int, float]:
    """Draws from a bank, and the chance that one takes a given entry."""
    return round(bank.selections / bank.distinct), bank.distinct / bank.entries


def _range(draws: int, share: float) -> np.ndarray:
    """Counts that a binomial takes with any noteworthy chance."""
    binomial = _binomial(draws, share)
    return np.arange(max(binomial.ppf(1e-15) - 1, 0), binomial.isf(1e-15) + 2)


def _binomial(draws: int, share: float) -> Any:
    """The distribution of an entry's count."""
    from scipy.stats import binom  # the import takes longer than what else a page of the app needs to stand

    return binom(draws, share)


@lru_cache(maxsize=64)
def _between(bank: Bank, other: Bank) -> float:
    """Mean distance of the counts of two entries of different banks."""
    (draws, share), (draws_other, share_other) = _draws(bank), _draws(other)
    if (draws, share) == (draws_other, share_other):  # a walk that goes up and down by itself
        return _mean_distance(draws, share * (1 - share))
    span = [_range(draws, share), _range(draws_other, share_other)]
    counts = np.arange(min(part[0] for part in span), max(part[-1] for part in span) + 1)
    below, below_other = _binomial(draws, share).cdf(counts), _binomial(draws_other, share_other).cdf(counts)
    return float((below * (1 - below_other) + below_other * (1 - below)).sum())


def _mean_distance(steps: int, share: float) -> float:
    """Mean distance from its start of a walk of ``steps`` that goes up, and down, with the chance ``share``."""
    moves = _range(steps, 2 * share)
    pairs = np.ceil(moves / 2)  # of 2 j moves, as of 2 j - 1: 2 j C(2 j, j) / 4^j
    distance = 2 * pairs * np.exp(gammaln(2 * pairs + 1) - 2 * gammaln(pairs + 1) - 2 * pairs * np.log(2))
    return float((_binomial(steps, 2 * share).pmf(moves) * distance).sum())
