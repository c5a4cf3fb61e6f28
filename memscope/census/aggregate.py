"""The census of a recording: usage, evenness, reading, profiles and preferences, counted from its token-major parts.

    write_aggregates(recording, read_info(recording))

Layers are independent, so they are counted in parallel threads, each over all parts in order. Memory depends on the
bank and the number of strata, not on the number of tokens. Counts are integers and weights are sums of numbers with
few bits in float64, so nothing depends on who recorded which part.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from memscope.base.files import atomic_path, write_json
from memscope.base.parquet import TableWriter, fixed_lists, matrix, read_parquet, write_table
from memscope.base.threads import in_threads
from memscope.census.anomalies.entries import layer_anomalies
from memscope.census.anomalies.looks import row_text
from memscope.census.firing.firing import write_firing
from memscope.census.information import held_out_information
from memscope.census.kernels import MARGIN_BINS, SHARE_BINS, SUMS, read_tokens, tally
from memscope.census.labels import entry_labels
from memscope.census.neighbours import write_neighbours
from memscope.census.preference import adjust, layer_preferences
from memscope.census.strata import Strata, divide
from memscope.census.summaries import (
    evenness,
    layer_overlap,
    mutual_information,
    profile,
    reading_errors,
    reading_statistics,
)
from memscope.recording.aggregates import check_sources, list_files
from memscope.recording.info import RecordingInfo, write_info
from memscope.recording.part_reader import read_columns
from memscope.text.tokenizer import Tokenizer

ANOMALIES = pa.schema(
    [
        *(("kind", pa.string()), ("layer", pa.int32()), ("entry", pa.int64()), ("other", pa.int64())),
        *(("label", pa.string()), ("effect", pa.float64()), ("p", pa.float64()), ("tokens", pa.int64())),
    ]
)
"""Columns of ``anomalies.parquet``."""


class LayerCounts(NamedTuple):
    """What was counted in one layer; counts of disjoint parts add up, array by array."""

    counts: np.ndarray
    """Selections per entry and class of tokens, int32 ``[N, Strata.count_columns]``."""
    weights: np.ndarray
    """Summed gate scores, absolute and signed read weights per document group, float64 ``[group, N, 3]``."""
    sums: np.ndarray
    """Sums per class of tokens, float64 ``[class, len(SUMS)]``."""
    shares: np.ndarray
    """Histogram of read shares over selections, int64 ``[SHARE_BINS]``."""
    entropies: np.ndarray
    """Histogram of gate entropy / ln K over tokens, int64 ``[SHARE_BINS]``."""
    margins: np.ndarray
    """Histogram of selection margins, int64 ``[MARGIN_BINS]``."""


class LayerCensus(NamedTuple):
    """One layer, counted and summed up."""

    summary: dict[str, Any]
    """Its part of ``census.json``."""
    groups: list[dict[str, Any]]
    """The same per document group, without profiles."""
    cells: np.ndarray
    """Selections per cell and entry of the bank, int32 ``[cell, N]``."""
    weights: np.ndarray
    """``LayerCounts.weights``."""


def write_aggregates(recording: Path, info: RecordingInfo) -> None:
    """Write all aggregates of a recording whose parts are finished.

    These are ``usage``, ``bias``, ``contexts``, ``firing``, ``titles``, ``neighbours`` and ``anomalies`` as Parquet,
    and ``census.json``; their hashes go to ``recording.json``.

    Raises:
        InputError: a part or another file is missing, damaged, or not of this recording.
    """
    check_sources(recording, info)
    census = write_census(recording, info)
    write_preferences(recording, info)
    information = write_firing(recording, info)
    write_anomalies(recording, info, write_neighbours(recording, info))
    held_out = held_out_information(recording, info, _divide(recording, info))
    for layer, counted, asked in zip(census["layers"], information, held_out, strict=True):
        layer["profiles"]["information"].update(counted, **asked)
    write_json(recording / "census.json", census)
    write_info(recording, list_files(recording, info))


def write_census(recording: Path, info: RecordingInfo) -> dict[str, Any]:
    """Count all layers; writes ``usage.parquet`` and returns what ``census.json`` holds."""
    strata = _divide(recording, info)
    cells = np.zeros((strata.cells, info.knowledge_num), np.int64)
    weights = np.zeros((len(strata.groups), info.knowledge_num, 3))
    layers: list[LayerCensus] = []
    with atomic_path(recording / "usage.parquet") as temporary:
        writer = TableWriter(temporary)
        for layer in in_threads(lambda axis: _census_of_layer(recording, info, axis, strata), range(len(info.layers))):
            cells += layer.cells
            weights += layer.weights
            writer.write(_usage_table(info.layers[len(layers)], layer, strata))
            layers.append(layer._replace(cells=layer.cells.sum(0)))
        writer.close()
    folds, spread = cells.reshape(len(strata.groups), strata.folds, -1), strata.jackknife()
    return {
        "tokens": info.rows,
        "loss": layers[0].summary["reading"]["loss"],
        "interval_unit": strata.unit,
        "folds": strata.folds,
        "critical": spread.critical if spread.known else None,
        "equal_documents": spread.equal_documents,
        "longest_document": strata.longest,
        "all_layers": evenness(folds.sum(0), weights.sum(0), spread, info.distinct, info.bank_groups),
        "overlap": layer_overlap(
            np.stack([one.cells[info.entries_of(layer)] for layer, one in zip(info.layers, layers, strict=True)]),
            info.bank_groups,
        ),
        "layers": [layer.summary for layer in layers],
        "groups": {
            name: {
                "all_layers": evenness(
                    folds[number], weights[number], strata.jackknife(number), info.distinct, info.bank_groups
                ),
                "layers": [layer.groups[number] for layer in layers],
            }
            for number, name in enumerate(strata.groups if len(strata.groups) > 1 else ())
        },
    }


def write_preferences(recording: Path, info: RecordingInfo) -> None:
    """Write ``bias.parquet``: what kind of init sentence each layer prefers, from ``usage.parquet``."""
    usage = read_parquet(recording / "usage.parquet")
    layer, entry, folds = usage["layer"].to_numpy(), usage["entry"].to_numpy(), matrix(usage["folds"])
    strata = _divide(recording, info)
    labels = entry_labels(read_parquet(recording / "bank_init.parquet").to_pandas(), strata.token_frequency)

    def prefer(number: int) -> pd.DataFrame:
        here = layer == number
        counts = np.zeros((folds.shape[1], info.knowledge_num), np.int64)
        counts[:, entry[here]] = folds[here].T
        own = info.entries_of(number)
        return layer_preferences(counts[:, own], labels.among(own), seed=number, spread=strata.jackknife())

    tables = dict(zip(info.layers, in_threads(prefer, info.layers), strict=True))
    write_table(recording / "bias.parquet", pa.Table.from_pandas(adjust(tables), preserve_index=False))


def write_anomalies(recording: Path, info: RecordingInfo, pairs: pd.DataFrame) -> None:
    """Write ``anomalies.parquet``: what may stand out, by how far and by what chance; ``report/anomalies.py`` decides.

    Args:
        recording: its folder.
        info: its description.
        pairs: of ``write_neighbours``.
    """
    text, tokenizer = row_text(recording, info), Tokenizer.load(recording / "tokenizer.json")
    found = [*in_threads(lambda layer: layer_anomalies(recording, info, layer, text, tokenizer), info.layers), pairs]
    rows = [row for table in found for row in table.to_dict("records")]
    blank = {"entry": -1, "other": -1, "label": ""}
    table = pa.Table.from_pylist([blank | row for row in rows], schema=ANOMALIES)
    write_table(recording / "anomalies.parquet", table.sort_by([(name, "ascending") for name in ANOMALIES.names[:4]]))


def count_layer(recording: Path, info: RecordingInfo, axis: int, strata: Strata) -> LayerCounts:
    """Count one layer over all parts.

    Args:
        recording: its folder.
        info: its description.
        axis: number of the layer among ``info.layers``.
        strata: how tokens are told apart.
    """
    n_classes = strata.cells + len(strata.positions) + len(strata.frequencies)
    counted = LayerCounts(
        counts=np.zeros((info.knowledge_num, strata.count_columns), np.int32),
        weights=np.zeros((len(strata.groups), info.knowledge_num, 3)),
        sums=np.zeros((n_classes, len(SUMS))),
        shares=np.zeros(SHARE_BINS, np.int64),
        entropies=np.zeros(SHARE_BINS, np.int64),
        margins=np.zeros(MARGIN_BINS, np.int64),
    )
    prefix = f"l{info.layers[axis]}_"
    kinds = [kind for kind in info.kinds if kind not in ("head_read", "slot_read")]
    columns = ["doc", "pos", "token", "loss", *(prefix + kind for kind in ("indices", *kinds))]
    for number, (part, first_row) in enumerate(zip(info.parts, info.first_rows(), strict=True)):
        table = read_columns(recording, info, part, columns)
        doc, pos, token, loss = (table[name].to_numpy() for name in columns[:4])
        indices = matrix(table[prefix + "indices"]).astype(np.uint32)
        found = {kind: matrix(table[prefix + kind]).astype(np.float32) for kind in kinds}
        gate, read, margin = found["gate"], found["read"], found["margin"]
        by_score = found.get("by_score", np.ones_like(gate))  # without a bias, all
        compared = found.get("read_norm", np.abs(read)), margin, found.get("score_margin", margin), by_score
        classes = strata.sum_classes(doc, pos, token, first_row)
        group = strata.group_of(doc)
        tally(indices, gate, read, group, strata.count_classes(classes, seed=number), counted.counts, counted.weights)
        histograms = counted.shares, counted.entropies, counted.margins
        read_tokens(gate, np.abs(read), *compared, loss, classes, counted.sums, *histograms)
    return counted


def token_frequency(recording: Path, info: RecordingInfo) -> np.ndarray:
    """Occurrences of every token id in a recording, int64 ``[vocab]``."""
    vocab = Tokenizer.load(recording / "tokenizer.json").vocab_size
    parts = (read_columns(recording, info, part, ["token"])["token"].to_numpy() for part in info.parts)
    return np.sum([np.bincount(tokens, minlength=vocab) for tokens in parts], axis=0)


def _divide(recording: Path, info: RecordingInfo) -> Strata:
    documents = read_parquet(recording / "documents.parquet").to_pandas()
    return divide(documents, token_frequency(recording, info), info.window)


def _census_of_layer(recording: Path, info: RecordingInfo, axis: int, strata: Strata) -> LayerCensus:
    counted, spread = count_layer(recording, info, axis, strata), strata.jackknife()
    counts, sums, k = counted.counts, counted.sums, info.selected
    cells = np.ascontiguousarray(counts[:, : strata.cells].T)
    own = info.entries_of(info.layers[axis])
    by_fold, weights = cells[:, own].reshape(len(strata.groups), strata.folds, -1), counted.weights[:, own]
    sums_by_fold = sums[: strata.cells].reshape(len(strata.groups), strata.folds, -1)
    histograms = {
        "read_share_histogram": counted.shares.tolist(),
        "gate_entropy_histogram": counted.entropies.tolist(),
        "margin_histogram": counted.margins.tolist(),
    }
    reading = reading_statistics(sums[: strata.cells], k) | reading_errors(sums_by_fold.sum(0), k, spread) | histograms
    summary = {
        "layer": info.layers[axis],
        **evenness(by_fold.sum(0), weights.sum(0), spread, info.distinct),
        "reading": reading,
        "profiles": _profiles(counts[own], sums, strata, k),
    }
    groups = [
        {"layer": info.layers[axis], **evenness(by_fold[g], weights[g], strata.jackknife(g), info.distinct)}
        | {"reading": reading_statistics(sums_by_fold[g], k)}
        for g in range(len(strata.groups))
    ]
    return LayerCensus(summary, groups, cells, counted.weights)


def _profiles(counts: np.ndarray, sums: np.ndarray, strata: Strata, selected: int) -> dict[str, Any]:
    """Position and frequency profiles, and the information between entry and class beside its level by chance."""
    found: dict[str, Any] = {"information": {}}
    start, offset = strata.cells, len(strata.positions) + len(strata.frequencies)
    for name, classes in (("position", strata.positions), ("frequency", strata.frequencies)):
        here = slice(start, start + len(classes))
        real, shuffled = counts[:, here], counts[:, start + offset : start + offset + len(classes)]
        found[name] = profile(classes, real, shuffled, sums[here], selected)
        found["information"][name] = mutual_information(real)
        found["information"][f"even_{name}"] = mutual_information(shuffled)
        start += len(classes)
    return found


def _usage_table(layer: int, counted: LayerCensus, strata: Strata) -> dict[str, Any]:
    folds = counted.cells.reshape(len(strata.groups), strata.folds, -1).sum(0)
    count, weights = folds.sum(0), counted.weights.sum(0)
    used = np.flatnonzero(count)
    return {
        "layer": np.full(len(used), layer, np.uint16),
        "entry": used.astype(np.uint32),
        "count": count[used].astype(np.int64),
        "gate_sum": weights[used, 0],
        "read_sum": weights[used, 1],
        "read_signed_sum": weights[used, 2],
        "folds": fixed_lists(folds[:, used].T, pa.uint32()),
    }
