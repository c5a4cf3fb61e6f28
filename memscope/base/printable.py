"""Make text from outside safe to show: invisible characters and those that act on a terminal become signs.

    printable("\x1b[31mred")   # \\x1b[31mred

Code that shows a text of a corpus, a tokenizer, a config or a command line passes it through here: the command line,
reports, the static site, figures, exports and the app. Data files keep the text as it is.
"""

import re
from typing import Any

_FEW, _LONGEST = 8, 60
"""Values of a container, and characters of a text, that ``brief`` shows."""
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # characters that turn the direction of the text after them
    "\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # characters without width, and other line ends
    "\U000e0000-\U000e007f"  # tags
    "\ud800-\udfff]"  # halves of surrogate pairs, such as the bytes of an argument that is not UTF-8
)
"""Joiners (U+200C, U+200D) and the soft hyphen stay: scripts and emoji need them."""


def printable(text: str) -> str:
    """The text with every invisible character written out as in Python: ``\\x1b``, ``\\u202e``."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSEEN.sub(_written_out, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """``printable`` text on one line: white space of any kind and length becomes one space."""
    return " ".join(printable(text).split())


def printable_json(text: str) -> str:
    """JSON text with every invisible character as an escape sequence; its meaning stays the same."""
    return _UNSEEN.sub(_json_escape, text)


def brief(record: Any) -> str:
    """A dataclass or NamedTuple in one line, for its ``__repr__``: arrays and tables by their shape."""
    names = getattr(record, "_fields", None) or record.__dataclass_fields__
    values = ", ".join(f"{name}={_short(getattr(record, name))}" for name in names)
    return f"{type(record).__name__}({values})"


def _short(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__}[{' x '.join(map(str, shape))}]"
    if isinstance(value, list | tuple | dict) and len(value) > _FEW:
        return f"{type(value).__name__} of {len(value):,}"
    text = one_line(repr(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def printable_values(value: Any) -> Any:
    """Plain values (dictionaries, lists, tuples) with every text in them printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: printable_values(inner) for key, inner in value.items()}
    return [printable_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
