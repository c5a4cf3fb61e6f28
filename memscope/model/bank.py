"""The bank of a memory: the table of entries, its gradient, and how layers share it."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from memscope.base.runtime import in_huge_pages
from memscope.model.entry_means import EntryMeans
from memscope.model.entry_starts import EntryStarts
from memscope.model.ops.native import native_for
from memscope.model.ops.sparse_read import GatheredSlots, OpenTable, SparseSum, TableSlots


class MemoryBank(nn.Module):
    """The trainable table of entries, ``[knowledge_num, knowledge_length, knowledge_dim]``.

    Args:
        knowledge_num: entries (N).
        knowledge_length: slots per entry (L).
        knowledge_dim: width of a slot (D).
        sparse: its gradient holds only the entries that were read, for an optimiser that takes it so.
        frozen: so many entries, the first of every group, have no gradient.
        groups: parts that the bank is split in.
        dtype: type of the entries; slots, gradients and what is computed from them are float32.
        ema: decay with which entries follow their readers, without a gradient; 0 = they are trained by gradient.
        revived: entries may start again while training goes on.
        cosine: between any two slots at the start.
    """

    def __init__(
        self,
        knowledge_num: int,
        knowledge_length: int,
        knowledge_dim: int,
        sparse: bool = False,
        frozen: int = 0,
        groups: int = 1,
        dtype: torch.dtype = torch.float32,
        ema: float = 0.0,
        revived: bool = False,
        cosine: float = 0.0,
    ):
        super().__init__()
        self.sparse = sparse and not ema
        self.frozen, self.group_size = frozen, knowledge_num // groups
        self._sum: SparseSum | None = None
        shape = (knowledge_num, knowledge_length, knowledge_dim)
        self.entries = nn.Parameter(in_huge_pages(torch.empty(shape, dtype=dtype)))
        start = self.entries if dtype == torch.float32 else torch.empty(shape)
        # unit norm on average, as PKM values (1907.05242); which direction all share is the same to random projections
        nn.init.normal_(start, (cosine / knowledge_dim) ** 0.5, ((1 - cosine) / knowledge_dim) ** 0.5)
        if start is not self.entries:  # a smaller type has the same start, rounded, and float32 gradients
            self.entries.data.copy_(start)
            self.entries.grad_dtype = torch.float32
        self.means = EntryMeans(self.entries.detach(), ema) if ema else None
        self.entries.requires_grad_(not ema)
        self.starts = EntryStarts(knowledge_num) if revived else None

    @torch.no_grad()
    def start(self, rows: Int[Tensor, " row"], entries: Float[Tensor, "row slot width"]) -> None:
        """Let some entries start from these."""
        self.entries[rows] = entries.to(self.entries)
        if self.means is not None:
            self.means.restart(rows, self.entries[rows])

    def follow_readers(self, frozen: bool) -> None:
        """After an optimiser step: move entries that are not trained by gradient, unless none should move yet."""
        if self.means is None:
            return
        if frozen:
            self.means.forget()
        else:
            self.means.step(self.entries, self.movable(torch.arange(len(self.entries), device=self.entries.device)))

    def movable(self, rows: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        """Which of some entries may change in training: those that are not frozen."""
        return rows % self.group_size >= self.frozen

    def forward(self, indices: Int[Tensor, "batch pos K"]) -> GatheredSlots:
        """Slots of the selected entries, ``[batch, pos, K * L, D]``."""
        # F.embedding, not indexing: its backward adds rows without the sort that index_put needs.
        if self.sparse:
            rows: Tensor = _SparseRows.apply(self._trained(), indices)  # type: ignore[no-untyped-call]
        else:
            rows = F.embedding(indices, self._trained().flatten(1)).float()
        return GatheredSlots(rearrange(rows, "b t k (l d) -> b t (k l) d", d=self.entries.shape[-1]))

    def open(self) -> "MemoryBank | OpenBank":
        """The bank as the layers of one forward pass share it; by compiled loops where there are any."""
        if native_for(self.entries) is None:
            return self
        sparse = self.sparse and torch.is_grad_enabled()
        if sparse and self._sum is None:
            self._sum = SparseSum(self.entries)
        return OpenBank(self._trained(), self._sum if sparse else None, self.means)

    def _trained(self) -> Tensor:
        """The entries, of which the frozen ones give no gradient."""
        # Not by a hook on the parameter: sharding (FSDP2) puts another in its place.
        if not self.frozen or not torch.is_grad_enabled():
            return self.entries
        entries: Tensor = _Frozen.apply(self.entries, self)  # type: ignore[no-untyped-call]
        return entries

    def without_frozen(self, gradient: Tensor) -> Tensor:
        """A gradient, dense or sparse, without the rows of frozen entries."""
        if not gradient.is_sparse:
            kept = self.movable(torch.arange(len(gradient), device=gradient.device))
            return gradient.masked_fill(~kept[:, None, None], 0.0)
        rows, values = gradient._indices(), gradient._values()
        kept = self.movable(rows[0])
        return torch.sparse_coo_tensor(rows[:, kept], values[kept], gradient.shape, check_invariants=False)


class _Frozen(Function):
    """Entries as they are; the gradient of frozen ones goes nowhere, that of others on, in the type of the entries."""

    @staticmethod
    def forward(ctx: Any, entries: Tensor, bank: MemoryBank) -> Tensor:
        ctx.bank = bank
        return entries.view_as(entries)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.bank.without_frozen(gradient), None


class _SparseRows(Function):
    """Rows of entries whose gradient holds only the entries that were read, each once."""

    @staticmethod
    def forward(ctx: Any, entries: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.shape = entries.shape
        return F.embedding(indices, entries.flatten(1)).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        [indices] = ctx.saved_tensors
        read, place = indices.unique(return_inverse=True)
        values = gradient.new_zeros(len(read), gradient.shape[-1])
        values.index_add_(0, place.flatten(), gradient.flatten(0, -2))
        values = values.unflatten(1, ctx.shape[1:])
        return torch.sparse_coo_tensor(read[None], values, ctx.shape, is_coalesced=True, check_invariants=False), None


class OpenBank:
    """A bank whose readers never gather slots and share one gradient, for one forward pass on the CPU."""

    def __init__(self, entries: Float[Tensor, "entry slot width"], sparse: SparseSum | None, means: EntryMeans | None):
        self.length = entries.shape[1]
        self.means = means
        self.table = OpenTable(entries, sparse)

    def __call__(self, indices: Int[Tensor, "batch pos K"]) -> TableSlots:
        """Slots of the selected entries."""
        slot = torch.arange(self.length)
        return TableSlots(self.table, (indices.unsqueeze(-1) * self.length + slot).flatten(-2))
