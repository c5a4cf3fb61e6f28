"""Tokens as a reader sees them: a character that several tokens spell is one character, drawn across them.

    [(unit.text, unit.tokens) for unit in find_units([b"a", b"\\xe4\\xb8", b"\\xad"])]  # [("a", 1), ("中", 2)]

App, traces, contexts and pages all show tokens in this way. Bytes that spell no character are written out: ``\\xe4``.
"""

import unicodedata
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

ESCAPE = "backslashreplace"
"""How bytes that spell no character are decoded."""
_JOINER = "\u200d"
_TONES = range(0x1F3FB, 0x1F400)
_FLAG = range(0x1F1E6, 0x1F200)


class Unit(NamedTuple):
    """The smallest stretch of tokens that cuts no character: one token, or those that share a character."""

    text: str
    first: int
    """Number of its first token."""
    tokens: int


def find_units(pieces: Sequence[bytes]) -> list[Unit]:
    """Group tokens by the characters that they share.

    Marks belong to their letter, parts of an emoji to the emoji.

    Args:
        pieces: bytes of the tokens of a text, in its order.
    """
    joined = b"".join(pieces)
    if joined.isascii():
        return [Unit(piece.decode(), number, 1) for number, piece in enumerate(pieces)]
    characters = joined.decode("utf-8", "surrogateescape")  # a byte that spells none is a lone surrogate
    bounds = _bounds(characters)
    units, start = [], 0
    ends = list(accumulate(map(len, pieces)))
    for number, end in enumerate(ends):
        if end in bounds:
            text = b"".join(pieces[start : number + 1]).decode("utf-8", ESCAPE)
            units.append(Unit(text, start, number + 1 - start))
            start = number + 1
    return units


def _bounds(characters: str) -> set[int]:
    """Bytes at which a text may be cut."""
    bounds, place, before, flags = set(), 0, "", 0
    for character in characters:
        flags = flags + 1 if ord(character) in _FLAG else 0
        if not (_joins(before, character) or flags == 2):
            bounds.add(place)
        flags %= 2
        place += len(character.encode("utf-8", "surrogateescape"))
        before = character
    return bounds | {place}


def _joins(before: str, character: str) -> bool:
    """Whether a character continues the one before."""
    if not before or before.isspace():
        return False
    mark = unicodedata.category(character)[0] == "M" or ord(character) in _TONES
    return mark or character == _JOINER or before == _JOINER


def byte_alphabet() -> dict[str, int]:
    """The byte of every character of a byte-level vocabulary: printable ones name themselves, others go from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unprintable = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(unprintable)}
