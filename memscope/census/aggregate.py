"""The census of a recording: usage, evenness, reading, profiles and preferences, counted from its token-major parts.

    write_aggregates(recording, read_info(recording))

Layers are independent, so they are counted in parallel threads, each over all parts in order. Under torchrun processes
share the layers, and the first one writes. Memory depends on the bank and the number of strata, not on the number of
tokens. Counts are integers and weights are sums of numbers with few bits in float64, so nothing depends on who recorded
which part.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from memscope.base.errors import InputError
from memscope.base.files import atomic_path
from memscope.base.parquet import TableWriter, fixed_lists, matrix, read_parquet, write_table
from memscope.base.work import ALONE, Processes
from memscope.census.anomalies.entries import write_anomalies
from memscope.census.counts import count_layer
from memscope.census.firing.firing import write_firing
from memscope.census.information import held_out_information
from memscope.census.kernels import N_WEIGHTS, Weight
from memscope.census.labels import entry_labels
from memscope.census.neighbours import write_neighbours
from memscope.census.preference import adjust, layer_preferences
from memscope.census.readability import write_readability
from memscope.census.strata import Strata, divide_recording
from memscope.census.summaries import (
    evenness,
    layer_overlap,
    mutual_information,
    profile,
    reading_errors,
    reading_statistics,
)
from memscope.recording.aggregates import check_sources, list_files
from memscope.recording.census_file import (
    Census,
    ClassProfile,
    Group,
    GroupLayer,
    Information,
    LayerMetrics,
    Overlap,
    Profiles,
    Reading,
    Weightings,
    write_census,
)
from memscope.recording.info import STARTS, RecordingInfo, write_info
from memscope.recording.sites import HAS, Has, Site
from memscope.stats.usage import Bank


class CountedLayer(NamedTuple):
    """One layer, counted and summed up."""

    layer: int
    evenness: Weightings
    reading: Reading
    position: tuple[ClassProfile, ...]
    """By octave of the position in the window."""
    frequency: tuple[ClassProfile, ...]
    """By decade of the input token's frequency."""
    information: dict[str, float]
    """Those fields of ``Information`` that come from the table of classes."""
    groups: tuple[GroupLayer, ...]
    """The same per document group, without profiles."""


class LayerUsage(NamedTuple):
    """Usage of one layer, per entry of the whole bank."""

    cells: np.ndarray
    """Selections per cell and entry, int32 ``[cell, N]``."""
    weights: np.ndarray
    """``LayerCounts.weights``."""


class CountedUsage(NamedTuple):
    """All layers, counted and summed up: a census without what entries tell of tokens, which ``make_census`` adds."""

    layers: list[CountedLayer]
    all_layers: Weightings
    overlap: Overlap
    groups: dict[str, Group]


def write_aggregates(recording: Path, info: RecordingInfo, group: Processes = ALONE) -> None:
    """Write all aggregates of a recording whose parts are finished.

    These are ``usage``, ``bias``, ``contexts``, ``firing``, ``titles``, ``neighbours``, ``anomalies`` and
    ``readability`` as Parquet, and ``census.json``; their hashes go to ``recording.json``.

    Args:
        recording: its folder, which all processes see.
        info: its description.
        group: the processes that call this together and share its layers; files do not depend on their number.

    Raises:
        InputError: a part or another file is missing, damaged, or not of this recording; no token has a successor, or
            none selected anything.
    """
    check_sources(recording, info)
    strata = divide_recording(recording, info)
    usage = write_usage(recording, info, strata, group)
    write_preferences(recording, info, strata, group)
    of_tokens = write_firing(recording, info, group)
    pairs = write_neighbours(recording, info, group)
    write_anomalies(recording, info, pairs, group)
    write_readability(recording, info, strata, group)
    held_out = held_out_information(recording, info, strata, group)
    if usage is None or of_tokens is None or held_out is None:
        return  # the main process writes for all
    information = [{**counted, **told} for counted, told in zip(of_tokens, held_out, strict=True)]
    write_census(recording, make_census(info, strata, usage, information))
    write_info(recording, list_files(recording, info))


def write_usage(recording: Path, info: RecordingInfo, strata: Strata, group: Processes = ALONE) -> CountedUsage | None:
    """Count all layers, write ``usage.parquet`` and sum up; none in processes other than the main one."""
    return group.share(
        lambda axis: _count_and_sum_up(recording, info, axis, strata),
        range(len(info.layers)),
        lambda counted: _sum_up(recording, info, strata, counted),
    )


def _sum_up(
    recording: Path, info: RecordingInfo, strata: Strata, counted: Iterator[tuple[CountedLayer, LayerUsage]]
) -> CountedUsage:
    cells = np.zeros((strata.cells, info.knowledge_num), np.int64)
    weights = np.zeros((len(strata.groups), info.knowledge_num, N_WEIGHTS))
    layers: list[CountedLayer] = []
    of_layers: list[np.ndarray] = []  # selections of the entries that each layer can select
    with atomic_path(recording / "usage.parquet") as temporary:
        writer = TableWriter(temporary)
        for layer, usage in counted:
            cells += usage.cells
            weights += usage.weights
            writer.write(_usage_table(info.site(layer.layer), usage, strata))
            of_layers.append(usage.cells[:, info.entries_of(layer.layer)].sum(0))
            layers.append(layer)
        if not cells.any():
            raise InputError(f"{recording}: no token selected any {info.word()}, so there is nothing to count")
        writer.close()
    folds = cells.reshape(len(strata.groups), strata.folds, -1)
    has = [what for what in HAS if info.has(what, everywhere=True)]
    return CountedUsage(
        layers=layers,
        all_layers=evenness(folds.sum(0), weights.sum(0), strata.jackknife(), _banks(info, folds.sum(0)), has),
        overlap=layer_overlap(of_layers, info.sites),
        groups={
            name: Group(
                all_layers=evenness(
                    folds[group], weights[group], strata.jackknife(group), _banks(info, folds[group]), has
                ),
                layers=tuple(layer.groups[group] for layer in layers),
            )
            for group, name in enumerate(strata.groups if len(strata.groups) > 1 else ())
        },
    )


def _banks(info: RecordingInfo, folds: np.ndarray) -> list[Bank]:
    """Every bank with the selections that its layers made, given those of entries per fold, ``[fold, N]``."""
    banks = []
    for owners in info.banks:
        own, distinct = owners[0].own, {site.distinct for site in owners}
        selections = int(folds[:, own].sum(dtype=np.int64))
        banks.append(Bank(owners[0].entries, selections, distinct.pop() if len(distinct) == 1 else 1))
    return banks


def make_census(
    info: RecordingInfo, strata: Strata, counted: CountedUsage, information: Sequence[Mapping[str, float | None]]
) -> Census:
    """The census of a recording.

    Args:
        info: its description.
        strata: how tokens are told apart.
        counted: of ``write_usage``.
        information: per layer, the fields of ``Information`` that ``write_usage`` does not know.

    Raises:
        InputError: no token has a successor.
    """
    spread, loss = strata.jackknife(), counted.layers[0].reading.loss
    if loss is None and info.predictions:
        raise InputError("no recorded token has a successor, so there is no loss to count; record longer documents")
    layers = [
        LayerMetrics(
            layer=layer.layer,
            **dict(layer.evenness),
            reading=layer.reading,
            profiles=Profiles(
                position=layer.position,
                frequency=layer.frequency,
                information=Information.model_validate({**layer.information, **of_tokens}),
            ),
        )
        for layer, of_tokens in zip(counted.layers, information, strict=True)
    ]
    return Census(
        tokens=info.rows,
        loss=loss,
        interval_unit=strata.unit,
        folds=strata.folds,
        critical=spread.critical if spread.known else None,
        equal_documents=spread.equal_documents,
        longest_document=strata.longest,
        all_layers=counted.all_layers,
        overlap=counted.overlap,
        layers=tuple(layers),
        groups=counted.groups,
    )


def write_preferences(recording: Path, info: RecordingInfo, strata: Strata, group: Processes = ALONE) -> None:
    """Write ``bias.parquet``: what kind of init sentence each layer prefers, from ``usage.parquet``."""
    usage = read_parquet(recording / "usage.parquet")
    layer, entry, folds = usage["layer"].to_numpy(), usage["entry"].to_numpy(), matrix(usage["folds"])
    labels = entry_labels(read_parquet(recording / STARTS).to_pandas(), strata.token_frequency)

    def prefer(number: int) -> pd.DataFrame:
        here = layer == number
        counts = np.zeros((folds.shape[1], info.knowledge_num), np.int64)
        counts[:, entry[here]] = folds[here].T
        own = info.entries_of(number)
        return layer_preferences(counts[:, own], labels.among(own), seed=number, spread=strata.jackknife())

    def write(tables: Iterator[pd.DataFrame]) -> None:
        table = adjust(dict(zip(info.layers, tables, strict=True)))
        write_table(recording / "bias.parquet", pa.Table.from_pandas(table, preserve_index=False))

    group.share(prefer, info.layers, write)


def _count_and_sum_up(
    recording: Path, info: RecordingInfo, axis: int, strata: Strata
) -> tuple[CountedLayer, LayerUsage]:
    counted, spread, site = count_layer(recording, info, axis, strata), strata.jackknife(), info.sites[axis]
    cells = np.ascontiguousarray(counted.counts[:, : strata.cells].T)
    own = site.own
    by_fold, weights = cells[:, own].reshape(len(strata.groups), strata.folds, -1), counted.weights[:, own]
    sums = counted.sums[: strata.cells].reshape(len(strata.groups), strata.folds, -1)
    position, frequency, information = _profiles(counted.counts[own], counted.sums, strata, site.has)
    summed_up = CountedLayer(
        layer=site.layer,
        evenness=evenness(by_fold.sum(0), weights.sum(0), spread, _bank(site, by_fold), site.has),
        reading=Reading(
            **dict(reading_statistics(counted.sums[: strata.cells], site.has)),
            **reading_errors(sums.sum(0), site.has, spread),
            read_share_histogram=counted.shares.tolist() if "reads" in site.has else [],
            gate_entropy_histogram=counted.entropies.tolist() if "scores" in site.has else [],
            margin_histogram=counted.margins.tolist() if "margin" in site.has else [],
        ),
        position=position,
        frequency=frequency,
        information=information,
        groups=tuple(
            GroupLayer(
                layer=site.layer,
                **dict(
                    evenness(
                        by_fold[group], weights[group], strata.jackknife(group), _bank(site, by_fold[group]), site.has
                    )
                ),
                reading=reading_statistics(sums[group], site.has),
            )
            for group in range(len(strata.groups))
        ),
    )
    return summed_up, LayerUsage(cells, counted.weights)


def _bank(site: Site, folds: np.ndarray) -> list[Bank]:
    """A layer's own bank and selections, ``[fold, N]`` or ``[group, fold, N]``."""
    return [Bank(site.entries, int(folds.sum(dtype=np.int64)), site.distinct)]


def _profiles(
    counts: np.ndarray, sums: np.ndarray, strata: Strata, has: Collection[Has]
) -> tuple[tuple[ClassProfile, ...], tuple[ClassProfile, ...], dict[str, float]]:
    """Position and frequency profiles, and the information between entry and class beside its chance level."""
    profiles, information = {}, {}
    start, offset = strata.cells, len(strata.positions) + len(strata.frequencies)
    for name, classes in (("position", strata.positions), ("frequency", strata.frequencies)):
        here = slice(start, start + len(classes))
        real, shuffled = counts[:, here], counts[:, start + offset : start + offset + len(classes)]
        profiles[name] = profile(classes, real, shuffled, sums[here], has)
        information[name] = mutual_information(real)
        information[f"even_{name}"] = mutual_information(shuffled)
        start += len(classes)
    return profiles["position"], profiles["frequency"], information


def _usage_table(site: Site, usage: LayerUsage, strata: Strata) -> dict[str, Any]:
    """The rows of a layer in ``usage.parquet``; sums are null where the layer has nothing to sum up."""
    folds = usage.cells.reshape(len(strata.groups), strata.folds, -1).sum(0)
    count, weights = folds.sum(0), usage.weights.sum(0)
    used = np.flatnonzero(count)

    def summed(what: Has, weight: Weight) -> pa.Array:
        known = what in site.has
        return pa.array(weights[used, weight], pa.float64()) if known else pa.nulls(len(used), pa.float64())

    return {
        "layer": np.full(len(used), site.layer, np.uint16),
        "entry": used.astype(np.uint32),
        "count": count[used].astype(np.int64),
        "gate_sum": summed("scores", Weight.GATE),
        "read_sum": summed("reads", Weight.READ),
        "read_signed_sum": summed("reads", Weight.SIGNED_READ),
        "folds": fixed_lists(folds[:, used].T, pa.uint32()),
    }
