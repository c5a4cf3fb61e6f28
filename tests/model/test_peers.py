"""Where the mathematics is the same, a memory layer gives what the released peers give: product-key-memory and PEER."""

import pytest
import torch
from einops import rearrange
from PEER_pytorch import PEER
from product_key_memory import PKM
from torch import Tensor, nn

from memscope.config.memory import MemoryConfig
from memscope.model.bank import MemoryBank
from memscope.model.layer import MemoryLayer

DIM, HEADS, SIDE, KEY = 32, 4, 8, 6


def load_gate(layer: MemoryLayer, to_queries: Tensor, keys: Tensor) -> None:
    """Copy query weights ``[(half head width), dim]`` and keys ``[head, key, half, width]`` of a peer."""
    assert isinstance(layer.gate.proj, nn.Linear)
    layer.gate.proj.weight.copy_(rearrange(to_queries, "(p h d) m -> (h p d) m", p=2, h=HEADS))
    layer.gate.keys.copy_(rearrange(keys, "h n p d -> h p n d"))


def compare(layer: MemoryLayer, bank: MemoryBank, peer: nn.Module, values: list[Tensor]) -> None:
    x = torch.randn(2, 9, DIM, generator=torch.Generator().manual_seed(3))
    ours, theirs = layer(x, bank.open()), peer(x)
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4))
    [entries, keys] = torch.autograd.grad((ours * weight).sum(), [bank.entries, layer.gate.keys])
    [their_keys, *gradients] = torch.autograd.grad((theirs * weight).sum(), [peer.keys, *values])
    torch.testing.assert_close(entries[:, 0], torch.cat(gradients, -1), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(keys, rearrange(their_keys, "h n p d -> h p n d"), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("score_fn", "selected"), [("softmax", 5), ("relu", 5)])
def test_a_read_of_values_alone_is_product_key_memory(score_fn: str, selected: int) -> None:
    torch.manual_seed(0)
    config = MemoryConfig(
        knowledge_num=SIDE**2,
        knowledge_dim=DIM,
        gate="product",
        gate_heads=HEADS,
        query_dim=2 * KEY,
        num_selected=selected,
        score_fn=score_fn,
        read_fn="none",
        read_heads=1,
        slot_proj=False,
    )
    layer, bank = MemoryLayer(DIM, 1, config), MemoryBank(SIDE**2, 1, DIM)
    peer = PKM(DIM, HEADS, SIDE, selected, KEY, non_competitive_gates=score_fn == "relu")
    peer.norm = nn.Identity()  # theirs normalises every half of a query; ours whole queries
    with torch.no_grad():
        load_gate(layer, peer.to_queries.weight, peer.keys)
        layer.read.o_proj.weight.copy_(torch.eye(DIM))
        bank.entries[:, 0] = peer.values.weight
    compare(layer, bank, peer, [peer.values.weight])


@pytest.mark.parametrize(("score_fn", "selected"), [("softmax", 3), ("relu", 1)])
def test_entries_of_two_halves_are_peer_experts(score_fn: str, selected: int) -> None:
    torch.manual_seed(0)
    config = MemoryConfig(
        knowledge_num=SIDE**2,
        knowledge_dim=2 * DIM,
        gate="product",
        gate_heads=HEADS,
        query_dim=2 * KEY,
        num_selected=selected,
        score_fn=score_fn,
        read_fn="gelu",
        read_heads=1,
        slot_proj=False,
        slot_use="halves",
    )
    layer, bank = MemoryLayer(DIM, 1, config), MemoryBank(SIDE**2, 1, 2 * DIM)
    peer = PEER(
        DIM,
        heads=HEADS,
        num_experts=SIDE**2,
        num_experts_per_head=selected,
        dim_key=KEY,
        non_competing_scores=score_fn == "relu",
    )
    with torch.no_grad():
        load_gate(layer, peer.to_queries[0].weight, peer.keys)
        layer.read.q_proj.weight.copy_(torch.eye(DIM) * DIM**0.5)  # theirs does not divide q.k
        layer.read.o_proj.weight.copy_(torch.eye(DIM))
        peer.weight_down_embed.weight.mul_(DIM**-0.5)  # where GELU is steep, not where it is 0 or linear
        bank.entries[:, 0] = torch.cat([peer.weight_down_embed.weight, peer.weight_up_embed.weight], -1)
    compare(layer, bank, peer, [peer.weight_down_embed.weight, peer.weight_up_embed.weight])
