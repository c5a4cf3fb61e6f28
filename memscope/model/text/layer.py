"""The text layer: a token finds sentences by its words, and reads their words.

x [batch, pos, dim] --TextGate over candidates--> sentences, gate scores [batch, pos, K]
TextSlots[sentences] --TextRead(x)--> out [batch, pos, dim]
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from memscope.config.text import TextConfig
from memscope.model.text.bank import Candidates, Lesson, TextBank
from memscope.model.text.gate import Chosen, TextGate, alignment_loss
from memscope.model.text.read import TextRead, read_alignment_loss
from memscope.model.text.selected import Selected
from memscope.model.text.slots import TextSlots

_KEYS_AT_ONCE = 1024


class OpenText:
    """The bank as the text layers of one forward pass share it.

    Args:
        bank: the sentences.
        found: the candidates of the tokens of this pass.
        table: the model's token embeddings.
    """

    def __init__(self, bank: TextBank, found: Candidates, table: Float[Tensor, "vocab dim"]):
        self.bank, self.found, self.table = bank, found, table
        self.lesson = bank.lesson
        """Of this pass, also while a block of it is computed again for the gradients."""


class TextLayer(nn.Module):
    """Gate and read of one block.

    Hook points, with A read heads, K sentences, L slots per sentence: ``hook_query`` ``[batch, pos, 1, key]``,
    ``hook_margin`` ``[batch, pos, 1]``, ``hook_indices`` and ``hook_gate_scores`` ``[batch, pos, K]``,
    ``hook_pattern`` ``[batch, pos, A, K * L]``; what a head's weights lack to 1 it reads of nothing. A sentence -1 is
    none; its score is 0.

    Args:
        dim: width of the residual stream.
        config: the text section.
        first: number of the first sentence among the entries of the model.
    """

    def __init__(self, dim: int, config: TextConfig, first: int = 0):
        super().__init__()
        self.first, self.config = first, config
        self.slots = TextSlots(dim, config.slot_dim)
        self.gate = TextGate(
            dim, config.slot_dim, config.text_key_dim, config.sentences_selected, config.gate_sharpness
        )
        self.read = TextRead(dim, config.slot_dim, config.text_heads)
        self.hook_query, self.hook_indices, self.hook_gate_scores = HookPoint(), HookPoint(), HookPoint()
        self.hook_margin, self.hook_pattern = HookPoint(), HookPoint()
        self.selection: tuple[Tensor, Tensor]
        """Sentences and gate scores of the pass under way, before any hook changes them."""
        self._keys: Tensor | None = None
        self._made_of: tuple[int, ...] = ()
        """State of the weights that the keys were made of; while a run trains, the number of the interval."""
        self._ids: Tensor | None = None
        """The sentences that they are keys of."""

    def init_projections(self) -> None:
        """See ``TextGate`` and ``TextRead``; the token half of a slot is an orthogonal projection of its embedding."""
        nn.init.orthogonal_(self.slots.token.weight)
        nn.init.normal_(self.slots.around.weight, std=(6 * self.slots.around.in_features) ** -0.5)
        self.gate.init_projections()
        self.read.init_projections(self.slots.token.weight.data)

    def forward(self, x: Float[Tensor, "batch pos dim"], text: OpenText) -> Float[Tensor, "batch pos dim"]:
        """What the layer adds to the residual stream, for normalised input ``x``."""
        query = self.hook_query(self.gate.query(x))
        chosen = self.gate.choose(query, text.found, self._latest_keys(text))
        table = self.slots.project(text.table)
        selected = Selected(self.slots, table, text.bank, text.lesson, chosen.entries)
        keys = F.embedding(selected.place, self.gate.keys(selected.values, selected.there))
        scores, totals = self.gate.scores(query, chosen, keys)
        if text.lesson is not None and self.training:
            self._teach_gate(text, query, chosen, totals)
        numbers = torch.where(chosen.entries < 0, -1, chosen.entries + self.first)
        self.selection = (numbers, scores)
        self.hook_margin(chosen.margin)
        entries = self.hook_indices(numbers)
        scores = self.hook_gate_scores(scores)
        if entries is not numbers:
            entries = torch.where(entries < 0, -1, entries - self.first)
            scores = scores.masked_fill(entries < 0, 0.0)
            selected = Selected(self.slots, table, text.bank, text.lesson, entries)
        if text.lesson is not None and self.training:
            self._teach_read(text.lesson, x, selected, scores)
        watch = self.hook_pattern if self.hook_pattern.has_hooks() else None
        out: Tensor = self.read(x, selected, scores, watch)
        return out

    @torch.no_grad()
    def values(
        self, bank: TextBank, sentences: Int[Tensor, " row"], table: Float[Tensor, "vocab dim"]
    ) -> Float[Tensor, "row dim"]:
        """What reading each sentence adds to the residual stream, all its tokens and all heads alike."""
        ids, there = bank.read((sentences - self.first).to(bank.ids.device))
        mean = self.slots(ids, there, self.slots.project(table)).sum(1) / there.sum(1, keepdim=True)
        out: Tensor = self.read.o_proj(self.read.v_proj(mean))
        return out

    @torch.no_grad()
    def _latest_keys(self, text: OpenText) -> Float[Tensor, "entry key"]:
        """Keys of all sentences. In training they lag behind the weights by less than the interval."""
        lesson, bank = text.lesson, text.bank
        weights = (text.table, *self.slots.parameters(), self.gate.key_proj.weight)
        made_of = tuple(weight._version for weight in weights)
        if lesson is not None and self.training:
            made_of = (lesson.step // self.config.refresh_interval,)
        if self._keys is None or self._ids is None or made_of != self._made_of or bank.ids.shape != self._ids.shape:
            self._keys = text.table.new_empty((len(bank), self.gate.key_proj.out_features), dtype=torch.float32)
            changed = torch.arange(len(bank), device=bank.ids.device)
        elif bank.ids is self._ids:
            return self._keys
        else:  # some sentences were edited
            self._keys = self._keys.clone()
            changed = (bank.ids != self._ids).any(-1).nonzero()[:, 0]
        table = self.slots.project(text.table)
        for chunk in changed.split(_KEYS_AT_ONCE):
            ids, there = bank.ids[chunk], bank.there[chunk]
            self._keys[chunk] = self.gate.keys(self.slots(ids, there, table), there).float()
        self._ids, self._made_of = bank.ids, made_of
        return self._keys

    def _teach_gate(self, text: OpenText, query: Tensor, chosen: Chosen, totals: Tensor) -> None:
        """Note the alignment loss of this batch: selected sentences by their keys as they are, others by the latest."""
        lesson = text.lesson
        assert lesson is not None and self._keys is not None
        rows, positions = lesson.rows, lesson.positions
        if not len(rows) or not self.config.alignment:
            return
        found = text.found.entries[rows, positions]
        known = F.embedding(found.clamp(min=0), self._keys)
        all_totals = self.gate.lexical_gain * text.found.scores[rows, positions]
        all_totals = all_totals + torch.einsum("nq,ncq->nc", query[rows, positions, 0], known)
        all_totals = all_totals.scatter(-1, chosen.place[rows, positions], totals[rows, positions].to(all_totals))
        all_totals = all_totals.masked_fill(found < 0, -torch.inf)
        lesson.losses.append(self.config.alignment * alignment_loss(all_totals, lesson.states(found)))

    def _teach_read(self, lesson: Lesson, x: Tensor, selected: Selected, scores: Tensor) -> None:
        """Note the loss of what is read where facts are asked."""
        asked = (lesson.rows, lesson.positions)
        if not len(lesson.rows) or not self.config.read_alignment:
            return
        there = selected.of(*asked)
        stating = lesson.states(there.entries[0]).unsqueeze(-1)
        answer = there.holds(lesson.answers[None])[0] & stating
        pattern = self.read.pattern(x[asked][None], there, scores[asked][None])[0]
        lesson.losses.append(self.config.read_alignment * read_alignment_loss(pattern, answer.flatten(1)))
