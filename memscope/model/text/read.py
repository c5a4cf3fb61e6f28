"""The read of a text layer: cross-attention from a token to the words of its selected sentences.

    pattern = softmax over [nothing, all slots] of (q . k + log gate score of the slot's sentence)

The gate's score is part of the softmax, so the language model's loss teaches the gate, and a token can read nothing.
Where nobody watches the pattern, the loops of ``ops/cpu/softmax_read.cpp`` read without making it.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from memscope.model.ops.fused import RMSNorm
from memscope.model.ops.sparse_read import Slots
from memscope.model.text.selected import Selected, log_scores

_COPY = 0.05
"""Size at first of what reading one token adds of its embedding, over all heads."""


class TextRead(nn.Module):
    """Queries from the residual stream, keys and values from slots, by heads.

    Args:
        dim: width of the residual stream.
        slot_dim: width of a slot.
        heads: read heads (A).
    """

    def __init__(self, dim: int, slot_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.q_norm = RMSNorm(dim // heads)
        self.k_proj = nn.Linear(slot_dim, dim, bias=False)
        self.v_proj = nn.Linear(slot_dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.nothing = nn.Parameter(torch.zeros(heads))
        """Logit of reading nothing."""

    def init_projections(self, token: Float[Tensor, "half dim"]) -> None:
        """Let a read start as a copy: what is read of a token is that token's own embedding.

        Args:
            token: the projection of embeddings to the first half of slots.
        """
        half = len(token)
        nn.init.constant_(self.q_norm.weight, (self.q_proj.out_features // self.heads) ** -0.5)
        nn.init.normal_(self.k_proj.weight, std=self.k_proj.in_features**-0.5)
        copies = -(-self.v_proj.out_features // half)
        turns = [nn.init.orthogonal_(torch.empty(half, half)) for _ in range(copies)]
        values = torch.cat(turns)[: self.v_proj.out_features]
        nn.init.zeros_(self.v_proj.weight)
        self.v_proj.weight.data[:, :half] = values
        self.o_proj.weight.data = _COPY / copies * token.T @ values.T

    def forward(
        self,
        x: Float[Tensor, "batch pos dim"],
        selected: Selected,
        scores: Float[Tensor, "batch pos K"],
        watch: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "batch pos dim"]:
        """What the layer adds to the residual stream.

        Args:
            x: normalised residual stream.
            selected: the sentences.
            scores: their gate scores.
            watch: is given the read weights and returns those to use.
        """
        query = self._query(x)
        mixed = selected.read(query, scores, self.nothing.float()) if watch is None else None
        if mixed is None:
            slots = selected.slots()
            pattern = self._pattern(query, slots, selected, scores)
            if watch is not None:
                pattern = watch(pattern)
            mixed = slots.sum(pattern, 0, self.v_proj.in_features)
        values = torch.einsum("btad,ahd->btah", mixed, self.v_proj.weight.unflatten(0, (self.heads, -1)))
        out: Tensor = self.o_proj(values.flatten(2))
        return out

    def pattern(
        self, x: Float[Tensor, "batch pos dim"], selected: Selected, scores: Float[Tensor, "batch pos K"]
    ) -> Float[Tensor, "batch pos head slot"]:
        """The read weights of tokens, as ``forward`` reads by them."""
        return self._pattern(self._query(x), selected.slots(), selected, scores)

    def _query(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos head slot_dim"]:
        query = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, -1)))
        return torch.einsum("btah,ahd->btad", query, self.k_proj.weight.unflatten(0, (self.heads, -1)))

    def _pattern(self, query: Tensor, slots: Slots, selected: Selected, scores: Tensor) -> Tensor:
        per_slot = scores.repeat_interleave(selected.length, -1)
        logits = slots.dot(query).float() + log_scores(per_slot).unsqueeze(2)
        logits = logits.masked_fill(~(selected.is_there() & (per_slot > 0)).unsqueeze(2), -torch.inf)
        nothing = self.nothing.float()[:, None].expand(*logits.shape[:2], self.heads, 1)
        return torch.cat([nothing, logits], -1).softmax(-1)[..., 1:]


def read_alignment_loss(
    pattern: Float[Tensor, "asked head slot"], answer: Bool[Tensor, "asked slot"]
) -> Float[Tensor, ""]:
    """Mean negative log of the share of the read that falls on the answer's slots, over all heads, in nats.

    Questions of which no slot holds the answer teach nothing; 0 if there are no others.
    """
    teaches = answer.any(-1)
    if not teaches.any():
        return pattern.new_zeros(())
    share = (pattern.mean(1) * answer).sum(-1)
    return -share[teaches].clamp(min=1e-9).log().mean()
