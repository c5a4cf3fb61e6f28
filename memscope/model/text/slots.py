"""Slots of sentences: one vector a token, made of the model's own embeddings of the token and of those around it.

Nothing is trained for a single sentence, so a sentence that is put into the bank after training is read as the others.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memscope.model.ops.native import native_for
from memscope.model.ops.sparse_read import GatheredSlots, OpenTable, Slots, TableSlots

_BEFORE, _AFTER = 3, 2
"""Tokens before and behind one that its context is made of at first; mixing widens it by two on both sides."""
_PLACES = _BEFORE + 1 + _AFTER
_MIXED = 5
AT_ONCE = 512
"""Sentences that are encoded together: tensors of one size, whose memory the allocator uses again."""
_FEW = 32
"""Fewer sentences than ``AT_ONCE`` are encoded in a multiple of it."""
_STEP = 8
"""Lengths that sentences are encoded at are multiples of it, for the same reason."""


class Projected(NamedTuple):
    """The token embeddings as slots need them, made once in a forward pass."""

    token: Float[Tensor, "vocab half"]
    around: Float[Tensor, "vocab place half"]
    table: OpenTable | None
    """What stands around, read by compiled loops; none where there are none."""


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
        self.around = nn.Linear(dim, _PLACES * half, bias=False)
        self.mix = nn.Conv1d(half, half, _MIXED, bias=False)
        self._kept: tuple[tuple[object, ...], Projected] | None = None
        """What was projected last in a pass that does not train, behind the state of what it was made of."""

    def train(self, mode: bool = True) -> "TextSlots":
        """Training forgets what was projected: the optimiser's loops change weights without a new version of them."""
        if mode:
            self._kept = None
        return super().train(mode)

    def project(self, table: Float[Tensor, "vocab dim"]) -> Projected:
        """Project the model's token embeddings: every token once, not once for every place where it stands.

        Outside training, weights that have not changed are not projected again: a model that writes passes few tokens
        many times.
        """
        if self.training or torch.is_grad_enabled():
            return self._project(table)
        weights = (table, self.token.weight, self.around.weight)
        state = tuple((weight.data_ptr(), weight._version, weight.dtype) for weight in weights)
        made_of = (*state, torch.is_autocast_enabled(table.device.type))
        if self._kept is None or self._kept[0] != made_of:
            self._kept = made_of, self._project(table)
        return self._kept[1]

    def _project(self, table: Float[Tensor, "vocab dim"]) -> Projected:
        unit = F.rms_norm(table, table.shape[-1:])  # embeddings grow in training, slots should not
        around = self.around(unit).unflatten(-1, (_PLACES, -1)).float()
        return Projected(self.token(unit), around, None if native_for(around) is None else OpenTable(around))

    def forward(
        self, ids: Int[Tensor, "sentence pos"], there: Bool[Tensor, "sentence pos"], table: Projected
    ) -> Float[Tensor, "sentence pos slot_dim"]:
        """Slots of sentences; those past the end of a sentence are 0.

        Args:
            ids: token ids; any id past the end.
            there: whether a token stands there.
            table: of ``project``.
        """
        parts = zip(ids.split(AT_ONCE), there.split(AT_ONCE), strict=True)
        return torch.cat([self._encode_no_longer(*part, table) for part in parts])

    @staticmethod
    def spare(sentences: int) -> int:
        """Rows without a token to add to so many sentences, so that tensors have few sizes."""
        return -sentences % (AT_ONCE if sentences > AT_ONCE else _FEW)

    def _encode_no_longer(self, ids: Tensor, there: Tensor, table: Projected) -> Tensor:
        """Only as far as the longest of these sentences goes, but for a few sizes of tensors."""
        longest = -(-int(there.any(0).sum()) // _STEP) * _STEP
        slots = self._encode(ids[:, :longest], there[:, :longest], table)
        return F.pad(slots, (0, 0, 0, ids.shape[1] - slots.shape[1]))

    def _encode(self, ids: Tensor, there: Tensor, table: Projected) -> Tensor:
        near = F.pad(ids, (_BEFORE, _AFTER)).unfold(1, _PLACES, 1) * _PLACES + torch.arange(_PLACES, device=ids.device)
        is_near = F.pad(there, (_BEFORE, _AFTER)).unfold(1, _PLACES, 1).unsqueeze(2).float()
        places: Slots
        if table.table is None:
            places = GatheredSlots(F.embedding(near, table.around.flatten(0, 1)))
        else:
            places = TableSlots(table.table, near)
        context = places.sum(is_near, 0, table.around.shape[-1]).squeeze(2)
        context = F.gelu(context) * there.unsqueeze(-1)
        context = context + F.gelu(self._mix(context))
        return torch.cat([F.embedding(ids, table.token), context], -1) * there.unsqueeze(-1)

    def _mix(self, context: Float[Tensor, "sentence pos half"]) -> Float[Tensor, "sentence pos half"]:
        # As a picture of one row whose channels come last, which is how it lies in memory: nothing is copied.
        picture = context.transpose(1, 2).unsqueeze(2)
        mixed = F.conv2d(picture, self.mix.weight.unsqueeze(2), padding=(0, _MIXED // 2))
        return mixed.squeeze(2).transpose(1, 2)
