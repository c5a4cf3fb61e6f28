"""The decoder: parameters, gradients, causality, positions, cache and hooks."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities import get_act_name

from memscope.base.errors import InputError
from memscope.config.load import Config, validate_config
from memscope.config.model import ModelConfig
from memscope.model.transformer import Attention, KVCache, MemoryTransformer, next_token_loss
from tests.conftest import tiny_config


def make_config(model: dict[str, object] | None = None, **memory: object) -> Config:
    return tiny_config(Path("unused"), model={"vocab_size": 50, **(model or {})}, memory=memory)


def make_tokens(length: int = 12, batch: int = 2) -> Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(0))


def test_baseline_has_the_parameters_of_the_experiment() -> None:
    config = validate_config({"model": {"block": "ffn"}}, source="test")
    assert MemoryTransformer(config).count_parameters() == 25_829_888


def test_memory_blocks_have_no_feed_forward_layer_and_baseline_blocks_no_memory() -> None:
    mixed = MemoryTransformer(make_config({"block": ["memory", "ffn"]}))
    assert [hasattr(block, "ffn") for block in mixed.blocks] == [False, True]
    assert [hasattr(block, "memory") for block in mixed.blocks] == [True, False]
    assert MemoryTransformer(make_config({"block": "ffn"})).bank is None


@pytest.mark.parametrize("output_gate", [False, True, "query"])
@pytest.mark.parametrize(
    ("gate", "score_fn", "read_fn", "slots"),
    list(product(["full", "product"], ["softmax", "sigmoid", "relu"], ["softmax", "gelu"], [1, 3])),
)
def test_every_parameter_receives_gradient(
    gate: str, score_fn: str, read_fn: str, slots: int, output_gate: bool | str
) -> None:
    config = make_config(
        gate=gate, score_fn=score_fn, read_fn=read_fn, knowledge_length=slots, output_gate=output_gate, gate_heads=2
    )
    model = MemoryTransformer(config)
    tokens = make_tokens(33)
    next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).mean().backward()
    silent = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert silent == []


def test_every_baseline_parameter_receives_gradient() -> None:
    model = MemoryTransformer(make_config({"block": "ffn"}))
    model(make_tokens()).logsumexp(-1).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(("block", "memory"), [("memory", {}), ("memory", {"token_shift": True}), ("ffn", {})])
def test_later_tokens_change_nothing_before_them(block: str, memory: dict[str, bool]) -> None:
    model = MemoryTransformer(make_config({"block": block}, **memory))
    tokens = make_tokens()
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 50
    a, b = model(tokens), model(changed)
    assert torch.equal(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7], b[:, 7])


@contextmanager
def pattern_of(attention: Attention) -> Iterator[dict[str, Tensor]]:
    """Keep the attention pattern of a single attention module under ``pattern``."""
    seen: dict[str, Tensor] = {}
    attention.hook_pattern.add_hook(lambda tensor, hook: seen.update(pattern=tensor.detach()))
    yield seen
    attention.hook_pattern.remove_hooks()


def test_attention_depends_on_relative_positions_only() -> None:
    model = MemoryTransformer(make_config({"block": "ffn"}))
    attention = model.blocks[0].attn
    x = torch.randn(1, 6, 32)
    patterns = []
    for shift in (0, 20):
        with pattern_of(attention) as seen:
            attention(x, torch.complex(model.rope_cos, model.rope_sin)[shift : shift + 6])
        patterns.append(seen["pattern"])
    torch.testing.assert_close(*patterns, atol=1e-5, rtol=1e-4)


def test_attention_tells_distances_apart() -> None:
    model = MemoryTransformer(make_config({"block": "ffn"}))
    same = torch.randn(1, 1, 32).repeat(1, 6, 1) * 30  # six equal tokens: only their positions differ
    with pattern_of(model.blocks[0].attn) as seen:
        model.blocks[0].attn(same, torch.complex(model.rope_cos, model.rope_sin)[:6])
    assert seen["pattern"][0, :, 5].std(-1).max() > 1e-3


def test_attention_equals_a_loop_over_heads_and_queries() -> None:
    attention = Attention(ModelConfig(dim=24, n_heads=4, n_kv_heads=2, n_layers=1), layer=0)
    still = torch.ones(5, 3, dtype=torch.complex64)  # angle 0: no rotation
    x = torch.randn(1, 5, 24)
    mixed = torch.empty(5, 24)
    q, k, v = (projection(x)[0] for projection in (attention.q_proj, attention.k_proj, attention.v_proj))
    for head in range(4):
        own, shared = slice(head * 6, head * 6 + 6), slice(head // 2 * 6, head // 2 * 6 + 6)
        for t in range(5):
            weights = (k[: t + 1, shared] @ q[t, own] / 6**0.5).softmax(0)
            mixed[t, own] = weights @ v[: t + 1, shared]
    torch.testing.assert_close(attention(x, still)[0], attention.o_proj(mixed), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bigram_rows", [0, 7])
@pytest.mark.parametrize("steps", [[12], [5, 7], [5, 1, 1, 5], [1] * 12])
def test_cached_forward_equals_the_whole_pass(steps: list[int], bigram_rows: int) -> None:
    config = make_config({"block": "ffn", "bigram_rows": bigram_rows})
    model, tokens = MemoryTransformer(config), make_tokens()
    cache = KVCache(config.model, 2, torch.device("cpu"))
    pieces = [model(piece, cache) for piece in tokens.split(steps, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens), atol=1e-5, rtol=1e-4)
    assert cache.length == 12


def test_a_bigram_table_adds_one_row_for_every_token_and_the_one_before() -> None:
    config = make_config({"block": "ffn", "bigram_rows": 101})
    model, plain = MemoryTransformer(config), MemoryTransformer(make_config({"block": "ffn"}))
    table = model.bigrams.weight
    seen = {}
    model.run_with_hooks(make_tokens(), fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: seen.update(x=x))])
    rows = [[0] * 12 for _ in range(2)]
    for text, tokens in enumerate(make_tokens().tolist()):
        for pos, token in enumerate(tokens):
            before = tokens[pos - 1] + 1 if pos else 0
            rows[text][pos] = (token * 1_000_003 + before) % 101
    torch.testing.assert_close(seen["x"], model.embed(make_tokens()) + table[torch.tensor(rows)])
    assert model.count_parameters() == plain.count_parameters() + table.numel()
    assert model.count_used_parameters() == plain.count_parameters() + config.model.dim
    torch.testing.assert_close(model.embed.weight, plain.embed.weight, atol=0, rtol=0)  # nothing else starts otherwise


@pytest.mark.parametrize("block", ["memory", ["ffn", "memory"]])
def test_memory_model_refuses_a_cache(block: object) -> None:
    config = make_config({"block": block})
    with pytest.raises(ValueError, match="no KV cache"):
        MemoryTransformer(config)(make_tokens(), KVCache(config.model, 2, torch.device("cpu")))


def test_too_many_positions_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="65 positions exceed max_seq_len=64"):
        MemoryTransformer(make_config())(make_tokens(65))


def test_hook_names_and_shapes_are_those_of_the_design() -> None:
    # H = 2 gate heads, k = 4, A = 4 read heads, K = 8, L = 3 slots, query width 16
    model = MemoryTransformer(make_config(gate_heads=2, knowledge_length=3))
    _, cache = model.run_with_cache(make_tokens())
    block = {name.removeprefix("blocks.1."): tuple(t.shape) for name, t in cache.items() if "blocks.1." in name}
    residual = (2, 12, 32)
    assert block == {
        **dict.fromkeys(["hook_resid_pre", "hook_resid_mid", "hook_resid_post"], residual),
        **dict.fromkeys(["hook_attn_out", "hook_mem_out"], residual),
        "attn.hook_q": (2, 12, 4, 8),
        "attn.hook_k": (2, 12, 2, 8),
        "attn.hook_v": (2, 12, 2, 8),
        "attn.hook_pattern": (2, 4, 12, 12),
        "attn.hook_z": (2, 12, 4, 8),
        "memory.hook_query": (2, 12, 2, 16),
        "memory.hook_indices": (2, 12, 8),
        "memory.hook_gate_scores": (2, 12, 8),
        "memory.hook_margin": (2, 12, 2),
        "memory.hook_score_margin": (2, 12, 2),
        "memory.hook_by_score": (2, 12, 8),
        "memory.hook_pattern": (2, 12, 4, 24),
    }
    assert cache["blocks.1.memory.hook_indices"].dtype == torch.int64


def test_a_hook_that_there_is_not_is_named_with_the_one_that_was_meant() -> None:
    model, name = MemoryTransformer(make_config()), "blocks.0.memory.hook_indces"
    meant = "there is no hook 'blocks.0.memory.hook_indces'; did you mean 'blocks.0.memory.hook_indices'?"
    for run in (
        lambda: model.run_with_hooks(make_tokens(), fwd_hooks=[(name, lambda value, hook: value)]),
        lambda: model.add_hook(name, lambda value, hook: value),
        lambda: model.run_with_cache(make_tokens(), names_filter=name),
        lambda: model.run_with_cache(make_tokens(), names_filter=[name]),
    ):
        with pytest.raises(InputError, match=re.escape(meant)):
            run()
    _, cache = model.run_with_cache(make_tokens())
    with pytest.raises(InputError, match=re.escape(meant.replace("no hook", "no cached hook"))):
        cache[name]
    assert name not in cache and cache.get(name) is None


def test_transformer_lens_reads_the_cache() -> None:
    model = MemoryTransformer(make_config())
    logits, cache = model.run_with_cache(make_tokens())
    lens = ActivationCache(cache, model)
    last = lens[get_act_name("resid_post", 1)]
    torch.testing.assert_close(model.unembed(last), logits)
    torch.testing.assert_close(lens["blocks.0.hook_resid_post"], lens[get_act_name("resid_pre", 1)])
    assert get_act_name("pattern", 0, "attn") in lens


def test_residual_stream_is_the_sum_of_what_was_added() -> None:
    _, cache = MemoryTransformer(make_config()).run_with_cache(make_tokens())
    total = cache["blocks.0.hook_resid_pre"] + cache["blocks.0.hook_attn_out"] + cache["blocks.0.hook_mem_out"]
    torch.testing.assert_close(total, cache["blocks.0.hook_resid_post"])


def test_a_hook_that_changes_indices_changes_what_is_read() -> None:
    model, tokens = MemoryTransformer(make_config()), make_tokens()
    with torch.no_grad():
        model.bank.entries[5] = 0.0
    force = ("blocks.1.memory.hook_indices", lambda indices, hook: torch.full_like(indices, 5))
    silence = ("blocks.1.hook_mem_out", lambda out, hook: torch.zeros_like(out))
    forced, silenced = (model.run_with_hooks(tokens, fwd_hooks=[hook]) for hook in (force, silence))
    assert torch.equal(forced, silenced)  # entry 5 holds zeros, so layer 1 adds nothing
    assert not torch.allclose(forced, model(tokens))


@pytest.mark.parametrize("block", ["memory", "ffn"])
def test_a_hook_on_the_attention_pattern_leaves_the_result_as_it_is(block: str) -> None:
    model, tokens = MemoryTransformer(make_config({"block": block})), make_tokens()
    looked = model.run_with_hooks(tokens, fwd_hooks=[(lambda name: "attn.hook_pattern" in name, lambda t, hook: None)])
    torch.testing.assert_close(looked, model(tokens), atol=1e-5, rtol=1e-5)


def test_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    config = make_config()
    one, two, other = (MemoryTransformer(config, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["bank.entries"], other["bank.entries"])


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    MemoryTransformer(make_config(), seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_embedding_and_unembedding_are_one_tensor() -> None:
    model = MemoryTransformer(make_config())
    resid = torch.randn(3, 32)
    torch.testing.assert_close(model.unembed(resid), model.norm(resid) @ model.embed.weight.T)


def test_loss_counts_ignored_targets_as_zero() -> None:
    logits = torch.tensor([[[0.0, 0.0], [9.0, 9.0]]])  # two even choices: ln 2 nats
    losses = next_token_loss(logits, torch.tensor([[1, -100]]))
    torch.testing.assert_close(losses, torch.tensor([[0.6931, 0.0]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("block", "memory", "names", "logits"),
    [
        ("memory", {}, "0e2c78446c83d1a8", [-0.176393, -0.000288, -0.063606, -0.122851]),
        (
            "memory",
            {"read_fn": "gelu", "token_shift": True, "gate_heads": 2},
            "942d9643d2ef0a5c",
            [0.078175, -0.093105, -0.053348, 0.16918],
        ),
        ("ffn", {}, "938435c2be5b72f8", [-0.167994, 0.134842, -0.09663, 0.010681]),
        (["both", "ffn"], {}, "4b6f88e0c69a6c21", [0.000798, -0.094685, 0.123786, -0.136542]),
    ],
)
def test_models_without_sentences_are_those_of_before(
    block: object, memory: dict[str, object], names: str, logits: list[float]
) -> None:
    """Names and shapes of all weights, and what they say, as they were before there were text layers."""
    model = MemoryTransformer(make_config({"block": block}, **memory), seed=3).eval()
    said = "\n".join(f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items())
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == names
    with torch.no_grad():
        torch.testing.assert_close(model(make_tokens())[1, -1, :4], torch.tensor(logits), atol=1e-4, rtol=0)
