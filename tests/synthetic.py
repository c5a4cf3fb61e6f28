"""Random rows for recordings, and recordings read back whole: what the census is tested on."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from memscope.record.rows import round_scores
from memscope.recording.aggregates import list_files
from memscope.recording.census_file import read_census, write_census
from memscope.recording.info import RecordingInfo, read_info, write_info
from memscope.recording.part_reader import read_part
from memscope.recording.sites import Site
from memscope.recording.token_rows import TokenRows
from memscope.testing.recordings import SPECIAL, cut_rows, make_info, write_recording, write_tokenizer

__all__ = [
    "MIXED",
    "SPECIAL",
    "all_rows",
    "change_layer",
    "cut",
    "make_info",
    "make_mixed_rows",
    "make_rows",
    "relist",
    "selections_of",
    "write_recording",
    "write_tokenizer",
]


def make_rows(
    lengths: Sequence[int],
    seed: int = 0,
    *,
    entries: int = 64,
    layers: int = 2,
    selected: int = 4,
    heads: int = 1,
    vocab: int = 40,
    levels: int = 0,
    beside: bool = False,
) -> TokenRows:
    """Random rows of documents of some lengths.

    Low entries and low token ids are frequent, high ones rare or absent; the entries of a token differ. With
    ``levels`` gate scores take only so many values, so that there are ties; with ``beside`` a selection bias took part
    and read weights have signs. Losses end with their document.
    """
    chance = np.random.default_rng(seed)
    n = sum(lengths)
    liking = chance.random((n, layers, entries)) ** (np.arange(1, entries + 1) / 3)
    order = np.argsort(-liking, axis=-1)
    gate = chance.random((n, layers, selected), np.float32)
    if levels:
        gate = np.floor(gate * levels) / levels
    gate[chance.random(n) < 0.02] = 0  # some tokens select without any score
    read = gate * chance.standard_normal(gate.shape).astype(np.float32)
    margin = chance.exponential(0.1, (n, layers, heads)).astype(np.float32)
    margin[chance.random(n) < 0.1] = np.nan
    loss = chance.random(n, np.float32) * 9
    loss[np.cumsum(lengths) - 1] = np.nan
    more = {}
    if beside:
        norm = np.abs(read) * (1 + chance.random(read.shape, np.float32) ** 8 * 40)  # in some nearly all cancels
        score_margin = margin - chance.exponential(0.1, margin.shape).astype(np.float32)
        more = {"score_margin": round_scores(score_margin, 6), "read_norm": round_scores(norm, 6)}
        more["by_score"] = chance.random(read.shape) < 0.3
    return TokenRows(
        doc=np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths),
        pos=np.concatenate([np.arange(length, dtype=np.uint32) for length in lengths]),
        token=(chance.random(n) ** 3 * vocab).astype(np.uint32),
        predicted=chance.integers(0, vocab, n),
        loss=loss,
        indices=order[..., :selected],
        gate=round_scores(gate.astype(np.float32), 6),
        read=round_scores(read, 6),
        margin=round_scores(margin, 6),
        **more,
    )


def cut(rows: TokenRows, first: int, last: int) -> TokenRows:
    """``cut_rows`` that takes numpy's numbers too."""
    return cut_rows(rows, int(first), int(last))


def all_rows(recording: Path, info: RecordingInfo) -> TokenRows:
    """Every row of a recording, as stored."""
    parts = [read_part(recording, part, info) for part in info.parts]
    columns = {
        field.name: [getattr(part, field.name) for part in parts]
        for field in fields(TokenRows)
        if getattr(parts[0], field.name) is not None
    }
    return TokenRows(**{name: np.concatenate(values) for name, values in columns.items()})


def relist(recording: Path) -> None:
    """List the files of a recording with the hashes that they have after a test changed them."""
    write_info(recording, list_files(recording, read_info(recording)))


def change_layer(recording: Path, axis: int, **groups: dict[str, float]) -> None:
    """Change numbers of a layer in ``census.json``, ``by_count={"dead": 64}``, and list the file as it is then."""
    census = read_census(recording, read_info(recording))
    layers = list(census.layers)
    parts = {group: getattr(layers[axis], group).model_copy(update=values) for group, values in groups.items()}
    layers[axis] = layers[axis].model_copy(update=parts)
    write_census(recording, census.model_copy(update={"layers": tuple(layers)}))
    relist(recording)


def selections_of(rows: TokenRows, axis: int) -> Iterator[tuple[int, int, int, float, float]]:
    """The selections of a layer, one by one: row, place along K, entry, gate score, read weight."""
    for row, entries in enumerate(rows.indices[:, axis].tolist()):
        for k, entry in enumerate(entries):
            yield row, k, entry, float(rows.gate[row, axis, k]), float(rows.read[row, axis, k])


MIXED = (
    Site(
        layer=0,
        module="a",
        kind="memory",
        entries=24,
        selected=4,
        gate_heads=2,
        read_heads=2,
        has=("scores", "reads", "margin"),
    ),
    Site(layer=1, module="b", kind="experts", first_entry=24, entries=8, selected=2, has=("scores", "margin")),
    Site(
        layer=2,
        module="c",
        kind="features",
        first_entry=32,
        entries=40,
        selected=6,
        varies=True,
        has=("scores", "margin"),
    ),
    Site(layer=4, module="d", kind="selection", first_entry=72, entries=12, selected=3, has=()),
    Site(layer=5, module="e", kind="memory", entries=24, selected=2, has=("scores", "reads", "margin")),
)
"""A memory of two layers; between them a router of experts, features of which a token selects up to 6, and entries
without scores."""


def make_mixed_rows(lengths: Sequence[int], seed: int = 0) -> TokenRows:
    """Random rows of ``MIXED``, as they are read back from a recording: NaN and -1 where a layer has nothing."""
    chance, n, k = np.random.default_rng(seed), sum(lengths), 6
    rows = make_rows(lengths, seed, layers=len(MIXED), selected=k, heads=2)
    assert rows.gate is not None and rows.margin is not None
    indices = np.full(rows.indices.shape, -1)
    gate, read, margin = rows.gate.copy(), np.full_like(rows.gate, np.nan), rows.margin.copy()
    for axis, site in enumerate(MIXED):
        liking = chance.random((n, site.gate_heads, site.entries)) ** (np.arange(1, site.entries + 1) / 6)
        chosen = np.argsort(-liking, axis=-1)[..., : site.selected // site.gate_heads].reshape(n, -1)
        indices[:, axis, : site.selected] = chosen + site.first_entry
        gate[:, axis, site.selected :] = margin[:, axis, site.gate_heads :] = np.nan
        if site.varies:
            fewer = np.arange(site.selected) >= chance.integers(0, site.selected + 1, n)[:, None]
            indices[:, axis, : site.selected][fewer] = -1
            gate[:, axis, : site.selected][fewer] = 0
        if "scores" not in site.has:
            gate[:, axis] = margin[:, axis] = np.nan
        if "reads" in site.has:
            values = chance.exponential(1, (n, site.selected)) ** 3
            read[:, axis, : site.selected] = round_scores(values.astype(np.float32), 6)
    return replace(rows, indices=indices, gate=gate, read=read, margin=margin)
