"""The gate of a memory layer: scores entries for every token and selects the best.

``MemoryGate.select`` gives K = H * k entries a token, their gate scores and the margin by which the selection held.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from memscope.config import MemoryConfig
from memscope.sparse_read import product_top


class Selection(NamedTuple):
    """What the gate chose: K = H * k entries a token, the k of one head side by side, best first."""

    indices: Int[Tensor, "batch pos K"]
    """Entry numbers, int64."""
    scores: Float[Tensor, "batch pos K"]
    """Gate scores after the score function."""
    margin: Float[Tensor, "batch pos head"]
    """Raw score of a head's weakest selected entry above that of the best rejected one, without gradient; NaN where
    nothing is rejected."""


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
        fused = scores.device.type == "cpu"
        indices, margin = product_top(scores, self.num_selected) if fused else self._search_product(scores)
        row, column = indices // side, indices % side
        return indices, scores[..., 0, :].gather(-1, row) + scores[..., 1, :].gather(-1, column), margin

    @torch.no_grad()
    def _search_product(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and margin in plain PyTorch: the reference, and the way on other devices than the CPU."""
        side = scores.shape[-1]
        best, number = scores.topk(min(self.num_selected + 1, side))  # [b, t, h, 2, k + 1]
        sums = (best[..., 0, :, None] + best[..., 1, None, :]).flatten(-2)
        found, order = sums.topk(min(self.num_selected + 1, sums.shape[-1]))
        flat = order[..., : self.num_selected]
        row = number[..., 0, :].gather(-1, flat // best.shape[-1])
        column = number[..., 1, :].gather(-1, flat % best.shape[-1])
        return row * side + column, self._margin(found)

    def _margin(self, best: Tensor) -> Tensor:
        """From the best k + 1 raw scores ``[b, t, h, k + 1]``."""
        if best.shape[-1] <= self.num_selected:
            return torch.full_like(best[..., 0], torch.nan).detach()
        return (best[..., self.num_selected - 1] - best[..., self.num_selected]).detach()
