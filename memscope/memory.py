"""The memory that stands where a feed-forward layer stood: a bank of entries, a gate that selects, a read.

    x [batch, pos, dim] --MemoryGate--> indices, gate scores [batch, pos, K]
    MemoryBank[indices] --CrossAttentionMemory(x)--> out [batch, pos, dim]

K = H * k: every one of H gate heads selects k entries. A slot's **read weight** in a read head is the activation
of q.k (softmax over all selected slots, or GELU) times the gate score of its entry. Each step passes a HookPoint,
so what is selected and read can be recorded and changed (``record.py``, ``run_with_hooks``).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from memscope.config import MemoryConfig


class Selection(NamedTuple):
    """What the gate chose: K = H * k entries a token, the k of one head side by side, best first."""

    indices: Int[Tensor, "batch pos K"]
    """Entry numbers, int64."""
    scores: Float[Tensor, "batch pos K"]
    """Gate scores after the score function."""
    margin: Float[Tensor, "batch pos head"]
    """Raw score of a head's weakest selected entry above that of the best rejected one, without gradient; NaN where
    nothing is rejected."""


class MemoryBank(nn.Module):
    """The trainable table of entries, ``[knowledge_num, knowledge_length, knowledge_dim]``."""

    def __init__(self, knowledge_num: int, knowledge_length: int, knowledge_dim: int):
        super().__init__()
        self.entries = nn.Parameter(torch.empty(knowledge_num, knowledge_length, knowledge_dim))
        nn.init.normal_(self.entries, std=knowledge_dim**-0.5)  # unit norm on average, as PKM values (1907.05242)

    def forward(self, indices: Int[Tensor, "batch pos K"]) -> Float[Tensor, "batch pos slot width"]:
        """Slots of the selected entries, ``[batch, pos, K * L, D]``."""
        # F.embedding, not indexing: its backward adds rows without the sort that index_put needs.
        rows = F.embedding(indices, self.entries.flatten(1))
        return rearrange(rows, "b t k (l d) -> b t (k l) d", d=self.entries.shape[-1])


class MemoryGate(nn.Module):
    """Scores entries for every token and selects the best ``num_selected`` per head.

    ``full`` scores all N keys. ``product`` splits query and keys in two halves of sqrt(N) keys each; entry
    ``i * sqrt(N) + j`` scores ``q1.k1[i] + q2.k2[j]``, and the best k of the k x k best halves are the best k of
    all N (Lample et al. 2019, arXiv 1907.05242).
    """

    def __init__(self, dim: int, config: MemoryConfig):
        super().__init__()
        self.kind = config.gate
        self.num_selected = config.num_selected
        self.score_fn = config.score_fn
        self.heads = config.gate_heads
        width, side = config.key_dim, round(config.knowledge_num**0.5)
        self.proj = nn.Linear(dim, self.heads * width, bias=False)
        self.norm = nn.RMSNorm(width) if config.query_norm == "rms" else nn.Identity()
        full = self.kind == "full"
        shape = (self.heads, config.knowledge_num, width) if full else (self.heads, 2, side, width // 2)
        self.keys = nn.Parameter(torch.empty(shape))
        nn.init.normal_(self.keys, std=shape[-1] ** -0.5)

    def query(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos head query"]:
        """Gate queries, one per head."""
        query: Tensor = self.norm(rearrange(self.proj(x), "b t (h q) -> b t h q", h=self.heads))
        return query

    def select(self, query: Float[Tensor, "batch pos head query"]) -> Selection:
        """Top-k entries per head and their gate scores."""
        select = self._select_full if self.kind == "full" else self._select_product
        indices, raw, margin = select(query)  # [b, t, h, k] twice, [b, t, h]
        match self.score_fn:
            case "softmax":
                scores = raw.float().softmax(-1)
            case "sigmoid":
                scores = raw.float().sigmoid()
            case "relu":
                scores = raw.float().relu()
        return Selection(indices.flatten(2), scores.flatten(2), margin)

    def _select_full(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The search needs no gradient: choosing first and scoring the chosen again keeps the [tokens, N] scores out
        # of autograd, whose backward would build a dense gradient of that size.
        with torch.no_grad():
            best = min(self.num_selected + 1, self.keys.shape[1])
            search = [
                torch.einsum("thq,hnq->thn", chunk, self.keys).topk(best) for chunk in query.flatten(0, 1).split(512)
            ]
            found, order = (torch.cat(part).unflatten(0, query.shape[:2]) for part in zip(*search, strict=True))
            indices = order[..., : self.num_selected]  # [b, t, h, k]
            offset = torch.arange(self.heads, device=query.device)[:, None] * self.keys.shape[1]
        keys = F.embedding(indices + offset, self.keys.flatten(0, 1))  # [b, t, h, k, q]
        return indices, torch.einsum("bthq,bthkq->bthk", query, keys), self._margin(found)

    def _select_product(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        side = self.keys.shape[2]
        halves = rearrange(query, "b t h (two q) -> b t h two q", two=2)
        scores = torch.einsum("bthpq,hpnq->bthpn", halves, self.keys)
        best, number = scores.topk(min(self.num_selected + 1, side))  # [b, t, h, 2, k + 1]
        sums = (best[..., 0, :, None] + best[..., 1, None, :]).flatten(-2)
        found, order = sums.topk(min(self.num_selected + 1, sums.shape[-1]))
        chosen, flat = found[..., : self.num_selected], order[..., : self.num_selected]
        row = number[..., 0, :].gather(-1, flat // best.shape[-1])
        column = number[..., 1, :].gather(-1, flat % best.shape[-1])
        return row * side + column, chosen, self._margin(found)

    def _margin(self, best: Tensor) -> Tensor:
        """From the best k + 1 raw scores ``[b, t, h, k + 1]``."""
        if best.shape[-1] <= self.num_selected:
            return torch.full_like(best[..., 0], torch.nan).detach()
        return (best[..., self.num_selected - 1] - best[..., self.num_selected]).detach()


class CrossAttentionMemory(nn.Module):
    """Multi-head cross-attention: Q from the token, K and V from the slots of its selected entries.

    With ``absorbed`` the key projection moves into the query and the value projection behind the weighted sum, so
    that raw slots are read: ``(q W_k^T) . e = q . (W_k e)`` and ``W_v sum(p e) = sum(p W_v e)``. Both paths give
    the same result within rounding; the plain one is the reference.
    """

    def __init__(self, dim: int, heads: int, config: MemoryConfig):
        super().__init__()
        self.heads = heads
        self.read_fn = config.read_fn
        self.absorbed = config.absorbed
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(config.knowledge_dim, dim, bias=False)
        self.v_proj = nn.Linear(config.knowledge_dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.gate_proj = nn.Linear(dim, dim, bias=False) if config.output_gate else None

    def pattern(
        self,
        x: Float[Tensor, "batch pos dim"],
        slots: Float[Tensor, "batch pos slot width"],
        scores: Float[Tensor, "batch pos K"],
    ) -> Float[Tensor, "batch pos read_head slot"]:
        """Read weights: activation of q.k / sqrt(head width) times the gate score of the slot's entry."""
        query = rearrange(self.q_proj(x), "b t (a h) -> b t a h", a=self.heads)
        if self.absorbed:
            k_weight = rearrange(self.k_proj.weight, "(a h) d -> a h d", a=self.heads)
            logits = torch.einsum("btad,btsd->btas", torch.einsum("btah,ahd->btad", query, k_weight), slots)
        else:
            keys = rearrange(self.k_proj(slots), "b t s (a h) -> b t s a h", a=self.heads)
            logits = torch.einsum("btah,btsah->btas", query, keys)
        logits = logits.float() * query.shape[-1] ** -0.5
        active = logits.softmax(-1) if self.read_fn == "softmax" else F.gelu(logits)
        per_slot = scores.repeat_interleave(slots.shape[2] // scores.shape[2], dim=-1)
        return active * per_slot.unsqueeze(2)

    def output(
        self,
        x: Float[Tensor, "batch pos dim"],
        slots: Float[Tensor, "batch pos slot width"],
        pattern: Float[Tensor, "batch pos read_head slot"],
    ) -> Float[Tensor, "batch pos dim"]:
        """Weighted sum of the slots' values, projected back to the residual stream."""
        if self.absorbed:
            v_weight = rearrange(self.v_proj.weight, "(a h) d -> a h d", a=self.heads)
            z = torch.einsum("btad,ahd->btah", torch.einsum("btas,btsd->btad", pattern, slots), v_weight)
        else:
            values = rearrange(self.v_proj(slots), "b t s (a h) -> b t s a h", a=self.heads)
            z = torch.einsum("btas,btsah->btah", pattern, values)
        z = z.flatten(2)
        if self.gate_proj is not None:
            z = z * F.silu(self.gate_proj(x))
        out: Tensor = self.o_proj(z)
        return out


class MemoryLayer(nn.Module):
    """Gate and read of one block; the bank comes from outside because layers share it.

    Hook points, with H gate heads, A read heads, K = H * k selections, L slots per entry:
    ``hook_query`` ``[batch, pos, H, query]``, ``hook_indices`` and ``hook_gate_scores`` ``[batch, pos, K]``,
    ``hook_margin`` ``[batch, pos, H]`` (nothing in the model reads it) and ``hook_pattern`` ``[batch, pos, A, K * L]``.
    A hook that changes indices changes what is read; the gate scores stay those of the entries that were selected
    first unless their hook changes them too.
    """

    def __init__(self, dim: int, read_heads: int, config: MemoryConfig):
        super().__init__()
        self.gate = MemoryGate(dim, config)
        self.read = CrossAttentionMemory(dim, read_heads, config)
        self.hook_query = HookPoint()
        self.hook_indices = HookPoint()
        self.hook_gate_scores = HookPoint()
        self.hook_margin = HookPoint()
        self.hook_pattern = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos dim"], bank: MemoryBank) -> Float[Tensor, "batch pos dim"]:
        """What the memory adds to the residual stream for normalised input ``x``."""
        selection = self.gate.select(self.hook_query(self.gate.query(x)))
        indices = self.hook_indices(selection.indices)
        scores = self.hook_gate_scores(selection.scores)
        self.hook_margin(selection.margin)
        slots = bank(indices)
        pattern = self.hook_pattern(self.read.pattern(x, slots, scores))
        return self.read.output(x, slots, pattern)
