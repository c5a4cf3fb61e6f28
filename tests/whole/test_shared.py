"""The real data: T-REx sentences, a Wikipedia corpus and a tokenizer of 6,400 entries."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from memscope.census import preference
from memscope.config.load import Config
from memscope.query.recording import Recording
from memscope.record.decode import kept_share, nearest_tokens
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.own import OwnRun
from memscope.run.bank_init import encode_sentences, init_bank
from memscope.run.checkpoint import load_run
from memscope.text.corpus import pack_corpus, read_documents
from memscope.text.sentences import Sentence, choose_sentences, read_sentences
from memscope.text.tokenizer import Tokenizer
from memscope.train.loop import train
from tests.conftest import SHARED, tiny_config

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    return read_sentences(SHARED / "trex" / "sentence_trex_data.json")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(SHARED / "tokenizer" / "tokenizer.json")


def test_trex_sentences_keep_their_triples(sentences: list[Sentence]) -> None:
    triples = [triple for sentence in sentences for triple in sentence.triples]
    assert len({triple.predicate for triple in triples}) == 28
    assert all(triple.uuid and triple.subject and triple.object for triple in triples)
    assert len({triple.uuid for triple in triples}) == len(set(triples)) == 22_876  # a statement keeps its uuid
    assert len({sentence.text for sentence in sentences}) == len(sentences) == 89_264


def test_the_tokenizer_round_trips_real_text(sentences: list[Sentence], tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 6400
    for sentence in sentences[::97]:
        ids = tokenizer.encode(sentence.text)
        assert tokenizer.decode(ids) == sentence.text
        assert tokenizer.token_bytes[ids].sum() == len(sentence.text.encode())


def test_the_validation_corpus_packs_whole(tokenizer: Tokenizer, tmp_path: Path) -> None:
    packed = pack_corpus(SHARED / "corpus" / "valid.jsonl", tokenizer, tmp_path)
    assert len(packed.tokens) == pytest.approx(918_000, rel=0.01)
    documents = list(read_documents(SHARED / "corpus" / "valid.jsonl"))
    assert len(packed.titles) == len(documents)
    last = packed.tokens[packed.starts[-2] : packed.starts[-1]].tolist()
    assert tokenizer.decode(last[1:-1]) == documents[-1].text


def test_slots_of_real_sentences_decode_to_all_their_tokens(sentences: list[Sentence], tokenizer: Tokenizer) -> None:
    chosen = choose_sentences(sentences, 200, seed=0)
    ids = encode_sentences(chosen, tokenizer, knowledge_length=32)
    chance = np.random.default_rng(0)
    table = chance.normal(0, 0.02, (6400, 512)).astype(np.float32)
    init = init_bank(chance.standard_normal((200, 32, 128)).astype(np.float32), ids, table, tokenizer.pad, seed=0)
    space = torch.from_numpy(init.table @ init.projection)
    nearest = nearest_tokens(torch.from_numpy(init.entries).flatten(0, 1), space, 1).tokens.reshape(200, 32)
    assert kept_share(nearest.tolist(), ids, 32) == [1.0] * 200


def real_config(folder: Path, lines: int) -> Config:
    with (SHARED / "corpus" / "pretrain.jsonl").open() as whole, (folder / "train.jsonl").open("w") as part:
        part.writelines(line for line, _ in zip(whole, range(lines), strict=False))
    sentences = json.loads((SHARED / "trex" / "sentence_trex_data.json").read_text())
    (folder / "sentences.json").write_text(json.dumps(sentences[::20]))  # all of them take a while to read
    return tiny_config(
        folder,
        model={"vocab_size": 6400},
        memory={"database_init_path": str(folder / "sentences.json"), "knowledge_num": 1024},
        data={
            "valid_path": str(SHARED / "corpus" / "valid.jsonl"),
            "tokenizer_path": str(SHARED / "tokenizer" / "tokenizer.json"),
        },
        train={"steps": 5, "eval_tokens": 512},
    )


def test_a_tiny_model_trains_on_real_text_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference, "SHUFFLED_ENTRIES", 1e7)  # no p-value is looked at here
    summary = train(real_config(tmp_path, lines=500), tmp_path / "run", device="cpu")
    assert summary["valid_loss"] < summary["untrained_valid_loss"] < 9
    options = RecordOptions(max_tokens=3000, part_tokens=1000)
    record(OwnRun(load_run(tmp_path / "run")), SHARED / "corpus" / "valid.jsonl", tmp_path / "recording", options)
    recording = Recording(tmp_path / "recording")
    assert recording.usage().sum() == 3000 * 2 * 4
    predicates = recording.preferences().query("attribute == 'predicate'")
    assert len(set(predicates["label"])) > 10
    words = set(recording.sql("SELECT words FROM titles")["words"].dropna().str.split(" · ").explode())
    text = next(read_documents(SHARED / "corpus" / "valid.jsonl")).text
    assert len([word for word in words if word in text]) > 20  # real words, whole
    card = recording.entry(int(recording.entries(limit=1)["entry"][0]))
    assert card.sentence and len(card.triples) > 0
