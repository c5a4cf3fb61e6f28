"""A text as tokens that are coloured by a value."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from app.components.component import color_levels, color_range, make_component

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
    on_click: Callable[[], None],
) -> None:
    """Show a stretch of text as tokens coloured by a value.

    Args:
        tokens: rows of ``Trace.tokens``, positions without gaps.
        values: one per token; NaN gets no colour.
        meaning: a name of the values, with their unit.
        selected: position to mark; may be outside.
        key: name of the widget; in ``on_click`` the position is ``st.session_state[key].clicked``.
        label: for screen readers; a hint about the keys is added.
        on_click: called before the rerun that a click starts.
    """
    low, high = color_range(values)
    data: dict[str, Any] = {
        "texts": tokens["text"].tolist(),
        "special": [bool(text.startswith("<|") and text.endswith("|>")) for text in tokens["text"]],
        "tips": [
            f"token {pos}: {meaning.split(',')[0]} {'none' if np.isnan(value) else f'{value:.3g}'}"
            for pos, value in zip(tokens["pos"], values, strict=True)
        ],
        "levels": color_levels(values, low, high).round(3).tolist(),
        "first": int(tokens["pos"].iloc[0]),
        "selected": int(selected),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "meaning": meaning,
        "label": f"{label}: arrow keys move, Enter selects",
    }
    _TOKENS(data=data, key=key, on_clicked_change=on_click)
