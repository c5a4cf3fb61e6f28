"""Pieces of HTML for notebooks: cards, tables and coloured tokens.

    card("entry 4711", facts({"started as": "Apollo is a god ."}), table(["layer", "count"], [[0, 12]]))

A piece is self-contained: it loads nothing, runs no script, and takes its ink from the page, so that it can be read on
light and dark. Every text is escaped. What is hovered over is a ``title``.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from memscope.base.printable import printable
from memscope.base.words import visible

# A class written twice outweighs the rules of notebooks, which would set texts of tables to the right.
_STYLE = (
    "<style>.memscope{font-family:system-ui,sans-serif;font-size:13px;line-height:1.5;max-width:60em}"
    ".memscope table{border-collapse:collapse;margin:.4em 0;font-size:inherit}"
    ".memscope.memscope td,.memscope.memscope th{padding:.1em .7em .1em 0;text-align:left;vertical-align:top;"
    "border:0;background:none}"
    ".memscope.memscope th{font-weight:600;opacity:.75}"
    ".memscope.memscope tr{background:none}"
    ".memscope .text{white-space:pre-wrap;overflow-wrap:anywhere}"
    ".memscope .text span{border-radius:2px}"
    ".memscope .chip{white-space:pre;font-family:monospace;font-size:.9em;padding:0 .3em;margin-right:.3em;"
    "border:1px solid rgba(128,128,128,.5);border-radius:3px;display:inline-block}"
    ".memscope .note{opacity:.75}</style>"
)
_INK = "230,159,0"
"""Colour of large values; what is behind shines through, so that the page's own ink stays readable on it."""
_DEEPEST = 0.6


def card(title: str, *pieces: str) -> str:
    """Pieces under a title."""
    return f'<div class="memscope">{_STYLE}<strong>{_text(title)}</strong>{"".join(pieces)}</div>'


def facts(values: Mapping[str, Any]) -> str:
    """Names and what is said of them; those without a value are left out."""
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in values.items() if value)
    return f"<table>{rows}</table>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of texts, numbers and lists of tokens."""
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def note(text: str) -> str:
    """A line in faint ink."""
    return f'<div class="note">{_text(text)}</div>'


def tokens(texts: Sequence[str], values: np.ndarray, tips: Sequence[str], meaning: str) -> str:
    """A text, its tokens coloured by a value and with a tip each.

    Args:
        texts: of the tokens; one without text belongs to the one before, as a further part of its character.
        values: one per token; NaN gets no colour.
        tips: what is shown when a token is pointed at.
        meaning: of the values, with their unit.
    """
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, [0.05, 0.95]) if len(known) else (0.0, 0.0)
    shade = np.nan_to_num(np.clip((values - low) / max(high - low, 1e-9), 0, 1)) * _DEEPEST
    spans: list[tuple[str, float, list[str]]] = []
    for text, depth, tip in zip(texts, shade.tolist(), tips, strict=True):
        if text or not spans:
            spans.append((text, depth, [tip]))
        else:
            spans[-1][2].append(tip)
    drawn = "".join(
        f'<span style="background:rgba({_INK},{depth:.2f})" title="{_text(chr(10).join(said))}">{_token(text)}</span>'
        for text, depth, said in spans
    )
    scale = f"{meaning}: {low:.2f} (plain) to {high:.2f} (deep)" if len(known) else meaning
    return f'{note(scale)}<div class="text">{drawn}</div>'


def _token(text: str) -> str:
    """A token in running text: line ends are seen, and break the line."""
    return _text(text).replace("\n", "↵\n") if text else visible(text)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "".join(f'<span class="chip">{_text(visible(str(each)))}</span>' for each in value)
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4g}"
    return _text(f"{value:,}" if isinstance(value, int) else value)


def _text(value: Any) -> str:
    return escape(printable(str(value)))
