"""The selection bias evens out the use of keys and is told apart from scores; options of blocks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from memscope.config.load import Config, load_config
from memscope.config.memory import MemoryConfig
from memscope.model.gate import MemoryGate
from memscope.model.ops import product_keys
from memscope.model.transformer import MemoryTransformer, next_token_loss

DEMO = Path(__file__).parents[2] / "memscope" / "presets" / "demo.yaml"
SMALL = ["block=memory", "dim=32", "n_layers=2", "n_heads=4", "knowledge_num=64", "knowledge_dim=24", "max_seq_len=32"]


def small(*changes: str) -> Config:
    return load_config(DEMO, [*SMALL, "database_init_path=null", *changes])


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(3, 6400, (2, 33), generator=torch.Generator().manual_seed(seed))


def loss_and_gradients(model: MemoryTransformer) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    batch = tokens()
    loss = next_token_loss(model(batch[:, :-1]), batch[:, 1:]).mean()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


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
        monkeypatch.setattr(product_keys, "native_for", lambda _: None)
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


def test_the_bias_moves_gate_scores_only_through_the_choice_and_normalised_ones_keep_their_sum() -> None:
    gate = biased_gate("product", 2, 4, 1.0, normalize_scores=True)
    query = gate.query(torch.randn(2, 40, 32) + 0.5)
    biased, by_score = gate.select(query), gate.select(query, biased=False)
    loud = (biased.scores.sum(-1) > 7.9) & (by_score.scores.sum(-1) > 7.9)  # not near 0, where they stay so
    assert loud.float().mean() > 0.5
    assert not torch.equal(biased.indices, by_score.indices)
    torch.testing.assert_close(biased.scores.sum(-1)[loud], by_score.scores.sum(-1)[loud], atol=0.1, rtol=0)


@pytest.mark.parametrize("changes", [["lazy_bank=false"], ["lazy_bank=true"], ["block=both", "hidden_dim=64"]])
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


def test_a_block_of_both_adds_memory_and_feed_forward_layer() -> None:
    model = MemoryTransformer(small("block=both", "hidden_dim=64"))
    assert model.cfg.model.memory_layers == (0, 1)
    _, cache = model.run_with_cache(tokens()[:, :-1])
    added = cache["blocks.1.hook_mlp_out"] + cache["blocks.1.hook_mem_out"]
    torch.testing.assert_close(cache["blocks.1.hook_resid_post"], cache["blocks.1.hook_resid_mid"] + added)
