"""Corpora: JSON lines -> packed token file -> training batches, or windows of single documents.

A corpus has one ``{"text": ...}`` object a line (plain, .gz or .zst). ``title`` and ``group`` (a word that tells
documents apart: a source, a split) are kept when present. The corpus is tokenized once into
``cache_dir/<hash>/``: ``tokens.bin`` (uint16 or uint32, memory-mapped; every document is bos + text + eos) and
``documents.parquet`` (title, group, length in tokens, size of the text in bytes). Training reads windows that cross
document boundaries; evaluation and recording read ``document_windows``, which never do.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memscope.base.errors import DamageError, InputError
from memscope.base.files import atomic_path, sha256_file
from memscope.base.lock import one_maker
from memscope.base.printable import brief
from memscope.base.seals import hashes, read_sealed, read_vouching, write_sealed
from memscope.text.inputs import Skipped, read_rows
from memscope.text.tokenizer import Tokenizer

_ENCODE_BATCH, _ENCODE_CHARACTERS = 256, 1 << 24
_REMOVE = "remove this folder of the cache"
_CACHE_FORMAT = "5"


class Document(NamedTuple):
    """One line of a corpus."""

    text: str
    title: str
    group: str


@dataclass(frozen=True, repr=False)
class PackedCorpus:
    """A tokenized corpus on disk."""

    __repr__ = brief

    tokens: np.ndarray
    """All documents after one another, memory-mapped, uint16 or uint32."""
    starts: np.ndarray
    """First token of every document and one past the last, int64 ``[documents + 1]``."""
    titles: list[str]
    """One per document, may be empty."""
    path: str
    """The corpus file it came from."""
    sha256: str
    """Hash of that file's bytes."""
    groups: list[str] | None = None
    """One per document, may be empty; none when documents have no groups."""
    text_bytes: np.ndarray | None = None
    """UTF-8 bytes of every document's text, int64; none where there is no text, as in a recording."""


class DocumentWindow(NamedTuple):
    """A stretch of one document: inputs are ``tokens[start:end]``, the target of each is its successor."""

    doc: int
    """Document number."""
    pos: int
    """Position of the first token in its document."""
    start: int
    """Offset of the first token in the packed corpus."""
    end: int
    """One past the last input token; a window that ends its document has no target for its last token."""


def read_documents(path: Path, skipped: Skipped | None = None) -> Iterator[Document]:
    """Stream the documents of a corpus; a row without a string ``text`` is skipped (``inputs.read_rows``).

    Args:
        path: the corpus.
        skipped: counts the rows that are skipped; by default the count goes to standard error at the end.

    Raises:
        InputError: see ``inputs.read_rows``; the message names the line.
    """
    return read_rows(path, "corpus", _document, skipped=skipped)


def pack_corpus(path: Path, tokenizer: Tokenizer, cache_dir: Path) -> PackedCorpus:
    """Tokenize a corpus into ``cache_dir``, or open the result of an earlier call with the same content.

    Raises:
        InputError: see ``read_documents``; or the corpus has no text.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such corpus file")
    corpus_hash = sha256_file(path)
    key = hashlib.sha256((_CACHE_FORMAT + corpus_hash + tokenizer.identity).encode()).hexdigest()[:16]
    folder = cache_dir / key
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 65536 else np.uint32)
    damaged = folder.is_dir() and not _is_whole(folder)
    if damaged or not folder.is_dir():
        with one_maker(folder, waits=True):
            if damaged or not folder.is_dir():  # otherwise another process has made it meanwhile
                with atomic_path(folder) as temporary:
                    temporary.mkdir()
                    _pack_into(temporary, path, tokenizer, dtype)
    meta = read_sealed(folder / "meta.json", _REMOVE)
    Skipped(**meta["skipped"]).say()  # also of a corpus that was packed before
    documents = pq.read_table(folder / "documents.parquet")
    lengths = documents["length"].to_numpy()
    return PackedCorpus(
        tokens=np.memmap(folder / "tokens.bin", dtype=np.dtype(meta["dtype"]), mode="r"),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        titles=documents["title"].to_pylist(),
        path=str(path),
        sha256=corpus_hash,
        groups=documents["group"].to_pylist(),
        text_bytes=documents["bytes"].to_numpy(),
    )


def document_windows(corpus: PackedCorpus, length: int, max_tokens: int | None = None) -> list[DocumentWindow]:
    """Cut every document, in order, into windows of at most ``length`` tokens; stop once ``max_tokens`` are covered.

    Every token but a document's first is the target of exactly one window position.
    """
    windows: list[DocumentWindow] = []
    left = max_tokens if max_tokens is not None else len(corpus.tokens)
    for doc, (start, stop) in enumerate(zip(corpus.starts[:-1], corpus.starts[1:], strict=True)):
        for begin in range(int(start), int(stop), length):
            end = min(begin + min(length, left), int(stop))
            windows.append(DocumentWindow(doc, begin - int(start), begin, end))
            left -= end - begin
            if left <= 0:
                return windows
    return windows


def clean_text(text: str) -> str:
    """Replace lone surrogates by question marks: scraped JSON may hold them, UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


class TrainingOrder:
    """The order of the windows of a packed corpus: a new seeded permutation for every pass.

    The order is a function of (seed, sample number) alone, so one integer resumes it.

    Raises:
        InputError: the corpus is shorter than one window.
    """

    def __init__(self, corpus: PackedCorpus, window: int, seed: int):
        self.tokens, self.window, self.seed = corpus.tokens, window, seed
        self.n_windows = (len(corpus.tokens) - 1) // window
        if self.n_windows < 1:
            raise InputError(
                f"{corpus.path}: {len(corpus.tokens)} tokens do not fill one window of {window} + 1; "
                "use a longer corpus or a smaller max_seq_len"
            )
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def batch(self, first_sample: int, size: int) -> np.ndarray:
        """Samples ``first_sample ... + size``: int64 ``[size, window + 1]``, inputs and their successors."""
        return np.stack([self._window(sample) for sample in range(first_sample, first_sample + size)])

    def _window(self, sample: int) -> np.ndarray:
        epoch, index = divmod(sample, self.n_windows)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.n_windows)
        start = self._permutation[index] * self.window
        return self.tokens[start : start + self.window + 1].astype(np.int64)


def _document(value: Any, where: str) -> Document:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        keys = f", not {', '.join(map(str, value))[:80]}" if isinstance(value, dict) and value else ""
        raise InputError(f'{where}: expected an object with a string "text"{keys}')
    title, group = (clean_text(str(value.get(key) or "")) for key in ("title", "group"))
    return Document(clean_text(value["text"]), title, group)


def _pack_into(folder: Path, path: Path, tokenizer: Tokenizer, dtype: np.dtype) -> None:
    titles: list[str] = []
    groups: list[str] = []
    lengths: list[int] = []
    sizes: list[int] = []
    skipped = Skipped()
    documents = (document for document in read_documents(path, skipped) if document.text.strip())
    with (folder / "tokens.bin").open("wb") as file:
        while chunk := list(_batch(documents)):
            for document, ids in zip(chunk, tokenizer.encode_batch([d.text for d in chunk]), strict=True):
                np.array([*tokenizer.opening, *ids, *tokenizer.closing], dtype=dtype).tofile(file)
                titles.append(document.title)
                groups.append(document.group)
                lengths.append(len(tokenizer.opening) + len(ids) + len(tokenizer.closing))
                sizes.append(len(document.text.encode()))
    if not titles:
        raise InputError(f"{path}: no document with text in this corpus")
    columns = {"title": titles, "group": groups, "length": lengths, "bytes": sizes}
    pq.write_table(pa.table(columns), folder / "documents.parquet")
    meta = {"dtype": dtype.name, "source": str(path), "skipped": asdict(skipped)}
    write_sealed(folder / "meta.json", meta | {"files": hashes(folder, ("tokens.bin", "documents.parquet"))})


def _batch(documents: Iterator[Document]) -> Iterator[Document]:
    """The next documents to tokenize at once: few if they are long."""
    room = _ENCODE_CHARACTERS
    for document in islice(documents, _ENCODE_BATCH):
        yield document
        room -= len(document.text)
        if room <= 0:
            return


def _is_whole(folder: Path) -> bool:
    """Whether the packed corpus of an earlier call is undamaged; a damaged one is packed again."""
    try:
        read_vouching(folder / "meta.json", _REMOVE)
    except DamageError as error:
        print(f"{error}: packing the corpus again", file=sys.stderr)
        return False
    return True


class WindowBatch(NamedTuple):
    """Document windows of unequal length, padded on the right; with causal attention padding changes nothing."""

    tokens: np.ndarray
    """int64 ``[batch, pos]``."""
    targets: np.ndarray
    """Successor of every token, int64 ``[batch, pos]``; -100 where there is none."""
    mask: np.ndarray
    """True where a token stands, bool ``[batch, pos]``."""


def window_batch(corpus: PackedCorpus, windows: list[DocumentWindow], pad: int) -> WindowBatch:
    """Load some windows as one padded batch."""
    shape = (len(windows), max(window.end - window.start for window in windows))
    tokens, targets = np.full(shape, pad, dtype=np.int64), np.full(shape, -100, dtype=np.int64)
    mask = np.zeros(shape, dtype=bool)
    for row, window in enumerate(windows):
        length = window.end - window.start
        tokens[row, :length] = corpus.tokens[window.start : window.end]
        mask[row, :length] = True
        successors = corpus.tokens[window.start + 1 : min(window.end + 1, corpus.starts[window.doc + 1])]
        targets[row, : len(successors)] = successors
    return WindowBatch(tokens, targets, mask)
