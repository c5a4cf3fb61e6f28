"""The section ``model``: the shape of the decoder."""

from typing import Literal

from pydantic import Field, model_validator

from memscope.base.errors import InputError
from memscope.config.section import Section

BlockKind = Literal["memory", "ngram", "ffn", "both", "text", "text_ffn"]


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
    """The part after attention: ``memory`` (gate + cross-attention over the bank), ``ngram`` (the same, but entries are
    looked up by hashes of n-grams), ``ffn`` (SwiGLU), ``both``, memory and SwiGLU side by side, ``text`` (gate +
    cross-attention over sentences) or ``text_ffn``, text and SwiGLU side by side; one for all layers or one per layer.
    """
    hidden_dim: int = Field(0, ge=0)
    """Width of the SwiGLU; 0 derives MiniMind's 64 * ceil(8 * dim / 3 / 64)."""
    bigram_rows: int = Field(0, ge=0)
    """Rows of a table that is looked up by a hash of a token and the one before, and added to the token's embedding
    (after Engram, arXiv 2601.07372): the rival of a memory that looks up bigrams. 0 = none."""

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

    def expect_room(self, prompt: int, new: int) -> None:
        """Check that a prompt and its continuation fit into the model's window.

        Raises:
            InputError: together they have more tokens than the model reads.
        """
        if prompt + new > self.max_seq_len:
            raise InputError(f"{prompt} prompt + {new} new tokens exceed max_seq_len={self.max_seq_len}; ask for fewer")

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
        return tuple(layer for layer, kind in enumerate(self.blocks) if kind in ("memory", "ngram", "both"))

    @property
    def ngram_layers(self) -> tuple[int, ...]:
        """Those of them that look entries up by hashes of n-grams."""
        return tuple(layer for layer, kind in enumerate(self.blocks) if kind == "ngram")

    @property
    def text_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that read sentences."""
        return tuple(layer for layer, kind in enumerate(self.blocks) if kind in ("text", "text_ffn"))

    @property
    def selecting_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that read the bank or sentences."""
        return tuple(sorted(self.memory_layers + self.text_layers))
