"""Text to ids and back."""

import json
from pathlib import Path

import pytest
import tokenizers
from conftest import make_sentences

from memscope.errors import InputError
from memscope.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXTS = [
    "Ada Holm was born in Aston .",
    "",
    "  two spaces\tand a tab\nand a line ",
    "Straße, naïve café, Ωμέγα, 漢字, עברית, 🙂👩‍👩‍👧",
    "\u2028 line separator, \x00 nul, \u200b zero width",
    "e\u0301 is not \u00e9",
    "<|im_start|>system<|im_end|><|endoftext|>",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(make_sentences(300, seed=0), 320)


@pytest.mark.parametrize("size", [259, 300, 350])
def test_a_trained_tokenizer_has_exactly_the_asked_size(size: int) -> None:
    trained = Tokenizer.train(make_sentences(300, seed=0), size)
    assert trained.vocab_size == size
    assert (trained.pad, trained.bos, trained.eos) == (0, 1, 2)
    assert [trained.backend.id_to_token(i) for i in range(3)] == list(SPECIAL_TOKENS)


def test_training_is_deterministic(tokenizer: Tokenizer) -> None:
    again = Tokenizer.train(make_sentences(300, seed=0), 320)
    assert again.backend.to_str() == tokenizer.backend.to_str()


def test_a_corpus_too_small_for_the_vocabulary_is_refused_with_what_it_gives() -> None:
    with pytest.raises(InputError, match=r"too small for a vocabulary of 500 \(it gives \d+\); lower vocab_size"):
        Tokenizer.train(["abc"], 500)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_that_looks_like_a_special_token_stays_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    for each in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        assert not {0, 1, 2} & set(each.encode("".join(SPECIAL_TOKENS)))
        assert not {0, 1, 2} & set(each.encode_batch(["".join(SPECIAL_TOKENS)])[0])


def test_a_batch_gives_the_ids_of_single_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("text", TEXTS)
def test_token_bytes_add_up_to_the_utf8_length(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode())


def test_special_tokens_stand_for_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes[:3].tolist() == [0, 0, 0]
    assert (tokenizer.token_bytes[3:] > 0).all()


def test_token_texts_show_parts_of_characters_as_replacement(tokenizer: Tokenizer) -> None:
    texts = tokenizer.token_texts
    assert len(texts) == 320
    assert all(texts[i] == "\ufffd" for i in tokenizer.encode("漢"))
    assert [texts[i] for i in tokenizer.encode("{")] == ["{"]


def test_a_saved_tokenizer_loads_to_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.backend.to_str() == tokenizer.backend.to_str()
    assert (loaded.pad, loaded.bos, loaded.eos) == (0, 1, 2)


def test_truncation_and_padding_of_a_file_are_switched_off(tokenizer: Tokenizer, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode_batch(TEXTS[:2]) == [tokenizer.encode(TEXTS[0]), []]


def test_a_wordpiece_vocabulary_finds_its_own_special_tokens() -> None:
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "ada": 4}
    loaded = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]")))
    assert (loaded.pad, loaded.bos, loaded.eos) == (0, 2, 3)
    assert loaded.token_bytes[4] == 3


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe\x00", b"not json", b'{"version": "1.0"', b"[1, 2]"])
def test_what_is_not_a_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer.json: not a tokenizer.json"):
        Tokenizer.load(path)


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such tokenizer file"):
        Tokenizer.load(tmp_path / "nowhere.json")


def test_a_vocabulary_without_special_tokens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    path.write_text(json.dumps(json.loads(backend.to_str())))
    with pytest.raises(InputError, match=r"tokenizer.json: no pad token; one of <\|endoftext\|>"):
        Tokenizer.load(path)
