"""Slots of sentences: one vector a token, made of the model's own embeddings of the token and of those around it.

Nothing is trained for a single sentence, so a sentence that is put into the bank after training is read as the others.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

_BEFORE, _AFTER = 3, 2
"""Tokens before and behind one that its context is made of at first; mixing widens it by two on both sides."""
_MIXED = 5


_AT_ONCE = 256
"""Sentences that are encoded together: tensors so small that the allocator uses their memory again."""


class Projected(NamedTuple):
    """The token embeddings as slots need them, made once in a forward pass."""

    token: Float[Tensor, "vocab half"]
    around: Float[Tensor, "vocab place half"]


class TextSlots(nn.Module):
    """Token ids ``[sentence, L]`` -> slots ``[sentence, L, slot_dim]``.

    The first half of a slot is its token; the second is its context: a sum over the tokens around it, each through the
    projection of its place, and a convolution over that.

    Args:
        dim: width of the token embeddings.
        slot_dim: width of a slot.
    """

    def __init__(self, dim: int, slot_dim: int):
        super().__init__()
        half = slot_dim // 2
        self.token = nn.Linear(dim, half, bias=False)
        self.around = nn.Linear(dim, (_BEFORE + 1 + _AFTER) * half, bias=False)
        self.mix = nn.Conv1d(half, half, _MIXED, padding=_MIXED // 2, bias=False)

    def project(self, table: Float[Tensor, "vocab dim"]) -> Projected:
        """Project the model's token embeddings: every token once, not once for every place where it stands."""
        unit = F.rms_norm(table, table.shape[-1:])  # embeddings grow in training, slots should not
        return Projected(self.token(unit), self.around(unit).unflatten(-1, (-1, self.token.out_features)))

    def forward(
        self, ids: Int[Tensor, "sentence pos"], there: Bool[Tensor, "sentence pos"], table: Projected
    ) -> Float[Tensor, "sentence pos slot_dim"]:
        """Slots of sentences; those past the end of a sentence are 0.

        Args:
            ids: token ids; any id past the end.
            there: whether a token stands there.
            table: of ``project``.
        """
        parts = zip(ids.split(_AT_ONCE), there.split(_AT_ONCE), strict=True)
        return torch.cat([self._encode(*part, table) for part in parts])

    def _encode(self, ids: Tensor, there: Tensor, table: Projected) -> Tensor:
        places = table.around
        ends = F.pad(there, (_BEFORE, _AFTER)).unsqueeze(-1)
        padded = F.pad(ids, (_BEFORE, _AFTER))
        context = sum(
            F.embedding(padded[:, place : place + ids.shape[1]], places[:, place])
            * ends[:, place : place + ids.shape[1]]
            for place in range(places.shape[1])
        )
        assert isinstance(context, Tensor)
        context = F.gelu(context) * there.unsqueeze(-1)
        context = context + F.gelu(self.mix(context.transpose(1, 2)).transpose(1, 2))
        return torch.cat([F.embedding(ids, table.token), context], -1) * there.unsqueeze(-1)
