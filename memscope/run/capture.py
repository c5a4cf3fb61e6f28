"""Capture what every memory layer selects and reads during a forward pass.

    with capture_memory(model) as captured:
        model(tokens)
    captured[layer].indices      # [batch, pos, K]

The hooks only observe: the model's output is the same bit for bit, and the hooks are removed when the block ends.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memscope.base.runtime import autocast
from memscope.model.transformer import MemoryTransformer
from memscope.text.corpus import DocumentWindow, PackedCorpus, WindowBatch, window_batch

_ROWS = 256
_NOTED = ("indices", "gate_scores", "margin")
_DETAIL = ("score_margin", "by_score")


@dataclass
class LayerCapture:
    """One memory layer in the latest forward pass; later passes overwrite it."""

    indices: Int[Tensor, "batch pos K"]
    """Selected entries."""
    gate_scores: Float[Tensor, "batch pos K"]
    """Their gate scores."""
    margin: Float[Tensor, "batch pos head"]
    """Raw score plus selection bias of every gate head's weakest selected entry above its best rejected one."""
    slot_weights: Float[Tensor, "batch pos K slot"]
    """Read weight of every slot, mean over read heads."""
    pattern: Float[Tensor, "batch pos read_head all_slots"] | None
    """Read weights in the order of ``hook_pattern``: all slots of entry 0, then of entry 1 ...; none if not kept."""
    score_margin: Float[Tensor, "batch pos head"] | None = None
    """``margin`` in raw scores alone, below 0 where the bias passed over a better entry; none without ``detail``."""
    by_score: Bool[Tensor, "batch pos K"] | None = None
    """Whether raw scores alone would have selected the entry too; none without ``detail``."""
    read_norms: Float[Tensor, "batch pos K"] | None = None
    """Absolute read weights of entries, mean over read heads and sum over slots; none without ``detail``."""

    @property
    def read_weights(self) -> Float[Tensor, "batch pos K"]:
        """Read weights of entries: mean over read heads, sum over slots."""
        return self.slot_weights.sum(-1)

    @property
    def head_weights(self) -> Float[Tensor, "batch pos read_head K"]:
        """Read weights of entries in every read head, sum over slots."""
        assert self.pattern is not None, "the pattern of read heads was not kept"
        return self.pattern.float().unflatten(-1, (self.indices.shape[-1], -1)).sum(-1)


@contextmanager
def capture_memory(
    model: MemoryTransformer, keep_pattern: bool = True, detail: bool = False
) -> Iterator[dict[int, LayerCapture]]:
    """Capture every memory layer; the yielded dict (layer -> capture) is filled by each forward pass.

    Args:
        model: the model.
        keep_pattern: keep read weights per read head, by far the largest tensor.
        detail: also compare the selection with that of raw scores, and keep read weights without their signs.
    """
    captured: dict[int, LayerCapture] = {}
    latest: dict[str, Tensor] = {}
    noted = _NOTED + _DETAIL if detail else _NOTED

    def note(tensor: Tensor, hook: object) -> None:
        latest[getattr(hook, "name", "")] = tensor.detach()

    def finish(pattern: Tensor, hook: object) -> None:  # the last hook of a memory layer to fire
        prefix, _, _ = getattr(hook, "name", "").rpartition(".")
        indices, scores, margin, *compared = (latest.pop(f"{prefix}.hook_{name}") for name in noted)
        pattern = pattern.detach()
        slots = pattern.float().mean(2).unflatten(-1, (indices.shape[-1], -1))
        capture = LayerCapture(indices, scores.float(), margin, slots, pattern if keep_pattern else None)
        if detail:
            capture.score_margin, capture.by_score = compared
            capture.read_norms = capture.read_weights
            if model.cfg.memory.read_fn == "gelu":  # weights have signs
                norms = torch.linalg.vector_norm(pattern, 1, dim=2, dtype=torch.float32) / pattern.shape[2]
                capture.read_norms = norms.unflatten(-1, (indices.shape[-1], -1)).sum(-1)
        captured[int(prefix.split(".")[1])] = capture

    hooks: list[tuple[str, Callable[[Tensor, object], None]]] = []
    for layer in model.cfg.model.memory_layers:
        prefix = f"blocks.{layer}.memory"
        hooks += [(f"{prefix}.hook_{name}", note) for name in noted]
        hooks += [(f"{prefix}.hook_pattern", finish)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        yield captured


class WindowPass(NamedTuple):
    """One forward pass over a padded batch of document windows."""

    windows: list[DocumentWindow]
    batch: WindowBatch
    logits: Float[Tensor, "batch pos vocab"]
    losses: Float[Tensor, "batch pos"]
    """Loss of every target in nats, 0 where there is none."""
    predicted: Int[Tensor, "batch pos"]
    """Most likely next token."""
    captured: dict[int, LayerCapture]
    """Selections and reads of every memory layer."""


def run_windows(
    model: MemoryTransformer,
    corpus: PackedCorpus,
    windows: list[DocumentWindow],
    pad: int,
    dtype: str,
    batch_size: int = 16,
    keep_pattern: bool = False,
    detail: bool = False,
) -> Iterator[WindowPass]:
    """Run a model over document windows, shortest first (little padding), without gradients, with capturing hooks.

    Evaluation, recording and tracing all read text through this function; ``keep_pattern`` and ``detail`` are those of
    ``capture_memory``.
    """
    device = model.embed.weight.device
    was_training = model.training
    model.eval()
    by_length = sorted(windows, key=lambda window: window.end - window.start)
    try:
        with capture_memory(model, keep_pattern, detail) as captured, autocast(device, dtype):
            for start in range(0, len(windows), batch_size):
                chosen = by_length[start : start + batch_size]
                batch = window_batch(corpus, chosen, pad)
                logits = model(torch.from_numpy(batch.tokens).to(device))
                losses, predicted = _judge(logits, torch.from_numpy(batch.targets).to(device))
                yield WindowPass(chosen, batch, logits, losses, predicted, captured)
    finally:
        model.train(was_training)


def _judge(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and most likely tokens, as ``next_token_loss``, for a few rows at a time, which stay in the cache."""
    losses, predicted = [], []
    for rows, wanted in zip(logits.flatten(0, 1).split(_ROWS), targets.flatten().split(_ROWS), strict=True):
        values = rows.float() if rows.dtype != torch.float32 else rows.clone()
        top, best = values.max(-1)
        picked = values.gather(-1, wanted.clamp(min=0)[:, None])[:, 0]
        loss = values.sub_(top[:, None]).exp_().sum(-1).log_() + top - picked
        losses.append(loss.masked_fill_(wanted < 0, 0.0))
        predicted.append(best)
    return torch.cat(losses).view(targets.shape), torch.cat(predicted).view(targets.shape)
