"""Tokens on which an entry fires, with the text around them."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from app.components.component import make_component

_CONTEXTS = make_component("contexts", "\n<div class='box'></div>\n<!-- contexts -->\n")


def context_view(
    groups: dict[str, pd.DataFrame], *, key: str, on_click: Callable[[], None], score: str = "gate"
) -> None:
    """Show rows of ``Recording.contexts()`` under headings, the firing token marked.

    Args:
        groups: rows by heading.
        key: name of the widget; in ``on_click`` the row, counted through all groups, is
            ``st.session_state[key].clicked``.
        on_click: called before the rerun that a click starts.
        score: what a score is called.
    """
    data = [
        {
            "title": title,
            "lines": [
                {
                    "about": f"layer {c['layer']} · {_number(c, 'gate', score, '.3g')}"
                    f"{_number(c, 'read', 'read', '+.3g')}{c['title'] or 'untitled'} (document {c['doc']}), token "
                    f"{c['pos']}",
                    "before": c["before"],
                    "token": c["token"],
                    "after": c["after"],
                }
                for c in contexts.to_dict("records")
            ],
        }
        for title, contexts in groups.items()
    ]
    _CONTEXTS(data={"groups": data}, key=key, on_clicked_change=on_click)


def _number(context: dict[Any, Any], column: str, name: str, form: str) -> str:
    """A number of a context with its name, empty where there is none."""
    value = context.get(column)
    return "" if pd.isna(value) else f"{name} {value:{form}} · "
