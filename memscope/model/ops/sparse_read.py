"""Read selected rows of a table without gathering them, and give the table one gradient for all of its readers.

    table = OpenTable(bank.entries)              # once in a forward pass
    slots = TableSlots(table, rows)              # [batch, pos, slot], row numbers
    logits = slots.dot(query)                    # [batch, pos, head, slot]
    z = slots.sum(weights)                       # [batch, pos, head, width]

``GatheredSlots`` does the same in plain PyTorch on ``[batch, pos, slot, width]``. It is the reference that the loops of
``cpu/gather.cpp``, ``cpu/scatter.cpp`` and ``cpu/gelu_read.cpp`` and the kernels of ``gpu/gather.py``,
``gpu/scatter.py`` and ``gpu/gelu_read.py`` equal, and the way where there are neither. The backward pass of a gather
adds rows up; here all layers add into one buffer, of which only the rows that were read are touched (as the "reverse
indices" of Berges et al. 2024, arXiv 2412.09764, but with no sort): on the CPU every thread to rows of its own, on a
GPU by atomic additions.
"""

import weakref
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from memscope.base.runtime import in_huge_pages
from memscope.model.ops.fused import autocast_dtype, gated_gelu
from memscope.model.ops.native import native_for


class Slots(ABC):
    """Slots of the selected entries, to be read by dot products and weighted sums over some of their columns.

    With ``slices``, heads see less than all columns: the first heads the first slice, and so on, as the heads of
    multi-head attention do.
    """

    count: int
    """Slots a token reads."""

    @abstractmethod
    def dot(self, vectors: Float[Tensor, "batch pos head width"], column: int = 0, slices: int = 1) -> Tensor:
        """Dot products with the slots' columns from ``column`` on, ``[batch, pos, head, slot]``."""

    @abstractmethod
    def sum(self, weights: Float[Tensor, "batch pos head slot"], column: int, width: int, slices: int = 1) -> Tensor:
        """Weighted sums of slices, ``width`` columns each, from ``column`` on, ``[batch, pos, head, width]``."""

    def gelu_read(
        self,
        vectors: Float[Tensor, "batch pos head width"],
        scores: Float[Tensor, "batch pos slot"],
        value_column: int,
        slices: int = 1,
    ) -> Float[Tensor, "batch pos head width"]:
        """Weighted sums of the slots' columns from ``value_column`` on, by ``gelu(dot) * scores``."""
        weights = gated_gelu(self.dot(vectors, 0, slices), scores)
        return self.sum(weights, value_column, vectors.shape[-1], slices)


class GatheredSlots(Slots):
    """Slots as one tensor ``[batch, pos, slot, width]``."""

    def __init__(self, values: Float[Tensor, "batch pos slot width"]):
        self.values = values
        self.count = values.shape[2]

    def dot(self, vectors: Float[Tensor, "batch pos head width"], column: int = 0, slices: int = 1) -> Tensor:
        """See ``Slots``."""
        columns = self._sliced(column, vectors.shape[-1], slices)
        return torch.einsum("btgad,btsgd->btgas", vectors.unflatten(2, (slices, -1)), columns).flatten(2, 3)

    def sum(self, weights: Float[Tensor, "batch pos head slot"], column: int, width: int, slices: int = 1) -> Tensor:
        """See ``Slots``."""
        columns = self._sliced(column, width, slices)
        return torch.einsum("btgas,btsgd->btgad", weights.unflatten(2, (slices, -1)), columns).flatten(2, 3)

    def _sliced(self, column: int, width: int, slices: int) -> Float[Tensor, "batch pos slot slice width"]:
        return self.values[..., column : column + slices * width].unflatten(-1, (slices, width))


class OpenTable:
    """A parameter ``[entry, slot, width]`` as the readers of one forward pass share it.

    In float32 or bfloat16; what is read and the gradient are float32 under either.

    Args:
        parameter: whose rows are read; row ``e * L + l`` is slot l of entry e.
        sparse: where the sum of a sparse gradient is made; none: the gradient is dense.
    """

    def __init__(self, parameter: Float[Tensor, "entry slot width"], sparse: "SparseSum | None" = None):
        self.parameter = parameter
        self.rows = parameter.detach().flatten(0, 1)
        self.sparse = sparse
        self.gradient: Tensor | None = None
        """Sum of what the readers' backward passes gave, while one is under way."""
        self._waiting: Term | None = None
        self.anchor: Tensor = _Open.apply(parameter, self)  # type: ignore[no-untyped-call]
        """Stands for the table in the autograd graph: its backward runs once, after those of all readers."""

    def add(self, term: "Term") -> None:
        """Add to the rows' gradient, now or together with the next term of the same selections."""
        if self._waiting is None:
            self._waiting = term
        elif self._waiting.rows is term.rows and self._waiting.slices == term.slices:
            self._scatter(self._waiting, term)
            self._waiting = None
        else:
            self._scatter(self._waiting)
            self._waiting = term

    def sums(self) -> tuple[Tensor, Tensor | None]:
        """Where the rows' gradient is summed, and which entries were added to, if that is kept."""
        if self.gradient is None:
            if self.sparse is not None:
                self.gradient = self.sparse.rows
            else:
                self.gradient = torch.zeros_like(self.rows, dtype=torch.float32)
        return self.gradient, None if self.sparse is None else self.sparse.touched

    def _scatter(self, term: "Term", other: "Term | None" = None) -> None:
        second = (None, None, 0) if other is None else (other.vectors, other.weights, other.column)
        first = (term.vectors, term.weights, term.column)
        native_for(self.rows).scatter_sum(*self.sums(), term.rows, term.slices, *first, *second)

    def take_gradient(self) -> Tensor | None:
        """The gradient of the parameter, given away; none if nothing was read."""
        if self._waiting is not None:
            self._scatter(self._waiting)
            self._waiting = None
        gradient, self.gradient = self.gradient, None
        if gradient is None:
            return None
        return gradient.view_as(self.parameter) if self.sparse is None else self.sparse.take(self.parameter.shape)


class SparseSum:
    """Float32 zeros of the shape of a table, kept from step to step, in which the gradients of rows are summed."""

    def __init__(self, parameter: Float[Tensor, "entry slot width"]):
        rows = torch.empty(parameter.shape, device=parameter.device)
        self.rows = in_huge_pages(rows).zero_().flatten(0, 1)
        self.touched = torch.zeros(len(parameter), dtype=torch.bool, device=parameter.device)

    def take(self, shape: torch.Size) -> Tensor:
        """The entries that were added to, as a sparse tensor; zeros again afterwards."""
        entries = self.touched.nonzero().squeeze(1)
        values = native_for(self.rows).take_rows(self.rows.view(shape).flatten(1), entries).unflatten(1, shape[1:])
        self.touched.zero_()
        # Coalesced by construction; the other invariants hold as well.
        return torch.sparse_coo_tensor(entries[None], values, shape, is_coalesced=True, check_invariants=False)


class Term(NamedTuple):
    """A summand of a table's gradient: the outer product of weights and vectors at selections."""

    weights: Float[Tensor, "token head slot"]
    vectors: Float[Tensor, "token head width"]
    column: int
    """First column of the table."""
    slices: int
    """Parts that the columns from there on are split in among the heads."""
    rows: Int[Tensor, "token slot"]
    """The selections."""


class TableSlots(Slots):
    """Slots named by their rows of a table."""

    def __init__(self, table: OpenTable, rows: Int[Tensor, "batch pos slot"]):
        self.table = table
        self.shape, self.count = rows.shape[:2], rows.shape[2]
        self.rows = rows.detach().flatten(0, 1).contiguous()

    def dot(self, vectors: Float[Tensor, "batch pos head width"], column: int = 0, slices: int = 1) -> Tensor:
        """See ``Slots``; float32."""
        flat = vectors.flatten(0, 1).contiguous()
        read = _Read(self.table, self.rows, column, vectors.shape[-1], slices)
        out: Tensor = _GatherDot.apply(self.table.anchor, flat, read)  # type: ignore[no-untyped-call]
        return out.unflatten(0, self.shape)

    def sum(self, weights: Float[Tensor, "batch pos head slot"], column: int, width: int, slices: int = 1) -> Tensor:
        """See ``Slots``; of the type of autocast, if it is on, else float32."""
        flat = weights.float().flatten(0, 1).contiguous()
        read = _Read(self.table, self.rows, column, width, slices)
        out: Tensor = _GatherSum.apply(self.table.anchor, flat, read)  # type: ignore[no-untyped-call]
        return out.unflatten(0, self.shape)

    def gelu_read(
        self,
        vectors: Float[Tensor, "batch pos head width"],
        scores: Float[Tensor, "batch pos slot"],
        value_column: int,
        slices: int = 1,
    ) -> Float[Tensor, "batch pos head width"]:
        """See ``Slots``; in one pass, equal to the last bit."""
        flat = vectors.flatten(0, 1).contiguous(), scores.float().flatten(0, 1).contiguous()
        place = (0, value_column, slices, self.rows)
        out: Tensor = _GeluRead.apply(self.table.anchor, *flat, self.table, place)  # type: ignore[no-untyped-call]
        return out.unflatten(0, self.shape)


class _Read(NamedTuple):
    """Which slots and columns heads read: what dot products and sums, each the other's backward, have in common."""

    table: OpenTable
    rows: Int[Tensor, "token slot"]
    column: int
    width: int
    slices: int

    def dot(self, vectors: Float[Tensor, "token head width"]) -> Float[Tensor, "token head slot"]:
        return native_for(vectors).gather_dot(vectors, self.table.rows, self.column, self.slices, self.rows)

    def sum(self, weights: Float[Tensor, "token head slot"], dtype: torch.dtype) -> Float[Tensor, "token head width"]:
        return native_for(weights).gather_sum(
            weights, self.table.rows, self.column, self.width, self.slices, self.rows, dtype
        )

    def add(self, weights: Float[Tensor, "token head slot"], vectors: Float[Tensor, "token head width"]) -> None:
        self.table.add(Term(weights, vectors, self.column, self.slices, self.rows))


class _Open(Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, table: OpenTable) -> Tensor:
        ctx.table = weakref.ref(table)  # the graph's readers hold it; held here too, it would outlive its step
        return torch.zeros((), device=parameter.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, None]:
        table = ctx.table()
        return (None if table is None else table.take_gradient()), None


class _GatherDot(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, vectors: Tensor, read: _Read) -> Tensor:
        ctx.save_for_backward(vectors)
        ctx.read = read
        return read.dot(vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        [vectors] = ctx.saved_tensors
        read, weights = ctx.read, gradient.contiguous()
        wants_table, wants_vectors, _ = ctx.needs_input_grad
        if wants_table:
            read.add(weights, vectors)
        to_vectors = read.sum(weights, vectors.dtype) if wants_vectors else None
        return (weights.new_zeros(()) if wants_table else None), to_vectors, None


class _GatherSum(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, weights: Tensor, read: _Read) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.read = read
        return read.sum(weights, autocast_dtype(weights.device))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        [weights] = ctx.saved_tensors
        read, vectors = ctx.read, gradient.contiguous()
        wants_table, wants_weights, _ = ctx.needs_input_grad
        if wants_table:
            read.add(weights, vectors)
        return (weights.new_zeros(()) if wants_table else None), read.dot(vectors) if wants_weights else None, None


class _GeluRead(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, vectors: Tensor, scores: Tensor, table: OpenTable, place: Any) -> Tensor:
        ctx.save_for_backward(vectors, scores)
        ctx.table, ctx.place = table, place
        return native_for(vectors).gelu_read(vectors, scores, table.rows, *place, autocast_dtype(vectors.device))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        table, gradient = ctx.table, gradient.contiguous()
        wants_table = ctx.needs_input_grad[0]
        sums = table.sums() if wants_table else (None, None)
        gradients = native_for(gradient).gelu_read_backward(gradient, *ctx.saved_tensors, table.rows, *ctx.place, *sums)
        return (torch.zeros((), device=gradient.device) if wants_table else None), *gradients, None, None
