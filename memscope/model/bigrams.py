"""A table of bigrams: a row for a hash of every token and the one before it, added to the token's embedding.

It is the plainest rival of a memory that looks entries up by bigrams (``token_shift``): no gate, no read, one addition
a token. After Engram (arXiv 2601.07372), with one table, one hash and no gate.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_MULTIPLIER = 1_000_003
"""A prime far above any vocabulary, so that a pair's two tokens do not trade places under the hash."""


class BigramTable(nn.Module):
    """Rows ``[rows, dim]``, N(0, 0.02), looked up by a hash of two tokens; pairs that fall on one row share it."""

    def __init__(self, rows: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, dim).normal_(std=0.02))

    def forward(
        self, tokens: Int[Tensor, "batch pos"], before: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch pos dim"]:
        """The row of every token and the one before it.

        Args:
            tokens: token ids.
            before: ids that come before the first position; without them it has a row for "no token before".
        """
        first = tokens.new_full((len(tokens),), -1) if before is None else before
        previous = torch.cat([first[:, None], tokens[:, :-1]], dim=1)
        rows = (tokens * _MULTIPLIER + previous + 1) % len(self.weight)
        return nn.functional.embedding(rows, self.weight)
