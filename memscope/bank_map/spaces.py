"""Spaces in which the entries of a bank can be compared, for its map.

``values``       the entry itself, mean over its slots: flattened, two sentences would be alike only where the same word
                 stands in the same slot
``read``         the change of the residual stream by a read of the entry, W_O W_V mean-slot as in the logit lens
``keys``         the gate's keys of the entry, heads side by side; under a product gate its two half keys
``usage``        the tokens on which the entry is selected: positive pointwise mutual information (PPMI) of entry and
                 token, its leading singular vectors (latent semantic analysis)
``contexts``     the ``BEFORE`` tokens before those, likewise
``coselection``  which entries are selected together: the tokens of the text that select the entry, each in each layer,
                 divided by the root of the entry's selections (cosines are then shares of common tokens), likewise

All but ``values`` are about one memory layer, or about all layers side by side. Selections per layer would not be a
useful profile: where most entries are used by one layer alone, all entries of a layer would lie in one point. Entries
that were never selected have none of the last three.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from memscope.bank_map.layout import MIN_ENTRIES
from memscope.bank_map.names import text_weights
from memscope.base.errors import InputError
from memscope.base.parquet import matrix, read_parquet
from memscope.model.gate import MemoryGate
from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import read_columns
from memscope.run.checkpoint import LoadedRun
from memscope.text.tokenizer import Tokenizer

SPACES = ("values", "usage", "read", "contexts", "coselection", "keys")
OF_USAGE = ("usage", "contexts", "coselection")
"""Spaces that hold only entries in use."""
BEFORE = 4
"""Tokens before a selection that make its context."""
_WIDTH = 64
"""Singular vectors of a usage profile."""
_MOST = 1 << 25
"""Pairs of entry and token counted; of more, evenly spread tokens are taken."""


class Space(NamedTuple):
    """Vectors that compare entries, and terms that name their clusters."""

    entries: np.ndarray
    """Entries that have the feature, rising, ``[M]``."""
    vectors: np.ndarray
    """float32 ``[M, F]``."""
    weights: sparse.csr_matrix
    """Weight of every term in every entry, ``[M, term]``."""
    terms: list[str]


def make_space(
    run: LoadedRun | None, recording: Path, info: RecordingInfo, name: str, layers: Sequence[int], seed: int
) -> Space:
    """One of ``SPACES``; clusters of usage are named by tokens, since entries used alike need not start alike.

    Raises:
        InputError: fewer than ten entries have the feature, or the recording is of no run of memscope, which all spaces
            but those of usage need.
    """
    if name not in OF_USAGE:
        if run is None:
            raise InputError(f"{recording}: '{name}' compares entries of a memory; map {', '.join(OF_USAGE)} or best")
        made = {"values": entry_values, "read": read_outputs, "keys": entry_keys}[name]
        vectors = made(run, layers)
        return Space(np.arange(len(vectors)), vectors, *text_weights(_entry_texts(recording, info.knowledge_num)))
    tokenizer = Tokenizer.load(recording / "tokenizer.json")
    counts = token_counts(recording, info, layers, tokenizer.vocab_size)
    used = np.flatnonzero(np.diff(counts.indptr))
    if len(used) < MIN_ENTRIES:
        raise InputError(
            f"{recording}: only {len(used)} entries were selected, too few for a map of usage; map 'values' instead"
        )
    weights, vectors = usage_profiles(counts[used], seed)
    if name == "contexts":
        _, vectors = usage_profiles(context_counts(recording, info, layers, tokenizer.vocab_size)[used], seed)
    elif name == "coselection":
        vectors = coselection_profiles(recording, info, layers, seed)[used]
    # A token may be a space or a part of a character, which cannot be part of a name.
    terms = ["" if i in tokenizer.partial else text.strip() for i, text in enumerate(tokenizer.token_texts)]
    return Space(used, vectors, weights, terms)


def entry_values(run: LoadedRun, layers: Sequence[int] = ()) -> np.ndarray:
    """Entries now, mean over their slots, float32 ``[N, D]``; they belong to no layer."""
    assert run.model.bank is not None
    values: np.ndarray = run.model.bank.entries.detach().float().mean(1).cpu().numpy()
    return values


def read_outputs(run: LoadedRun, layers: Sequence[int]) -> np.ndarray:
    """Vectors with the same inner products as the outputs of a read in ``layers``, side by side: ``[N, D]``.

    The outputs are ``A e`` with A the stacked W_O W_V ``[layers * dim, D]``; with A = QR they have the lengths and
    angles of ``R e``, so that the wide vectors are never made.
    """
    maps = []
    for layer in layers:
        maps.append(run.model.memory_layer(layer).read.write_matrix.detach().float().cpu().numpy())
    return np.asarray(entry_values(run) @ np.linalg.qr(np.concatenate(maps)).R.T)


def entry_keys(run: LoadedRun, layers: Sequence[int]) -> np.ndarray:
    """The gate's keys of every entry in the layers that can select it, heads and layers side by side, ``[N, F]``."""
    config = run.config.memory
    columns: dict[int, list[np.ndarray]] = {}
    with_keys = [layer for layer in layers if layer not in run.config.model.ngram_layers]
    if not with_keys:
        raise InputError(f"{run.path}: entries are looked up by hashes of n-grams, no gate has keys; map another space")
    for layer in with_keys:
        gate = run.model.memory_layer(layer).gate
        assert isinstance(gate, MemoryGate)
        of_heads = gate.keys.detach().float().cpu().numpy()  # [H, n, q], or [H, 2, side, q / 2] of a product gate
        if config.gate == "product":
            row, column = np.divmod(np.arange(config.group_size), of_heads.shape[2])
            of_heads = np.concatenate([of_heads[:, 0, row], of_heads[:, 1, column]], -1)
        columns.setdefault(gate.first, []).append(of_heads.transpose(1, 0, 2).reshape(config.group_size, -1))
    width = max(sum(keys.shape[1] for keys in heads) for heads in columns.values())
    keys = np.zeros((config.knowledge_num, width), np.float32)
    for first, heads in columns.items():
        side_by_side = np.concatenate(heads, 1)
        keys[first : first + config.group_size, : side_by_side.shape[1]] = side_by_side
    return keys


def token_counts(recording: Path, info: RecordingInfo, layers: Sequence[int], vocab_size: int) -> sparse.csr_matrix:
    """Count of selections of every entry on every token of the vocabulary in ``layers``, float32 ``[N, vocab]``."""
    counts = sparse.csr_matrix((info.knowledge_num, vocab_size), dtype=np.float32)
    names = [f"l{layer}_indices" for layer in layers]
    for part in info.parts:
        table = read_columns(recording, info, part, ["token", *names])
        token = table["token"].to_numpy().astype(np.int64)
        for name in names:
            entry, of_token = _pairs(matrix(table[name]).astype(np.int64), token)
            pair, count = np.unique(entry * vocab_size + of_token, return_counts=True)
            cell = (pair // vocab_size, pair % vocab_size)
            counts = counts + sparse.csr_matrix((count.astype(np.float32), cell), shape=counts.shape)
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
    width = min(_WIDTH, *(side - 1 for side in counts.shape))
    return weights, TruncatedSVD(width, random_state=seed).fit_transform(weights).astype(np.float32)


def context_counts(recording: Path, info: RecordingInfo, layers: Sequence[int], vocab_size: int) -> sparse.csr_matrix:
    """Count of every token among the ``BEFORE`` tokens before the selections of every entry, float32 ``[N, vocab]``."""
    counts = sparse.csr_matrix((info.knowledge_num, vocab_size), dtype=np.float32)
    step = max(1, -(-info.rows * info.per_token * BEFORE // _MOST))
    for token, pos, indices in _selections(recording, info, layers):
        for back in range(1, BEFORE + 1):
            row = np.arange(back, len(token))[::step]
            row = row[pos[row] % info.window >= back]
            for of_layer in indices:
                cell = _pairs(of_layer[row], token[row - back])
                counts = counts + sparse.csr_matrix((np.ones(len(cell[0]), np.float32), cell), shape=counts.shape)
    return counts


def coselection_profiles(recording: Path, info: RecordingInfo, layers: Sequence[int], seed: int) -> np.ndarray:
    """Leading singular vectors of entries by the tokens that select them in each layer, float32 ``[N, 64]``."""
    step = max(1, -(-info.rows * info.per_token // _MOST))
    entries: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    n = 0
    for _, _, indices in _selections(recording, info, layers):
        for of_layer in indices:
            chosen = of_layer[::step]
            for kept, pairs in zip((entries, columns), _pairs(chosen, n + np.arange(len(chosen))), strict=True):
                kept.append(pairs)
            n += len(chosen)
    cell = np.concatenate(entries), np.concatenate(columns)
    selects = sparse.csr_matrix((np.ones(len(cell[0]), np.float32), cell), shape=(info.knowledge_num, n))
    selects.data[:] = 1  # two gate heads that select one entry for a token count once
    count = np.maximum(np.diff(selects.indptr), 1)
    weights = sparse.diags(1 / np.sqrt(count)) @ selects
    width = min(_WIDTH, *(side - 1 for side in weights.shape))
    return np.asarray(TruncatedSVD(width, random_state=seed).fit_transform(weights), np.float32)


def _pairs(entries: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Selections of ``entries [token, K]`` as entry and label of the token, ``[selection]`` each; -1 is none."""
    flat = entries.ravel()
    return flat[flat >= 0], np.repeat(label, entries.shape[1])[flat >= 0]


def _selections(
    recording: Path, info: RecordingInfo, layers: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
    """Tokens, positions in their documents and each layer's entries ``[token, K]``, int64, part by part."""
    names = [f"l{layer}_indices" for layer in layers]
    for part in info.parts:
        table = read_columns(recording, info, part, ["token", "pos", *names])
        token, pos = (table[name].to_numpy().astype(np.int64) for name in ("token", "pos"))
        yield token, pos, [matrix(table[name]).astype(np.int64) for name in names]


def _entry_texts(recording: Path, n_entries: int) -> list[str]:
    """Init sentence and the words that set every entry apart; empty for entries without either."""
    texts = [text or "" for text in read_parquet(recording / "bank_init.parquet", ["sentence"])["sentence"].to_pylist()]
    apart = read_parquet(recording / "titles.parquet", ["entry", "words"]).to_pydict()
    for entry, words in zip(apart["entry"], apart["words"], strict=True):
        texts[entry] += f" {words or ''}"
    assert len(texts) == n_entries
    return texts
