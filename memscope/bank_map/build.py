"""Make a map of a run's bank, on which entries that are alike in a stated space lie near each other.

    write_map(load_run("runs/demo"), Path("recordings/demo"))                     # in the space that maps best
    write_map(load_run("runs/demo"), Path("recordings/demo"), feature="values")

``bank_map/spaces.py`` makes the spaces and ``bank_map/layout.py`` the map. Every space is first tried on a sample of
entries. Without a ``feature``, the space whose trial ranks first is mapped. The numbers in ``map.json`` are measured on
entries outside the trial wherever there are enough of them. Entries that were never selected cannot be compared by
usage; they stand apart in a disc.

A map is trusted when it keeps neighbours, keeps them better than a PCA plane, and keeps them better than a map of
vectors whose columns have nothing in common. A map that is not trusted has no clusters, and ``why_not`` gives the
reasons.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memscope.bank_map.layout import (
    MIN_ENTRIES,
    BankMap,
    MapQuality,
    MapSettings,
    Trial,
    make_map,
    place_apart,
    try_map,
    why_not_trusted,
)
from memscope.bank_map.names import name_clusters
from memscope.bank_map.spaces import OF_USAGE, SPACES, Space, make_space
from memscope.base.errors import InputError
from memscope.base.parquet import write_table
from memscope.base.seals import hashes, write_sealed
from memscope.base.words import did_you_mean
from memscope.base.work import watched
from memscope.recording.info import RecordingInfo, read_info
from memscope.run.checkpoint import LoadedRun

BEST = "best"
FEATURES = (BEST, *SPACES)
MAP, MAP_INFO = "map.parquet", "map.json"
NEVER_SELECTED = "never selected"
NO_CLUSTER = -1
"""Cluster of all entries on a map that is not trusted."""


def write_map(
    run: LoadedRun | None,
    recording: Path,
    feature: str = BEST,
    seed: int = 0,
    *,
    layer: int | None = None,
    settings: MapSettings | None = None,
) -> dict[str, Any]:
    """Map the bank and write ``map.parquet`` (entry x y cluster) and ``map.json`` into the recording.

    Args:
        run: the run that was recorded; none for models of other programs, whose entries are compared by usage.
        recording: folder of the finished recording.
        feature: one of ``SPACES``, or ``best``: all are tried.
        seed: of everything random; the same seed gives the same map.
        layer: use this memory layer alone; for all spaces but ``values``.
        settings: the other settings of the map; its seed is replaced by ``seed``.

    Returns:
        The contents of ``map.json``, without the hashes of files.

    Raises:
        InputError: the recording is of another run or unfinished, the feature or layer is unknown, fewer than ten
            entries have the feature, or entries are not finite.
    """
    settings = replace(settings or MapSettings(), seed=seed)
    info = read_info(recording)
    layers = _check(run, recording, info, feature, layer)
    choice = _choose(run, recording, info, feature, layers, settings, layer is None)
    bank_map = make_map(choice.space.vectors, settings, choice.trial.rows)
    why_not = why_not_trusted(bank_map.quality, choice.trial)
    places = _all_places(choice.space, bank_map, info.knowledge_num)
    cluster, names = _all_clusters(choice.space, bank_map, info.knowledge_num, trusted=not why_not)
    described = {
        "trusted": not why_not,
        "why_not": why_not,
        **_how_made(choice, layers, settings, bank_map, info.knowledge_num),
        **_quality(bank_map.quality, choice.trial),
        "clusters": _cluster_sizes(cluster, names),
    }
    columns = {
        "entry": np.arange(len(places), dtype=np.uint32),
        "x": places[:, 0],
        "y": places[:, 1],
        "cluster": cluster.astype(np.int32),
    }
    (recording / MAP_INFO).unlink(missing_ok=True)  # it vouches for the other file, so it is written last
    write_table(recording / MAP, columns)
    write_sealed(recording / MAP_INFO, described | {"files": hashes(recording, [MAP])})
    return described


class _Choice(NamedTuple):
    """The space to map."""

    feature: str
    space: Space
    trial: Trial
    tried: list[dict[str, Any]]
    """The spaces that were tried and how each did, for ``map.json``; empty where the caller named the feature."""


def _all_places(space: Space, bank_map: BankMap, n_entries: int) -> np.ndarray:
    """Places of all entries, float32 ``[N, 2]``; those without the feature stand apart."""
    apart = np.setdiff1d(np.arange(n_entries), space.entries, assume_unique=True)
    places = np.empty((n_entries, 2), np.float32)
    places[space.entries], places[apart] = bank_map.places, place_apart(bank_map.places, len(apart))
    return places


def _all_clusters(space: Space, bank_map: BankMap, n_entries: int, trusted: bool) -> tuple[np.ndarray, list[str]]:
    """Cluster of every entry, int64 ``[N]``, and the names of the clusters; entries that stand apart are the last."""
    if not trusted:
        return np.full(n_entries, NO_CLUSTER), []
    names = name_clusters(bank_map.cluster, space.weights, space.terms)
    cluster = np.full(n_entries, len(names))
    cluster[space.entries] = bank_map.cluster
    return cluster, names + [NEVER_SELECTED] * (len(space.entries) < n_entries)


def _how_made(
    choice: _Choice, layers: list[int], settings: MapSettings, bank_map: BankMap, n_entries: int
) -> dict[str, Any]:
    return {
        "feature": choice.feature,
        "chosen_among": choice.tried,
        "layers": layers,
        "seed": settings.seed,
        "n_neighbors": settings.n_neighbors,
        "min_dist": settings.min_dist,
        "metric": "cosine",
        "entries": n_entries,
        "placed": len(choice.space.entries),
        "fitted_on": bank_map.fitted_on,
    }


def _quality(quality: MapQuality, trial: Trial) -> dict[str, Any]:
    def of(layout: str) -> dict[str, float]:
        return {
            "trustworthiness": quality.trustworthiness[layout],
            "neighbours_kept": quality.neighbours_kept[layout],
        }

    return {
        **of("map"),
        "yardstick": {layout: of(layout) for layout in ("pca", "random")},
        "trial": trial.as_dict(),
        "measured_on": {"entries": quality.sample, "neighbours": quality.k, "apart_from_trial": quality.apart},
    }


def _cluster_sizes(cluster: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    sizes = np.bincount(cluster[cluster >= 0], minlength=len(names)).tolist()
    return [
        {"cluster": number, "size": size, "name": name}
        for number, (size, name) in enumerate(zip(sizes, names, strict=True))
    ]


def _choose(
    run: LoadedRun | None,
    recording: Path,
    info: RecordingInfo,
    feature: str,
    layers: list[int],
    settings: MapSettings,
    all_layers: bool,
) -> _Choice:
    """The space of the feature, or of all spaces the one whose trial ranks first."""
    if feature != BEST:
        space = make_space(run, recording, info, feature, layers, settings.seed)
        return _Choice(feature, space, try_map(space.vectors, settings), [])
    best: _Choice | None = None
    best_rank = -np.inf
    tried: list[dict[str, Any]] = []
    usable = [name for name in SPACES if (name != "values" or all_layers) and (run is not None or name in OF_USAGE)]
    for name in watched(usable, "comparing", "spaces"):
        try:
            space = make_space(run, recording, info, name, layers, settings.seed)
        except InputError as error:  # too few entries in use
            tried.append({"feature": name, "left_out": str(error)})
            continue
        trial = try_map(space.vectors, settings)
        rank = trial.gain * len(space.entries) / info.knowledge_num  # entries without a place gain nothing
        tried.append({"feature": name, "placed": len(space.entries), "rank": rank} | trial.as_dict())
        if best is None or rank > best_rank:
            best, best_rank = _Choice(name, space, trial, []), rank
    if best is None:  # every memory has values or keys
        raise InputError(f"{recording}: fewer than {MIN_ENTRIES} entries were selected, too few for a map")
    return best._replace(tried=tried)


def _check(run: LoadedRun | None, recording: Path, info: RecordingInfo, feature: str, layer: int | None) -> list[int]:
    """Refuse input that cannot be mapped; returns the memory layers that the feature is about."""
    if run is not None and run.fingerprint != info.fingerprint:
        raise InputError(
            f"{recording}: this is a recording of another model than {run.path} holds now; record that run again, or "
            "give the run that was recorded"
        )
    if not info.complete:
        raise InputError(f"{recording}: this recording is unfinished; run the same 'memscope record' command again")
    if feature not in FEATURES:
        raise InputError(f"unknown feature '{feature}'{did_you_mean(feature, FEATURES)}")
    if layer is None:
        return list(info.layers)
    if feature == "values":
        raise InputError("the values of entries belong to no layer: leave the layer out, or map another feature")
    info.expect_layers([layer])
    return [layer]
