"""Read files from outside: corpora, facts and sentences.

    for fact in read_rows(Path("facts.jsonl.xz"), "facts", parse):
        ...

The kind of a file follows from its content, not from its name: JSON lines, a JSON list, Parquet, or plain lines where
the caller allows them; all but Parquet may be compressed with gzip, Zstandard, xz or bzip2. Other kinds are refused
with a message that names the kind. Rows that cannot be used are skipped and reported with their count. A file that is
cut off or damaged is refused.
"""

import bz2
import codecs
import io
import json
import lzma
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from memscope.base.errors import InputError
from memscope.base.printable import one_line

LONGEST = 64 << 20
"""Bytes of a line, and characters of an item of a list, at most: 64 MB."""
_CHUNK = 1 << 16
_BEHIND = (*" \t\r\n,]",)
"""Characters that may follow an item of a list."""
_HOPELESS = 100
"""A file is refused when this many rows at its start cannot be used."""
_BOM = codecs.BOM_UTF8
_REFUSED = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\x04\x22\x4d\x18": "an lz4 archive",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3": "a database",
    b"%PDF-": "a PDF",
    b"\x80\x04\x95": "a pickle, which is never opened",
    b"\xff\xfe": "UTF-16 text, not UTF-8 text",
    b"\xfe\xff": "UTF-16 text, not UTF-8 text",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
    b"<?xml": "XML",
    b"<mediawiki": "XML",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
"""First bytes of files that are often taken for text."""
_COLUMNS = {
    *("text", "sentence", "sentences", "title", "id", "uuid", "label", "question", "template", "answer", "group"),
    *("subject", "predicate", "relation", "object", "subj", "prop", "obj", "sub_label", "obj_label"),
}
"""Column names that identify the first line of a table."""

T = TypeVar("T")


class _Row(NamedTuple):
    value: Any
    """Its value, or the reason why it cannot be used."""
    where: str


@dataclass
class Skipped:
    """The count of rows of a file that cannot be used."""

    rows: int = 0
    """All rows, usable ones included."""
    count: int = 0
    first: str = ""
    """The problem of the first of them, and where it is."""

    def __str__(self) -> str:
        return f"skipped {self.count:,} of {self.rows:,} rows that cannot be used; the first: {self.first}"

    def say(self) -> None:
        """Print the count on standard error, if rows were skipped."""
        if self.count:
            print(one_line(str(self)), file=sys.stderr)


def read_rows(
    path: Path,
    what: str,
    parse: Callable[[Any, str], T],
    *,
    plain: bool = False,
    any_share: bool = False,
    skipped: Skipped | None = None,
) -> Iterator[T]:
    """Stream the parsed rows of a file; memory holds one row of JSON, or some rows of Parquet.

    Args:
        path: the file.
        what: the expected content, for messages: ``corpus``, ``sentence``, ``facts``.
        parse: turns a row and its position (``file:line``) into a value; raises ``InputError`` for an unusable row.
        plain: whether a line that is not JSON is a row, as text.
        any_share: whether one usable row is enough. Otherwise a file is refused if half of its rows are unusable.
        skipped: counts the rows that are skipped; by default the count goes to standard error at the end.

    Raises:
        InputError: the file is missing, cut off, damaged or of another kind, or holds a line of over 64 MB; or too
            many rows are unusable.
    """
    noted = Skipped() if skipped is None else skipped
    if not path.is_file():
        raise InputError(f"{path}: no such {what} file")
    for row in _rows(path, what, plain):
        noted.rows += 1
        try:
            if isinstance(row.value, InputError):
                raise row.value
            parsed = parse(row.value, row.where)
        except InputError as error:
            noted.count += 1
            noted.first = noted.first or str(error)
            if noted.count == noted.rows == _HOPELESS:
                raise InputError(f"{noted.first}, and so are the {_HOPELESS - 1} rows after it") from error
            continue
        yield parsed
    if noted.count and noted.count >= noted.rows * (1 if any_share else 0.5):
        more = f" ({noted.count:,} of {noted.rows:,} rows cannot be used)" if noted.rows > 1 else ""
        raise InputError(noted.first + more)
    if skipped is None:
        noted.say()


def integer(digits: str) -> int | str:
    """An integer of JSON; digits so long that Python refuses to convert them stay text."""
    return int(digits) if len(digits) < 4000 else digits


def _rows(path: Path, what: str, plain: bool) -> Iterator[_Row]:
    with path.open("rb") as raw:
        head = raw.read(16)
    if head.startswith(b"PAR1"):
        yield from _parquet_rows(path)
        return
    number = 0
    try:
        with _open(path, head) as file:
            kind = _kind(file.peek(512), path, what, plain)
            if kind == "list":
                yield from _list_items(file, path)
                return
            for number, line in _lines(file, path):
                where = f"{path}:{number}"
                if line.strip():
                    last = not line.endswith(b"\n")
                    yield _Row(_plain(line, where) if kind == "plain" else _json(line, where, what, last), where)
    except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:  # a damaged or truncated stream
        raise InputError(f"{path}: cannot be read after line {number} ({error}); is it truncated?") from error


def _open(path: Path, head: bytes) -> io.BufferedReader:
    """The decompressed bytes of the file."""
    opener: Callable[[Path], Any] = _arrow
    if head.startswith(b"\xfd7zXZ\x00"):
        opener = lzma.LZMAFile
    elif re.match(rb"BZh[1-9]1AY&SY", head):
        opener = bz2.BZ2File
    elif head.startswith(b"\x1f\x8b"):
        opener = partial(_arrow, compression="gzip")
    elif head.startswith(b"\x28\xb5\x2f\xfd") or re.match(rb"[\x50-\x5f]\x2a\x4d\x18", head):
        opener = partial(_arrow, compression="zstd")
    return io.BufferedReader(opener(path), 1 << 16)


def _arrow(path: Path, compression: str | None = None) -> Any:
    return pa.input_stream(str(path), compression=compression)


def _kind(head: bytes, path: Path, what: str, plain: bool) -> str:
    """``list``, ``json`` (lines) or ``plain``, from the first bytes of the text.

    Raises:
        InputError: the file is of another kind that can be named.
    """
    text = head.removeprefix(_BOM).lstrip()
    for magic, name in _REFUSED.items():
        if text[: len(magic)].lower() == magic.lower():
            raise InputError(f"{path}: this is {name}; a {what} file is JSON lines, a JSON list or Parquet")
    packed = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"PAR1")
    if head.startswith(packed) or head[257:262] == b"ustar":
        raise InputError(f"{path}: an archive inside of an archive; unpack it first")
    if text.startswith(b"{"):
        return "json"
    first = text.partition(b"\n")[0].strip()
    if text.startswith(b"[") and not (plain and not re.match(rb'\[\s*(["{\[\]]|\n|-?\d+\s*[,\]]\s*$)', text)):
        return "list"
    if b"\0" in head:
        raise InputError(f"{path}: a binary file; a {what} file is JSON lines, a JSON list or Parquet")
    if names := _columns(first.decode("utf-8", "replace"), path):
        raise InputError(
            f"{path}: a table of comma- or tab-separated values ({names[:80]}); write it as JSON lines: "
            "pandas.read_csv(...).to_json(..., orient='records', lines=True)"
        )
    return "plain" if plain else "json"


def _columns(line: str, path: Path) -> str:
    """The first line if it holds the column names of a table, or if the file's name says so; otherwise empty."""
    if {suffix.lower() for suffix in path.suffixes} & {".csv", ".tsv"}:
        return line or "empty"
    names = [name.strip('"\r') for name in re.split(r"[,;\t|]", line)]
    known = any(name.lower() in _COLUMNS for name in names)
    return line if known and all(re.fullmatch(r"\w[\w.-]*( [\w.-]+){0,2}", name) for name in names) else ""


def _lines(file: io.BufferedReader, path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without byte order marks; a line longer than ``LONGEST`` is an error."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise InputError(f"{path}:{number}: this line is longer than {LONGEST >> 20} MB, the most that is read")
        yield number, line.removeprefix(_BOM)


def _plain(line: bytes, where: str) -> Any:
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError:
        return InputError(f"{where}: not UTF-8 text")


def _json(line: bytes, where: str, what: str, last: bool) -> Any:
    """The value on a line, or the error; raises it for a last line that breaks off: the rest of the file is missing."""
    try:
        return json.loads(line.decode("utf-8"), parse_int=integer)
    except UnicodeDecodeError as error:
        if last and error.reason == "unexpected end of data":
            raise InputError(f"{where}: the last line breaks off; is the file truncated?") from error
        return InputError(f"{where}: not UTF-8 text; a {what} file has one JSON object a line")
    except json.JSONDecodeError as error:
        broken_off = error.msg.startswith("Unterminated") or error.pos >= len(error.doc.rstrip())
        if broken_off and last:
            raise InputError(f"{where}: not a JSON object ({error}); is the file truncated?") from error
        if line.strip() == b"{":
            raise InputError(f"{where}: a JSON object over several lines; write one object a line") from error
        return InputError(f"{where}: not a JSON object ({error}); a {what} file has one a line")
    except RecursionError:
        return InputError(f"{where}: not a JSON object that can be read (nested too deeply)")


def _list_items(file: io.BufferedReader, path: Path) -> Iterator[_Row]:
    """Items of a JSON list in any layout; memory holds one of them."""
    text = _Text(file, path)
    text.skip("[")
    number = 0
    while not text.skip("]"):
        if number and not text.skip(","):
            raise text.error("Expecting ',' between items")
        yield _Row(text.item(number), f"{path}: item {number}")
        number += 1
    if text.peek():
        raise text.error("there is more after the end of the list")


class _Text:
    """A stretch of JSON text that grows until it holds a whole item."""

    def __init__(self, file: io.BufferedReader, path: Path):
        self.file, self.path = file, path
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.json = json.JSONDecoder(parse_int=integer)
        self.held, self.at, self.line, self.ended = "", 0, 1, False

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self.at < len(self.held):
                if not (character := self.held[self.at]).isspace():
                    return character
                self.at += 1
            if not self._grow():
                return ""

    def skip(self, character: str) -> bool:
        """Whether ``character`` comes next; if so, move past it."""
        is_next = self.peek() == character
        self.at += is_next
        return is_next

    def item(self, number: int) -> Any:
        """Parse the next value."""
        self.peek()
        while True:
            try:
                value, end = self.json.raw_decode(self.held, self.at)
                # a number such as 1 or 1. may continue past the text in memory
                if self.held[end : end + 1] in _BEHIND or not isinstance(value, int | float) or not self._grow():
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if not self._grow():
                    self.at = min(error.pos, len(self.held))
                    raise self.error(error.msg) from error
            except RecursionError as error:
                raise InputError(f"{self.path}: item {number}: JSON nested too deeply") from error
            if len(self.held) - self.at > LONGEST:
                raise InputError(f"{self.path}: item {number} is longer than {LONGEST >> 20} MB, the most that is read")

    def error(self, message: str) -> InputError:
        """The error for the current position."""
        line = self.line + self.held.count("\n", 0, self.at)
        end = "; is the file truncated?" if self.ended else ""
        return InputError(f"{self.path}:{line}: not valid JSON ({message}){end}")

    def _grow(self) -> bool:
        """Drop the text that was parsed and double the text in memory; False at the end of the file."""
        self.line += self.held.count("\n", 0, self.at)
        self.held, self.at = self.held[self.at :], 0
        chunk = self.file.read(max(_CHUNK, len(self.held)))
        self.ended = not chunk
        try:
            self.held += self.decoder.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: not UTF-8 text in the item after line {self.line}") from error
        return not self.ended


def _parquet_rows(path: Path) -> Iterator[_Row]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for value in batch.to_pylist():
                    yield _Row(value, f"{path}: row {number}")
                    number += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as Parquet after row {number} ({error}); is it truncated?") from error
