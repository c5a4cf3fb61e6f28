"""The differences between two recordings, as numbers and tables; ``report/compare/comparison.py`` makes words and
figures of them.

    changes = find_changes(Recording("recordings/early"), Recording("recordings/late"))
    changes.layers, changes.switched

Measures and their yardsticks are those of ``stats/stability.py``; both recordings are asked through the query layer
only.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.base.errors import InputError
from memscope.query.recording import Recording
from memscope.recording.census_file import Evenness
from memscope.recording.info import RecordingInfo
from memscope.report.compare.schema import EvennessChange, LayerLikeness, LossChange, PredicateChange
from memscope.report.words import shared_by
from memscope.stats.stability import (
    Halves,
    halves,
    independent_jaccard,
    likeness,
    paired_change,
    sampled_likeness,
    switches,
)

METRICS = ("coverage", "kl_to_uniform", "relative_perplexity", "gini", "top50", "top90", "max_violation", "dead", "hot")
"""Metrics of evenness that are compared."""
SEED = 0
"""Of the samples behind every yardstick."""
_SWITCHED = ["layer", "change", "entry", "selections_a", "selections_b", "sentence"]


class Changes(NamedTuple):
    """The differences between two recordings."""

    layers: list[LayerLikeness]
    """All layers together first, then each; empty when the banks started from different sentences."""
    evenness: list[EvennessChange]
    """The same order."""
    loss: LossChange | None
    """None where a recording has no losses."""
    predicates: list[PredicateChange]
    """By falling absolute change."""
    switched: pd.DataFrame
    """Entries that died or woke, layers taken together and one by one: ``layer change entry selections_a selections_b
    sentence``; ``layer`` is "all" or a number."""
    different_entries: int
    """Entries that started from another sentence, or at random from another seed; 0 where no start is known."""


def find_changes(a: Recording, b: Recording) -> Changes:
    """Compare two recordings.

    Raises:
        InputError: banks of different sizes, or other memory layers.
    """
    _check_comparable(a, b)
    bank_a, bank_b = _bank(a), _bank(b)
    different = _different_entries(a, b, bank_a["sentence"], bank_b["sentence"])
    usage_a, usage_b = a.usage(), b.usage()
    layers: list[LayerLikeness] = []
    switched = [pd.DataFrame(columns=_SWITCHED)]
    if not different:
        split = list(zip(*(_halves(recording) for recording in (a, b)), strict=True))
        for number, (layer, *counts) in enumerate(_each_layer(a.info.layers, usage_a, usage_b)):
            own = slice(None) if layer is None else a.info.entries_of(layer)
            row, table = _compare_layer(layer, counts[0], counts[1], split[number], bank_a["sentence"], own)
            layers.append(row)
            switched.append(table)
    return Changes(
        layers=layers,
        evenness=list(_evenness_changes(a, b)),
        loss=_loss_change(a, b),
        predicates=_predicate_changes((bank_a["predicate"], usage_a.sum(0)), (bank_b["predicate"], usage_b.sum(0))),
        switched=pd.concat([table for table in switched if len(table)] or switched, ignore_index=True),
        different_entries=different,
    )


def _bank(recording: Recording) -> pd.DataFrame:
    """``Recording.entries`` by entry; without sentences and relations where no start is known."""
    table = recording.entries(sort="entry", descending=False, limit=recording.info.knowledge_num)
    return table if recording.info.has("starts") else table.assign(sentence=None, predicate=None)


def _check_comparable(a: Recording, b: Recording) -> None:
    one, other = a.info, b.info
    if {site.kind for site in one.sites} != {site.kind for site in other.sites}:
        raise InputError(
            f"{b.path}: its layers select {other.word(2)} ({_kinds(other)}), those of {a.path} select {one.word(2)} "
            f"({_kinds(one)}); usage can only be compared between layers of the same kinds"
        )
    if one.kind != "memory" and one.knowledge_num != other.knowledge_num:
        raise InputError(
            f"{b.path}: it has {other.knowledge_num:,} {other.word(2)}, {a.path} has {one.knowledge_num:,}; usage can "
            "only be compared between models with equally many"
        )
    if one.knowledge_num != other.knowledge_num:
        raise InputError(
            f"{b.path}: its bank has {other.knowledge_num:,} entries, that of {a.path} has {one.knowledge_num:,}; "
            "usage can only be compared between banks of the same size"
        )
    if one.layers == other.layers and [site.own for site in one.sites] != [site.own for site in other.sites]:
        raise InputError(
            f"{b.path}: its {one.word(2)} are {shared_by(other)}, those of {a.path} are {shared_by(one)}; "
            f"usage can only be compared between layers that can select the same {one.word(2)}"
        )
    if one.layers != other.layers:
        names, memory = [", ".join(map(str, info.layers)) for info in (other, one)], one.kind == "memory"
        raise InputError(
            f"{b.path}: its {'memory ' * memory}layers are {names[0]}, those of {a.path} are {names[1]}; "
            f"usage can only be compared between models with {'memory' if memory else one.word(2)} in the same layers"
        )


def _kinds(info: RecordingInfo) -> str:
    return ", ".join(dict.fromkeys(site.kind for site in info.sites))


def _different_entries(a: Recording, b: Recording, sentences_a: pd.Series, sentences_b: pd.Series) -> int:
    """Entries whose number means another start; those that started random are alike if the seed is.

    Where no start is known, entries are taken to be alike by their numbers: so are those of two checkpoints of a model.
    """
    one, other = sentences_a.fillna(""), sentences_b.fillna("")
    different = one != other
    if a.info.has("starts", everywhere=True) and a.config["train"]["seed"] != b.config["train"]["seed"]:
        different |= sentences_a.isna() & sentences_b.isna()
    return int(different.sum())


def _halves(recording: Recording) -> list[Halves | None]:
    """Halves of a recording's documents: all layers together first, then each over the entries that it can select."""
    folds, info = recording.usage_folds(), recording.info
    together = [folds.sum(1)] if len(info.layers) > 1 else []
    each = [folds[:, axis, info.entries_of(layer)] for axis, layer in enumerate(info.layers)]
    return [halves(counts, SEED) for counts in (*together, *each)]


def _each_layer(
    layers: tuple[int, ...], a: np.ndarray, b: np.ndarray
) -> Iterator[tuple[int | None, np.ndarray, np.ndarray]]:
    """Usage of all layers together (named none), then of each; a model of one layer has that one alone."""
    if len(layers) > 1:
        yield None, a.sum(0), b.sum(0)
    yield from zip(layers, a, b, strict=True)


def _compare_layer(
    layer: int | None,
    a: np.ndarray,
    b: np.ndarray,
    split: tuple[Halves | None, ...],
    sentences: pd.Series,
    own: slice,
) -> tuple[LayerLikeness, pd.DataFrame]:
    """One row of measures, over the entries ``own`` that the layer can select, and the entries that died or woke."""
    a, b = a[own], b[own]
    now, sampled, moved = likeness(a, b), sampled_likeness(a, b, SEED), switches(a, b)
    known = [half for half in split if half is not None]
    row = LayerLikeness(
        layer=layer,
        selections_a=int(a.sum()),
        selections_b=int(b.sum()),
        rank_correlation=now.rank_correlation,
        sampled_rank_correlation=sampled.rank_correlation,
        rank_correlation_both=now.rank_correlation_both,
        used_by_both=int(((a > 0) & (b > 0)).sum()),
        jensen_shannon=now.jensen_shannon,
        sampled_jensen_shannon=sampled.jensen_shannon,
        halves_jensen_shannon_a=split[0] and split[0].jensen_shannon,
        halves_jensen_shannon_b=split[1] and split[1].jensen_shannon,
        jaccard=now.jaccard,
        independent_jaccard=independent_jaccard(a, b),
        sampled_jaccard=sampled.jaccard,
        halves_jaccard=min((half.jaccard for half in known), default=None),
        halves_rank_correlation=min(
            (half.rank_correlation for half in known if half.rank_correlation is not None), default=None
        ),
        halves_switched=max((half.switched for half in known), default=None),
        died=len(moved.died),
        died_by_sampling=moved.died_by_sampling,
        woke=len(moved.woke),
        woke_by_sampling=moved.woke_by_sampling,
    )
    entries = np.concatenate([moved.died, moved.woke])
    table = pd.DataFrame(
        {
            "layer": "all" if layer is None else str(layer),
            "change": ["died"] * len(moved.died) + ["woke"] * len(moved.woke),
            "entry": entries + (own.start or 0),
            "selections_a": a[entries],
            "selections_b": b[entries],
            "sentence": sentences.to_numpy()[own][entries],
        },
        columns=_SWITCHED,
    )
    return row, table


def _evenness_changes(a: Recording, b: Recording) -> Iterator[EvennessChange]:
    both: list[tuple[int | None, Evenness, Evenness]] = []
    if len(a.info.layers) > 1:
        both.append((None, a.census.all_layers.by_count, b.census.all_layers.by_count))
    layers = zip(a.census.layers, b.census.layers, strict=True)
    both += [(layer_a.layer, layer_a.by_count, layer_b.by_count) for layer_a, layer_b in layers]
    for layer, evenness_a, evenness_b in both:
        for metric in METRICS:
            value_a, value_b = getattr(evenness_a, metric), getattr(evenness_b, metric)
            errors = [getattr(evenness, f"{metric}_se", None) for evenness in (evenness_a, evenness_b)]
            yield EvennessChange(
                layer=layer,
                metric=metric,
                a=value_a,
                b=value_b,
                change=value_b - value_a,
                change_se=_joint_error(*errors),
            )


def _loss_change(a: Recording, b: Recording) -> LossChange | None:
    one, other = a.census.loss, b.census.loss
    if one is None or other is None:
        return None
    if a.info.corpus_sha256 == b.info.corpus_sha256 and a.info.rows == b.info.rows:
        both = a.document_losses().merge(b.document_losses(), on="doc", suffixes=("_a", "_b")).dropna()
        tokens, loss_a, loss_b = (both[name].to_numpy(float) for name in ("tokens_a", "loss_a", "loss_b"))
        paired = paired_change(tokens, loss_a, loss_b)
        return LossChange(
            a=one,
            b=other,
            change=other - one,
            change_se=paired.se,
            paired=True,
            documents=len(both),
            documents_lower=paired.lower,
        )
    return LossChange(
        a=one,
        b=other,
        change=other - one,
        change_se=_joint_error(*(recording.census.layers[0].reading.loss_se for recording in (a, b))),
        paired=False,
        documents=None,
        documents_lower=None,
    )


def _joint_error(a: float | None, b: float | None) -> float | None:
    """Standard error of a difference of two independent numbers; none where one error is not known."""
    return None if a is None or b is None else float(np.hypot(a, b))


def _predicate_changes(a: tuple[pd.Series, np.ndarray], b: tuple[pd.Series, np.ndarray]) -> list[PredicateChange]:
    """Shares of every relation in bank and selections; each side is the predicates and the usage of its entries."""
    one, other = (_predicate_shares(*side) for side in (a, b))
    names = one.index.union(other.index)
    one, other = one.reindex(names, fill_value=0), other.reindex(names, fill_value=0)
    changes = [
        PredicateChange(
            predicate=str(name),
            entries_a=int(one.loc[name, "entries"]),
            entries_b=int(other.loc[name, "entries"]),
            bank_share_a=one.loc[name, "bank_share"],
            bank_share_b=other.loc[name, "bank_share"],
            selection_share_a=one.loc[name, "selection_share"],
            selection_share_b=other.loc[name, "selection_share"],
            change=other.loc[name, "selection_share"] - one.loc[name, "selection_share"],
        )
        for name in names
    ]
    return sorted(changes, key=lambda change: (-abs(change.change), change.predicate))


def _predicate_shares(predicates: pd.Series, usage: np.ndarray) -> pd.DataFrame:
    """``entries bank_share selection_share`` per relation, among the entries that have one."""
    pairs = pd.DataFrame({"predicate": predicates, "usage": usage}).explode("predicate").dropna()
    pairs = pairs[pairs["predicate"] != ""].reset_index(names="entry").drop_duplicates(["entry", "predicate"])
    having = pairs.drop_duplicates("entry")
    shares = pairs.groupby("predicate")["usage"].agg(["size", "sum"])
    return pd.DataFrame(
        {
            "entries": shares["size"],
            "bank_share": shares["size"] / max(1, len(having)),
            "selection_share": shares["sum"].astype(float) / max(1, int(having["usage"].sum())),
        }
    )
