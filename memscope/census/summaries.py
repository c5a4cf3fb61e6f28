"""From counts to the numbers of ``census.json``: evenness, reading, profiles, overlap. Pure functions."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from memscope.census.kernels import Sum, Weight
from memscope.census.strata import TokenClass
from memscope.recording.census_file import MEANS_NEED, ClassProfile, Evenness, Overlap, TokenMeans, Weightings
from memscope.recording.sites import Has, Site
from memscope.stats.jackknife import Jackknife
from memscope.stats.stability import jensen_shannon
from memscope.stats.usage import Bank, jackknife_errors, usage_metrics

_MEANS_OF_READERS = (
    Sum.GATE_ENTROPY,
    Sum.GATE_TOP_SHARE,
    Sum.READ_ENTROPY,
    Sum.EFFECTIVE_ENTRIES_READ,
    Sum.READ_TOP_SHARE,
    Sum.GATE_READ_RANK_CORRELATION,
    Sum.GATE_ATTENTION_RANK_CORRELATION,
)
"""Sums that become a mean over the tokens that read anything, each a field of ``TokenMeans`` in small letters."""


def evenness(
    folds: np.ndarray, weights: np.ndarray, spread: Jackknife, banks: Sequence[Bank], has: Collection[Has]
) -> Weightings:
    """Metrics of usage under every weighting, those by count with standard errors.

    Args:
        folds: selections per fold and entry, ``[fold, N]``.
        weights: ``kernels.Weight`` of every entry, ``[N, Weight]``.
        spread: of the folds.
        banks: in the order of their entries.
        has: what there is of the selections; usage is weighted by nothing else.
    """
    counts = folds.sum(0, dtype=np.int64)
    d = int(counts.sum())
    by_count, by_gate_score, by_read_weight = (
        dict(usage_metrics(usage, d, banks=banks))
        for usage in (counts, weights[:, Weight.GATE], weights[:, Weight.READ])
    )
    return Weightings(
        by_count=Evenness(**by_count, **_plain(jackknife_errors(folds, spread))),
        by_gate_score=Evenness(**by_gate_score) if "scores" in has else None,
        by_read_weight=Evenness(**by_read_weight) if "reads" in has else None,
    )


def reading_statistics(sums: np.ndarray, has: Collection[Has]) -> TokenMeans:
    """How tokens weigh what they selected; numbers for which the layer lacks something are none.

    Args:
        sums: ``kernels.Sum`` per class of tokens, ``[class, Sum]``; classes are added up.
        has: what the layer has.
    """
    total = sums.sum(0)
    tokens, readers, selections = (max(total[count], 1) for count in (Sum.TOKENS, Sum.READERS, Sum.SELECTIONS))
    margins, losses = (total[count] or float("nan") for count in (Sum.MARGINS, Sum.LOSSES))  # a mean of none is NaN
    of_readers = {column.name.lower(): float(total[column] / readers) for column in _MEANS_OF_READERS}
    of_all = {
        "unread_share": total[Sum.UNREAD] / selections,
        "unread_share_by_norm": total[Sum.UNREAD_BY_NORM] / selections,
        "silent_tokens": 1 - total[Sum.READERS] / tokens,
        "margin": total[Sum.MARGIN] / margins,
        "score_margin": total[Sum.SCORE_MARGIN] / margins,
        "by_score_share": total[Sum.BY_SCORE] / selections,
        "loss": total[Sum.LOSS] / losses,
    }
    means: dict[str, float | None] = {**of_readers, **_plain(of_all)}
    lacking = {name: None for name, what in MEANS_NEED.items() if what not in has}
    return TokenMeans.model_validate(means | lacking)


def reading_errors(cells: np.ndarray, has: Collection[Has], spread: Jackknife) -> dict[str, float | None]:
    """Standard errors ``{name}_se`` of ``reading_statistics`` by leaving out one fold after the other.

    Args:
        cells: ``kernels.Sum`` per fold, ``[fold, Sum]``.
        has: what the layer has.
        spread: of the folds.
    """
    if not spread.known:
        return {}
    whole = reading_statistics(cells, has)
    without = [reading_statistics(sums[None], has) for sums in spread.without(cells)]
    value, *left = ([np.nan if mean is None else mean for _, mean in means] for means in (whole, *without))
    errors = spread.errors(np.array(value), np.array(left))
    return _plain({f"{name}_se": error for (name, _), error in zip(whole, errors, strict=True)})


def profile(
    classes: Sequence[TokenClass], counts: np.ndarray, shuffled: np.ndarray, sums: np.ndarray, has: Collection[Has]
) -> tuple[ClassProfile, ...]:
    """One row per class of tokens: what the gate does there, and how far its choice differs from the whole layer's.

    ``divergence`` is KL(entries of the class || entries of the layer) in nats; ``even_divergence`` the same for as
    many tokens taken at random, since a small class differs at chance level too.

    Args:
        classes: their names.
        counts: selections per entry and class, ``[N, class]``.
        shuffled: the same with tokens shuffled between classes.
        sums: ``kernels.Sum`` per class, ``[class, Sum]``.
        has: what the layer has.
    """
    layer = counts.sum(1, dtype=np.int64)
    return tuple(
        ClassProfile(
            label=token_class.label,
            low=token_class.low,
            high=token_class.high,
            tokens=int(sums[number, Sum.TOKENS]),
            coverage=float((counts[:, number] > 0).mean()),
            divergence=_divergence(counts[:, number], layer),
            even_divergence=_divergence(shuffled[:, number], layer),
            **dict(reading_statistics(sums[number : number + 1], has)),
        )
        for number, token_class in enumerate(classes)
        if sums[number, Sum.TOKENS]
    )


def mutual_information(counts: np.ndarray) -> float:
    """Mutual information in nats between entry and class of a selection, from ``[N, class]`` counts."""
    total = max(int(counts.sum(dtype=np.int64)), 1)
    entry = counts.sum(1, dtype=np.float64)
    information = 0.0
    for column in counts.T:
        used = np.flatnonzero(column)
        joint = column[used].astype(np.float64)
        information += float((joint * np.log(joint * total / (entry[used] * joint.sum()))).sum())
    return information / total


def layer_overlap(usage: Sequence[np.ndarray], sites: Sequence[Site]) -> Overlap:
    """How alike the layers use their banks: matrices ``[layer, layer]``.

    ``jaccard`` of the sets of used entries, ``even_jaccard`` of independent random sets of the same sizes,
    ``rank_correlation`` of usage (Spearman, over all entries), ``jensen_shannon`` divergence in nats (0 = same
    distribution, ln 2 = no entry in common). Layers of different banks have no entry in common by construction: 0, 0, 0
    and ln 2; those of one are compared over its entries.

    Args:
        usage: selections of the entries that each layer can select, ``[entry]`` each.
        sites: the layers.
    """
    n = len(sites)
    apart = {"jensen_shannon": np.log(2)}
    names = ("jaccard", "even_jaccard", "rank_correlation", "jensen_shannon")
    matrices = {name: np.full((n, n), apart.get(name, 0.0)) for name in names}
    for first in dict.fromkeys(site.first_entry for site in sites):
        together = [axis for axis, site in enumerate(sites) if site.first_entry == first]
        for name, values in _overlap(np.stack([usage[axis] for axis in together])).items():
            matrices[name][np.ix_(together, together)] = values
    return Overlap.model_validate({name: values.tolist() for name, values in matrices.items()})


def _overlap(usage: np.ndarray) -> dict[str, np.ndarray]:
    """``layer_overlap`` of layers that share a bank, ``usage [layer, entry]``."""
    used = usage > 0
    size = used.mean(1)
    both = (used[:, None] & used[None]).sum(-1) if len(usage) <= 1 else used.astype(np.float32) @ used.T
    either = used.sum(1)[:, None] + used.sum(1)[None] - both
    chance = size[:, None] * size[None]
    with np.errstate(invalid="ignore"):  # a layer of constant usage has no rank correlation: 0
        correlation = np.atleast_2d(np.corrcoef(rankdata(usage, axis=1)))
    matrices = {
        "jaccard": both / np.maximum(either, 1),
        "even_jaccard": chance / np.maximum(size[:, None] + size[None] - chance, 1e-300),
        "rank_correlation": correlation,
        "jensen_shannon": np.array([[jensen_shannon(a, b) for b in usage] for a in usage]),
    }
    return {name: np.nan_to_num(values).astype(float) for name, values in matrices.items()}


def _divergence(part: np.ndarray, whole: np.ndarray) -> float:
    used = np.flatnonzero(part)
    p, q = part[used] / max(part.sum(dtype=np.int64), 1), whole[used] / max(whole.sum(), 1)
    return float((p * np.log(p / q)).sum())


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}
