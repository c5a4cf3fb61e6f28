"""Noise, dropout, bias and losses that even out the use of keys, against their formulas; options of gate and blocks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from memscope.config.load import Config, load_config
from memscope.config.memory import MemoryConfig
from memscope.model import gate as gate_module
from memscope.model.balance import Balance
from memscope.model.gate import MemoryGate, QueryNorm
from memscope.model.transformer import MemoryTransformer, next_token_loss

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
SMALL = ["dim=32", "n_layers=2", "n_heads=4", "knowledge_num=64", "knowledge_dim=24", "max_seq_len=32"]


def small(*changes: str) -> Config:
    return load_config(DEMO, [*SMALL, "database_init_path=null", *changes])


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(3, 6400, (2, 33), generator=torch.Generator().manual_seed(seed))


def loss_and_gradients(model: MemoryTransformer) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    batch = tokens()
    loss = next_token_loss(model(batch[:, :-1]), batch[:, 1:]).mean() + model.penalty()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_noise_and_dropout_change_what_selection_sees_in_training_only() -> None:
    scores = torch.randn(2, 5, 3, 40)
    balance = Balance((3, 40), MemoryConfig(score_noise=0.5, score_dropout=0.25))
    seen = balance.train().disturbed(scores)
    dropped = seen.isinf()
    assert 0.15 < float(dropped.float().mean()) < 0.35
    assert float((seen - scores)[~dropped].std()) == pytest.approx(0.5, abs=0.06)
    assert torch.equal(balance.eval().disturbed(scores), scores)


def test_losses_are_those_of_switch_and_st_moe() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(7, 2, 2, 6, generator=generator)  # [token, head, half, key]
    chosen = torch.randint(6, (7, 2, 2, 3), generator=generator)
    balance = Balance((2, 2, 6), MemoryConfig(balance_loss=0.5, z_loss=0.25)).train()
    balance.observe(scores, chosen)
    uneven, z = [], []
    for head in range(2):
        for half in range(2):
            f = torch.bincount(chosen[:, head, half].flatten(), minlength=6) / 21
            p = scores[:, head, half].softmax(-1).mean(0)
            uneven.append(6 * (f * p).sum())
            z.append(scores[:, head, half].exp().sum(-1).log().square().mean())
    assert balance.penalty is not None
    torch.testing.assert_close(balance.penalty, 0.5 * torch.stack(uneven).mean() + 0.25 * torch.stack(z).mean())


def test_even_use_costs_a_balance_loss_of_one() -> None:
    balance = Balance((1, 4), MemoryConfig(balance_loss=1.0)).train()
    balance.observe(torch.zeros(4, 1, 4), torch.arange(4).view(4, 1, 1))
    assert balance.penalty is not None
    assert float(balance.penalty) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["full", "product"])
def test_the_bias_evens_out_keys_and_leaves_gate_scores_alone(kind: str) -> None:
    torch.manual_seed(0)
    config = MemoryConfig(
        knowledge_num=64, knowledge_dim=16, num_selected=4, gate=kind, score_fn="relu", balance_bias=0.05
    )
    gate = MemoryGate(32, config).train()
    x = torch.randn(4, 200, 32) + 0.5
    with torch.no_grad():  # one key (or row and column) that nearly all queries like
        liked = gate.query(x).mean((0, 1))
        gate.keys[..., 0, :] += (3 * liked / liked.norm()).view_as(gate.keys[..., 0, :])

    def violation() -> float:
        gate.select(gate.query(x))
        load = gate.balance.load / gate.balance.load.mean(-1, keepdim=True)
        return float(load.max()) - 1

    before = violation()
    course = []
    for _ in range(300):
        gate.balance.step(1.0)
        course.append(violation())
    assert before > 3
    assert sum(course[-50:]) / 50 < before / 2
    gate.eval()
    chosen = gate.select(gate.query(x))
    raw = raw_scores(gate, x).gather(-1, chosen.indices[:, :, None]).flatten(2)
    torch.testing.assert_close(chosen.scores, raw.relu(), atol=1e-5, rtol=1e-4)
    unbiased = gate.select(gate.query(x), biased=False)
    assert not torch.equal(chosen.indices, unbiased.indices)  # the bias chose others
    gate.balance.bias = torch.zeros_like(gate.keys[..., 0])
    assert torch.equal(unbiased.indices, gate.select(gate.query(x)).indices)


def raw_scores(gate: MemoryGate, x: Tensor) -> Tensor:
    """Score of every entry without bias, ``[batch, pos, head, N]``."""
    query = gate.query(x).detach()
    if gate.kind == "full":
        return torch.einsum("bthq,hnq->bthn", query, gate.keys.detach())
    halves = torch.einsum("bthpq,hpnq->bthpn", query.unflatten(-1, (2, -1)), gate.keys.detach())
    return (halves[..., 0, :, None] + halves[..., 1, None, :]).flatten(-2)


def biased_gate(kind: str, heads: int, k: int, size: float, **values: object) -> MemoryGate:
    """A gate of 64 entries with a random selection bias, in groups of layers that own entries from 64 on."""
    torch.manual_seed(heads + k)
    settings = {"knowledge_num": 64, "knowledge_dim": 16, "score_fn": "relu", "balance_bias": 0.1, **values}
    gate = MemoryGate(32, MemoryConfig(gate=kind, gate_heads=heads, num_selected=k, **settings), first=64).eval()
    assert gate.balance.bias is not None
    gate.balance.bias.normal_(std=size)
    return gate


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kind", ["full", "product"])
@pytest.mark.parametrize(("heads", "k"), [(1, 1), (1, 5), (3, 4), (2, 11), (2, 63)])
def test_a_selection_knows_what_raw_scores_alone_would_have_chosen(
    kind: str, heads: int, k: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(gate_module, "native_for", lambda _: None)
    gate, x = biased_gate(kind, heads, k, 1.0), torch.randn(2, 40, 32)
    found = gate.select(gate.query(x), compare=True)
    assert found.score_margin is not None and found.by_score is not None
    raw = raw_scores(gate, x)
    chosen = (found.indices - 64).unflatten(-1, (heads, k))
    best = raw.topk(k).indices
    expected = (chosen[..., :, None] == best[..., None, :]).any(-1)
    assert torch.equal(found.by_score, expected.flatten(2))
    assert 0 < float(expected.float().mean()) < 1
    mask = torch.zeros_like(raw, dtype=torch.bool).scatter(-1, chosen, True)
    passed_over = raw.masked_fill(mask, -torch.inf).amax(-1)
    margin = raw.masked_fill(~mask, torch.inf).amin(-1) - passed_over
    torch.testing.assert_close(found.score_margin, margin, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.score_margin >= 0, expected.all(-1))  # the bias changed nothing
    assert float(found.score_margin.min()) < 0 <= float(found.margin.min())
    asked_less = gate.select(gate.query(x))
    assert asked_less.score_margin is asked_less.by_score is None
    assert all(torch.equal(one, other) for one, other in zip(found[:3], asked_less[:3], strict=True))


@pytest.mark.parametrize("kind", ["full", "product"])
def test_a_bias_of_zero_and_no_bias_leave_the_choice_to_the_scores_also_where_they_tie(kind: str) -> None:
    x = torch.randn(2, 40, 32)
    for gate in (biased_gate(kind, 2, 4, 0.0), MemoryGate(32, plain(kind)).eval()):
        with torch.autocast("cpu", torch.bfloat16):  # 8 bits: many ties
            found = gate.select(gate.query(x), compare=True)
        assert found.score_margin is not None and found.by_score is not None
        assert found.by_score.all()
        torch.testing.assert_close(found.score_margin.float(), found.margin.float(), atol=0, rtol=0)
        assert (found.margin == 0).any()


def plain(kind: str) -> MemoryConfig:
    return MemoryConfig(knowledge_num=64, knowledge_dim=16, gate=kind, gate_heads=2, num_selected=4, score_fn="relu")


@pytest.mark.parametrize("kind", ["full", "product"])
def test_where_all_is_selected_the_bias_chooses_nothing(kind: str) -> None:
    gate = biased_gate(kind, 2, 16, 1.0, knowledge_num=16)
    found = gate.select(gate.query(torch.randn(1, 9, 32)), compare=True)
    assert found.score_margin is not None and found.by_score is not None
    assert found.by_score.all()
    assert found.score_margin.isnan().all()


@pytest.mark.parametrize("kind", ["full", "product"])
def test_noise_in_training_is_no_raw_score(kind: str) -> None:
    torch.manual_seed(0)
    gate = MemoryGate(32, plain(kind).model_copy(update={"score_noise": 3.0})).train()
    x = torch.randn(2, 40, 32)
    seen = gate.select(gate.query(x), compare=True).by_score
    assert seen is not None
    assert 0 < float(seen.float().mean()) < 1
    still = gate.eval().select(gate.query(x), compare=True).by_score
    assert still is not None
    assert still.all()


def test_the_bias_moves_gate_scores_only_through_the_choice_and_normalised_ones_keep_their_sum() -> None:
    gate = biased_gate("product", 2, 4, 1.0, normalize_scores=True)
    query = gate.query(torch.randn(2, 40, 32) + 0.5)
    biased, by_score = gate.select(query), gate.select(query, biased=False)
    loud = (biased.scores.sum(-1) > 7.9) & (by_score.scores.sum(-1) > 7.9)  # not near 0, where they stay so
    assert loud.float().mean() > 0.5
    assert not torch.equal(biased.indices, by_score.indices)
    torch.testing.assert_close(biased.scores.sum(-1)[loud], by_score.scores.sum(-1)[loud], atol=0.1, rtol=0)


@pytest.mark.parametrize("gate", ["full", "product"])
def test_penalties_reach_the_keys(gate: str) -> None:
    model = MemoryTransformer(small(f"gate={gate}", "balance_loss=0.1", "z_loss=0.1")).train()
    _, with_price = loss_and_gradients(model)
    for balance in model.balances:
        balance.balance_loss = balance.z_loss = 0.0
        balance.penalty = None
    _, without = loss_and_gradients(model)
    name = "blocks.0.memory.gate.keys"
    assert not torch.allclose(with_price[name], without[name])


@pytest.mark.parametrize(
    "changes", [["score_noise=0.1"], ["balance_loss=0.1"], ["lazy_bank=true"], ["block=both", "hidden_dim=64"]]
)
def test_checkpointed_blocks_have_the_same_loss_and_gradients(changes: list[str]) -> None:
    results = []
    for value in ("false", "true"):
        model = MemoryTransformer(small(*changes, f"gradient_checkpointing={value}")).train()
        torch.manual_seed(1)
        results.append(loss_and_gradients(model))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient.to_dense(), results[1][1][name].to_dense(), atol=1e-6, rtol=1e-4)


def test_shared_keys_are_one_parameter_saved_once() -> None:
    model = MemoryTransformer(small("shared_keys=true"))
    assert [name for name in model.state_dict() if name.endswith("keys")] == ["shared_keys"]
    assert model.shared_keys is model.memory_layer(0).gate.keys is model.memory_layer(1).gate.keys
    _, gradients = loss_and_gradients(model.train())
    assert gradients["shared_keys"].abs().sum() > 0
    assert model.double().memory_layer(1).gate.keys.dtype == torch.float64


def test_a_block_of_both_adds_memory_and_feed_forward_layer() -> None:
    model = MemoryTransformer(small("block=both", "hidden_dim=64"))
    assert model.cfg.model.memory_layers == (0, 1)
    _, cache = model.run_with_cache(tokens()[:, :-1])
    added = cache["blocks.1.hook_mlp_out"] + cache["blocks.1.hook_mem_out"]
    torch.testing.assert_close(cache["blocks.1.hook_resid_post"], cache["blocks.1.hook_resid_mid"] + added)


@pytest.mark.parametrize("kind", ["rms", "layer", "batch"])
def test_query_norms(kind: str) -> None:
    query = 3 * torch.randn(4, 50, 2, 8) + 1
    normed = QueryNorm(kind, 8, 2).train()(query)
    over = (0, 1) if kind == "batch" else (-1,)
    if kind != "rms":
        torch.testing.assert_close(normed.mean(over), torch.zeros_like(normed.mean(over)), atol=1e-5, rtol=0)
    power = normed.square().mean(over)
    torch.testing.assert_close(power, torch.ones_like(power), atol=1e-3, rtol=0)


def test_an_mlp_makes_queries() -> None:
    gate = MemoryGate(32, MemoryConfig(knowledge_num=64, knowledge_dim=16, gate_hidden=24))
    x = torch.randn(2, 3, 32)
    first, _, second = gate.proj
    expected = torch.nn.functional.silu(x @ first.weight.T) @ second.weight.T
    torch.testing.assert_close(gate.query(x).flatten(2), expected)
