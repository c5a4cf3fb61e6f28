"""Attention in blocks on the CPU against PyTorch's kernel, gradients too; what it may see; what bfloat16 costs it."""

import pytest
import torch
from torch import Tensor

from memscope.model.attention import BLOCK, attention_pattern, causal_attention, fused_attention, repeat_heads

LENGTHS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]
HEADS = [(4, 4), (4, 2), (6, 1)]


def inputs(pos: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and values of two sequences."""
    generator = torch.Generator().manual_seed(pos)
    shapes = [(2, pos, count, 16) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def with_gradients(attend: object, tensors: list[Tensor]) -> list[Tensor]:
    """What a function of queries, keys and values returns, and the gradients of a weighted sum of it."""
    z = attend(*tensors)  # type: ignore[operator]
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [z, *torch.autograd.grad((z * weights).sum(), tensors)]


@pytest.mark.parametrize("pos", LENGTHS)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_blocks_equal_the_kernel_of_pytorch(pos: int, heads: int, kv_heads: int) -> None:
    tensors = inputs(pos, heads, kv_heads)
    for ours, theirs in zip(
        with_gradients(causal_attention, tensors), with_gradients(fused_attention, tensors), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_no_position_sees_a_later_one() -> None:
    q, k, v = (t.detach() for t in inputs(2 * BLOCK, 4, 2))
    before = causal_attention(q, k, v)
    k[:, BLOCK + 5 :], v[:, BLOCK + 5 :] = 100.0, 100.0
    after = causal_attention(q, k, v)
    assert torch.equal(before[:, : BLOCK + 5], after[:, : BLOCK + 5])
    assert not torch.allclose(before[:, BLOCK + 5 :], after[:, BLOCK + 5 :])


@pytest.mark.parametrize("cached", [0, 5])
def test_the_pattern_times_the_values_is_what_attention_returns(cached: int) -> None:
    q, k, v = (t.detach() for t in inputs(20, 4, 2, torch.float32))
    q = q[:, cached:]  # the last queries alone, as with a cache of keys and values
    z = attention_pattern(q, k) @ repeat_heads(v, q).transpose(1, 2)
    torch.testing.assert_close(causal_attention(q, k, v), z.transpose(1, 2))


def test_bfloat16_stays_near_the_exact_result() -> None:
    exact = with_gradients(fused_attention, [t.detach().double().requires_grad_() for t in halves()])
    for ours, wanted in zip(with_gradients(causal_attention, halves()), exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - wanted).norm() < 0.012 * wanted.norm()


def halves() -> list[Tensor]:
    """Inputs in bfloat16."""
    return inputs(2 * BLOCK + 3, 4, 2, torch.bfloat16)
