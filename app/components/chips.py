"""A small table whose cells are lists of tokens; cells wrap and are never cut."""

from typing import Any

from app.components.component import make_component

_CHIPS = make_component("chips", "\n<div class='box'></div>\n<!-- lists of tokens -->\n")


def chip_table(heads: list[str], rows: list[list[str | list[str]]], *, key: str, label: str) -> None:
    """Show a table of texts and lists of tokens.

    Args:
        heads: of the columns.
        rows: a text or a list of tokens for every column.
        key: name of the widget.
        label: for screen readers.
    """
    data: dict[str, Any] = {"heads": heads, "rows": rows, "label": label}
    _CHIPS(data=data, key=key)
