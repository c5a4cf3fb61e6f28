"""Tokenizers of other programs' models give the ids that they give there, and are read back as they were saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from memscope.base.errors import InputError
from memscope.run.adapters.experts import adopt_tokenizer
from memscope.text.corpus import pack_corpus
from memscope.text.tokenizer import Tokenizer
from tests.conftest import make_sentences

TEXTS = [*make_sentences(100, seed=5), "Paris, London and Rome .", "Ada  Holm's Café:\n\t(1, 2)"]
UNSEEN = ["Ada Holm was born in Aston .", "  two spaces, a tab\t, a line \n .", "Ωμέγα 漢字 🙂", "Holm"]


def byte_level(*special: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    settings = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=list(special), **settings))
    return backend


def opened(backend: tokenizers.Tokenizer, bos: str, template: str) -> tokenizers.Tokenizer:
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return backend


def llama3() -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    backend = byte_level("<|begin_of_text|>", "<|end_of_text|>")
    bos = [("<|begin_of_text|>", 0)]
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=bos),
        ]
    )
    return backend, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}


def deepseek() -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    bos, eos = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    return opened(byte_level(bos, eos), bos, f"{bos} $A"), {"bos_token": bos, "eos_token": eos, "pad_token": eos}


def granite() -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    backend = byte_level("<|end_of_text|>", "<|pad|>")
    return backend, {"bos_token": None, "eos_token": "<|end_of_text|>", "pad_token": None}


def qwen() -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    backend = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.normalizer = normalizers.NFC()
    return backend, {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def gemma() -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """SentencePiece: spaces are ▁, unknown characters become bytes."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    raw = json.loads(backend.to_str())["model"]
    merges = [tuple(pair) for pair in raw["merges"]]
    backend = tokenizers.Tokenizer(
        models.BPE(raw["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(special[:4])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return opened(backend, "<bos>", "<bos> $A"), names


SHAPES: dict[str, Callable[[], tuple[tokenizers.Tokenizer, dict[str, Any]]]] = {
    "llama3": llama3,
    "deepseek": deepseek,
    "granite": granite,
    "qwen": qwen,
    "gemma": gemma,
}
ROLES = {"llama3": (0, 1, 1), "deepseek": (0, 1, 1), "granite": (-1, 0, 0), "qwen": (-1, 2, 0), "gemma": (2, 1, 0)}
"""Ids of bos, eos and pad; -1 where there is none."""


def theirs(folder: Path, shape: str) -> Any:
    from transformers import AutoTokenizer

    backend, names = SHAPES[shape]()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_ids_are_those_of_the_models_own_tokenizer(shape: str, tmp_path: Path) -> None:
    their = theirs(tmp_path, shape)
    tokenizer = adopt_tokenizer(their, 512, "model")
    for text in [*TEXTS, *UNSEEN]:
        assert [*tokenizer.opening, *tokenizer.encode(text), *tokenizer.closing] == their(text)["input_ids"]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == ROLES[shape]
    assert tokenizer.vocab_size == 512 and len(tokenizer.token_texts) == 512  # the model knows more ids than there are


@pytest.mark.parametrize("shape", SHAPES)
def test_a_recordings_tokenizer_is_read_back_as_it_was(shape: str, tmp_path: Path) -> None:
    tokenizer = adopt_tokenizer(theirs(tmp_path, shape), 512, "model")
    (tmp_path / "recording").mkdir()
    tokenizer.save(tmp_path / "recording" / "tokenizer.json")
    for read in (Tokenizer.load, Tokenizer.adopt):
        again = read(tmp_path / "recording" / "tokenizer.json")
        assert (again.identity, again.vocab_size, again.roles) == (tokenizer.identity, 512, tokenizer.roles)
        assert (again.opening, again.closing, again.pad) == (tokenizer.opening, tokenizer.closing, tokenizer.pad)
        ids = [*again.opening, *again.encode(UNSEEN[0])]
        assert again.decode(ids) == "".join(again.name(i) for i in again.opening) + UNSEEN[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_corpus_text_never_becomes_a_control_token(shape: str, tmp_path: Path) -> None:
    tokenizer = adopt_tokenizer(theirs(tmp_path, shape), 512, "model")
    names = [name for name in tokenizer.roles if name]
    text = f"He said {' '.join(names)} and <|im_start|>system"
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": text}) + "\n")
    packed = pack_corpus(tmp_path / "corpus.jsonl", tokenizer, tmp_path / "cache").tokens.tolist()
    end = len(packed) - len(tokenizer.closing)
    assert packed[: len(tokenizer.opening)] == tokenizer.opening and packed[end:] == tokenizer.closing
    assert tokenizer.control.isdisjoint(packed[len(tokenizer.opening) : end])


def test_their_tokenizer_stays_as_it_was(tmp_path: Path) -> None:
    their = theirs(tmp_path, "llama3")
    before = their.backend_tokenizer.to_str(), their("<|end_of_text|>")["input_ids"]
    adopt_tokenizer(their, 512, "model")
    assert (their.backend_tokenizer.to_str(), their("<|end_of_text|>")["input_ids"]) == before


def test_what_is_no_tokenizer_of_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has token 319, the model knows 100;"):
        adopt_tokenizer(theirs(tmp_path, "qwen"), 100, "model")
    with pytest.raises(InputError, match="str is not a fast tokenizer"):
        adopt_tokenizer("tokenizer", 100, "model")


def test_a_frame_that_was_tampered_with_is_one_line(tmp_path: Path) -> None:
    adopt_tokenizer(theirs(tmp_path, "qwen"), 512, "model").save(tmp_path / "tokenizer.json")
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"opening": ["a"]}))
    with pytest.raises(InputError, match="opening, closing and ids"):
        Tokenizer.load(tmp_path / "tokenizer.json")
