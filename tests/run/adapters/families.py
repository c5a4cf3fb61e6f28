"""Tiny random mixtures of experts of many families of the transformers library."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from torch import nn

VOCAB, EXPERTS, TOP, WIDTH, WINDOW = 320, 8, 2, 32, 64
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": WINDOW,
    "sliding_window": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), TOP),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 0),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
}
"""Settings, of which every config takes those that it has."""


class Family(NamedTuple):
    """How to make a model of a family, and what is to be expected of it."""

    settings: Mapping[str, Any] = MappingProxyType({})
    """Settings beside the common ones; None leaves a common one out."""
    layers: tuple[int, ...] = (0, 1)
    entries: int = EXPERTS
    shared: bool = False
    """Whether it has experts that every token passes."""
    plain: bool = False
    """Whether it gives ``router_logits``, and selects those with the largest."""
    moved: bool = False
    """Whether a bias that is not 0 takes part in the choice."""
    lens: bool = True
    """Whether the block adds the sum of its experts, or a multiple of it."""


_LATENT = {"head_dim": None, "num_key_value_heads": 4}
"""Attention with latent keys and values."""
FAMILIES: dict[str, Family] = {
    "afmoe": Family(shared=True, lens=False),  # a norm follows its experts
    "aria_text": Family(shared=True),
    "bailing_hybrid": Family(shared=True),
    "beam": Family({"mlp_layer_types": ["dense", "sparse"]}, layers=(1,), lens=False),
    "cohere2_moe": Family(),
    "deepseek_v2": Family(_LATENT, shared=True),
    "deepseek_v3": Family(_LATENT, shared=True),
    "deepseek_v32": Family(_LATENT, shared=True),
    "deepseek_v4": Family({"mlp_layer_types": ["moe", "moe"]}, shared=True, lens=False),  # four streams, mixed by token
    "dots1": Family({"n_shared_experts": 1}, shared=True),
    "ernie4_5_moe": Family(layers=(1,), shared=True, moved=True),
    "exaone_moe": Family(shared=True),
    "flex_olmo": Family(plain=True, lens=False),
    "flint": Family({"mlp_only_layers": [0]}, layers=(1,), shared=True),
    "glm4_moe": Family(shared=True),
    "glm4_moe_lite": Family(_LATENT, layers=(1,), shared=True),
    "gpt_oss": Family(plain=True),
    "granitemoe": Family({"logits_scaling": 8.0}, plain=True),
    "granitemoeshared": Family({"shared_intermediate_size": 16}, shared=True, plain=True),
    "granitemoehybrid": Family(
        {
            "mamba_n_heads": 4,
            "mamba_expand": 2,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
            "layer_types": ["mamba", "attention"],
        },
        shared=True,
    ),
    "hunyuan_v1_moe": Family(shared=True),
    "jamba": Family(layers=(1,)),
    "lfm2_moe": Family({"layer_types": ["conv", "full_attention"]}),
    "llama4_text": Family(shared=True),
    "longcat_flash": Family(
        {"num_key_value_heads": 4, "zero_expert_num": 4, "num_hidden_layers": 4}, entries=EXPERTS + 4
    ),
    "minimax_m2": Family(),
    "mixtral": Family(plain=True),
    "olmoe": Family(plain=True),
    "phimoe": Family(),
    "qwen2_moe": Family(shared=True, plain=True),
    "qwen3_moe": Family(plain=True),
}
"""By the model type of their config."""


def make_model(kind: str, **settings: Any) -> nn.Module:
    """A model with random weights that route different tokens to different experts."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    known = CONFIG_MAPPING[kind]()
    asked = {**_COMMON, **FAMILIES.get(kind, Family()).settings, **settings}
    config = CONFIG_MAPPING[kind](
        **{k: v for k, v in asked.items() if v is not None and (hasattr(known, k) or k in settings)}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    chance = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.ndim > 1:  # as the default, only larger, so that scores are far apart
            weight.data.normal_(std=0.1, generator=chance)
    return model


def make_tokenizer() -> Any:
    """A tokenizer of transformers with the words ``w3`` to ``w319`` and a bos before every text."""
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
