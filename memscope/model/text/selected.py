"""The sentences that the tokens of a batch select, and their slots, each made once."""

from copy import copy

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memscope.model.ops.native import native_for
from memscope.model.ops.softmax_read import can_softmax_read, softmax_read
from memscope.model.ops.sparse_read import GatheredSlots, OpenTable, Slots, TableSlots
from memscope.model.text.bank import Lesson, TextBank
from memscope.model.text.slots import Projected, TextSlots


class Selected:
    """Selected sentences of a batch.

    Args:
        encode: makes slots.
        table: the projected token embeddings that it makes them of.
        bank: the sentences.
        lesson: in whose words some sentences stand.
        entries: sentences that every token selects, -1 for none.
    """

    def __init__(
        self,
        encode: TextSlots,
        table: Projected,
        bank: TextBank,
        lesson: Lesson | None,
        entries: Int[Tensor, "batch pos K"],
    ):
        self.entries = entries
        unique, place = entries.clamp(min=0).unique(return_inverse=True)
        ids, there = bank.read(unique, lesson)
        order = there.sum(1).argsort()  # those of like length are encoded together
        ids, there, self.place = ids[order], there[order], order.argsort()[place]
        spare = (0, 0, 0, encode.spare(len(ids)))
        self.ids, self.there = F.pad(ids, spare), F.pad(there, spare)
        self.values: Float[Tensor, "sentence slot width"] = encode(self.ids, self.there, table).float()
        self._table = OpenTable(self.values)

    @property
    def length(self) -> int:
        """Slots of the longest sentence."""
        return self.there.shape[1]

    def read(
        self,
        query: Float[Tensor, "batch pos head width"],
        scores: Float[Tensor, "batch pos K"],
        nothing: Float[Tensor, " head"],
    ) -> Float[Tensor, "batch pos head width"] | None:
        """What ``TextRead`` reads of all tokens, in one pass; none where there are no loops for it."""
        if not can_softmax_read(self.values):
            return None
        lengths = self.there.sum(-1)[self.place] * (scores > 0)
        return softmax_read(query, self._table, self.place * self.length, lengths, log_scores(scores), nothing)

    def slots(self) -> Slots:
        """To be read by dot products and sums, ``[batch, pos, K * L]``."""
        if native_for(self.values) is None:
            gathered = F.embedding(self.place, self.values.flatten(1))
            return GatheredSlots(gathered.unflatten(-1, (self.length, -1)).flatten(2, 3))
        rows = self.place.unsqueeze(-1) * self.length + torch.arange(self.length, device=self.place.device)
        return TableSlots(self._table, rows.flatten(-2))

    def is_there(self) -> Bool[Tensor, "batch pos slot"]:
        """Whether a token stands in a slot."""
        return self.there[self.place].flatten(-2)

    def of(self, rows: Int[Tensor, " asked"], positions: Int[Tensor, " asked"]) -> "Selected":
        """Those of some tokens, as a batch of one text."""
        part = copy(self)
        part.entries, part.place = self.entries[rows, positions][None], self.place[rows, positions][None]
        return part

    def holds(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos K slot"]:
        """Whether a slot that is selected holds a token, one a place."""
        return (self.ids[self.place] == tokens[..., None, None]) & self.there[self.place]


def log_scores(scores: Float[Tensor, "batch pos K"]) -> Float[Tensor, "batch pos K"]:
    """What a gate score adds to the logits of a sentence's slots."""
    return scores.clamp(min=1e-9).log()
