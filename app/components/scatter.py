"""The map: points to hover, click and lasso, what their colours mean, and the text of a point."""

from collections.abc import Callable
from pathlib import Path

from app.components.component import make_component
from memscope.query.charts.map_points import Colors

_SCATTER = make_component(
    "scatter",
    """
<div class="box map"><div class="bar"><button class="lasso" type="button" aria-pressed="false">Lasso</button>
<button class="home" type="button">Whole map</button>
<button class="closer" type="button" aria-label="Zoom in">+</button>
<button class="wider" type="button" aria-label="Zoom out">&minus;</button></div>
<div class="stage"><canvas role="img"></canvas><div class="tip"></div></div></div>
""",
    Path(__file__).parents[1] / "vendor" / "regl-scatterplot.js",
)
_LEGEND = make_component("legend", "\n<div class='box'></div>\n<!-- colours -->\n")
_TIP = make_component("tip", "\n<output aria-live='polite'></output>\n<!-- a sentence -->\n")


def scatter(
    points: bytes,
    *,
    key: str,
    on_hover: Callable[[], None],
    on_click: Callable[[], None],
    on_lasso: Callable[[], None],
) -> None:
    """Show a map of points.

    Args:
        points: ``map_points.pack_points``.
        key: name of the widget; its events are in ``st.session_state[key]``.
        on_hover: called when the pointer rests on a point: ``hovered`` is its entry.
        on_click: called when a point is clicked: ``clicked`` is its entry.
        on_lasso: called when a lasso is closed: ``lassoed`` has its corners, in thousandths.
    """
    _SCATTER(data=points, key=key, on_hovered_change=on_hover, on_clicked_change=on_click, on_lassoed_change=on_lasso)


def tip(entry: int, text: str, *, key: str) -> None:
    """Pass the text of a hovered point to the map."""
    _TIP(data={"entry": entry, "text": text}, key=key)


def legend(colors: Colors, *, key: str) -> None:
    """Show what the colours of the map mean.

    Args:
        colors: ``map_points.entry_colors``.
        key: name of the widget.
    """
    _LEGEND(
        data={"title": colors.title, "ramp": colors.ramp, "low": colors.low, "high": colors.high, "key": colors.key},
        key=key,
    )
