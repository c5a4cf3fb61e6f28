"""The tables of a fact audit: which questions select the entries that state their fact, compared with chance.

    audit = load_audit(Path("recordings/demo"))
    audit.recall         # per layer: recall at the asked token and in the whole question, and three kinds of chance
    audit.predicates     # per predicate
    audit.summary        # plain numbers

Usage is uneven, and an entry that every question selects is recalled without any knowledge. So chance has three forms.
**even**: the same number of selections, spread evenly over the bank. **shuffled**: every question is tested for the
entries of another fact. **same predicate**: for those of another fact of its predicate, so that more than "this is a
birthplace" must be known. No question is tested for its fact or one that shares an entry with it; in a predicate of
two facts, half of the plain permutations would do so. No torch: ``causal/facts.py`` runs the model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import sparse

from memscope.base.errors import InputError
from memscope.base.parquet import read_parquet, write_table
from memscope.base.seals import hashes, read_vouching, write_sealed
from memscope.config.memory import reachable_entries
from memscope.stats.jackknife import ratio_interval
from memscope.stats.usage import UNREAD_SHARE

FACTS, SUMMARY = "facts.parquet", "facts.json"
FORMAT = 2
N_SHUFFLES = 200
_TRADES = 50
"""Rounds in which questions exchange facts; one or two are enough except for the smallest groups."""
ANY = -1
"""Stands for any layer in the table of recall."""


@dataclass(frozen=True)
class FactAudit:
    """The result of asking facts."""

    facts: pd.DataFrame
    """One row per fact, see docs/reference/files.md."""
    recall: pd.DataFrame
    """``layer place facts recall even shuffled p same_predicate p_same``; layer -1 means any. ``facts_same`` of them
    have another fact of their predicate, and ``recall_same`` is theirs, to be set against ``same_predicate``."""
    predicates: pd.DataFrame
    """One row per predicate."""
    summary: dict[str, Any]
    """Plain numbers."""


class Questions:
    """Entries that every question selects per layer, sorted for look-ups: at the asked token, and at all after bos."""

    def __init__(
        self, layers: tuple[int, ...], n_questions: int, n_entries: int, entries: list[np.ndarray], groups: int = 1
    ):
        self.layers, self.n_questions, self.n_entries, self.groups = layers, n_questions, n_entries, groups
        self.group_size = n_entries // groups
        self.entries = entries
        """Per question the entries that state its fact."""
        self.read = np.zeros((n_questions, len(layers)))
        """Read weight of those entries at the asked token, ``[question, layer]``."""
        self.read_share = np.zeros((n_questions, len(layers)))
        """Their share of the token's read in the layer, by absolute read weights."""
        self.asked: dict[int, np.ndarray] = {}
        """Sorted ``question * N + entry`` per layer."""
        self.anywhere: dict[int, np.ndarray] = {}
        self._keys: dict[tuple[str, int], list[np.ndarray]] = {}

    def add(self, layer: int, rows: np.ndarray, lengths: np.ndarray, indices: np.ndarray, read: np.ndarray) -> None:
        """Selections and read weights of a batch of questions in a layer, each ``[batch, pos, K]``."""
        keys = rows[:, None, None] * self.n_entries + indices.astype(np.int64)
        pos = np.arange(indices.shape[1])[None]
        real = (pos > 0) & (pos < lengths[:, None])
        last = (np.arange(len(rows)), lengths - 1)
        self._keys.setdefault(("asked", layer), []).append(keys[last].ravel())
        self._keys.setdefault(("anywhere", layer), []).append(keys[real].ravel())
        axis = self.layers.index(layer)
        for row, chosen, weights in zip(rows, indices[last], read[last], strict=True):
            stating = np.isin(chosen, self.entries[row])
            self.read[row, axis] = weights[stating].sum()
            self.read_share[row, axis] = np.abs(weights[stating]).sum() / max(np.abs(weights).sum(), 1e-12)

    def finish(self) -> "Questions":
        """Sort the selections that were added; call once, at the end."""
        every = np.sort(
            np.concatenate([part for (kind, _), parts in self._keys.items() if kind == "anywhere" for part in parts])
        )
        for layer in self.layers:
            self.asked[layer] = np.unique(np.concatenate(self._keys["asked", layer]))
            self.anywhere[layer] = np.unique(np.concatenate(self._keys["anywhere", layer]))
        self._keys.clear()
        keys, self._counts = np.unique(every, return_counts=True)
        self._first = np.searchsorted(keys, np.arange(self.n_questions + 1) * self.n_entries)
        self._entries = keys % self.n_entries
        return self

    def selected(self, row: int) -> np.ndarray:
        """Entries that a question selects in some layer, rising."""
        return self._entries[self._first[row] : self._first[row + 1]]

    def selected_with_counts(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """``selected``, with the number of selections in the question, over layers and positions."""
        part = slice(self._first[row], self._first[row + 1])
        return self._entries[part], self._counts[part]

    def usage(self) -> np.ndarray:
        """Selections of every entry over all questions, int64 ``[N]``."""
        return np.bincount(self._entries, weights=self._counts, minlength=self.n_entries).astype(np.int64)


def summarise(table: pd.DataFrame, questions: Questions, seed: int) -> FactAudit:
    """Recall against chance, effects by predicate, and the numbers in short.

    Args:
        table: one row per fact, with answers and ablations (``facts.audit_facts``).
        questions: the selections of the questions.
        seed: of shuffles.
    """
    stated = np.flatnonzero(table["n_entries"].to_numpy() > 0)
    hits = {where: _hits(questions, stated, where) for where in ("asked", "anywhere")}
    for where, hit in hits.items():
        for axis, layer in enumerate(questions.layers):
            column = np.zeros(len(table), bool)
            column[stated] = hit[axis]
            table[f"l{layer}_{where}"] = column
        table[where] = table[[f"l{layer}_{where}" for layer in questions.layers]].any(axis=1)
    table["read"], table["read_share"] = questions.read.sum(1), questions.read_share.max(1)
    for name in ("own", "control"):
        table[f"drop_{name}"] = table["logit"] - table[f"logit_{name}"]
        table[f"logprob_drop_{name}"] = table["logprob"] - table[f"logprob_{name}"]
    recall = _recall_table(table, questions, stated, seed)
    predicates = _predicate_table(table)
    return FactAudit(table, recall, predicates, _summary(table, recall))


def write_audit(audit: FactAudit, folder: Path) -> list[Path]:
    """Write ``facts.parquet`` and ``facts.json`` into a folder; a recording's report and app show them."""
    (folder / SUMMARY).unlink(missing_ok=True)  # it vouches for the other file, so it is written last
    write_table(folder / FACTS, pa.Table.from_pandas(audit.facts, preserve_index=False))
    tables = {"recall": audit.recall, "predicates": audit.predicates}
    rows = {name: frame.astype(object).where(frame.notna(), None).to_dict("records") for name, frame in tables.items()}
    content = {"format": FORMAT, "summary": audit.summary, **rows, "files": hashes(folder, [FACTS])}
    write_sealed(folder / SUMMARY, content)
    return [folder / FACTS, folder / SUMMARY]


def load_audit(folder: Path) -> FactAudit | None:
    """The audit in a folder, none where there is none; ``InputError`` if it is damaged or of another version."""
    if not (folder / SUMMARY).is_file():
        return None
    raw = read_vouching(folder / SUMMARY, "run memscope facts again")
    if raw.get("format") != FORMAT:
        raise InputError(f"{folder / SUMMARY}: written by another version of memscope; run memscope facts again")
    facts = read_parquet(folder / FACTS).to_pandas()
    return FactAudit(facts, pd.DataFrame(raw["recall"]), pd.DataFrame(raw["predicates"]), raw["summary"])


def _hits(questions: Questions, stated: np.ndarray, where: str, source: np.ndarray | None = None) -> np.ndarray:
    """Whether each question selects an entry of the fact ``source`` (default: its fact), bool ``[layer, question]``.

    Equivalent to ``any(entry in selected[layer, question] for entry in entries[source])``.
    """
    source = stated if source is None else source
    sizes = np.array([len(questions.entries[fact]) for fact in source])
    entry = np.concatenate([questions.entries[fact] for fact in source])
    asking = np.repeat(np.arange(len(stated)), sizes)
    keys = stated[asking] * questions.n_entries + entry
    hits = np.zeros((len(questions.layers), len(stated)), bool)
    for axis, layer in enumerate(questions.layers):
        known = getattr(questions, where)[layer]
        at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        hits[axis, asking[known[at] == keys]] = True
    return hits


def _recall_table(table: pd.DataFrame, questions: Questions, stated: np.ndarray, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    overlap = _overlap(questions, stated)
    everything = np.zeros(len(stated), np.int64)
    predicate = pd.factorize(table["predicate"].to_numpy()[stated])[0]
    shuffles = {
        name: _Others(overlap, group) for name, group in (("shuffled", everything), ("same_predicate", predicate))
    }
    rows = []
    for where in ("asked", "anywhere"):
        true = _with_any(_hits(questions, stated, where))
        even = _even_recall(questions, stated, where)
        chance = {name: _chance(questions, stated, where, shuffle, rng) for name, shuffle in shuffles.items()}
        for axis, layer in enumerate([*questions.layers, ANY]):
            row: dict[str, Any] = {
                "layer": layer,
                "place": where,
                "facts": len(stated),
                "recall": float(true[axis].mean()),
            }
            row["even"] = float(even[axis])
            for name, p in (("shuffled", "p"), ("same_predicate", "p_same")):
                has = shuffles[name].exist
                recall = float(true[axis, has].mean()) if has.any() else None
                draws = chance[name][:, axis]
                row[name] = float(draws.mean()) if has.any() else None
                row[p] = float((1 + (draws >= recall).sum()) / (1 + len(draws))) if has.any() else None
                if name == "same_predicate":
                    row |= {"facts_same": int(has.sum()), "recall_same": recall}
            rows.append(row)
    return pd.DataFrame(rows)


def _chance(
    questions: Questions, stated: np.ndarray, where: str, shuffle: "_Others", rng: np.random.Generator
) -> np.ndarray:
    """Recall of other facts' entries, by shuffle and layer, any layer last, ``[shuffle, layer + 1]``."""
    means = np.zeros((N_SHUFFLES, len(questions.layers) + 1))
    for number in range(N_SHUFFLES if shuffle.exist.any() else 0):
        hits = _with_any(_hits(questions, stated, where, stated[shuffle.draw(rng)]))
        means[number] = hits[:, shuffle.exist].mean(1)
    return means


def _overlap(questions: Questions, stated: np.ndarray) -> sparse.csr_array:
    """Which stated facts share an entry, themselves included, bool ``[fact, fact]``."""
    entries = [questions.entries[row] for row in stated]
    sizes = [len(stating) for stating in entries]
    columns = np.concatenate(entries) if entries else np.empty(0, np.int64)
    rows = np.repeat(np.arange(len(stated)), sizes)
    states = sparse.csr_array((np.ones(len(rows), np.int64), (rows, columns)), (len(stated), questions.n_entries))
    return (states @ states.T) > 0


class _Others:
    """Another fact for every question, within groups."""

    def __init__(self, overlap: sparse.csr_array, group: np.ndarray):
        shared = overlap.tocoo()
        one, other = shared.row.astype(np.int64), shared.col.astype(np.int64)
        within = group[one] == group[other]
        self._n, self._group = len(group), group
        self._forbidden = np.sort(one[within] * self._n + other[within])
        self._order = np.argsort(group, kind="stable")
        sizes = np.bincount(group, minlength=1)
        self._first, self._size = (np.cumsum(sizes) - sizes)[group], sizes[group]
        self.exist = np.bincount(one[within], minlength=self._n) < self._size
        """Which questions have another fact in their group that shares no entry with theirs."""

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A fact for every question: a permutation within groups, mended where it meets a fact that shares an entry.

        Two questions exchange facts until neither has its own; questions that still do draw a fact independently.
        """
        taken = np.empty(self._n, np.int64)
        taken[self._order] = np.lexsort((rng.random(self._n), self._group))
        for _ in range(_TRADES):
            wrong = np.flatnonzero(self._wrong(np.arange(self._n), taken) & self.exist)
            if not len(wrong):
                return taken
            for question in wrong:
                partner = self._order[self._first[question] + rng.integers(self._size[question])]
                taken[[question, partner]] = taken[[partner, question]]
        while len(wrong := np.flatnonzero(self._wrong(np.arange(self._n), taken) & self.exist)):
            taken[wrong] = self._order[self._first[wrong] + rng.integers(self._size[wrong])]
        return taken

    def _wrong(self, questions: np.ndarray, facts: np.ndarray) -> np.ndarray:
        keys = questions * self._n + facts
        at = np.minimum(np.searchsorted(self._forbidden, keys), len(self._forbidden) - 1)
        return np.asarray(self._forbidden[at] == keys)


def _with_any(hits: np.ndarray) -> np.ndarray:
    return np.concatenate([hits, hits.any(0, keepdims=True)])


def _even_recall(questions: Questions, stated: np.ndarray, where: str) -> np.ndarray:
    """Recall if every question selected as many entries as it does, drawn evenly; per layer, then for any layer.

    The draw is from the entries that the layer can select, of which some may state the fact.
    """
    missed, size = [], questions.group_size
    for layer in questions.layers:
        reachable = reachable_entries(layer, questions.layers, questions.n_entries, questions.groups)
        in_group = [np.count_nonzero(questions.entries[row] // size == reachable.start // size) for row in stated]
        stating = np.array(in_group)
        keys = getattr(questions, where)[layer]
        n_selected = np.bincount(keys // questions.n_entries, minlength=questions.n_questions)[stated]
        missed.append((1 - stating / size) ** n_selected)
    return np.array([1 - miss.mean() for miss in [*missed, np.prod(missed, axis=0)]])


def _predicate_table(table: pd.DataFrame) -> pd.DataFrame:
    groups = table.groupby("predicate", sort=True)
    stated = table[table["n_entries"] > 0].groupby("predicate")
    both = table.dropna(subset=["drop_own", "drop_control"]).groupby("predicate")
    frame = pd.DataFrame(
        {
            "facts": groups.size(),
            "stated": stated.size(),
            "recall_asked": stated["asked"].mean(),
            "recall_anywhere": stated["anywhere"].mean(),
            "median_rank": groups["rank"].median(),
            "top10": groups["rank"].agg(lambda rank: float((rank <= 10).mean())),
            "ablated": both.size(),
            "drop_own": both["drop_own"].mean(),
            "drop_control": both["drop_control"].mean(),
        }
    )
    frame[["stated", "ablated"]] = frame[["stated", "ablated"]].fillna(0).astype(int)
    return frame.reset_index().sort_values("facts", ascending=False, kind="stable", ignore_index=True)


def _summary(table: pd.DataFrame, recall: pd.DataFrame) -> dict[str, Any]:
    both = table.dropna(subset=["drop_own", "drop_control"])
    changes = {
        "drop_own": both["drop_own"],
        "drop_control": both["drop_control"],
        "drop_difference": both["drop_own"] - both["drop_control"],
        "logprob_drop_own": both["logprob_drop_own"],
        "logprob_drop_control": both["logprob_drop_control"],
        "logprob_drop_difference": both["logprob_drop_own"] - both["logprob_drop_control"],
    }
    group = both["ablated"].map(lambda entries: tuple(sorted(entries)))
    any_layer = recall[recall["layer"] == ANY].set_index("place")
    selected = table[table["asked"]]
    return {
        "facts": len(table),
        "stated": int((table["n_entries"] > 0).sum()),
        "median_rank": float(table["rank"].median()),
        "top1": float((table["rank"] == 1).mean()),
        "top10": float((table["rank"] <= 10).mean()),
        "ablated": len(both),
        "ablated_groups": int(group.nunique()),
        **{f"recall_{where}": float(any_layer.loc[where, "recall"]) for where in ("asked", "anywhere")},
        "asked": len(selected),
        "asked_and_read": int((selected["read_share"] >= UNREAD_SHARE).sum()),
        **{name: _grouped_mean(values.to_numpy(), group) for name, values in changes.items()},
    }


def _grouped_mean(values: np.ndarray, group: pd.Series) -> list[float | None] | None:
    """Mean and 95% interval, none where all facts ablate the same entries: those that do are not independent."""
    if not len(values):
        return None
    code, _ = pd.factorize(group)
    interval = ratio_interval(np.bincount(code, weights=values), np.bincount(code))
    return [None if np.isnan(value) else value for value in interval]
