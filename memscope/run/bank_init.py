"""Make the starts of a bank's entries: random vectors, or sentences through a table of token embeddings.

    sentence --tokenizer--> ids --table [vocab, dim]--> vectors --projection [dim, D]--> slots of unit norm

Pooled (``knowledge_length`` 1): an entry is the mean over its sentence's tokens. Slot-wise (more): slot i is the
sentence's token i; slots past its end hold the pad token. Entries without a sentence stay random. The run keeps the
origin of its entries: ``bank_init.parquet`` (sentence, triples, token ids per entry) and ``bank_init.safetensors``
(initial entries, table, projection). If training may revive entries, ``bank_spare.parquet`` holds the sentences that
initialise no entry, in the order of their use; ``run/provenance.py`` gives the starts of a loaded model's entries.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from memscope.base.errors import InputError
from memscope.base.files import atomic_path, disk_errors
from memscope.base.parquet import read_parquet
from memscope.base.seals import check_listed
from memscope.text.sentences import Sentence, Triple
from memscope.text.tokenizer import Tokenizer

PARQUET = "bank_init.parquet"
TENSORS = "bank_init.safetensors"
SPARE = "bank_spare.parquet"
_T = TypeVar("_T")


class BankInit(NamedTuple):
    """The start of a bank."""

    entries: np.ndarray
    """Initial entries, float32 ``[N, L, D]``."""
    table: np.ndarray
    """Token embeddings that sentences went through, float32 ``[vocab, dim]``."""
    projection: np.ndarray
    """Map from embedding space to entry space, float32 ``[dim, D]``, orthonormal along its shorter axis."""


def orthogonal_projection(dim: int, knowledge_dim: int, seed: int) -> np.ndarray:
    """Seeded random map ``[dim, knowledge_dim]`` with orthonormal rows or columns, whichever are fewer."""
    gaussian = np.random.default_rng(seed).standard_normal((max(dim, knowledge_dim), min(dim, knowledge_dim)))
    q, r = np.linalg.qr(gaussian)
    q = q * np.sign(np.diag(r))  # makes the decomposition unique
    return (q if dim >= knowledge_dim else q.T).astype(np.float32)


def deal(sentences: Sequence[_T], n_entries: int, groups: int) -> list[_T | None]:
    """Which sentence each entry starts from: the groups of a bank, side by side, take the next one in turn."""
    size = n_entries // groups
    dealt: list[_T | None] = [None] * n_entries
    for number, sentence in enumerate(sentences):
        dealt[number % groups * size + number // groups] = sentence
    return dealt


def init_bank(
    random_entries: np.ndarray, token_ids: Sequence[list[int] | None], table: np.ndarray, pad: int, seed: int
) -> BankInit:
    """Write sentences, given as token ids per entry, over the rows of ``random_entries [N, L, D]``.

    Entries of none, or past the end of the list, stay random. Slots are scaled to unit norm, the average norm of a
    random slot.
    """
    n_slots, width = random_entries.shape[1:]
    projection = orthogonal_projection(table.shape[1], width, seed)
    space = table @ projection  # [vocab, D]
    entries = random_entries.copy()
    for entry, ids in enumerate(token_ids):
        if ids is not None:
            entries[entry] = _slots_of(ids, space, n_slots, pad)
    return BankInit(entries, table, projection)


def _slots_of(ids: list[int], space: np.ndarray, n_slots: int, pad: int) -> np.ndarray:
    """A sentence as an entry, ``[L, D]``, from token vectors ``[vocab, D]``."""
    padded = (ids + [pad] * n_slots)[:n_slots]
    slots = space[ids].mean(0, keepdims=True) if n_slots == 1 else space[padded]
    return slots / np.maximum(np.linalg.norm(slots, axis=-1, keepdims=True), 1e-12)


class FreshStarts:
    """The starts of entries that are revived in training: sentences, as at initialisation, or random slots.

    Equal for equal arguments, so that starts can be found again from entry, step and sentence.

    Args:
        run: run folder, for ``bank_init.safetensors`` and ``bank_spare.parquet``.
        pad: token id past the end of a sentence.
        seed: of random slots.
        cosine: between random slots, as at initialisation.

    Raises:
        InputError: one of the files is missing or corrupted.
    """

    def __init__(self, run: Path, pad: int, seed: int, cosine: float):
        init = load_bank_init(run)
        self._space, self._shape = init.table @ init.projection, init.entries.shape[1:]
        self._token_ids = read_parquet(run / SPARE, ["token_ids"])["token_ids"]
        check_listed(run, [SPARE], "restore it or train again")
        self._pad, self._seed, self._cosine = pad, seed, cosine
        self.n_sentences = len(self._token_ids)

    def slots(self, entries: np.ndarray, steps: np.ndarray, sentences: np.ndarray) -> np.ndarray:
        """Starts ``[row, L, D]`` of entries revived at some steps, from rows of the spare sentences, or for -1 none."""
        n_slots, width = self._shape
        slots = np.empty((len(entries), n_slots, width), np.float32)
        for row, (entry, step, sentence) in enumerate(zip(entries, steps, sentences, strict=True)):
            if sentence >= 0:
                slots[row] = _slots_of(self._token_ids[int(sentence)].as_py(), self._space, n_slots, self._pad)
            else:
                chance = np.random.default_rng([self._seed, int(step), int(entry)])
                noise = chance.standard_normal((n_slots, width), np.float32) * (1 - self._cosine) ** 0.5
                slots[row] = (noise + self._cosine**0.5) * width**-0.5
        return slots


def encode_sentences(sentences: list[Sentence], tokenizer: Tokenizer, knowledge_length: int) -> list[list[int]]:
    """Token ids per sentence; cut to ``knowledge_length`` unless entries are pooled."""
    encoded = tokenizer.encode_batch([sentence.text for sentence in sentences])
    for number, ids in enumerate(encoded):
        if not ids:
            raise InputError(f"sentence {number} ({sentences[number].text[:40]!r}) has no tokens")
    return encoded if knowledge_length == 1 else [ids[:knowledge_length] for ids in encoded]


def save_bank_init(
    run: Path,
    init: BankInit,
    sentences: Sequence[Sentence | None],
    token_ids: Sequence[list[int] | None],
) -> None:
    """Save ``init`` and the provenance of every entry into a run folder.

    Args:
        run: the run folder.
        init: initial entries with their table and projection.
        sentences: per entry; those of none, or past the end of the list, are recorded as random.
        token_ids: ids that went into each entry, parallel to ``sentences``.
    """
    blank = [None] * (len(init.entries) - len(sentences))
    columns = {"entry": np.arange(len(init.entries), dtype=np.uint32)}
    columns |= _said([*sentences, *blank], [*token_ids, *blank])
    with atomic_path(run / PARQUET) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")
    with atomic_path(run / TENSORS) as temporary, disk_errors(run / TENSORS):
        save_file(init._asdict(), temporary, metadata={"space": "this model at step 0"})


def save_spare(run: Path, sentences: Sequence[Sentence], token_ids: Sequence[list[int]]) -> None:
    """Save the sentences that initialise no entry into a run folder, in the order in which revived ones take them."""
    with atomic_path(run / SPARE) as temporary:
        pq.write_table(pa.table(_said(sentences, token_ids)), temporary, compression="zstd")


def _said(sentences: Sequence[Sentence | None], token_ids: Sequence[list[int] | None]) -> dict[str, pa.Array]:
    """Sentences as columns, null where there is none."""
    columns = {
        "sentence": pa.array([sentence and sentence.text for sentence in sentences], pa.string()),
        "token_ids": pa.array(token_ids, pa.list_(pa.uint32())),
    }
    for field in Triple._fields:
        values = [sentence and [getattr(triple, field) for triple in sentence.triples] for sentence in sentences]
        columns[field] = pa.array(values, pa.list_(pa.string()))
    return columns


def load_bank_init(run: Path) -> BankInit:
    """Read the entries as they were at step 0, table and projection of a run.

    Raises:
        InputError: missing or corrupted file.
    """
    path = run / TENSORS
    try:
        init = BankInit(**load_file(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; was this run trained with memscope?") from error
    except (SafetensorError, TypeError) as error:
        raise InputError(f"{path}: corrupted ({error}); restore it or train again") from error
    check_listed(run, [TENSORS], "restore it or train again")
    return init
