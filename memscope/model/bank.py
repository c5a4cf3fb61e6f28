"""The bank of a memory: the table of entries, its gradient, and how layers share it."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from memscope.base.runtime import in_huge_pages
from memscope.config.memory import MemoryConfig
from memscope.model.entry_starts import EntryStarts
from memscope.model.ops.native import native_for
from memscope.model.ops.sparse_read import GatheredSlots, OpenTable, SparseSum, TableSlots


class MemoryBank(nn.Module):
    """The trainable table of entries, ``[knowledge_num, knowledge_length, knowledge_dim]``.

    Entries are kept as ``entry_dtype``; slots, gradients and what is computed from them are float32.

    Args:
        config: the memory's.
        sparse: its gradient holds only the entries that were read, for an optimiser that takes it so.
        revives: entries may start again while training goes on.
    """

    def __init__(self, config: MemoryConfig, sparse: bool = False, revives: bool = False):
        super().__init__()
        self.sparse = sparse
        self._sum: SparseSum | None = None
        shape = (config.knowledge_num, config.knowledge_length, config.knowledge_dim)
        dtype = getattr(torch, config.entry_dtype)
        self.entries = nn.Parameter(in_huge_pages(torch.empty(shape, dtype=dtype)))
        start = self.entries if dtype == torch.float32 else torch.empty(shape)
        # unit norm on average, as PKM values (1907.05242); which direction all share is the same to random projections
        shared = config.entry_cosine
        nn.init.normal_(start, (shared / shape[-1]) ** 0.5, ((1 - shared) / shape[-1]) ** 0.5)
        if start is not self.entries:  # a smaller type has the same start, rounded, and float32 gradients
            self.entries.data.copy_(start)
            self.entries.grad_dtype = torch.float32
        self.starts = EntryStarts(config.knowledge_num) if revives else None

    @torch.no_grad()
    def start(self, rows: Int[Tensor, " row"], entries: Float[Tensor, "row slot width"]) -> None:
        """Let some entries start from these."""
        self.entries[rows] = entries.to(self.entries)

    def forward(self, indices: Int[Tensor, "batch pos K"]) -> GatheredSlots:
        """Slots of the selected entries, ``[batch, pos, K * L, D]``."""
        # F.embedding, not indexing: its backward adds rows without the sort that index_put needs.
        if self.sparse:
            rows: Tensor = _SparseRows.apply(self.entries, indices)  # type: ignore[no-untyped-call]
        else:
            rows = F.embedding(indices, self.entries.flatten(1)).float()
        return GatheredSlots(rearrange(rows, "b t k (l d) -> b t (k l) d", d=self.entries.shape[-1]))

    def open(self) -> "MemoryBank | OpenBank":
        """The bank as the layers of one forward pass share it; by loops or kernels where there are any."""
        if native_for(self.entries) is None:
            return self
        sparse = self.sparse and torch.is_grad_enabled()
        if sparse and self._sum is None:
            self._sum = SparseSum(self.entries)
        return OpenBank(self.entries, self._sum if sparse else None)


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
    """A bank whose readers never gather slots and share one gradient, for one forward pass."""

    def __init__(self, entries: Float[Tensor, "entry slot width"], sparse: SparseSum | None):
        self.length = entries.shape[1]
        self.table = OpenTable(entries, sparse)

    def __call__(self, indices: Int[Tensor, "batch pos K"]) -> TableSlots:
        """Slots of the selected entries."""
        slot = torch.arange(self.length, device=indices.device)
        return TableSlots(self.table, (indices.unsqueeze(-1) * self.length + slot).flatten(-2))
