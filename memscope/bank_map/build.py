"""A map of a run's bank: entries near each other that are alike in a stated space; ``map.parquet``, ``map.json``.

    write_map(load_run("runs/demo"), Path("recordings/demo"))                     # in the space that maps best
    write_map(load_run("runs/demo"), Path("recordings/demo"), feature="values")

``bank_map/spaces.py`` makes the spaces, ``bank_map/layout.py`` the map. Every space is first tried on a sample of
entries. Without a ``feature`` the one whose trial ranks first is mapped, and the numbers in ``map.json`` are taken on
other entries than the trial's wherever there are enough of them. Entries that were never selected have no usage to be
compared by; they stand apart in a disc.

A map is trusted when it keeps neighbours, keeps them better than a PCA plane, and does so better than for vectors
whose columns have nothing in common. Where it is not, it has no clusters and ``why_not`` says why.
"""

from pathlib import Path
from typing import Any

import numpy as np

from memscope.bank_map.layout import MapSettings, Trial, make_map, place_apart, try_map, why_not_trusted
from memscope.bank_map.names import name_clusters
from memscope.bank_map.spaces import SPACES, Space, make_space
from memscope.base.errors import InputError
from memscope.base.parquet import write_table
from memscope.base.seals import hashes, write_sealed
from memscope.recording.info import RecordingInfo, read_info
from memscope.run.checkpoint import LoadedRun

BEST = "best"
FEATURES = (BEST, *SPACES)
MAP, MAP_INFO = "map.parquet", "map.json"
NEVER_SELECTED = "never selected"
NO_CLUSTER = -1
"""Cluster of all entries on a map that is not trusted."""


def write_map(
    run: LoadedRun,
    recording: Path,
    feature: str = BEST,
    seed: int = 0,
    *,
    layer: int | None = None,
    settings: MapSettings | None = None,
) -> dict[str, Any]:
    """Map the bank and write ``map.parquet`` (entry x y cluster) and ``map.json`` into the recording.

    Args:
        run: the run that was recorded.
        recording: folder of the finished recording.
        feature: one of ``SPACES``, or ``best``: all are tried.
        seed: of everything random; the same seed gives the same map.
        layer: this memory layer alone, for all spaces but ``values``.
        settings: the map's other settings; its seed gives way to ``seed``.

    Returns:
        What ``map.json`` says.

    Raises:
        InputError: another run than was recorded, an unfinished recording, an unknown feature or layer, fewer than
            ten entries that have the feature, or entries that are not finite.
    """
    settings = MapSettings(**{**vars(settings or MapSettings()), "seed": seed})
    info = read_info(recording)
    layers = _check(run, recording, info, feature, layer)
    feature, space, trial, tried = _choose(run, recording, info, feature, layers, settings, layer is None)
    found = make_map(space.vectors, settings, trial.rows)
    why_not = why_not_trusted(found.quality, trial)
    clusters = np.full(len(space.entries), NO_CLUSTER) if why_not else found.cluster
    names = [] if why_not else name_clusters(clusters, space.weights, space.terms)
    apart = np.setdiff1d(np.arange(info.knowledge_num), space.entries, assume_unique=True)
    names += [NEVER_SELECTED] if len(apart) and not why_not else []
    places = np.empty((info.knowledge_num, 2), np.float32)
    places[space.entries], places[apart] = found.places, place_apart(found.places, len(apart))
    cluster = np.full(info.knowledge_num, len(names) - 1)  # of those that stand apart; without names no cluster at all
    cluster[space.entries] = clusters
    sizes = np.bincount(cluster[cluster >= 0], minlength=len(names)).tolist()
    quality = found.quality
    said = {
        "trusted": not why_not,
        "why_not": why_not,
        "feature": feature,
        "chosen_among": tried,
        "layers": layers,
        "seed": seed,
        "n_neighbors": settings.n_neighbors,
        "min_dist": settings.min_dist,
        "metric": "cosine",
        "entries": info.knowledge_num,
        "placed": len(space.entries),
        "fitted_on": found.fitted_on,
        "trustworthiness": quality.trustworthiness["map"],
        "neighbours_kept": quality.neighbours_kept["map"],
        "yardstick": {
            other: {
                "trustworthiness": quality.trustworthiness[other],
                "neighbours_kept": quality.neighbours_kept[other],
            }
            for other in ("pca", "random")
        },
        "trial": trial.said(),
        "measured_on": {"entries": quality.sample, "neighbours": quality.k, "apart_from_trial": quality.apart},
        "clusters": [
            {"cluster": number, "size": size, "name": name}
            for number, (size, name) in enumerate(zip(sizes, names, strict=True))
        ],
    }
    columns = {
        "entry": np.arange(info.knowledge_num, dtype=np.uint32),
        "x": places[:, 0],
        "y": places[:, 1],
        "cluster": cluster.astype(np.int32),
    }
    (recording / MAP_INFO).unlink(missing_ok=True)  # it vouches for the other file, so it comes last
    write_table(recording / MAP, columns)
    write_sealed(recording / MAP_INFO, said | {"files": hashes(recording, [MAP])})
    return said


def _choose(
    run: LoadedRun,
    recording: Path,
    info: RecordingInfo,
    feature: str,
    layers: list[int],
    settings: MapSettings,
    all_layers: bool,
) -> tuple[str, Space, Trial, list[dict[str, Any]]]:
    """The space to map with its trial, and what is said of all that were tried."""
    if feature != BEST:
        space = make_space(run, recording, info, feature, layers, settings.seed)
        return feature, space, try_map(space.vectors, settings), []
    best: tuple[float, str, Space, Trial] | None = None
    tried: list[dict[str, Any]] = []
    for name in SPACES:
        if name == "values" and not all_layers:
            continue
        try:
            space = make_space(run, recording, info, name, layers, settings.seed)
        except InputError as error:  # too few entries in use
            tried.append({"feature": name, "left_out": str(error)})
            continue
        trial = try_map(space.vectors, settings)
        rank = trial.gain * len(space.entries) / info.knowledge_num  # entries without a place gain nothing
        tried.append({"feature": name, "placed": len(space.entries), "rank": rank} | trial.said())
        if best is None or rank > best[0]:
            best = rank, name, space, trial
    assert best is not None  # values or keys are there for every bank
    return best[1], best[2], best[3], tried


def _check(run: LoadedRun, recording: Path, info: RecordingInfo, feature: str, layer: int | None) -> list[int]:
    """Refuse what cannot be mapped; returns the memory layers that the feature is about."""
    if run.fingerprint != info.fingerprint:
        raise InputError(
            f"{recording}: is a recording of another model than {run.path} holds now; record that run again or give "
            "the run it was made from"
        )
    if not info.complete:
        raise InputError(f"{recording}: this recording is unfinished; run the same 'memscope record' command again")
    if feature not in FEATURES:
        raise InputError(f"unknown feature '{feature}'; known are {', '.join(FEATURES)}")
    if layer is None:
        return list(info.layers)
    if feature == "values":
        raise InputError("the values of entries belong to no layer: leave the layer out, or map another feature")
    if layer not in info.layers:
        raise InputError(f"layer {layer} has no memory; memory layers are {', '.join(map(str, info.layers))}")
    return [layer]
