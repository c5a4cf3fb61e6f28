"""Interventions on selections against models that were changed by hand, in mixtures of experts and in own runs."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memscope.base.errors import InputError
from memscope.causal import intervene
from memscope.causal.attribution import attribute
from memscope.causal.selections import ablate, force, replay, scale, swap
from memscope.record.loop import record
from memscope.recording.sites import Site
from memscope.run.adapters.experts import HuggingFaceExperts
from memscope.run.adapters.modules import beside
from memscope.run.adapters.neurons import neuron_site, run_neurons
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from memscope.run.subject import Edit, Selected, evaluating
from tests.conftest import CliResult, tiny_config, untrained_run
from tests.run.adapters.families import EXPERTS, TOP, VOCAB, make_model, make_tokenizer

pytestmark = pytest.mark.slow

TOKENS = torch.randint(3, VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(12) < torch.tensor([12, 7, 12, 3])[:, None]
EXPERT = 5
"""An expert of layer 1, entry ``EXPERTS + EXPERT``."""
ENTRY = EXPERTS + EXPERT


@pytest.fixture(scope="module", params=["olmoe", "mixtral"])
def subject(request: pytest.FixtureRequest) -> HuggingFaceExperts:
    return HuggingFaceExperts(make_model(request.param), make_tokenizer())


def run(subject: Any, block: AbstractContextManager[None] | None = None) -> tuple[Tensor, dict[int, Selected]]:
    """Logits where the mask holds, and what was selected, in a block."""
    with evaluating(subject.model):
        if block is None:
            with subject.capture() as captured:
                return subject.logits(TOKENS, MASK)[MASK], dict(captured)
        with block:
            return run(subject)


def experts_of(subject: HuggingFaceExperts, layer: int) -> nn.Module:
    return dict(subject.model.named_modules())[subject.sites[layer].module]


@contextmanager
def changed_experts(subject: HuggingFaceExperts, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change all weights of a layer's experts, ``[expert, ...]`` each, by hand."""
    weights = dict(experts_of(subject, layer).named_parameters(recurse=False))
    before = {name: weight.data.clone() for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.data = change(weight.data.clone())
        yield
    finally:
        for name, weight in weights.items():
            weight.data = before[name]


def silenced(weight: Tensor) -> Tensor:
    weight[EXPERT] = 0
    return weight


def test_a_zeroed_expert_is_one_whose_weights_are_zero(subject: HuggingFaceExperts) -> None:
    plain, selected = run(subject)
    logits, altered = run(subject, ablate(subject, [ENTRY], "zero"))
    with changed_experts(subject, 1, silenced):
        expected, _ = run(subject)
    assert torch.allclose(logits, expected, atol=1e-6) and (logits - plain).abs().max() > 1e-3
    gone = selected[1].indices == ENTRY
    assert gone.any() and torch.equal(altered[1].indices.sort(-1).values, selected[1].indices.sort(-1).values)
    weights = altered[1].gate_scores
    assert (weights[altered[1].indices == ENTRY] == 0).all()
    assert torch.equal(run(subject)[0], plain)  # nothing is left of it


def test_the_others_take_over_the_weight_of_an_ablated_expert(subject: HuggingFaceExperts) -> None:
    plain, selected = run(subject)
    logits, altered = run(subject, ablate(subject, [ENTRY]))
    before, after = selected[1].gate_scores, altered[1].gate_scores
    assert torch.allclose(after.sum(-1), before.sum(-1), atol=1e-6)
    touched = (selected[1].indices == ENTRY).any(-1)
    assert torch.equal(after[~touched], before[~touched])
    assert ((after > 0).sum(-1)[touched] == TOP - 1).all()
    zeroed, _ = run(subject, ablate(subject, [ENTRY], "zero"))
    assert (logits - zeroed).abs().max() > 1e-3 and (logits - plain).abs().max() > 1e-3
    everything, altered = run(subject, ablate(subject, range(EXPERTS, 2 * EXPERTS)))
    assert (altered[1].gate_scores == 0).all() and torch.isfinite(everything).all()
    assert torch.allclose(everything, run(subject, scale(subject, 0.0, layers=[1]))[0], atol=1e-6)


def test_swapped_experts_are_those_whose_weights_are_exchanged(subject: HuggingFaceExperts) -> None:
    order = torch.arange(EXPERTS)
    order[[2, EXPERT]] = order[[EXPERT, 2]]
    logits, _ = run(subject, swap(subject, ENTRY, EXPERTS + 2))
    with changed_experts(subject, 1, lambda weight: weight[order]):
        expected, _ = run(subject)
    assert torch.allclose(logits, expected, atol=1e-6) and (logits - run(subject)[0]).abs().max() > 1e-3
    back, _ = run(subject, nested(swap(subject, ENTRY, EXPERTS + 2), swap(subject, ENTRY, EXPERTS + 2)))
    assert torch.equal(back, run(subject)[0])


@contextmanager
def nested(outer: AbstractContextManager[None], inner: AbstractContextManager[None]) -> Iterator[None]:
    with outer, inner:
        yield


def test_a_forced_expert_takes_the_place_of_the_weakest(subject: HuggingFaceExperts) -> None:
    _, selected = run(subject)
    _, altered = run(subject, force(subject, ENTRY, 0.75))
    for layer in (0, 1):  # sites compare best weight first
        was, now = selected[layer], altered[layer]
        if layer == 0:
            assert torch.equal(was.indices, now.indices)
            continue
        expected = []
        for chosen, weights in zip(was.indices.flatten(0, 1), was.gate_scores.flatten(0, 1), strict=True):
            kept = dict(zip(chosen.tolist(), weights.tolist(), strict=True))
            if ENTRY not in kept:
                del kept[int(chosen[weights.argmin()])]
            expected.append(kept | {ENTRY: 0.75})
        found = [
            dict(zip(chosen.tolist(), weights.tolist(), strict=True))
            for chosen, weights in zip(now.indices.flatten(0, 1), now.gate_scores.flatten(0, 1), strict=True)
        ]
        assert found == expected
    outer = force(subject, EXPERTS, 0.5)
    both, _ = run(subject, nested(outer, ablate(subject, [EXPERTS], "zero", layers=[1])))
    alone, _ = run(subject, ablate(subject, [EXPERTS], "zero", layers=[1]))
    assert (both - alone).abs().max() > 1e-3  # the inner block sees the forced expert, which took a place


def test_a_scaled_layer_is_one_whose_last_matrix_is_scaled(subject: HuggingFaceExperts) -> None:
    logits, _ = run(subject, scale(subject, 0.25, layers=[1]))
    down = experts_of(subject, 1).get_parameter("down_proj")
    down.data *= 0.25
    expected, _ = run(subject)
    down.data /= 0.25
    assert torch.allclose(logits, expected, atol=1e-6) and (logits - run(subject)[0]).abs().max() > 1e-3


def test_positions_limit_what_is_changed(subject: HuggingFaceExperts) -> None:
    _, altered = run(subject, scale(subject, 0.0, layers=[0], positions=[4, 5]))
    zero = (altered[0].gate_scores == 0).all(-1)
    assert zero[:, 4:6].all() and not zero[:, :4].any() and not zero[:, 6:].any()
    here = torch.zeros(TOKENS.shape, dtype=torch.bool)
    here[2, 3] = True
    with evaluating(subject.model):
        plain = subject.logits(TOKENS, MASK)
        with scale(subject, 0.0, positions=here):
            changed = subject.logits(TOKENS, MASK)
    moved = ((changed - plain).abs().amax(-1) > 1e-4) & MASK
    assert moved[2, 3:].all() and moved.sum() == moved[2, 3:].sum()


@pytest.mark.parametrize("kind", ["olmoe", "mixtral", "deepseek_v3", "llama4_text"])
def test_a_replayed_pass_is_the_same_bit_for_bit(kind: str) -> None:
    subject = HuggingFaceExperts(make_model(kind), make_tokenizer())
    plain, selected = run(subject)
    logits, again = run(subject, replay(subject, selected))
    assert torch.equal(logits, plain)
    # The routers have no say any more: with other weights the same experts are used, with the same weights.
    with torch.no_grad():
        for name, weight in subject.model.named_parameters():
            if "gate.weight" in name or "router" in name:
                weight.mul_(-1)
    assert not torch.equal(run(subject)[1][1].indices, selected[1].indices)
    logits, again = run(subject, replay(subject, selected))
    assert torch.allclose(logits, plain, atol=1e-5)
    for layer, one in selected.items():
        found, expected = (
            torch.zeros(*TOKENS.shape, 2 * EXPERTS).scatter(-1, x.indices, x.gate_scores) for x in (again[layer], one)
        )
        assert torch.equal(found[MASK], expected[MASK])
    only, later = run(subject, replay(subject, selected, layers=[0]))
    assert (only - plain).abs().max() > 1e-4 and not torch.equal(later[1].indices, selected[1].indices)


def test_what_cannot_be_is_refused(subject: HuggingFaceExperts) -> None:
    _, selected = run(subject)
    cases: list[tuple[Callable[[], AbstractContextManager[None]], str]] = [
        (lambda: ablate(subject, [2 * EXPERTS]), "there is no expert 16; the 16 experts of all layers count from 0"),
        (lambda: ablate(subject, [3], layers=[1]), "layer 1 cannot select layer 0, expert 3; it has 8 to 15"),
        (lambda: ablate(subject, [3], layers=[4]), "layer 4 selects nothing; layers that select are 0, 1"),
        (lambda: force(subject, 3, 1.0, layers=[0, 1]), "not every layer named can select layer 0, expert 3"),
        (lambda: swap(subject, 3, 9), "no layer can select layer 0, expert 3 and layer 1, expert 1"),
        (lambda: replay(subject, {0: selected[0]}, layers=[0, 1]), "layer 1 was not captured"),
    ]
    for make, message in cases:
        with pytest.raises(InputError, match=message), make():
            pass
    short = {layer: Selected(one.indices[:, :5], one.gate_scores[:, :5]) for layer, one in selected.items()}
    with pytest.raises(InputError, match=r"of a batch of shape \(4, 5\), this one is \(4, 12\)"):
        run(subject, replay(subject, short))
    with pytest.raises(InputError, match="attribution needs a memory"):
        attribute(subject, TOKENS, TOKENS)


class Unwritable(HuggingFaceExperts):
    """A subject whose first layer has no scores and whose selections cannot be changed."""

    @property
    def sites(self) -> tuple[Site, ...]:
        first, second = super().sites
        return first.model_copy(update={"has": ()}), second

    def rewrite(self, edit: Edit) -> AbstractContextManager[None]:
        raise InputError("its selections cannot be changed")


def test_sites_without_scores_or_without_a_way_to_write_are_named() -> None:
    subject = Unwritable(make_model("olmoe"), make_tokenizer())
    with pytest.raises(InputError, match=r"layer 0 \(model.layers.0.mlp.experts\) has no scores"), ablate(subject, [3]):
        pass
    with pytest.raises(InputError, match="its selections cannot be changed"), ablate(subject, [ENTRY]):
        pass


def test_own_runs_have_the_finer_interventions_under_the_same_names(tiny_run: LoadedRun) -> None:
    subject, model = OwnRun(tiny_run), tiny_run.model
    plain, selected = run(subject)
    entry, other = selected[0].indices.flatten().bincount().argsort(descending=True)[:2].tolist()
    pairs = [
        (ablate(subject, [entry]), intervene.ablate(model, [entry])),
        (ablate(subject, [entry], "zero", layers=[1]), intervene.ablate(model, [entry], "zero", layers=[1])),
        (force(subject, entry, 2.0), intervene.force(model, entry, 2.0)),
        (swap(subject, entry, other, positions=[3]), intervene.swap(model, entry, other, positions=[3])),
        (scale(subject, 0.5), intervene.scale(model, 0.5)),
    ]
    for mine, its in pairs:
        logits, expected = run(subject, mine)[0], run(subject, its)[0]
        assert torch.equal(logits, expected) and not torch.equal(logits, plain)
    assert torch.equal(run(subject, replay(subject, selected))[0], plain)
    with replay(subject, selected), evaluating(model), subject.capture() as captured:
        subject.logits(TOKENS.flip(0), MASK)  # other text selects the same
        assert all(torch.equal(captured[layer].indices, one.indices) for layer, one in selected.items())


def test_an_ablated_neuron_is_one_whose_column_is_zero(
    cli, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    config = tiny_config(corpus_dir, model={"block": "ffn"})
    ffn = untrained_run(config, tmp_path_factory.mktemp("runs") / "ffn")
    width = ffn.config.model.ffn_dim
    subject = run_neurons(ffn, width)
    plain, _ = run(subject)
    logits, _ = run(subject, ablate(subject, [width + 3]))  # neuron 3 of block 1; activations share no sum
    assert torch.equal(logits, run(subject, ablate(subject, [width + 3], "zero"))[0])
    column = ffn.model.get_parameter("blocks.1.ffn.w2.weight").data[:, 3]
    before = column.clone()
    column.zero_()
    expected, _ = run(subject)
    column.copy_(before)
    assert torch.allclose(logits, expected, atol=1e-6) and (logits - plain).abs().max() > 1e-6
    some = run_neurons(ffn, 4)
    record(some, corpus_dir / "valid.jsonl", tmp_path / "recording")
    done: CliResult = cli(
        "ablate",
        ffn.path,
        tmp_path / "recording",
        "--entries",
        "1:3",
        "--tokens",
        300,
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["entries"] == [width + 3]


def test_a_recording_of_other_sites_is_refused(cli, tiny_run: LoadedRun, corpus_dir: Path, tmp_path: Path) -> None:
    site = replace(neuron_site(tiny_run.model, "blocks.1.memory.read.o_proj", 2), kind="features")
    record(beside(OwnRun(tiny_run), [site]), corpus_dir / "valid.jsonl", tmp_path / "recording")
    done: CliResult = cli("ablate", tiny_run.path, tmp_path / "recording", "--entries", 3, "--out", tmp_path / "out")
    assert done.code == 2 and "other layers of" in done.err and "memscope.causal.selections" in done.err
