"""Labels of bank entries: what their init sentences are about, how long they are, how common their words are.

    labels = entry_labels(bank, token_frequency)  # bank: bank_init.parquet as a table

``census/preference.py`` asks whether the gate prefers entries by these labels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array, csr_array, vstack

from memscope.base.errors import InputError

N_BUCKETS = 5
"""Quantile buckets of a numeric attribute."""
SEVERAL_KINDS = "several kinds"
"""Subject type of properties whose subjects may be of more than one type."""
SUBJECT_TYPES = {
    # 28 relations of the T-REx file of the founding experiment
    "country of citizenship": "person",  # P27
    "employer": "person",  # P108
    "field of work": "person",  # P101
    "instrument": "person",  # P1303
    "languages spoken, written or signed": "person",  # P1412
    "native language": "person",  # P103
    "occupation": "person",  # P106
    "place of birth": "person",  # P19
    "place of death": "person",  # P20
    "position held": "person",  # P39
    "position played on team / speciality": "person",  # P413
    "work location": "person",  # P937
    "headquarters location": "organisation",  # P159
    "location of formation": "organisation",  # P740
    "country of origin": "work",  # P495
    "language of work or name": "work",  # P407
    "original language of film or TV show": "work",  # P364
    "original network": "work",  # P449
    "developer": "product",  # P178
    "manufacturer": "product",  # P176
    "genre": SEVERAL_KINDS,  # P136: works, musicians
    "has part": SEVERAL_KINDS,  # P527
    "instance of": SEVERAL_KINDS,  # P31
    "member of": SEVERAL_KINDS,  # P463: persons, organisations, countries
    "named after": SEVERAL_KINDS,  # P138
    "owned by": SEVERAL_KINDS,  # P127
    "record label": SEVERAL_KINDS,  # P264: musicians, ensembles, recordings
    "religion": SEVERAL_KINDS,  # P140: persons, organisations, buildings
    # the other 13 relations of LAMA (arXiv 1909.01066)
    "capital": "place",  # P36
    "capital of": "place",  # P1376
    "continent": "place",  # P30
    "diplomatic relation": "place",  # P530
    "located in the administrative territorial entity": "place",  # P131
    "official language": "place",  # P37
    "shares border with": "place",  # P47
    "twinned administrative body": "place",  # P190
    "applies to jurisdiction": SEVERAL_KINDS,  # P1001
    "country": SEVERAL_KINDS,  # P17
    "location": SEVERAL_KINDS,  # P276
    "part of": SEVERAL_KINDS,  # P361
    "subclass of": SEVERAL_KINDS,  # P279
}
"""Type of a relation's subject: Wikidata's subject type constraint of the property (Q21503250), coarsened by hand.

T-REx does not say what its subjects are. Where a constraint admits several types, none is guessed.
"""


class EntryLabels(NamedTuple):
    """Which entry has which label. Labels of one attribute stand together; an entry may have several of them, or none.

    Three parallel lists, one item or row per label.
    """

    attribute: list[str]
    label: list[str]
    members: csr_array
    """int64 ``[label, entry]``: 1 where the entry has the label."""

    def among(self, entries: slice) -> "EntryLabels":
        """The labels of some entries alone."""
        return self._replace(members=self.members[:, entries])


def entry_labels(bank: pd.DataFrame, token_frequency: np.ndarray) -> EntryLabels:
    """Labels that the init sentences give to the entries of a bank.

    ``predicate``: relations of its triples. ``subject type``: types of their subjects (``SUBJECT_TYPES``), 'unknown'
    for other relations. ``sentence length``: tokens. ``token frequency``: geometric mean over its tokens of how often
    the token occurs in a million of the corpus, every token counted once more than seen. ``origin``: sentence or
    random, when there are both. The numeric ones are cut at quantiles, and equal values stay together.

    Args:
        bank: columns entry, token_ids and predicate (lists; null where the entry started random).
        token_frequency: occurrences of every token id in the recorded corpus, ``[vocab]``.

    Raises:
        InputError: entries that are not 0 to N - 1, or token ids beyond the vocabulary.
    """
    n = len(bank)
    bank = bank.set_index("entry").sort_index()
    if not np.array_equal(bank.index, np.arange(n)):
        raise InputError(f"the bank's init table: its {n} entries are not numbered 0 to {n - 1}; record the run again")
    ids = bank["token_ids"].dropna()
    length = ids.map(len)
    ids, length = ids[length > 0], length[length > 0]
    predicate = bank["predicate"].explode().dropna()
    predicate = predicate[predicate != ""]
    origin = pd.Series(np.where(bank.index.isin(ids.index), "sentence", "random"), bank.index)
    attributes = {
        "predicate": _by_name(predicate),
        "subject type": _by_name(predicate.map(SUBJECT_TYPES).fillna("unknown")),
        "sentence length": _by_quantile(length, "tokens", str),
        "token frequency": _by_quantile(_mean_frequency(ids, length, token_frequency), "per million", _three_digits),
        "origin": _by_name(origin if origin.nunique() > 1 else origin[:0]),
    }
    return EntryLabels(
        [attribute for attribute, (names, _) in attributes.items() for _ in names],
        [name for names, _ in attributes.values() for name in names],
        csr_array(vstack([_members(codes, len(names), n) for names, codes in attributes.values()])),
    )


class _Codes(NamedTuple):
    names: list[str]
    """Of the labels."""
    label_of: pd.Series
    """Number of a label, by entry; an entry may occur several times."""


def _by_name(values: pd.Series) -> _Codes:
    codes, names = pd.factorize(values, sort=True)
    return _Codes([str(name) for name in names], pd.Series(codes, values.index))


def _by_quantile(values: pd.Series, unit: str, show: Callable[[float], str]) -> _Codes:
    if values.empty:
        return _Codes([], values)
    ordered, number = np.sort(values), np.arange(1, N_BUCKETS)
    last = -(-number * len(ordered) // N_BUCKETS) - 1  # of a bucket, which so ends at a value that occurs
    codes, _ = pd.factorize(np.searchsorted(ordered[last], values), sort=True)
    ends = values.groupby(codes).agg(["min", "max"])
    texts = [(show(low), show(high)) for low, high in ends.to_numpy()]
    names = [f"{low} {unit}" if low == high else f"{low} to {high} {unit}" for low, high in texts]
    return _Codes(names, pd.Series(codes, values.index))


def _three_digits(value: float) -> str:
    return np.format_float_positional(value, precision=3, unique=False, fractional=False, trim="-")


def _mean_frequency(ids: pd.Series, length: pd.Series, token_frequency: np.ndarray) -> pd.Series:
    if ids.empty:
        return pd.Series(dtype=float)
    flat = np.concatenate(ids.to_list())
    if flat.max() >= len(token_frequency):
        raise InputError(
            f"the bank's init table has token id {flat.max()}, the vocabulary ends at {len(token_frequency) - 1}; "
            "the tokenizer is not the one that the bank was made with"
        )
    smoothed = token_frequency + 1.0
    logs = np.log(smoothed / smoothed.sum() * 1e6)
    starts = np.cumsum(length) - length
    means = np.add.reduceat(logs[flat], starts.to_numpy()) / length.to_numpy()
    return pd.Series(np.exp(means.round(9)), ids.index)  # equal up to rounding is equal


def _members(label_of: pd.Series, n_labels: int, n_entries: int) -> csr_array:
    ones = np.ones(len(label_of), np.int64)
    place = label_of.to_numpy(np.int64), label_of.index.to_numpy(np.int64)
    members = coo_array((ones, place), shape=(n_labels, n_entries)).tocsr()
    members.data[:] = 1  # two triples of one relation make one label
    return members
