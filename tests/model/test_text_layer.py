"""The text layer against a slow one in plain Python, what it may depend on, and its keys of sentences."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memscope.causal.sentences.edit import typed
from memscope.config.load import Config
from memscope.model.text.layer import OpenText, TextLayer
from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.run.adapters.own import capture_memory
from memscope.run.checkpoint import LoadedRun
from memscope.run.text_bank import fill_text_bank
from memscope.text.sentences import Sentence
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.bank import SentenceBank
from tests.conftest import untrained_run
from tests.text_runs import filled_model, text_config, world, world_bank, world_tokenizer, write_world

K, HEADS, HALF = 4, 4, 8
TEXTS = ["Eva Lind works as a printer , and Hugo Frost came from", "The painter Ada Holm was born in the town of"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return world_tokenizer()


@pytest.fixture(scope="module")
def config() -> Config:
    return text_config(Path("unused"), Path("unused"))


@pytest.fixture
def model(config: Config, tokenizer: Tokenizer) -> MemoryTransformer:
    """With random weights, so that nothing is zero or a copy."""
    made = filled_model(config, tokenizer)
    torch.manual_seed(1)
    for name, parameter in made.named_parameters():
        if ".text." in name and "lexical_gain" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.fixture
def tokens(tokenizer: Tokenizer) -> Tensor:
    """Two texts, cut to the same length."""
    rows = [[tokenizer.bos, *tokenizer.encode(text)] for text in TEXTS]
    return torch.tensor([row[: min(map(len, rows))] for row in rows])


def unit(row: Tensor) -> Tensor:
    """A vector whose mean square is 1."""
    return row / (row.pow(2).mean() + torch.finfo(torch.float32).eps).sqrt()


def slow_slots(layer: TextLayer, table: Tensor, ids: list[int]) -> list[Tensor]:
    """Slot by slot: the token, and what stands from three before to two behind it, mixed over five places."""
    around = layer.slots.around.weight.unflatten(0, (6, HALF))
    context = []
    for at in range(len(ids)):
        near = [
            around[offset + 3] @ unit(table[ids[at + offset]]) for offset in range(-3, 3) if 0 <= at + offset < len(ids)
        ]
        context.append(torch.nn.functional.gelu(torch.stack(near).sum(0)))
    slots = []
    for at, token in enumerate(ids):
        mixed = [layer.slots.mix.weight[:, :, j + 2] @ context[at + j] for j in range(-2, 3) if 0 <= at + j < len(ids)]
        wide = context[at] + torch.nn.functional.gelu(torch.stack(mixed).sum(0))
        slots.append(torch.cat([layer.slots.token.weight @ unit(table[token]), wide]))
    return slots


def slow_layer(
    layer: TextLayer, model: MemoryTransformer, x: Tensor, tokens: Tensor, sharpness: float
) -> tuple[Tensor, list[list[int]]]:
    """What one text reads, ``x [pos, dim]``, and its sentences, best first."""
    bank, table, read, gate = model.text_bank, model.embed.weight, layer.read, layer.gate
    assert bank is not None and bank.index is not None
    slots = [slow_slots(layer, table, bank.sentences.token_ids(entry)) for entry in range(len(bank))]
    keys = [gate.key_proj.weight @ torch.stack(own).mean(0) for own in slots]
    keys = [key / key.norm() for key in keys]
    found = bank.index.search(tokens[None].numpy(), 8)
    width = x.shape[1] // HEADS
    out, selected = [], []
    for pos, hidden in enumerate(x):
        asks = gate.query_proj.weight @ hidden
        asks = asks * min(1.0, 2.0 / float(asks.norm()))
        totals = {
            entry: gate.lexical_gain * share + asks @ keys[entry]
            for entry, share in zip(found.entries[0, pos].tolist(), found.scores[0, pos].tolist(), strict=True)
            if entry >= 0
        }
        best = sorted(totals, key=lambda entry: -float(totals[entry]))[:K]
        selected.append(best)
        logs = (sharpness * torch.stack([totals[entry] for entry in best])).log_softmax(0) if best else []
        heads = []
        for head in range(HEADS):
            own = slice(head * width, (head + 1) * width)
            raw = read.q_proj.weight[own] @ hidden
            query = raw / (raw.pow(2).mean() + read.q_norm.eps).sqrt() * read.q_norm.weight
            words = [(slot, log) for entry, log in zip(best, logs, strict=True) for slot in slots[entry]]
            logits = [read.nothing[head], *(query @ (read.k_proj.weight[own] @ slot) + log for slot, log in words)]
            weights = torch.stack(logits).softmax(0)[1:]
            values = [
                weight * (read.v_proj.weight[own] @ slot) for weight, (slot, _) in zip(weights, words, strict=True)
            ]
            heads.append(torch.stack(values).sum(0) if values else torch.zeros(width))
        out.append(read.o_proj.weight @ torch.cat(heads))
    return torch.stack(out), selected


def open_text(model: MemoryTransformer, tokens: Tensor) -> OpenText:
    assert model.text_bank is not None
    return OpenText(model.text_bank, model.text_bank.find(tokens), model.embed.weight)


@pytest.mark.parametrize("training", [False, True])
def test_the_layer_equals_a_slow_one(model: MemoryTransformer, tokens: Tensor, training: bool) -> None:
    layer = model.train(training).text_layer(1)
    layer.gate.sharpness = 3.0  # of a trained model
    x = torch.randn(*tokens.shape, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        out = layer(x, open_text(model, tokens))
        for row in range(len(tokens)):
            expected, selected = slow_layer(layer, model, x[row], tokens[row], 1.0 if training else 3.0)
            torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=1e-4)
            found = layer.selection[0][row] - layer.first
            assert [[entry for entry in entries if entry >= 0] for entries in found.tolist()] == selected
    assert (layer.selection[0][:, 0] == -1).all()  # nothing is looked for before the first word
    assert out[:, 0].abs().max() == 0 and out[:, -1].abs().max() > 0.01


@pytest.mark.compiler
def test_compiled_loops_and_plain_pytorch_agree(
    model: MemoryTransformer, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logits = model(tokens)
        next_token_loss(logits[:, :-1], tokens[:, 1:]).mean().backward()
        return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    logits, gradients = run()
    for module in ("text.selected", "text.slots", "ops.fused", "ops.softmax_read", "bank"):
        monkeypatch.setattr(f"memscope.model.{module}.native_for", lambda _: None)
    plain_logits, plain_gradients = run()
    torch.testing.assert_close(logits, plain_logits, atol=1e-5, rtol=1e-4)
    assert gradients.keys() == plain_gradients.keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in gradients.items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, plain_gradients[name], atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.compiler
def test_reading_while_the_read_weights_are_watched_changes_nothing(model: MemoryTransformer, tokens: Tensor) -> None:
    watched: list[Tensor] = []
    found = []
    for hooks in ([], [("blocks.1.text.hook_pattern", lambda pattern, hook: watched.append(pattern))]):
        model.zero_grad()
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        next_token_loss(logits[:, :-1], tokens[:, 1:]).mean().backward()
        found.append((logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (logits, gradients), (watched_logits, watched_gradients) = found
    [pattern] = watched
    assert pattern.shape[-1] == K * model.text_bank.ids.shape[1] and pattern.any()
    torch.testing.assert_close(logits, watched_logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients, watched_gradients, atol=1e-6, rtol=1e-3)


def test_an_untrained_gate_selects_what_the_search_by_words_finds(
    config: Config, tokenizer: Tokenizer, tokens: Tensor
) -> None:
    model = filled_model(config, tokenizer).eval()
    assert model.text_bank is not None and model.text_bank.index is not None
    with capture_memory(model) as captured:
        model(tokens)
    found = model.text_bank.index.search(tokens.numpy(), K)
    expected = torch.from_numpy(found.entries)
    assert (expected >= 0).sum() > 50
    assert torch.equal(captured[1].indices, torch.where(expected < 0, -1, expected + config.first_sentence))


def test_a_text_alone_is_read_as_in_a_batch(model: MemoryTransformer, tokens: Tensor) -> None:
    with torch.no_grad():
        together = model(tokens)
        alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_what_fills_up_on_the_right_changes_nothing(
    model: MemoryTransformer, tokens: Tensor, tokenizer: Tokenizer
) -> None:
    padded = torch.nn.functional.pad(tokens, (0, 9), value=tokenizer.pad)
    with torch.no_grad():
        torch.testing.assert_close(model(padded)[:, : tokens.shape[1]], model(tokens), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("at", [1, 9, 20])
def test_later_tokens_change_nothing_before_them(
    model: MemoryTransformer, tokens: Tensor, tokenizer: Tokenizer, at: int
) -> None:
    """Neither what is selected nor what is read; the change goes on with a word, or ends one."""
    other = tokens.clone()
    other[:, at:] = tokens.flip(0)[:, : tokens.shape[1] - at]
    seen = []
    for batch in (tokens, other):
        with capture_memory(model) as captured:
            logits = model(batch)
        seen.append((logits, captured[1].indices, captured[1].gate_scores))
    (logits, entries, scores), (other_logits, other_entries, other_scores) = seen
    assert torch.equal(entries[:, :at], other_entries[:, :at])
    torch.testing.assert_close(scores[:, :at], other_scores[:, :at], atol=1e-6, rtol=0)
    torch.testing.assert_close(logits[:, :at], other_logits[:, :at], atol=1e-5, rtol=1e-4)
    assert not torch.equal(entries[:, at:], other_entries[:, at:])
    assert not torch.allclose(logits[:, at], other_logits[:, at], atol=1e-3)


def logits_of(model: MemoryTransformer, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens)


def fresh(model: MemoryTransformer, config: Config, tokenizer: Tokenizer, bank: SentenceBank) -> MemoryTransformer:
    """Another model of the same weights, which never held another bank."""
    other = MemoryTransformer(config, seed=5)
    other.load_state_dict(model.state_dict())
    fill_text_bank(other, bank, tokenizer)
    return other.eval()


def scaled(parameter: str) -> Callable[[MemoryTransformer], None]:
    def change(model: MemoryTransformer) -> None:
        with torch.no_grad():
            model.get_parameter(parameter).mul_(1.5).add_(0.01)

    return change


@pytest.mark.parametrize(
    "name",
    [
        "embed.weight",
        "blocks.1.text.slots.around.weight",
        "blocks.1.text.slots.mix.weight",
        "blocks.1.text.gate.key_proj.weight",
    ],
)
def test_keys_are_made_anew_when_a_weight_changes(
    model: MemoryTransformer, config: Config, tokenizer: Tokenizer, tokens: Tensor, name: str
) -> None:
    before = logits_of(model, tokens)
    keys = model.text_layer(1)._keys
    assert keys is not None
    logits_of(model, tokens)
    assert model.text_layer(1)._keys is keys  # the same weights: the same keys
    scaled(name)(model)
    after = logits_of(model, tokens)
    assert not torch.allclose(model.text_layer(1)._keys, keys)
    assert not torch.allclose(after, before)
    assert torch.equal(after, logits_of(fresh(model, config, tokenizer, world_bank(tokenizer)), tokens))


def test_tokens_are_projected_once_for_passes_without_gradients(model: MemoryTransformer) -> None:
    slots, table = model.text_layer(1).slots, model.embed.weight
    with torch.no_grad():
        first = slots.project(table)
        assert slots.project(table) is first
        with torch.autocast("cpu", torch.bfloat16):
            assert slots.project(table).token.dtype == torch.bfloat16
    learned = slots.project(table)
    assert learned.token.requires_grad and torch.equal(learned.token, first.token)


def test_training_projects_tokens_anew_although_its_loops_leave_no_trace(model: MemoryTransformer) -> None:
    slots, table = model.text_layer(1).slots, model.embed.weight
    with torch.no_grad():
        before = slots.project(table)
        model.train()
        assert slots.project(table) is not slots.project(table)
        table.data.mul_(2).add_(1)  # as the optimiser's loops: no new version
        model.eval()
        assert not torch.equal(slots.project(table).token, before.token)


def test_sentences_are_encoded_alike_however_many_there_are(model: MemoryTransformer) -> None:
    slots = model.text_layer(1).slots
    bank = torch.randint(3, 300, (700, 12), generator=torch.Generator().manual_seed(0))
    for count, spare in ((1, 31), (32, 0), (500, 12), (513, 511)):
        assert slots.spare(count) == spare
    with torch.no_grad():
        table, there = slots.project(model.embed.weight), torch.ones(700, 12, dtype=torch.bool)
        torch.testing.assert_close(slots(bank[:5], there[:5], table), slots(bank, there, table)[:5])


@pytest.mark.parametrize("count", [8, 90])
def test_a_bank_of_another_size_takes_the_place_of_the_first(
    model: MemoryTransformer, config: Config, tokenizer: Tokenizer, tokens: Tensor, count: int
) -> None:
    before = logits_of(model, tokens)
    texts = [f"{fact.subject} , number {number} , liked Aston ." for number, fact in enumerate(world() * 2)][:count]
    bank = SentenceBank.of([Sentence(text, ()) for text in texts], tokenizer.encode_batch(texts))
    fill_text_bank(model, bank, tokenizer)
    after = logits_of(model, tokens)
    with capture_memory(model) as captured:
        model(tokens)
    assert not torch.allclose(after, before)
    assert torch.equal(after, logits_of(fresh(model, config, tokenizer, bank), tokens))
    assert captured[1].indices.max() < config.first_sentence + count


@pytest.fixture(scope="module")
def run(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("typed")
    write_world(folder)
    return untrained_run(text_config(corpus_dir, folder), folder)


def test_a_typed_sentence_is_read_as_if_it_had_always_stood_there_and_is_undone(
    run: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.tensor([[run.tokenizer.bos, *run.tokenizer.encode("Eva Lind was born in")]])
    layer, bank = run.model.text_layer(1), run.model.text_bank
    assert bank is not None
    before = logits_of(run.model, tokens)
    made: list[int] = []
    keys = layer.gate.keys
    monkeypatch.setattr(layer.gate, "keys", lambda slots, there: made.append(len(slots)) or keys(slots, there))
    [entry] = [n for n, s in enumerate(bank.sentences.sentences) if "Eva Lind came" in s.text]
    with typed(run, {entry: "Eva Lind came from the old town of Farley ."}):
        during = logits_of(run.model, tokens)
        assert made[0] == 1  # the key of one sentence; then those of what was selected
        other = fresh(run.model, run.config, run.tokenizer, bank.sentences)
        assert torch.equal(during, logits_of(other, tokens))
    assert not torch.equal(before, during)
    assert torch.equal(before, logits_of(run.model, tokens))
    assert math.isfinite(float(during.sum()))
