"""The gate of a memory layer: scores entries for every token and selects the best.

``MemoryGate.select`` gives K = H * k entries a token, their gate scores and the margin by which the selection held; on
request also what raw scores alone, without the selection bias, would have selected.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memscope.config.memory import MemoryConfig
from memscope.model.balance import Balance
from memscope.model.ops.product_keys import add_bias, half_keys, score_product, search_product, selection_margin

_NO_SCORE = 0.01
"""Sum of a token's gate scores below which they are hardly scaled up."""


class Selection(NamedTuple):
    """The entries that the gate selected: K = H * k a token, the k of one head side by side, best first."""

    indices: Int[Tensor, "batch pos K"]
    """Entry numbers, int64."""
    scores: Float[Tensor, "batch pos K"]
    """Gate scores after the score function."""
    margin: Float[Tensor, "batch pos head"]
    """Selection margin: raw score plus selection bias of a head's weakest selected entry above that of the best
    rejected one, without gradient; NaN where nothing is rejected."""
    score_margin: Float[Tensor, "batch pos head"] | None = None
    """The same in raw scores alone: negative where the bias passed over a better entry. None unless asked for."""
    by_score: Bool[Tensor, "batch pos K"] | None = None
    """Whether raw scores alone would have selected the entry too; ties count. None unless asked for."""


class MemoryGate(nn.Module):
    """Scores entries for every token and selects the best ``num_selected`` per head.

    ``full`` scores all N keys. ``product`` splits query and keys in two halves of sqrt(N) keys each; entry
    ``i * sqrt(N) + j`` scores ``q1.k1[i] + q2.k2[j]``, and the best k of the k x k best halves are the best k of
    all N (Lample et al. 2019, arXiv 1907.05242). Where the bank is split in groups, N and entries are those of one.

    Args:
        dim: width of the residual stream.
        config: the memory's.
        first: number of the entry that key 0 stands for, the first of the gate's group of entries.
    """

    def __init__(self, dim: int, config: MemoryConfig, first: int = 0):
        super().__init__()
        self.first = first
        self.kind = config.gate
        self.num_selected = config.num_selected
        self.score_fn = config.score_fn
        self.normalised = config.normalize_scores
        self.heads = config.gate_heads
        self.token_shift = config.token_shift
        self.proj = nn.Linear(dim, self.heads * config.key_dim, bias=False)
        self.keys = _fresh_keys(config)
        self.balance = Balance(tuple(self.keys.shape[:-1]), config.balance_bias)

    def query(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos head query"]:
        """Gate queries, one per head; with token shift, half of the first token's is its own for want of one before."""
        query = rearrange(self.proj(x), "b t (h q) -> b t h q", h=self.heads)
        if self.token_shift:
            own, shifted = query.tensor_split([query.shape[-1] // 2], -1)
            query = torch.cat([own, torch.cat([shifted[:, :1], shifted[:, :-1]], 1)], -1)
        return query

    def select(
        self, query: Float[Tensor, "batch pos head query"], biased: bool = True, compare: bool = False
    ) -> Selection:
        """Top-k entries per head and their gate scores.

        Args:
            query: of ``query``.
            biased: let the selection bias take part, if there is one.
            compare: also say what raw scores alone would have selected; costs a second search where there is a bias.
        """
        select = self._select_full if self.kind == "full" else self._select_product
        bias = self.balance.bias if biased else None
        moved = bias is not None
        indices, raw, margin, compared = select(query, bias, compare and moved)  # [b, t, h, k] twice, [b, t, h]
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
        if compare and compared is None:  # selection saw raw scores and nothing else
            compared = _Compared(margin, torch.ones_like(indices, dtype=torch.bool))
        beside = (None, None) if compared is None else (compared.margin, compared.by_score.flatten(2))
        return Selection(indices.flatten(2) + self.first, scores, margin, *beside)

    def _select_full(
        self, query: Tensor, bias: Tensor | None, compare: bool
    ) -> tuple[Tensor, Tensor, Tensor, "_Compared | None"]:
        # The search needs no gradient: choosing first and scoring the chosen again keeps the [tokens, N] scores out
        # of autograd, whose backward would build a dense gradient of that size.
        best = min(self.num_selected + 1, self.keys.shape[1])
        with torch.no_grad():
            search, beside = [], []
            for chunk in query.flatten(0, 1).split(512):
                scores = torch.einsum("thq,hnq->thn", chunk, self.keys)
                search.append(add_bias(scores, bias).topk(best))
                if compare:
                    chosen = search[-1].indices[..., : self.num_selected]
                    by_score = scores.topk(best)
                    beside.append(_compare(chosen, scores.gather(-1, chosen), by_score.indices, by_score.values))
            found, order = (torch.cat(part).unflatten(0, query.shape[:2]) for part in zip(*search, strict=True))
            indices = order[..., : self.num_selected]  # [b, t, h, k]
            offset = torch.arange(self.heads, device=query.device)[:, None] * self.keys.shape[1]
        self.balance.observe(indices.flatten(0, 1))
        keys = F.embedding(indices + offset, self.keys.flatten(0, 1))  # [b, t, h, k, q]
        compared = None
        if compare:
            compared = _Compared(*(torch.cat(part).unflatten(0, query.shape[:2]) for part in zip(*beside, strict=True)))
        raw = torch.einsum("bthq,bthkq->bthk", query, keys)
        return indices, raw, selection_margin(found, self.num_selected), compared

    def _select_product(
        self, query: Tensor, bias: Tensor | None, compare: bool
    ) -> tuple[Tensor, Tensor, Tensor, "_Compared | None"]:
        halves = rearrange(query, "b t h (two q) -> b t h two q", two=2)
        with torch.no_grad():  # as under the full gate
            scores = torch.einsum("bthpq,hpnq->bthpn", halves, self.keys)
        indices, margin = search_product(scores, bias, self.num_selected)
        self.balance.observe(half_keys(indices, scores.shape[-1]).flatten(0, 1))
        compared = self._compare_product(scores, indices) if compare else None
        return indices, score_product(halves, self.keys, indices), margin, compared

    def _compare_product(self, scores: Tensor, indices: Tensor) -> "_Compared":
        """Compare chosen entries ``[b, t, h, k]`` with the best by raw scores of halves, ``[b, t, h, 2, side]``."""

        def summed(entries: Tensor) -> Tensor:
            return scores.gather(-1, half_keys(entries, scores.shape[-1])).float().sum(-2)

        best, _ = search_product(scores, None, min(self.num_selected + 1, scores.shape[-1] ** 2))
        return _compare(indices, summed(indices), best, summed(best))


class _Compared(NamedTuple):
    """A selection beside the one that raw scores alone would have made."""

    margin: Tensor
    """``Selection.score_margin``, ``[..., head]``."""
    by_score: Tensor
    """``Selection.by_score``, ``[..., head, k]``."""


def _compare(chosen: Tensor, chosen_scores: Tensor, best: Tensor, best_scores: Tensor) -> _Compared:
    """Compare chosen entries ``[..., k]`` with the best k + 1 by raw score, best first; scores are raw ones of each."""
    k = chosen.shape[-1]
    by_score = chosen_scores >= best_scores[..., k - 1 : k]
    rejected = (best[..., :, None] != chosen[..., None, :]).all(-1)  # one of k + 1 at least, and so the best of all
    if best.shape[-1] <= k:
        return _Compared(torch.full_like(chosen_scores[..., 0], torch.nan), by_score)
    passed_over = best_scores.masked_fill(~rejected, -torch.inf).amax(-1)
    return _Compared(chosen_scores.amin(-1) - passed_over, by_score)


def _fresh_keys(config: MemoryConfig) -> nn.Parameter:
    """Fresh keys, N(0, width^-0.5): ``[head, N, query]``, or ``[head, 2, sqrt(N), query / 2]`` of a product gate."""
    heads, width, n = config.gate_heads, config.key_dim, config.group_size
    shape = (heads, n, width) if config.gate == "full" else (heads, 2, round(n**0.5), width // 2)
    keys = nn.Parameter(torch.empty(shape))
    nn.init.normal_(keys, std=shape[-1] ** -0.5)
    return keys
