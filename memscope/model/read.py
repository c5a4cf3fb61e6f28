"""The read of a memory: cross-attention from a token to the slots that its gate selected."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from memscope.config.memory import MemoryConfig
from memscope.model.ops.fused import RMSNorm, gated_gelu
from memscope.model.ops.sparse_read import Slots


class CrossAttentionMemory(nn.Module):
    """Multi-head cross-attention: Q from the token, K and V from the slots of its selected entries.

    Four values of the config choose its form: ``slot_proj``, ``read_fn``, ``read_norm`` and ``output_gate``.

    Projections of slots never touch the slots: W_K moves into the query and W_V behind the weighted sum, since
    ``q . (W_K e) = (W_K^T q) . e`` and ``sum(p W_V e) = W_V sum(p e)`` (DeepSeek-V2's MLA, arXiv 2405.04434).

    Args:
        dim: width of the residual stream.
        heads: read heads (A).
        config: the memory's.
    """

    def __init__(self, dim: int, heads: int, config: MemoryConfig):
        super().__init__()
        self.heads, self.slices = heads, config.read_slices
        self.read_fn = config.read_fn
        self.seen = config.knowledge_dim // self.slices
        """Columns of a slot that one read head sees."""
        inner = dim if config.slot_proj else heads * self.seen
        self.q_proj = nn.Linear(dim, inner, bias=False)
        self.q_norm = RMSNorm(inner // heads) if config.read_norm == "rms" else None
        if self.q_norm is not None:
            nn.init.constant_(self.q_norm.weight, config.read_gain)
        self.k_proj = nn.Linear(config.knowledge_dim, dim, bias=False) if config.slot_proj else None
        self.v_proj = nn.Linear(config.knowledge_dim, dim, bias=False) if config.slot_proj else None
        self.o_proj = nn.Linear(inner, dim, bias=False)
        self.gate_proj = nn.Linear(dim, inner, bias=False) if config.output_gate is True else None
        self.gated_by_query = config.output_gate == "query"

    def init_projections(self) -> None:
        """Let slots keep their length when projected, if their keys meet queries of unit size.

        With the 0.02 of other projections, keys, values and so the gradients of entries start far smaller than the
        residual stream, and the memory adds about nothing to it.
        """
        if self.q_norm is not None and self.k_proj is not None and self.v_proj is not None:
            for projection in (self.k_proj, self.v_proj):
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    def forward(
        self,
        x: Float[Tensor, "batch pos dim"],
        slots: Slots,
        scores: Float[Tensor, "batch pos K"],
        watch: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "batch pos dim"]:
        """The memory's output, to be added to the residual stream: ``output`` of ``pattern``.

        Args:
            x: normalised residual stream.
            slots: of the selected entries.
            scores: gate scores of the selected entries.
            watch: is given the read weights and returns those to use. Without it a GELU read makes none: it reads in
                one pass over the slots, with the same bits.
        """
        raw = self._raw_query(x)
        query, per_slot = self._slot_query(raw), _per_slot(scores, slots)
        if watch is None and self.read_fn == "gelu":
            mixed = slots.gelu_read(query, per_slot, 0, self.slices)
        else:
            pattern = self._activated(slots.dot(query, slices=self.slices), per_slot)
            mixed = self._sum(slots, pattern if watch is None else watch(pattern))
        return self._write(x, raw, mixed)

    def query(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos read_head seen"]:
        """Read queries as slots meet them: normalised or scaled, then through W_K if slots are projected."""
        return self._slot_query(self._raw_query(x))

    def pattern(
        self, x: Float[Tensor, "batch pos dim"], slots: Slots, scores: Float[Tensor, "batch pos K"]
    ) -> Float[Tensor, "batch pos read_head slot"]:
        """Read weights: activation of the (scaled or normalised) q.k times the gate score of the slot's entry."""
        return self._activated(slots.dot(self.query(x), slices=self.slices), _per_slot(scores, slots))

    def output(
        self,
        x: Float[Tensor, "batch pos dim"],
        slots: Slots,
        pattern: Float[Tensor, "batch pos read_head slot"],
    ) -> Float[Tensor, "batch pos dim"]:
        """Weighted sum of the slots' values, gated and projected back to the residual stream."""
        return self._write(x, self._raw_query(x), self._sum(slots, pattern))

    @property
    def write_matrix(self) -> Float[Tensor, "dim width"]:
        """The map from a slot to the output, if every read head weighs it 1 and there is no output gate."""
        if self.v_proj is not None:
            return self.o_proj.weight @ self.v_proj.weight
        by_head = self.o_proj.weight.unflatten(1, (self.slices, self.heads // self.slices, -1))
        written: Tensor = by_head.sum(2).flatten(1)
        return written

    def _raw_query(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos read_head width"]:
        query: Tensor = self.q_proj(x)
        return query.unflatten(-1, (self.heads, -1))

    def _slot_query(self, raw: Float[Tensor, "batch pos read_head width"]) -> Float[Tensor, "batch pos read_head seen"]:
        scaled: Tensor = raw * raw.shape[-1] ** -0.5 if self.q_norm is None else self.q_norm(raw)
        if self.k_proj is None:
            return scaled
        return torch.einsum("btah,ahd->btad", scaled, self.k_proj.weight.unflatten(0, (self.heads, -1)))

    def _activated(
        self, logits: Float[Tensor, "batch pos read_head slot"], per_slot: Float[Tensor, "batch pos slot"]
    ) -> Float[Tensor, "batch pos read_head slot"]:
        if self.read_fn == "gelu":
            return gated_gelu(logits, per_slot)
        return logits.float().softmax(-1) * per_slot.unsqueeze(2)

    def _sum(
        self, slots: Slots, pattern: Float[Tensor, "batch pos read_head slot"]
    ) -> Float[Tensor, "batch pos read_head seen"]:
        return slots.sum(pattern, 0, self.seen, self.slices)

    def _write(
        self,
        x: Float[Tensor, "batch pos dim"],
        raw: Float[Tensor, "batch pos read_head width"],
        mixed: Float[Tensor, "batch pos read_head seen"],
    ) -> Float[Tensor, "batch pos dim"]:
        """Map reads to the residual stream: through W_V if slots are projected, the output gate and W_O."""
        if self.v_proj is not None:
            mixed = torch.einsum("btad,ahd->btah", mixed, self.v_proj.weight.unflatten(0, (self.heads, -1)))
        if self.gate_proj is not None:
            mixed = mixed * F.silu(self.gate_proj(x)).unflatten(-1, (self.heads, -1))
        elif self.gated_by_query:
            mixed = mixed * raw
        out: Tensor = self.o_proj(mixed.flatten(2))
        return out


def _per_slot(scores: Float[Tensor, "batch pos K"], slots: Slots) -> Float[Tensor, "batch pos slot"]:
    """Every slot has the gate score of its entry."""
    length = slots.count // scores.shape[-1]
    return scores.repeat_interleave(length, dim=-1) if length > 1 else scores
