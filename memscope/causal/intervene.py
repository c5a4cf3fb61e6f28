"""Change what a memory selects, reads or holds while a ``with`` block runs, and nothing afterwards.

Every intervention is a set of hooks: it changes no weight, blocks nest, and the model is as before when a block ends,
also by an exception. A ``capture_memory`` inside sees the changed values. ``layers`` are memory layers (default: all),
``positions`` are numbers that hold for every row, or a bool tensor ``[batch, pos]`` (default: all). Gradients flow
through. ``causal/effects.py`` measures what an intervention does to a corpus.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memscope.base.errors import InputError
from memscope.model.bank import MemoryBank
from memscope.model.gate import Selection
from memscope.model.ops.sparse_read import GatheredSlots
from memscope.model.transformer import Block, MemoryTransformer

Mode = Literal["renormalise", "zero"]
Positions = Sequence[int] | Tensor | None
Entries = Sequence[int] | np.ndarray | Tensor
_Act = Callable[[Tensor], Tensor | None]
"""Act of a hook on a value: return another value, or None to keep it."""
_Choose = Callable[[int, Tensor], Tensor]
"""Maps a layer and its indices ``[batch, pos, K]`` to the chosen selections, bool of the same shape."""


@contextmanager
def ablate(
    model: MemoryTransformer,
    entries: Entries,
    mode: Mode = "renormalise",
    *,
    layers: Sequence[int] | None = None,
    positions: Positions = None,
) -> Iterator[None]:
    """Take entries out of the read: ``with ablate(run.model, [3, 17]): logits = run.model(tokens)``.

    Args:
        entries: entry numbers; as a tensor ``[batch, n]`` every row has its own, -1 meaning none.
        mode: ``renormalise`` removes the selection without a replacement. Where weights compete, the others share
            its weight: softmax gate scores among the other selections of the gate head, softmax read
            weights among the other slots. ``zero`` sets the value to zero and leaves all weights. Where neither
            gate nor read competes (sigmoid or ReLU gate, GELU read) the two are the same.
        layers: memory layers.
        positions: where.

    Two nested blocks with a softmax read renormalise one after the other; name entries that go together in one call.

    Raises:
        InputError: the bank lacks an entry, or a layer has no memory.
    """
    wanted = torch.as_tensor(entries, device=model.embed.weight.device).long()
    _check_entries(model, wanted.flatten(), lowest=-1 if wanted.dim() == 2 else 0)

    def choose(layer: int, indices: Tensor) -> Tensor:
        # Two axes: each row of the batch has its own entries.
        by_row = wanted[:, None, None] if wanted.dim() == 2 else None
        matches = torch.isin(indices, wanted) if by_row is None else (indices[..., None] == by_row).any(-1)
        return matches & mark_positions(indices, positions)[..., None]

    with _remove(model, _layers(model, layers), choose, mode):
        yield


@contextmanager
def ablate_selections(
    model: MemoryTransformer, chosen: Mapping[int, Bool[Tensor, "batch pos K"]], mode: Mode = "renormalise"
) -> Iterator[None]:
    """Take out single selections, given per layer as a mask over the gate's selections; see ``ablate``.

    For instance ``with ablate_selections(run.model, {0: captured[0].indices == 3}): logits = run.model(tokens)``.
    """
    with _remove(model, _layers(model, list(chosen)), lambda layer, _: chosen[layer], mode):
        yield


@contextmanager
def force(
    model: MemoryTransformer,
    entry: int,
    score: float,
    *,
    layers: Sequence[int] | None = None,
    positions: Positions = None,
) -> Iterator[None]:
    """Force the selection of an entry: ``with force(run.model, entry=3, score=1.0): logits = run.model(tokens)``.

    Where the gate selects the entry, its score is set. Elsewhere it replaces the token's selection of lowest gate score
    over all gate heads: of equal ones the last along K, and none that an outer block has put in. The scores of the
    other selections stay, also those of a softmax gate. In a bank that is split in groups, only the layers of the
    entry's group are changed.
    """
    _check_entries(model, torch.tensor([entry]))
    layers = _reaching(model, layers, entry)
    forced: dict[int, Tensor] = {}
    selections: dict[int, Selection] = {}

    def put(layer: int) -> _Act:
        def act(indices: Tensor) -> Tensor:
            at = mark_positions(indices, positions)
            weakness = selections[layer].scores.masked_fill(indices != selections[layer].indices, torch.inf).flip(-1)
            weakest = indices.shape[-1] - 1 - weakness.argmin(-1, keepdim=True)  # the last of equal ones
            missing = at & ~(indices == entry).any(-1)
            indices = torch.where(missing[..., None], indices.scatter(-1, weakest, entry), indices)
            forced[layer] = (indices == entry) & at[..., None]
            return indices

        return act

    def set_score(layer: int) -> _Act:
        return lambda scores: scores.masked_fill(forced[layer], score)

    # The hook of indices runs before that of gate scores, so the gate computes the scores in advance.
    makers = {"memory.hook_query": _ask(model, selections), "memory.hook_indices": put}
    with _hooks(model, layers, makers | {"memory.hook_gate_scores": set_score}):
        yield


@contextmanager
def unbias(
    model: MemoryTransformer, *, layers: Sequence[int] | None = None, positions: Positions = None
) -> Iterator[None]:
    """Select as if there were no selection bias: ``with unbias(run.model): logits = run.model(tokens)``."""
    selections: dict[int, Selection] = {}

    def take(name: str) -> Callable[[int], _Act]:
        def act(layer: int, values: Tensor) -> Tensor:
            return torch.where(mark_positions(values, positions)[..., None], getattr(selections[layer], name), values)

        return lambda layer: partial(act, layer)

    makers = {"memory.hook_query": _ask(model, selections, biased=False), "memory.hook_indices": take("indices")}
    with _hooks(model, _layers(model, layers), makers | {"memory.hook_gate_scores": take("scores")}):
        yield


@contextmanager
def swap(
    model: MemoryTransformer,
    first: int,
    second: int,
    *,
    layers: Sequence[int] | None = None,
    positions: Positions = None,
) -> Iterator[None]:
    """Read entry ``second`` wherever ``first`` is selected, at its gate score, and vice versa.

    In a bank that is split in groups, both must be of the same group. For instance ``with swap(run.model, 3, 5): ...``.
    """
    _check_entries(model, torch.tensor([first, second]))
    layers = _reaching(model, layers, first, second)

    def exchange(_: int) -> _Act:
        def act(indices: Tensor) -> Tensor:
            exchanged = torch.where(indices == first, second, torch.where(indices == second, first, indices))
            return torch.where(mark_positions(indices, positions)[..., None], exchanged, indices)

        return act

    with _hooks(model, _layers(model, layers), {"memory.hook_indices": exchange}):
        yield


@contextmanager
def rewrite(
    model: MemoryTransformer,
    entry: int,
    slots: Float[Tensor, "slot width"],
    *,
    layers: Sequence[int] | None = None,
    positions: Positions = None,
) -> Iterator[None]:
    """Replace the slots ``[L, D]`` of an entry, for instance by those of another sentence (``edit.encode_sentence``).

    The gate is as before: the key, not the content, decides which tokens select the entry. Calls of the bank
    (``model.bank(indices)``) return the new slots; ``model.bank.entries`` keeps the old ones. Slots that require
    gradients get them. For instance ``with rewrite(run.model, 3, encode_sentence(run, "It rained .")): ...``.
    """
    _check_entries(model, torch.tensor([entry]))
    assert model.bank is not None
    if slots.shape != model.bank.entries.shape[1:]:
        raise InputError(
            f"slots of shape {tuple(slots.shape)} do not fit an entry of {tuple(model.bank.entries.shape[1:])}"
        )
    bank, chosen, current = model.bank, _layers(model, layers), -1

    def enter(layer: int) -> _Act:
        def act(_: Tensor) -> None:
            nonlocal current
            current = layer

        return act

    def replace(_: nn.Module, inputs: tuple[Tensor, ...], read: GatheredSlots) -> GatheredSlots:
        if current not in chosen:
            return read
        [indices] = inputs
        here = (indices == entry) & mark_positions(indices, positions)[..., None]  # [b, t, K]
        per_entry = read.values.unflatten(2, (indices.shape[-1], -1))
        changed = torch.where(here[..., None, None], slots.to(per_entry), per_entry)
        return GatheredSlots(changed.flatten(2, 3))

    def gather(_: nn.Module, inputs: tuple[Tensor, object]) -> tuple[Tensor, MemoryBank]:
        return inputs[0], bank  # not a reader that never gathers slots

    with ExitStack() as stack:
        stack.enter_context(_hooks(model, model.cfg.model.memory_layers, {"memory.hook_indices": enter}))
        handles = [bank.register_forward_hook(replace)]
        handles += [model.memory_layer(layer).register_forward_pre_hook(gather) for layer in chosen]
        for handle in handles:
            stack.callback(handle.remove)
        yield


@contextmanager
def scale(
    model: MemoryTransformer, factor: float, *, layers: Sequence[int] | None = None, positions: Positions = None
) -> Iterator[None]:
    """Multiply the outputs of whole memory layers to the residual stream; 0 switches them off.

    For instance ``with scale(run.model, 0.0, layers=[0]): logits = run.model(tokens)``.
    """

    def multiply(_: int) -> _Act:
        return lambda added: torch.where(mark_positions(added, positions)[..., None], factor * added, added)

    with _hooks(model, _layers(model, layers), {"hook_mem_out": multiply}):
        yield


@contextmanager
def _remove(model: MemoryTransformer, layers: Sequence[int], choose: _Choose, mode: Mode) -> Iterator[None]:
    removed: dict[int, Tensor] = {}
    indices_of: dict[int, Tensor] = {}
    resid: dict[int, Tensor] = {}

    def note_choice(layer: int) -> _Act:
        def act(indices: Tensor) -> None:
            removed[layer], indices_of[layer] = choose(layer, indices), indices

        return act

    def note_resid(layer: int) -> _Act:
        return lambda value: resid.update({layer: value})

    def without_scores(layer: int) -> _Act:
        def act(scores: Tensor) -> Tensor:
            kept = scores.masked_fill(removed[layer], 0.0)
            if model.cfg.memory.score_fn != "softmax" and not model.cfg.memory.normalize_scores:
                return kept
            # Softmax scores compete within their head, normalised ones within their token.
            rivals = (1 if model.cfg.memory.normalize_scores else model.memory_layer(layer).gate.heads, -1)
            before, after = (values.unflatten(-1, rivals).sum(-1, keepdim=True) for values in (scores, kept))
            share = (before / after.clamp(min=1e-12)).expand_as(kept.unflatten(-1, rivals))
            return kept * share.flatten(-2)

        return act

    def share_out(layer: int) -> _Act:
        def act(pattern: Tensor) -> Tensor:
            # With gate scores of 1 the pattern is the attention itself, which gives the share that remains.
            assert model.bank is not None
            block, indices = model.blocks[layer], indices_of[layer]
            assert isinstance(block, Block)
            ones = torch.ones_like(indices, dtype=pattern.dtype)
            attention = block.memory.read.pattern(block.ffn_norm(resid[layer]), model.bank(indices), ones)
            remaining = attention.masked_fill(_per_slot(removed[layer], attention), 0.0).sum(-1, keepdim=True)
            return pattern / remaining.clamp(min=1e-12)

        return act

    def without_values(layer: int) -> _Act:
        return lambda pattern: pattern.masked_fill(_per_slot(removed[layer], pattern), 0.0)

    makers: dict[str, Callable[[int], _Act]] = {"memory.hook_indices": note_choice}
    if mode == "zero":
        makers["memory.hook_pattern"] = without_values  # the output is linear in pattern times value
    else:
        makers["memory.hook_gate_scores"] = without_scores
        if model.cfg.memory.read_fn == "softmax":
            makers |= {"hook_resid_mid": note_resid, "memory.hook_pattern": share_out}
    with _hooks(model, layers, makers):
        yield


@contextmanager
def _hooks(
    model: MemoryTransformer, layers: Sequence[int], makers: Mapping[str, Callable[[int], _Act]]
) -> Iterator[None]:
    """Add hooks of these names to the blocks of all ``layers``."""
    acts = [(f"blocks.{layer}.{name}", make(layer)) for layer in layers for name, make in makers.items()]
    with model.hooks(fwd_hooks=[(name, lambda value, hook, act=act: act(value)) for name, act in acts]):
        yield


def _ask(model: MemoryTransformer, selections: dict[int, Selection], biased: bool = True) -> Callable[[int], _Act]:
    """Note the gate's selections for the queries of a pass."""
    return lambda layer: lambda query: selections.update({layer: model.memory_layer(layer).gate.select(query, biased)})


def _layers(model: MemoryTransformer, layers: Sequence[int] | None) -> Sequence[int]:
    known = model.cfg.model.memory_layers
    if not known:
        raise InputError("an FFN baseline has no memory to intervene on; choose a run with a memory")
    if layers is not None and (odd := sorted(set(layers) - set(known))):
        raise InputError(f"layer {odd[0]} has no memory; memory layers are {', '.join(map(str, known))}")
    return known if layers is None else list(layers)


def _reaching(model: MemoryTransformer, layers: Sequence[int] | None, *entries: int) -> Sequence[int]:
    """The chosen layers, each of which must be able to select all ``entries``; by default all such layers."""
    wanted, reach = _layers(model, layers), model.cfg.entries_of
    able = [a for a in wanted if all(reach(a).start <= entry < reach(a).stop for entry in entries)]
    if not able if layers is None else len(able) < len(wanted):
        names, who = " and ".join(map(str, entries)), "no layer" if layers is None else "not every layer named"
        raise InputError(
            f"{who} can select entry {names}: the bank is split in {model.cfg.memory.bank_groups} groups; "
            "choose entries of one group, and layers that own it"
        )
    return able


def _check_entries(model: MemoryTransformer, entries: Int[Tensor, " n"], lowest: int = 0) -> None:
    size = model.cfg.memory.knowledge_num if model.cfg.model.memory_layers else 0
    if (odd := entries[(entries < lowest) | (entries >= size)]).numel():
        raise InputError(f"entry {int(odd[0])} is not in the bank; its {size:,} entries count from 0")


def mark_positions(values: Tensor, positions: Positions) -> Bool[Tensor, "batch pos"]:
    """Positions as a mask over ``values [batch, pos, ...]``."""
    if isinstance(positions, Tensor):
        return positions
    mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    if positions is not None:
        mask[:] = False
        mask[:, list(positions)] = True
    return mask


def _per_slot(selections: Bool[Tensor, "batch pos K"], pattern: Tensor) -> Bool[Tensor, "batch pos 1 slot"]:
    """A mask over selections as one over the slots of ``pattern [batch, pos, A, K * L]``."""
    return selections.repeat_interleave(pattern.shape[-1] // selections.shape[-1], dim=-1).unsqueeze(2)
