"""Small recordings of every kind of layer that selects, with and without what a memory has.

    write_kind("experts", tmp_path / "experts")

Rows are random. Nothing in the words of the texts is a word that ``FORBIDDEN`` holds.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from memscope.base.files import write_text
from memscope.base.parquet import write_table
from memscope.census.aggregate import write_aggregates
from memscope.config.load import Config, dump_config
from memscope.config.model import ModelConfig
from memscope.record.decode import no_starts
from memscope.recording.info import STARTS, RecordingInfo
from memscope.recording.sites import Site
from memscope.recording.token_rows import NONE, TokenRows
from memscope.testing.recordings import MEMORY, write_recording
from tests.synthetic import make_rows

LENGTHS = (70, 40, 60, 30, 50, 44)
FORBIDDEN = ("nan", "attention", "read", "reads", "sentence", "sentences", "drift", "random", "memory", "kept", "bank")
"""Whole words that nothing says of a recording without reads, starts and drift."""
ENTRIES = ("entry", "entries")
"""Words of a memory; these recordings have experts, neurons and features."""
MARGIN = ("margin", "rejected")
"""Words that nothing says of a recording without margins."""
SCORES = ("score", "scores", "gate", "entropy")
"""Words that nothing says of a recording without scores."""


def _rows(layers: int, entries: int, selected: int, seed: int = 0) -> TokenRows:
    """Rows whose layers have entries of their own, numbered through the recording; scores fall along K."""
    rows = make_rows(LENGTHS, seed, entries=entries, layers=layers, selected=selected)
    assert rows.gate is not None
    gate = -np.sort(-rows.gate, axis=-1)
    own = (np.arange(layers) * entries)[:, None]
    return replace(rows, indices=rows.indices + own, gate=gate, read=None, margin=None)


def _without_predictions(rows: TokenRows) -> TokenRows:
    return replace(rows, predicted=np.full(len(rows.doc), NONE), loss=np.full(len(rows.doc), np.nan, np.float32))


def _sites(kind: str, layers: int, entries: int, **more: object) -> tuple[Site, ...]:
    return tuple(
        Site.model_validate(
            {
                "layer": layer,
                "module": f"model.layers.{layer}.mlp.{kind}",
                "kind": kind,
                "first_entry": layer * entries,
                "entries": entries,
                "selected": 4,
                "has": ("scores", "lens"),
                **more,
            }
        )
        for layer in range(layers)
    )


def _experts(folder: Path) -> RecordingInfo:
    groups = ["code", "prose"] * 3
    return write_recording(folder, _rows(3, 16, 4), sites=_sites("experts", 3, 16), groups=groups)


def _selections(folder: Path) -> RecordingInfo:
    rows = _without_predictions(replace(_rows(2, 16, 4), gate=None))
    return write_recording(folder, rows, sites=_sites("experts", 2, 16, has=()), predictions=False)


def _features(folder: Path) -> RecordingInfo:
    """A layer whose tokens select from none to four."""
    rows = _rows(2, 32, 4)
    assert rows.gate is not None
    none = np.arange(4) >= np.random.default_rng(1).integers(0, 5, rows.gate.shape[:2])[..., None]
    indices, gate = np.where(none, NONE, rows.indices), np.where(none, 0, rows.gate).astype(np.float16)
    rows = replace(rows, indices=indices, gate=gate)
    return write_recording(folder, rows, sites=_sites("features", 2, 32, varies=True, has=("scores",)))


def _neurons(folder: Path) -> RecordingInfo:
    return write_recording(folder, _rows(2, 48, 4), sites=_sites("neurons", 2, 48))


def _peer(folder: Path) -> RecordingInfo:
    """Layers that read by an activation, with a sign, and know no margin."""
    rows = _rows(2, 32, 4)
    assert rows.gate is not None
    signs = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], rows.gate.shape)
    read = (rows.gate * signs).astype(np.float16)
    rows = replace(rows, read=read, read_norm=np.abs(read))
    return write_recording(
        folder, rows, sites=_sites("peer", 2, 32, signed_reads=True, has=("scores", "reads", "lens"))
    )


def _mixed(folder: Path) -> RecordingInfo:
    """A memory layer of 64 entries that selects four, and a layer of 16 experts that selects two."""
    memory, experts = make_rows(LENGTHS, 0, entries=64, layers=1), _rows(1, 16, 2)
    assert memory.gate is not None and memory.read is not None and memory.margin is not None
    assert experts.gate is not None
    n = len(memory.doc)

    def fill(values: np.ndarray, shape: tuple[int, int], blank: float) -> np.ndarray:
        filled = np.full((n, 1, *shape[1:]), blank, values.dtype)
        filled[..., : values.shape[-1]] = values
        return filled

    rows = replace(
        memory,
        indices=np.concatenate([memory.indices, fill(experts.indices + 64, (n, 4), NONE)], 1),
        gate=np.concatenate([memory.gate, fill(experts.gate, (n, 4), np.nan)], 1),
        read=np.concatenate([memory.read, np.full((n, 1, 4), np.nan, np.float16)], 1),
        margin=np.concatenate([memory.margin, np.full((n, 1, 1), np.nan, np.float16)], 1),
    )
    sites = (
        Site(layer=0, module="blocks.0.memory", kind="memory", entries=64, selected=4, read_heads=4, has=MEMORY),
        Site(
            layer=1,
            module="model.layers.1.mlp.experts",
            kind="experts",
            first_entry=64,
            entries=16,
            selected=2,
            has=("scores",),
        ),
    )
    return write_recording(folder, rows, sites=sites)


def _text(folder: Path) -> RecordingInfo:
    """A layer whose tokens select from none to four of 24 sentences, and read their words."""
    rows = make_rows(LENGTHS, 2, entries=24, layers=1, selected=4)
    assert rows.gate is not None and rows.read is not None
    none = np.arange(4) >= np.random.default_rng(1).integers(0, 5, rows.gate.shape[:2])[..., None]
    indices = np.where(none, NONE, rows.indices)
    gate, read = (np.where(none, 0, np.abs(values)).astype(np.float16) for values in (rows.gate, rows.read))
    each = np.random.default_rng(2).dirichlet(np.ones(6), read.shape)
    slots = (read[..., None] * each).reshape(*read.shape[:2], 24).astype(np.float16)
    rows = replace(rows, indices=indices, gate=gate, read=read, slot_read=slots)
    sites = _sites(
        "text",
        1,
        24,
        module="blocks.0.text",
        varies=True,
        read_heads=4,
        slots=6,
        has=("scores", "reads", "margin", "starts", "lens"),
    )
    return write_recording(folder, rows, sites=sites, slot_weights=True)


KINDS: dict[str, Callable[[Path], RecordingInfo]] = {
    "experts": _experts,
    "selections": _selections,
    "features": _features,
    "neurons": _neurons,
    "peer": _peer,
    "mixed": _mixed,
    "text": _text,
}
"""Recordings by name: experts with scores, experts of which only the selections are known, features whose number
varies, neurons, experts that an activation reads, one memory layer beside one of experts, and a layer that reads
sentences."""
READING = {"peer": ("read", "reads", "random")}
"""Words of ``FORBIDDEN`` that a kind may be spoken of with."""
SENTENCE = "w5 w6 w7 <b>w8</b>"
"""Text of every sentence of ``text``; its tokens are four."""


def absent(kind: str) -> tuple[str, ...]:
    """Whole words that nothing says of a recording of a kind."""
    if kind == "text":  # it has reads, starts and margins; its entries are no weights, and do not move
        return ("nan", "drift", "memory", "kept", "init")
    return tuple(word for word in FORBIDDEN + ENTRIES + MARGIN if word not in READING.get(kind, ()))


def write_kind(name: str, folder: Path) -> Path:
    """Write a finished recording of a kind; returns its folder."""
    info = KINDS[name](folder)
    if name == "text":
        write_text(folder / "config.yaml", dump_config(Config(model=ModelConfig(n_layers=1))))
    write_table(folder / STARTS, _sentences(info.knowledge_num) if name == "text" else no_starts(info.knowledge_num))
    _write_decodings(folder / "decodings.parquet", info)
    write_aggregates(folder, info)
    return folder


def _sentences(count: int) -> pa.Table:
    """``bank_init.parquet`` of sentences that state a triple each."""
    columns: dict[str, list[object]] = {
        "entry": list(range(count)),
        "sentence": [SENTENCE] * count,
        "token_ids": [[5, 6, 7, 8]] * count,
        **{name: [[f"{name} {n}"] for n in range(count)] for name in ("uuid", "subject", "predicate", "object")},
    }
    return pa.table(columns, no_starts(count).schema)


def _write_decodings(path: Path, info: RecordingInfo) -> None:
    """Drift and nearest tokens of entries that have them, and a lens of a few tokens."""
    n, numbers, tokens = info.knowledge_num, pa.list_(pa.float32()), pa.list_(pa.uint32())
    drifts = np.concatenate([np.full(bank[0].entries, "drift" in bank[0].has) for bank in info.banks])

    def column(value: object, kind: pa.DataType) -> pa.Array:
        return pa.array([value if has else None for has in drifts], kind)

    lens = {
        f"l{site.layer}_{end}{more}": pa.array(
            [value if site.own.start <= entry < site.own.stop else None for entry in range(n)], kind
        )
        for site in info.sites
        if "lens" in site.has
        for end in ("top", "bottom")
        for more, value, kind in (("", [5, 6, 7], tokens), ("_logits", [3.0, 2.0, 1.0], numbers))
    }
    columns = {
        "entry": np.arange(n, dtype=np.uint32),
        "drift": column(0.02, pa.float32()),
        "nearest": column([5, 6], tokens),
        "nearest_cosine": column([0.5, 0.4], numbers),
        "kept": column(None, pa.float32()),
        "kept_at_init": column(None, pa.float32()),
        "slot_drift": column([0.02], numbers),
    }
    write_table(path, columns | lens)
