"""What a text layer is taught: statements, swapped objects, sentences that must not leak, the alignment loss, and that
reading is learned.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from memscope.base.errors import InputError
from memscope.config.load import Config
from memscope.model.text.bank import Lesson
from memscope.model.text.gate import alignment_loss
from memscope.model.text.read import read_alignment_loss
from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.run.adapters.own import capture_memory
from memscope.run.checkpoint import list_checkpoints, load_run
from memscope.run.metrics_log import read_metrics
from memscope.run.text_bank import fill_text_bank, run_bank
from memscope.text.fact_files import read_facts
from memscope.text.sentences import Sentence, Triple
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.bank import SentenceBank
from memscope.text_bank.lexical import LexicalIndex
from memscope.text_bank.stating import asks_nothing, is_held_out, stating_entries
from memscope.text_bank.words import WordReader
from memscope.train.lessons.batches import Batches, Teacher, taught_loss, teaching
from memscope.train.lessons.clozes import asked_facts, make_clozes
from memscope.train.lessons.retold import retell
from memscope.train.lessons.statements import StatementMaker, taught_facts
from memscope.train.loop import train
from memscope.train.parallel import check_strategy
from tests.text_runs import TOWNS, WORK, filled_model, text_config, world, world_bank, world_tokenizer, write_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("world")
    write_world(made)
    return made


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return world_tokenizer()


@pytest.fixture(scope="module")
def bank(tokenizer: Tokenizer) -> SentenceBank:
    return world_bank(tokenizer)


def statements_of(tokens: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The whole statements of a window."""
    texts: list[str] = []
    current: list[int] = []
    for token in tokens.tolist():
        if token == tokenizer.bos:
            current = []
        elif token == tokenizer.eos:
            texts.append(tokenizer.decode(current))
        else:
            current.append(token)
    return texts


def test_no_statement_is_of_a_held_out_subject(tokenizer: Tokenizer, bank: SentenceBank) -> None:
    share = 0.4
    held_out = {fact.subject for fact in world() if is_held_out(fact.subject, share)}
    assert 5 < len(held_out) < 25
    maker = StatementMaker(taught_facts(world(), bank, share), bank, tokenizer, swap=0.5)
    made = maker.windows((0, 0), rows=60, length=65)
    texts = [text for row in made.tokens for text in statements_of(row, tokenizer)]
    told = {person for person in {fact.subject for fact in world()} if any(person in text for text in texts)}
    assert told == {fact.subject for fact in world()} - held_out  # all others are told of


def test_swapped_objects_stand_alike_in_statement_and_sentence(tokenizer: Tokenizer, bank: SentenceBank) -> None:
    maker = StatementMaker(taught_facts(world(), bank, 0.0), bank, tokenizer, swap=0.5)
    of_step = [maker.windows((0, step), rows=2, length=65) for step in range(20)]
    changed = 0
    for made in of_step:
        now = [tokenizer.decode(made.swapped.get(n, bank.token_ids(n))) for n in range(len(bank.lengths))]
        last: dict[int, str] = {}
        for row, at, stating in zip(made.rows, made.positions, made.stating, strict=True):
            window = made.tokens[row]
            start = max(place for place in range(at + 1) if window[place] == tokenizer.bos)
            question = tokenizer.decode(window[start + 1 : at + 1].tolist()).strip()
            [fact] = [fact for fact in world() if fact.question == question]
            [entry] = stating
            assert bank.sentences[entry].triples[0].uuid == fact.uuid
            answer = tokenizer.decode(window[at + 1 : at + 9].tolist()).lstrip()
            word = re.match(r"\w+", answer)
            if word and word[0] in ("Aston", "Berrow", "Calder", "Dunmore", "Elham", "Farley"):
                last[entry] = word[0]
        for entry, town in last.items():
            assert f"town of {town} ," in now[entry]
        for entry in made.swapped:
            was = bank.sentences[entry].text
            assert len(set(now[entry].split()) ^ set(was.split())) in (0, 2)  # one word in place of another
            changed += now[entry] != was
    assert changed > 20
    again = maker.windows((0, 3), rows=2, length=65)
    assert np.array_equal(again.tokens, of_step[3].tokens) and again.swapped == of_step[3].swapped


def test_facts_are_retold_in_the_words_of_their_sentences(tokenizer: Tokenizer, bank: SentenceBank) -> None:
    share = 0.4
    taught = taught_facts(world(), bank, share)
    retold = retell(taught, bank, share, seed=0)
    assert [fact.uuid for fact, _ in retold] == [fact.uuid for fact, _ in taught]
    whole = 0
    for fact, [entry] in retold:
        assert not is_held_out(fact.subject, share)
        text = bank.sentences[entry].text
        words = iter(text.partition(fact.object)[0].split())
        assert all(word in words for word in fact.question.split())  # in their order, nothing added
        assert fact.subject in fact.question
        assert fact.template.endswith("[Y]" + text.partition(fact.object)[2])  # to the end of the sentence
        whole += fact.question + fact.answer == text.partition(fact.object)[0] + fact.object
    assert 0.3 < whole / len(retold) < 0.9  # every second one, and those of which chance left nothing out


def test_no_held_out_subject_is_named_where_a_fact_is_retold(tokenizer: Tokenizer, bank: SentenceBank) -> None:
    """A sentence about two subjects, of which one is held out, tells nothing."""
    out = next(fact for fact in world() if is_held_out(fact.subject, 0.4))
    taught = taught_facts(world(), bank, 0.4)
    shared = [
        sentence._replace(triples=(*sentence.triples, Triple(out.uuid, out.subject, out.predicate, out.object)))
        for sentence in bank.sentences
    ]
    both = SentenceBank.of(shared, [bank.token_ids(entry) for entry in range(len(shared))])
    assert len(retell(taught, bank, 0.4, seed=0)) == len(taught)
    assert retell(taught, both, 0.4, seed=0) == []


def test_a_share_of_statements_is_retold(tokenizer: Tokenizer, bank: SentenceBank) -> None:
    taught = taught_facts(world(), bank, 0.0)
    told = [fact.question for fact, _ in taught]
    for share, low, high in ((0.0, 0, 0), (0.5, 0.4, 0.6), (1.0, 1, 1)):
        maker = StatementMaker(taught, bank, tokenizer, 0.0, retell(taught, bank, 0.0, seed=0), share)
        made = maker.windows((0, 0), rows=40, length=65)
        texts = [text for row in made.tokens for text in statements_of(row, tokenizer)]
        other = np.mean([not any(text.strip().startswith(question) for question in told) for text in texts])
        assert low <= other <= high


def test_clozes_ask_for_rare_words_of_sentences_that_are_not_held_out(tokenizer: Tokenizer, bank: SentenceBank) -> None:
    share = 0.4
    clozes = make_clozes(bank, held_out=share, seed=0)
    asked = {int(entry) for _, entries in clozes for entry in entries}
    assert asked == {
        entry for entry, one in enumerate(bank.sentences) if not is_held_out(one.triples[0].subject, share)
    }
    for fact, [entry] in clozes:
        words = bank.sentences[entry].text.split()
        assert fact.object in words and words.index(fact.object) >= 3
        question = fact.question.split()
        at, kept = words.index(fact.object), iter(words[: words.index(fact.object)])
        assert all(word in kept for word in question)  # in their order, nothing added
        assert question[-2:] == words[at - 2 : at] and fact.subject in question
        assert fact.template.split("[Y]")[1].split() == words[at + 1 :]  # to the end of the sentence
    rare = {int(entry) for fact, [entry] in clozes if fact.object in {*TOWNS, *WORK}}
    assert len(rare) > 0.9 * len(asked)  # though a sentence has up to eight words that may be asked for
    assert make_clozes(bank, held_out=share, seed=0)[7].fact == clozes[7].fact
    assert make_clozes(bank, held_out=share, seed=1)[7].fact != clozes[7].fact


def test_clozes_are_kept_as_facts_half_of_them_of_held_out_sentences(bank: SentenceBank, tmp_path: Path) -> None:
    share = 0.4
    facts = asked_facts(bank, held_out=share, seed=0, most=12)
    assert {fact.predicate for fact in facts} <= {"name", "number"}
    assert all(len(fact.question.split()) >= 5 for fact in facts)
    (tmp_path / "clozes.json").write_text(json.dumps([fact._asdict() for fact in facts]))
    assert read_facts(tmp_path / "clozes.json") == facts and len(set(facts)) == 12
    taught = {fact._replace(uuid="") for fact, _ in make_clozes(bank, held_out=share, seed=0)}
    for number, (fact, entries) in enumerate(zip(facts, stating_entries(facts, bank), strict=True)):
        [sentence] = [bank.sentences[entry] for entry in entries]
        rest = fact.template.partition("[Y]")[2]
        assert fact.object in sentence.text and sentence.text.endswith(rest)
        assert asks_nothing(sentence, share) == (number < 6)
        assert (fact._replace(uuid="") in taught) == (number >= 6)
    assert len(asked_facts(bank, held_out=0.0, seed=0, most=12)) == 6  # nothing is held out


def test_a_sentence_without_a_number_gives_no_fact(tokenizer: Tokenizer) -> None:
    texts = ["The old painter Ada Holm was born in Farley .", "Nobody knew what the printer Finn Frost sold there ."]
    plain = SentenceBank.of([Sentence(text, ()) for text in texts], tokenizer.encode_batch(texts))
    assert make_clozes(plain, held_out=0.0, seed=0) and not asked_facts(plain, held_out=0.0, seed=0, most=9)


def test_clozes_are_found_by_the_words_that_are_left(tokenizer: Tokenizer, bank: SentenceBank) -> None:
    clozes = make_clozes(bank, held_out=0.0, seed=0)
    index = LexicalIndex.build(bank.ids, bank.lengths, WordReader(tokenizer), tokenizer.bos, window=32)
    found = [
        entry in index.search(np.array([[tokenizer.bos, *tokenizer.encode(fact.question)]]), 4).entries[0, -1]
        for fact, [entry] in clozes
        if len(fact.question.split()) > 4
    ]
    assert np.mean(found) > 0.8


def test_a_bank_of_short_sentences_gives_no_cloze(tokenizer: Tokenizer) -> None:
    texts = ["Short words.", "Too few."]
    short = SentenceBank.of([Sentence(text, ()) for text in texts], tokenizer.encode_batch(texts))
    with pytest.raises(InputError, match="no sentence of the bank has a rare word behind three others"):
        make_clozes(short, held_out=0.0, seed=0)


def test_blocked_sentences_are_not_selected_in_their_window(
    corpus_dir: Path, folder: Path, tokenizer: Tokenizer, bank: SentenceBank
) -> None:
    """A window that quotes a sentence finds it, unless it is trained on."""
    config = text_config(corpus_dir, folder, text={"statement_share": 0, "leak_ngram": 9})
    model = filled_model(config, tokenizer).train()
    quoted = [3, 18]
    rows = [[tokenizer.bos, *tokenizer.encode(bank.sentences[entry].text)] for entry in quoted]
    tokens = np.array([row + [tokenizer.eos] * (max(map(len, rows)) - len(row)) for row in rows])
    teacher = Teacher(config, bank, tokenizer)
    blocked = teacher.blocked(tokens)
    assert [entries.tolist() for entries in blocked] == [[3], [18]]
    none = torch.empty(0, dtype=torch.int64)
    lesson = Lesson(0, none, none, none, [], {}, blocked)
    for taught in (None, lesson):
        with teaching(model, taught), capture_memory(model) as captured:
            model(torch.from_numpy(tokens))
        found = captured[1].indices - config.first_sentence
        for row, entry in enumerate(quoted):
            assert bool((found[row] == entry).any()) == (taught is None)
            assert bool((found[row] >= 0).any())


def test_alignment_loss_equals_a_loop() -> None:
    chance = torch.Generator().manual_seed(0)
    totals = torch.randn(9, 6, generator=chance)
    totals[2, 4:], totals[5, 1:] = -torch.inf, -torch.inf
    stating = torch.rand(9, 6, generator=chance) < 0.3
    stating[3] = False  # not found
    stating[4] = True  # nothing else is
    stating[5] = torch.tensor([True, *[False] * 5])  # alone
    losses = []
    for row, states in zip(totals.tolist(), stating.tolist(), strict=True):
        mine = [math.exp(value) for value, is_it in zip(row, states, strict=True) if is_it]
        others = [math.exp(value) for value, is_it in zip(row, states, strict=True) if not is_it]
        if sum(mine) and sum(others):
            losses.append(-math.log(sum(mine) / (sum(mine) + sum(others))))
    assert 3 < len(losses) < 8
    assert float(alignment_loss(totals, stating)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    nothing = alignment_loss(totals[3:6].requires_grad_(), stating[3:6])
    assert float(nothing) == 0


def test_read_alignment_loss_equals_a_loop() -> None:
    torch.manual_seed(0)
    pattern = torch.randn(6, 3, 11).softmax(-1)[..., 1:]  # the first is what is read of nothing
    answer = torch.rand(6, 10) < 0.3
    answer[2] = False
    losses = []
    for heads, is_it in zip(pattern, answer, strict=True):
        share = sum(float(head[slot]) for head in heads for slot in range(10) if is_it[slot]) / 3
        if is_it.any():
            losses.append(-math.log(share))
    assert len(losses) == 5
    assert float(read_alignment_loss(pattern, answer)) == pytest.approx(sum(losses) / 5, rel=1e-5)
    nothing = read_alignment_loss(pattern[2:3].requires_grad_(), answer[2:3])
    assert float(nothing) == 0


def taught(config: Config, tokenizer: Tokenizer, bank: SentenceBank) -> tuple[torch.Tensor, Lesson]:
    """Two windows of statements and their lesson."""
    made = StatementMaker(taught_facts(world(), bank, 0.0), bank, tokenizer, 0.5).windows((0, 0), 2, 65)
    lesson = Lesson(
        step=0,
        rows=torch.tensor(made.rows),
        positions=torch.tensor(made.positions),
        answers=torch.from_numpy(made.tokens[made.rows, np.array(made.positions) + 1]),
        stating=[torch.from_numpy(entries) for entries in made.stating],
        swapped=made.swapped,
        blocked=[np.empty(0, np.int64)] * 2,
    )
    assert lesson.swapped
    return torch.from_numpy(made.tokens), lesson


def test_the_lesson_asks_at_the_last_token_before_the_object(
    corpus_dir: Path, folder: Path, tokenizer: Tokenizer, bank: SentenceBank
) -> None:
    """By hand: of the candidates where each fact is asked, what stating sentences have of the softmax of totals."""
    config = text_config(corpus_dir, folder, text={"read_alignment": 0.0})
    model = filled_model(config, tokenizer).train()
    tokens, lesson = taught(config, tokenizer, bank)
    with teaching(model, lesson):
        model(tokens[:, :-1])
    assert model.text_bank is not None
    found = model.text_bank.find(tokens[:, :-1])
    losses = []
    for row, at, own in zip(lesson.rows, lesson.positions, lesson.stating, strict=True):
        entries, shares = found.entries[row, at], found.scores[row, at]
        totals = (10.0 * shares).masked_fill(entries < 0, -torch.inf)  # the learned part is 0 yet
        states = torch.isin(entries, own)
        if states.any() and (~states & (entries >= 0)).any():
            losses.append(totals.logsumexp(0) - totals[states].logsumexp(0))
    assert len(losses) > 5
    expected = float(torch.stack(losses).mean())
    assert taught_loss(lesson).item() == pytest.approx(expected, rel=1e-4)


def test_the_lesson_shows_where_the_answer_stands(
    corpus_dir: Path, folder: Path, tokenizer: Tokenizer, bank: SentenceBank
) -> None:
    """By hand, from the recorded pattern: what falls on the answer's token in stating sentences, swapped ones too."""
    config = text_config(corpus_dir, folder, text={"alignment": 0.0, "read_alignment": 2.0})
    model = filled_model(config, tokenizer).train()
    tokens, lesson = taught(config, tokenizer, bank)
    with teaching(model, lesson), capture_memory(model) as captured:
        model(tokens[:, :-1])
    read, losses = captured[1], []
    for row, at, own in zip(lesson.rows, lesson.positions, lesson.stating, strict=True):
        answer, share = int(tokens[row, at + 1]), torch.zeros(())
        for place, number in enumerate(read.indices[row, at].tolist()):
            entry = number - config.first_sentence
            ids = lesson.swapped.get(entry, bank.ids[entry, : bank.lengths[entry]].tolist())
            if entry in own.tolist() and answer in ids:
                assert read.slot_weights is not None
                weights = read.slot_weights[row, at, place]
                share += sum(weight for weight, token in zip(weights, ids, strict=False) if token == answer)
        if share > 0:
            losses.append(-share.log())
    assert len(losses) > 5
    assert taught_loss(lesson).item() == pytest.approx(2 * float(torch.stack(losses).mean()), rel=1e-4)


@pytest.mark.slow
def test_gradients_are_those_without_gradient_checkpointing(
    corpus_dir: Path, folder: Path, tokenizer: Tokenizer, bank: SentenceBank
) -> None:
    """What is computed again for the gradients reads the swapped sentences too, and counts the lesson once."""
    gradients = []
    for again in (False, True):
        config = text_config(corpus_dir, folder, train={"gradient_checkpointing": again})
        model = filled_model(config, tokenizer).train()
        tokens, lesson = taught(config, tokenizer, bank)
        with teaching(model, lesson):
            logits = model(tokens[:, :-1])
        (next_token_loss(logits, tokens[:, 1:]).mean() + taught_loss(lesson)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-7, rtol=1e-4, msg=name)
    assert gradients[0]["blocks.1.text.gate.query_proj.weight"].abs().max() > 0


class Planted:
    """A task that only reading solves: in every step each person has another random colour, in a sentence."""

    COLOURS = ("red", "blue", "green", "black", "white", "pink", "brown", "grey")

    def __init__(self) -> None:
        self.people = [fact.subject for fact in world()[::2]]
        texts = [self.sentence(person, colour) for person in self.people for colour in self.COLOURS]
        self.tokenizer = Tokenizer.train(iter(texts), 320)
        plain = [self.sentence(person, "red") for person in self.people]
        self.bank = SentenceBank.of([Sentence(text, ()) for text in plain], self.tokenizer.encode_batch(plain))

    @staticmethod
    def sentence(person: str, colour: str) -> str:
        return f"The house of {person} is {colour} ."

    def batch(self, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Lesson]:
        """Tokens, and by row the position asked and the colour's first token."""
        chance = np.random.default_rng(seed)
        colour_of = {n: self.COLOURS[chance.integers(8)] for n in range(len(self.people))}
        swapped = {n: self.tokenizer.encode(self.sentence(self.people[n], colour)) for n, colour in colour_of.items()}
        asked = chance.integers(len(self.people), size=rows)
        pairs = [(f"The house of {self.people[n]} is", f" {colour_of[n]} .") for n in asked]
        ids = self.tokenizer.encode_pairs(pairs)
        length = max(len(question) + len(answer) for question, answer in ids) + 1
        tokens = torch.full((rows, length), self.tokenizer.eos)
        for row, (question, answer) in enumerate(ids):
            whole = [self.tokenizer.bos, *question, *answer]
            tokens[row, : len(whole)] = torch.tensor(whole)
        at = torch.tensor([len(question) for question, _ in ids])
        answer = torch.tensor([answer[0] for _, answer in ids])
        none = np.empty(0, np.int64)
        lesson = Lesson(
            step=seed,
            rows=torch.arange(rows),
            positions=at,
            answers=answer,
            stating=[torch.tensor([n]) for n in asked],
            swapped=swapped,
            blocked=[none] * rows,
        )
        return tokens, at, answer, lesson


@pytest.mark.slow
def test_reading_is_learned(corpus_dir: Path, folder: Path) -> None:
    task = Planted()
    config = text_config(corpus_dir, folder, model={"block": ["ffn", "text"]}, text={"candidates": 4})
    model = MemoryTransformer(config, seed=0)
    fill_text_bank(model, task.bank, task.tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0)

    def share_right(rows: int, seed: int) -> float:
        tokens, at, answer, lesson = task.batch(rows, seed)
        with torch.no_grad(), teaching(model, lesson):
            logits = model(tokens)[torch.arange(rows), at]
        return float((logits.argmax(-1) == answer).float().mean())

    for step in range(160):
        tokens, _, _, lesson = task.batch(32, step)
        with teaching(model, lesson):
            logits = model(tokens[:, :-1])
        (next_token_loss(logits, tokens[:, 1:]).mean() + taught_loss(lesson)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert share_right(400, 10_000) > 0.5  # an eighth by chance


def taught_config(corpus_dir: Path, folder: Path, **train_values: object) -> Config:
    often = {"steps": 10, "save_interval": 5, "eval_interval": 4, "log_interval": 1, "eval_tokens": 128}
    return text_config(corpus_dir, folder, model={"max_seq_len": 32}, train=often | train_values)


def losses(run: Path, kind: str = "train") -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == kind]


@pytest.fixture(scope="module")
def whole(corpus_dir: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(taught_config(corpus_dir, folder), run, device="cpu")
    return run


def test_validation_says_how_many_sentences_are_selected(whole: Path) -> None:
    n = len(run_bank(whole).lengths)
    for line in read_metrics(whole / "metrics.jsonl"):
        if line["kind"] == "eval":
            assert (line["layer_0/entries"], line["layer_1/entries"]) == (64, n)
            assert 0 < line["layer_1/selections"] < 128 * 4  # a token may find fewer than 4 sentences
            assert line["layer_1/coverage"] == 1 - line["layer_1/dead"] / n


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    whole: Path, corpus_dir: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its own sentences too, whatever became of the file that it was given."""

    class Stopped(Exception):
        pass

    def stop_at(self: Batches, step: int, micro: int) -> object:
        if step == 7:
            raise Stopped
        return batch(self, step, micro)

    batch = Batches.batch
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "batch", stop_at)
        with pytest.raises(Stopped):
            train(taught_config(corpus_dir, folder), tmp_path / "run", device="cpu")
    train(taught_config(corpus_dir, folder), tmp_path / "run", resume=True, device="cpu")
    for kind in ("train", "eval"):
        assert losses(tmp_path / "run", kind) == losses(whole, kind)
    assert [path.name for path in list_checkpoints(whole)] == [path.name for path in list_checkpoints(tmp_path / "run")]
    for name in ("model.safetensors", "optimizer.safetensors"):
        found, expected = (load_file(list_checkpoints(run)[-1] / name) for run in (tmp_path / "run", whole))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("block", [["memory", "text"], ["ffn", "text_ffn"]])
def test_two_processes_train_together(
    corpus_dir: Path, folder: Path, tmp_path: Path, group: Callable[..., Any], block: list[str]
) -> None:
    """Each makes statements of its own, and both step alike."""
    config = taught_config(corpus_dir, folder, steps=3, batch_size=2)
    config = config.model_copy(update={"model": config.model.model_copy(update={"block": tuple(block)})})
    done = group(config, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "two")) == 3 and all(map(math.isfinite, losses(tmp_path / "two")))
    before = MemoryTransformer(config, config.train.seed).state_dict()
    after = load_run(tmp_path / "two").model.state_dict()
    still = [name for name, value in before.items() if "text" in name and torch.equal(value, after[name])]
    assert still == []  # every weight of the text layer was trained


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fsdp2", "deepspeed"])
def test_sharded_training_of_text_layers_is_refused(
    corpus_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("memscope.train.parallel.strategy", lambda: how)
    monkeypatch.setattr("memscope.train.parallel.find_spec", lambda _: True)
    monkeypatch.setenv("FSDP_VERSION", "2")
    config = taught_config(corpus_dir, folder, lazy_bank=False)
    with pytest.raises(InputError, match=r"block=text: .* train with DDP"):
        check_strategy(config)
