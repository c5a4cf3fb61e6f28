"""The bank of a text layer: token ids of sentences, the search by words, and what one forward pass shares of them."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memscope.config.text import TextConfig
from memscope.text_bank.bank import SentenceBank
from memscope.text_bank.lexical import LexicalIndex


class Candidates(NamedTuple):
    """The sentences that a token may select, by words alone."""

    entries: Int[Tensor, "batch pos candidate"]
    """-1 where fewer share a word."""
    scores: Float[Tensor, "batch pos candidate"]
    """Shares, as ``LexicalIndex`` gives them."""


@dataclass
class Lesson:
    """What a batch of training teaches beside its tokens."""

    step: int
    """Number of the training step."""
    rows: Int[Tensor, " asked"]
    positions: Int[Tensor, " asked"]
    """Where in the batch a fact is asked."""
    answers: Int[Tensor, " asked"]
    """The first token of each answer."""
    stating: list[Int[Tensor, " _entry"]]
    """Sentences that state it."""
    swapped: dict[int, list[int]]
    """Token ids of the sentences that read otherwise for this step."""
    blocked: list[np.ndarray]
    """Sentences that each row of the batch must not select."""
    losses: list[Tensor] = field(default_factory=list)
    """The weighted losses of every text layer, filled by the forward pass."""

    def states(self, entries: Int[Tensor, "asked entry"]) -> Bool[Tensor, "asked entry"]:
        """Whether entries, some a question, are sentences that state its fact."""
        return torch.stack([torch.isin(row, own) for row, own in zip(entries, self.stating, strict=True)])


class TextBank(nn.Module):
    """Sentences as the model reads them. They are no weights: a run keeps them beside its model and can replace them.

    Args:
        config: the text section; ``fill`` gives the sentences.
    """

    ids: Tensor
    there: Tensor

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.index: LexicalIndex | None = None
        self.sentences: SentenceBank
        """What the bank was filled with."""
        self.register_buffer("ids", torch.zeros(0, 1, dtype=torch.int64), persistent=False)
        self.register_buffer("there", torch.zeros(0, 1, dtype=torch.bool), persistent=False)
        self.lesson: Lesson | None = None
        """Of the batch that is being trained on."""

    def fill(self, bank: SentenceBank, index: LexicalIndex) -> None:
        """Hold these sentences in place of any before."""
        self.index, self.sentences = index, bank
        self.ids = torch.from_numpy(bank.ids.astype(np.int64)).to(self.ids.device)
        self.there = (torch.arange(bank.ids.shape[1]) < torch.from_numpy(bank.lengths)[:, None]).to(self.ids.device)

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, tokens: Int[Tensor, "batch pos"]) -> Candidates:
        """The sentences that share most with the text up to every token."""
        assert self.index is not None, "the bank is empty: fill it"
        blocked = self.lesson.blocked if self.lesson is not None else None
        found = self.index.search(tokens.cpu().numpy(), self.config.candidates, blocked)
        return Candidates(*(torch.from_numpy(values).to(tokens.device) for values in found))

    def read(
        self, entries: Int[Tensor, " row"], lesson: Lesson | None = None
    ) -> tuple[Int[Tensor, "row slot"], Bool[Tensor, "row slot"]]:
        """Token ids of some sentences, as a lesson has them, and where there are any."""
        ids, there = self.ids[entries], self.there[entries]
        if lesson is not None and lesson.swapped:
            place = {int(entry): row for row, entry in enumerate(entries.tolist())}
            for entry, swapped in lesson.swapped.items():
                if (row := place.get(entry)) is not None:
                    n = min(len(swapped), ids.shape[1])
                    ids[row, :n] = torch.tensor(swapped[:n], device=ids.device)
                    there[row] = torch.arange(ids.shape[1], device=ids.device) < n
        return ids, there
