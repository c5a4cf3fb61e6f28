"""Entries that nothing selects start again, from a sentence that initialises none yet, or from chance.

    reviver = Reviver(net, optimizer, FreshStarts(run, pad, seed, cosine))
    reviver.step(step)          # after every optimiser step

As VQ codebooks do (Jukebox, arXiv 2005.00341; SoundStream, 2107.03312), with this difference: an entry is selected by
its key, not by what it says. Under the full gate the key is put where queries are. Under product keys every half key is
shared by sqrt(N) entries, most of them in use, so keys stay: a revived entry says something new where it stood, and
``balance_bias`` is what makes it selected.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn

from memscope.model.gate import MemoryGate
from memscope.model.transformer import MemoryTransformer
from memscope.run.bank_init import FreshStarts

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Reviver:
    """Watches through hooks what training selects, and revives what it has not for ``revive_after`` steps.

    All that lasts from step to step is in the bank's ``EntryStarts``; what is drawn depends on seed, step and entry. So
    a resumed run revives what an uninterrupted one does, and several processes, which put together what they saw, what
    one does.

    Args:
        net: the model as it is trained.
        optimizer: whose moments of revived entries and keys become zero.
        fresh: what they start from.
    """

    def __init__(self, net: MemoryTransformer, optimizer: torch.optim.Optimizer, fresh: FreshStarts):
        assert net.bank is not None and net.bank.starts is not None
        self.net, self.optimizer, self.fresh = net, optimizer, fresh
        self.bank, self.starts = net.bank, net.bank.starts
        self.after = net.cfg.train.revive_after
        self._selected = torch.zeros_like(self.starts.idle, dtype=torch.bool)
        self._queries: dict[int, Tensor] = {}
        self._best: dict[int, Tensor] = {}
        for layer in net.cfg.model.memory_layers:
            self._watch(layer)

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Count the optimiser step that was just made, the ``step``-th, and revive what is due."""
        selected = self._selected
        if _together():
            marks = selected.byte()
            distributed.all_reduce(marks, distributed.ReduceOp.MAX)
            selected = marks.bool()
        self.starts.idle.add_(1).masked_fill_(selected, 0)
        due = (self.starts.idle >= self.after).nonzero().squeeze(1)
        if len(due):
            self._revive(due, step)
        self._selected.zero_()

    def _watch(self, layer: int) -> None:
        """Note what a layer selects in training; under the full gate also the queries of its last batch."""
        memory = self.net.memory_layer(layer)

        def note_indices(point: nn.Module, _: object, indices: Tensor) -> None:
            if point.training:
                self._selected.index_fill_(0, indices.flatten(), True)  # a pass that is made twice marks the same

        def note_best(point: nn.Module, _: object, indices: Tensor) -> None:
            if point.training:
                by_head = indices.unflatten(-1, (memory.gate.heads, -1))
                self._best[layer] = by_head[..., 0].flatten(0, 1) - memory.gate.first

        def note_queries(point: nn.Module, _: object, query: Tensor) -> None:
            if point.training:
                self._queries[layer] = query.detach().flatten(0, 1)

        memory.hook_indices.register_forward_hook(note_indices)
        if memory.gate.kind == "full":
            memory.hook_indices.register_forward_hook(note_best)
            memory.hook_query.register_forward_hook(note_queries)

    def _revive(self, rows: Int[Tensor, " row"], step: int) -> None:
        rows = rows[(rows % self.net.cfg.memory.group_size).argsort(stable=True)]  # groups take sentences in turn
        first, number = int(self.starts.used), torch.arange(len(rows), device=rows.device)
        with_sentence = min(len(rows), self.fresh.n_sentences - first)
        sentence = torch.where(number < with_sentence, first + number, -1)
        slots = self.fresh.slots(rows.cpu().numpy(), np.full(len(rows), step), sentence.cpu().numpy())
        self.bank.start(rows, torch.from_numpy(slots).to(self.bank.entries.device))
        self._forget_moments(self.bank.entries, (rows,))
        if self.net.cfg.memory.gate == "full":
            self._place_keys(rows, step)
        self.starts.idle[rows] = 0
        self.starts.step[rows] = step
        self.starts.sentence[rows] = sentence.int()
        self.starts.used += with_sentence
        self.starts.revived += len(rows)

    def _place_keys(self, rows: Int[Tensor, " row"], step: int) -> None:
        """Point the keys of entries, in every head, the way a token's query pointed in the last batch.

        An entry goes to one token in all layers. Scores are dot products: a key as long as the query would be the best
        of nearly all tokens, so it gets the length, and the selection bias, of the key that the query liked best.
        """
        cfg, layers = self.net.cfg, self.net.cfg.model.memory_layers
        n_tokens = len(self._best[layers[0]]) * (distributed.get_world_size() if _together() else 1)
        chance = np.random.default_rng([cfg.train.seed, step])
        tokens = torch.from_numpy(np.resize(chance.permutation(n_tokens), len(rows))).to(rows.device)
        for layer in layers:
            gate, own = self.net.memory_layer(layer).gate, cfg.entries_of(layer)
            mine = (rows >= own.start) & (rows < own.stop)
            query, best = self._look_up(layer, tokens[mine])
            head, key = torch.arange(gate.heads, device=rows.device), rows[mine] - own.start
            assert isinstance(gate, MemoryGate)
            length = gate.keys[head, best].norm(dim=-1, keepdim=True)
            gate.keys[:, key] = (length * F.normalize(query, dim=-1)).transpose(0, 1).to(gate.keys.dtype)
            self._forget_moments(gate.keys, (slice(None), key))
            if gate.balance.bias is not None:
                gate.balance.bias[:, key] = gate.balance.bias[head, best].transpose(0, 1)

    def _look_up(
        self, layer: int, tokens: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, "row head query"], Int[Tensor, "row head"]]:
        """Queries of tokens in a layer, and their best keys; tokens are numbered through the processes."""
        queries, best = self._queries[layer].float(), self._best[layer]
        if not _together():
            return queries[tokens], best[tokens]
        place = tokens - distributed.get_rank() * len(queries)
        here = (place >= 0) & (place < len(queries))
        found = queries.new_zeros(len(tokens), *queries.shape[1:]), best.new_zeros(len(tokens), best.shape[1])
        for part, source in zip(found, (queries, best), strict=True):
            part[here] = source[place[here]]
            distributed.all_reduce(part)
        return found

    def _forget_moments(self, parameter: nn.Parameter, rows: tuple[Tensor | slice, ...]) -> None:
        state = self.optimizer.state.get(parameter, {})
        for name in _MOMENTS:
            if name in state:
                state[name][rows] = 0


def _together() -> bool:
    """Whether several processes train."""
    return distributed.is_available() and distributed.is_initialized()
