"""Interventions against models that were changed by hand, and their end."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memscope.base.errors import InputError
from memscope.causal.edit import encode_sentence, encode_sentences
from memscope.causal.intervene import (
    ablate,
    ablate_selections,
    force,
    rewrite,
    scale,
    swap,
    unbias,
)
from memscope.model.transformer import Block, MemoryTransformer
from memscope.run.adapters.own import capture_memory
from memscope.run.checkpoint import LoadedRun
from tests.conftest import tiny_config

TOKENS = torch.randint(320, (3, 11), generator=torch.Generator().manual_seed(0))
COMPETING = {"score_fn": "softmax", "read_fn": "softmax"}
FREE = {"score_fn": "relu", "read_fn": "gelu", "output_gate": True}
NORMALISED = FREE | {"gate_heads": 2, "normalize_scores": True, "token_shift": True}
BY_QUERY = FREE | {"output_gate": "query", "read_norm": "rms"}
KINDS = [
    COMPETING,
    COMPETING | {"gate_heads": 2, "knowledge_length": 3},
    {"score_fn": "relu", "read_fn": "softmax", "knowledge_length": 2},
    {"score_fn": "softmax", "read_fn": "gelu", "gate_heads": 2},
    FREE,
    BY_QUERY,
    NORMALISED,
]


def make_model(**memory: object) -> MemoryTransformer:
    """An untrained model whose memory is loud: what entries add is as large as the residual stream."""
    model = MemoryTransformer(tiny_config(Path("unused"), memory=memory))
    for layer in model.cfg.model.memory_layers:
        model.memory_layer(layer).read.o_proj.weight.data *= 300
        model.memory_layer(layer).read.q_proj.weight.data *= 30
        if (gate := model.memory_layer(layer).read.gate_proj) is not None:
            gate.weight.data *= 30
    return model


def popular(model: MemoryTransformer, layer: int = 0, rank: int = 0) -> int:
    """An entry that a layer selects often on ``TOKENS``."""
    with capture_memory(model) as captured:
        model(TOKENS)
    return int(captured[layer].indices.flatten().bincount().argsort(descending=True)[rank])


@torch.no_grad()
def memory_without(model: MemoryTransformer, layer: int, mid: Tensor, gone: int) -> Tensor:
    """What a memory layer adds, token by token, as if an entry could not be selected: no hook, no mask."""
    block, memory = model.blocks[layer], model.cfg.memory
    assert isinstance(block, Block) and model.bank is not None
    x = block.ffn_norm(mid)
    read = block.memory.read
    chosen = block.memory.gate.select(block.memory.gate.query(x))
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for pos in range(x.shape[1]):
            entries, scores = [], []
            for head in range(memory.gate_heads):
                part = slice(head * memory.num_selected, (head + 1) * memory.num_selected)
                kept = chosen.indices[row, pos, part] != gone
                entries.append(chosen.indices[row, pos, part][kept])
                kept_scores = chosen.scores[row, pos, part][kept]
                scores.append(kept_scores / kept_scores.sum() if memory.score_fn == "softmax" else kept_scores)
            if memory.normalize_scores:  # all heads' scores keep their sum
                total = chosen.scores[row, pos].sum() / torch.cat(scores).sum()
                scores = [kept_scores * total for kept_scores in scores]
            at = x[row, pos][None, None]
            slots = model.bank(torch.cat(entries)[None, None])
            pattern = read.pattern(at, slots, torch.cat(scores)[None, None])
            out[row, pos] = read.output(at, slots, pattern)[0, 0]
    return out


@pytest.mark.parametrize("memory", KINDS)
def test_renormalising_ablation_is_a_memory_that_never_selected_the_entry(memory: dict[str, object]) -> None:
    model = make_model(**memory)
    entry = popular(model)
    _, plain = model.run_with_cache(TOKENS)
    with ablate(model, [entry]):
        _, cache = model.run_with_cache(TOKENS)
    for layer in (0, 1):
        expected = memory_without(model, layer, cache[f"blocks.{layer}.hook_resid_mid"], entry)
        torch.testing.assert_close(cache[f"blocks.{layer}.hook_mem_out"], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(cache["blocks.0.hook_mem_out"], plain["blocks.0.hook_mem_out"])


@pytest.mark.parametrize("memory", KINDS)
def test_zeroing_ablation_drops_one_term_of_the_read_and_no_weight(memory: dict[str, object]) -> None:
    model = make_model(**memory)
    entry = popular(model)
    _, plain = model.run_with_cache(TOKENS)
    with ablate(model, [entry], "zero", layers=[0]):
        _, cache = model.run_with_cache(TOKENS)
    pattern, indices = (plain[f"blocks.0.memory.hook_{name}"] for name in ("pattern", "indices"))
    per_entry = pattern.unflatten(-1, (indices.shape[-1], -1))
    gone = (indices == entry)[:, :, None, :, None]
    read, block = model.memory_layer(0).read, model.blocks[0]
    assert isinstance(block, Block) and model.bank is not None
    x, slots = block.ffn_norm(plain["blocks.0.hook_resid_mid"]), model.bank(indices)
    term = read.output(x, slots, (per_entry * gone).flatten(-2))
    expected = plain["blocks.0.hook_mem_out"] - term
    torch.testing.assert_close(cache["blocks.0.hook_mem_out"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(cache["blocks.0.memory.hook_gate_scores"], plain["blocks.0.memory.hook_gate_scores"])
    assert term.abs().max() > 1e-3


def test_with_a_gelu_read_an_ablated_entry_is_one_that_holds_zeros() -> None:
    model = make_model(**FREE)
    entry = popular(model)
    with ablate(model, [entry]):
        ablated = model(TOKENS)
    with ablate(model, [entry], "zero"):
        zeroed = model(TOKENS)
    assert model.bank is not None
    model.bank.entries.data[entry] = 0.0
    torch.testing.assert_close(ablated, model(TOKENS))
    torch.testing.assert_close(zeroed, model(TOKENS))


def test_layers_and_positions_limit_where_an_entry_is_ablated() -> None:
    model = make_model(**COMPETING)
    entry = popular(model)
    _, plain = model.run_with_cache(TOKENS)
    selected = (plain["blocks.0.memory.hook_indices"] == entry).any(-1)
    mask = torch.zeros_like(selected)
    mask[1] = True  # the second row alone
    by_number = [int(selected.any(0).nonzero()[0, 0])]
    for positions, where in ((mask, mask), (by_number, torch.zeros_like(mask))):
        if positions is by_number:
            where[:, by_number] = True
        with ablate(model, [entry], layers=[0], positions=positions):
            _, cache = model.run_with_cache(TOKENS)
        name = "blocks.0.hook_mem_out"
        changed = (cache[name] - plain[name]).abs().amax(-1) > 1e-6
        assert torch.equal(changed, selected & where)
        assert changed.any()
    with ablate(model, [entry], layers=[1]):
        _, cache = model.run_with_cache(TOKENS)
    assert torch.equal(cache["blocks.0.hook_mem_out"], plain["blocks.0.hook_mem_out"])


def test_every_row_may_lose_entries_of_its_own() -> None:
    model = make_model(**FREE)
    first, second = popular(model), popular(model, rank=1)
    with ablate(model, torch.tensor([[first, second], [second, -1], [-1, -1]])):
        together = model(TOKENS)
    for row, entries in enumerate(([first, second], [second], [])):
        with ablate(model, entries):
            torch.testing.assert_close(together[row], model(TOKENS)[row])


def test_single_selections_can_be_ablated() -> None:
    model = make_model(**FREE)
    with capture_memory(model) as captured:
        model(TOKENS)
    scores = captured[1].gate_scores
    row, pos, k = (scores > 0).nonzero()[5].tolist()
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[row, pos, k] = True
    with ablate_selections(model, {1: mask}), capture_memory(model) as captured:
        model(TOKENS)
    assert torch.equal(captured[1].gate_scores, scores.masked_fill(mask, 0.0))
    assert not torch.equal(captured[1].gate_scores, scores)


@pytest.mark.parametrize("memory", [FREE, COMPETING])
def test_forcing_replaces_the_weakest_and_sets_the_score_where_the_entry_is_selected_anyway(
    memory: dict[str, object],
) -> None:
    model = make_model(**memory | {"gate_heads": 2})
    entry = popular(model)
    with capture_memory(model) as captured:
        model(TOKENS)
    before, scores = captured[0].indices, captured[0].gate_scores
    with force(model, entry, 2.5, layers=[0]), capture_memory(model) as captured:
        model(TOKENS)
    after, had = captured[0].indices, (before == entry).any(-1)
    assert had.any() and not had.all()
    assert torch.equal(after[had], before[had])
    places = set()
    for old, new, score in zip(before[~had], after[~had], scores[~had], strict=True):
        [place] = (old != new).nonzero()[:, 0].tolist()
        places.add(place)
        assert new[place] == entry
        assert score[place] == score.min()
        assert (score[place + 1 :] > score[place]).all()  # of equal ones the last
    assert len(places) > 1  # not always the last of the last head
    assert (captured[0].gate_scores[after == entry] == 2.5).all()
    assert torch.equal(captured[0].gate_scores[after != entry], scores[after != entry])


def test_two_forced_entries_take_two_places() -> None:
    model = make_model(**FREE)
    rare = [entry for entry in range(64) if entry not in chosen_by(model)][:2]
    with force(model, rare[0], 2.0), force(model, rare[1], 3.0), capture_memory(model) as captured:
        model(TOKENS)
    for layer in (0, 1):
        for entry, score in zip(rare, (2.0, 3.0), strict=True):
            here = captured[layer].indices == entry
            assert here.any(-1).all()
            assert (captured[layer].gate_scores[here] == score).all()


def chosen_by(model: MemoryTransformer) -> set[int]:
    """Entries that are selected somewhere."""
    with capture_memory(model) as captured:
        model(TOKENS)
    return {entry for one in captured.values() for entry in one.indices.unique().tolist()}


@pytest.mark.parametrize("memory", [FREE, COMPETING, FREE | {"normalize_scores": True}])
def test_without_the_bias_a_model_does_as_if_it_had_none(memory: dict[str, object]) -> None:
    model = make_model(**memory | {"balance_bias": 0.1})
    for layer in (0, 1):
        bias = model.memory_layer(layer).gate.balance.bias
        assert bias is not None
        bias.normal_(std=1.0, generator=torch.Generator().manual_seed(layer))
    biased = model(TOKENS)
    with unbias(model, layers=[1]):
        upper = model(TOKENS)
    with unbias(model, positions=[3]):
        late = model(TOKENS)
    with unbias(model):
        found = model(TOKENS)
        assert torch.equal(model(TOKENS), found)
    assert torch.equal(model(TOKENS), biased)
    assert torch.equal(late[:, :3], biased[:, :3]) and not torch.equal(late[:, 3], biased[:, 3])
    for layer, expected in ((1, upper), (0, found)):  # one layer after the other loses its bias for good
        model.memory_layer(layer).gate.balance.bias = None
        torch.testing.assert_close(expected, model(TOKENS))
    assert not torch.allclose(found, biased)


def test_swapping_is_exchanging_two_rows_of_the_bank() -> None:
    model = make_model(**COMPETING)
    first, second = popular(model), popular(model, rank=3)
    plain = model(TOKENS)
    with swap(model, first, second):
        swapped = model(TOKENS)
        with swap(model, first, second):
            torch.testing.assert_close(model(TOKENS), plain)
    assert not torch.allclose(swapped, plain)
    assert model.bank is not None
    model.bank.entries.data[[first, second]] = model.bank.entries.data[[second, first]]
    torch.testing.assert_close(swapped, model(TOKENS))


@pytest.mark.parametrize("memory", [COMPETING | {"knowledge_length": 3}, FREE])
def test_rewriting_is_another_row_in_the_bank(memory: dict[str, object]) -> None:
    model = make_model(**memory)
    assert model.bank is not None
    entry, slots = popular(model), torch.randn(model.bank.entries.shape[1:])
    _, plain = model.run_with_cache(TOKENS)
    with rewrite(model, entry, slots):
        rewritten = model(TOKENS)
    with rewrite(model, entry, slots, layers=[0], positions=[2, 3]):
        _, limited = model.run_with_cache(TOKENS)
    changed = (limited["blocks.0.hook_mem_out"] - plain["blocks.0.hook_mem_out"]).abs().amax(-1) > 1e-6
    allowed = (plain["blocks.0.memory.hook_indices"] == entry).any(-1)
    allowed[:, [0, 1, *range(4, TOKENS.shape[1])]] = False
    assert torch.equal(changed, allowed)
    model.bank.entries.data[entry] = slots
    torch.testing.assert_close(rewritten, model(TOKENS))


@pytest.mark.parametrize("memory", [COMPETING, FREE])
def test_what_an_ablated_entry_was_rewritten_to_makes_no_difference(memory: dict[str, object]) -> None:
    model = make_model(**memory)
    entry = popular(model)
    with ablate(model, [entry]):
        without = model(TOKENS)
    with rewrite(model, entry, torch.randn(1, 16)), ablate(model, [entry]):
        torch.testing.assert_close(model(TOKENS), without)


def test_gradients_reach_the_slots_of_a_rewritten_entry() -> None:
    model = make_model(**FREE)
    assert model.bank is not None
    entry = popular(model)
    slots = model.bank.entries.detach()[entry].clone().requires_grad_()
    with rewrite(model, entry, slots):
        loss = F.cross_entropy(model(TOKENS)[:, -1], TOKENS[:, 0])
    [gradient] = torch.autograd.grad(loss, slots)
    model.bank.entries.grad = None
    F.cross_entropy(model(TOKENS)[:, -1], TOKENS[:, 0]).backward()
    torch.testing.assert_close(gradient, model.bank.entries.grad[entry])
    assert gradient.abs().max() > 0


def test_scaling_multiplies_what_a_layer_adds() -> None:
    model = make_model(**FREE)
    hook = ("blocks.1.hook_mem_out", lambda added, hook: added * 0.25)
    expected = model.run_with_hooks(TOKENS, fwd_hooks=[hook])
    with scale(model, 0.25, layers=[1]):
        torch.testing.assert_close(model(TOKENS), expected)
    with scale(model, 1.0):
        assert torch.equal(model(TOKENS), model(TOKENS))


def interventions(model: MemoryTransformer) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    return {
        "renormalise": lambda: ablate(model, [1, 2, 3]),
        "zero": lambda: ablate(model, [1, 2, 3], "zero"),
        "force": lambda: force(model, 5, 1.0),
        "swap": lambda: swap(model, 5, 6),
        "rewrite": lambda: rewrite(model, 5, torch.ones(1, 16)),
        "scale": lambda: scale(model, 0.0),
    }


@pytest.mark.parametrize("memory", [COMPETING, FREE])
@pytest.mark.parametrize("name", list(interventions(None)))  # type: ignore[arg-type]
def test_nothing_is_left_behind(name: str, memory: dict[str, object]) -> None:
    model = make_model(**memory)
    intervene = interventions(model)[name]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    plain = model(TOKENS)
    with intervene():
        model(TOKENS)
    with pytest.raises(RuntimeError, match="a fault"), intervene():
        model(TOKENS)
        raise RuntimeError("a fault inside the block")
    assert torch.equal(model(TOKENS), plain)
    assert not any(point.has_hooks() for point in model.hook_points())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_a_sentence_becomes_what_initialisation_made_of_it(tiny_run: LoadedRun, slot_run: LoadedRun) -> None:
    from memscope.base.parquet import read_parquet
    from memscope.run.bank_init import PARQUET, load_bank_init

    for run in (tiny_run, slot_run):
        sentences = read_parquet(run.path / PARQUET)["sentence"].to_pylist()[:5]
        start = torch.from_numpy(load_bank_init(run.path).entries)
        assert torch.equal(encode_sentences(run, sentences), start[:5])
        assert torch.equal(encode_sentence(run, sentences[2]), start[2])


def test_what_cannot_be_intervened_on_is_refused(tiny_run: LoadedRun, ffn_run: LoadedRun) -> None:
    model = tiny_run.model
    for attempt, message in (
        (lambda: ablate(model, [64]), "entry 64 is not in the bank"),
        (lambda: ablate(model, [-1]), "entry -1 is not in the bank"),
        (lambda: swap(model, 0, 99), "entry 99"),
        (lambda: ablate(model, [1], layers=[7]), "layer 7 has no memory"),
        (lambda: rewrite(model, 1, torch.ones(2, 16)), "do not fit an entry"),
        (lambda: scale(ffn_run.model, 0.0), "FFN baseline"),
    ):
        with pytest.raises(InputError, match=message), attempt():
            pass
    with pytest.raises(InputError, match="no tokens"):
        encode_sentence(tiny_run, "")
