"""The gate of a text layer: chooses sentences by the words that they share, and by what training adds to that.

    total = lexical_gain * share of the query's words + learned query . key of the sentence
    gate scores = softmax over the selected sentences of sharpness * total

The learned part starts at 0, so that a model selects as well as a search by words before its first step, and it stays
small: queries have a largest length, keys have length 1. Left alone it grew to 12 and drowned what words say, for the
sentences of facts that training states are learned by heart.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memscope.model.text.bank import Candidates

_LEXICAL_GAIN = 10.0
"""Start of the gain: a sentence with all rare words of the question beats one with half of them by a factor of e^5."""
_MOST_LEARNED = 2.0
"""Length of the longest query: what training can add to a sentence, a fifth of what all words of the question give it.
"""


class Chosen(NamedTuple):
    """The sentences that a token selects."""

    entries: Int[Tensor, "batch pos K"]
    """Best first; -1 where fewer share a word."""
    shares: Float[Tensor, "batch pos K"]
    """Their scores by words."""
    margin: Float[Tensor, "batch pos 1"]
    """Total of the weakest above that of the best candidate that was not selected; NaN where there is none."""
    place: Int[Tensor, "batch pos K"]
    """Their places among the candidates."""
    totals: Float[Tensor, "batch pos candidate"]
    """Of all candidates, by the keys of the last refreshing; -inf where there is none."""


class TextGate(nn.Module):
    """Queries, keys and scores.

    Args:
        dim: width of the residual stream.
        slot_dim: width of a slot.
        key_dim: width of learned queries and keys.
        selected: sentences that a token selects.
        sharpness: what totals are multiplied by once the model is trained.
    """

    def __init__(self, dim: int, slot_dim: int, key_dim: int, selected: int, sharpness: float = 1.0):
        super().__init__()
        self.selected, self.sharpness = selected, sharpness
        self.query_proj = nn.Linear(dim, key_dim, bias=False)
        self.key_proj = nn.Linear(slot_dim, key_dim, bias=False)
        self.lexical_gain = nn.Parameter(torch.tensor(_LEXICAL_GAIN))

    def init_projections(self) -> None:
        """Let the learned part start at 0, with keys that its gradient can tell apart."""
        nn.init.zeros_(self.query_proj.weight)
        nn.init.normal_(self.key_proj.weight, std=self.key_proj.in_features**-0.5)

    def query(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos 1 key"]:
        """Learned queries, of a length of at most 2."""
        query: Tensor = self.query_proj(x)
        length = query.float().norm(dim=-1, keepdim=True).clamp(min=_MOST_LEARNED)
        return (query * (_MOST_LEARNED / length)).unsqueeze(2)

    def keys(
        self, slots: Float[Tensor, "sentence pos slot_dim"], there: Bool[Tensor, "sentence pos"]
    ) -> Float[Tensor, "sentence key"]:
        """A key per sentence, of unit size: the mean of its slots, projected."""
        mean = slots.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        projected: Tensor = self.key_proj(mean)
        return F.rms_norm(projected, projected.shape[-1:]) * projected.shape[-1] ** -0.5

    @torch.no_grad()
    def choose(
        self, query: Float[Tensor, "batch pos 1 key"], found: Candidates, keys: Float[Tensor, "entry key"]
    ) -> Chosen:
        """The best candidates by words and by the sentences' latest keys."""
        known = F.embedding(found.entries.clamp(min=0), keys)
        totals = self.lexical_gain * found.scores + torch.einsum("btq,btcq->btc", query.squeeze(2).float(), known)
        totals = totals.masked_fill(found.entries < 0, -torch.inf)
        k = self.selected
        ranked = totals.sort(dim=-1, descending=True, stable=True)  # equal ones stay in the order of the search
        best, place = (values[..., : k + 1] for values in ranked)
        margin = best[..., k - 1] - best[..., k] if best.shape[-1] > k else torch.full_like(best[..., 0], torch.nan)
        margin = margin.masked_fill(margin.isinf(), torch.nan)
        place = place[..., :k]
        return Chosen(
            found.entries.gather(-1, place), found.scores.gather(-1, place), margin.unsqueeze(-1), place, totals
        )

    def scores(
        self,
        query: Float[Tensor, "batch pos 1 key"],
        chosen: Chosen,
        keys: Float[Tensor, "batch pos K key"],
    ) -> tuple[Float[Tensor, "batch pos K"], Float[Tensor, "batch pos K"]]:
        """Gate scores of the selected sentences, which sum to 1 (0 where there is none), and their totals."""
        totals = self.lexical_gain * chosen.shares + torch.einsum("btq,btkq->btk", query.squeeze(2), keys)
        there = chosen.entries >= 0
        sharpness = 1.0 if self.training else self.sharpness  # flat scores let gradients reach every sentence
        scores = (sharpness * totals.float()).masked_fill(~there, -1e9).softmax(-1) * there
        return scores, totals


def alignment_loss(
    totals: Float[Tensor, "asked candidate"], stating: Bool[Tensor, "asked candidate"]
) -> Float[Tensor, ""]:
    """Mean negative log of the share that stating sentences have of the softmax over candidates, in nats.

    Questions of which no stating sentence, or nothing else, is a candidate teach nothing; 0 if there are no others.
    """
    there = totals > -torch.inf
    teaches = stating.any(-1) & (there & ~stating).any(-1)
    if not teaches.any():
        return totals.new_zeros(())
    totals, stating = totals[teaches], stating[teaches]
    return (totals.logsumexp(-1) - totals.masked_fill(~stating, -torch.inf).logsumexp(-1)).mean()
