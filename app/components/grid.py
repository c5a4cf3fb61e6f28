"""A value of every layer and token as a grid of cells."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from app.components.component import color_range, make_component, scale_ends
from memscope.recording.token_table import token_label

_GRID = make_component(
    "grid",
    """
<div class="box grid"><div class="scale"><span class="low"></span><i></i><span class="high"></span>
<span class="meaning"></span></div><canvas tabindex="0" role="img"></canvas>
<div class="tip" aria-live="polite"></div></div>
""",
)


def layer_grid(
    tokens: pd.DataFrame,
    values: np.ndarray,
    layers: tuple[int, ...],
    meaning: str,
    selected: int,
    layer: int,
    *,
    key: str,
    on_click: Callable[[], None],
) -> None:
    """Show a value of every layer and token as a grid of cells.

    Args:
        tokens: rows of ``Trace.tokens``, positions without gaps.
        values: ``[layer, token]``; NaN gets no colour.
        layers: names of the rows.
        meaning: a name of the values, with their unit.
        selected: position to mark; may be outside.
        layer: row to mark.
        key: name of the widget; in ``on_click`` the cell is ``st.session_state[key].clicked``: ``pos`` and ``row``.
        on_click: called before the rerun that a click starts.
    """
    low, high = color_range(values.ravel())
    ends = scale_ends(low, high)
    data = {
        "rows": [f"layer {name}" for name in layers],
        "texts": [token_label(row.whole, row.part, row.parts) for row in tokens.itertuples()],
        "values": [[None if np.isnan(v) else float(f"{v:.4g}") for v in row] for row in values],
        "low": low,
        "high": high,
        "low_text": ends[0],
        "high_text": ends[1],
        "meaning": meaning,
        "first": int(tokens["pos"].iloc[0]),
        "selected": int(selected),
        "row": layers.index(layer),
        "label": f"{meaning}, layers by tokens: arrow keys move, Enter selects",
    }
    _GRID(data=data, key=key, on_clicked_change=on_click)
