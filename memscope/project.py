"""A map of a run's bank: entries near each other that are alike in a stated feature; ``map.parquet``, ``map.json``.

    write_map(load_run("runs/demo"), Path("recordings/demo"), feature="values")

``values``  the entry itself, mean over its slots: flattened, two sentences would be alike only where the same word
            stands in the same slot
``read``    what reading the entry adds to the residual stream, W_O W_V mean-slot as in the logit lens, of one memory
            layer or of all side by side
``usage``   the tokens on which the entry is selected, in one memory layer or in all: positive pointwise mutual
            information of entry and token, its leading singular vectors (latent semantic analysis)

Selections per layer would be no profile where most entries are used by one layer alone: all entries of a layer would
lie in one point. Entries that were never selected have no usage profile; they stand apart in a disc, as the last
cluster. ``bank_map.py`` makes the map from the features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from memscope.bank_map import MIN_ENTRIES, MapSettings, make_map, name_clusters, place_apart, text_weights
from memscope.checkpoint import LoadedRun
from memscope.errors import InputError
from memscope.parquet import matrix, read_parquet, write_table
from memscope.part_reader import read_columns
from memscope.seals import hashes, write_sealed
from memscope.store import RecordingInfo, read_info

FEATURES = ("values", "usage", "read")
MAP, MAP_INFO = "map.parquet", "map.json"
NEVER_SELECTED = "never selected"
_PROFILE_WIDTH = 64
"""Singular vectors of a usage profile."""


class Features(NamedTuple):
    """What entries are compared by, and what their clusters are named by."""

    entries: np.ndarray
    """Entries that have the feature, rising, ``[M]``."""
    vectors: np.ndarray
    """float32 ``[M, F]``."""
    weights: sparse.csr_matrix
    """Weight of every term in every entry, ``[M, term]``."""
    terms: list[str]


def write_map(
    run: LoadedRun,
    recording: Path,
    feature: str = "values",
    seed: int = 0,
    *,
    layer: int | None = None,
    settings: MapSettings | None = None,
) -> dict[str, Any]:
    """Map the bank and write ``map.parquet`` (entry x y cluster) and ``map.json`` into the recording.

    Args:
        run: the run that was recorded.
        recording: folder of the finished recording.
        feature: ``values``, ``usage`` or ``read``.
        seed: of everything random; the same seed gives the same map.
        layer: for ``usage`` and ``read``: this memory layer alone.
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
    features = _features(run, recording, info, feature, layers, seed)
    found = make_map(features.vectors, settings)
    names = name_clusters(found.cluster, features.weights, features.terms)
    apart = np.setdiff1d(np.arange(info.knowledge_num), features.entries, assume_unique=True)
    names += [NEVER_SELECTED] if len(apart) else []
    places = np.empty((info.knowledge_num, 2), np.float32)
    places[features.entries], places[apart] = found.places, place_apart(found.places, len(apart))
    cluster = np.full(info.knowledge_num, len(names) - 1)
    cluster[features.entries] = found.cluster
    sizes = np.bincount(cluster, minlength=len(names)).tolist()
    quality = found.quality
    said = {
        "feature": feature,
        "layers": layers,
        "seed": seed,
        "n_neighbors": settings.n_neighbors,
        "min_dist": settings.min_dist,
        "metric": "cosine",
        "entries": info.knowledge_num,
        "placed": len(features.entries),
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
        "measured_on": {"entries": quality.sample, "neighbours": quality.k},
        "clusters": [
            {"cluster": number, "size": size, "name": name}
            for number, (size, name) in enumerate(zip(sizes, names, strict=True))
        ],
    }
    columns = {
        "entry": np.arange(info.knowledge_num, dtype=np.uint32),
        "x": places[:, 0],
        "y": places[:, 1],
        "cluster": cluster.astype(np.uint16),
    }
    (recording / MAP_INFO).unlink(missing_ok=True)  # it vouches for the other file, so it comes last
    write_table(recording / MAP, columns)
    write_sealed(recording / MAP_INFO, said | {"files": hashes(recording, [MAP])})
    return said


def entry_values(run: LoadedRun) -> np.ndarray:
    """Entries now, mean over their slots, float32 ``[N, D]``."""
    assert run.model.bank is not None
    values: np.ndarray = run.model.bank.entries.detach().float().mean(1).cpu().numpy()
    return values


def read_outputs(run: LoadedRun, layers: Sequence[int]) -> np.ndarray:
    """Vectors with the inner products of what reading an entry adds in ``layers``, side by side: ``[N, D]``.

    The outputs are ``A e`` with A the stacked W_O W_V ``[layers * dim, D]``; with A = QR they have the lengths and
    angles of ``R e``, so that the wide vectors are never made.
    """
    maps = []
    for layer in layers:
        maps.append(run.model.memory_layer(layer).read.write_matrix.detach().float().cpu().numpy())
    return np.asarray(entry_values(run) @ np.linalg.qr(np.concatenate(maps)).R.T)


def token_counts(recording: Path, info: RecordingInfo, layers: Sequence[int], vocab_size: int) -> sparse.csr_matrix:
    """How often every entry was selected on every token of the vocabulary in ``layers``, float32 ``[N, vocab]``."""
    counts = sparse.csr_matrix((info.knowledge_num, vocab_size), dtype=np.float32)
    names = [f"l{layer}_indices" for layer in layers]
    for part in info.parts:
        table = read_columns(recording, info, part, ["token", *names])
        token = np.repeat(table["token"].to_numpy().astype(np.int64), info.selected)
        for name in names:
            entry = matrix(table[name]).ravel().astype(np.int64)
            pair, count = np.unique(entry * vocab_size + token, return_counts=True)
            place = (pair // vocab_size, pair % vocab_size)
            counts = counts + sparse.csr_matrix((count.astype(np.float32), place), shape=counts.shape)
    return counts


def usage_profiles(counts: sparse.csr_matrix, seed: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Positive pointwise mutual information of the rows and columns of ``counts``, and its leading singular vectors.

    ``max(0, ln(n_et n / (n_e n_t)))`` takes out how often an entry is selected and how common a token is (Bullinaria
    and Levy 2007). Vectors are float32 ``[M, 64]``, fewer where the counts are smaller.
    """
    pairs = counts.tocoo()
    by_entry, by_token = np.asarray(counts.sum(1)).ravel(), np.asarray(counts.sum(0)).ravel()
    ratio = pairs.data * (by_entry.sum() / by_entry[pairs.row] / by_token[pairs.col])
    weights = sparse.csr_matrix((np.log(np.maximum(ratio, 1)), (pairs.row, pairs.col)), shape=counts.shape)
    weights.eliminate_zeros()
    width = min(_PROFILE_WIDTH, *(side - 1 for side in counts.shape))
    return weights, TruncatedSVD(width, random_state=seed).fit_transform(weights).astype(np.float32)


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
        raise InputError("the values of entries belong to no layer: leave the layer out, or map 'usage' or 'read'")
    if layer not in info.layers:
        raise InputError(f"layer {layer} has no memory; memory layers are {', '.join(map(str, info.layers))}")
    return [layer]


def _features(
    run: LoadedRun, recording: Path, info: RecordingInfo, feature: str, layers: list[int], seed: int
) -> Features:
    if feature == "usage":
        return _usage_features(run, recording, info, layers, seed)
    vectors = entry_values(run) if feature == "values" else read_outputs(run, layers)
    return Features(np.arange(len(vectors)), vectors, *text_weights(_entry_texts(recording, info.knowledge_num)))


def _usage_features(run: LoadedRun, recording: Path, info: RecordingInfo, layers: list[int], seed: int) -> Features:
    """Clusters of usage are named by tokens: the init sentences of entries that are used alike need not be alike."""
    counts = token_counts(recording, info, layers, run.tokenizer.vocab_size)
    used = np.flatnonzero(np.diff(counts.indptr))
    if len(used) < MIN_ENTRIES:
        raise InputError(
            f"{recording}: only {len(used)} entries were selected, too few for a map of usage; map 'values' instead"
        )
    weights, vectors = usage_profiles(counts[used], seed)
    # A token may be a space, or a part of a character that has no text of its own: no name can be made of those.
    terms = ["" if "\N{REPLACEMENT CHARACTER}" in text else text.strip() for text in run.tokenizer.token_texts]
    return Features(used, vectors, weights, terms)


def _entry_texts(recording: Path, n_entries: int) -> list[str]:
    """Init sentence and the words that set every entry apart; empty for entries without either."""
    texts = [text or "" for text in read_parquet(recording / "bank_init.parquet", ["sentence"])["sentence"].to_pylist()]
    apart = read_parquet(recording / "titles.parquet", ["entry", "words"]).to_pydict()
    for entry, words in zip(apart["entry"], apart["words"], strict=True):
        texts[entry] += f" {words or ''}"
    assert len(texts) == n_entries
    return texts
