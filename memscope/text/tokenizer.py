"""Text <-> token ids: any ``tokenizer.json``, or a byte-level BPE trained on the corpus.

    tokenizer = Tokenizer.load(Path("run/tokenizer.json"))
    tokenizer.encode("Ayn Rand")           # ids; text that looks like a special token stays text
    tokenizer.pieces[412]                  # the bytes of a token inside a text, with the space before it
    tokenizer.encode_pairs([("He was born in", " Paris")])   # ids of a text and of its continuation

This module answers every question that depends on the kind of tokenizer: the text and the bytes of a token, the ids
that exist, the token that begins a continuation, and the tokens with a role. A document is ``bos`` + text + ``eos``; a
tokenizer without one of the two uses the other for both, as GPT-2 does. ``pad`` fills positions that nothing reads.
The tokenizer of another program's model puts around a text what its own post-processor does (``of_model``); such a one
may lack any of the three.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from memscope.base.errors import InputError
from memscope.base.files import write_json, write_text
from memscope.text.characters import ESCAPE, Unit, byte_alphabet, find_units
from memscope.text.frame import Frame, find_frame, read_frame
from memscope.text.special_tokens import EARLIER, ROLES_FILE, SPECIAL_TOKENS, Roles, described, find_roles, find_unknown
from memscope.text.tokenizer_file import read_tokenizer, rust_errors

_CONTROL = re.compile(r"[<\[].+[>\]]")
"""Names of tokens that are not text: <s>, [CLS]."""
_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBES = 256
"""Number of tokens tried as a word to put before others."""


class Tokenizer:
    """A ``tokenizers.Tokenizer`` with the ids of bos, eos and pad.

    Args:
        backend: the tokenizer.
        roles: names of its special tokens; none looks for well-known ones.
        source: the tokenizer's file, for messages.
        frame: what stands around a text; none puts bos before and eos behind.

    Raises:
        InputError: no token can open and close documents.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        roles: Roles | None = None,
        source: str = "tokenizer",
        frame: Frame | None = None,
    ):
        backend.encode_special_tokens = True  # corpus text never becomes a control token
        backend.no_truncation()
        backend.no_padding()
        self.backend, self.source, self.frame = backend, source, frame
        self.roles = roles or find_roles(backend, source)
        bos, eos, pad, unk = (None if name is None else backend.token_to_id(name) for name in self.roles)
        opens, closes = bos if bos is not None else eos, eos if eos is not None else bos
        self.unk = unk
        if frame is not None:
            self.bos, self.eos = (-1 if token is None else token for token in (bos, eos))
            self.pad = next((token for token in (pad, eos, bos) if token is not None), 0)
            self.opening, self.closing = list(frame.opening), list(frame.closing)
            return
        if opens is None or closes is None:
            raise InputError(
                f"{source}: no token opens or closes documents: none has a well-known name, and no {ROLES_FILE} beside "
                "it names one; set bos_token or eos_token to a token of its vocabulary"
            )
        self.bos, self.eos, self.pad = opens, closes, closes if pad is None else pad
        """Ids of the tokens that open, close and fill up; -1 where that of another program's model has none."""
        self.opening, self.closing = [opens], [closes]
        """Ids before and after the text of a document."""

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read the ``tokenizer.json`` of a run or a recording, and the roles that were saved beside it.

        Raises:
            InputError: a file is missing or not of the expected form.
        """
        backend = read_tokenizer(path)
        return cls(
            backend, find_roles(backend, str(path), path.parent, known=EARLIER), str(path), read_frame(path.parent)
        )

    @classmethod
    def adopt(cls, path: Path, asked: Roles | None = None) -> "Tokenizer":
        """Read any ``tokenizer.json`` for a new run.

        Args:
            path: the file; ``tokenizer_config.json`` or ``special_tokens_map.json`` may stand beside it.
            asked: names of the config, which override those of the files; an empty one means that there is no such
                token.

        Raises:
            InputError: as ``load``; or a named token is not in the vocabulary.
        """
        backend = read_tokenizer(path)
        frame = None if asked and (asked.bos or asked.eos) else read_frame(path.parent)
        return cls(backend, find_roles(backend, str(path), path.parent, asked), str(path), frame)

    @classmethod
    def of_model(cls, backend: tokenizers.Tokenizer, roles: Roles, source: str, ids: int) -> "Tokenizer":
        """The tokenizer of another program's model: what its post-processor puts around a text stands around documents.

        Args:
            backend: the tokenizer; it is copied.
            roles: names of its special tokens; those that it does not have are left out.
            source: the model, for messages.
            ids: token ids that the model knows, at least; models often know more than their tokenizer has.

        Raises:
            InputError: it cannot encode a word.
        """
        copy = tokenizers.Tokenizer.from_str(backend.to_str())
        there = Roles(*(name if name and copy.token_to_id(name) is not None else None for name in roles))
        return cls(copy, there._replace(unk=find_unknown(copy)), source, find_frame(copy, source, ids))

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

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus one, special tokens included: ids may have gaps."""
        return max(*self._names, self.frame.ids - 1 if self.frame else 0) + 1

    @property
    def identity(self) -> str:
        """A text that is equal for tokenizers that give every document the same ids."""
        around = f" {self.opening} {self.closing}" if self.frame else ""
        return f"{self.backend.to_str()} {self.bos} {self.eos}{around}"

    @cached_property
    def control(self) -> frozenset[int]:
        """Ids that stand for no text: special tokens, and the unknown token."""
        ids = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        for name in self.roles:
            token = self.backend.token_to_id(name) if name and _CONTROL.fullmatch(name) else None
            ids |= set() if token is None else {token}
        return frozenset(ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, no bos or eos added.

        Raises:
            InputError: the tokenizer cannot encode it.
        """
        with self._named_errors(text):
            ids = self.backend.encode(text, add_special_tokens=False).ids
        return self._as_text(ids)

    def prompt(self, text: str) -> list[int]:
        """Token ids of the beginning of a document: what opens one, then ``text``. Raises as ``encode``."""
        return [*self.opening, *self.encode(text)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, in parallel threads; raises as ``encode``."""
        with self._named_errors(*texts):
            encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._as_text(item.ids) for item in encoded]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Token ids of texts and of their continuations, encoded together and then split.

        A continuation encoded alone would get other ids: many tokenizers put a space before the start of a text. Its
        ids begin with the first token that holds more of it than white space. A token that is only the space between
        belongs to the text. A continuation without any token gets no ids.
        """
        with self._named_errors(*(before + after for before, after in pairs)):
            encoded = self.backend.encode_batch([b + a for b, a in pairs], add_special_tokens=False)
        split = []
        for (before, after), item in zip(pairs, encoded, strict=True):
            start = len(before) + len(after) - len(after.lstrip())
            cut = next((n for n, (_, end) in enumerate(item.offsets) if end > start), len(item.ids))
            split.append((self._as_text(item.ids[:cut]), self._as_text(item.ids[cut:])))
        return split

    def decode(self, ids: Sequence[int], after: Sequence[int] = (), partial: str = ESCAPE) -> str:
        """Text of ``ids``; special tokens are shown by name.

        Args:
            ids: token ids.
            after: the ids before them (the last one is enough). Without it a text begins with ``ids``, without the
                space that tokenizers put before a text.
            partial: what becomes of bytes that are no whole character, as in ``bytes.decode``; by default ``\\xe4``.
        """
        before = list(after[-1:])
        return self._join([*before, *ids])[len(self._join(before)) :].decode("utf-8", partial)

    def units(self, ids: Sequence[int] | np.ndarray) -> list[Unit]:
        """The tokens of a text, those that share a character together."""
        return find_units([self.pieces[int(i)] for i in ids])

    def name(self, token: int) -> str:
        """The token as its vocabulary spells it; ``<id 17>`` for an id without a token."""
        return self._names.get(int(token), f"<id {token}>")

    @cached_property
    def pieces(self) -> list[bytes]:
        """The exact bytes of every id inside a text, with spaces; special tokens and ids without a token by name."""
        spelled = self._spell_bytes()
        rest = [i for i, piece in enumerate(spelled) if piece is None]
        for i, text in zip(rest, self._spell_texts(rest), strict=True):
            spelled[i] = text.encode()
        return [piece or b"" for piece in spelled]

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of every id inside a text; bytes that are no whole character are written out: ``\\xe4``."""
        return [piece.decode("utf-8", ESCAPE) for piece in self.pieces]

    @cached_property
    def partial(self) -> frozenset[int]:
        """Ids that hold a part of a character."""
        return frozenset(i for i, piece in enumerate(self.pieces) if piece.decode("utf-8", "ignore").encode() != piece)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each id inside a text, 0 for ids that are not text, int64 ``[vocab]``."""
        text = (i not in self.control and i in self._names for i in range(self.vocab_size))
        return np.array([len(piece) * real for piece, real in zip(self.pieces, text, strict=True)], dtype=np.int64)

    def text_size(self, ids: np.ndarray) -> int:
        """UTF-8 bytes of the text of a document's ``ids``, from its bos on.

        For a whole document this is the size of its text, unless the tokenizer loses some of it.
        """
        sizes, spaces = self.token_bytes[ids], self._space_around
        first, last = (next((i for i in order if sizes[i]), None) for order in (range(len(ids)), range(len(ids))[::-1]))
        if first is None or last is None:
            return 0
        before = spaces[0] and self.pieces[ids[first]].startswith(b" ")
        behind = spaces[1] and self.pieces[ids[last]].endswith(b" ")
        return int(sizes.sum()) - before - behind

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``, and before it the roles of its tokens beside it, each atomically."""
        roles = {f"{role}_token": name for role, name in self.roles._asdict().items()}
        frame = self.frame._asdict() if self.frame else {}
        write_json(path.with_name(ROLES_FILE), {"tokenizer_class": "PreTrainedTokenizerFast", **roles, **frame})
        write_text(path, self.backend.to_str())

    @cached_property
    def _names(self) -> dict[int, str]:
        return {i: name for name, i in self.backend.get_vocab().items()}

    @contextmanager
    def _named_errors(self, *texts: str) -> Iterator[None]:
        begin = repr(next(iter(texts), "")[:60])
        with rust_errors(f"{self.source}: this tokenizer cannot encode {begin} or a text after it"):
            yield

    def _as_text(self, ids: list[int]) -> list[int]:
        """Ids of a text in which names of special tokens, which some vocabularies hold as words, are unknown words."""
        never = self.control - {self.unk}
        if never.isdisjoint(ids):
            return ids
        unknown = [] if self.unk is None else [self.unk]
        return [new for old in ids for new in (unknown if old in never else [old])]

    def _join(self, ids: Sequence[int]) -> bytes:
        """Bytes of ids that begin a text, with or without bos."""
        pieces = [self.pieces[int(i)] for i in ids]
        before, behind = self._space_around
        at = int(len(ids) > 0 and int(ids[0]) == self.bos)
        if self.frame and [int(i) for i in ids[: len(self.opening)]] == self.opening:
            at = len(self.opening)
        if before and len(ids) > at:
            pieces[at] = pieces[at].removeprefix(b" ")
        return b"".join(pieces).removesuffix(b" ") if behind else b"".join(pieces)

    @cached_property
    def _space_around(self) -> tuple[bool, bool]:
        """Whether a space that is not in the text stands before its first piece, and behind its last."""
        for piece in self._words():
            try:
                joined = b"".join(self.pieces[i] for i in self.encode(piece))
            except InputError:
                continue
            if joined.strip(b" ").decode("utf-8", "replace") == piece:
                return joined.startswith(b" "), joined.endswith(b" ")
        return False, False

    def _words(self) -> Iterator[str]:
        """Some tokens that are plain words or letters, without the spaces around them."""
        texts = (self.backend.decode([i], skip_special_tokens=False).strip() for i in range(self.vocab_size))
        tried = (text for i, text in enumerate(texts) if i not in self.control and text.isascii() and text.isalnum())
        return (text for text, _ in zip(tried, range(_PROBES), strict=False))

    def _spell_bytes(self) -> list[bytes | None]:
        """Pieces of the ids whose name spells their bytes; none for the others."""
        kinds = self._decoder_kinds
        added = self.backend.get_added_tokens_decoder()
        alphabet = byte_alphabet() if "ByteLevel" in kinds else None
        spelled: list[bytes | None] = []
        for i in range(self.vocab_size):
            name = self._names.get(i)
            if name is None or i in self.control or (alphabet and i in added):
                spelled.append(self.name(i).encode())
            elif alphabet:
                known = all(character in alphabet for character in name)
                spelled.append(bytes(alphabet[character] for character in name) if known else name.encode())
            elif "ByteFallback" in kinds and (byte := _BYTE_NAME.fullmatch(name)):
                spelled.append(bytes([int(byte[1], 16)]))
            else:
                spelled.append(None)
        return spelled

    def _spell_texts(self, ids: Sequence[int]) -> list[str]:
        """Texts of ids inside a text: the text that an id adds to a word when both are decoded together."""
        decode = self.backend.decode_batch
        alone = decode([[i] for i in ids], skip_special_tokens=False)
        word = next((n for n, text in enumerate(alone) if text.strip().isascii() and text.strip().isalnum()), None)
        if word is None:
            return alone
        behind = "BPEDecoder" in self._decoder_kinds  # </w>: the space of a token stands behind it
        pairs = decode([[i, ids[word]] if behind else [ids[word], i] for i in ids], skip_special_tokens=False)
        cut, holds = (str.removesuffix, str.endswith) if behind else (str.removeprefix, str.startswith)
        beside = [cut(pair, alone[word]) if holds(pair, alone[word]) else None for pair in pairs]
        return [text if spelled is None else spelled for text, spelled in zip(alone, beside, strict=True)]

    @cached_property
    def _decoder_kinds(self) -> frozenset[str]:
        decoder = described(self.backend)["decoder"] or {}
        return frozenset(part["type"] for part in [decoder, *decoder.get("decoders", [])] if "type" in part)
