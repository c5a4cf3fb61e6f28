"""MiniMind-style decoder whose blocks hold a memory or a feed-forward layer, as a TransformerLens HookedRootModule.

    model = MemoryTransformer(config, seed=0)
    logits = model(tokens)                       # [batch, pos, vocab]
    logits, cache = model.run_with_cache(tokens, names_filter=lambda name: "memory" in name)

Architecture after jingyaogong/minimind (Apache-2.0) as the founding experiment used it: RMSNorm before each half
block, rotary positions, grouped-query attention, SwiGLU, tied embeddings, no biases. A model whose blocks are all
``ffn`` can use a KV cache; a memory model has none.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from memscope.base.words import Named
from memscope.config.load import Config
from memscope.config.model import ModelConfig
from memscope.model.attention import attention_pattern, causal_attention, repeat_heads
from memscope.model.balance import Balance
from memscope.model.bank import MemoryBank, OpenBank
from memscope.model.bigrams import BigramTable
from memscope.model.layer import MemoryLayer
from memscope.model.ops.fused import RMSNorm
from memscope.model.text.bank import TextBank
from memscope.model.text.layer import OpenText, TextLayer

NORM_EPS = 1e-5
"""Epsilon of RMSNorm (arXiv 1910.07467) on the residual stream."""
_ROPE_BASE = 1e6
"""Base of the rotary position embedding (arXiv 2104.09864), MiniMind's."""
Rotation = Complex[Tensor, "pos half_head_dim"]
"""``cos + i sin`` of every position's angles, one for each pair of columns."""


class KVCache:
    """Keys and values of the positions seen so far, one pair per layer; only ``ffn`` models use it."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device):
        shape = (batch, config.max_seq_len, config.n_kv_heads, config.head_dim)
        self.layers = [
            (torch.zeros(shape, device=device), torch.zeros(shape, device=device)) for _ in range(config.n_layers)
        ]
        self.length = 0
        """Positions filled."""
        self.last: Tensor | None = None
        """The token at the last of them, ``[batch]``."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values ``[batch, pos, kv_head, head_dim]`` and return all up to here."""
        end = self.length + k.shape[1]
        for stored, new in zip(self.layers[layer], (k, v), strict=True):
            stored[:, self.length : end] = new
        stored_k, stored_v = self.layers[layer]
        return stored_k[:, :end].to(k.dtype), stored_v[:, :end].to(v.dtype)


class Attention(nn.Module):
    """Causal grouped-query self-attention with rotary positions.

    A hook on ``hook_pattern`` switches to explicit attention, which agrees within rounding.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.dim, config.n_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * self.head_dim, config.dim, bias=False)
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()  # [batch, pos, head, head_dim]
        self.hook_pattern = HookPoint()  # [batch, head, query_pos, key_pos]
        self.hook_z = HookPoint()  # [batch, pos, head, head_dim]

    def forward(
        self, x: Float[Tensor, "batch pos dim"], rotation: Rotation, cache: KVCache | None = None
    ) -> Float[Tensor, "batch pos dim"]:
        """The attention's output, to be added to the residual stream, for normalised input ``x``."""
        q, k, v = (
            rearrange(proj(x), "b t (h d) -> b t h d", d=self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k, v = self.hook_q(_rotate(q, rotation)), self.hook_k(_rotate(k, rotation)), self.hook_v(v)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        if self.hook_pattern.has_hooks():
            pattern = self.hook_pattern(attention_pattern(q, k)).to(v.dtype)
            z = (pattern @ repeat_heads(v, q).transpose(1, 2)).transpose(1, 2)
        else:
            z = causal_attention(q, k, v)
        z = self.hook_z(z)
        out: Tensor = self.o_proj(z.flatten(2))
        return out


class SwiGLU(nn.Module):
    """Feed-forward layer ``W2(SiLU(W1 x) * W3 x)`` (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos dim"]:
        """The layer's output, to be added to the residual stream, for normalised input ``x``."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    """Attention, then a memory, sentences, a feed-forward layer or two of them side by side, each on the normalised
    residual stream.
    """

    def __init__(self, config: Config, layer: int):
        super().__init__()
        model = config.model
        self.attn_norm = RMSNorm(model.dim, eps=NORM_EPS)
        self.attn = Attention(model, layer)
        self.ffn_norm = RMSNorm(model.dim, eps=NORM_EPS)
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_out = HookPoint()
        self.kind = model.blocks[layer]
        if layer in model.text_layers:
            self.text = TextLayer(model.dim, config.text, first=config.first_sentence)
            self.hook_text_out = HookPoint()
        if layer in model.memory_layers:
            first, hashed = config.entries_of(layer).start, self.kind == "ngram"
            self.memory = MemoryLayer(model.dim, config.read_heads, config.memory, first, hashed)
            self.hook_mem_out = HookPoint()
        if self.kind in ("ffn", "both", "text_ffn"):
            self.ffn = SwiGLU(model.dim, model.ffn_dim)
            self.hook_mlp_out = HookPoint()
        self.compiled: dict[str, Callable[..., Tensor]] = {}
        """Compiled forward passes by layer, for training."""

    def forward(
        self,
        x: Float[Tensor, "batch pos dim"],
        rotation: Rotation,
        bank: MemoryBank | OpenBank | None,
        cache: KVCache | None = None,
        text: OpenText | None = None,
    ) -> Float[Tensor, "batch pos dim"]:
        """Residual stream after this block."""
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(x + self.hook_attn_out(self._run("attn")(self.attn_norm(x), rotation, cache)))
        normed = self.ffn_norm(x)
        if hasattr(self, "ffn"):
            x = x + self.hook_mlp_out(self._run("ffn")(normed))
        if hasattr(self, "memory"):
            x = x + self.hook_mem_out(self.memory(normed, bank))
        if hasattr(self, "text"):
            x = x + self.hook_text_out(self.text(normed, text))
        out: Tensor = self.hook_resid_post(x)
        return out

    def compile_layers(self) -> None:
        """Run attention and feed-forward layer compiled while training; hooks in them are not called then."""
        # Not the memory: its loops are compiled already. Not in evaluation: compiled code does not see hooks that come.
        for name in ("attn", "ffn"):
            if hasattr(self, name):
                self.compiled[name] = torch.compile(getattr(self, name).forward)

    def _run(self, layer: str) -> Callable[..., Tensor]:
        plain: Callable[..., Tensor] = getattr(self, layer)
        return self.compiled.get(layer, plain) if self.training else plain


class MemoryTransformer(HookedRootModule):
    """The decoder. ``tokens [batch, pos]`` -> ``logits [batch, pos, vocab]``.

    Initialisation: embeddings and projections N(0, 0.02), those that write into the residual stream divided by
    sqrt(2 * n_layers) (GPT-2), entries N(0, D^-0.5) but for what ``entry_cosine`` lets them share, keys
    N(0, width^-0.5), norms 1; where read queries are normalised, projections of slots N(0, D^-0.5), which keeps their
    length.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: Config, seed: int = 0):
        super().__init__()
        self.cfg = config
        model = config.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Embedding(model.vocab_size, model.dim)
            self.bank = (
                MemoryBank(config.memory, sparse=config.train.lazy_bank, revives=config.train.revive_after > 0)
                if model.memory_layers
                else None
            )
            self.text_bank = TextBank(config.text) if model.text_layers else None
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(model.n_layers))
            self.norm = RMSNorm(model.dim, eps=NORM_EPS)
            self._init_weights()
            self.bigrams = BigramTable(model.bigram_rows, model.dim) if model.bigram_rows else None
        # DDP cannot average sparse gradients, and would send around buffers that are equal.
        alike = [name for name, _ in self.named_buffers() if name.startswith(("bank.", "text_bank."))]
        sparse = ["bank.entries"] if self.bank is not None and self.bank.sparse else []
        self._ddp_params_and_buffers_to_ignore = sparse + alike
        angles = _rotation_angles(model)
        self.register_buffer("rope_cos", angles.cos(), persistent=False)
        self.register_buffer("rope_sin", angles.sin(), persistent=False)
        self.setup()  # names the hook points; must come last
        for table in ("mod_dict", "hook_dict"):
            setattr(self, table, Named(getattr(self, table), "hook"))

    def get_caching_hooks(self, names_filter: Any = None, *args: Any, **options: Any) -> tuple[Any, ...]:
        """The hooks of ``run_with_cache``; a name that there is not is an ``InputError``, not an empty cache."""
        listed = [names_filter] if isinstance(names_filter, str) else names_filter
        for name in listed if isinstance(listed, list) else ():
            self.hook_dict[name]
        if len(args) < 4 and options.get("cache") is None:
            options["cache"] = Named({}, "cached hook")  # that names what was meant, too
        return super().get_caching_hooks(names_filter, *args, **options)

    def forward(
        self, tokens: Int[Tensor, "batch pos"], cache: KVCache | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """Next-token logits.

        Raises:
            ValueError: more positions than ``max_seq_len``, or a KV cache given to a memory model.
        """
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        if end > self.cfg.model.max_seq_len:
            raise ValueError(f"{end} positions exceed max_seq_len={self.cfg.model.max_seq_len}")
        if cache is not None and (self.bank is not None or self.text_bank is not None):
            raise ValueError("a memory model has no KV cache; run it on the whole sequence")
        rotation = torch.complex(self.rope_cos[start:end], self.rope_sin[start:end])
        x = self.embed(tokens)
        if self.bigrams is not None:
            x = x + self.bigrams(tokens, cache.last if cache is not None else None)
        bank = self.bank.open() if self.bank is not None else None
        words = self.text_bank
        text = None if words is None else OpenText(words, words.find(tokens), self.embed.weight)
        for layer in self.cfg.model.ngram_layers:
            self.memory_layer(layer).gate.tokens = tokens
        for block in self.blocks:
            if self.training and self.cfg.train.gradient_checkpointing:
                x = checkpoint(block, x, rotation, bank, None, text, use_reentrant=False)
            else:
                x = block(x, rotation, bank, cache, text)
        if cache is not None:
            cache.length, cache.last = end, tokens[:, -1]
        return self.unembed(x)

    def compile_layers(self) -> None:
        """``Block.compile_layers`` of all blocks."""
        # What rotates positions stays PyTorch's own there, as it should.
        warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex operators")
        for block in self.blocks:
            assert isinstance(block, Block)
            block.compile_layers()

    def unembed(self, resid: Float[Tensor, "*lead dim"]) -> Float[Tensor, "*lead vocab"]:
        """Final norm and tied unembedding of residual-stream vectors."""
        return F.linear(self.norm(resid), self.embed.weight)

    def memory_layer(self, layer: int) -> MemoryLayer:
        """Gate and read of a memory layer.

        Raises:
            ValueError: the block of this layer has no memory.
        """
        if layer not in self.cfg.model.memory_layers:
            raise ValueError(f"layer {layer} has no memory; memory layers are {self.cfg.model.memory_layers}")
        memory = self.blocks[layer].memory
        assert isinstance(memory, MemoryLayer)
        return memory

    def text_layer(self, layer: int) -> TextLayer:
        """Gate and read of a text layer.

        Raises:
            ValueError: the block of this layer reads no sentences.
        """
        if layer not in self.cfg.model.text_layers:
            raise ValueError(f"layer {layer} reads no sentences; text layers are {self.cfg.model.text_layers}")
        text = self.blocks[layer].text
        assert isinstance(text, TextLayer)
        return text

    @property
    def balances(self) -> list[Balance]:
        """The balance of every memory layer, which evens out the use of its keys."""
        return [self.memory_layer(layer).gate.balance for layer in self.cfg.model.memory_layers]

    def count_parameters(self) -> int:
        """Trainable parameters, the tied embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def count_used_parameters(self) -> int:
        """Parameters that one token's forward pass can use: of the bank what its layers select, of bigrams one row.

        All gate keys count, though a product gate scores them far fewer times than there are entries.
        """
        used = self.count_parameters()
        if self.bigrams is not None:
            used += self.cfg.model.dim - self.bigrams.weight.numel()
        if self.bank is not None:
            memory = self.cfg.memory
            read = len(self.cfg.model.memory_layers) * memory.selected * memory.knowledge_length * memory.knowledge_dim
            used += read - self.bank.entries.numel()
        return used

    def _init_weights(self) -> None:
        nn.init.normal_(self.embed.weight, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                writes = name.endswith(("o_proj", "w2"))
                nn.init.normal_(module.weight, std=0.02 / (2 * len(self.blocks)) ** 0.5 if writes else 0.02)
        for layer in self.cfg.model.memory_layers:
            self.memory_layer(layer).read.init_projections()
        for layer in self.cfg.model.text_layers:
            self.text_layer(layer).init_projections()


def next_token_loss(
    logits: Float[Tensor, "batch pos vocab"], targets: Int[Tensor, "batch pos"], ignore: int = -100
) -> Float[Tensor, "batch pos"]:
    """Cross-entropy in nats of every target; 0 where the target is ``ignore``."""
    # Flat rows: cross_entropy on a transposed view takes a strided path that is several times slower.
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=ignore, reduction="none")
    return flat.view(targets.shape)


def _rotation_angles(config: ModelConfig) -> Float[Tensor, "pos half_head_dim"]:
    frequency = _ROPE_BASE ** -(torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    return torch.outer(torch.arange(config.max_seq_len).float(), frequency)


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate neighbouring pairs of ``x [batch, pos, head, head_dim]`` by their position's angles."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # one multiplication: a third of the time of four
    return torch.view_as_real(pairs * rotation[:, None]).flatten(-2).to(x.dtype)
