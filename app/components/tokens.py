"""A text as tokens that are coloured by a value."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from app.components.component import color_levels, color_range, make_component, scale_ends
from memscope.base.words import visible
from memscope.recording.token_table import token_label

_TOKENS = make_component(
    "tokens",
    """
<div class="legend"><span class="low"></span><i></i><span class="high"></span><span class="meaning"></span></div>
<div class="tokens" role="listbox"></div>
""",
)


def token_view(
    tokens: pd.DataFrame,
    values: np.ndarray,
    meaning: str,
    selected: int,
    *,
    key: str,
    label: str = "Tokens",
    signed: bool = False,
    new: np.ndarray | None = None,
    on_click: Callable[[], None],
) -> None:
    """Show a stretch of text as tokens coloured by a value.

    A character of several tokens is drawn once, across them. Tokens that are no text, such as bos, are grey.

    Args:
        tokens: rows of ``Trace.tokens`` or others with ``token_columns`` and ``pos``, positions without gaps.
        values: one per token; NaN gets no colour.
        meaning: a name of the values, with their unit.
        selected: position to mark; may be outside.
        key: name of the widget; in ``on_click`` the position is ``st.session_state[key].clicked``.
        label: for screen readers; a hint about the keys is added.
        signed: values above 0 and below 0 get two colours, both strongest at the same size.
        new: tokens to underline, ``[token]``.
        on_click: called before the rerun that a click starts.
    """
    tokens = _whole_units(tokens)
    control = tokens["control"].to_numpy(bool)
    values = np.where(control, np.nan, values)
    low, high = color_range(np.abs(values) if signed else values)
    levels = color_levels(np.abs(values) if signed else values, 0.0 if signed else low, high)
    ends = scale_ends(-high if signed else low, high)
    data: dict[str, Any] = {
        "tokens": [
            {
                "text": row.text,
                "part": row.part,
                "parts": row.parts,
                "control": row.control,
                "new": bool(new is not None and new[number]),
                "less": bool(signed and values[number] < 0),
                "tip": _tip(row, meaning, values[number]),
                "level": round(float(levels[number]), 3),
            }
            for number, row in enumerate(tokens.itertuples())
        ],
        "first": int(tokens["pos"].iloc[0]),
        "selected": int(selected),
        "signed": signed,
        "low": ends[0],
        "high": ends[1],
        "meaning": meaning,
        "label": f"{label}: arrow keys move, Enter selects",
    }
    _TOKENS(data=data, key=key, on_clicked_change=on_click)


def _whole_units(tokens: pd.DataFrame) -> pd.DataFrame:
    """The tokens with a character that an end of the stretch cuts drawn across those of its tokens that are there."""
    first, last = tokens.iloc[0], tokens.iloc[-1]
    ahead, missing = int(first["part"]), int(last["parts"] - last["part"] - 1)
    if not ahead and not missing:
        return tokens
    place = np.arange(len(tokens))
    opening = ahead * (place < first["parts"] - ahead)
    closing = missing * (place >= len(tokens) - 1 - last["part"])
    tokens = tokens.assign(part=tokens["part"] - opening, parts=tokens["parts"] - opening - closing)
    return tokens.assign(text=tokens["whole"].where(tokens["part"] == 0, ""))


def _tip(row: Any, meaning: str, value: float) -> str:
    """What the pointer shows of a token."""
    spelled = ""
    if row.bytes:
        spelled = f"{visible(token_label(row.whole, row.part, row.parts))}, bytes {row.bytes}; "
    return f"token {row.pos}: {spelled}{meaning.split(',')[0]} {'none' if np.isnan(value) else f'{value:.3g}'}"
