"""Text <-> token ids: any ``tokenizer.json``, or a byte-level BPE trained on the corpus.

tokenizer = Tokenizer.load(Path("run/tokenizer.json"))
tokenizer.encode("Ayn Rand")   # list of ids; text that looks like a special token stays text
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from memscope.errors import InputError
from memscope.files import write_text

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""pad, bos, eos of a tokenizer trained here: MiniMind's."""

_CANDIDATES = {
    "pad": ("<|endoftext|>", "<pad>", "[PAD]", "<unk>"),
    "bos": ("<|im_start|>", "<s>", "[CLS]", "<|endoftext|>"),
    "eos": ("<|im_end|>", "</s>", "[SEP]", "<|endoftext|>"),
}


class Tokenizer:
    """A ``tokenizers.Tokenizer`` with the ids of pad, bos and eos.

    Raises:
        InputError: the vocabulary has none of the known names for one of them.
    """

    def __init__(self, backend: tokenizers.Tokenizer, source: str = "tokenizer"):
        backend.encode_special_tokens = True  # corpus text never becomes a control token
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        ids: dict[str, int] = {}
        for role, names in _CANDIDATES.items():
            found = [i for name in names if (i := backend.token_to_id(name)) is not None]
            if not found:
                raise InputError(f"{source}: no {role} token; one of {', '.join(names)} must be in the vocabulary")
            ids[role] = found[0]
        self.pad, self.bos, self.eos = ids["pad"], ids["bos"], ids["eos"]

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a ``tokenizer.json``.

        Raises:
            InputError: the file is missing or is not a tokenizer.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such tokenizer file; leave tokenizer_path empty to train one")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), source=str(path))
        except InputError:
            raise
        except Exception as error:  # the Rust side raises plain Exception for every kind of bad file
            raise InputError(f"{path}: not a tokenizer.json ({error})") from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train a byte-level BPE; deterministic in the texts and their order."""
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        if backend.get_vocab_size() < vocab_size:
            raise InputError(
                f"the training corpus is too small for a vocabulary of {vocab_size} "
                f"(it gives {backend.get_vocab_size()}); lower vocab_size or set tokenizer_path"
            )
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, no bos or eos added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, in parallel threads."""
        return [item.ids for item in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens are shown by name."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    @cached_property
    def token_texts(self) -> list[str]:
        """Every id as text on its own; bytes that are no whole character show as U+FFFD."""
        return [self.decode([i]) for i in range(self.vocab_size)]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, 0 for special tokens, int64 ``[vocab]``: for bits per byte."""
        special = {self.pad, self.bos, self.eos}
        # In a byte-level vocabulary one character of a token's name is one byte, also where a token holds only part
        # of a character; elsewhere the decoded text has to do.
        names = self.backend.id_to_token if "ByteLevel" in self._decoder_type else None
        sizes = [
            0 if i in special else len(names(i) or "") if names else len(text.encode())
            for i, text in enumerate(self.token_texts)
        ]
        return np.array(sizes, dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``, atomically."""
        write_text(path, self.backend.to_str())

    @property
    def _decoder_type(self) -> str:
        return json.dumps(json.loads(self.backend.to_str()).get("decoder") or {})
