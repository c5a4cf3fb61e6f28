"""Keep the choices on a page in its address, and follow the address: a view can be pasted, and "back" works.

    view = View("prompts")
    doc = view.field("doc", integer(0, len(documents)))
    view.write()
    st.number_input("Document", 0, 9, **view.widget("doc"))

At the start of a run there are two cases. The reader has used a widget, as its callback noted: the address follows the
widgets. Or the address differs from the one written last (a link, a paste, "back"): the widgets follow the address.
Values outlive a visit to another page. Every field checks its value, because an address may hold anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

MAX_TEXT = 8000
"""Most characters of a value in an address; a longer text stays in the session alone."""
_REMEMBERED = 50
"""Number of pages left by links whose view is remembered."""


@dataclass(frozen=True)
class Field:
    """One value of an address."""

    default: Any
    parse: Callable[[str], Any]
    """A value from its text in the address; raises ValueError with a sentence for the reader."""
    valid: Callable[[Any], bool]
    """Whether a value kept from an earlier run is still valid."""
    text: Callable[[Any], str] = str
    carried: bool = False
    """Whether links from other pages bring the value along, where they say nothing else."""


def integer(low: int, high: int, default: int | None = None, name: str = "number") -> Field:
    """A whole number from ``low`` to ``high`` - 1, or the default, which may be none."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 18 and low <= int(text) < high):
            raise ValueError(f"There is no such {name} as the address names; they run from {low} to {high - 1:,}.")
        return int(text)

    return Field(default, parse, lambda value: value == default or (isinstance(value, int) and low <= value < high))


def choice(options: Sequence[Any], default: Any = None, name: str = "choice") -> Field:
    """One of some options, known in the address by their texts; the first one if no default is given."""
    known = {str(option): option for option in options}

    def parse(text: str) -> Any:
        if text not in known:
            raise ValueError(f"There is no such {name} as the address names.")
        return known[text]

    return Field(options[0] if default is None else default, parse, lambda value: value in options)


def several(options: Sequence[Any], name: str = "choice") -> Field:
    """Some of the options, in their order; all of them by default."""
    known = {str(option): option for option in options}

    def parse(text: str) -> list[Any]:
        texts = text.split("-")
        if not set(texts) <= known.keys():
            raise ValueError(f"There is no such {name} as the address names.")
        return [known[label] for label in known if label in texts]

    return Field(
        list(options), parse, lambda value: set(value) <= set(options), lambda value: "-".join(map(str, value))
    )


def words(default: str = "") -> Field:
    """Any text up to ``MAX_TEXT`` characters."""

    def parse(text: str) -> str:
        if len(text) > MAX_TEXT:
            raise ValueError(f"The text in the address is too long; it holds up to {MAX_TEXT:,} characters.")
        return text

    return Field(default, parse, lambda value: isinstance(value, str))


def corners() -> Field:
    """Corners of a lasso: pairs of whole numbers, none by default."""

    def parse(text: str) -> list[tuple[int, int]]:
        numbers = [part.split("_") for part in text.split(".")][:200]
        if any(
            len(pair) != 2 or any(not number.lstrip("-").isdecimal() or len(number) > 6 for number in pair)
            for pair in numbers
        ):
            raise ValueError("The address holds a lasso that cannot be read.")
        points = [(int(x), int(y)) for x, y in numbers]
        if len(points) < 3:
            raise ValueError("The address holds a lasso with fewer than three corners.")
        return points

    return Field([], parse, lambda value: isinstance(value, list), lambda value: ".".join(f"{x}_{y}" for x, y in value))


def flag() -> Field:
    """Yes or no, no by default."""
    return Field(False, lambda text: text == "1", lambda value: isinstance(value, bool), lambda value: str(int(value)))


class View:
    """The values of one page."""

    def __init__(self, page: str):
        self.page = page
        self._asked = st.query_params.to_dict()
        self._fields: dict[str, Field] = {}
        used = st.session_state.pop("_used", False)
        bare = not self._asked and bool(_kept(page))  # the menu leads to the view that was open before
        left = st.session_state.get("_left", {}).get((page, *sorted(self._asked.items())))
        if left and not used:
            st.session_state["_views"][page] = dict(left)
            for name, value in left.items():
                st.session_state[self.key(name)] = value
        moved = st.session_state.get("_address") != (page, self._asked)
        self._follow = moved and not used and not bare and not left

    def field(self, name: str, field: Field) -> Any:
        """The current value of a field."""
        self._fields[name] = field
        key, kept = self.key(name), _kept(self.page)
        value = st.session_state.get(key, kept.get(name, field.default))
        if self._follow:
            value = field.default
            if name in self._asked:
                try:
                    value = field.parse(self._asked[name])
                except ValueError as error:
                    st.warning(str(error), icon=":material/link_off:")
        if not field.valid(value):
            value = field.default  # left from another recording or a longer text
        kept[name] = st.session_state[key] = value
        return value

    def write(self) -> None:
        """Put all fields into the address: one step of the browser's history if anything changed."""
        values = {"recording": st.session_state["_recording"]}
        for name, field in self._fields.items():
            value = _kept(self.page)[name]
            if value != field.default and len(text := field.text(value)) <= MAX_TEXT:
                values[name] = text
        carried = {name: values[name] for name, field in self._fields.items() if field.carried and name in values}
        st.session_state.setdefault("_carried", {})[self.page] = carried
        if values != st.query_params.to_dict():
            st.query_params.from_dict(values)
        st.session_state["_address"] = (self.page, values)

    def widget(self, name: str, on_use: Callable[[], None] | None = None) -> dict[str, Any]:
        """``key`` and ``on_change`` of the widget that shows a field; ``on_use`` is called when the reader uses it."""

        def use() -> None:
            self.used()
            if on_use is not None:
                on_use()

        return {"key": self.key(name), "on_change": use}

    def used(self) -> None:
        """Note that the reader has used a widget; for the buttons of forms, whose widgets have no callbacks."""
        st.session_state["_used"] = True

    def key(self, name: str) -> str:
        """The widget key of a field."""
        return f"{self.page}.{name}"

    def put(self, **values: Any) -> None:
        """Change fields as if the reader had; call in callbacks only."""
        for name, value in values.items():
            _kept(self.page)[name] = st.session_state[self.key(name)] = value
        self.used()


def go(page: str, **values: Any) -> None:
    """Go to a view on another page; does not return.

    Streamlit adds the new query with the old path to the browser's history before it changes the path, so "back" first
    comes to this page with the query of the next one. The view left here is remembered under that query.
    """
    carried = st.session_state.get("_carried", {}).get(page, {})
    given = {name: str(value) for name, value in values.items()}
    address = {"recording": st.session_state["_recording"], **carried, **given}
    page_left, _ = st.session_state["_address"]
    remembered: dict[Any, Any] = st.session_state.setdefault("_left", {})
    remembered[(page_left, *sorted(address.items()))] = dict(_kept(page_left))
    while len(remembered) > _REMEMBERED:
        remembered.pop(next(iter(remembered)))
    st.switch_page(f"app_pages/{page}.py", query_params=address)


def choose(options: Sequence[str]) -> tuple[str, bool]:
    """The recording to open among the names ``options``: that of the address, else the open one, else the first.

    Returns the name and whether the address asked for one that is not there.
    """
    asked, now = st.query_params.get("recording"), st.session_state.get("_recording")
    if st.session_state.get("_used") and now in options:
        return now, False
    if asked in options:
        return asked, False
    return (now if now in options else options[0]), asked is not None


def _kept(page: str) -> dict[str, Any]:
    views: dict[str, dict[str, Any]] = st.session_state.setdefault("_views", {})
    return views.setdefault(page, {})
