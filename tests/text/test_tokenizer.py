"""Text to ids and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from memscope.base.errors import InputError
from memscope.text.special_tokens import SPECIAL_TOKENS, Roles
from memscope.text.tokenizer import Tokenizer
from tests.conftest import make_sentences

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


def test_token_texts_write_out_the_bytes_of_parts_of_characters(tokenizer: Tokenizer) -> None:
    texts = tokenizer.token_texts
    assert len(texts) == 320
    assert [texts[i] for i in tokenizer.encode("漢")] == ["\\xe6", "\\xbc", "\\xa2"]
    assert tokenizer.partial >= set(tokenizer.encode("漢")) and tokenizer.partial.isdisjoint(tokenizer.encode("{"))
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
    assert loaded.text_size(np.array([2, 4, 3])) == 3


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
    vocabulary("a").save(str(path))
    with pytest.raises(InputError, match=r"tokenizer.json: no token opens or closes documents.*set bos_token or eos"):
        Tokenizer.adopt(path)
    named = Tokenizer.adopt(path, Roles(eos="a"))
    assert (named.bos, named.eos, named.pad) == (0, 0, 0)
    assert not named.control and named.encode("a") == [0]  # a word that is given a role stays a word


def vocabulary(*names: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(tokenizers.models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))


@pytest.mark.parametrize(
    ("names", "bos", "eos", "pad"),
    [
        (("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),  # GPT-2
        (
            ("a", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
            "<|endoftext|>",
            "<|endoftext|>",
            "<|endoftext|>",
        ),  # Qwen
        (SPECIAL_TOKENS, "<|im_start|>", "<|im_end|>", "<|endoftext|>"),  # MiniMind, and what is trained here
        (("<unk>", "<s>", "</s>"), "<s>", "</s>", "</s>"),  # Llama 2
        (
            ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|end_of_text|>",
        ),
        (("<pad>", "<eos>", "<bos>", "<unk>"), "<bos>", "<eos>", "<pad>"),  # Gemma
        (("<|end_of_text|>", "<fim_prefix>"), "<|end_of_text|>", "<|end_of_text|>", "<|end_of_text|>"),  # Granite
        (
            ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"),  # DeepSeek
            *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"),
        ),
        (("[PAD]", "[UNK]", "[CLS]", "[SEP]"), "[CLS]", "[SEP]", "[PAD]"),  # BERT
        (("<pad>", "</s>", "<unk>"), "</s>", "</s>", "<pad>"),  # T5
        (("<EOT>", "<META>"), "<EOT>", "<EOT>", "<EOT>"),  # one token opens, another is unknown
    ],
)
def test_roles_are_found_by_well_known_names(names: tuple[str, ...], bos: str, eos: str, pad: str) -> None:
    found = Tokenizer(vocabulary(*names))
    assert [found.name(i) for i in (found.bos, found.eos, found.pad)] == [bos, eos, pad]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("tokenizer_config.json", {"bos_token": None, "eos_token": "</s>"}, ("</s>", "</s>", "<pad>")),
        ("tokenizer_config.json", {"bos_token": {"content": "a", "lstrip": False}}, ("a", "</s>", "<pad>")),
        ("tokenizer_config.json", {"model_max_length": 512, "add_bos_token": True}, ("<s>", "</s>", "<pad>")),
        ("tokenizer_config.json", {"bos_token": None, "cls_token": "a", "sep_token": "b"}, ("a", "b", "<pad>")),
        ("tokenizer_config.json", {"pad_token": None}, ("<s>", "</s>", "</s>")),
        ("special_tokens_map.json", {"eos_token": "b", "pad_token": "a"}, ("<s>", "b", "a")),
    ],
)
def test_roles_are_what_the_files_beside_the_tokenizer_say(
    tmp_path: Path, file: str, content: dict[str, object], expected: tuple[str, ...]
) -> None:
    vocabulary("<pad>", "<s>", "</s>", "a", "b").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / file).write_text(json.dumps(content))
    found = Tokenizer.adopt(tmp_path / "tokenizer.json")
    assert tuple(found.name(i) for i in (found.bos, found.eos, found.pad)) == expected
    (tmp_path / "run").mkdir()
    found.save(tmp_path / "run" / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "run" / "tokenizer.json")
    assert (again.roles, again.bos, again.eos, again.pad) == (found.roles, found.bos, found.eos, found.pad)


def test_names_of_the_config_go_before_files(tmp_path: Path) -> None:
    vocabulary("<pad>", "<s>", "</s>", "a", "b").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    found = Tokenizer.adopt(tmp_path / "tokenizer.json", Roles(bos="", eos="a"))
    assert found.roles == Roles(bos=None, eos="a", pad="<pad>", unk=None)
    assert (found.bos, found.eos, found.pad) == (3, 3, 0)


@pytest.mark.parametrize(
    ("content", "asked", "message"),
    [
        (
            '{"bos_token": "<bos>"}',
            None,
            r"has no token '<bos>', the bos_token of .*tokenizer_config.json; name another",
        ),
        ("{}", Roles(pad="[PAD]"), r"has no token '\[PAD\]', the pad_token of the config"),
        ('{"eos_token": 3}', None, r"tokenizer_config.json: eos_token is no name of a token"),
        ("[]", None, "an object with bos_token"),
        ("{", None, "tokenizer_config.json:1: not valid JSON"),
    ],
)
def test_a_role_that_no_token_can_have_is_refused(
    tmp_path: Path, content: str, asked: Roles | None, message: str
) -> None:
    vocabulary("<s>", "</s>").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Tokenizer.adopt(tmp_path / "tokenizer.json", asked)


def test_a_run_without_a_file_of_roles_has_those_it_was_trained_with(tmp_path: Path) -> None:
    vocabulary("a", "<|endoftext|>", "<|im_start|>", "<|im_end|>").save(str(tmp_path / "tokenizer.json"))
    earlier = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (earlier.pad, earlier.bos, earlier.eos) == (1, 2, 3)
    earlier.save(tmp_path / "tokenizer.json")  # as when it is resumed
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.pad, again.bos, again.eos) == (1, 2, 3)


def test_a_text_that_a_tokenizer_has_no_word_for_is_one_line(tmp_path: Path) -> None:
    words = tokenizers.models.WordLevel({"<s>": 0, "ada": 1}, unk_token="missing")
    loaded = Tokenizer(tokenizers.Tokenizer(words))
    for encode in (
        loaded.encode,
        lambda text: loaded.encode_batch([text]),
        lambda text: loaded.encode_pairs([("", text)]),
    ):
        with pytest.raises(InputError, match=r"tokenizer.* cannot encode 'bo'"):
            encode("bo")
