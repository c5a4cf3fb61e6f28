"""Every kind of tokenizer through training, recording, evaluation, traces and facts: one small run each."""

import json
import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from memscope.base.errors import InputError
from memscope.causal.edit import plan_edits
from memscope.causal.facts import answerable, audit_facts, tokenize_facts
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.record.trace import trace_text
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.text.corpus import pack_corpus
from memscope.text.fact_files import Fact
from memscope.text.tokenizer import Tokenizer
from memscope.train.evaluate import check_generation, evaluate
from memscope.train.loop import train
from tests.conftest import CliResult, make_sentences, tiny_config

pytestmark = pytest.mark.slow

TEXTS = [*make_sentences(200, seed=5), "Paris, London and Rome .", "Ada  Holm's Café:\n\t(1, 2)"]
UNSEEN = ["Ada Holm was born in Aston .", "  two spaces, a tab\t, a line \n .", "Ωμέγα 漢字 🙂 e\u0301 \u200b", "Holm"]


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2, Qwen: one special token, which opens and ends documents."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings = {"initial_alphabet": alphabet, "special_tokens": ["<|endoftext|>"], "show_progress": False}
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, **settings))
    return backend


def gapped(last: int = 2000) -> tokenizers.Tokenizer:
    """The same with a special token far behind the others."""
    raw = json.loads(byte_level().to_str())
    raw["added_tokens"].append(raw["added_tokens"][0] | {"id": last, "content": "<|begin_of_text|>"})
    raw["model"]["vocab"]["<|begin_of_text|>"] = last
    return tokenizers.Tokenizer.from_str(json.dumps(raw))


def llama() -> tokenizers.Tokenizer:
    """Llama 2: the normaliser puts a space before a text, unknown characters become bytes."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(
        [text for text in TEXTS if text.isascii()],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False),
    )
    raw = json.loads(backend.to_str())
    model = models.BPE(
        raw["model"]["vocab"],
        [tuple(pair) for pair in raw["model"]["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    backend.add_special_tokens(special[:3])
    return backend


def metaspace() -> tokenizers.Tokenizer:
    """T5, XLM-R: a unigram model, whose vocabulary holds the names of special tokens as words."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    settings = {"unk_token": "<unk>", "special_tokens": special, "show_progress": False}
    backend.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=200, **settings))
    return backend


def wordpiece() -> tokenizers.Tokenizer:
    """BERT: lower case, ##ing, [CLS] and [SEP]."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    )
    return backend


def word_ends() -> tokenizers.Tokenizer:
    """GPT-1: a word ends with </w>, which stands for the space behind it."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder("</w>")
    special = ["<unk>", "</s>"]
    settings = {"special_tokens": special, "end_of_word_suffix": "</w>", "show_progress": False}
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, **settings))
    return backend


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    kind.__name__: kind for kind in (byte_level, gapped, llama, metaspace, wordpiece, word_ends)
}
LOSSLESS = ("byte_level", "gapped", "llama")
"""Kinds that keep every text."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer(KINDS[kind]())


class World(NamedTuple):
    """A run with the tokenizer, and a recording of it."""

    run: LoadedRun
    recording: Recording
    valid: Path
    documents: list[str]


@pytest.fixture(scope="module")
def world(kind: str, tokenizer: Tokenizer, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp(kind)
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    config = tiny_config(
        corpus_dir,
        model={"vocab_size": tokenizer.vocab_size},
        data={"tokenizer_path": str(folder / "tokenizer.json"), "cache_dir": str(folder / "cache")},
        train={"steps": 2, "eval_interval": 2, "save_interval": 2, "eval_tokens": 200},
    )
    train(config, folder / "run", device="cpu")
    run, valid = load_run(folder / "run"), corpus_dir / "valid.jsonl"
    record(OwnRun(run), valid, folder / "recording", RecordOptions(max_tokens=400))
    documents = [json.loads(line)["text"] for line in valid.read_text().splitlines()]
    return World(run, Recording(folder / "recording"), valid, documents)


def test_texts_come_back_with_their_spaces(kind: str, tokenizer: Tokenizer) -> None:
    plain = "Ada Holm was born in Aston ."
    for text in UNSEEN if kind in LOSSLESS else [plain]:
        ids = tokenizer.encode(text)
        back = tokenizer.decode(ids)
        assert (back.lower() if kind == "wordpiece" else back) == (
            plain.lower().replace(" .", ".") if kind == "wordpiece" else text
        )
        for cut in range(1, len(ids)):  # what is generated goes on with what was read
            whole = tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:], after=ids[:cut])
            assert whole == back or not {ids[cut - 1], ids[cut]}.isdisjoint(tokenizer.partial)
        assert tokenizer.decode([tokenizer.bos, *ids]) == tokenizer.name(tokenizer.bos) + back


def test_token_texts_are_those_inside_a_text(kind: str, tokenizer: Tokenizer) -> None:
    texts = [tokenizer.token_texts[i] for i in tokenizer.encode("Ada was born in Aston")]
    if kind == "word_ends":
        assert texts[-2:] == ["in ", "Aston "] and "".join(texts) == "Ada was born in Aston "
    else:
        *_, begin = (n for n, text in enumerate(texts) if text[0] == " ")
        assert "".join(texts[begin:]).lower() == " aston"
        assert "".join(texts).strip().lower() == "ada was born in aston"
    assert not any("##" in text or "▁" in text or "Ġ" in text or "</w>" in text for text in texts)


def test_bytes_of_tokens_add_up_to_those_of_the_document(kind: str, tokenizer: Tokenizer) -> None:
    for text in UNSEEN if kind in LOSSLESS else ["Ada Holm was born in Aston ."]:
        ids = np.array([tokenizer.bos, *tokenizer.encode(text), tokenizer.eos])
        lost = 1 if kind == "wordpiece" else 0  # the space before the full stop
        assert tokenizer.text_size(ids) == len(text.encode()) - lost
    assert not tokenizer.token_bytes[list(tokenizer.control)].any()


def test_names_of_special_tokens_in_a_text_stay_text(tokenizer: Tokenizer) -> None:
    text = f"Ada {''.join(tokenizer.name(i) for i in sorted(tokenizer.control))} Holm"
    encoded = [
        tokenizer.encode(text),
        tokenizer.encode_batch([text])[0],
        [*chain(*tokenizer.encode_pairs([("", text)])[0])],
    ]
    assert encoded[0] == encoded[1] == encoded[2]
    assert not (tokenizer.control - {tokenizer.unk}) & set(encoded[0])


def test_a_continuation_begins_with_more_than_a_space(kind: str, tokenizer: Tokenizer) -> None:
    words = ["Aston", "Berrow", "Calder", "a painter", "Ada"]
    pairs = [("Ada Holm works in", f" {word}") for word in words]
    for word, (before, after) in zip(words, tokenizer.encode_pairs(pairs), strict=True):
        assert [*before, *after] == tokenizer.encode(f"Ada Holm works in {word}")
        text = tokenizer.token_texts[after[0]].strip()
        assert text and word.lower().startswith(text.lower())
    [(before, after)] = tokenizer.encode_pairs([("works in (", "Aston)")])
    assert "".join(tokenizer.token_texts[i] for i in after).lower().strip().startswith("aston")


def test_ids_without_a_token_have_a_name(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == max(tokenizer.backend.get_vocab().values()) + 1
    assert len(tokenizer.token_texts) == len(tokenizer.token_bytes) == tokenizer.vocab_size
    gaps = [i for i in range(tokenizer.vocab_size) if tokenizer.backend.id_to_token(i) is None]
    assert not tokenizer.token_bytes[gaps].any()
    assert {tokenizer.decode([i]) for i in gaps[:3]} == {f"<id {i}>" for i in gaps[:3]}


def test_ids_beyond_16_bits_are_packed_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"text": "Ada"}\n')
    tokenizer = Tokenizer(gapped(last=70_000))
    assert tokenizer.vocab_size == 70_001
    packed = pack_corpus(tmp_path / "corpus.jsonl", tokenizer, tmp_path / "cache")
    assert packed.tokens.tolist() == [70_000, *tokenizer.encode("Ada"), 0]


def test_documents_are_packed_and_counted_by_their_own_bytes(world: World) -> None:
    tokenizer = world.run.tokenizer
    packed = pack_corpus(world.valid, tokenizer, Path(world.run.config.data.cache_dir))
    assert packed.text_bytes.tolist() == [len(text.encode()) for text in world.documents]
    assert set(packed.tokens[packed.starts[:-1]]) == {tokenizer.bos}
    assert set(packed.tokens[packed.starts[1:] - 1]) == {tokenizer.eos}
    assert packed.tokens[1 : packed.starts[1] - 1].tolist() == tokenizer.encode(world.documents[0])


def test_bits_per_byte_count_the_documents_bytes(kind: str, world: World) -> None:
    run = world.run

    class Even(type(run.model)):
        def unembed(self, resid: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*resid.shape[:-1], run.config.model.vocab_size)

    packed = pack_corpus(world.valid, run.tokenizer, Path(run.config.data.cache_dir))
    cut = int(packed.starts[1]) + 30
    for max_tokens in (None, int(packed.starts[1]), cut):
        result, _ = evaluate(Even(run.config), packed, run.tokenizer, max_tokens, "float32")
        documents = world.documents if max_tokens is None else world.documents[:1]
        n_bytes = float(len("".join(documents).encode()))
        if max_tokens == cut:
            text = run.tokenizer.decode(packed.tokens[packed.starts[1] + 1 : cut + 1].tolist())
            n_bytes += len(text.encode())
        expected = result.tokens * math.log2(run.config.model.vocab_size) / n_bytes
        loose = max_tokens == cut and kind not in LOSSLESS
        assert result.bits_per_byte == pytest.approx(expected, rel=0.02 if loose else 1e-6)


def test_a_recording_can_be_read_without_the_run(kind: str, world: World) -> None:
    own, tokenizer = world.recording.tokenizer, world.run.tokenizer
    assert (own.roles, own.bos, own.eos, own.pad) == (tokenizer.roles, tokenizer.bos, tokenizer.eos, tokenizer.pad)
    trace = world.recording.trace(0, count=60).tokens
    assert trace["token"].tolist()[0] == tokenizer.bos
    ids = tokenizer.encode(world.documents[0])[:59]
    assert trace["token"].tolist()[1:] == ids
    assert tokenizer.decode(trace["token"].tolist()[1:]) == tokenizer.decode(ids)
    apart = world.recording.sql("SELECT words FROM titles WHERE words IS NOT NULL")["words"]
    words = {word for words in apart for word in words.split(" · ")}
    text = " ".join(world.documents).lower()
    assert words and all(word.lower() in text for word in words)
    assert all(word.split() == [word] for word in words)  # none is glued to the next


def test_a_trace_and_a_generation_go_on_with_the_text(world: World, cli: Callable[..., CliResult]) -> None:
    run, text = world.run, "Ada Holm was born in"
    traced = trace_text(OwnRun(run), text).trace.tokens
    assert traced["token"].tolist() == [run.tokenizer.bos, *run.tokenizer.encode(text)]
    assert "".join(traced["text"][1:]).strip().lower() == text.lower()
    done = cli("generate", run.path, text, "--tokens", 5, "--temperature", 0)
    prompt = [run.tokenizer.bos, *run.tokenizer.encode(text)]
    assert done.code == 0 and done.out.startswith(text)
    new = run.model(torch.tensor([prompt]))[0, -1].argmax().item()
    if new not in run.tokenizer.control:
        assert done.out.startswith(text + run.tokenizer.decode([new], after=prompt))
    corpus = pack_corpus(world.valid, run.tokenizer, Path(run.config.data.cache_dir))
    check, _ = check_generation(run.model, corpus, run.tokenizer, "float32", samples=1, new_tokens=3)
    assert check.samples == 1


def test_facts_are_judged_by_the_first_token_of_their_object(world: World) -> None:
    tokenizer = world.run.tokenizer
    objects = ["Aston", "Berrow", "Calder", "Dunmore", "Elham"]
    facts = [Fact("u1", "Ada Holm", "place of birth", object_, "[X] was born in [Y] .") for object_ in objects]
    asked = tokenize_facts(facts, tokenizer)
    texts = [tokenizer.token_texts[answer].strip() for answer in asked.answers]
    assert all(text and word.lower().startswith(text.lower()) for word, text in zip(objects, texts, strict=True))
    whole = [tokenizer.encode(f"Ada Holm was born in {word} .") for word in objects]
    for ids, question, answer in zip(whole, asked.questions, asked.answers, strict=True):
        assert [tokenizer.bos, *ids][: len(question) + 1] == [*question, answer]
    audit = audit_facts(world.run, facts)
    assert audit.facts["answer"].tolist() == asked.answers.tolist()


def test_edits_judge_both_objects_at_the_same_place(world: World) -> None:
    tokenizer = world.run.tokenizer
    said, glued = "People say Ada Holm was born in [MASK] .", "Ada Holm was born in ([MASK]) ."
    facts = [
        Fact("", subject, "place of birth", object_, "[X] was born in [Y] .", (said, glued))
        for subject in ("Ada Holm", "Bo Lind")
        for object_ in ("Aston", "Berrow", "Calder", "Dunmore", "Elham", "Farley")
    ]
    for edit in plan_edits(world.run, facts, 4, seed=0):
        for kind, ids in edit.prompts:
            read = tokenizer.decode(ids[1:]).rstrip()
            gap = "" if read.endswith("(") else " "
            objects = [(edit.fact.object, edit.true_token)]
            if kind == "question":
                objects.append((edit.new_object, edit.new_token))
            for word, token in objects:
                assert tokenizer.encode(f"{read}{gap}{word} .")[: len(ids)] == [*ids[1:], token]


def test_facts_whose_object_has_no_token_are_left_out(
    kind: str, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    known, unknown = (Fact("", "Ada", "p", word, "[X] is in [Y] .") for word in ("Aston", "漢字"))
    left = answerable([known, unknown], tokenizer)
    if kind in LOSSLESS:
        assert left == [known, unknown]
        return
    assert left == [known]
    assert "of 1 of 2 facts, for instance '漢字'; these facts are left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="no token for the object of 1 of 1 facts"):
        answerable([unknown], tokenizer)


def test_a_template_without_a_space_has_none_before_its_object() -> None:
    fact = Fact("", "北京", "p", "中国", "[X]位于[Y]。")
    assert (fact.question, fact.answer) == ("北京位于", "中国")
    assert Fact("", "Ada", "p", "Aston", "[X] is in [Y] .").answer == " Aston"
