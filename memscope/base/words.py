"""Numbers and tokens as a reader sees them."""

from collections.abc import Iterable
from typing import Any

from memscope.base.printable import printable


def span(values: Iterable[Any], form: str) -> str:
    """Lowest to highest number, or the one when both look alike."""
    ordered = sorted(values)
    low, high = format(ordered[0], form), format(ordered[-1], form)
    return low if low == high else f"{low} to {high}"


def plural(count: int, one: str, many: str) -> str:
    """The noun that fits a number."""
    return one if count == 1 else many


def visible(text: str) -> str:
    """A token as a reader sees it: leading and trailing spaces, newlines, tabs and what is unseen become signs."""
    inner = text.strip(" ")
    if not inner:
        return "␣" * len(text) or "∅"
    start, end = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return "␣" * start + printable(inner.replace("\n", "↵").replace("\t", "⇥")) + "␣" * end
