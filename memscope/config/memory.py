"""The section ``memory``: the bank, the gate and the read."""

from typing import Literal

from pydantic import Field, model_validator

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
    computed from them stays float32, and updates are rounded up or down by chance, so that small ones are not lost
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
    gate_hidden: int = Field(0, ge=0)
    """Width of the hidden layer of an MLP that makes gate queries; 0 = one matrix."""
    query_norm: Literal["none", "rms", "layer", "batch"] = "none"
    """Normalisation of gate queries before scoring; ``batch`` as PKM (arXiv 1907.05242): in training it sees all tokens
    of the batch, also later ones."""
    token_shift: bool = False
    """The second half of every gate query is that of the token before (token shift, RWKV, arXiv 2305.13048). The rows
    of a product gate's square then follow the token and its columns the one before: entries are looked up by bigrams,
    as Engram's are by hashes of n-grams (arXiv 2601.07372)."""
    shared_keys: bool = False
    """All layers score the same gate keys instead of their own."""
    score_noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise on the scores that selection sees in training."""
    score_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of keys that selection does not see for a token in training (sigma-MoE's expert dropout, 2310.10837)."""
    balance_bias: float = Field(0.0, ge=0)
    """Step of the selection bias that evens out the use of keys without a loss (arXiv 2408.15664), at the peak of the
    learning rate, whose schedule it follows; 0 = none."""
    balance_loss: float = Field(0.0, ge=0)
    """Weight of the Switch balance loss (arXiv 2101.03961); under the full gate it scores all keys with gradient."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of the z-loss (arXiv 2202.08906) over the scores of keys; likewise."""
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
    read_fn: Literal["softmax", "gelu", "none"] = "softmax"
    """Activation of q.k: ``softmax`` over all selected slots, or the non-competing ``gelu``. A read weight is this
    activation times the gate score of its entry; with ``none`` it is the gate score alone (PKM, arXiv 1907.05242)."""
    slot_use: Literal["whole", "halves"] = "whole"
    """What is key and value of a slot: all of it both, or its first half the key and its second the value (a rank-one
    expert, PEER, arXiv 2407.04153)."""
    slot_proj: bool = True
    """Project slots to keys and values; without, they are keys and values as they are, and queries get their width."""
    read_norm: Literal["none", "rms"] = "none"
    """``rms`` normalises the queries of the read, per head, in place of the division of q.k by sqrt(head width)."""
    read_gain: float = Field(1.0, gt=0)
    """Start of that norm's gain. If slots are read as they are, sqrt(``read_slices``) gives q.k the variance 1 at
    first; with less, GELU starts close to linear and the memory adds little."""
    residual_scale: float = Field(0.0, ge=0)
    """Start of a learned factor, one a layer, on what the memory adds (as LayerScale, arXiv 2103.17239); 0 = none."""
    output_gate: bool | Literal["query"] = False
    """Multiply what was read, before the output projection: by SiLU(W h) (``true``; Memory+, arXiv 2412.09764), or by
    the queries that read it as they are before they are normalised or scaled (``query``), which needs no parameters."""
    absorbed: bool = True
    """Fold the key and value projections into query and output instead of projecting every selected slot: same
    result, less work (as DeepSeek-V2's MLA does, arXiv 2405.04434)."""
    bank_ema: float = Field(0.0, ge=0, lt=1)
    """Decay, per step, with which entries follow the mean query of the tokens that read them, as VQ-VAE's codebook
    (arXiv 1711.00937, appendix A.1; there 0.99), in place of a gradient; 0 = entries are trained by gradient. For
    entries of one slot that are read as they are, by normalised queries."""
    frozen_share: float = Field(0.0, ge=0, le=1)
    """Share of the entries, the first of every group, that keep what they start with: sentences that can be read to the
    end."""
    database_init_path: str | None = None
    """Sentences that entries start from: T-REx, rows with ``sentence``, or one sentence a line; none = random."""
    database_choice: Literal["random", "kmeans"] = "random"
    """Which sentences, if there are more than entries: random ones, or the nearest to the centres of as many clusters
    of all (k-means over what entries would start from)."""
    embedding_init_path: str | None = None
    """Run folder whose token embeddings turn sentences into entries; none = this model's own, at initialisation."""

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
        if groups > 1 and self.shared_keys:
            raise ValueError(
                "shared_keys=true needs bank_groups=1: a key would stand for one entry of each group; drop one of them"
            )
        if self.entry_dtype == "bfloat16" and self.slot_proj and not self.absorbed:
            raise ValueError("entry_dtype=bfloat16 needs absorbed=true, without which all entries have a gradient")
        if self.bank_ema and (wrong := self._not_followed()):
            raise ValueError(f"bank_ema lets entries follow the queries that read them as they are: set {wrong}")
        side = round(size**0.5)
        if self.gate == "product":
            if side * side != size:
                raise ValueError(
                    f"product gate needs a square knowledge_num{per_group}: {size} is none; "
                    f"try {'knowledge_num=' if per_group else ''}{side**2 * groups}"
                )
            if self.key_dim % 2:
                raise ValueError(f"the product gate halves its query: query_dim={self.key_dim} must be even")
        if self.slot_use == "halves" and self.knowledge_dim % 2:
            raise ValueError(f"slot_use=halves needs an even knowledge_dim, got {self.knowledge_dim}")
        seen = self.knowledge_dim // (2 if self.slot_use == "halves" else 1)
        if self.read_slices > 1 and (self.slot_proj or seen % self.read_slices):
            raise ValueError(f"read_slices={self.read_slices} needs slot_proj=false and to divide {seen} columns")
        if self.read_gain != 1 and (self.read_norm == "none" or self.read_fn == "none"):
            raise ValueError("read_gain is the gain of normalised read queries: set read_norm=rms, or read_gain=1")
        if self.output_gate == "query" and self.read_fn == "none":
            raise ValueError("output_gate=query needs queries: set read_fn=gelu or softmax")
        if self.score_fn == "softmax" and self.normalize_scores:
            raise ValueError("normalize_scores does nothing for softmax scores; use score_fn=relu or sigmoid")
        if self.score_fn == "softmax" and self.num_selected == 1:
            raise ValueError(
                "num_selected=1 with score_fn=softmax gives every selection the score 1 and the gate no gradient; "
                "use score_fn=sigmoid or select at least 2"
            )
        return self

    def _not_followed(self) -> str:
        """What has to change so that a query can stand for an entry."""
        wanted = {
            "slot_proj=false": not self.slot_proj,
            "knowledge_length=1": self.knowledge_length == 1,
            "slot_use=whole": self.slot_use == "whole",
            "read_norm=rms": self.read_norm == "rms",
            "read_fn=gelu or softmax": self.read_fn != "none",
        }
        return ", ".join(change for change, done in wanted.items() if not done)

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
