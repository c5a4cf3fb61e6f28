"""Specialisation by domain: which entries the documents of a group select more than the other documents do.

    domain_lift(recording, layer)         # one row per group and entry, with interval and q
    domain_divergence(recording, layer)   # one row per group, beside the same documents dealt at random

A domain is the corpus' ``group``. As in OLMoE (Muennighoff et al. 2024, arXiv 2409.02060) the share of a domain's
selections that go to an expert is set against its share elsewhere. Here each lift has an interval over documents, a
p-value corrected for all groups and entries of the layer, and a control: the same with documents dealt to groups at
random, in which there should be no discovery.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import false_discovery_control, t

from memscope.query.recording import Recording
from memscope.routing.rows import count_pairs, layer_rows, once, routed_site
from memscope.stats.jackknife import Jackknife

FOLDS = 20
"""Most folds of a group's documents."""
FALSE_DISCOVERY_RATE = 0.05
LEAST = 20
"""Selections of an entry in a group, expected from its share elsewhere, from which on its lift is tested."""
SHUFFLES = 200
COLUMNS = ["group", "entry", "selections", "share", "elsewhere", "lift", "low", "high", "p", "q", "control_q"]
"""Columns of ``domain_lift``."""


class _Documents(NamedTuple):
    groups: list[str]
    group: np.ndarray
    """Of every document, int64 ``[doc]``."""
    counts: np.ndarray
    """Selections per document and entry, ``[doc, entry]``."""


@once
def domain_lift(recording: Recording, layer: int) -> pd.DataFrame:
    """Lift of every entry in every group of documents.

    Returns ``group entry selections share elsewhere lift low high p q control_q``, entries counted from 0 in the layer,
    empty for a corpus without groups. ``lift`` is ``share / elsewhere``, 1 by chance. ``low`` and ``high`` are its 95%
    interval over documents (jackknife of the log), NaN where a fold has none. ``q`` is p adjusted for all tests of the
    layer (Benjamini-Hochberg), NaN where too few selections were expected to test.

    Example:
        >>> domain_lift(recording, layer=0).sort_values("q").head()
    """
    documents = _documents(recording, layer)
    if len(documents.groups) < 2:
        return pd.DataFrame(columns=COLUMNS)
    found = _lifts(documents, documents.group)
    dealt = np.random.default_rng(0).permutation(documents.group)
    return found.assign(control_q=_lifts(documents, dealt)["q"])


def domain_divergence(recording: Recording, layer: int) -> pd.DataFrame:
    """How far the selections of each group are from those of the other documents, in nats.

    Returns ``group documents selections divergence chance chance_high p``: the Jensen-Shannon divergence, the mean and
    the 95% quantile of the same when documents are dealt to groups at random, and the p-value of that permutation test.

    Example:
        >>> domain_divergence(recording, layer=0)[["group", "divergence", "chance_high", "p"]]
    """
    documents = _documents(recording, layer)
    chance, n_groups = np.random.default_rng(0), len(documents.groups)
    if n_groups < 2:
        return pd.DataFrame(columns=["group", "documents", "selections", "divergence", "chance", "chance_high", "p"])
    real = _divergences(documents.counts, documents.group, n_groups)
    dealt = np.stack(
        [_divergences(documents.counts, chance.permutation(documents.group), n_groups) for _ in range(SHUFFLES)]
    )
    return pd.DataFrame(
        {
            "group": documents.groups,
            "documents": np.bincount(documents.group, minlength=n_groups),
            "selections": [int(documents.counts[documents.group == g].sum()) for g in range(n_groups)],
            "divergence": real,
            "chance": dealt.mean(0),
            "chance_high": np.quantile(dealt, 0.95, axis=0),
            "p": (1 + (dealt >= real).sum(0)) / (1 + SHUFFLES),
        }
    )


def _documents(recording: Recording, layer: int) -> _Documents:
    site, names = routed_site(recording, layer), recording.documents["group"].fillna("")
    groups = sorted(set(names))
    counts = np.zeros((len(names), site.entries), np.int64)
    for rows in layer_rows(recording, layer):
        low = int(rows.doc[0])
        part = count_pairs(rows.doc - low, rows.entries, int(rows.doc[-1]) - low + 1, site.entries)
        counts[low : low + len(part)] += part
    return _Documents(groups, names.map({name: i for i, name in enumerate(groups)}).to_numpy(np.int64), counts)


def _sums(counts: np.ndarray, label: np.ndarray, n_labels: int) -> np.ndarray:
    """Rows of ``counts`` added up by label, ``[label, entry]``."""
    dealt = sparse.csr_matrix((np.ones(len(label)), (label, np.arange(len(label)))), shape=(n_labels, len(label)))
    return np.asarray(dealt @ counts)


def _lifts(documents: _Documents, group: np.ndarray) -> pd.DataFrame:
    tables = []
    for number, name in enumerate(documents.groups):
        own = group == number
        fold = np.empty(len(group), np.int64)  # folds of the group, then those of the others
        n_own = min(FOLDS, int(own.sum()))
        n_others = min(FOLDS, int((~own).sum()))
        fold[own] = np.arange(own.sum()) % max(n_own, 1)
        fold[~own] = n_own + np.arange((~own).sum()) % max(n_others, 1)
        sums = _sums(documents.counts, fold, n_own + n_others)
        tables.append(_lift_table(name, sums[:n_own], sums[n_own:]))
    table = pd.concat(tables, ignore_index=True)
    tested = table["p"].notna().to_numpy()
    q = np.full(len(table), np.nan)
    if tested.any():
        q[tested] = false_discovery_control(table["p"].to_numpy()[tested])
    return table.assign(q=q)


def _lift_table(name: str, own: np.ndarray, others: np.ndarray) -> pd.DataFrame:
    """Lifts of one group, from selections per fold and entry of its documents and of the others."""
    n = own.shape[1]
    share, elsewhere = own.sum(0) / max(own.sum(), 1), others.sum(0) / max(others.sum(), 1)
    lift = np.divide(share, elsewhere, out=np.full(n, np.nan), where=elsewhere > 0)
    errors = [_log_share_errors(folds) for folds in (own, others)]
    error = np.hypot(*errors)
    tested = (own.sum() * elsewhere >= LEAST) & (share > 0) & (error > 0)
    log = np.log(lift, out=np.full(n, np.nan), where=lift > 0)
    df = max(min(len(own), len(others)) - 1, 1)
    half = t.isf(0.025, df) * error
    return pd.DataFrame(
        {
            "group": name,
            "entry": np.arange(n),
            "selections": own.sum(0),
            "share": share,
            "elsewhere": elsewhere,
            "lift": lift,
            "low": np.exp(log - half),
            "high": np.exp(log + half),
            "p": np.where(tested, 2 * t.sf(np.abs(log) / np.where(tested, error, 1), df), np.nan),
        }
    )


def _log_share_errors(folds: np.ndarray) -> np.ndarray:
    """Jackknife errors of the log of each entry's share, of selections per fold and entry; NaN where not known."""
    spread = Jackknife(folds.sum(1))
    if not spread.known:
        return np.full(folds.shape[1], np.nan)
    left = spread.without(folds)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log(folds.sum(0) / folds.sum())
        without = np.log(left / left.sum(1, keepdims=True))
        return np.where(np.isfinite(without).all(0) & np.isfinite(value), spread.errors(value, without), np.nan)


def _divergences(counts: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Jensen-Shannon divergence of every group's shares from those of all others, nats ``[group]``."""
    sums = _sums(counts, group, n_groups)
    p = sums / np.maximum(sums.sum(1, keepdims=True), 1)
    others = sums.sum(0) - sums
    q = others / np.maximum(others.sum(1, keepdims=True), 1)
    middle = (p + q) / 2

    def kl(shares: np.ndarray) -> np.ndarray:
        ratio = np.divide(shares, middle, out=np.ones_like(shares), where=shares > 0)
        return np.asarray((shares * np.log(ratio)).sum(1))

    return (kl(p) + kl(q)) / 2
