"""The read of sentences in one pass against plain PyTorch, forward and backward."""

import pytest
import torch
from torch import Tensor

from memscope.model.ops.softmax_read import softmax_read
from memscope.model.ops.sparse_read import OpenTable

pytestmark = pytest.mark.compiler

N, LONGEST, HEADS = 9, 21, 3


def plain(vectors: Tensor, slots: Tensor, place: Tensor, lengths: Tensor, biases: Tensor, nothing: Tensor) -> Tensor:
    """Token by token, head by head."""
    out = torch.zeros_like(vectors, dtype=torch.float32)
    for b, t, a in torch.cartesian_prod(*(torch.arange(n) for n in vectors.shape[:3])).tolist():
        own = list(zip(place[b, t].tolist(), lengths[b, t].tolist(), biases[b, t], strict=True))
        read = torch.cat([slots[sentence, :length] for sentence, length, _ in own])
        bias = torch.cat([bias.expand(length) for _, length, bias in own])
        logits = torch.cat([nothing[a, None], read @ vectors[b, t, a].float() + bias])
        out[b, t, a] = logits.softmax(0)[1:] @ read
    return out


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("width", "dtype"), [(32, torch.float32), (7, torch.float32), (32, torch.bfloat16)])
def test_one_pass_equals_plain_pytorch_in_value_and_gradient(threads: int, width: int, dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(width)
    slots = torch.randn(N, LONGEST, width, generator=chance, requires_grad=True)
    vectors = torch.randn(2, 70, HEADS, width, generator=chance).to(dtype).requires_grad_()
    biases = torch.randn(2, 70, 4, generator=chance, requires_grad=True)
    nothing = torch.randn(HEADS, generator=chance, requires_grad=True)
    place = torch.randint(N, (2, 70, 4), generator=chance)
    lengths = torch.randint(LONGEST + 1, (2, 70, 4), generator=chance)
    lengths[0, 0] = 0  # a token that reads nothing
    lengths[:, 1, 2] = 0
    wanted = torch.randn(2, 70, HEADS, width, generator=chance)
    inputs = (slots, vectors, biases, nothing)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        read = softmax_read(vectors, OpenTable(slots), place * LONGEST, lengths, biases, nothing)
        found = torch.autograd.grad((read * wanted).sum(), inputs)
    finally:
        torch.set_num_threads(before)
    expected = plain(vectors, slots, place, lengths, biases, nothing)
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=1e-4)
    assert not read[0, 0].any()
    close = {"atol": 1e-4, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    for gradient, other in zip(found, torch.autograd.grad((expected * wanted).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, other, **close)


def test_far_apart_logits_neither_overflow_nor_vanish() -> None:
    slots = torch.eye(16).reshape(1, 16, 16) * 300
    vectors, nothing = torch.eye(16)[None, None, :1] * 300, torch.tensor([-1e4])
    place, biases = torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, 1)
    read = softmax_read(vectors, OpenTable(slots), place, place + 16, biases, nothing)
    torch.testing.assert_close(read, slots[:, :1, None])
