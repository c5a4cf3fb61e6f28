"""The read of a memory: cross-attention from a token to the slots that its gate selected."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from memscope.config.memory import MemoryConfig
from memscope.model.ops.fused import RMSNorm, gated_gelu
from memscope.model.ops.sparse_read import Slots


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
