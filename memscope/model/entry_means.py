"""Entries that follow what reads them instead of a gradient: the moving means of VQ-VAE's codebook.

    slots = means.observed(slots, indices, scores)    # forward pass in training; the backward pass adds up
    means.step(entries, movable)                      # after the optimiser's step

After van den Oord et al. 2017 (arXiv 1711.00937, appendix A.1): a weight N and a sum m per entry decay at every step
and take in what was assigned to the entry, here read queries z of the tokens that selected it, by their gate scores s:

    N <- decay * N + (1 - decay) * sum(s)        m <- decay * m + (1 - decay) * sum(s * z)        entry ~ m / N
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from memscope.base.runtime import gather_rows, in_huge_pages
from memscope.model.ops.native import native_for
from memscope.model.ops.sparse_read import Slots


class EntryMeans(nn.Module):
    """Moving means of the queries that read each of some entries ``[N, 1, D]``, for entries that are read as they are.

    A head sees a slice of an entry, and heads of one slice stand side by side: a token's query for a whole entry is,
    per slice, the mean over its heads, divided by sqrt(D), so that normalised queries have at most unit length, as
    entries have at the start. Two things differ from the paper:

    - The mean m / N is kept, not m: decay then changes N alone, one number an entry, and only entries that were
      selected cost work of their width.
    - An entry takes the direction of its mean and keeps the norm it started with. A mean over queries that point all
      over is short, and what is read would shrink with it; the paper's entries answer for length, these do not.

    The start weighs as much as a selection with gate score 1 in every step before; entries that are read more leave it.

    Args:
        entries: where they start.
        decay: of weights and sums, per step.
    """

    weight: Tensor
    """Decayed sum of gate scores, ``[N]``."""
    mean: Tensor
    """Weighted mean of queries, ``[N, D]``, float32 whatever the entries are: small steps are not rounded away."""
    norm: Tensor
    """Norm that an entry keeps, ``[N]``."""

    def __init__(self, entries: Float[Tensor, "entry 1 width"], decay: float):
        super().__init__()
        self.decay = decay
        n, _, width = entries.shape
        self.register_buffer("weight", torch.empty(n))
        self.register_buffer("mean", in_huge_pages(torch.empty(n, width)))
        self.register_buffer("norm", torch.empty(n))
        self._added: tuple[Tensor, Tensor] | None = None
        """Sums and weights of the step under way; zero between steps."""
        self.restart(torch.arange(n), entries)

    def restart(self, rows: Int[Tensor, " row"], entries: Float[Tensor, "row 1 width"]) -> None:
        """Let some entries start here, from no other readers."""
        start = entries.detach().flatten(1).float()
        self.weight[rows], self.mean[rows], self.norm[rows] = 1.0, start, start.norm(dim=-1)

    def observed(
        self, slots: Slots, indices: Int[Tensor, "batch pos K"], scores: Float[Tensor, "batch pos K"]
    ) -> Slots:
        """The same slots, which add the queries that read them to their entries' sums in the backward pass.

        There and not in the forward pass, which gradient checkpointing runs twice.
        """
        return ObservedSlots(slots, partial(_Observed.apply, scores.detach(), indices, self))

    def add(
        self,
        query: Float[Tensor, "batch pos head width"],
        scores: Float[Tensor, "batch pos K"],
        indices: Int[Tensor, "batch pos K"],
        slices: int,
    ) -> None:
        """Add the queries of tokens to the sums of the entries that they selected."""
        if self._added is None:
            self._added = in_huge_pages(torch.empty_like(self.mean)).zero_(), torch.zeros_like(self.weight)
        sums, weights = self._added
        rows, scores = indices.flatten(0, 1), scores.float().flatten(0, 1)  # [token, K]
        seen = query.float().flatten(0, 1).unflatten(1, (slices, -1)).mean(2) * sums.shape[1] ** -0.5
        weights.index_add_(0, rows.flatten(), scores.flatten())
        compiled = native_for(sums)
        if compiled is not None:
            by_slice = scores.unsqueeze(1).expand(-1, slices, -1).contiguous()
            compiled.scatter_sum(sums, None, rows.contiguous(), slices, seen.contiguous(), by_slice, 0, None, None, 0)
        else:
            sums.index_add_(0, rows.flatten(), (scores.unsqueeze(2) * seen.flatten(1).unsqueeze(1)).flatten(0, 1))

    def forget(self) -> None:
        """Drop what the step under way added."""
        if self._added is not None:
            sums, weights = self._added
            sums[weights > 0] = 0.0
            weights.zero_()

    @torch.no_grad()
    def step(self, entries: Float[Tensor, "entry 1 width"], movable: Bool[Tensor, " entry"]) -> None:
        """Take in what was added since the last step, by all processes, and move entries that may move.

        A step of several batches is one step: their sums add up. Adam has no part in it.
        """
        self.weight *= self.decay
        rows, sums, weights = self._taken()
        may = movable[rows]
        rows, sums, weights = rows[may], sums[may], weights[may]
        total = self.weight[rows] + (1 - self.decay) * weights
        mean = self.mean[rows]
        mean = mean + (1 - self.decay) * (sums - weights[:, None] * mean) / total[:, None]
        self.weight[rows], self.mean[rows] = total, mean
        moved = self.norm[rows, None] * F.normalize(mean, dim=-1)
        entries[rows] = moved.unsqueeze(1).to(entries.dtype)

    def _taken(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries, sums and weights of the step, over all processes; what is kept here is zero again."""
        sums, weights = self._added or (self.mean, torch.zeros_like(self.weight))
        rows = weights.nonzero().squeeze(1)  # weights are never below 0, and of weight 0 is no sum
        taken = rows, sums[rows], weights[rows]
        self.forget()
        if not (distributed.is_available() and distributed.is_initialized()):
            return taken
        everywhere, all_sums, all_weights = gather_rows(*taken)
        rows, place = everywhere.unique(return_inverse=True)
        sums, weights = all_sums.new_zeros(len(rows), all_sums.shape[1]), all_weights.new_zeros(len(rows))
        return rows, sums.index_add_(0, place, all_sums), weights.index_add_(0, place, all_weights)


class ObservedSlots(Slots):
    """Slots that pass each query by somebody before it reads them."""

    def __init__(self, slots: Slots, look: Any):
        self.slots, self.look, self.count = slots, look, slots.count

    def dot(self, vectors: Float[Tensor, "batch pos head width"], column: int = 0, slices: int = 1) -> Tensor:
        """See ``Slots``."""
        return self.slots.dot(self.look(vectors, slices), column, slices)

    def sum(self, weights: Float[Tensor, "batch pos head slot"], column: int, width: int, slices: int = 1) -> Tensor:
        """See ``Slots``."""
        return self.slots.sum(weights, column, width, slices)

    def gather(self, column: int, width: int) -> Float[Tensor, "batch pos slot width"]:
        """See ``Slots``."""
        return self.slots.gather(column, width)

    def gelu_read(
        self,
        vectors: Float[Tensor, "batch pos head width"],
        scores: Float[Tensor, "batch pos slot"],
        value_column: int,
        slices: int = 1,
    ) -> Float[Tensor, "batch pos head width"]:
        """See ``Slots``."""
        return self.slots.gelu_read(self.look(vectors, slices), scores, value_column, slices)


class _Observed(Function):
    """Queries as they are; on the way back they are added to the entries they read."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, indices: Tensor, means: EntryMeans, query: Tensor, slices: int) -> Tensor:
        ctx.save_for_backward(query, scores, indices)
        ctx.means, ctx.slices = means, slices
        return query.view_as(query)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, Tensor, None]:
        query, scores, indices = ctx.saved_tensors
        ctx.means.add(query, scores, indices, ctx.slices)
        return None, None, None, gradient, None
