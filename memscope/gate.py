"""The gate of a memory layer: scores entries for every token and selects the best.

``MemoryGate.select`` gives K = H * k entries a token, their gate scores and the margin by which the selection held.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from memscope.balance import Balance
from memscope.config import MemoryConfig
from memscope.fused import RMSNorm
from memscope.native import native_for

_NO_SCORE = 0.01
"""Sum of a token's gate scores below which they are hardly scaled up."""


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
    all N (Lample et al. 2019, arXiv 1907.05242). Where the bank is split in groups, N and entries are those of one.

    Args:
        dim: width of the residual stream.
        config: the memory's.
        keys: the model's, shared by all gates; none makes its own.
        first: number of the entry that key 0 stands for, the first of the gate's group of entries.
    """

    def __init__(self, dim: int, config: MemoryConfig, keys: nn.Parameter | None = None, first: int = 0):
        super().__init__()
        self.first = first
        self.kind = config.gate
        self.num_selected = config.num_selected
        self.score_fn = config.score_fn
        self.normalised = config.normalize_scores
        self.heads = config.gate_heads
        self.token_shift = config.token_shift
        self.proj = _query_network(dim, config.gate_hidden, self.heads * config.key_dim)
        self.norm = QueryNorm(config.query_norm, config.key_dim, self.heads)
        self.keys: nn.Parameter
        if keys is None:
            self.keys = gate_keys(config)
        else:
            self.share_keys(keys)
        self.balance = Balance(tuple(self.keys.shape[:-1]), config)

    def share_keys(self, keys: nn.Parameter) -> None:
        """Score keys that are another module's, which saves and moves them: they are not registered here."""
        self.__dict__["keys"] = keys

    def query(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos head query"]:
        """Gate queries, one per head; with token shift, half of the first token's is its own for want of one before."""
        raw = rearrange(self.proj(x), "b t (h q) -> b t h q", h=self.heads)
        if self.token_shift:
            own, shifted = raw.tensor_split([raw.shape[-1] // 2], -1)
            raw = torch.cat([own, torch.cat([shifted[:, :1], shifted[:, :-1]], 1)], -1)
        query: Tensor = self.norm(raw)
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
        scores = scores.flatten(2)
        if self.normalised:  # where all scores are near 0 they stay so
            scores = scores * (scores.shape[-1] / (scores.sum(-1, keepdim=True) + _NO_SCORE))
        return Selection(indices.flatten(2) + self.first, scores, margin)

    def _select_full(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The search needs no gradient: choosing first and scoring the chosen again keeps the [tokens, N] scores out
        # of autograd, whose backward would build a dense gradient of that size.
        best = min(self.num_selected + 1, self.keys.shape[1])
        with torch.no_grad():
            search = [
                self._biased(self.balance.disturbed(torch.einsum("thq,hnq->thn", chunk, self.keys))).topk(best)
                for chunk in query.flatten(0, 1).split(512)
            ]
            found, order = (torch.cat(part).unflatten(0, query.shape[:2]) for part in zip(*search, strict=True))
            indices = order[..., : self.num_selected]  # [b, t, h, k]
            offset = torch.arange(self.heads, device=query.device)[:, None] * self.keys.shape[1]
        all_scores = None
        if self.balance.penalises:  # the price of a loss over all scores
            all_scores = torch.einsum("bthq,hnq->bthn", query, self.keys).flatten(0, 1)
        if self.balance.observes:
            self.balance.observe(all_scores, indices.flatten(0, 1))
        keys = F.embedding(indices + offset, self.keys.flatten(0, 1))  # [b, t, h, k, q]
        return indices, torch.einsum("bthq,bthkq->bthk", query, keys), self._margin(found)

    def _select_product(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        halves = rearrange(query, "b t h (two q) -> b t h two q", two=2)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.balance.penalises):  # as under the full gate
            scores = torch.einsum("bthpq,hpnq->bthpn", halves, self.keys)
        indices, margin = self._search_product(self.balance.disturbed(scores))
        if self.balance.observes:
            self.balance.observe(scores.flatten(0, 1), self._half_keys(indices).flatten(0, 1))
        return indices, self._score_chosen(halves, indices), margin

    def _half_keys(self, indices: Tensor) -> Tensor:
        """Row and column of entries ``[b, t, h, k]`` in their square, ``[b, t, h, 2, k]``."""
        side = self.keys.shape[2]
        return torch.stack([indices // side, indices % side], -2)

    def _score_chosen(self, halves: Tensor, indices: Tensor) -> Tensor:
        """Scores of chosen entries, with gradient, ``[batch, pos, head, k]``."""
        heads, two, side, _ = self.keys.shape
        compiled = native_for(halves)
        if compiled is not None:
            flat = halves.flatten(0, 1).contiguous(), self.keys, indices.flatten(0, 1)
            scores: Tensor = _ProductScores.apply(*flat, compiled)  # type: ignore[no-untyped-call]
            return scores.view_as(indices)
        first = torch.arange(heads * two, device=indices.device).view(heads, two, 1) * side
        keys = F.embedding(self._half_keys(indices) + first, self.keys.flatten(0, 2))
        return torch.einsum("bthpq,bthpkq->bthpk", halves, keys).sum(-2)

    @torch.no_grad()
    def _search_product(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Entries ``[b, t, h, k]`` with the best sums of biased scores ``[b, t, h, 2, side]``, and margins.

        In plain PyTorch: the reference, and the way on other devices than the CPU.
        """
        compiled, side = native_for(scores), scores.shape[-1]
        if compiled is not None and scores.stride(-1) == 1:
            indices, margin = compiled.product_top(scores.flatten(0, 1), self.balance.bias, self.num_selected)
            return indices.unflatten(0, scores.shape[:2]), margin.unflatten(0, scores.shape[:2])
        best, number = self._biased(scores).topk(min(self.num_selected + 1, side))  # [b, t, h, 2, k + 1]
        sums = (best[..., 0, :, None] + best[..., 1, None, :]).flatten(-2)
        found, order = sums.topk(min(self.num_selected + 1, sums.shape[-1]))
        flat = order[..., : self.num_selected]
        row = number[..., 0, :].gather(-1, flat // best.shape[-1])
        column = number[..., 1, :].gather(-1, flat % best.shape[-1])
        return row * side + column, self._margin(found)

    def _biased(self, scores: Tensor) -> Tensor:
        return scores if self.balance.bias is None else scores + self.balance.bias

    def _margin(self, best: Tensor) -> Tensor:
        """From the best k + 1 raw scores ``[b, t, h, k + 1]``."""
        if best.shape[-1] <= self.num_selected:
            return torch.full_like(best[..., 0], torch.nan).detach()
        return (best[..., self.num_selected - 1] - best[..., self.num_selected]).detach()


class _ProductScores(Function):
    @staticmethod
    def forward(ctx: Any, halves: Tensor, keys: Tensor, indices: Tensor, compiled: Any) -> Tensor:
        ctx.compiled = compiled
        ctx.save_for_backward(halves, keys, indices)
        return compiled.product_scores(halves, keys, indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_halves, to_keys = ctx.compiled.product_scores_backward(gradient.contiguous(), *ctx.saved_tensors)
        return to_halves, to_keys, None, None


def gate_keys(config: MemoryConfig) -> nn.Parameter:
    """Fresh keys, N(0, width^-0.5): ``[head, N, query]``, or ``[head, 2, sqrt(N), query / 2]`` of a product gate."""
    heads, width, n = config.gate_heads, config.key_dim, config.group_size
    shape = (heads, n, width) if config.gate == "full" else (heads, 2, round(n**0.5), width // 2)
    keys = nn.Parameter(torch.empty(shape))
    nn.init.normal_(keys, std=shape[-1] ** -0.5)
    return keys


class QueryNorm(nn.Module):
    """Normalisation of gate queries ``[batch, pos, head, query]`` by name: ``none``, ``rms``, ``layer`` or ``batch``.

    ``batch`` is Lample et al.'s (1907.05242), over all tokens of a batch: running averages are used outside training.
    """

    def __init__(self, kind: str, width: int, heads: int):
        super().__init__()
        self.kind = kind
        match kind:
            case "rms":
                self.norm: nn.Module = RMSNorm(width)
            case "layer":
                self.norm = nn.LayerNorm(width)  # autocast runs it in float32
            case "batch":
                self.norm = nn.BatchNorm1d(heads * width)
            case _:
                self.norm = nn.Identity()

    def forward(self, query: Float[Tensor, "batch pos head query"]) -> Float[Tensor, "batch pos head query"]:
        """The normalised queries."""
        if self.kind == "batch":
            flat: Tensor = self.norm(query.float().flatten(2).flatten(0, 1))
            return flat.view_as(query)
        normed: Tensor = self.norm(query)
        return normed


def _query_network(dim: int, hidden: int, out: int) -> nn.Module:
    """Residual stream -> gate queries: one matrix, or with ``hidden`` an MLP with SiLU."""
    if not hidden:
        return nn.Linear(dim, out, bias=False)
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.SiLU(), nn.Linear(hidden, out, bias=False))
