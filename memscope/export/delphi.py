"""A recording as delphi's cache of sparse latents, which delphi explains and scores (EleutherAI, ``eai-delphi`` 0.1.3).

    export_delphi(Recording("recordings/demo"), Path("exports/delphi"))

    exports/delphi/latents/blocks.0.memory/0_3275.safetensors   entries 0 to 3275 of layer 0
    exports/delphi/latents/blocks.0.memory/config.json          the fields of delphi's CacheConfig, and the model's name
    exports/delphi/tokenizer.json, tokenizer_config.json        for AutoTokenizer.from_pretrained(...)

A shard has ``locations`` ``[n, 3]`` (sequence, position, entry - first entry of the shard), sorted by entry and then
token, ``activations`` ``[n]`` float16 and ``tokens`` ``[sequence, position]``. delphi reads the tokens of the shard
that it opens first, so all shards hold them. Sequences are equally long: documents are cut, and short ones are padded
on the right with the pad token. The folder of a layer is named by the module that selects; where a layer has entries of
its own, latents are their numbers in the layer.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from memscope.base.errors import InputError
from memscope.base.files import disk_errors, write_json
from memscope.export.interchange import entry_runs, latents, new_folder, read_activations, scored_sites
from memscope.query.recording import Recording
from memscope.recording.part_reader import SelectionReader

SPLITS = 5
"""Shards per layer that delphi itself writes by default."""
_EXAMPLE = 32
"""delphi cuts sequences into examples of this many tokens; a sequence must hold a whole number of examples."""
_SILENT = 1e-5
"""delphi's cache leaves out activations up to this size."""
_NARROW = 2**16
"""Numbers up to this bound are stored in 16 bits."""


class DelphiExport(NamedTuple):
    """The files that were written."""

    latents: Path
    """The folder to give to delphi's ``LatentDataset``."""
    sequences: int
    length: int
    """Tokens per sequence, padding included."""
    padding: float
    """Share of all positions that are padding."""
    activations: int
    """Locations in all shards."""


class _Sequences(NamedTuple):
    """The layout of documents in sequences."""

    tokens: int
    """Document tokens per sequence, at most."""
    length: int
    """Tokens per sequence, rounded up to whole examples."""
    first_row: np.ndarray
    """First row of every document, int64 ``[document]``."""
    first_sequence: np.ndarray
    """First sequence of every document and one past the last, int64 ``[document + 1]``."""

    def place(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sequence and position of rows."""
        doc = np.searchsorted(self.first_row, rows, side="right") - 1
        offset = rows.astype(np.int64) - self.first_row[doc]
        return self.first_sequence[doc] + offset // self.tokens, offset % self.tokens


def export_delphi(
    recording: Recording, out: Path, width_splits: int = SPLITS, sequence_tokens: int | None = None
) -> DelphiExport:
    """Write a recording in delphi's layout, shard by shard; memory holds one shard and the token ids.

    Args:
        recording: the recording.
        out: folder to create.
        width_splits: shards per layer, over equal ranges of entries.
        sequence_tokens: tokens of a document per sequence; none takes the recording's window, or the longest document
            if that is shorter. 32, the length of delphi's examples, avoids examples that are only padding.

    Raises:
        InputError: ``out`` exists, a number is out of range, or the recording has no scores.
    """
    info = recording.info
    sites = scored_sites(recording)
    for site in sites:
        entries = latents(info, site)
        if not 1 <= width_splits <= len(entries):
            raise InputError(f"cannot split {len(entries)} {site.word(2)} into {width_splits} shards; choose fewer")
    sequences = _plan(recording, sequence_tokens)
    reader, usage = SelectionReader(recording.path, info), recording.usage_table()
    written = 0
    with new_folder(out) as folder:
        tokens = _token_matrix(recording, sequences)
        for site in sites:
            own = latents(info, site)
            bounds = np.linspace(own.start, own.stop, width_splits + 1).astype(int).tolist()
            module = folder / "latents" / site.module.replace("/", "_")
            module.mkdir(parents=True)
            for first, past in pairwise(bounds):
                used = usage[(usage["layer"] == site.layer) & usage["entry"].between(first, past - 1)]
                shard = _read_shard(reader, site.layer, used, range(first, past), sequences)
                path = module / f"{first - own.start}_{past - 1 - own.start}.safetensors"
                with disk_errors(path):
                    save_file({**shard, "tokens": tokens}, path)
                written += len(shard["activations"])
            write_json(module / "config.json", _config(recording, sequences, width_splits))
        recording.tokenizer.save(folder / "tokenizer.json")
    return DelphiExport(
        latents=out / "latents",
        sequences=len(tokens),
        length=sequences.length,
        padding=1 - info.rows / tokens.size,
        activations=written,
    )


def _plan(recording: Recording, sequence_tokens: int | None) -> _Sequences:
    documents = recording.documents
    rows = documents["rows"].to_numpy()
    tokens = min(recording.info.window, int(rows.max())) if sequence_tokens is None else sequence_tokens
    if tokens < 1:
        raise InputError(f"sequence_tokens is {tokens}; it must be 1 or more")
    return _Sequences(
        tokens=tokens,
        length=-(-tokens // _EXAMPLE) * _EXAMPLE,
        first_row=documents["first_row"].to_numpy(),
        first_sequence=np.concatenate([[0], np.cumsum(-(-rows // tokens))]),
    )


def _token_matrix(recording: Recording, sequences: _Sequences) -> np.ndarray:
    """Padded token ids, int32 ``[sequence, position]``."""
    ids = recording.token_ids
    shape = (int(sequences.first_sequence[-1]), sequences.length)
    tokens = np.full(shape, recording.tokenizer.pad, np.int32)
    tokens[sequences.place(np.arange(len(ids)))] = ids
    return tokens


def _read_shard(
    reader: SelectionReader, layer: int, used: pd.DataFrame, entries: range, sequences: _Sequences
) -> dict[str, np.ndarray]:
    """Locations and activations of a range of entries, by entry, sequence and position.

    Args:
        reader: of the recording.
        layer: memory layer.
        used: ``entry count`` of those entries that the layer selected.
        entries: the range.
        sequences: the layout of tokens.
    """
    widest = max(len(entries), int(sequences.first_sequence[-1]), sequences.length)
    room = int(used["count"].sum())
    locations = np.empty((room, 3), np.uint16 if widest <= _NARROW else np.uint32)
    activations = np.empty(room, np.float16)
    filled = 0
    for run in entry_runs(used["entry"].tolist(), used["count"].tolist(), len(entries)):
        entry, row, gate = read_activations(reader, layer, run[0], run[-1])
        order = np.argsort(entry, kind="stable")
        order = order[np.abs(gate[order]) > _SILENT]
        here = slice(filled, filled + len(order))
        sequence, position = sequences.place(row[order])
        locations[here] = np.stack([sequence, position, entry[order] - entries.start], axis=1)
        activations[here] = gate[order]
        filled = here.stop
    return {"locations": locations[:filled], "activations": activations[:filled]}


def _config(recording: Recording, sequences: _Sequences, width_splits: int) -> dict[str, Any]:
    """``config.json`` with the keys of delphi's ``CacheConfig``; its data set is not on a hub."""
    return {
        "dataset_repo": recording.info.corpus_name,
        "dataset_split": "",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": 1,
        "cache_ctx_len": sequences.length,
        "n_tokens": recording.info.rows,
        "n_splits": width_splits,
        "model_name": recording.info.run_name,
    }
