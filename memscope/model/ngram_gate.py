"""The gate of a memory layer that looks entries up by hashes of n-grams, as Engram does (arXiv 2601.07372).

Every head stands for n-grams of one order: the last n tokens up to and with the one at hand. Each of its k hashes
sends them to a part of the entries of its own. So an entry stands for the n-grams that fall on it, and is selected
wherever one of them stands, whatever came before. What is learned is how much a lookup counts: its gate score.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from memscope.config.memory import MemoryConfig
from memscope.model.balance import Balance
from memscope.model.gate import Selection

_MIX = 6364136223846793005
"""Multiplier of the linear congruential generator of Knuth's MMIX: it spreads low bits to high ones."""
_NO_TOKEN = -1
"""What stands before the first token."""


class NgramGate(nn.Module):
    """Selects by hashes, scores by the residual stream. It has the hooks and the selections of a ``MemoryGate``.

    Args:
        dim: width of the residual stream.
        config: the memory's.
        first: number of the first entry of the gate's group of entries.
    """

    kind = "ngram"
    factors: Tensor
    tokens: Int[Tensor, "batch pos"]
    """Of the pass under way; the model gives them before its first layer."""

    def __init__(self, dim: int, config: MemoryConfig, first: int = 0):
        super().__init__()
        self.first, self.orders = first, config.ngram_orders
        self.heads, self.hashes = config.gate_heads, config.num_selected
        self.part = config.group_size // config.selected
        """Entries that one hash sends n-grams to."""
        self.proj = nn.Linear(dim, config.selected, bias=False)
        self.balance = Balance((1,), 0.0)
        chance = torch.Generator().manual_seed(0)  # a function of the config alone: a run is read by another program
        shape = (self.heads, self.hashes, max(self.orders))
        odd = torch.randint(1, 1 << 30, shape, generator=chance) * 2 + 1
        self.register_buffer("factors", odd, persistent=False)

    def query(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos head hash"]:
        """Raw scores of the lookups, one a hash."""
        return self.proj(x).unflatten(-1, (self.heads, self.hashes))

    def select(
        self, query: Float[Tensor, "batch pos head hash"], biased: bool = True, compare: bool = False
    ) -> Selection:
        """The entries that the n-grams of the pass under way fall on, and their gate scores, 2 sigmoid(query).

        Args:
            query: of ``query``.
            biased: as for ``MemoryGate``; there is no bias.
            compare: also say what raw scores would have selected: the same, since they select nothing.
        """
        indices = torch.stack([self._look_up(head) for head in range(self.heads)], 2).flatten(2)
        scores = 2 * query.float().sigmoid().flatten(2)
        nothing_rejected = scores.new_full(query.shape[:3], torch.nan)
        beside = (nothing_rejected, torch.ones_like(indices, dtype=torch.bool)) if compare else (None, None)
        return Selection(indices, scores, nothing_rejected, *beside)

    def _look_up(self, head: int) -> Int[Tensor, "batch pos hash"]:
        """Entries of one head: a hash of every token and those before it, the nearest first."""
        tokens, parts = self.tokens, torch.arange(self.hashes, device=self.tokens.device) + head * self.hashes
        state = tokens.new_zeros(*tokens.shape, self.hashes)
        for back in range(self.orders[head]):
            token = F.pad(tokens, (back, 0), value=_NO_TOKEN)[:, : tokens.shape[1]] + 2  # so that none is 0
            state = (state ^ (token.unsqueeze(-1) * self.factors[head, :, back])) * _MIX
            state = state ^ (state >> 29)
        return self.first + parts * self.part + state.remainder(self.part)
