"""Numbers and tokens in words for readers."""

import difflib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from memscope.base.errors import InputError
from memscope.base.printable import printable

T = TypeVar("T")
_LISTED = 30
"""Known names that a message lists at most."""


def command_line(*parts: object) -> str:
    """A command as a shell takes it, also where a folder's name holds a space."""
    return shlex.join(map(str, parts))


def span(values: Iterable[Any], form: str) -> str:
    """``lowest to highest``, or one number when both look alike."""
    ordered = sorted(values)
    low, high = format(ordered[0], form), format(ordered[-1], form)
    return low if low == high else f"{low} to {high}"


def short_percent(share: float) -> str:
    """A share with as many digits as tell it from none and from all."""
    if 0 < share < 5e-5:
        return "under 0.01%"
    if 1 - 5e-5 < share < 1:
        return "over 99.99%"
    if share in (0, 1) or 0.01 <= share <= 0.99:
        return f"{share:.0%}"
    return f"{share:.1%}" if 0.001 <= share <= 0.999 else f"{share:.2%}"


def interval(low: float, high: float) -> str:
    """``low to high`` with two digits each, or with four where two would look alike: ``1.092 to 1.134``."""
    form = ends_form(low, high)
    return f"{low:{form}} to {high:{form}}"


def ends_form(low: float, high: float) -> str:
    """The format of the ends of an interval that tells them apart."""
    return ".2g" if f"{low:.2g}" != f"{high:.2g}" else "#.4g"


def plural(count: int, singular: str, plural_: str) -> str:
    """The noun that fits a number."""
    return singular if count == 1 else plural_


def first_upper(text: str) -> str:
    """A text that begins with a capital letter."""
    return text[:1].upper() + text[1:]


def visible(text: str) -> str:
    """A token for readers: leading and trailing spaces, newlines, tabs and invisible characters become signs."""
    inner = text.strip(" ")
    if not inner:
        return "␣" * len(text) or "∅"
    start, end = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return "␣" * start + printable(inner.replace("\n", "↵").replace("\t", "⇥")) + "␣" * end


class Named(dict[str, T]):
    """Values by name; a name that there is not is an ``InputError`` that says which was meant."""

    def __init__(self, values: Mapping[str, T], kind: str):
        super().__init__(values)
        self._kind = kind

    def __missing__(self, name: str) -> T:
        raise InputError(f"there is no {self._kind} '{name}'{did_you_mean(name, self)}")


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """The end of a message about a name that there is not: the known name that is most like it, or else all of them."""
    names = [str(each) for each in known]
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean '{nearest[0]}'?"
    return f"; known are {', '.join(names[:_LISTED])}{' ...' if len(names) > _LISTED else ''}" if names else ""
