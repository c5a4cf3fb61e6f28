"""The section ``memory``: the bank, the gate and the read."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from memscope.config.section import Section


class MemoryConfig(Section):
    """The bank, the gate that selects its entries and the cross-attention that reads them."""

    knowledge_num: int = Field(65536, gt=1)
    """Entries in the bank (N)."""
    knowledge_length: int = Field(1, gt=0)
    """Slots per entry (L): 1 = a pooled sentence, more = one slot per sentence token."""
    knowledge_dim: int = Field(128, gt=0)
    """Width of one slot (D)."""
    entry_cosine: float = Field(0.0, ge=0, lt=1)
    """Cosine between any two slots that start random: a part that all share, as sentences of the same words do, makes
    a memory read much the same whatever it selects while its gate knows nothing yet."""
    entry_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that entries, and their moments in training, are kept in. ``bfloat16`` takes half the memory; what is
    computed from them stays float32, and updates are rounded stochastically, so that small ones are not lost
    (arXiv 2010.06192). Needs ``lazy_bank``."""
    bank_groups: int = Field(1, gt=0)
    """Equal parts (G) that the memory layers, in order, and the entries are split in: a layer selects among the
    ``knowledge_num`` / G entries of its group. 1 = one bank that all layers share; the number of memory layers = a bank
    for each. Entries keep one numbering: those of the first group come first."""
    num_selected: int = Field(8, gt=0)
    """Entries that each gate head selects for a token (k)."""
    gate: Literal["full", "product"] = "full"
    """``full`` scores every key, as the experiment did; ``product`` scores two sets of sqrt(N) half keys
    (product keys, arXiv 1907.05242) and needs a square ``knowledge_num``."""
    gate_heads: int = Field(1, gt=0)
    """Independent gate heads (H); a token selects H * k entries."""
    query_dim: int = Field(0, ge=0)
    """Width of gate queries and keys; 0 derives ``knowledge_dim``."""
    token_shift: bool = False
    """The second half of every gate query is that of the token before (token shift, RWKV, arXiv 2305.13048). The rows
    of a product gate's square then follow the token and its columns the one before: entries are looked up by bigrams,
    as Engram's are by hashes of n-grams (arXiv 2601.07372)."""
    ngram_orders: tuple[PositiveInt, ...] = (2, 3)
    """Orders of the n-grams that layers of ``block: ngram`` look up, one a gate head; each of the ``num_selected``
    entries of a head is looked up by a hash of its own (Engram, arXiv 2601.07372)."""
    balance_bias: float = Field(0.0, ge=0)
    """Step of the selection bias that evens out the use of keys without a loss (arXiv 2408.15664), at the peak of the
    learning rate, whose schedule it follows; 0 = none."""
    score_fn: Literal["softmax", "sigmoid", "relu"] = "softmax"
    """Selected raw scores -> gate scores; softmax runs over the k entries of a head."""
    normalize_scores: bool = False
    """Divide a token's gate scores by their mean over all that it selected, so that they say which entry counts for
    more and not how much the memory adds (as ``norm_topk_prob`` of DeepSeek-V3, arXiv 2412.19437). For scores that do
    not compete already."""
    read_heads: int = Field(0, ge=0)
    """Heads of the cross-attention (A); 0 derives ``n_heads``; divides ``dim`` if slots are projected."""
    read_slices: int = Field(1, gt=0)
    """Parts that a slot's columns are split in, each seen by its share of the read heads, as the heads of multi-head
    attention see theirs: many heads at the price of few. For slots that are not projected."""
    read_fn: Literal["softmax", "gelu"] = "softmax"
    """Activation of q.k: ``softmax`` over all selected slots, or the non-competing ``gelu``. A read weight is this
    activation times the gate score of its entry."""
    slot_proj: bool = True
    """Project slots to keys and values; without, they are keys and values as they are, and queries get their width."""
    read_norm: Literal["none", "rms"] = "none"
    """``rms`` normalises the queries of the read, per head, in place of the division of q.k by sqrt(head width)."""
    read_gain: float = Field(1.0, gt=0)
    """Start of that norm's gain. If slots are read as they are, sqrt(``read_slices``) gives q.k the variance 1 at
    first; with less, GELU starts close to linear and the memory adds little."""
    output_gate: bool | Literal["query"] = False
    """Multiply what was read, before the output projection: by SiLU(W h) (``true``; Memory+, arXiv 2412.09764), or by
    the queries that read it as they are before they are normalised or scaled (``query``), which needs no parameters."""
    database_init_path: str | None = None
    """Sentences that entries start from: T-REx, rows with ``sentence``, or one sentence a line; none = random."""

    @model_validator(mode="after")
    def _check(self) -> "MemoryConfig":
        groups, size = self.bank_groups, self.group_size
        per_group = f" / bank_groups={groups}" if groups > 1 else ""
        if self.knowledge_num % groups:
            raise ValueError(
                f"bank_groups={groups} does not divide knowledge_num={self.knowledge_num}; "
                f"try knowledge_num={max(1, size) * groups}"
            )
        if self.num_selected > size:
            raise ValueError(
                f"num_selected={self.num_selected} exceeds knowledge_num={self.knowledge_num}{per_group}; "
                "lower num_selected"
            )
        side = round(size**0.5)
        if self.gate == "product":
            if side * side != size:
                raise ValueError(
                    f"product gate needs a square knowledge_num{per_group}: {size} is none; "
                    f"try {'knowledge_num=' if per_group else ''}{side**2 * groups}"
                )
            if self.key_dim % 2:
                raise ValueError(f"the product gate halves its query: query_dim={self.key_dim} must be even")
        if self.read_slices > 1 and (self.slot_proj or self.knowledge_dim % self.read_slices):
            raise ValueError(
                f"read_slices={self.read_slices} needs slot_proj=false and to divide {self.knowledge_dim} columns"
            )
        if self.read_gain != 1 and self.read_norm == "none":
            raise ValueError("read_gain is the gain of normalised read queries: set read_norm=rms, or read_gain=1")
        if self.score_fn == "softmax" and self.normalize_scores:
            raise ValueError("normalize_scores does nothing for softmax scores; use score_fn=relu or sigmoid")
        if self.score_fn == "softmax" and self.num_selected == 1:
            raise ValueError(
                "num_selected=1 with score_fn=softmax gives every selection the score 1 and the gate no gradient; "
                "use score_fn=sigmoid or select at least 2"
            )
        return self

    @property
    def key_dim(self) -> int:
        """Width of gate queries and keys after derivation."""
        return self.query_dim or self.knowledge_dim

    @property
    def group_size(self) -> int:
        """Entries of one group: those that a layer can select."""
        return self.knowledge_num // self.bank_groups

    @property
    def selected(self) -> int:
        """Selections per token and layer over all gate heads (K = H * k)."""
        return self.gate_heads * self.num_selected


def reachable_entries(layer: int, layers: tuple[int, ...], knowledge_num: int, bank_groups: int) -> slice:
    """The entries that a memory layer can select: the contiguous part of the bank that its group of layers owns."""
    group, size = layers.index(layer) * bank_groups // len(layers), knowledge_num // bank_groups
    return slice(group * size, (group + 1) * size)
