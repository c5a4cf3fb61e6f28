"""On what entries fire: top and quantile contexts, tokens, words; from the entry-major parts of a recording.

    contexts.parquet   layer entry kind rank row gate read   sorted by layer and entry
    firing.parquet     one row per used (layer, entry): what it fires on, documents, position, deciles of gate scores,
                       typical tokens
    titles.parquet     entry title firings words             the tokens it fires on most often
    (census/firing/fires_on.py), and the
                                                             words that set it apart, by TF-IDF

A layer's entries are taken in blocks of at most ``BLOCK`` selections. What every row is about stays in memory: 36 bytes
a token, and for a while more of the kind; this is the part of the census whose memory grows with the recording.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_matrix
from sklearn.feature_extraction.text import TfidfTransformer

from memscope.base.errors import InputError
from memscope.base.files import atomic_path
from memscope.base.parquet import ENTRY_ROW_GROUP, TableWriter, fixed_lists, matrix, read_parquet, write_table
from memscope.base.work import ALONE, Processes
from memscope.census.firing.fires_on import RowPairs, Titles, count_firings, headlines
from memscope.census.firing.kernels import best_of_rows, describe_entries, sort_keys
from memscope.census.firing.row_words import RowWords, words_of_rows
from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import SelectionReader, read_columns
from memscope.recording.row_columns import disk_array, pieces, row_columns, tally
from memscope.text.tokenizer import Tokenizer

N_TOP = 20
"""Contexts of highest gate score kept per layer and entry; ties go to the earlier row."""
N_QUANTILES = 5
"""Further contexts: the middles of the fifths of an entry's selections by gate score, highest first."""
N_TOKENS = 5
"""Typical tokens kept per kind: those that add most to KL(tokens the entry fires on || all tokens)."""
N_WORDS = 8
"""Typical words per layer and entry that the words which set it apart are chosen from."""
APART = 3
"""Words that set an entry apart."""
BLOCK = 1 << 21
KINDS = ("input", "previous", "predicted", "next")
INFORMATION = ("token", "even_token", "previous", "even_previous")
"""Mutual information of entry and token, for the first kinds, each beside that of shuffled tokens."""


class RowTokens(NamedTuple):
    """Tokens, document and position of every recorded row, ``[token]`` each; kinds in the order of ``KINDS``."""

    tokens: tuple[np.ndarray, ...]
    """Input token, the one before, predicted and true next one, int32.

    -1 where the model saw none before, at the start of a window, and where a document ends.
    """
    shuffled: tuple[np.ndarray, ...]
    """Input token and the one before, each in random order: what information about them looks like if there is none."""
    known: np.ndarray
    """Rows that have a token, ``[kind]``."""
    share: np.ndarray
    """Share of every token id among rows, float64 ``[kind, vocab]``."""
    doc: np.ndarray
    """Document, int32."""
    position: np.ndarray
    """Position in the window, int32."""


def write_firing(recording: Path, info: RecordingInfo, group: Processes = ALONE) -> list[dict[str, float]] | None:
    """Write the three files; returns per layer ``INFORMATION`` in nats, none in processes other than the main one."""
    first_rows = read_parquet(recording / "documents.parquet", ["first_row"])["first_row"].to_numpy()
    tokenizer = Tokenizer.load(recording / "tokenizer.json")
    rows = _row_tokens(recording, info)
    token, before = rows.tokens[0], disk_array(recording, info.rows)
    for piece in pieces(info.rows):
        before[piece] = np.where(rows.tokens[1][piece] >= 0, rows.tokens[1][piece], len(tokenizer.token_texts))
    words = words_of_rows(token, first_rows, tokenizer, disk_array(recording, info.rows))
    pairs = RowPairs(token, before, tokenizer.token_texts)
    reader = SelectionReader(recording, info)
    usage = read_parquet(recording / "usage.parquet", ["layer", "entry", "count"]).to_pandas()

    def describe(layer: int) -> "_LayerFiring":
        used = usage[usage["layer"] == layer]
        blocks = list(_blocks(used["entry"].to_numpy(), used["count"].to_numpy()))
        found = [_describe_block(reader, layer, entries, rows, pairs, words) for entries in blocks]
        return _with_read_weights(recording, info, layer, _join(found))

    return group.share(describe, info.layers, lambda found: _write(recording, info, found, words.texts))


def _write(
    recording: Path, info: RecordingInfo, of_layers: Iterator["_LayerFiring"], words: list[str]
) -> list[dict[str, float]]:
    information, counted, titled = [], [], Titles(info.knowledge_num)
    with (
        atomic_path(recording / "contexts.parquet") as contexts_path,
        atomic_path(recording / "firing.parquet") as firing_path,
    ):
        contexts, firing = TableWriter(contexts_path), TableWriter(firing_path, ENTRY_ROW_GROUP)
        for layer, found in zip(info.layers, of_layers, strict=True):
            contexts.write(found.contexts)
            firing.write(found.firing)
            nats = found.information / np.maximum(found.known, 1)
            information.append(dict(zip(INFORMATION, nats.ravel().tolist(), strict=True)))
            counted.append(found.words)
            titled.add(layer, *(found.firing[name] for name in ("entry", "firings", "fires_on")))
        contexts.close()
        firing.close()
    named = titled.table()
    named["words"] = words_apart(np.concatenate(counted), words, named["entry"])
    write_table(recording / "titles.parquet", named, ENTRY_ROW_GROUP)
    return information


def words_apart(counted: np.ndarray, words: list[str], entries: np.ndarray) -> pa.Array:
    """Words that set entries apart: the ``APART`` of highest TF-IDF among those an entry fires in (scikit-learn's).

    Args:
        counted: ``entry word count`` in rows, int32 ``[row, 3]``; the same pair may come from several layers.
        words: texts of the words.
        entries: used entries, rising.

    Returns:
        A text for each of ``entries``, null for those that fire in no word more than once.
    """
    entry, word, count = counted.T
    together = coo_matrix((count, (np.searchsorted(entries, entry), word)), shape=(len(entries), max(len(words), 1)))
    together = together.tocsr()
    if not together.nnz:
        return pa.nulls(len(entries), pa.string())
    has = np.diff(together.indptr) > 0
    weight = TfidfTransformer(sublinear_tf=True).fit_transform(together[has])
    best = best_of_rows(weight.indptr, weight.indices, weight.data, APART)
    found = np.full(len(entries), None, object)
    found[has] = [" · ".join(words[word] for word in row if word >= 0) for row in best.tolist()]
    return pa.array(found, pa.string())


class _LayerFiring(NamedTuple):
    contexts: dict[str, Any]
    firing: dict[str, Any]
    words: np.ndarray
    information: np.ndarray
    """``EntryFiring.information``, sums over selections."""
    known: np.ndarray
    """``EntryFiring.known``."""


def _row_tokens(recording: Path, info: RecordingInfo) -> RowTokens:
    columns = row_columns(recording, info, ["token", "previous", "predicted", "following", "doc", "position"])
    tokens = tuple(columns[name] for name in ("token", "previous", "predicted", "following"))
    vocab = max(int(kind.max(initial=-1)) for kind in tokens) + 1
    counts = np.stack([tally(kind, vocab) for kind in tokens])
    known = counts.sum(1)
    shuffled = []
    for kind in tokens[: len(INFORMATION) // 2]:
        mixed = disk_array(recording, info.rows)
        mixed[:] = kind
        np.random.default_rng(0).shuffle(mixed)
        shuffled.append(mixed)
    share = counts / np.maximum(known, 1)[:, None]
    return RowTokens(tokens, tuple(shuffled), known, share, columns["doc"], columns["position"])


def _blocks(entries: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    """Cut the used entries, rising, into runs of at most ``BLOCK`` selections and 65,536 numbers."""
    start = total = 0
    for place, (entry, count) in enumerate(zip(entries.tolist(), counts.tolist(), strict=True)):
        if place > start and (total + count > BLOCK or entry - entries[start] >= 65536):
            yield entries[start:place]
            start, total = place, 0
        total += count
    if len(entries):
        yield entries[start:]


def _describe_block(
    reader: SelectionReader, layer: int, entries: np.ndarray, rows: RowTokens, pairs: RowPairs, words: RowWords
) -> _LayerFiring:
    entry, row, gate = reader.read(layer, int(entries[0]), int(entries[-1]))
    scored = not np.isnan(gate).any()
    gate = gate if scored else np.zeros_like(gate)
    if not np.array_equal(np.flatnonzero(np.bincount(entry - entries[0])), entries - entries[0]):
        raise InputError(f"layer {layer}: tokens/ and selections/ do not hold the same entries; record again")
    keys = np.sort(sort_keys(entry - entries[0], gate, row))  # by entry, falling gate score, row
    found = describe_entries(
        keys,
        (entries - entries[0]).astype(np.int64),
        rows.tokens,
        rows.shuffled,
        rows.share,
        rows.doc,
        rows.position,
        words.of_row,
        words.share,
        (N_TOP, N_QUANTILES, N_TOKENS, N_WORDS),
    )
    kept = found.context_row >= 0
    place, slot = np.nonzero(kept)
    contexts = {
        "entry": entries[place].astype(np.uint32),
        "kind": pa.DictionaryArray.from_arrays((slot >= N_TOP).astype(np.int8), ["top", "quantile"]),
        "rank": np.where(slot < N_TOP, slot, slot - N_TOP).astype(np.uint8),
        "row": found.context_row[kept].astype(np.uint32),
        "gate": _half(found.context_gate[kept], scored),
    }
    firing = {
        "entry": entries.astype(np.uint32),
        "count": found.count,
        **headlines(count_firings(entries, entry, row, pairs), pairs),
        "docs": found.docs,
        "position_mean": found.position.astype(np.float32),
        "gate_deciles": fixed_lists(found.deciles if scored else np.full_like(found.deciles, np.nan), pa.float16()),
    }
    for number, kind in enumerate(KINDS):
        firing[f"{kind}_token"] = fixed_lists(found.token[number], pa.int32())  # -1 fills up
        firing[f"{kind}_lift"] = fixed_lists(found.lift[number], pa.float32())
        firing[f"{kind}_count"] = fixed_lists(found.token_count[number], pa.uint32())
    has = found.word >= 0
    counted = np.stack([entries[np.nonzero(has)[0]], found.word[has], found.word_count[has]], axis=1).astype(np.int32)
    return _LayerFiring(contexts, firing, counted, found.information, found.known)


def _half(values: np.ndarray, known: bool) -> pa.Array:
    """A column of float16, null where nothing is known."""
    return pa.array(values.astype(np.float16)) if known else pa.nulls(len(values), pa.float16())


def _join(blocks: list[_LayerFiring]) -> _LayerFiring:
    def together(tables: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            name: pa.concat_arrays([t[name] for t in tables])
            if isinstance(tables[0][name], pa.Array)
            else np.concatenate([t[name] for t in tables])
            for name in tables[0]
        }

    return _LayerFiring(
        together([b.contexts for b in blocks]),
        together([b.firing for b in blocks]),
        np.concatenate([b.words for b in blocks]),
        np.sum([b.information for b in blocks], axis=0),
        np.sum([b.known for b in blocks], axis=0),
    )


def _with_read_weights(recording: Path, info: RecordingInfo, layer: int, found: _LayerFiring) -> _LayerFiring:
    """Look up the read weights of contexts, which entry-major rows lack, and name the layer."""
    entry, row = found.contexts["entry"], found.contexts["row"].astype(np.int64)
    reads_apart = "reads" in info.site(layer).has
    gate = found.contexts["gate"].to_numpy() if reads_apart else None
    read = np.zeros(len(row), np.float16)
    order = np.argsort(row, kind="stable")
    for part, first in zip(info.parts, info.first_rows(), strict=True):
        if gate is None:
            break
        begin, end = np.searchsorted(row[order], [first, first + part.rows])
        here = order[begin:end]
        if len(here):
            names = [f"l{layer}_{kind}" for kind in ("indices", "gate", "read")]
            table = read_columns(recording, info, part, names)
            local = row[here] - first
            indices, gates, reads = (matrix(table[name])[local] for name in names)
            # Two heads may select the same entry with different scores.
            is_it = (indices == entry[here, None]) & (gates == gate[here, None])
            read[here] = np.take_along_axis(reads, is_it.argmax(1)[:, None], axis=1)[:, 0]
    layers = np.full(len(row), layer, np.uint16)
    return found._replace(
        contexts={"layer": layers, **found.contexts, "read": _half(read, reads_apart)},
        firing={"layer": np.full(len(found.firing["entry"]), layer, np.uint16), **found.firing},
    )
