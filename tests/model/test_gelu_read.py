"""The read in one pass is the read in three, in value and gradient."""

import pytest
import torch
from torch import Tensor

from memscope.config.load import load_config
from memscope.model.bank import MemoryBank
from memscope.model.layer import MemoryLayer
from memscope.model.ops.sparse_read import GatheredSlots, OpenTable, Slots, SparseSum, TableSlots
from tests.model.ops.test_native import CONFIG, SIZES

pytestmark = pytest.mark.compiler


def results(slots: Slots, inputs: list[Tensor], value_column: int, slices: int, weight: Tensor) -> list[Tensor]:
    _, query, scores = inputs
    out = slots.gelu_read(query, scores, value_column, slices)
    return [out, *torch.autograd.grad((out.float() * weight).sum(), inputs)]


@pytest.mark.parametrize(
    ("width", "heads", "slices", "slots", "value_column"),
    [(128, 4, 1, 32, 0), (16, 32, 8, 32, 0), (16, 8, 4, 19, 64), (20, 24, 4, 37, 0), (5, 6, 2, 7, 10), (1, 1, 1, 1, 0)],
)
@pytest.mark.parametrize("threads", [1, 3, 4, 6])  # among slices, rows and both
@pytest.mark.parametrize("sparse", [False, True])
def test_one_pass_equals_three(
    width: int, heads: int, slices: int, slots: int, value_column: int, threads: int, sparse: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = 150  # more than a chunk of the backward pass
    entries = torch.randn(50, 1, value_column + slices * width, generator=generator, requires_grad=True)
    rows = torch.randint(40, (2, tokens, slots), generator=generator)
    query = torch.randn(2, tokens, heads, width, generator=generator, requires_grad=True)
    scores = torch.rand(2, tokens, slots, generator=generator, requires_grad=True)
    weight = torch.randn(2, tokens, heads, width, generator=generator)
    inputs = [entries, query, scores]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        table = OpenTable(entries, SparseSum(entries) if sparse else None)
        fused = results(TableSlots(table, rows), inputs, value_column, slices, weight)
    finally:
        torch.set_num_threads(before)
    gathered = GatheredSlots(torch.nn.functional.embedding(rows, entries.flatten(0, 1)))
    plain = results(gathered, inputs, value_column, slices, weight)
    for ours, theirs in zip(fused, plain, strict=True):
        dense = ours.to_dense() if ours.is_sparse else ours
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(dense, theirs, atol=2e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [[], ["slot_proj=true", "read_slices=1", "read_heads=4"], ["knowledge_length=3"], ["output_gate=query"]],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_whose_read_weights_are_watched_gives_the_same_bits(changes: list[str], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = load_config(CONFIG, [*SIZES, *changes])
    layer, bank = MemoryLayer(64, config.read_heads, config.memory), MemoryBank(config.memory)
    x = torch.randn(2, 70, 64)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        unseen = layer(x, bank.open())
        seen: list[Tensor] = []
        layer.hook_pattern.add_hook(lambda pattern, hook: seen.append(pattern))
        watched = layer(x, bank.open())
    assert seen
    assert torch.equal(unseen, watched)
