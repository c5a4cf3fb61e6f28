"""What is recorded of a mixture of experts is what its experts were called with, in every family."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memscope.run.adapters.experts import HuggingFaceExperts
from memscope.run.subject import Selected, Subject, evaluating, run_windows
from memscope.text.corpus import DocumentWindow, PackedCorpus
from tests.run.adapters.families import EXPERTS, FAMILIES, TOP, VOCAB, WIDTH, Family, make_model, make_tokenizer

pytestmark = pytest.mark.slow

LENGTHS = [3, 17, 20, 9, 20, 6, 12, 1]


class World(NamedTuple):
    """A model of a family, and what it selects on a padded batch."""

    kind: str
    family: Family
    subject: HuggingFaceExperts
    tokens: Tensor
    mask: Tensor
    bare: Tensor
    """Logits without any hook."""
    during: Tensor
    captured: dict[int, Selected]
    given: dict[int, tuple[Tensor, Tensor]]
    """Indices and weights that the experts' ``forward`` got, by layer."""


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest) -> World:
    subject = HuggingFaceExperts(make_model(request.param), make_tokenizer())
    chance = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, VOCAB, (len(LENGTHS), max(LENGTHS)), generator=chance)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    tokens[~mask] = subject.tokenizer.pad
    with torch.no_grad():
        bare = subject.logits(tokens, mask)
        with subject.capture() as captured, spied(subject) as given:
            during = subject.logits(tokens, mask)
    return World(request.param, FAMILIES[request.param], subject, tokens, mask, bare, during, dict(captured), given)


class spied:
    """Note the arguments of every site's module by wrapping its ``forward``, without hooks."""

    def __init__(self, subject: HuggingFaceExperts):
        modules = dict(subject.model.named_modules())
        self.modules = {site.layer: modules[site.module] for site in subject.sites}
        self.given: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> dict[int, tuple[Tensor, Tensor]]:
        for layer, module in self.modules.items():
            module.forward = self._wrapped(layer, module.forward)
        return self.given

    def __exit__(self, *error: object) -> None:
        for module in self.modules.values():
            del module.forward

    def _wrapped(self, layer: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            done = forward(*args, **kwargs)
            if len(args) + len(kwargs) > 1:
                self.given[layer] = tuple([*args, *kwargs.values()][1:3])
            else:  # the router of Llama 4: scores are 0 elsewhere
                self.given[layer] = done[0].topk(TOP)[::-1]
            return done

        return call


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_sites_are_the_layers_that_route(world: World) -> None:
    subject, family = world.subject, world.family
    assert isinstance(subject, Subject)
    assert tuple(site.layer for site in subject.sites) == family.layers
    assert [site.first_entry for site in subject.sites] == [n * family.entries for n in range(len(family.layers))]
    for site in subject.sites:
        assert (site.kind, site.entries, site.selected) == ("experts", family.entries, TOP)
        assert site.has == (("scores", "lens") if family.lens else ("scores",))
        assert bool(site.always) == family.shared
        modules = dict(subject.model.named_modules())
        assert site.module in modules and (not site.always or site.always in modules)


def test_what_is_captured_is_what_the_experts_were_called_with(world: World) -> None:
    for site in world.subject.sites:
        indices, weights = world.given[site.layer]
        captured = world.captured[site.layer]
        assert captured.indices.shape == (*world.tokens.shape, TOP)
        order = weights.float().argsort(dim=-1, descending=True, stable=True)
        assert torch.equal(captured.indices.flatten(0, 1) - site.first_entry, indices.gather(-1, order))
        assert captured.gate_scores is not None
        assert torch.equal(captured.gate_scores.flatten(0, 1), weights.float().gather(-1, order))
        assert len(captured.indices[world.mask].unique()) > TOP  # different tokens go to different experts


def test_plain_routing_is_the_largest_of_the_router_logits(world: World) -> None:
    if not world.family.plain:
        return  # see below for one that is not
    with torch.no_grad():
        done = world.subject.model(
            input_ids=world.tokens, attention_mask=world.mask.long(), output_router_logits=True, use_cache=False
        )
    assert len(done.router_logits) == len(world.subject.sites)
    for site, logits in zip(world.subject.sites, done.router_logits, strict=True):
        best = logits.reshape(-1, EXPERTS).topk(TOP).indices.sort().values + site.first_entry
        assert torch.equal(world.captured[site.layer].indices.flatten(0, 1).sort().values, best)


def test_the_experts_are_those_whose_rows_of_the_router_agree_most_with_the_token(world: World) -> None:
    if world.family.moved:
        return  # see below for one whose choice a bias moves
    modules, seen = dict(world.subject.model.named_modules()), {}
    for site in world.subject.sites:
        block = modules[site.module.rpartition(".")[0]]
        weights = dict(block.named_parameters())
        name = next(
            name
            for name, weight in weights.items()
            if weight.shape[:1] == (site.entries,) and weight.ndim == 2 and not name.startswith("experts")
        )
        router, bias = weights[name].float(), weights.get(name.replace("weight", "bias"), torch.zeros(()))

        def note(_: nn.Module, given: Any, named: Any, layer: int = site.layer) -> None:
            seen[layer] = given[0] if given else named["hidden_states"]

        handle = block.register_forward_pre_hook(note, with_kwargs=True)
        with torch.no_grad():
            world.subject.logits(world.tokens, world.mask)
        handle.remove()
        scores = seen[site.layer].reshape(-1, WIDTH).float() @ router.T + bias
        best = scores.topk(TOP).indices.sort().values + site.first_entry
        assert torch.equal(world.captured[site.layer].indices.flatten(0, 1).sort().values, best)


def test_logits_are_the_same_bit_for_bit_and_no_hook_stays(world: World) -> None:
    assert torch.equal(world.bare, world.during)
    before = hooks_of(world.subject.model)
    for block in (world.subject.capture(), world.subject.rewrite(lambda layer, indices, scores: (indices, scores))):
        with pytest.raises(KeyError), block:
            assert hooks_of(world.subject.model) > before
            raise KeyError
        assert hooks_of(world.subject.model) == before
    with torch.no_grad():
        assert torch.equal(world.subject.logits(world.tokens, world.mask), world.bare)


def test_a_selection_played_back_gives_the_same_logits(world: World) -> None:
    def edit(layer: int, indices: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return world.captured[layer].indices, world.captured[layer].gate_scores

    with torch.no_grad(), world.subject.rewrite(edit):
        assert torch.equal(world.subject.logits(world.tokens, world.mask), world.bare)


def test_none_in_place_of_an_expert_is_its_weight_at_zero(world: World) -> None:
    def none(layer: int, indices: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return torch.where(torch.arange(TOP) == 0, -1, indices), None

    def zero(layer: int, indices: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert scores is not None
        return indices, scores * (torch.arange(TOP) > 0)

    with torch.no_grad():
        with world.subject.rewrite(none):
            dropped = world.subject.logits(world.tokens, world.mask)
        with world.subject.rewrite(zero), world.subject.capture() as captured:
            zeroed = world.subject.logits(world.tokens, world.mask)
    assert all((one.gate_scores == 0).any(-1).all() for one in captured.values() if one.gate_scores is not None)
    assert not torch.allclose(dropped[world.mask], world.bare[world.mask], atol=1e-4)
    torch.testing.assert_close(dropped[world.mask], zeroed[world.mask], atol=1e-4, rtol=1e-3)


def test_neither_batch_nor_padding_changes_a_selection(world: World) -> None:
    starts = np.cumsum([0, *LENGTHS])
    corpus = PackedCorpus(world.tokens[world.mask].numpy(), starts, [""] * len(LENGTHS), "", "")
    windows = [DocumentWindow(n, 0, int(starts[n]), int(starts[n + 1])) for n in range(len(LENGTHS))]

    def selections(size: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        for done in run_windows(world.subject, corpus, windows, world.subject.tokenizer.pad, size):
            for layer, captured in done.captured.items():
                for row, window in enumerate(done.windows):
                    assert captured.gate_scores is not None
                    real = (
                        captured.indices[row, : LENGTHS[window.doc]],
                        captured.gate_scores[row, : LENGTHS[window.doc]],
                    )
                    yield layer, window.doc, *real

    alone = {(layer, doc): (indices, scores) for layer, doc, indices, scores in selections(1)}
    assert len(alone) == len(LENGTHS) * len(world.subject.sites)
    for layer, doc, indices, scores in selections(16):
        assert torch.equal(indices.sort().values, alone[layer, doc][0].sort().values)
        torch.testing.assert_close(scores, alone[layer, doc][1], atol=1e-5, rtol=1e-4)


def test_the_value_of_an_expert_is_its_mean_output(world: World) -> None:
    site = world.subject.sites[-1]
    own = torch.arange(site.own.start, site.own.stop)
    with torch.no_grad():
        assert world.subject.values(site.layer, own).isnan().all()  # without text nothing is known
        values = world.subject.values(site.layer, own, [(world.tokens, world.mask)])
        assert torch.equal(world.subject.values(site.layer, own).nan_to_num(), values.nan_to_num())
    assert values.shape == (site.entries, WIDTH)
    selected = world.captured[site.layer].indices[world.mask].unique()
    assert torch.equal(values.isfinite().all(-1).nonzero()[:, 0] + site.first_entry, selected)
    if world.kind == "llama4_text":
        return
    hidden: list[Tensor] = []
    experts = world.subject.model.get_submodule(site.module)
    handle = experts.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    with torch.no_grad():
        world.subject.logits(world.tokens, world.mask)
        handle.remove()
        rows = world.mask.flatten() & (world.captured[site.layer].indices == selected[0]).any(-1).flatten()
        alone = [
            experts(row[None], torch.full((1, 2), int(selected[0]) - site.first_entry), torch.full((1, 2), 0.5))
            for row in hidden[0].reshape(-1, WIDTH)[rows]
        ]
    torch.testing.assert_close(values[selected[0] - site.first_entry], torch.cat(alone).mean(0), atol=1e-5, rtol=1e-3)


def test_the_residual_stream_is_unembedded_as_the_model_does(world: World) -> None:
    tail = world.subject._tail
    assert tail is not None
    resid: list[Tensor] = []
    handle = tail.norm.register_forward_pre_hook(lambda module, args: resid.append(args[0]))
    with torch.no_grad():
        logits = world.subject.logits(world.tokens, world.mask)
        handle.remove()
        again = world.subject.unembed(resid[0].flatten(0, 1))
    torch.testing.assert_close(again, logits.flatten(0, 1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["granitemoe", "granitemoeshared"])
def test_values_are_what_a_block_adds_where_it_scales_its_experts(kind: str) -> None:
    model = make_model(kind, residual_multiplier=0.22, **FAMILIES[kind].settings)
    subject = HuggingFaceExperts(model, make_tokenizer())
    tokens, mask = torch.arange(3, 15)[None], torch.ones(1, 12, dtype=torch.bool)
    site = subject.sites[0]
    own = torch.arange(site.own.start, site.own.stop)
    values = subject.values(site.layer, own, [(tokens, mask)])
    streams: list[Tensor] = []
    model.get_submodule("model.layers.0").register_forward_hook(
        lambda module, args, output: streams.append(output[0] if isinstance(output, tuple) else output)
    )
    with evaluating(model):
        with subject.capture() as captured:
            subject.logits(tokens, mask)
        for weight in (1.0, 0.0):
            with subject.rewrite(lambda layer, old, by, weight=weight: (old, torch.full_like(by, weight))):
                subject.logits(tokens, mask)
    added = (streams[1] - streams[2]).flatten(0, -2).sum(0)  # by all tokens together, each expert with weight 1
    each = torch.bincount(captured[0].indices.flatten() - site.first_entry, minlength=site.entries)
    expected = (values.nan_to_num() * each[:, None]).sum(0)
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-4)
    assert added.abs().max() > 1e-3
