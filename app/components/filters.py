"""Linked histograms: bars and lists of names that a reader chooses from."""

from collections.abc import Callable
from typing import Any

from app.components.component import make_component
from memscope.query.charts.histograms import Histogram

_FILTERS = make_component("filters", "\n<details class='box' open></details>\n<!-- histograms -->\n")


def histogram_view(drawn: list[Histogram], said: str, *, key: str, on_choose: Callable[[], None]) -> None:
    """Show histograms next to each other, or below each other where there is little room.

    Args:
        drawn: ``histograms``.
        said: how much is left, above the histograms.
        key: name of the widget; ``st.session_state[key].chosen`` has ``name`` (empty: of all histograms) and ``bins``,
            the numbers of the bins that the reader chose.
        on_choose: called before the rerun that a choice starts.
    """
    panels: list[dict[str, Any]] = [
        {
            "name": one.name,
            "title": one.title,
            "kind": one.kind,
            "labels": one.labels,
            "ends": one.ends,
            "counts": one.counts.tolist(),
            "every": one.every.tolist(),
            "chosen": one.chosen.tolist(),
        }
        for one in drawn
    ]
    _FILTERS(data={"panels": panels, "said": said}, key=key, on_chosen_change=on_choose)
