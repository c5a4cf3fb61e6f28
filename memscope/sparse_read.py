"""Read selected rows of a table without gathering them, and give the table one gradient for all of its readers.

    table = OpenTable(bank.entries)              # once in a forward pass
    slots = TableSlots(table, rows)              # [batch, pos, slot], row numbers
    logits = slots.dot(query)                    # [batch, pos, head, slot]
    z = slots.sum(weights)                       # [batch, pos, head, width]

``GatheredSlots`` does the same in plain PyTorch on ``[batch, pos, slot, width]``: the reference, and the way on other
devices than the CPU. The backward pass of a gather adds rows up; that is done here by sorting selections by row (the
"reverse indices" of Berges et al. 2024, arXiv 2412.09764), all layers into one buffer, of which only the rows that were
read are touched.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from memscope import sparse_kernels as kernels


class Slots(ABC):
    """Slots of the selected entries, to be read by dot products and weighted sums over some of their columns."""

    count: int
    """Slots a token reads."""

    @abstractmethod
    def dot(self, vectors: Float[Tensor, "batch pos head width"], column: int = 0) -> Tensor:
        """Dot products with the slots' columns from ``column`` on, ``[batch, pos, head, slot]``."""

    @abstractmethod
    def sum(self, weights: Float[Tensor, "batch pos head slot"], column: int, width: int) -> Tensor:
        """Weighted sums of ``width`` columns of the slots from ``column`` on, ``[batch, pos, head, width]``."""

    @abstractmethod
    def gather(self, column: int, width: int) -> Float[Tensor, "batch pos slot width"]:
        """``width`` columns of the slots from ``column`` on, as one tensor."""


class GatheredSlots(Slots):
    """Slots as one tensor ``[batch, pos, slot, width]``."""

    def __init__(self, values: Float[Tensor, "batch pos slot width"]):
        self.values = values
        self.count = values.shape[2]

    def dot(self, vectors: Float[Tensor, "batch pos head width"], column: int = 0) -> Tensor:
        """See ``Slots``."""
        columns = self.values[..., column : column + vectors.shape[-1]]
        return torch.einsum("btad,btsd->btas", vectors, columns)

    def sum(self, weights: Float[Tensor, "batch pos head slot"], column: int, width: int) -> Tensor:
        """See ``Slots``."""
        return torch.einsum("btas,btsd->btad", weights, self.values[..., column : column + width])

    def gather(self, column: int, width: int) -> Float[Tensor, "batch pos slot width"]:
        """See ``Slots``."""
        return self.values[..., column : column + width]


class OpenTable:
    """A parameter ``[entry, slot, width]`` as the readers of one forward pass share it; float32 on the CPU.

    Args:
        parameter: whose rows are read; row ``e * L + l`` is slot l of entry e.
        sparse: where the sum of a sparse gradient is made; none: the gradient is dense.
    """

    def __init__(self, parameter: Float[Tensor, "entry slot width"], sparse: "SparseSum | None" = None):
        self.parameter = parameter
        self.rows: np.ndarray = parameter.detach().flatten(0, 1).numpy()
        self.sparse = sparse
        self.gradient: np.ndarray | None = None
        """Sum of what the readers' backward passes gave, while one is under way."""
        self._waiting: Term | None = None
        self.anchor: Tensor = _Open.apply(parameter, self)  # type: ignore[no-untyped-call]
        """Stands for the table in the autograd graph: its backward runs once, after those of all readers."""

    def add(self, term: "Term") -> None:
        """Add to the rows' gradient, now or together with the next term of the same selections."""
        if self._waiting is None:
            self._waiting = term
        elif self._waiting.order is term.order:
            self._scatter(self._waiting, term)
            self._waiting = None
        else:
            self._scatter(self._waiting)
            self._waiting = term

    def _scatter(self, term: "Term", other: "Term | None" = None) -> None:
        if self.gradient is None:
            self.gradient = np.zeros_like(self.rows) if self.sparse is None else self.sparse.rows
        order, gradient = term.order, self.gradient
        if self.sparse is not None:
            self.sparse.touched[order.rows // self.parameter.shape[1]] = True
        if other is None:
            other = Term(term.weights[:, :0], term.vectors[:, :0], 0, order)
        terms = (term.weights, term.vectors, term.column, other.weights, other.vectors, other.column)

        def work(first: int, last: int) -> None:
            kernels.scatter_sum(*terms, order.order, order.starts, order.rows, gradient, first, last)

        in_ranges(work, len(order.rows), order.starts)

    def take_gradient(self) -> Tensor | None:
        """The gradient of the parameter, given away; none if nothing was read."""
        if self._waiting is not None:
            self._scatter(self._waiting)
            self._waiting = None
        gradient, self.gradient = self.gradient, None
        if gradient is None:
            return None
        if self.sparse is None:
            return torch.from_numpy(gradient).view_as(self.parameter)
        return self.sparse.take(self.parameter.shape)


class SparseSum:
    """Zeros of the shape of a table, kept from step to step, in which the gradients of rows are summed."""

    def __init__(self, parameter: Float[Tensor, "entry slot width"]):
        self.rows: np.ndarray = np.zeros((parameter.shape[0] * parameter.shape[1], parameter.shape[2]), np.float32)
        self.touched = np.zeros(len(parameter), np.bool_)

    def take(self, shape: torch.Size) -> Tensor:
        """The entries that were added to, as a sparse tensor; zeros again afterwards."""
        entries = np.flatnonzero(self.touched)
        table = self.rows.reshape(shape)
        values = table[entries]
        table[entries] = 0
        self.touched[entries] = False
        return torch.sparse_coo_tensor(
            torch.from_numpy(entries)[None],
            torch.from_numpy(values),
            shape,
            is_coalesced=True,  # by construction, as are the other invariants
            check_invariants=False,
        )


class RowOrder:
    """Selections sorted by row, once for all backward passes of a read."""

    def __init__(self, rows: np.ndarray, n_rows: int):
        self.rows, self.starts, self.order = kernels.sort_by_row(rows.reshape(-1), np.zeros(n_rows, np.int32))


class Term(NamedTuple):
    """A summand of a table's gradient: the outer product of weights and vectors at selections."""

    weights: np.ndarray
    """``[token, head, slot]``."""
    vectors: np.ndarray
    """``[token, head, width]``."""
    column: int
    """First column of the table."""
    order: RowOrder


class TableSlots(Slots):
    """Slots named by their rows of a table."""

    def __init__(self, table: OpenTable, rows: Int[Tensor, "batch pos slot"]):
        self.table = table
        self.shape, self.count = rows.shape[:2], rows.shape[2]
        self.rows: np.ndarray = rows.detach().flatten(0, 1).contiguous().numpy()
        self._order: RowOrder | None = None

    @property
    def order(self) -> RowOrder:
        """The selections sorted by row; made when a backward pass asks for it."""
        if self._order is None:
            self._order = RowOrder(self.rows, len(self.table.rows))
        return self._order

    def dot(self, vectors: Float[Tensor, "batch pos head width"], column: int = 0) -> Tensor:
        """See ``Slots``; float32."""
        flat = vectors.float().flatten(0, 1)
        out: Tensor = _GatherDot.apply(self.table.anchor, flat, self, column)  # type: ignore[no-untyped-call]
        return out.unflatten(0, self.shape)

    def sum(self, weights: Float[Tensor, "batch pos head slot"], column: int, width: int) -> Tensor:
        """See ``Slots``; float32."""
        flat = weights.float().flatten(0, 1)
        out: Tensor = _GatherSum.apply(self.table.anchor, flat, self, column, width)  # type: ignore[no-untyped-call]
        return out.unflatten(0, self.shape)

    def gather(self, column: int, width: int) -> Float[Tensor, "batch pos slot width"]:
        """See ``Slots``."""
        rows = torch.from_numpy(self.rows).unflatten(0, self.shape)
        return F.embedding(rows, self.table.parameter.flatten(0, 1))[..., column : column + width]

    def _dot(self, vectors: np.ndarray, column: int) -> np.ndarray:
        out = np.empty((*vectors.shape[:2], self.rows.shape[1]), np.float32)
        table, rows = self.table.rows, self.rows
        in_ranges(lambda first, last: kernels.gather_dot(vectors, table, column, rows, out, first, last), len(rows))
        return out

    def _sum(self, weights: np.ndarray, column: int, width: int) -> np.ndarray:
        out = np.empty((*weights.shape[:2], width), np.float32)
        table, rows = self.table.rows, self.rows
        in_ranges(lambda first, last: kernels.gather_sum(weights, table, column, rows, out, first, last), len(rows))
        return out


class _Open(Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, table: OpenTable) -> Tensor:
        ctx.table = table
        return parameter.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, None]:
        return ctx.table.take_gradient(), None


class _GatherDot(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, vectors: Tensor, slots: TableSlots, column: int) -> Tensor:
        ctx.save_for_backward(vectors)
        ctx.slots, ctx.column = slots, column
        return torch.from_numpy(slots._dot(_array(vectors), column))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        [vectors] = ctx.saved_tensors
        slots, weights = ctx.slots, _array(gradient)
        wants_table, wants_vectors, *_ = ctx.needs_input_grad
        if wants_table:
            slots.table.add(Term(weights, _array(vectors), ctx.column, slots.order))
        to_vectors = torch.from_numpy(slots._sum(weights, ctx.column, vectors.shape[-1])) if wants_vectors else None
        return (gradient.new_zeros(()) if wants_table else None), to_vectors, None, None


class _GatherSum(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, weights: Tensor, slots: TableSlots, column: int, width: int) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.slots, ctx.column = slots, column
        return torch.from_numpy(slots._sum(_array(weights), column, width))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        [weights] = ctx.saved_tensors
        slots, vectors = ctx.slots, _array(gradient)
        wants_table, wants_weights, *_ = ctx.needs_input_grad
        if wants_table:
            slots.table.add(Term(_array(weights), vectors, ctx.column, slots.order))
        to_weights = torch.from_numpy(slots._dot(vectors, ctx.column)) if wants_weights else None
        return (gradient.new_zeros(()) if wants_table else None), to_weights, None, None, None


def product_top(halves: Float[Tensor, "batch pos head two side"], selected: int) -> tuple[Tensor, Tensor]:
    """Entries with the best sums of a row's and a column's score, and the margin above the next, without gradient.

    Returns:
        Indices, int64 ``[batch, pos, head, k]``, best first, and margins ``[batch, pos, head]``.
    """
    scores = _array(halves.detach().float().flatten(0, 1))
    tokens, heads = scores.shape[:2]
    indices, margin = np.empty((tokens, heads, selected), np.int64), np.empty((tokens, heads), np.float32)
    bits = scores.view(np.int32)
    in_ranges(lambda first, last: kernels.product_top(scores, bits, selected, indices, margin, first, last), tokens)
    lead = halves.shape[:2]
    return torch.from_numpy(indices).unflatten(0, lead), torch.from_numpy(margin).unflatten(0, lead)


def in_ranges(work: Callable[[int, int], None], n: int, starts: np.ndarray | None = None) -> None:
    """Call ``work(first, last)`` for ranges that cover ``n`` items, one range a thread of PyTorch's.

    Args:
        work: releases the GIL.
        n: number of items.
        starts: where the work of each item starts, one more than items; none: all items are as much work.
    """
    threads = torch.get_num_threads()
    if threads == 1 or n < threads:
        work(0, n)
        return
    if starts is None:
        cuts = np.linspace(0, n, threads + 1).astype(int)
    else:
        cuts = np.searchsorted(starts, np.linspace(0, starts[-1], threads + 1))
    waiting = [_pool(threads).submit(work, *pair) for pair in zip(cuts[1:-1].tolist(), cuts[2:].tolist(), strict=True)]
    work(0, int(cuts[1]))
    for future in waiting:
        future.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().contiguous().numpy()
    return array
