"""How much each selected entry contributes to a prediction: direct logit attribution and attribution patching.

    attribution = attribute(model, tokens, targets)
    attribution.direct[layer]       # [batch, pos, K] contribution of the entry to the logit of the position's target
    attribution.gradient[layer]     # [batch, pos, K] first-order effect on the metric, through all later layers too
    attribution.agreement           # rank correlation of both with true ablations of a sample: check it first

**Direct logit attribution** is the part of a logit that a read writes straight into the residual stream, without the
effects of later layers. The read is linear in its weights, the stream is a sum and the unembedding is linear, so only
the final norm needs a choice. ``direct`` takes the entry out of the stream and applies the norm again; in the last
layer this is the effect of ablating the entry, within rounding. ``frozen`` keeps the scale of the norm, as
TransformerLens does: its values add up to the logit, but they ignore that an entry changes the length of the stream
and thereby all logits.
**Attribution patching** (Nanda 2023; Syed et al. arXiv 2310.10348) multiplies each read weight by the gradient of the
metric: the first-order estimate of the change when its value is set to zero, for all selections in one backward pass.
Positive means that the entry raises the metric. All estimate ``before - after`` of an ablation in mode ``zero``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from memscope.base.errors import InputError
from memscope.base.printable import brief
from memscope.causal.intervene import ablate_selections
from memscope.model.transformer import NORM_EPS, Block, MemoryTransformer, next_token_loss
from memscope.run.adapters.own import OwnModel
from memscope.run.subject import Subject

Metric = Literal["logit", "loss"]
"""The metric to attribute, summed over positions with a target: the target's logit, or the loss in nats."""
_BATCH = 32
_NOTED = ("memory.hook_indices", "memory.hook_pattern", "hook_resid_mid")


@dataclass(frozen=True, repr=False)
class Attribution:
    """The contribution of every selection, per memory layer."""

    __repr__ = brief

    indices: dict[int, Tensor]
    """Selected entries, int64 ``[batch, pos, K]``."""
    direct: dict[int, Tensor]
    """Direct logit attribution to the position's target, ``[batch, pos, K]``; 0 where there is no target."""
    frozen: dict[int, Tensor]
    """Direct logit attribution with a frozen scale of the final norm."""
    gradient: dict[int, Tensor]
    """Attribution patching of the metric, ``[batch, pos, K]``."""
    agreement: pd.DataFrame
    """``layer method selections spearman``: rank correlation with true single ablations on a sample."""


class _Pass(NamedTuple):
    """A forward pass with the tensors that gradients are taken of."""

    logits: Float[Tensor, "batch pos vocab"]
    indices: dict[int, Tensor]
    pattern: dict[int, Tensor]
    mid: dict[int, Tensor]
    """``hook_resid_mid``, ``[batch, pos, dim]``."""
    resid: Tensor
    """Residual stream before the final norm, ``[batch, pos, dim]``."""


def attribute(
    model: MemoryTransformer | Subject,
    tokens: Int[Tensor, "batch pos"],
    targets: Int[Tensor, "batch pos"],
    metric: Metric = "logit",
    sample: int = 32,
    seed: int = 0,
) -> Attribution:
    """All attributions, and how well they agree with ablating ``sample`` selections of every layer one at a time.

    Args:
        model: a model of memscope with a memory, or a run of one as a subject.
        tokens: input.
        targets: next tokens; -100 where there is no target.
        metric: what ``gradient`` explains; ``direct`` always explains the target logit.
        sample: selections per layer that are truly ablated, at positions with a target.
        seed: chooses them.

    Raises:
        InputError: the subject is not a run of memscope.

    Example:
        >>> tokens = run.tokens("Apollo was the god of")
        >>> targets = torch.cat([tokens[:, 1:], torch.full((1, 1), -100)], 1)
        >>> result = attribute(run.model, tokens, targets, sample=4)
        >>> result.direct[0].shape  # [batch, pos, K]
    """
    model = _memory_of(model)
    with _forward(model, tokens) as done:
        direct, frozen = _direct(model, done, targets)
        estimates = {"direct": direct, "frozen": frozen, "gradient": _gradient(done, targets, metric)}
        indices = done.indices
    return Attribution(
        indices, **estimates, agreement=agreement(model, tokens, targets, estimates, metric, sample, seed)
    )


def gradient_attribution(
    model: MemoryTransformer,
    tokens: Int[Tensor, "batch pos"],
    targets: Int[Tensor, "batch pos"],
    metric: Metric = "logit",
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Indices and attribution patching ``[batch, pos, K]`` per layer, without the check by ablation."""
    with _forward(model, tokens) as done:
        return done.indices, _gradient(done, targets, metric)


def agreement(
    model: MemoryTransformer,
    tokens: Int[Tensor, "batch pos"],
    targets: Int[Tensor, "batch pos"],
    estimates: Mapping[str, dict[int, Tensor]],
    metric: Metric = "logit",
    sample: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman correlation with the true effect of ablating single selections, per layer and method.

    ``gradient`` is compared with the change of the metric, the others with that of the position's target logit.
    Selections whose read weight is zero are not drawn: there is nothing to rank. NaN where fewer than three were
    drawn or all are equal.
    """
    rows = []
    rng = np.random.default_rng(seed)
    for layer in model.cfg.model.memory_layers:
        read = torch.stack([estimate[layer] != 0 for estimate in estimates.values()]).any(0)
        events = (read & (targets >= 0)[..., None]).nonzero()
        events = events[torch.from_numpy(rng.permutation(len(events))[:sample]).to(events.device)]
        of_target, of_metric = ablation_effects(model, tokens, targets, layer, events, metric)
        for method, estimate in estimates.items():
            estimated = estimate[layer][tuple(events.T)].float().cpu().numpy()
            truth = (of_metric if method == "gradient" else of_target).cpu().numpy()
            rows.append((layer, method, len(events), _spearman(estimated, truth)))
    return pd.DataFrame(rows, columns=["layer", "method", "selections", "spearman"])


@torch.no_grad()
def ablation_effects(
    model: MemoryTransformer,
    tokens: Int[Tensor, "batch pos"],
    targets: Int[Tensor, "batch pos"],
    layer: int,
    events: Int[Tensor, "event 3"],
    metric: Metric = "logit",
) -> tuple[Float[Tensor, " event"], Float[Tensor, " event"]]:
    """True ``before - after`` of zeroing single selections ``(row, position, k)`` of a layer, one at a time.

    Returns the change of the position's target logit, and of the metric over the row.
    """
    n_selected = model.cfg.memory.selected
    before = model(tokens)
    of_target, of_metric = [], []
    for chunk in events.split(_BATCH):
        row, pos, k = chunk.T
        number = torch.arange(len(chunk), device=tokens.device)
        mask = torch.zeros((len(chunk), tokens.shape[1], n_selected), dtype=torch.bool, device=tokens.device)
        mask[number, pos, k] = True
        with ablate_selections(model, {layer: mask}, "zero"):
            after = model(tokens[row])
        chunk_targets = targets[row]
        change = _target_logits(before[row], chunk_targets) - _target_logits(after, chunk_targets)
        of_target.append(change[number, pos])
        if metric == "loss":
            change = next_token_loss(before[row], chunk_targets) - next_token_loss(after, chunk_targets)
        of_metric.append(change.sum(-1))
    if not of_target:
        return torch.zeros(0), torch.zeros(0)
    return torch.cat(of_target), torch.cat(of_metric)


@torch.no_grad()
def _direct(model: MemoryTransformer, done: _Pass, targets: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Direct attribution with the norm applied again, and with its scale frozen."""
    assert model.bank is not None
    resid = done.resid.float()
    toward = model.embed.weight[targets.clamp(min=0)] * model.norm.weight  # a logit is the scaled stream along this
    toward = toward.masked_fill((targets < 0)[..., None], 0.0)

    def scale(stream: Tensor) -> Tensor:
        return (stream.square().mean(-1) + NORM_EPS).rsqrt()

    before, frozen_scale = (resid * toward).sum(-1) * scale(resid), scale(resid)
    exact, frozen = {}, {}
    for layer, pattern in done.pattern.items():
        block, indices = model.blocks[layer], done.indices[layer]
        assert isinstance(block, Block)
        x, slots = block.ffn_norm(done.mid[layer]), model.bank(indices)
        n_selected = indices.shape[-1]
        per_entry = pattern.detach().unflatten(-1, (n_selected, -1))
        exact[layer], frozen[layer] = torch.zeros(2, *indices.shape, device=resid.device)
        for k in range(n_selected):
            alone = torch.zeros_like(per_entry)
            alone[..., k, :] = per_entry[..., k, :]
            written = block.memory.read.output(x, slots, alone.flatten(-2)).float()  # [batch, pos, dim]
            without = resid - written
            exact[layer][..., k] = before - (without * toward).sum(-1) * scale(without)
            frozen[layer][..., k] = (written * toward).sum(-1) * frozen_scale
    return exact, frozen


def _gradient(done: _Pass, targets: Tensor, metric: Metric) -> dict[int, Tensor]:
    values = _target_logits(done.logits, targets) if metric == "logit" else next_token_loss(done.logits, targets)
    gradients = torch.autograd.grad(values.sum(), list(done.pattern.values()))
    return {
        layer: _per_entry(pattern.detach() * gradient, done.indices[layer])
        for (layer, pattern), gradient in zip(done.pattern.items(), gradients, strict=True)
    }


def _memory_of(model: MemoryTransformer | Subject) -> MemoryTransformer:
    if isinstance(model, MemoryTransformer):
        return model
    if isinstance(model, OwnModel):
        return model.model
    raise InputError(
        f"{model.name}: attribution needs a memory, whose entries have values that add up in the residual stream; an "
        "expert has none, so ablate it"
    )


@contextmanager
def _forward(model: MemoryTransformer, tokens: Tensor) -> Iterator[_Pass]:
    """Run the model with gradients of its read weights; the graph is freed when the block ends."""
    noted: dict[str, Tensor] = {}
    layers = model.cfg.model.memory_layers
    last = f"blocks.{model.cfg.model.n_layers - 1}.hook_resid_post"
    names = [f"blocks.{layer}.{name}" for layer in layers for name in _NOTED]

    def note(value: Tensor, hook: object) -> None:
        noted[getattr(hook, "name", "")] = value

    with torch.enable_grad():
        with model.hooks(fwd_hooks=[(name, note) for name in [*names, last]]):
            logits = model(tokens)
        indices, pattern, mid = ({layer: noted[f"blocks.{layer}.{name}"] for layer in layers} for name in _NOTED)
        yield _Pass(logits, indices, pattern, mid, noted[last])


def _target_logits(logits: Tensor, targets: Tensor) -> Float[Tensor, "batch pos"]:
    """Logit of every target; 0 where there is none."""
    return logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0].float().masked_fill(targets < 0, 0.0)


def _per_entry(per_slot: Tensor, indices: Tensor) -> Float[Tensor, "batch pos K"]:
    """Sum over read heads and the slots of an entry."""
    return per_slot.sum(2).unflatten(-1, (indices.shape[-1], -1)).sum(-1)


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)
