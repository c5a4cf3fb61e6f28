"""The gate against brute force, and the read against one that projects every slot."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memscope.config.memory import MemoryConfig
from memscope.model.bank import MemoryBank
from memscope.model.gate import MemoryGate
from memscope.model.layer import MemoryLayer
from memscope.model.ops.sparse_read import GatheredSlots
from memscope.model.read import CrossAttentionMemory

DIM = 24


def make_gate(seed: int = 0, **values: object) -> MemoryGate:
    torch.manual_seed(seed)
    return MemoryGate(DIM, MemoryConfig(**{"knowledge_dim": 16, "num_selected": 4, **values}))


def make_input(tokens: int = 7, seed: int = 1) -> Tensor:
    return torch.randn(2, tokens, DIM, generator=torch.Generator().manual_seed(seed))


def all_scores(gate: MemoryGate, x: Tensor) -> Tensor:
    """Raw score of every one of the N entries, [batch, pos, head, N], one key pair at a time."""
    query = gate.query(x)
    if gate.kind == "full":
        return torch.stack([F.linear(query[:, :, h], gate.keys[h]) for h in range(gate.heads)], 2)
    side, half = gate.keys.shape[2], gate.keys.shape[3]
    scores = torch.empty(*query.shape[:3], side * side)
    for head in range(gate.heads):
        for i in range(side):
            for j in range(side):
                first = query[:, :, head, :half] @ gate.keys[head, 0, i]
                second = query[:, :, head, half:] @ gate.keys[head, 1, j]
                scores[:, :, head, i * side + j] = first + second
    return scores


@pytest.mark.parametrize("kind", ["full", "product"])
@pytest.mark.parametrize(
    ("heads", "k"),
    [(1, 1), (1, 5), (3, 4), (2, 11), (1, 64)],  # 11 and 64 exceed sqrt(N) = 8; 64 selects everything
)
def test_gate_selects_the_best_k_of_all_entries(kind: str, heads: int, k: int) -> None:
    gate = make_gate(gate=kind, knowledge_num=64, gate_heads=heads, num_selected=k, score_fn="sigmoid")
    x = make_input()
    best = all_scores(gate, x).topk(k)
    selection = gate.select(gate.query(x))
    indices, scores = (t.unflatten(-1, (heads, k)) for t in selection[:2])
    assert torch.equal(indices.sort(-1).values, best.indices.sort(-1).values)
    torch.testing.assert_close(scores, best.values.sigmoid())  # best first within a head


def test_token_shift_takes_half_of_a_gate_query_from_the_token_before() -> None:
    settings: dict[str, object] = {"gate": "product", "knowledge_num": 64, "query_dim": 6, "gate_heads": 2}
    x = make_input()
    shifted, plain = make_gate(**settings, token_shift=True).query(x), make_gate(**settings).query(x)
    assert torch.equal(shifted[..., :3], plain[..., :3])
    assert torch.equal(shifted[:, 1:, :, 3:], plain[:, :-1, :, 3:])
    assert torch.equal(shifted[:, 0, :, 3:], plain[:, 0, :, 3:])  # the first token has none before it


def test_token_shift_chooses_rows_by_the_token_and_columns_by_the_one_before() -> None:
    gate = make_gate(gate="product", knowledge_num=64, num_selected=1, score_fn="relu", token_shift=True)
    x = make_input()
    x[:, 4] = x[:, 2]  # the same token after others, and before others
    chosen = gate.select(gate.query(x)).indices.flatten(1)
    row, column = chosen // 8, chosen % 8
    assert torch.equal(row[:, 4], row[:, 2])
    assert torch.equal(column[:, 5], column[:, 3])
    assert not torch.equal(chosen[:, 4], chosen[:, 2])


@pytest.mark.parametrize("kind", ["full", "product"])
@pytest.mark.parametrize("score_fn", ["sigmoid", "relu"])
@pytest.mark.parametrize(("heads", "k"), [(1, 1), (1, 5), (3, 4), (2, 8), (2, 11), (1, 63)])
def test_margin_is_the_raw_score_above_the_best_rejected_entry(kind: str, score_fn: str, heads: int, k: int) -> None:
    gate = make_gate(gate=kind, knowledge_num=64, gate_heads=heads, num_selected=k, score_fn=score_fn)
    x = make_input()
    best = all_scores(gate, x).sort(-1, descending=True).values
    margin = gate.select(gate.query(x)).margin
    assert margin.shape == (2, 7, heads)
    torch.testing.assert_close(margin, (best[..., k - 1] - best[..., k]).detach(), atol=1e-5, rtol=1e-5)
    assert (margin >= 0).all()
    assert margin.max() > 1e-3


@pytest.mark.parametrize("kind", ["full", "product"])
def test_where_nothing_is_rejected_there_is_no_margin(kind: str) -> None:
    gate = make_gate(gate=kind, knowledge_num=16, gate_heads=2, num_selected=16)
    assert gate.select(gate.query(make_input())).margin.isnan().all()


def test_margin_of_a_hand_made_gate() -> None:
    gate = make_gate(gate="product", knowledge_num=9, knowledge_dim=2, num_selected=2)
    with torch.no_grad():
        gate.keys.copy_(torch.tensor([[[[1.0], [2.0], [3.0]], [[10.0], [30.0], [20.0]]]]))
    # Sums in order: 3 + 30, 2 + 30, 1 + 30, 3 + 20 ...: the second best is 1 above the third.
    assert gate.select(torch.ones(1, 1, 1, 2)).margin.tolist() == [[[1.0]]]


@pytest.mark.parametrize("kind", ["full", "product"])
@pytest.mark.parametrize("k", [4, 16])
def test_margin_takes_no_part_in_output_and_training(kind: str, k: int) -> None:
    config = MemoryConfig(knowledge_num=16, knowledge_dim=8, num_selected=k, gate=kind, gate_heads=2)
    torch.manual_seed(0)
    layer, bank = MemoryLayer(DIM, 4, config), MemoryBank(config)
    parameters, x, seen = [*layer.parameters(), bank.entries], make_input(), []

    def run() -> tuple[Tensor, ...]:
        out = layer(x, bank)
        return out, *torch.autograd.grad(out.square().sum(), parameters)

    plain = run()
    layer.hook_margin.add_hook(lambda margin, hook: seen.append(margin) or margin * 1000 + 7)
    changed = run()
    for one, other in zip(plain, changed, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()  # a margin of NaN, when all 16 are selected, stays where it is
    assert not seen[0].requires_grad
    assert seen[0].isnan().all() == (k == 16)


def test_product_gate_numbers_entries_row_by_row() -> None:
    gate = make_gate(gate="product", knowledge_num=9, knowledge_dim=2, num_selected=2)
    with torch.no_grad():
        gate.keys.copy_(torch.tensor([[[[1.0], [2.0], [3.0]], [[10.0], [30.0], [20.0]]]]))
    # query (1, 1): half scores 1 2 3 and 10 30 20; best sums 3 + 30 at (2, 1) = 7 and 2 + 30 at (1, 1) = 4
    selection = gate.select(torch.ones(1, 1, 1, 2))
    assert selection.indices.tolist() == [[[7, 4]]]


@pytest.mark.parametrize(
    ("score_fn", "expected"),
    [("softmax", [0.7311, 0.2689]), ("sigmoid", [0.8808, 0.7311]), ("relu", [2.0, 1.0])],
)
def test_score_functions_on_a_hand_made_gate(score_fn: str, expected: list[float]) -> None:
    gate = make_gate(knowledge_num=3, knowledge_dim=1, num_selected=2, score_fn=score_fn)
    with torch.no_grad():
        gate.keys.copy_(torch.tensor([[[-5.0], [2.0], [1.0]]]))
    selection = gate.select(torch.ones(1, 1, 1, 1))  # raw scores -5 2 1: entries 1 and 2 win
    assert selection.indices.tolist() == [[[1, 2]]]
    torch.testing.assert_close(selection.scores[0, 0], torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["full", "product"])
def test_normalised_scores_keep_their_ratios_and_not_their_size(kind: str) -> None:
    settings = {"gate": kind, "knowledge_num": 64, "gate_heads": 3, "score_fn": "relu"}
    plain, gate = make_gate(**settings), make_gate(**settings, normalize_scores=True)
    query = 5 * gate.query(make_input())
    for size in (1.0, 7.0):
        selection, raw = gate.select(size * query), plain.select(query)
        assert torch.equal(selection.indices, raw.indices)
        expected = raw.scores / raw.scores.mean(-1, keepdim=True)
        torch.testing.assert_close(selection.scores, expected, rtol=0.02, atol=0)


def test_normalised_scores_of_a_token_that_no_entry_likes_stay_zero() -> None:
    gate = make_gate(knowledge_num=3, knowledge_dim=1, num_selected=2, score_fn="relu", normalize_scores=True)
    with torch.no_grad():
        gate.keys.copy_(torch.tensor([[[-5.0], [-2.0], [-1.0]]]))
    assert gate.select(torch.ones(1, 1, 1, 1)).scores.tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize("kind", ["full", "product"])
def test_softmax_scores_sum_to_one_per_head(kind: str) -> None:
    gate = make_gate(gate=kind, knowledge_num=64, gate_heads=3)
    scores = gate.select(gate.query(make_input())).scores.unflatten(-1, (3, 4))
    torch.testing.assert_close(scores.sum(-1), torch.ones(2, 7, 3))


@pytest.mark.parametrize("kind", ["full", "product"])
def test_gate_gradient_equals_that_of_scoring_every_entry(kind: str) -> None:
    gate = make_gate(gate=kind, knowledge_num=64, gate_heads=2)
    x, target = make_input(), torch.randn(2, 7, 8)

    def gradients(scores: Tensor) -> tuple[Tensor, ...]:
        order = scores.flatten(2) * target
        return torch.autograd.grad(order.sum(), (gate.keys, gate.proj.weight))

    fast = gradients(gate.select(gate.query(x)).scores)
    naive = gradients(all_scores(gate, x).topk(4).values.softmax(-1))
    for a, b in zip(fast, naive, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_full_gate_searches_more_tokens_than_one_chunk() -> None:
    gate = make_gate(knowledge_num=10, score_fn="sigmoid")
    x = make_input(tokens=400)  # 800 tokens, the search takes 512 at a time
    assert torch.equal(gate.select(gate.query(x)).indices, all_scores(gate, x).topk(4).indices.flatten(2))


@pytest.mark.parametrize("read_fn", ["softmax", "gelu"])
@pytest.mark.parametrize("output_gate", [False, True, "query"])
@pytest.mark.parametrize("slots", [1, 3])
def test_a_read_that_absorbs_projections_equals_one_of_projected_slots_forward_and_backward(
    read_fn: str, output_gate: bool | str, slots: int
) -> None:
    config = MemoryConfig(
        knowledge_num=16, knowledge_dim=8, knowledge_length=slots, read_fn=read_fn, output_gate=output_gate
    )
    read = CrossAttentionMemory(DIM, 4, config)
    bank = MemoryBank(config)
    x, generator = make_input(), torch.Generator().manual_seed(2)
    indices = torch.randint(16, (2, 7, 5), generator=generator)
    scores = torch.rand(2, 7, 5, generator=generator)
    parameters = [*read.parameters(), bank.entries]

    def read_projected() -> tuple[Tensor, Tensor]:
        """As written in the papers: every selected slot is projected to keys and values."""
        assert read.k_proj is not None and read.v_proj is not None
        entries = bank.entries[indices].flatten(2, 3)  # [batch, pos, slot, width]
        query = read.q_proj(x).unflatten(-1, (4, -1))
        keys, values = (projection(entries).unflatten(-1, (4, -1)) for projection in (read.k_proj, read.v_proj))
        logits = torch.einsum("btah,btsah->btas", query, keys) / query.shape[-1] ** 0.5
        active = logits.softmax(-1) if read_fn == "softmax" else F.gelu(logits)
        pattern = active * scores.repeat_interleave(slots, -1).unsqueeze(2)
        mixed = torch.einsum("btas,btsah->btah", pattern, values)
        if read.gate_proj is not None:
            mixed = mixed * F.silu(read.gate_proj(x)).unflatten(-1, (4, -1))
        return pattern, read.o_proj((mixed * query if output_gate == "query" else mixed).flatten(2))

    def result(pattern: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        return pattern, out, *torch.autograd.grad(out.square().sum(), parameters, retain_graph=True)

    entries = bank(indices)
    pattern = read.pattern(x, entries, scores)
    plain = result(*read_projected())
    watched = read(x, entries, scores, lambda made: made)
    for out in (read.output(x, entries, pattern), read(x, entries, scores), watched):
        for ours, theirs in zip(result(pattern, out), plain, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("read_fn", ["softmax", "gelu"])
@pytest.mark.parametrize("output_gate", [False, True, "query"])
def test_read_equals_a_loop_over_tokens_heads_and_slots(read_fn: str, output_gate: bool | str) -> None:
    heads, width = 4, DIM // 4
    read = CrossAttentionMemory(DIM, heads, MemoryConfig(knowledge_dim=8, read_fn=read_fn, output_gate=output_gate))
    x, entries, scores = make_input(3), torch.randn(2, 3, 6, 8), torch.rand(2, 3, 3)  # 3 entries of 2 slots
    pattern = read.pattern(x, GatheredSlots(entries), scores)
    out = read.output(x, GatheredSlots(entries), pattern)
    for b in range(2):
        for t in range(3):
            mixed = torch.empty(DIM)
            for a in range(heads):
                part = slice(a * width, (a + 1) * width)
                q = (read.q_proj.weight @ x[b, t])[part]
                keys, values = ((p.weight @ entries[b, t].T).T[:, part] for p in (read.k_proj, read.v_proj))
                logits = keys @ q / width**0.5
                active = logits.softmax(0) if read_fn == "softmax" else F.gelu(logits)
                weights = torch.stack([active[slot] * scores[b, t, slot // 2] for slot in range(6)])
                torch.testing.assert_close(pattern[b, t, a], weights, atol=1e-6, rtol=1e-5)
                mixed[part] = weights @ values
                if output_gate == "query":
                    mixed[part] *= q
            if read.gate_proj is not None:
                mixed *= F.silu(read.gate_proj.weight @ x[b, t])
            torch.testing.assert_close(out[b, t], read.o_proj.weight @ mixed, atol=1e-6, rtol=1e-5)


def test_bank_lays_the_slots_of_an_entry_side_by_side() -> None:
    bank = MemoryBank(MemoryConfig(knowledge_num=4, knowledge_length=2, knowledge_dim=3, num_selected=2))
    slots = bank(torch.tensor([[[2, 0]]]))
    assert torch.equal(slots.values[0, 0], torch.cat([bank.entries[2], bank.entries[0]]))


def test_entries_start_with_unit_norm_on_average() -> None:
    torch.manual_seed(0)
    norms = MemoryBank(MemoryConfig(knowledge_num=2000, knowledge_dim=64)).entries.norm(dim=-1)
    assert float(norms.detach().square().mean()) == pytest.approx(1, abs=0.02)


def test_entries_may_start_alike() -> None:
    torch.manual_seed(0)
    config = MemoryConfig(knowledge_num=2000, knowledge_dim=64, entry_cosine=0.3)
    entries = MemoryBank(config).entries.detach()[:, 0]
    assert float(entries.norm(dim=-1).square().mean()) == pytest.approx(1, abs=0.02)
    unit = F.normalize(entries, dim=-1)
    assert float((unit @ unit.T).triu(1).sum()) / (1000 * 1999) == pytest.approx(0.3, abs=0.01)


def test_a_gate_score_of_zero_reads_nothing() -> None:
    config = MemoryConfig(knowledge_num=16, knowledge_dim=8, num_selected=2, score_fn="relu")
    layer, bank = MemoryLayer(DIM, 4, config), MemoryBank(config)
    with torch.no_grad():
        layer.gate.proj.weight.zero_()  # every raw score is 0, and so is its ReLU
    assert torch.equal(layer(make_input(), bank), torch.zeros(2, 7, DIM))


@torch.no_grad()
@pytest.mark.parametrize("slices", [1, 4])
def test_with_a_gain_of_the_root_of_the_slices_query_times_slot_starts_with_variance_1(slices: int) -> None:
    torch.manual_seed(0)
    as_it_is = {"slot_proj": False, "read_norm": "rms", "read_fn": "gelu"}
    config = MemoryConfig(knowledge_num=512, knowledge_dim=64, read_slices=slices, read_gain=slices**0.5, **as_it_is)
    read, bank = CrossAttentionMemory(DIM, 8, config), MemoryBank(config)
    slots = bank(torch.randint(512, (2, 7, 60)))
    logits = slots.dot(read.query(make_input()), slices=slices)
    assert float(logits.std()) == pytest.approx(1, abs=0.1)
