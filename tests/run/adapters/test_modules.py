"""Modules of other programs are recorded by what they select and how they weigh it, to the last bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PEER_pytorch import PEER
from product_key_memory import PKM
from torch import Tensor, nn

from memscope.base.errors import InputError
from memscope.causal.selections import ablate, replay, scale, swap
from memscope.record.loop import RecordOptions, describe, plan_parts, record_parts
from memscope.record.rows import RowCollector
from memscope.recording.part_reader import read_part
from memscope.run.adapters.memories import bag_site, peer_site
from memscope.run.adapters.module_site import Choice, ModuleSite
from memscope.run.adapters.modules import ModuleSubject
from memscope.run.subject import Selected, Subject, run_windows
from memscope.text.tokenizer import Tokenizer
from tests.run.adapters.small import DIM, VOCAB, WINDOW, Small, seeded, small_corpus, small_tokenizer

TOKENS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
MASK = torch.ones(2, 9, dtype=torch.bool)
HEADS, TOP, KEYS = 3, 4, 6


def pkm(**options: object) -> PKM:
    return PKM(DIM, heads=HEADS, topk=TOP, num_keys=KEYS, dim_head=8, **options)


def pkm_sites(model: nn.Module, **options: object) -> list[ModuleSite]:
    layers = range(len(model.get_submodule("layers")))
    return [bag_site(model, f"layers.{n}", gate_heads=HEADS, selected=HEADS * TOP, **options) for n in layers]


class Routed(nn.Module):
    """Hash-routed experts (arXiv 2106.04426): a token's expert is a hash of its id, which this layer is told."""

    def __init__(self, entries: int):
        super().__init__()
        self.entries, self.tokens = entries, torch.empty(0)
        self.table = nn.Embedding(entries, DIM)

    def forward(self, x: Tensor) -> Tensor:
        chosen: Tensor = self.table((self.tokens * 7 + 3) % self.entries)
        return chosen


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return small_tokenizer(tmp_path)


def subject_of(model: nn.Module, tokenizer: Tokenizer, sites: list[ModuleSite], **more: object) -> ModuleSubject:
    return ModuleSubject(model, tokenizer, sites, window=WINDOW, **more)


def watch_outputs(model: nn.Module, path: str) -> list[Tensor]:
    outputs: list[Tensor] = []
    model.get_submodule(path).register_forward_hook(lambda module, args, output: outputs.append(output))
    return outputs


@pytest.mark.parametrize("options", [{}, {"non_competitive_gates": True}])
def test_product_keys_give_back_the_layers_output_as_weight_times_value(
    tokenizer: Tokenizer, options: dict[str, bool]
) -> None:
    model = seeded(lambda: Small(pkm(**options), pkm(**options)))
    subject = subject_of(model, tokenizer, pkm_sites(model, is_output=True), unembedding=model.unembed)
    outputs = [watch_outputs(model, f"layers.{layer}") for layer in (0, 1)]
    with subject.capture() as captured:
        watched = subject.logits(TOKENS, MASK)
    assert torch.equal(watched, model(TOKENS))
    assert [site.first_entry for site in subject.sites] == [0, KEYS**2]
    assert subject.sites[0].has == ("scores", "lens")
    for site, output in zip(subject.sites, outputs, strict=True):
        seen = captured[site.layer]
        assert seen.indices.shape == (2, 9, HEADS * TOP)
        values = subject.values(site.layer, seen.indices.flatten()).unflatten(0, seen.indices.shape)
        torch.testing.assert_close((seen.gate_scores[..., None] * values).sum(2), output[0], atol=1e-6, rtol=0)
        by_head = seen.indices.unflatten(-1, (HEADS, TOP)).sort(-1).values
        assert (by_head.diff(dim=-1) > 0).all()  # distinct in a head, though not over heads
    several = captured[0].indices.sort(-1).values.diff(dim=-1)
    assert (several == 0).any()


def test_product_keys_without_weights_are_recorded_without_scores(tokenizer: Tokenizer) -> None:
    model = seeded(lambda: Small(pkm(concat_values_and_combine=True)))
    subject = subject_of(model, tokenizer, pkm_sites(model))
    with subject.capture() as captured:
        subject.logits(TOKENS, MASK)
    assert subject.sites[0].has == () == subject.sites[0].columns
    assert captured[0].gate_scores is None


def test_layers_that_share_their_values_select_from_one_bank(tokenizer: Tokenizer) -> None:
    def share() -> Small:
        model = Small(pkm(), pkm(), pkm())
        model.layers[2].values = model.layers[0].values
        return model

    model = seeded(share)
    subject = subject_of(model, tokenizer, pkm_sites(model))
    assert [site.first_entry for site in subject.sites] == [0, KEYS**2, 0]
    inputs: list[Tensor] = []
    model.layers[2].values.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    with subject.capture() as captured:
        subject.logits(TOKENS, MASK)
    for layer, indices in ((0, inputs[0]), (2, inputs[1])):
        assert torch.equal(captured[layer].indices.sort(-1).values.flatten(), indices.sort(-1).values.flatten())
    with subject.rewrite(lambda layer, old, scores: (old, scores * (layer != 2))):
        changed = subject.logits(TOKENS, MASK)
    model.layers[2].forward = lambda x: torch.zeros_like(x)
    assert torch.equal(changed, model(TOKENS))


class Bag(nn.Module):
    """A table that is called as xFormers' is: weights have no name."""

    def __init__(self, entries: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(entries, DIM))

    def forward(self, indices: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = torch.einsum("nk,nkd->nd", weights, self.weight[indices])
        return out


class HashingMemory(nn.Module):
    """Keys, and values that all such layers share, as in XLM and in Meta's memory layers."""

    VALUES: Bag

    def __init__(self) -> None:
        super().__init__()
        self.values, self.keys = self.VALUES, nn.Linear(DIM, 20)

    def forward(self, x: Tensor) -> Tensor:
        best = self.keys(x.flatten(0, 1)).topk(TOP)
        return self.values(best.indices, best.values.softmax(-1)).view(x.shape)


def test_values_that_layers_share_and_call_without_names_are_recorded_and_rewritten(tokenizer: Tokenizer) -> None:
    HashingMemory.VALUES = seeded(lambda: Bag(20))
    model = seeded(lambda: Small(HashingMemory(), HashingMemory()))
    sites = [bag_site(model, f"layers.{n}", gate_heads=1, selected=TOP, is_output=True) for n in (0, 1)]
    subject = subject_of(model, tokenizer, sites, unembedding=model.unembed)
    assert [site.own for site in subject.sites] == [slice(0, 20)] * 2
    outputs = [watch_outputs(model, f"layers.{layer}") for layer in (0, 1)]
    with subject.capture() as captured:
        plain = subject.logits(TOKENS)
    for layer, [output] in enumerate(outputs):
        values = subject.values(layer, captured[layer].indices.flatten()).view(2, 9, TOP, DIM)
        torch.testing.assert_close((captured[layer].gate_scores[..., None] * values).sum(2), output)
    with subject.rewrite(lambda layer, indices, scores: (indices, scores)):
        assert torch.equal(subject.logits(TOKENS), plain)
    with subject.rewrite(lambda layer, indices, scores: (indices, scores * layer)):
        changed = subject.logits(TOKENS)
    model.layers[0].forward = lambda x: torch.zeros_like(x)
    assert torch.equal(changed, model(TOKENS))


def test_peer_gives_back_the_layers_output_exactly(tokenizer: Tokenizer) -> None:
    model = seeded(lambda: Small(PEER(DIM, heads=5, num_experts=KEYS**2, product_key_topk=2)))
    subject = subject_of(model, tokenizer, [peer_site(model, "layers.0")])
    [output] = [watch_outputs(model, "layers.0")]
    with subject.capture(detail=True) as captured:
        subject.logits(TOKENS, MASK)
    seen, site = captured[0], subject.sites[0]
    assert (site.selected, site.distinct, site.kind) == (5, 1, "peer")
    values = model.get_submodule("layers.0.weight_up_embed")(seen.indices)
    assert torch.equal(torch.einsum("btk,btkd->btd", seen.read_weights, values), output[0])
    assert torch.equal(seen.read_norms, seen.read_weights.abs())
    assert (seen.gate_scores >= 0).all() and (seen.read_weights < 0).any()


PEERS: dict[str, dict[str, Any]] = {
    "one a head": {"heads": 5},
    "competing": {"heads": 2, "num_experts_per_head": 3, "non_competing_scores": False},
    "own experts": {
        "heads": 2,
        "num_experts_per_head": 2,
        "non_competing_scores": False,
        "separate_embed_per_head": True,
    },
}


def peer_subject(tokenizer: Tokenizer, options: dict[str, Any], shared: bool = False) -> ModuleSubject:
    def make() -> Small:
        model = Small(*(PEER(DIM, num_experts=KEYS**2, product_key_topk=3, **options) for _ in range(2)))
        for name in ("weight_down_embed", "weight_up_embed") * shared:
            setattr(model.layers[1], name, getattr(model.layers[0], name))
        return model

    model = seeded(make)
    return subject_of(model, tokenizer, [peer_site(model, f"layers.{layer}") for layer in range(2)])


def both(subject: ModuleSubject) -> tuple[Tensor, dict[int, Selected]]:
    with subject.capture() as captured:
        return subject.logits(TOKENS, MASK), dict(captured)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", list(PEERS))
def test_peer_that_is_told_what_it_selects_is_the_same_bit_for_bit(
    tokenizer: Tokenizer, name: str, shared: bool
) -> None:
    subject = peer_subject(tokenizer, PEERS[name], shared)
    plain, selected = both(subject)
    with subject.rewrite(lambda layer, indices, scores: (indices, scores)):
        same, again = both(subject)
    assert torch.equal(same, plain)
    for layer, one in selected.items():
        assert torch.equal(again[layer].indices, one.indices)
        assert torch.equal(again[layer].gate_scores, one.gate_scores)
        assert torch.equal(again[layer].read_weights, one.read_weights)
    with replay(subject, selected):
        assert torch.equal(both(subject)[0], plain)
        assert all(torch.equal(both(subject)[1][layer].indices, one.indices) for layer, one in selected.items())
    assert torch.equal(both(subject)[0], plain)


@pytest.mark.parametrize("name", list(PEERS))
def test_changed_experts_of_peer_are_those_of_a_layer_changed_by_hand(tokenizer: Tokenizer, name: str) -> None:
    subject = peer_subject(tokenizer, PEERS[name])
    plain, selected = both(subject)
    site = subject.sites[1]
    common = (selected[1].indices - site.first_entry).flatten().bincount().argsort(descending=True)
    expert, other = common[:2].tolist()
    first = site.first_entry + expert
    layer: Any = subject.model.get_submodule("layers.1")
    down, up = layer.weight_down_embed.weight.data, layer.weight_up_embed.weight.data
    kept = down.clone(), up.clone()
    with ablate(subject, [first]), ablate(subject, [first]):
        ablated, altered = both(subject)
    assert (altered[1].gate_scores[altered[1].indices == first] == 0).all()
    assert torch.equal(altered[0].indices, selected[0].indices)
    up[expert] = 0
    torch.testing.assert_close(ablated, both(subject)[0], atol=1e-6, rtol=0)
    up.copy_(kept[1])
    with swap(subject, first, site.first_entry + other):
        swapped, _ = both(subject)
        with swap(subject, first, site.first_entry + other):  # sees the exchanged ones, and exchanges them back
            assert torch.equal(both(subject)[0], plain)
    for table, before in ((down, kept[0]), (up, kept[1])):
        table[[expert, other]] = before[[other, expert]]
    torch.testing.assert_close(swapped, both(subject)[0], atol=1e-6, rtol=0)
    down.copy_(kept[0])
    up.copy_(kept[1])
    for changed in (ablated, swapped):
        assert (changed - plain).abs().max() > 1e-4
    with subject.capture() as outside, scale(subject, 0.0, layers=[1]):
        scaled = subject.logits(TOKENS, MASK)
    assert (outside[1].gate_scores == 0).all()  # what ran, also for a capture that was there before
    layer.forward = lambda x: torch.zeros_like(x)
    torch.testing.assert_close(scaled, subject.logits(TOKENS, MASK))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())


def test_an_exception_in_peer_leaves_nothing_to_the_next_pass(tokenizer: Tokenizer) -> None:
    subject = peer_subject(tokenizer, PEERS["one a head"], shared=True)
    plain = subject.logits(TOKENS, MASK)
    broken: Any = subject.model.get_submodule("layers.1.activation")
    with subject.rewrite(lambda layer, indices, scores: (indices, scores)):
        handle = broken.register_forward_hook(lambda *call: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            subject.logits(TOKENS, MASK)
        handle.remove()
        assert torch.equal(subject.model(TOKENS), plain)


def test_a_site_without_a_way_to_be_written_is_refused(tokenizer: Tokenizer) -> None:
    subject = hash_subject(tokenizer)
    with pytest.raises(InputError, match=r"table: its site says nothing on how"), subject.rewrite(lambda *old: old[1:]):
        pass


def test_peer_with_experts_of_every_head_has_as_many_banks(tokenizer: Tokenizer) -> None:
    layer = PEER(DIM, heads=2, num_experts=16, num_experts_per_head=3, product_key_topk=3,
                 separate_embed_per_head=True, non_competing_scores=False)  # fmt: skip
    model = seeded(lambda: Small(layer))
    subject = subject_of(model, tokenizer, [peer_site(model, "layers.0")])
    with subject.capture() as captured:
        subject.logits(TOKENS, MASK)
    assert subject.sites[0].entries == 32
    heads = captured[0].indices.unflatten(-1, (2, 3))
    assert heads[..., 0, :].max() < 16 <= heads[..., 1, :].min()
    best = captured[0].gate_scores.unflatten(-1, (2, 3))
    assert (best.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(best.sum(-1), torch.ones(2, 9, 2))


def hash_subject(tokenizer: Tokenizer, entries: int = 5) -> ModuleSubject:
    model = seeded(lambda: Small(Routed(entries)))
    layer = model.layers[0]
    site = ModuleSite("layers.0.table", entries=entries, selected=1, reads=lambda call: Choice(call.args[0]), has=())

    def run(tokens: Tensor, mask: Tensor) -> Tensor:
        layer.tokens = tokens
        logits: Tensor = model(tokens)
        return logits

    return subject_of(model, tokenizer, [site], run=run)


def test_what_a_hash_selects_is_a_function_of_the_token(tokenizer: Tokenizer) -> None:
    subject = hash_subject(tokenizer)
    corpus, windows = small_corpus()
    rows = RowCollector(corpus, subject.sites).collect(windows, run_windows(subject, corpus, windows, tokenizer.pad, 2))
    np.testing.assert_array_equal(rows.indices[:, 0, 0], (rows.token.astype(int) * 7 + 3) % 5)
    assert rows.gate is None and rows.read is None
    assert rows.loss[~np.isnan(rows.loss)].min() > 0


def test_a_recording_of_modules_reads_back_as_it_was(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = seeded(lambda: Small(pkm(), pkm()))
    subject = subject_of(model, tokenizer, pkm_sites(model), name="small")
    assert isinstance(subject, Subject)
    corpus, windows = small_corpus()
    info = describe(subject, corpus, windows, RecordOptions(score_bits=10))
    parts = record_parts(subject, subject.tokenizer.pad, corpus, tmp_path, info, plan_parts(windows, 1000))
    [part] = parts
    rows = read_part(tmp_path, part, info.model_copy(update={"parts": (part,)}))
    passes = run_windows(subject, corpus, windows, tokenizer.pad)
    expected = RowCollector(corpus, subject.sites, 10).collect(windows, passes)
    np.testing.assert_array_equal(rows.indices, expected.indices)
    np.testing.assert_array_equal(rows.gate, expected.gate)
    assert rows.indices[:, 1].min() >= KEYS**2


def test_rewriting_replays_ablates_and_forces(tokenizer: Tokenizer) -> None:
    model = seeded(lambda: Small(pkm()))
    subject = subject_of(model, tokenizer, pkm_sites(model))
    plain = subject.logits(TOKENS, MASK)
    with subject.rewrite(lambda layer, indices, scores: (indices, scores)):
        assert torch.equal(subject.logits(TOKENS, MASK), plain)
    with (
        subject.rewrite(lambda layer, indices, scores: (torch.full_like(indices, 7), None)),
        subject.capture() as captured,
    ):
        subject.logits(TOKENS, MASK)
    assert (captured[0].indices == 7).all()
    with (
        subject.rewrite(lambda layer, indices, scores: (torch.full_like(indices, KEYS**2), None)),
        pytest.raises(InputError, match="layer 0 has the entries 0 to 35 and no other"),
    ):
        subject.logits(TOKENS, MASK)
    with subject.rewrite(lambda layer, indices, scores: (torch.full_like(indices, -1), None)):
        ablated = subject.logits(TOKENS, MASK)
    model.layers[0].forward = lambda x: torch.zeros_like(x)
    assert torch.equal(ablated, subject.logits(TOKENS, MASK))


def test_what_is_rewritten_stands_in_the_order_in_which_it_is_captured(tokenizer: Tokenizer) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(6, DIM, mode="sum")

        def forward(self, x: Tensor) -> Tensor:
            indices, weights = (torch.tensor(v).expand(x[..., 0].numel(), 3) for v in ([2, 0, 5], [0.2, 0.5, 0.3]))
            return self.bag(indices, per_sample_weights=weights).view(x.shape)

    model = seeded(lambda: Small(Mixed()))
    subject = subject_of(model, tokenizer, [bag_site(model, "layers.0", 1, 3, values="bag")])
    calls: list[tuple[Tensor, Tensor]] = []
    model.layers[0].bag.register_forward_hook(
        lambda module, args, kwargs, out: calls.append((args[0][0], kwargs["per_sample_weights"][0])), with_kwargs=True
    )

    def edit(layer: int, indices: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((indices[0, 0], scores[0, 0]))
        return indices.where(indices != 5, 1), scores.where(indices != 5, 0.9)

    with subject.rewrite(edit), subject.capture() as captured:
        subject.logits(TOKENS)
    assert seen[0][0].tolist() == [0, 5, 2]
    assert calls[0][0].tolist() == [2, 0, 1]  # as the module has them
    torch.testing.assert_close(calls[0][1], torch.tensor([0.2, 0.5, 0.9]))
    assert captured[0].indices[0, 0].tolist() == [1, 0, 2]


def test_hooks_are_gone_after_the_block_and_after_an_exception(tokenizer: Tokenizer) -> None:
    model = seeded(lambda: Small(pkm()))
    subject = subject_of(model, tokenizer, pkm_sites(model))

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    with subject.capture(), subject.rewrite(lambda *old: old[1:]):
        assert hooks() == 5
    assert hooks() == 0
    with pytest.raises(RuntimeError), subject.capture():
        raise RuntimeError("a fault inside the block")
    assert hooks() == 0


def test_fingerprints_follow_the_weights(tokenizer: Tokenizer) -> None:
    def fingerprint(seed: int) -> str:
        model = seeded(lambda: Small(pkm()), seed)
        return subject_of(model, tokenizer, pkm_sites(model)).fingerprint

    assert fingerprint(0) == fingerprint(0) != fingerprint(1)


def one(path: str, **values: object) -> ModuleSite:
    settings: dict[str, object] = {"entries": 5, "selected": 1, "has": (), "reads": lambda call: Choice(call.args[0])}
    return ModuleSite(path, **(settings | values))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (one("layers.0.tables"), r"no module 'layers\.0\.tables'; did you mean 'layers\.0\.table'\?"),
        (one("layers.0.table", selected=2), r"table: selected \(2, 9\) for 2 x 9 tokens, its site says 2 a token"),
        (one("layers.0.table", entries=4), r"table: selected 0 to 4, its entries are 0 to 3"),
        (one("layers.0.table", has=("reads",)), r"table: has reads and no scores; give what it reads by"),
        (one("layers.0.table", has=("scores",)), r"table: gives no weights; leave them out of 'has'"),
        (
            one("layers.0.table", has=("scores",), reads=lambda call: Choice(call.args[0], -1.0 - call.args[0])),
            r"table: has scores below 0; give their size",
        ),
    ],
)
def test_wrong_sites_are_refused_by_name(tokenizer: Tokenizer, site: ModuleSite, message: str) -> None:
    base = hash_subject(tokenizer)
    with pytest.raises(InputError, match=message):
        subject = subject_of(base.model, tokenizer, [site], run=base.run)
        with subject.capture():
            subject.logits(TOKENS, MASK)


def test_a_module_that_runs_twice_is_refused(tokenizer: Tokenizer) -> None:
    def twice() -> Small:
        layer = pkm()
        return Small(layer, layer)

    model = seeded(twice)
    subject = subject_of(model, tokenizer, pkm_sites(model)[:1])
    with subject.capture(), pytest.raises(InputError, match=r"layers\.0: ran more than once"):
        subject.logits(TOKENS, MASK)
