"""Attributions against the true effects that they estimate."""

import numpy as np
import pytest
import torch

from memscope.causal.attribution import (
    ablation_effects,
    agreement,
    attribute,
    gradient_attribution,
)
from memscope.causal.intervene import ablate, ablate_selections
from memscope.model.transformer import NORM_EPS, MemoryTransformer, next_token_loss
from tests.causal.test_intervene import BY_QUERY, COMPETING, FREE, TOKENS, make_model

TARGETS = torch.cat([TOKENS[:, 1:], torch.full((3, 1), -100)], 1)


def true_change(model: MemoryTransformer, layer: int, row: int, pos: int, k: int) -> torch.Tensor:
    """Logits ``[batch, pos, vocab]`` before minus after zeroing one selection."""
    mask = torch.zeros(*TOKENS.shape, model.cfg.memory.selected, dtype=torch.bool)
    mask[row, pos, k] = True
    with torch.no_grad(), ablate_selections(model, {layer: mask}, "zero"):
        after = model(TOKENS)
    with torch.no_grad():
        return model(TOKENS) - after


@pytest.mark.parametrize("memory", [COMPETING | {"knowledge_length": 2, "gate_heads": 2}, FREE, BY_QUERY])
def test_in_the_last_layer_direct_attribution_is_the_effect_of_ablation(memory: dict[str, object]) -> None:
    model = make_model(**memory)
    attribution = attribute(model, TOKENS, TARGETS, sample=1)
    indices, direct = attribution.indices, attribution.direct
    assert indices[1].shape == direct[1].shape == (3, 11, model.cfg.memory.selected)
    for row, pos, k in ((0, 0, 0), (1, 4, 3), (2, 9, 1)):
        change = true_change(model, 1, row, pos, k)[row, pos, TARGETS[row, pos]]
        torch.testing.assert_close(direct[1][row, pos, k], change, rtol=1e-3, atol=1e-5)
    assert (direct[1][:, -1] == 0).all()  # no target there
    assert direct[1].abs().max() > 1e-3


def test_attributions_of_an_entry_add_up_to_the_effect_of_ablating_it_in_the_last_layer() -> None:
    model = make_model(**FREE)
    attribution = attribute(model, TOKENS, TARGETS, sample=1)
    indices, direct = attribution.indices, attribution.direct
    target = TARGETS[:, :-1, None]
    with torch.no_grad():
        before = model(TOKENS)[:, :-1].gather(-1, target).sum()
    for entry in indices[1].unique()[:10].tolist():
        with torch.no_grad(), ablate(model, [entry], "zero", layers=[1]):
            after = model(TOKENS)[:, :-1].gather(-1, target).sum()
        total = direct[1][indices[1] == entry].sum()
        torch.testing.assert_close(total, before - after, rtol=1e-3, atol=1e-4)


def test_frozen_shares_of_the_memory_and_of_the_rest_add_up_to_the_logit() -> None:
    model = make_model(**FREE)
    frozen = attribute(model, TOKENS, TARGETS, sample=1).frozen
    logits, cache = model.run_with_cache(TOKENS)
    final = cache["blocks.1.hook_resid_post"]
    added = cache["blocks.0.hook_mem_out"] + cache["blocks.1.hook_mem_out"]
    scale = (final.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
    rest = ((final - added) * scale * model.norm.weight) @ model.embed.weight.T
    target = TARGETS[:, :-1, None]
    total = (rest[:, :-1].gather(-1, target) + (frozen[0] + frozen[1])[:, :-1].sum(-1, keepdim=True))[..., 0]
    torch.testing.assert_close(total, logits[:, :-1].gather(-1, target)[..., 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", ["logit", "loss"])
def test_gradient_attribution_is_the_slope_of_fading_an_entry_out(metric: str) -> None:
    model = make_model(**FREE)
    _, gradient = gradient_attribution(model, TOKENS, TARGETS, metric)
    row, pos, k = np.unravel_index(int(gradient[0].abs().argmax()), gradient[0].shape)
    step = 0.05

    @torch.no_grad()
    def value(factor: float) -> float:
        def fade(pattern, hook):
            pattern = pattern.clone()
            pattern[row, pos, :, k] *= factor
            return pattern

        logits = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.memory.hook_pattern", fade)])
        if metric == "loss":
            return float(next_token_loss(logits, TARGETS).sum())
        return float(logits[:, :-1].gather(-1, TARGETS[:, :-1, None]).sum())

    slope = (value(1 + step) - value(1 - step)) / (2 * step)
    assert abs(slope) > 1e-2
    assert float(gradient[0][row, pos, k]) == pytest.approx(slope, rel=0.05)


def test_ablation_effects_of_many_selections_are_those_of_each_alone() -> None:
    model = make_model(**FREE)
    events = torch.tensor([[row, pos, k] for row in range(3) for pos in range(6) for k in (0, 2)])  # more than a batch
    own, total = ablation_effects(model, TOKENS, TARGETS, 0, events)
    for number in (0, 17, 35):
        row, pos, k = events[number].tolist()
        change = true_change(model, 0, row, pos, k)[row, :-1].gather(-1, TARGETS[row, :-1, None])[:, 0]
        assert float(own[number]) == pytest.approx(float(change[pos]), abs=1e-5)
        assert float(total[number]) == pytest.approx(float(change.sum()), abs=1e-4)


def test_every_attribution_says_how_well_it_agrees_with_ablation() -> None:
    model = make_model(**FREE)
    found = attribute(model, TOKENS, TARGETS, sample=40)
    table = found.agreement.set_index(["layer", "method"])
    assert set(table.index) == {(layer, method) for layer in (0, 1) for method in ("direct", "frozen", "gradient")}
    assert (table["selections"] == 40).all()
    assert table.loc[(1, "direct"), "spearman"] > 0.99
    assert table.loc[(1, "gradient"), "spearman"] > 0.8
    again = attribute(model, TOKENS, TARGETS, sample=40)
    assert again.agreement.equals(found.agreement)


def test_a_wrong_attribution_is_found_out() -> None:
    model = make_model(**FREE)
    found = attribute(model, TOKENS, TARGETS)
    backwards = {layer: -values for layer, values in found.direct.items()}
    noise = {layer: torch.randn_like(values) for layer, values in found.direct.items()}
    table = agreement(model, TOKENS, TARGETS, {"backwards": backwards, "noise": noise}, sample=60)
    last = table[table["layer"] == 1].set_index("method")["spearman"]
    assert last["backwards"] < -0.99
    assert abs(last["noise"]) < 0.5


def test_agreement_is_missing_where_there_is_nothing_to_rank() -> None:
    model = make_model(**FREE)
    nothing = torch.full_like(TARGETS, -100)
    found = attribute(model, TOKENS, nothing)
    assert (found.agreement["selections"] == 0).all()
    assert np.isnan(found.agreement["spearman"]).all()
