"""Recording hooks look and do not touch."""

from pathlib import Path

import pytest
import torch

from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.run.adapters.own import OwnModel, capture_memory
from memscope.run.checkpoint import LoadedRun
from memscope.run.subject import _largest, run_windows
from memscope.text.corpus import PackedCorpus, document_windows
from tests.conftest import tiny_config

TOKENS = torch.randint(320, (3, 17), generator=torch.Generator().manual_seed(0))


def make_model(**memory: object) -> MemoryTransformer:
    return MemoryTransformer(tiny_config(Path("unused"), memory=memory))


def hook_count(model: MemoryTransformer) -> int:
    return sum(point.has_hooks() for point in model.hook_points())


@pytest.mark.parametrize("memory", [{}, {"gate": "full", "gate_heads": 2}, {"knowledge_length": 3, "read_fn": "gelu"}])
def test_captured_forward_is_the_plain_one_bit_for_bit(memory: dict[str, object]) -> None:
    model = make_model(**memory)
    with capture_memory(model) as captured:
        watched = model(TOKENS)
    assert torch.equal(watched, model(TOKENS))
    assert sorted(captured) == [0, 1]


def test_captured_values_are_those_of_the_hook_points() -> None:
    model = make_model(knowledge_length=3, gate_heads=2)
    with capture_memory(model) as captured:
        model(TOKENS)
    _, cache = model.run_with_cache(TOKENS, names_filter=lambda name: "memory" in name)
    for layer, capture in captured.items():
        prefix = f"blocks.{layer}.memory."
        assert torch.equal(capture.indices, cache[prefix + "hook_indices"])
        assert torch.equal(capture.gate_scores, cache[prefix + "hook_gate_scores"])
        assert torch.equal(capture.margin, cache[prefix + "hook_margin"])
        pattern = cache[prefix + "hook_pattern"]  # [batch, pos, A, K * L], L = 3
        for number in range(8):
            slots = pattern[..., number * 3 : number * 3 + 3].mean(2)
            torch.testing.assert_close(capture.slot_weights[:, :, number], slots)
            torch.testing.assert_close(capture.read_weights[:, :, number], slots.sum(-1))
            by_head = pattern[..., number * 3 : number * 3 + 3].sum(-1)
            torch.testing.assert_close(capture.head_weights[..., number], by_head)


def test_hooks_are_gone_after_the_block_and_after_an_exception() -> None:
    model = make_model()
    with capture_memory(model):
        assert hook_count(model) == 8  # four in each of two layers
    assert hook_count(model) == 0
    with pytest.raises(RuntimeError), capture_memory(model):
        raise RuntimeError("a fault inside the block")
    assert hook_count(model) == 0
    assert torch.is_grad_enabled()


def test_hooks_of_the_caller_stay() -> None:
    model, seen = make_model(), []
    model.add_hook("blocks.0.memory.hook_indices", lambda indices, hook: seen.append(1))
    with capture_memory(model):
        model(TOKENS)
    model(TOKENS)
    assert len(seen) == 2


def test_only_memory_layers_are_captured() -> None:
    model = MemoryTransformer(tiny_config(Path("unused"), model={"block": ["ffn", "memory"]}))
    with capture_memory(model) as captured:
        model(TOKENS)
    assert list(captured) == [1]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_run_windows_visits_every_window_once_and_pads_without_effect(
    tiny_run: LoadedRun, tiny_corpus: PackedCorpus, batch_size: int
) -> None:
    windows = document_windows(tiny_corpus, 30)
    seen = []
    for done in run_windows(OwnModel(tiny_run.model), tiny_corpus, windows, tiny_run.tokenizer.pad, batch_size):
        for row, window in enumerate(done.windows):
            seen.append(window)
            tokens = torch.from_numpy(tiny_corpus.tokens[window.start : window.end].astype("int64"))[None]
            alone = tiny_run.model(tokens)
            torch.testing.assert_close(done.logits[row, : tokens.shape[1]], alone[0], atol=1e-4, rtol=1e-4)
    assert sorted(seen) == windows


def test_run_windows_gives_losses_of_targets_and_zero_elsewhere(tiny_run: LoadedRun, tiny_corpus: PackedCorpus) -> None:
    windows = document_windows(tiny_corpus, 64)[:5]
    [done] = run_windows(OwnModel(tiny_run.model), tiny_corpus, windows, tiny_run.tokenizer.pad)
    targets = torch.from_numpy(done.batch.targets)
    torch.testing.assert_close(done.losses, next_token_loss(done.logits, targets))
    assert (done.losses[targets < 0] == 0).all()
    assert (done.losses[targets >= 0] > 0).all()


def test_run_windows_restores_mode_and_hooks_when_left_early(tiny_run: LoadedRun, tiny_corpus: PackedCorpus) -> None:
    model = make_model()
    model.train()
    windows = document_windows(tiny_corpus, 64)
    passes = run_windows(OwnModel(model), tiny_corpus, windows, tiny_run.tokenizer.pad)
    next(passes)
    passes.close()  # what leaving a loop early does
    assert hook_count(model) == 0
    assert model.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("vocab", [1, 5, 63, 64, 65, 320, 1000])
def test_the_most_likely_token_is_the_first_of_equals_as_max_has_it(vocab: int) -> None:
    chance = torch.Generator().manual_seed(vocab)
    for values in (torch.randn(90, vocab, generator=chance), torch.randint(4, (90, vocab), generator=chance).float()):
        found, expected = _largest(values), values.max(-1)
        assert torch.equal(found[0], expected.values)
        assert torch.equal(found[1], expected.indices)
