"""How recorded tokens are told apart when they are counted: document groups, folds, position and frequency classes.

A **fold** is a random-like twentieth of every group's documents. Numbers that differ little when any one fold is left
out are numbers one can trust: that is where standard errors and intervals come from (``stats/jackknife.py``).
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.base.parquet import read_parquet
from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import read_columns
from memscope.stats.jackknife import Jackknife
from memscope.text.tokenizer import Tokenizer

FOLDS = 20
MAX_GROUPS = 16
"""Document groups counted apart; the smallest beyond these are counted together as "other"."""
FEW_DOCUMENTS = 10
"""With fewer documents than this, blocks of ``BLOCK`` tokens take their place as the unit of folds."""
BLOCK = 256
_PER_MILLION = (10.0, 100.0, 1000.0, 10000.0)


class TokenClass(NamedTuple):
    """A class of tokens, for tables and figures."""

    label: str
    low: float
    high: float


class Strata(NamedTuple):
    """The division of a recording's tokens; cell = group * folds + fold."""

    groups: list[str]
    """Names of the document groups; one nameless group when documents have none."""
    folds: int
    unit: str
    """The text that makes up a fold: ``documents`` or ``blocks of 256 tokens``."""
    document_group: np.ndarray
    """Group of every document, int64 ``[doc]``."""
    document_fold: np.ndarray
    """Fold of every document, int64 ``[doc]``; unused when the unit is blocks."""
    window: int
    """Tokens the model sees at once; positions count from a window's start."""
    positions: list[TokenClass]
    """Octaves of the position in the window: 0, 1-2, 3-6, 7-14 ..."""
    frequencies: list[TokenClass]
    """Decades of the token's frequency in the recorded text, per million."""
    token_frequency: np.ndarray
    """Occurrences of every token id in the recording, int64 ``[vocab]``."""
    cell_tokens: np.ndarray
    """Tokens of every cell, float64 ``[group, fold]``."""
    cell_squares: np.ndarray
    """Sum of the squared lengths of every cell's documents (blocks), likewise."""
    longest: float
    """Share of the text that the longest document holds."""

    @property
    def cells(self) -> int:
        """Number of cells."""
        return len(self.groups) * self.folds

    @property
    def count_columns(self) -> int:
        """Columns of ``count_classes``' table: cells, then positions and frequencies, each also shuffled."""
        return self.cells + 2 * len(self.positions) + 2 * len(self.frequencies)

    def jackknife(self, group: int | None = None) -> Jackknife:
        """Errors of numbers over a document group, or over all text."""
        of = slice(None) if group is None else slice(group, group + 1)
        return Jackknife(self.cell_tokens[of].sum(0), self.cell_squares[of].sum(0))

    def group_of(self, doc: np.ndarray) -> np.ndarray:
        """Document group of every token, int64 ``[token]``."""
        return self.document_group[doc]

    def cell_of(self, doc: np.ndarray, first_row: int) -> np.ndarray:
        """Cell of every token, int64 ``[token]``, for rows numbered from ``first_row``."""
        if self.unit == "documents":
            fold = self.document_fold[doc]
        else:
            fold = (first_row + np.arange(len(doc))) // BLOCK % self.folds
        return self.document_group[doc] * self.folds + fold

    def sum_classes(self, doc: np.ndarray, pos: np.ndarray, token: np.ndarray, first_row: int) -> np.ndarray:
        """Cell, position and frequency class of tokens as rows of one table of sums, int64 ``[token, 3]``."""
        position = np.log2(pos.astype(np.int64) % self.window + 1).astype(np.int64)
        millionths = self.token_frequency[token] * 1e6 / self.token_frequency.sum()
        frequency = np.searchsorted(_PER_MILLION, millionths, side="right")
        base = self.cells + len(self.positions)
        return np.stack([self.cell_of(doc, first_row), self.cells + position, base + frequency], axis=1)

    def count_classes(self, sum_classes: np.ndarray, seed: int) -> np.ndarray:
        """Columns of the table of counts that tokens belong to, int64 ``[token, 5]``.

        The last two repeat position and frequency with tokens shuffled within the part: what a dependence between
        entry and class looks like when there is none.
        """
        shuffled = sum_classes[np.random.default_rng(seed).permutation(len(sum_classes)), 1:]
        offset = len(self.positions) + len(self.frequencies)
        return np.concatenate([sum_classes, shuffled + offset], axis=1)


def divide(documents: pd.DataFrame, token_frequency: np.ndarray, window: int) -> Strata:
    """The strata of a recording.

    Args:
        documents: ``doc title group first_row rows``.
        token_frequency: occurrences of every token id, int64 ``[vocab]``.
        window: tokens the model sees at once.
    """
    sizes = documents.groupby("group")["rows"].sum().sort_values(ascending=False)
    names = [str(name) for name in sizes.index[:MAX_GROUPS]]
    if len(sizes) > MAX_GROUPS:
        names[-1] = "other"
    number = {name: i for i, name in enumerate(names)}
    group = documents["group"].map(lambda name: number.get(name, len(names) - 1)).to_numpy(np.int64)
    folds = max(4, min(FOLDS, 64 // len(names)))
    unit = "documents" if len(documents) >= FEW_DOCUMENTS else f"blocks of {BLOCK} tokens"
    folds = min(folds, len(documents)) if unit == "documents" else folds
    fold = (documents.groupby(group).cumcount() % folds).to_numpy(np.int64)
    rows = documents["rows"].to_numpy(np.int64)
    cell, length = group * folds + fold, rows
    if unit != "documents":
        block = np.arange(rows.sum()) // BLOCK
        [of, block], length = np.unique(np.stack([np.repeat(group, rows), block]), axis=1, return_counts=True)
        cell = of * folds + block % folds
    cells = [np.bincount(cell, weights=size, minlength=len(names) * folds) for size in (length, length**2)]
    octaves = int(np.log2(window)) + 1
    edges = (0.0, *_PER_MILLION, float("inf"))
    return Strata(
        groups=names,
        folds=folds,
        unit=unit,
        document_group=group,
        document_fold=fold,
        window=window,
        positions=[_octave(o, window) for o in range(octaves)],
        frequencies=[
            TokenClass(_decade(low, high), float(low), float(min(high, 1e6))) for low, high in itertools.pairwise(edges)
        ],
        token_frequency=token_frequency,
        cell_tokens=cells[0].reshape(len(names), folds),
        cell_squares=cells[1].reshape(len(names), folds),
        longest=float(rows.max(initial=0) / max(rows.sum(), 1)),
    )


def token_frequency(recording: Path, info: RecordingInfo) -> np.ndarray:
    """Occurrences of every token id in a recording, int64 ``[vocab]``."""
    vocab = Tokenizer.load(recording / "tokenizer.json").vocab_size
    parts = (read_columns(recording, info, part, ["token"])["token"].to_numpy() for part in info.parts)
    return np.sum([np.bincount(tokens, minlength=vocab) for tokens in parts], axis=0)


def divide_recording(recording: Path, info: RecordingInfo) -> Strata:
    """The strata of a recording, from its documents and the frequencies of its tokens."""
    documents = read_parquet(recording / "documents.parquet").to_pandas()
    return divide(documents, token_frequency(recording, info), info.window)


def _octave(octave: int, window: int) -> TokenClass:
    low, high = 2**octave - 1, min(2 ** (octave + 1) - 2, window - 1)
    return TokenClass(f"{low}-{high}" if high > low else str(low), float(low), float(high))


def _decade(low: float, high: float) -> str:
    if high == float("inf"):
        return f"over {low:,.0f} per million"
    return f"{low:,.0f} to {high:,.0f} per million" if low else f"under {high:,.0f} per million"
