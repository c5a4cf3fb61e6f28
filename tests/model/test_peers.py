"""Where the mathematics is the same, gate, bank and loops give what the released peers give: PKM and PEER."""

from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from PEER_pytorch import PEER
from product_key_memory import PKM
from torch import Tensor, nn

from memscope.config.memory import MemoryConfig
from memscope.model.bank import MemoryBank
from memscope.model.gate import MemoryGate, Selection
from memscope.model.ops.sparse_read import Slots

DIM, HEADS, SIDE, KEY = 32, 4, 8, 6
Read = Callable[[Tensor, Slots, Selection], Tensor]


def make_parts(
    width: int, selected: int, score_fn: str, to_queries: Tensor, keys: Tensor
) -> tuple[MemoryGate, MemoryBank]:
    """A gate and a bank; a peer has query weights ``[(half head width), dim]``, keys ``[head, key, half, width]``."""
    config = MemoryConfig(
        knowledge_num=SIDE**2,
        knowledge_dim=width,
        gate="product",
        gate_heads=HEADS,
        query_dim=2 * KEY,
        num_selected=selected,
        score_fn=score_fn,
    )
    gate, bank = MemoryGate(DIM, config), MemoryBank(config)
    gate.proj.weight.data.copy_(rearrange(to_queries, "(p h d) m -> (h p d) m", p=2, h=HEADS))
    gate.keys.data.copy_(rearrange(keys, "h n p d -> h p n d"))
    return gate, bank


def compare(gate: MemoryGate, bank: MemoryBank, read: Read, peer: nn.Module, values: list[Tensor]) -> None:
    x = torch.randn(2, 9, DIM, generator=torch.Generator().manual_seed(3))
    selection = gate.select(gate.query(x))
    ours, theirs = read(x, bank.open()(selection.indices), selection), peer(x)
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4))
    [entries, keys] = torch.autograd.grad((ours * weight).sum(), [bank.entries, gate.keys])
    [their_keys, *gradients] = torch.autograd.grad((theirs * weight).sum(), [peer.keys, *values])
    torch.testing.assert_close(entries[:, 0], torch.cat(gradients, -1), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(keys, rearrange(their_keys, "h n p d -> h p n d"), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("score_fn", "selected"), [("softmax", 5), ("relu", 5)])
def test_a_read_of_values_alone_is_product_key_memory(score_fn: str, selected: int) -> None:
    torch.manual_seed(0)
    peer = PKM(DIM, HEADS, SIDE, selected, KEY, non_competitive_gates=score_fn == "relu")
    peer.norm = nn.Identity()  # theirs normalises queries
    gate, bank = make_parts(DIM, selected, score_fn, peer.to_queries.weight, peer.keys)
    with torch.no_grad():
        bank.entries[:, 0] = peer.values.weight

    def read(x: Tensor, slots: Slots, selection: Selection) -> Tensor:
        return slots.sum(selection.scores.unsqueeze(2), 0, DIM).squeeze(2)

    compare(gate, bank, read, peer, [peer.values.weight])


@pytest.mark.parametrize(("score_fn", "selected"), [("softmax", 3), ("relu", 1)])
def test_entries_of_two_halves_are_peer_experts(score_fn: str, selected: int) -> None:
    torch.manual_seed(0)
    peer = PEER(
        DIM,
        heads=HEADS,
        num_experts=SIDE**2,
        num_experts_per_head=selected,
        dim_key=KEY,
        non_competing_scores=score_fn == "relu",
    )
    gate, bank = make_parts(2 * DIM, selected, score_fn, peer.to_queries[0].weight, peer.keys)
    with torch.no_grad():
        peer.weight_down_embed.weight.mul_(DIM**-0.5)  # where GELU is steep, not where it is 0 or linear
        bank.entries[:, 0] = torch.cat([peer.weight_down_embed.weight, peer.weight_up_embed.weight], -1)

    def read(x: Tensor, slots: Slots, selection: Selection) -> Tensor:
        return slots.gelu_read(x.unsqueeze(2), selection.scores, value_column=DIM).squeeze(2)

    compare(gate, bank, read, peer, [peer.weight_down_embed.weight, peer.weight_up_embed.weight])
