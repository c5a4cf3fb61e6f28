"""The memory that stands where a feed-forward layer stood: a bank of entries, a gate that selects, a read.

    x [batch, pos, dim] --MemoryGate--> indices, gate scores [batch, pos, K]
    MemoryBank[indices] --CrossAttentionMemory(x)--> out [batch, pos, dim]

K = H * k: every one of H gate heads selects k entries. A slot's **read weight** in a read head is the activation
of q.k (softmax over all selected slots, or GELU) times the gate score of its entry. Each step passes a HookPoint,
so what is selected and read can be recorded and changed (``record/loop.py``, ``run_with_hooks``).
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformer_lens.hook_points import HookPoint

from memscope.base.runtime import in_huge_pages
from memscope.config.load import MemoryConfig
from memscope.model.entry_means import EntryMeans
from memscope.model.entry_starts import EntryStarts
from memscope.model.gate import MemoryGate
from memscope.model.ops.fused import RMSNorm, gated_gelu
from memscope.model.ops.native import native_for
from memscope.model.ops.sparse_read import GatheredSlots, OpenTable, Slots, SparseSum, TableSlots


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


class CrossAttentionMemory(nn.Module):
    """Multi-head cross-attention: Q from the token, K and V from the slots of its selected entries.

    Projections of slots never touch the slots: W_K moves into the query and W_V behind the weighted sum, since
    ``q . (W_K e) = (W_K^T q) . e`` and ``sum(p W_V e) = W_V sum(p e)`` (DeepSeek-V2's MLA, arXiv 2405.04434). With
    ``absorbed=False`` every selected slot is projected, as written in the papers: the reference.
    """

    def __init__(self, dim: int, heads: int, config: MemoryConfig):
        super().__init__()
        self.heads = heads
        self.slot_width = config.knowledge_dim
        self.read_fn = config.read_fn
        self.absorbed = config.absorbed
        halves = config.slot_use == "halves"
        self.key_width = config.knowledge_dim // 2 if halves else config.knowledge_dim
        self.value_width = config.knowledge_dim - self.key_width if halves else config.knowledge_dim
        projected = config.slot_proj
        self.slices = config.read_slices
        seen_keys, seen_values = self.key_width // self.slices, self.value_width // self.slices
        query, mixed = (dim, dim) if projected else (heads * seen_keys, heads * seen_values)
        has_keys = self.read_fn != "none"
        self.q_proj = nn.Linear(dim, query, bias=False) if has_keys else None
        self.q_norm = RMSNorm(query // heads) if has_keys and config.read_norm == "rms" else None
        if self.q_norm is not None:
            nn.init.constant_(self.q_norm.weight, config.read_gain)
        self.k_proj = nn.Linear(self.key_width, dim, bias=False) if has_keys and projected else None
        self.v_proj = nn.Linear(self.value_width, dim, bias=False) if projected else None
        self.o_proj = nn.Linear(mixed, dim, bias=False)
        self.gate_proj = nn.Linear(dim, mixed, bias=False) if config.output_gate is True else None
        self.gated_by_query = config.output_gate == "query"
        self.scale = nn.Parameter(torch.tensor([config.residual_scale])) if config.residual_scale else None

    def init_projections(self) -> None:
        """Let slots keep their length when projected, if their keys meet queries of unit size.

        With the 0.02 of other projections, keys, values and so the gradients of entries start far smaller than the
        residual stream, and the memory adds about nothing to it.
        """
        if self.q_norm is not None and self.k_proj is not None and self.v_proj is not None:
            for projection in (self.k_proj, self.v_proj):
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    def forward(
        self, x: Float[Tensor, "batch pos dim"], slots: Slots, scores: Float[Tensor, "batch pos K"]
    ) -> Float[Tensor, "batch pos dim"]:
        """What the memory adds, ``output`` of ``pattern``; in one pass over slots where they are read as they are."""
        if self.read_fn != "gelu" or self.k_proj is not None:
            return self.output(x, slots, self.pattern(x, slots, scores))
        raw, first = self._raw_query(x), self.slot_width - self.value_width
        z = slots.gelu_read(self._scaled(raw), _per_slot(scores, slots), first, self.slices)
        return self._write(z, raw if self.gated_by_query else self._gate(x))

    def query(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos read_head width"]:
        """Read queries, normalised or scaled."""
        return self._scaled(self._raw_query(x))

    def _raw_query(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos read_head width"]:
        assert self.q_proj is not None
        query: Tensor = self.q_proj(x)
        return query.unflatten(-1, (self.heads, -1))

    def _scaled(self, raw: Float[Tensor, "batch pos read_head width"]) -> Float[Tensor, "batch pos read_head width"]:
        scaled: Tensor = raw * raw.shape[-1] ** -0.5 if self.q_norm is None else self.q_norm(raw)
        return scaled

    def pattern(
        self, x: Float[Tensor, "batch pos dim"], slots: Slots, scores: Float[Tensor, "batch pos K"]
    ) -> Float[Tensor, "batch pos read_head slot"]:
        """Read weights: activation of the (scaled or normalised) q.k times the gate score of the slot's entry."""
        per_slot = _per_slot(scores, slots)
        if self.q_proj is None:
            return per_slot.unsqueeze(2).expand(-1, -1, self.heads, -1)
        query = self.query(x)
        if self.k_proj is None:
            logits = slots.dot(query, slices=self.slices)
        elif self.absorbed:
            weight = rearrange(self.k_proj.weight, "(a h) d -> a h d", a=self.heads)
            logits = slots.dot(torch.einsum("btah,ahd->btad", query, weight))
        else:
            keys = rearrange(self.k_proj(slots.gather(0, self.key_width)), "b t s (a h) -> b t s a h", a=self.heads)
            logits = torch.einsum("btah,btsah->btas", query, keys)
        if self.read_fn == "gelu":
            return gated_gelu(logits, per_slot)
        return logits.float().softmax(-1) * per_slot.unsqueeze(2)

    def output(
        self,
        x: Float[Tensor, "batch pos dim"],
        slots: Slots,
        pattern: Float[Tensor, "batch pos read_head slot"],
    ) -> Float[Tensor, "batch pos dim"]:
        """Weighted sum of the slots' values, projected back to the residual stream."""
        first = self.slot_width - self.value_width
        if self.v_proj is None:
            z = slots.sum(pattern, first, self.value_width // self.slices, self.slices)
        elif self.absorbed:
            weight = rearrange(self.v_proj.weight, "(a h) d -> a h d", a=self.heads)
            z = torch.einsum("btad,ahd->btah", slots.sum(pattern, first, self.value_width), weight)
        else:
            values = self.v_proj(slots.gather(first, self.value_width))
            z = torch.einsum("btas,btsah->btah", pattern, rearrange(values, "b t s (a h) -> b t s a h", a=self.heads))
        return self._write(z, self._gate(x))

    def _gate(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos read_head width"] | None:
        """What multiplies what was read, if anything does."""
        if self.gate_proj is not None:
            return F.silu(self.gate_proj(x)).unflatten(-1, (self.heads, -1))
        return self._raw_query(x) if self.gated_by_query else None

    def _write(self, z: Tensor, gate: Tensor | None) -> Tensor:  # both [batch, pos, read_head, width]
        out: Tensor = self.o_proj((z if gate is None else z * gate).flatten(2))
        return out if self.scale is None else out * self.scale

    @property
    def write_matrix(self) -> Float[Tensor, "dim width"]:
        """What a slot adds to the residual stream if every read head weighs it 1, without the output gate."""
        if self.v_proj is None:
            by_head = self.o_proj.weight.unflatten(1, (self.slices, self.heads // self.slices, -1))
            written: Tensor = by_head.sum(2).flatten(1)
        else:
            written = self.o_proj.weight @ self.v_proj.weight
        written = written if self.scale is None else written * self.scale
        return F.pad(written, (self.slot_width - self.value_width, 0))


def _per_slot(scores: Float[Tensor, "batch pos K"], slots: Slots) -> Float[Tensor, "batch pos slot"]:
    """Every slot has the gate score of its entry."""
    length = slots.count // scores.shape[-1]
    return scores.repeat_interleave(length, dim=-1) if length > 1 else scores


class MemoryLayer(nn.Module):
    """Gate and read of one block; the bank comes from outside because layers share it.

    Hook points, with H gate heads, A read heads, K = H * k selections, L slots per entry:
    ``hook_query`` ``[batch, pos, H, query]``, ``hook_indices`` and ``hook_gate_scores`` ``[batch, pos, K]``,
    ``hook_margin`` and ``hook_score_margin`` ``[batch, pos, H]`` and ``hook_by_score`` ``[batch, pos, K]`` (nothing in
    the model reads these three; the last two are made if hooked), ``hook_pattern`` ``[batch, pos, A, K * L]``.
    A hook that changes indices changes what is read; the gate scores stay those of the entries that were selected
    first unless their hook changes them too.
    """

    def __init__(
        self, dim: int, read_heads: int, config: MemoryConfig, keys: nn.Parameter | None = None, first: int = 0
    ):
        super().__init__()
        self.gate = MemoryGate(dim, config, keys, first)
        self.read = CrossAttentionMemory(dim, read_heads, config)
        self.hook_query, self.hook_indices, self.hook_gate_scores = HookPoint(), HookPoint(), HookPoint()
        self.hook_margin, self.hook_score_margin, self.hook_by_score = HookPoint(), HookPoint(), HookPoint()
        self.hook_pattern = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos dim"], bank: MemoryBank | OpenBank) -> Float[Tensor, "batch pos dim"]:
        """What the memory adds to the residual stream for normalised input ``x``."""
        compare = self.hook_score_margin.has_hooks() or self.hook_by_score.has_hooks()
        selection = self.gate.select(self.hook_query(self.gate.query(x)), compare=compare)
        indices = self.hook_indices(selection.indices)
        scores = self.hook_gate_scores(selection.scores)
        self.hook_margin(selection.margin)
        if compare:
            self.hook_score_margin(selection.score_margin)
            self.hook_by_score(selection.by_score)
        slots = bank(indices)
        if self.training and bank.means is not None:
            slots = bank.means.observed(slots, indices, scores)
        if not self.hook_pattern.has_hooks():  # nobody asks for read weights: they need not be made
            return self.read(x, slots, scores)
        pattern = self.hook_pattern(self.read.pattern(x, slots, scores))
        return self.read.output(x, slots, pattern)
