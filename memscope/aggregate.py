"""The census of a recording: usage, top contexts and reading statistics, fed part by part.

    census = Census(info)
    for part in parts:
        census.update(rows, first_row)
    census.write(recording)      # usage.parquet, contexts.parquet, census.json

Memory depends on the bank and the number of layers, not on the number of tokens.
"""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from memscope.files import write_json
from memscope.store import RecordingInfo, TokenRows, write_table
from memscope.usage import UsageCounts, usage_metrics

N_CONTEXTS = 8
"""Top contexts kept per layer and entry."""
UNREAD_SHARE = 0.01
"""A selection is unread when it gets less than this share of its token's read."""
READ_BINS = np.linspace(0, 1, 51)
"""Edges of the histogram of read shares."""


class TopContexts:
    """The tokens on which every entry of one layer got its highest gate scores; ties go to the earlier row."""

    def __init__(self, n_entries: int, keep: int = N_CONTEXTS):
        self.keep = keep
        self.entry = np.empty(0, np.uint32)
        self.row = np.empty(0, np.int64)
        self.gate = np.empty(0, np.float16)
        self.read = np.empty(0, np.float16)
        self._floor = np.full(n_entries, -np.inf, np.float32)  # an entry's lowest kept score, once it has enough

    def update(self, entry: np.ndarray, row: np.ndarray, gate: np.ndarray, read: np.ndarray) -> None:
        """Offer selections: four flat arrays of equal length."""
        offered = gate.astype(np.float32) > self._floor[entry]
        touched = np.zeros(len(self._floor), bool)
        touched[entry[offered]] = True
        settled = ~touched[self.entry]
        entry_, row_, gate_, read_ = (
            np.concatenate([old[~settled], new[offered]])
            for old, new in ((self.entry, entry), (self.row, row), (self.gate, gate), (self.read, read))
        )
        order = np.lexsort((row_, -gate_.astype(np.float32), entry_))
        entry_, row_, gate_, read_ = entry_[order], row_[order], gate_[order], read_[order]
        rank = _rank_in_group(entry_)
        last = entry_[rank == self.keep - 1], gate_[rank == self.keep - 1]
        self._floor[last[0]] = last[1]
        kept = rank < self.keep
        self.entry = np.concatenate([self.entry[settled], entry_[kept]])
        self.row = np.concatenate([self.row[settled], row_[kept]])
        self.gate = np.concatenate([self.gate[settled], gate_[kept]])
        self.read = np.concatenate([self.read[settled], read_[kept]])

    def columns(self) -> dict[str, np.ndarray]:
        """All kept contexts, by entry and falling score."""
        order = np.lexsort((self.row, -self.gate.astype(np.float32), self.entry))
        entry = self.entry[order]
        return {
            "entry": entry,
            "rank": _rank_in_group(entry).astype(np.uint8),
            "row": self.row[order],
            "gate": self.gate[order],
            "read": self.read[order],
        }


class ReadingStatistics:
    """How one layer's gate decides and what its attention reads, as sums over tokens.

    A token's gate shares and read shares are its K gate scores and absolute read weights, each divided by their sum.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.histogram = np.zeros(len(READ_BINS) - 1, np.int64)
        self.tokens, self.selections, self.unread, self.silent = 0, 0, 0, 0

    def update(self, gate: np.ndarray, read: np.ndarray) -> None:
        """Add tokens: gate scores and read weights, ``[token, K]``."""
        gate, read = gate.astype(np.float64), np.abs(read.astype(np.float64))
        gate_share, read_share = _shares(gate), _shares(read)
        heard = read.sum(1) > 0  # with ReLU or GELU a token may read nothing
        self.tokens += len(gate)
        self.silent += int((~heard).sum())
        self.selections += gate.size
        self.unread += int((read_share < UNREAD_SHARE).sum())
        self.histogram += np.histogram(read_share, READ_BINS)[0]
        attention = np.divide(read, gate, out=np.zeros_like(read), where=gate > 0)
        values = {
            "gate_entropy": _entropy(gate_share),
            "gate_top_share": gate_share.max(1),
            "read_entropy": _entropy(read_share),
            "effective_entries_read": np.exp(_entropy(read_share)),
            "read_top_share": read_share.max(1),
            "gate_read_rank_correlation": _rank_correlation(gate, read),
            "gate_attention_rank_correlation": _rank_correlation(gate, attention),
        }
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value[heard].sum())

    def as_dict(self) -> dict[str, Any]:
        """Means over the tokens that read anything; shares over all selections."""
        heard = max(1, self.tokens - self.silent)
        means: dict[str, Any] = {name: total / heard for name, total in self.sums.items()}
        means["unread_share"] = self.unread / max(1, self.selections)
        means["silent_tokens"] = self.silent / max(1, self.tokens)
        means["read_share_histogram"] = self.histogram.tolist()
        return means


class Census:
    """Everything that is counted in one pass over a recording."""

    def __init__(self, info: RecordingInfo):
        self.info = info
        self.usage = UsageCounts(len(info.layers), info.knowledge_num)
        self.contexts = [TopContexts(info.knowledge_num) for _ in info.layers]
        self.reading = [ReadingStatistics() for _ in info.layers]
        self.tokens, self.loss_sum, self.loss_tokens = 0, 0.0, 0

    def update(self, rows: TokenRows, first_row: int) -> None:
        """Add a part whose first token has row number ``first_row``."""
        self.tokens += len(rows.doc)
        known = rows.loss[~np.isnan(rows.loss)]
        self.loss_sum += float(known.sum(dtype=np.float64))
        self.loss_tokens += len(known)
        numbers = np.repeat(np.arange(first_row, first_row + len(rows.doc)), self.info.selected)
        for axis in range(len(self.info.layers)):
            indices, gate, read = (np.ascontiguousarray(a[:, axis]) for a in (rows.indices, rows.gate, rows.read))
            self.usage.update(axis, indices, gate, read)
            self.contexts[axis].update(indices.ravel(), numbers, gate.ravel(), read.ravel())
            self.reading[axis].update(gate, read)

    def summary(self) -> dict[str, Any]:
        """Metrics per layer and over all layers (``census.json``)."""
        layers = []
        for axis, layer in enumerate(self.info.layers):
            d = int(self.usage.count[axis].sum())
            layers.append(
                {
                    "layer": layer,
                    "by_count": usage_metrics(self.usage.count[axis], d).as_dict(),
                    "by_gate_score": usage_metrics(self.usage.gate[axis], d).as_dict(),
                    "by_read_weight": usage_metrics(self.usage.read[axis], d).as_dict(),
                    "reading": self.reading[axis].as_dict(),
                }
            )
        total = self.usage.count.sum(0)
        return {
            "tokens": self.tokens,
            "loss": self.loss_sum / max(1, self.loss_tokens),
            "all_layers": usage_metrics(total, int(total.sum())).as_dict(),
            "layers": layers,
        }

    def write(self, recording: Path) -> None:
        """Write ``usage.parquet``, ``contexts.parquet`` and ``census.json``."""
        used = np.nonzero(self.usage.count)
        layers = np.array(self.info.layers, np.uint16)
        write_table(
            recording / "usage.parquet",
            {
                "layer": layers[used[0]],
                "entry": used[1].astype(np.uint32),
                "count": self.usage.count[used],
                "gate_sum": self.usage.gate[used],
                "read_sum": self.usage.read[used],
            },
        )
        columns = [
            {"layer": np.full(len(contexts.entry), layer), **contexts.columns()}
            for layer, contexts in zip(layers, self.contexts, strict=True)
        ]
        merged = {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}
        by_entry = np.lexsort((merged["rank"], merged["layer"], merged["entry"]))  # one entry lies together
        write_table(recording / "contexts.parquet", {name: values[by_entry] for name, values in merged.items()})
        write_json(recording / "census.json", self.summary())


def _rank_in_group(sorted_keys: np.ndarray) -> np.ndarray:
    """0, 1, 2 ... within every run of equal keys."""
    position = np.arange(len(sorted_keys))
    starts = np.flatnonzero(np.diff(sorted_keys, prepend=sorted_keys[:1] + 1)) if len(sorted_keys) else position
    lengths = np.diff(np.append(starts, len(sorted_keys)))
    return position - np.repeat(starts, lengths)


def _shares(weights: np.ndarray) -> np.ndarray:
    total = weights.sum(1, keepdims=True)
    return np.asarray(np.divide(weights, total, out=np.zeros_like(weights), where=total > 0))


def _entropy(shares: np.ndarray) -> np.ndarray:
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logs).sum(1))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rho of every row; 0 where one side is constant."""
    a, b = (rankdata(x, axis=1) for x in (a, b))
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.asarray(np.divide((a * b).sum(1), scale, out=np.zeros_like(scale), where=scale > 0))
