"""Interventions on sentences of a text layer against hooks that are put on the model by hand."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memscope.base.errors import InputError
from memscope.causal.selections import ablate, force, replay, scale, swap
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from memscope.run.subject import Selected
from tests.conftest import untrained_run
from tests.text_runs import text_config, write_world

LAYER, FIRST = 1, 64
"""The text layer, and the number of the first sentence: a memory's 64 entries come before."""


@pytest.fixture(scope="module", params=["memory", "ffn"])
def run(request: pytest.FixtureRequest, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return untrained_run(text_config(corpus_dir, folder, model={"block": [request.param, "text"]}), folder)


@pytest.fixture
def subject(run: LoadedRun) -> Iterator[OwnRun]:
    state = {name: value.clone() for name, value in run.model.state_dict().items()}
    yield OwnRun(run)
    assert all(torch.equal(value, state[name]) for name, value in run.model.state_dict().items())


@pytest.fixture
def tokens(run: LoadedRun) -> Tensor:
    rows = [
        [run.tokenizer.bos, *run.tokenizer.encode(text)] for text in ("Eva Lind came from the", "The painter Ada Holm")
    ]
    return torch.tensor([row[: min(map(len, rows))] for row in rows])


def read(subject: OwnRun, tokens: Tensor, *blocks: AbstractContextManager[None]) -> tuple[Tensor, dict[int, Selected]]:
    """Logits and selections inside of blocks."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block)
        with subject.capture() as captured:
            logits = subject.logits(tokens)
    return logits, captured


def by_hand(
    subject: OwnRun,
    tokens: Tensor,
    indices: Callable[[Tensor], Tensor] | None = None,
    scores: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Logits with functions of the selected sentences, and of these and their scores, put in their place."""
    seen: dict[str, Tensor] = {}

    def of_indices(value: Tensor, hook: object) -> Tensor | None:
        seen["before"] = value
        return None if indices is None else indices(value)

    def of_scores(value: Tensor, hook: object) -> Tensor | None:
        return None if scores is None else scores(seen["before"], value)

    names = [f"blocks.{LAYER}.text.hook_{name}" for name in ("indices", "gate_scores")]
    with torch.no_grad(), subject.model.hooks(fwd_hooks=list(zip(names, (of_indices, of_scores), strict=True))):
        return subject.model(tokens)


def chosen(subject: OwnRun, tokens: Tensor) -> list[int]:
    """Sentences that the last token of the first row selects, best first."""
    _, captured = read(subject, tokens)
    entries: list[int] = captured[LAYER].indices[0, -1].tolist()
    assert min(entries) >= subject.run.config.first_sentence
    return entries


def test_an_ablated_sentence_leaves_its_weight_to_the_others(subject: OwnRun, tokens: Tensor) -> None:
    entry, *_ = chosen(subject, tokens)

    def share_out(before: Tensor, scores: Tensor) -> Tensor:
        kept = scores * (before != entry)
        return kept / kept.sum(-1, keepdim=True).clamp(min=1e-9) * scores.sum(-1, keepdim=True)

    logits, _ = read(subject, tokens, ablate(subject, [entry]))
    torch.testing.assert_close(logits, by_hand(subject, tokens, scores=share_out), atol=1e-5, rtol=1e-4)
    expected = by_hand(subject, tokens, lambda before: before.masked_fill(before == entry, -1), share_out)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)  # as if it had not been selected
    zeroed, _ = read(subject, tokens, ablate(subject, [entry], "zero"))
    expected = by_hand(subject, tokens, scores=lambda before, scores: scores * (before != entry))
    torch.testing.assert_close(zeroed, expected, atol=1e-6, rtol=1e-5)
    plain = subject.logits(tokens)
    assert not torch.allclose(logits, plain, atol=1e-4) and not torch.allclose(logits, zeroed, atol=1e-5)


def test_a_forced_sentence_takes_the_place_of_the_weakest(subject: OwnRun, tokens: Tensor) -> None:
    first = subject.run.config.first_sentence
    [entry] = {first + 60} - set(chosen(subject, tokens))
    at = [3, tokens.shape[1] - 1]

    def put(before: Tensor) -> Tensor:
        after = before.clone()
        after[:, at, -1] = entry
        return after

    def score(before: Tensor, scores: Tensor) -> Tensor:
        after = scores.clone()
        after[:, at, -1] = 0.7
        return after

    logits, captured = read(subject, tokens, force(subject, entry, 0.7, positions=at))
    there = (captured[LAYER].indices == entry).any(-1)
    assert there[:, at].all() and there.sum() == 4
    torch.testing.assert_close(logits, by_hand(subject, tokens, put, score), atol=1e-6, rtol=1e-5)


def test_swapped_sentences_are_read_in_each_others_place(subject: OwnRun, tokens: Tensor) -> None:
    mine, other = chosen(subject, tokens)[0], subject.run.config.first_sentence + 50

    def exchange(before: Tensor) -> Tensor:
        return torch.where(before == mine, other, torch.where(before == other, mine, before))

    logits, _ = read(subject, tokens, swap(subject, mine, other))
    expected = by_hand(subject, tokens, exchange, lambda _, scores: scores)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(logits, subject.logits(tokens), atol=1e-4)
    back, _ = read(subject, tokens, swap(subject, mine, other), swap(subject, mine, other))
    torch.testing.assert_close(back, subject.logits(tokens), atol=1e-6, rtol=1e-5)  # the inner block sees the outer one


def test_replay_selects_what_an_earlier_pass_selected(subject: OwnRun, tokens: Tensor) -> None:
    plain, captured = read(subject, tokens)
    again, _ = read(subject, tokens, replay(subject, captured))
    assert torch.equal(again, plain)
    with replay(subject, captured):
        other = subject.logits(tokens.flip(0))
    flipped = captured[LAYER].indices.flip(0)
    assert not torch.allclose(other, subject.logits(tokens.flip(0)), atol=1e-4)
    _, seen = read(subject, tokens.flip(0), replay(subject, captured))
    assert torch.equal(seen[LAYER].indices, flipped.flip(0))


def test_a_layer_of_factor_0_adds_nothing(subject: OwnRun, tokens: Tensor) -> None:
    logits, _ = read(subject, tokens, scale(subject, 0.0, layers=[LAYER]))
    off = [(f"blocks.{LAYER}.hook_text_out", lambda value, hook: 0 * value)]
    with torch.no_grad(), subject.model.hooks(fwd_hooks=off):
        assert torch.equal(logits, subject.model(tokens))
    assert not torch.allclose(logits, subject.logits(tokens), atol=1e-4)
    if not subject.model.cfg.model.memory_layers:
        assert torch.equal(read(subject, tokens, scale(subject, 0.0))[0], logits)
        return
    off += [("blocks.0.hook_mem_out", lambda value, hook: 0 * value)]
    with torch.no_grad(), subject.model.hooks(fwd_hooks=off):
        assert torch.equal(read(subject, tokens, scale(subject, 0.0))[0], subject.model(tokens))


def test_entries_of_the_memory_and_sentences_go_together(subject: OwnRun, tokens: Tensor) -> None:
    if not subject.model.cfg.model.memory_layers:
        with pytest.raises(InputError, match="there is no sentence 64"):
            ablate(subject, [64])
        return
    _, captured = read(subject, tokens)
    sentence, entry = chosen(subject, tokens)[0], int(captured[0].indices[0, 3, 0])
    logits, _ = read(subject, tokens, ablate(subject, [sentence, entry]))
    apart, _ = read(subject, tokens, ablate(subject, [entry]), ablate(subject, [sentence]))
    assert torch.equal(logits, apart)
    for only in ([entry], [sentence]):
        assert not torch.allclose(logits, read(subject, tokens, ablate(subject, only))[0], atol=1e-6)
    with pytest.raises(InputError, match="no layer can select"):
        swap(subject, entry, sentence)
