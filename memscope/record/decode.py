"""Decode entries into tokens: ``decodings.parquet``, one row per entry.

``drift``          1 - cosine between the entry at initialisation and now, mean over slots; 0 = unchanged
``nearest``        tokens whose vectors in the init space are nearest by cosine: the 10 nearest of a pooled entry, the
                   nearest of every slot when entries have several
``kept``           share of those that are in the init sentence (pooled), or share of the sentence's slots whose
                   nearest token is still the one they started from (slot-wise)
``kept_at_init``   the same before training
``l{l}_top``       logit lens (nostalgebraist 2020; of values, Geva et al. arXiv 2012.14913): W_O W_V entry through the
``l{l}_bottom``    final norm and unembedding, highest and lowest tokens, for layers that selected the entry; with
                   ``_logits`` their logits

The init space is the embedding table and projection that made the bank's starts from sentences; training does not
change it. The lens weighs all read heads equally, takes the mean over slots and leaves out the output gate, which
depends on the input.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from memscope.base.parquet import ENTRY_ROW_GROUP, write_table
from memscope.model.transformer import MemoryTransformer
from memscope.run.bank_init import load_bank_init
from memscope.run.checkpoint import LoadedRun
from memscope.run.provenance import start_entries, start_table

N_NEAREST = 10
N_LENS = 10
_CHUNK = 2048


class Nearest(NamedTuple):
    """Tokens nearest to vectors, best first."""

    tokens: Int[Tensor, "row top"]
    cosine: Float[Tensor, "row top"]


def write_decodings(run: LoadedRun, path: Path, used: dict[int, np.ndarray]) -> None:
    """Decode every entry of a run's bank.

    Args:
        run: the run.
        path: Parquet file to write.
        used: per memory layer, the entries that it selected; only these get a logit lens in the layer.
    """
    assert run.model.bank is not None
    init = load_bank_init(run.path)
    now, before = run.model.bank.entries.detach().float().cpu(), torch.from_numpy(start_entries(run))
    space = torch.from_numpy(init.table @ init.projection)  # [vocab, D]
    token_ids = start_table(run, ["token_ids"])["token_ids"].to_pylist()
    n, n_slots, _ = now.shape
    slot_drift = 1 - torch.cosine_similarity(now, before, dim=-1)  # [N, L]
    top = N_NEAREST if n_slots == 1 else 1
    nearest = nearest_tokens(now.flatten(0, 1), space, top)
    nearest_before = nearest_tokens(before.flatten(0, 1), space, top)
    columns: dict[str, Any] = {
        "entry": np.arange(n, dtype=np.uint32),
        "drift": slot_drift.mean(-1).numpy(),
        "nearest": _lists(nearest.tokens.reshape(n, -1), pa.uint32()),
        "nearest_cosine": _lists(nearest.cosine.reshape(n, -1), pa.float32()),
        "kept": pa.array(kept_share(nearest.tokens.reshape(n, -1).tolist(), token_ids, n_slots), pa.float32()),
        "kept_at_init": pa.array(
            kept_share(nearest_before.tokens.reshape(n, -1).tolist(), token_ids, n_slots), pa.float32()
        ),
        "slot_drift": _lists(slot_drift, pa.float32()),
    }
    for layer, entries in used.items():
        columns |= _lens_columns(run.model, layer, entries)
    write_table(path, columns, ENTRY_ROW_GROUP)


@torch.no_grad()
def nearest_tokens(vectors: Float[Tensor, "row width"], space: Float[Tensor, "vocab width"], top: int) -> Nearest:
    """The ``top`` rows of ``space`` nearest to every vector by cosine."""
    space = torch.nn.functional.normalize(space, dim=-1)
    chunks = [
        (torch.nn.functional.normalize(chunk, dim=-1) @ space.T).topk(top, dim=-1) for chunk in vectors.split(_CHUNK)
    ]
    return Nearest(torch.cat([c.indices for c in chunks]), torch.cat([c.values for c in chunks]))


def kept_share(nearest: list[list[int]], token_ids: list[list[int] | None], n_slots: int) -> list[float | None]:
    """Share of the nearest tokens that are in the init sentence; none for entries without a sentence.

    Equivalent, pooled: for each of the nearest, is it in the sentence? Slot-wise: for each slot that started from a
    token, is its nearest that token?
    """
    shares: list[float | None] = []
    for now, ids in zip(nearest, token_ids, strict=True):
        if not ids:
            shares.append(None)
        elif n_slots == 1:
            shares.append(len(set(ids) & set(now)) / len(now))
        else:
            shares.append(sum(a == b for a, b in zip(now, ids, strict=False)) / len(ids))
    return shares


@torch.no_grad()
def logit_lens(model: MemoryTransformer, layer: int, entries: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
    """Logits that reading entries in a layer points to: W_O W_V mean-slot, final norm, unembedding."""
    assert model.bank is not None
    return model.unembed(model.bank.entries[entries].mean(1) @ model.memory_layer(layer).read.write_matrix.T)


def _lens_columns(model: MemoryTransformer, layer: int, entries: np.ndarray) -> dict[str, pa.Array]:
    """Top and bottom tokens and their logits per entry of the bank; null for entries not in ``entries``."""
    assert model.bank is not None
    n = len(model.bank.entries)
    device = model.embed.weight.device
    tokens, logits = torch.zeros(2, n, N_LENS, dtype=torch.int64), torch.zeros(2, n, N_LENS)
    for start in range(0, len(entries), _CHUNK):
        chunk = torch.from_numpy(entries[start : start + _CHUNK].astype(np.int64))
        lens = logit_lens(model, layer, chunk.to(device)).float()
        for end, largest in enumerate((True, False)):
            best = lens.topk(N_LENS, largest=largest)
            tokens[end, chunk], logits[end, chunk] = best.indices.cpu(), best.values.cpu()
    unused = np.ones(n, bool)
    unused[entries] = False
    columns = {}
    for end, name in enumerate(("top", "bottom")):
        columns[f"l{layer}_{name}"] = _lists(tokens[end], pa.uint32(), unused)
        columns[f"l{layer}_{name}_logits"] = _lists(logits[end], pa.float32(), unused)
    return columns


def _lists(values: Tensor, kind: pa.DataType, null: np.ndarray | None = None) -> pa.Array:
    """Rows of a matrix as Arrow lists."""
    flat = pa.array(values.reshape(-1).numpy()).cast(kind)
    offsets = pa.array(np.arange(0, values.numel() + 1, values.shape[1], dtype=np.int32))
    mask = None if null is None else pa.array(null)
    return pa.ListArray.from_arrays(offsets, flat, mask=mask)
