"""The sentences of a text bank as token ids, and the file in which a run keeps them.

``text_bank.parquet`` of a run: one row per sentence with its text, token ids and triples, as ``bank_init.parquet`` has
them. It is the bank: another file in its place, written by ``memscope bank``, is another bank.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memscope.base.errors import InputError
from memscope.base.files import atomic_path, disk_errors
from memscope.base.parquet import read_parquet
from memscope.text.sentences import Sentence, Triple, choose_sentences
from memscope.text.tokenizer import Tokenizer

FILE = "text_bank.parquet"


@dataclass(frozen=True)
class SentenceBank:
    """Sentences as token ids."""

    sentences: list[Sentence]
    ids: np.ndarray
    """int32 ``[N, L]``; 0 past the end of a sentence."""
    lengths: np.ndarray
    """Tokens of every sentence, int64 ``[N]``."""

    @classmethod
    def of(cls, sentences: Sequence[Sentence], token_ids: Sequence[Sequence[int]]) -> "SentenceBank":
        """A bank of encoded sentences."""
        lengths = np.array([len(ids) for ids in token_ids], np.int64)
        ids = np.zeros((len(lengths), max(1, lengths.max(initial=0))), np.int32)
        for row, one in enumerate(token_ids):
            ids[row, : len(one)] = one
        return cls(list(sentences), ids, lengths)

    def token_ids(self, entry: int) -> list[int]:
        """The tokens of a sentence."""
        found: list[int] = self.ids[entry, : self.lengths[entry]].tolist()
        return found

    def edited(self, changes: Mapping[int, str], tokenizer: Tokenizer) -> "SentenceBank":
        """The bank with other texts in some entries; what a sentence was said to state goes with its text.

        Raises:
            InputError: there is no such entry, or a text has no tokens.
        """
        sentences, ids = list(self.sentences), [self.token_ids(row) for row in range(len(self.lengths))]
        encoded = tokenizer.encode_batch(list(changes.values()))
        for (entry, text), tokens in zip(changes.items(), encoded, strict=True):
            if not 0 <= entry < len(sentences):
                raise InputError(f"sentence {entry}: the bank has {len(sentences):,} sentences, counted from 0")
            if not tokens or not text.strip():
                raise InputError(f"sentence {entry}: the new text is empty; to remove a sentence, use --remove")
            sentences[entry], ids[entry] = Sentence(text, ()), tokens
        return SentenceBank.of(sentences, ids)

    def without(self, entries: Collection[int]) -> "SentenceBank":
        """The bank without some entries; those behind them move up.

        Raises:
            InputError: fewer than two are left.
        """
        kept = [row for row in range(len(self.lengths)) if row not in set(entries)]
        if len(kept) < 2:
            raise InputError(f"a bank needs two sentences, {len(kept)} are left")
        return SentenceBank.of([self.sentences[row] for row in kept], [self.token_ids(row) for row in kept])

    def with_more(self, other: "SentenceBank") -> "SentenceBank":
        """The bank with the sentences of another behind its own, but for those that it holds already."""
        held = {sentence.text for sentence in self.sentences}
        new = [row for row, sentence in enumerate(other.sentences) if sentence.text not in held]
        ids = [self.token_ids(row) for row in range(len(self.lengths))] + [other.token_ids(row) for row in new]
        return SentenceBank.of(self.sentences + [other.sentences[row] for row in new], ids)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        columns: dict[str, pa.Array | np.ndarray] = {
            "entry": np.arange(len(self.lengths), dtype=np.uint32),
            "sentence": pa.array([sentence.text for sentence in self.sentences], pa.string()),
            "token_ids": pa.array([self.token_ids(row) for row in range(len(self.lengths))], pa.list_(pa.uint32())),
        }
        for name in Triple._fields:
            values = [[getattr(triple, name) for triple in sentence.triples] for sentence in self.sentences]
            columns[name] = pa.array(values, pa.list_(pa.string()))
        with atomic_path(path) as temporary, disk_errors(path):
            pq.write_table(pa.table(columns), temporary, compression="zstd")


def load_bank(path: Path) -> SentenceBank:
    """Read a ``text_bank.parquet``.

    Raises:
        InputError: missing or corrupted.
    """
    table = read_parquet(path)
    names = ["sentence", "token_ids", *Triple._fields]
    if missing := [name for name in names if name not in table.column_names]:
        raise InputError(f"{path}: no column '{missing[0]}'; restore it or write it with 'memscope bank'")
    texts, ids, *parts = (table[name].to_pylist() for name in names)
    sentences = [
        Sentence(text, tuple(Triple(*values) for values in zip(*rows, strict=True)))
        for text, *rows in zip(texts, *parts, strict=True)
    ]
    return SentenceBank.of(sentences, ids)


def choose_bank(sentences: list[Sentence], tokenizer: Tokenizer, most: int, length: int, seed: int) -> SentenceBank:
    """At most ``most`` sentences of at most ``length`` tokens, drawn by the seed; longer ones are left out.

    Raises:
        InputError: fewer than two are short enough.
    """
    encoded = tokenizer.encode_batch([sentence.text for sentence in sentences])
    short = [number for number, ids in enumerate(encoded) if 0 < len(ids) <= length]
    if len(short) < 2:
        raise InputError(
            f"{len(short)} of {len(sentences)} sentences have at most sentence_length={length} tokens; raise it"
        )
    order = {sentences[number].text: number for number in short}
    chosen = choose_sentences([sentences[number] for number in short], most, seed)
    return SentenceBank.of(chosen, [encoded[order[sentence.text]] for sentence in chosen])
