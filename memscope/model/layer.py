"""The memory that stands where a feed-forward layer stood: a bank of entries, a gate that selects, a read.

    x [batch, pos, dim] --MemoryGate--> indices, gate scores [batch, pos, K]
    MemoryBank[indices] --CrossAttentionMemory(x)--> out [batch, pos, dim]

K = H * k: every one of H gate heads selects k entries. A slot's **read weight** in a read head is the activation
of q.k (softmax over all selected slots, or GELU) times the gate score of its entry. Each step passes a HookPoint,
so what is selected and read can be recorded and changed (``record/loop.py``, ``run_with_hooks``).
"""

from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from memscope.config.memory import MemoryConfig
from memscope.model.bank import MemoryBank, OpenBank
from memscope.model.gate import MemoryGate
from memscope.model.ngram_gate import NgramGate
from memscope.model.read import CrossAttentionMemory


class MemoryLayer(nn.Module):
    """Gate and read of one block; the bank comes from outside because layers share it.

    Hook points, with H gate heads, A read heads, K = H * k selections, L slots per entry:
    ``hook_query`` ``[batch, pos, H, query]``, ``hook_indices`` and ``hook_gate_scores`` ``[batch, pos, K]``,
    ``hook_margin`` and ``hook_score_margin`` ``[batch, pos, H]`` and ``hook_by_score`` ``[batch, pos, K]`` (nothing in
    the model reads these three; the last two are made if hooked), ``hook_pattern`` ``[batch, pos, A, K * L]``.
    A hook that changes indices changes what is read; the gate scores stay those of the entries that were selected
    first unless their hook changes them too.

    Args:
        dim: width of the residual stream.
        read_heads: heads of the read.
        config: the memory's.
        first: number of the first entry of the layer's group.
        hashed: entries are looked up by hashes of n-grams, not by keys; hook_query then holds a raw score a lookup.
    """

    def __init__(self, dim: int, read_heads: int, config: MemoryConfig, first: int = 0, hashed: bool = False):
        super().__init__()
        self.gate = NgramGate(dim, config, first) if hashed else MemoryGate(dim, config, first)
        self.read = CrossAttentionMemory(dim, read_heads, config)
        self.hook_query, self.hook_indices, self.hook_gate_scores = HookPoint(), HookPoint(), HookPoint()
        self.hook_margin, self.hook_score_margin, self.hook_by_score = HookPoint(), HookPoint(), HookPoint()
        self.hook_pattern = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos dim"], bank: MemoryBank | OpenBank) -> Float[Tensor, "batch pos dim"]:
        """The memory's output, to be added to the residual stream, for normalised input ``x``."""
        compare = self.hook_score_margin.has_hooks() or self.hook_by_score.has_hooks()
        selection = self.gate.select(self.hook_query(self.gate.query(x)), compare=compare)
        indices = self.hook_indices(selection.indices)
        scores = self.hook_gate_scores(selection.scores)
        self.hook_margin(selection.margin)
        if compare:
            self.hook_score_margin(selection.score_margin)
            self.hook_by_score(selection.by_score)
        watch = self.hook_pattern if self.hook_pattern.has_hooks() else None
        out: Tensor = self.read(x, bank(indices), scores, watch)
        return out
