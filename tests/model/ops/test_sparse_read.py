"""The fused read and the product search against plain PyTorch, forward and backward."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from memscope.model.ops.native import native
from memscope.model.ops.sparse_read import GatheredSlots, OpenTable, SparseSum, TableSlots

pytestmark = pytest.mark.compiler

N, L, WIDTH, HEADS = 23, 2, 12, 3


def read(slots: GatheredSlots | TableSlots, query: Tensor, column: int, width: int) -> Tensor:
    """A read that uses both primitives, each in two ways, so that all gradients flow."""
    weights = torch.nn.functional.gelu(slots.dot(query, column)) + 0.1
    return slots.sum(weights, 0, width).square().sum() + slots.sum(weights.softmax(-1), WIDTH - width, width).sum()


def make(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randn(N, L, WIDTH, generator=generator, requires_grad=True)
    rows = torch.randint(N // 2, (2, 5, 7), generator=generator)  # repeated rows, and many rows never read
    query = torch.randn(2, 5, HEADS, 5, generator=generator, requires_grad=True)
    return entries, rows, query


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_fused_reads_of_two_layers_equal_gathered_ones_in_value_and_gradient(sparse: bool, threads: int) -> None:
    entries, rows, query = make(0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        table = OpenTable(entries, SparseSum(entries) if sparse else None)
        for column, width in ((0, 4), (5, 6)):
            flat = torch.nn.functional.embedding(rows, entries.flatten(0, 1))
            plain = read(GatheredSlots(flat), query, column, width) + read(GatheredSlots(flat), query * 2, 0, width)
            fused = read(TableSlots(table, rows), query, column, width)
            fused = fused + read(TableSlots(table, rows), query * 2, 0, width)
            torch.testing.assert_close(fused, plain)
            expected = torch.autograd.grad(plain, (entries, query))
            found = torch.autograd.grad(fused, (entries, query), retain_graph=True)
            again = torch.autograd.grad(fused, (entries, query))
            for gradients in (found, again):
                assert gradients[0].is_sparse == sparse
                torch.testing.assert_close(gradients[0].to_dense(), expected[0], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(gradients[1], expected[1], atol=1e-4, rtol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_a_sparse_gradient_names_the_entries_read_and_leaves_its_buffer_empty() -> None:
    entries, rows, query = make(1)
    summed = SparseSum(entries)
    read(TableSlots(OpenTable(entries, summed), rows), query, 0, 4).backward()
    assert entries.grad is not None
    assert entries.grad._indices()[0].tolist() == sorted(set((rows // L).flatten().tolist()))
    assert not summed.rows.any()
    assert not summed.touched.any()


def test_a_frozen_table_still_gives_gradients_to_queries() -> None:
    entries, rows, query = make(2)
    read(TableSlots(OpenTable(entries.detach()), rows), query, 0, 4).backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0


@pytest.mark.parametrize(("side", "selected"), [(16, 4), (256, 32), (256, 1), (3, 8), (3, 9), (17, 17), (1024, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_product_search_finds_the_best_of_all_sums(side: int, selected: int, dtype: torch.dtype, biased: bool) -> None:
    generator = torch.Generator().manual_seed(side + selected)
    halves = torch.randn(2, 5, 3, 2, side, generator=generator).to(dtype)  # bfloat16: many ties
    bias = torch.randn(3, 2, side, generator=generator) if biased else None
    indices, margin = native().product_top(halves.flatten(0, 1), bias, selected)
    halves = halves.flatten(0, 1) + (0 if bias is None else bias)
    sums = (halves.float()[..., 0, :, None] + halves.float()[..., 1, None, :]).flatten(-2)
    best = sums.topk(min(selected + 1, side * side)).values
    assert torch.equal(sums.gather(-1, indices), best[..., :selected])
    assert all(len(set(token)) == selected for token in indices.flatten(0, 1).tolist())
    if selected < side * side:
        torch.testing.assert_close(margin, best[..., selected - 1] - best[..., selected], atol=0, rtol=0)
    else:
        assert margin.isnan().all()


def test_product_search_gives_ties_to_the_lower_number() -> None:
    indices, margin = native().product_top(torch.zeros(1, 1, 2, 40), None, 3)
    assert indices.flatten().tolist() == [0, 1, 2]
    assert float(margin) == 0


def test_product_search_of_a_diverged_model_names_entries_that_exist() -> None:
    indices, _ = native().product_top(torch.full((2, 1, 2, 40), torch.nan), None, 5)
    assert ((indices >= 0) & (indices < 1600)).all()


@pytest.mark.parametrize(
    ("width", "heads", "slices", "slots", "column"),
    [(128, 4, 1, 32, 0), (16, 32, 8, 32, 0), (5, 3, 1, 7, 4), (12, 8, 4, 19, 3), (64, 8, 2, 16, 0), (1, 2, 2, 1, 0)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_read_their_slices(
    width: int, heads: int, slices: int, slots: int, column: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    entries = torch.randn(50, 1, column + slices * width + 3, generator=generator, requires_grad=True)
    rows = torch.randint(40, (2, 9, slots), generator=generator)
    query = torch.randn(2, 9, heads, width, generator=generator).to(dtype).requires_grad_()
    gathered = GatheredSlots(torch.nn.functional.embedding(rows, entries.flatten(0, 1)))
    results = []
    for read_slots, vectors in ((gathered, query.float()), (TableSlots(OpenTable(entries), rows), query)):
        weights = torch.nn.functional.gelu(read_slots.dot(vectors, column, slices))
        out = read_slots.sum(weights, column, width, slices)
        results.append((out, *torch.autograd.grad(out.square().sum(), (entries, query))))
    for plain, compiled in zip(*results, strict=True):
        scale = plain.detach().abs().max().item()
        tolerance = 1e-2 if plain.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(compiled, plain, atol=tolerance * scale, rtol=tolerance)


def test_slices_are_heads_over_parts_of_the_columns() -> None:
    entries, rows, _ = make(4)
    slots = GatheredSlots(torch.nn.functional.embedding(rows, entries.flatten(0, 1)))
    query = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(5))
    sliced = slots.dot(query, slices=2)
    assert torch.equal(sliced[:, :, 2:], slots.dot(query[:, :, 2:], column=6))
    weights = sliced.softmax(-1)
    assert torch.equal(slots.sum(weights, 0, 6, slices=2)[:, :, 2:], slots.sum(weights[:, :, 2:], 6, 6))


def test_a_table_is_gone_with_its_step() -> None:
    """Nothing that a step made waits for the collection of cycles."""
    entries, rows, query = make(3)
    gc.disable()
    try:
        table = OpenTable(entries)
        read(TableSlots(table, rows), query, 0, 4).backward()
        gone = weakref.ref(table)
        del table
        assert gone() is None
    finally:
        gc.enable()
