"""The sections of a configuration: every key with its meaning, default and limits. ``config/load.py`` reads files."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

BlockKind = Literal["memory", "ffn", "both"]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, the docstring under a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(Section):
    """Shape of the decoder. The defaults with ``block: ffn`` are the founding experiment's baseline."""

    vocab_size: int = Field(6400, gt=3)
    """Number of token ids; must be the tokenizer's largest id and one more."""
    dim: int = Field(512, gt=0)
    """Width of the residual stream."""
    n_layers: int = Field(8, gt=0)
    """Number of blocks."""
    n_heads: int = Field(32, gt=0)
    """Query heads of self-attention; divides ``dim``."""
    n_kv_heads: int = Field(8, gt=0)
    """Key/value heads of self-attention (grouped-query attention, arXiv 2305.13245); divides ``n_heads``."""
    max_seq_len: int = Field(512, gt=1)
    """Longest sequence in tokens; also the training window."""
    block: BlockKind | tuple[BlockKind, ...] = "memory"
    """What follows attention: ``memory`` (gate + cross-attention over the bank), ``ffn`` (SwiGLU) or ``both`` side by
    side; one for all layers or one per layer."""
    hidden_dim: int = Field(0, ge=0)
    """Width of the SwiGLU; 0 derives MiniMind's 64 * ceil(8 * dim / 3 / 64)."""
    bigram_rows: int = Field(0, ge=0)
    """Rows of a table that is looked up by a hash of a token and the one before, and added to the token's embedding
    (after Engram, arXiv 2601.07372): the rival of a memory that looks up bigrams. 0 = none."""
    rope_theta: float = Field(1e6, gt=0)
    """Base of the rotary position embedding (arXiv 2104.09864)."""
    norm_eps: float = Field(1e-5, gt=0)
    """Epsilon of RMSNorm (arXiv 1910.07467)."""

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.dim % self.n_heads:
            raise ValueError(f"dim={self.dim} is not a multiple of n_heads={self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"dim / n_heads = {self.head_dim} must be even for rotary embeddings")
        if not isinstance(self.block, str) and len(self.block) != self.n_layers:
            raise ValueError(f"block lists {len(self.block)} kinds for n_layers={self.n_layers}")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int:
        """Width of the SwiGLU after derivation."""
        return self.hidden_dim or 64 * -(-(8 * self.dim // 3) // 64)

    @property
    def blocks(self) -> tuple[BlockKind, ...]:
        """Kind of every block, first layer first."""
        return (self.block,) * self.n_layers if isinstance(self.block, str) else self.block

    @property
    def memory_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that read the bank."""
        return tuple(layer for layer, kind in enumerate(self.blocks) if kind != "ffn")


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


class DataConfig(Section):
    """Where text comes from."""

    train_path: str = ""
    """Training corpus: JSON lines, a JSON list or Parquet with a ``text`` field; also gz, zst, xz, bz2."""
    valid_path: str = ""
    """Validation corpus in the same format; never trained on."""
    tokenizer_path: str | None = None
    """A ``tokenizer.json``; none trains a byte-level BPE of ``vocab_size`` entries on the training corpus."""
    bos_token: str | None = None
    """Token of that tokenizer that opens documents. None takes the one that ``tokenizer_config.json`` or
    ``special_tokens_map.json`` beside it names, or else a well-known name (``<s>``, ``<bos>``, ``[CLS]`` ...); empty
    says that there is none: then the end token opens documents too, as in GPT-2. The run keeps what it took."""
    eos_token: str | None = None
    """Token that ends documents, found likewise; without one ``bos_token`` ends them too."""
    pad_token: str | None = None
    """Token that fills up what nothing reads, and slots past the end of a sentence, found likewise; without one it is
    that which ends documents."""
    cache_dir: str = ".cache/memscope"
    """Folder for packed corpora, named by content."""

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        named = next((key for key in ("bos_token", "eos_token", "pad_token") if getattr(self, key) is not None), None)
        if named and not self.tokenizer_path:
            raise ValueError(f"{named} names a token of tokenizer_path, which is empty; set it, or drop {named}")
        return self


class TrainConfig(Section):
    """The optimisation, and what is measured on the way."""

    epochs: int = Field(1, gt=0)
    """Passes over the training corpus; ignored when ``steps`` is given."""
    steps: int = Field(0, ge=0)
    """Optimiser steps; 0 derives them from ``epochs``."""
    batch_size: int = Field(16, gt=0)
    """Sequences per forward pass and process."""
    accumulation_steps: int = Field(1, gt=0)
    """Forward passes per optimiser step."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    memory_lr_scale: float = Field(1.0, gt=0)
    """Multiplier on the learning rate of bank and gate keys, kept by the schedule (PKM practice: 4 to 10)."""
    lazy_bank: bool = False
    """Update only the entries that were selected in a step: others cost no time, but their momentum stands still
    too."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Final learning rate as a share of the peak."""
    warmup_iters: int = Field(0, ge=0)
    """Steps of linear warm-up before the cosine."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW decay of matrices; norms, embeddings, bank and keys have none."""
    beta2: float = Field(0.95, gt=0, lt=1)
    """Second-moment decay of AdamW (the first is 0.9)."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of blocks and run them again in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile attention and feed-forward layers for training steps (``torch.compile``; on a CPU it needs a C++
    compiler). Hooks inside them are not called then."""
    freeze_bank_steps: int = Field(0, ge=0)
    """Steps at the start in which the entries stay as they were initialised."""
    revive_after: int = Field(0, ge=0)
    """Steps that an entry may go unselected in training before it starts again: from the next sentence of
    ``database_init_path`` that initialises none, or when none is left from a random vector; under the full gate its key
    moves to where a query is, product keys stay (``balance_bias`` makes them selected). 0 = never."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Autocast type of forward and backward; parameters stay float32, but for what ``entry_dtype`` says."""
    seed: int = 1337
    """Seed of initialisation, sampling of sentences and data order."""
    log_interval: int = Field(10, gt=0)
    """Steps between lines of metrics."""
    eval_interval: int = Field(100, gt=0)
    """Steps between validations; the last step always validates."""
    eval_tokens: int = Field(65536, gt=0)
    """Validation tokens per evaluation while training."""
    save_interval: int = Field(100, gt=0)
    """Steps between checkpoints; the last step always saves."""
    keep_checkpoints: int = Field(2, gt=0)
    """Newest checkpoints to keep."""
    sample_interval: int = Field(0, ge=0)
    """Steps between sample generations from the first validation documents; 0 = with the last validation only."""
    profile_interval: int = Field(10, gt=0)
    """Steps between measurements of data, forward, backward and optimiser time."""
    tracker: Literal["tensorboard", "wandb", "swanlab", "trackio", "none"] = "tensorboard"
    """Experiment tracker, through Accelerate; ``metrics.jsonl`` is always written."""
