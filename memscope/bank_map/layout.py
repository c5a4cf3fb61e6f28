"""Lay out entries on a plane: vectors -> places and clusters, and how far to trust the map. No torch.

    vectors [N, F] --exact nearest neighbours--> UMAP --> places [N, 2] --k-means--> clusters (named in
    bank_map/names.py)

UMAP (McInnes et al., arXiv 1802.03426) by cosine, seeded, from a PCA plane (as good a start as the spectral one for
global structure, Kobak and Linderman 2021, and it cannot hang on a graph in pieces). A bank of more than ``fit_on``
entries is laid out on a sample, and the others are placed by UMAP's transform. Neighbours are exact: descent found
75% of them in a bank of sentences, whose vectors fill nearly all of their dimensions.

UMAP draws neat islands of anything, so a map is checked. ``try_map`` maps a sample of entries, and the same sample with
every column shuffled over the entries: these vectors hold the same numbers, but their columns are unrelated (as in
parallel analysis, Horn 1965). ``why_not_trusted`` gives the reasons against a map.

Clusters are regions of the map, k-means on the places, and not groups found in the data. In a bank of 65,536 sentences
they kept more of an entry's neighbours together than k-means on the vectors (0.51 against 0.39, 48 clusters) and
agreed better with the sentences' predicates; HDBSCAN put 69% of that bank into one cluster, and takes time by the
square of N.
"""

import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from memscope.base.errors import InputError
from memscope.base.work import bar_options

MIN_ENTRIES = 10
"""Least number of entries of a map."""
_JUDGED = 4096
"""Entries that the quality of a map is measured on; the cost grows with the square."""
_TRIED = 2048
"""Entries that a space is tried on."""
LEAST_KEPT = 0.05
"""Share of nearest neighbours that a trusted map keeps beyond chance, at least."""
LEAST_GAIN = 0.03
"""A trusted map's trustworthiness in the trial exceeds that of shuffled vectors by at least this much, which is more
than random vectors of some hundred entries reach."""
_CHUNK = 8192
"""Entries placed at a time; up to 10,000 UMAP's transform takes 100 epochs, for more only 30."""


@dataclass(frozen=True)
class MapSettings:
    """Settings of a map."""

    seed: int = 0
    n_neighbors: int = 15
    """Neighbours that UMAP joins, the entry itself among them."""
    min_dist: float = 0.0
    """Least distance between places; 0 keeps the most neighbours."""
    n_clusters: int = 24
    """Clusters; fewer when they would hold less than ``MIN_ENTRIES`` each on average."""
    fit_on: int = 65_536
    """Entries that UMAP is fitted on; the others are placed among them."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed {self.seed}: choose one from 0 to {2**32 - 1}")
        for name, least in (("n_neighbors", 2), ("n_clusters", 1), ("fit_on", MIN_ENTRIES)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} is too small; choose at least {least}")
        if not 0 <= self.min_dist <= 1:
            raise InputError(f"min_dist={self.min_dist}: choose a number from 0 to 1")


class MapQuality(NamedTuple):
    """How much of the vectors' neighbourhoods a map keeps, beside a PCA plane and a random map."""

    sample: int
    """Entries measured on."""
    apart: bool
    """Whether none of them was in the trial."""
    k: int
    """Neighbours of each."""
    trustworthiness: dict[str, float]
    """Of ``map``, ``pca`` and ``random``: Venna and Kaski's measure within the sample (1 = every neighbour on the map
    is one among the vectors, about 0.5 = chance)."""
    neighbours_kept: dict[str, float]
    """For the same three: share of the k nearest of all entries that are among the k nearest on the map."""


class Trial(NamedTuple):
    """How well a sample of entries maps."""

    rows: np.ndarray
    """The sample, rising."""
    trustworthiness: dict[str, float]
    """Of ``map``, ``pca`` and ``shuffled``, the map of vectors without structure; within the sample."""
    neighbours_kept: dict[str, float]
    """Of the same three."""

    @property
    def gain(self) -> float:
        """Trustworthiness of the map above the better one of a PCA plane and of a map of shuffled vectors."""
        return self.trustworthiness["map"] - max(self.trustworthiness["pca"], self.trustworthiness["shuffled"])

    def as_dict(self) -> dict[str, Any]:
        """The trial as ``map.json`` holds it."""
        return {
            "entries": len(self.rows),
            "trustworthiness": self.trustworthiness,
            "neighbours_kept": self.neighbours_kept,
            "gain": self.gain,
        }


class BankMap(NamedTuple):
    """Places and clusters of entries."""

    places: np.ndarray
    """float32 ``[N, 2]``; UMAP's plane has no unit."""
    cluster: np.ndarray
    """int64 ``[N]``, numbered from the largest."""
    fitted_on: int
    """Entries that UMAP was fitted on."""
    quality: MapQuality


def try_map(vectors: np.ndarray, settings: MapSettings) -> Trial:
    """Map a seeded sample of entries, and the same sample without structure; at most half of them where that is enough.

    Raises:
        InputError: as ``make_map``.
    """
    unit = _checked(vectors)
    chance = np.random.default_rng(settings.seed)
    size = min(_TRIED, max(len(unit) // 2, min(len(unit), _TRIED // 8)))
    rows = np.sort(chance.choice(len(unit), size, replace=False))
    trust: dict[str, float] = {}
    kept: dict[str, float] = {}
    for name, sample in (("map", unit[rows]), ("shuffled", _without_structure(unit[rows], chance))):
        everyone = np.arange(size)
        plane = _plane(sample)
        quality = _judge(sample, _place(sample, everyone, plane, settings), plane, settings.seed, everyone)
        layouts = {"map": "map", "pca": "pca"} if name == "map" else {"shuffled": "map"}
        trust |= {new: quality.trustworthiness[old] for new, old in layouts.items()}
        kept |= {new: quality.neighbours_kept[old] for new, old in layouts.items()}
    return Trial(rows, trust, kept)


def why_not_trusted(quality: MapQuality, trial: Trial) -> list[str]:
    """The reasons not to trust a map, as sentences; none for a map to trust."""
    trust, kept = quality.trustworthiness, quality.neighbours_kept
    reasons = []
    if trust["map"] <= trust["pca"]:
        reasons.append(
            f"It shows neighbourhoods no better than a plane of two principal components: trustworthiness "
            f"{trust['map']:.3f} against {trust['pca']:.3f}."
        )
    if kept["map"] - kept["random"] < LEAST_KEPT:
        reasons.append(
            f"It keeps next to nothing of the true neighbours: {kept['map']:.1%} of them (chance level "
            f"{kept['random']:.1%})."
        )
    if trial.trustworthiness["map"] - trial.trustworthiness["shuffled"] < LEAST_GAIN:
        reasons.append(
            f"Vectors without any structure map as well: trustworthiness {trial.trustworthiness['map']:.3f} of "
            f"{len(trial.rows):,} entries, {trial.trustworthiness['shuffled']:.3f} of the same ones shuffled."
        )
    return reasons


def make_map(vectors: np.ndarray, settings: MapSettings, tried: np.ndarray | None = None) -> BankMap:
    """Lay out entries by the cosine of their vectors ``[N, F]``.

    Args:
        vectors: of the entries.
        settings: settings of the map.
        tried: entries of the trial; quality is measured on others where at least as many are left.

    Raises:
        InputError: there are fewer than ``MIN_ENTRIES`` entries, or vectors are not finite.
    """
    unit, n = _checked(vectors), len(vectors)
    chance = np.random.default_rng(settings.seed)
    fitted = np.arange(n) if n <= settings.fit_on else np.sort(chance.choice(n, settings.fit_on, replace=False))
    plane = _plane(unit[fitted])
    places = _draw_in(_place(unit, fitted, plane, settings, shown=True))
    untried = np.setdiff1d(np.arange(n), [] if tried is None else tried, assume_unique=True)
    apart = tried is not None and len(untried) >= len(tried)
    quality = _judge(unit, places, plane, settings.seed, untried if apart else np.arange(n))
    return BankMap(places, _cluster(places, settings), len(fitted), quality._replace(apart=apart))


def place_apart(places: np.ndarray, count: int) -> np.ndarray:
    """Places for ``count`` more entries that have no vector: a disc below the map, filled evenly, float32 ``[.., 2]``.

    The disc is Vogel's sunflower spiral, a fifth of the map's half width in radius.
    """
    low, high = places.min(0), places.max(0)
    radius = 0.2 * float((high - low).max()) / 2
    step = np.arange(count)
    angle, distance = step * np.pi * (3 - 5**0.5), radius * np.sqrt((step + 0.5) / max(1, count))
    center = np.array([(low[0] + high[0]) / 2, low[1] - 1.3 * radius])
    return (center + distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)).astype(np.float32)


def _checked(vectors: np.ndarray) -> np.ndarray:
    if len(vectors) < MIN_ENTRIES:
        raise InputError(f"{len(vectors)} entries are too few for a map; it takes at least {MIN_ENTRIES}")
    return _unit_rows(vectors)


def _plane(unit: np.ndarray) -> Any:
    with np.errstate(invalid="ignore"):  # entries that are all alike have no variance to explain
        return PCA(2, svd_solver="covariance_eigh").fit(unit)


def _without_structure(unit: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """The same vectors with each column shuffled over them, as unit rows."""
    return _unit_rows(chance.permuted(unit, axis=0))


def _unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32: their euclidean order is the order of cosines. Zero rows stay zero."""
    unit = vectors.astype(np.float32)
    if not np.isfinite(unit).all():
        raise InputError("entries hold numbers that are not finite: this model diverged; choose an earlier checkpoint")
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return unit if unit.shape[1] > 1 else np.pad(unit, ((0, 0), (0, 1)))  # a plane takes two columns


def _place(unit: np.ndarray, fitted: np.ndarray, plane: Any, settings: MapSettings, shown: bool = False) -> np.ndarray:
    """Places of all entries ``[N, 2]``: UMAP on the ``fitted`` ones, its transform for the rest."""
    umap = _load_umap()  # which takes seconds, so bad input is reported first
    n_neighbors = min(settings.n_neighbors, len(fitted) - 1)
    search = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(unit[fitted])
    distance, neighbor = search.kneighbors(n_neighbors=n_neighbors - 1)
    row = np.arange(len(fitted))[:, None]
    known = (np.hstack([row, neighbor]), np.hstack([np.zeros(row.shape), _exact(distance)]).astype(np.float32))
    start = plane.transform(unit[fitted])
    # Entries that are all alike would start in one point and never separate.
    start = start / max(float(start.std()), 1e-12) + np.random.default_rng(settings.seed).normal(0, 1e-4, start.shape)
    model = umap.UMAP(
        n_neighbors=n_neighbors,
        min_dist=settings.min_dist,
        metric="precomputed",  # the only metric whose transform takes known neighbours
        precomputed_knn=known,
        force_approximation_algorithm=True,  # otherwise a small bank ignores precomputed_knn
        init=start,
        random_state=settings.seed,
        transform_seed=settings.seed,
        n_jobs=1,  # implied by a seed: parallel layout is not repeatable
        tqdm_kwds=bar_options("laying out", "epochs", shown),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=UserWarning, module="umap"
        )  # it warns twice about precomputed neighbours
        model.fit(sparse.csr_matrix((len(fitted), len(fitted)), dtype=np.float32))  # only its shape is read
        places = np.empty((len(unit), 2), np.float32)
        places[fitted] = model.embedding_
        rest = np.setdiff1d(np.arange(len(unit)), fitted, assume_unique=True)
        for first in range(0, len(rest), _CHUNK):
            chunk = rest[first : first + _CHUNK]
            distance, neighbor = search.kneighbors(unit[chunk])
            offsets = np.arange(0, neighbor.size + 1, n_neighbors)
            values = _exact(distance).astype(np.float32).ravel()
            places[chunk] = model.transform(
                sparse.csr_matrix((values, neighbor.ravel(), offsets), shape=(len(chunk), len(fitted)))
            )
    return places


def _load_umap() -> Any:
    """The package ``umap``, without the functions that its neighbour search compiles when first imported.

    They take most of 20 seconds, and a map calls none of them: without a signature, numba compiles a function at its
    first call. UMAP's own functions keep theirs, which decide the type that its random numbers are rounded to; what is
    compiled of them is kept in files, as that of memscope's own loops is, so that the next process reads it.
    """

    def compile_at_first_call(function: Any = None, **options: Any) -> Any:
        return compile_now(function if callable(function) else None, **options)

    def compile_once(*arguments: Any, **options: Any) -> Any:
        return compile_now(*arguments, **{"cache": True} | options)

    numba: Any = import_module("numba")
    compile_now = numba.njit
    try:
        numba.njit = compile_at_first_call
        import pynndescent  # noqa: F401

        numba.njit = compile_once
        import umap
    finally:
        numba.njit = compile_now
    return umap


def _draw_in(places: np.ndarray) -> np.ndarray:
    """Move far islands nearer, so that they leave room for the rest of the map; their distance in UMAP has no meaning.

    Beyond the radius around the median that holds 90% of the entries, distance grows as its logarithm.
    """
    center = np.median(places, axis=0)
    radius = np.linalg.norm(places - center, axis=1, keepdims=True)
    bulk = max(float(np.quantile(radius, 0.9)), 1e-12)
    beyond = np.maximum(radius / bulk, 1)
    return np.asarray(center + (places - center) * (1 + np.log(beyond)) / beyond, np.float32)


def _exact(distance: np.ndarray) -> np.ndarray:
    """Distances with 0 between equal vectors, where rounding leaves up to 1e-3: UMAP scales by the first above 0."""
    return np.where(distance < 1e-3, 0.0, distance)


def _cluster(places: np.ndarray, settings: MapSettings) -> np.ndarray:
    count = min(settings.n_clusters, max(1, len(places) // MIN_ENTRIES))
    model = MiniBatchKMeans(count, random_state=settings.seed, n_init=10, batch_size=8192)
    cluster = model.fit_predict(places)
    by_size = np.argsort(-np.bincount(cluster, minlength=count), kind="stable")
    number = np.empty(count, np.int64)
    number[by_size] = np.arange(count)
    return number[cluster]


def _judge(unit: np.ndarray, places: np.ndarray, plane: Any, seed: int, among: np.ndarray) -> MapQuality:
    """Compare neighbours among the vectors with those on the map, on a seeded sample of the entries ``among``."""
    chance = np.random.default_rng(seed)
    n = len(unit)
    sample = chance.choice(among, min(len(among), _JUDGED), replace=False)
    k = min(15, (len(sample) - 1) // 2)  # trustworthiness is defined for k < n / 2
    layouts = {"map": places, "pca": plane.transform(unit), "random": chance.random((n, 2))}
    true = _nearest_others(unit, sample, k, "brute")
    trust, kept = {}, {}
    for name, layout in layouts.items():
        trust[name] = float(trustworthiness(unit[sample], layout[sample], n_neighbors=k))
        near = _nearest_others(layout, sample, k, "kd_tree")
        kept[name] = float((true[:, :, None] == near[:, None, :]).any(2).mean())
    return MapQuality(len(sample), False, k, trust, kept)


def _nearest_others(points: np.ndarray, rows: np.ndarray, k: int, algorithm: str) -> np.ndarray:
    """The k points nearest to each of ``rows``, itself left out, ``[row, k]``."""
    search = NearestNeighbors(n_neighbors=k + 1, algorithm=algorithm).fit(points)
    nearest = search.kneighbors(points[rows], return_distance=False)
    is_other = nearest != rows[:, None]
    is_other[is_other.all(1), -1] = False  # among equal points a point may not be its own neighbour
    return np.asarray(nearest[is_other].reshape(len(rows), k))
