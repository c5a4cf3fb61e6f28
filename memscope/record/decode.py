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

Drift and nearest tokens are null where no start is known. The value that the lens reads is the adapter's (``values`` in
``run/subject.py``).

The init space is the embedding table and projection that made the bank's starts from sentences; training does not
change it. The lens weighs all read heads equally, takes the mean over slots and leaves out the output gate, which
depends on the input.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from memscope.base.parquet import ENTRY_ROW_GROUP, write_table
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import Site
from memscope.run.subject import Batches, Drifted, Subject

N_NEAREST = 10
N_LENS = 10
_CHUNK = 2048


class Nearest(NamedTuple):
    """Tokens nearest to vectors, best first."""

    tokens: Int[Tensor, "row top"]
    cosine: Float[Tensor, "row top"]


def write_decodings(
    subject: Subject, info: RecordingInfo, path: Path, used: dict[int, np.ndarray], sample: Callable[[], Batches]
) -> None:
    """Decode every entry of a recording.

    Args:
        subject: the recorded model.
        info: what was recorded of it.
        path: Parquet file to write.
        used: per layer, the entries that it selected; only these get a logit lens in the layer.
        sample: gives text for models whose entries have no value of their own.
    """
    drifted = subject.drifted()
    columns: dict[str, Any] = {"entry": np.arange(info.knowledge_num, dtype=np.uint32)}
    if drifted is None:
        columns |= no_drift(info.knowledge_num)
    else:
        known = pa.table(_drift_columns(drifted))
        without = pa.table(no_drift(info.knowledge_num - known.num_rows))  # sentences are no weights, and come last
        together = pa.concat_tables([known, without.select(known.column_names).cast(known.schema)])
        columns |= {name: together[name] for name in together.column_names}
    for site in info.sites:
        if "lens" in site.has:
            columns |= _lens_columns(subject, info.knowledge_num, site, used[site.layer], sample)
    write_table(path, columns, ENTRY_ROW_GROUP)


def _drift_columns(drifted: Drifted) -> dict[str, pa.Array | np.ndarray]:
    now, before, space, token_ids = drifted
    n, n_slots, _ = now.shape
    slot_drift = 1 - torch.cosine_similarity(now, before, dim=-1)  # [N, L]
    top = N_NEAREST if n_slots == 1 else 1
    nearest = nearest_tokens(now.flatten(0, 1), space, top)
    nearest_before = nearest_tokens(before.flatten(0, 1), space, top)
    kept, kept_before = (
        pa.array(kept_share(found.tokens.reshape(n, -1).tolist(), token_ids, n_slots), pa.float32())
        for found in (nearest, nearest_before)
    )
    return {
        "drift": slot_drift.mean(-1).numpy(),
        "nearest": _lists(nearest.tokens.reshape(n, -1), pa.uint32()),
        "nearest_cosine": _lists(nearest.cosine.reshape(n, -1), pa.float32()),
        "kept": kept,
        "kept_at_init": kept_before,
        "slot_drift": _lists(slot_drift, pa.float32()),
    }


def no_starts(entries: int) -> pa.Table:
    """``bank_init.parquet`` of entries of which nothing is known: null in all columns but ``entry``."""
    texts = pa.list_(pa.string())
    columns = {"sentence": pa.string(), "token_ids": pa.list_(pa.uint32())}
    columns |= dict.fromkeys(("uuid", "subject", "predicate", "object"), texts)
    numbers = {"entry": pa.array(np.arange(entries, dtype=np.uint32))}
    return pa.table(numbers | {name: pa.nulls(entries, kind) for name, kind in columns.items()})


def no_drift(entries: int) -> dict[str, pa.Array]:
    """The same columns, null, of entries whose start is not known."""
    numbers, lists = dict.fromkeys(("drift", "kept", "kept_at_init"), pa.float32()), pa.list_(pa.float32())
    kinds = numbers | {"nearest": pa.list_(pa.uint32()), "nearest_cosine": lists, "slot_drift": lists}
    return {name: pa.nulls(entries, kind) for name, kind in kinds.items()}


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
def logit_lens(
    subject: Subject, layer: int, entries: Int[Tensor, " row"], sample: Batches = ()
) -> Float[Tensor, "row vocab"]:
    """Logits that entries point to in a layer: what they add to the residual stream, final norm, unembedding."""
    return subject.unembed(subject.values(layer, entries, sample)).float()


def _lens_columns(
    subject: Subject, n: int, site: Site, entries: np.ndarray, sample: Callable[[], Batches]
) -> dict[str, pa.Array]:
    """Top and bottom tokens and their logits per entry; null for entries not in ``entries``, or without a value."""
    device = next(subject.model.parameters()).device
    tokens, logits = torch.zeros(2, n, N_LENS, dtype=torch.int64), torch.full((2, n, N_LENS), torch.nan)
    for start in range(0, len(entries), _CHUNK):
        chunk = torch.from_numpy(entries[start : start + _CHUNK].astype(np.int64))
        lens = logit_lens(subject, site.layer, chunk.to(device), sample())
        for end, largest in enumerate((True, False)):
            best = lens.topk(N_LENS, largest=largest)
            tokens[end, chunk], logits[end, chunk] = best.indices.cpu(), best.values.cpu()
    unknown = logits.isnan().any(-1).any(0).numpy()
    columns = {}
    for end, name in enumerate(("top", "bottom")):
        columns[f"l{site.layer}_{name}"] = _lists(tokens[end], pa.uint32(), unknown)
        columns[f"l{site.layer}_{name}_logits"] = _lists(logits[end], pa.float32(), unknown)
    return columns


def _lists(values: Tensor, kind: pa.DataType, null: np.ndarray | None = None) -> pa.Array:
    """Rows of a matrix as Arrow lists."""
    flat = pa.array(values.reshape(-1).numpy()).cast(kind)
    offsets = pa.array(np.arange(0, values.numel() + 1, values.shape[1], dtype=np.int32))
    mask = None if null is None else pa.array(null)
    return pa.ListArray.from_arrays(offsets, flat, mask=mask)
