"""The app's own components: tokens, the layer grid, fired entries, contexts, decodings. Scripts are in ``frontend/``.

Corpus text is untrusted. It travels as data, and the scripts set it with ``textContent`` or ``title`` alone, so that
no character of it is ever read as markup.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from memscope.base.printable import printable_values
from memscope.query.fired import FiredEntry, FiredLayer

_FRONTEND = Path(__file__).parent / "frontend"
FEW = 4
"""Entries of a layer that are shown before the reader asks for all."""
_DECODED = 6
"""Nearest tokens shown of a fired entry."""


def _component(name: str, html: str, *vendored: Path) -> Any:
    script = "\n".join(path.read_text("utf-8") for path in (*vendored, _FRONTEND / "base.js", _FRONTEND / f"{name}.js"))
    style = "\n".join((_FRONTEND / f"{part}.css").read_text("utf-8") for part in ("base", name))
    component = st.components.v2.component(f"memscope_{name}", html=html, css=style, js=script)

    def mount(data: Any, **options: Any) -> Any:
        return component(data=printable_values(data), **options)  # with signs for what is unseen

    return mount


_TOKENS = _component(
    "tokens",
    """
<div class="legend"><span class="low"></span><i></i><span class="high"></span><span class="meaning"></span></div>
<div class="tokens" role="listbox"></div>
""",
)
_GRID = _component(
    "grid",
    """
<div class="box grid"><div class="scale"><span class="low"></span><i></i><span class="high"></span>
<span class="meaning"></span></div><canvas tabindex="0" role="img"></canvas>
<div class="tip" aria-live="polite"></div></div>
""",
)
_FIRED = _component("fired", "\n<div class='box'></div>\n<!-- layers -->\n")
_CONTEXTS = _component("contexts", "\n<div class='box'></div>\n<!-- contexts -->\n")
_SCATTER = _component(
    "scatter",
    """
<div class="box map"><div class="bar"><button class="lasso" type="button" aria-pressed="false">Lasso</button>
<button class="home" type="button">Whole map</button>
<button class="closer" type="button" aria-label="Zoom in">+</button>
<button class="wider" type="button" aria-label="Zoom out">&minus;</button></div>
<div class="key"></div><div class="tip"></div><div class="stage"><canvas role="img"></canvas></div></div>
""",
    Path(__file__).parent / "vendor" / "regl-scatterplot.js",
)
_TIP = _component("tip", "\n<output aria-live='polite'></output>\n<!-- a sentence -->\n")
_DECODING = _component("decoding", "\n<div class='box'></div>\n<!-- tokens -->\n")


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
        meaning: what the values are, with their unit.
        selected: position to mark; may lie outside.
        key: name of the widget; in ``on_click`` the position is ``st.session_state[key].clicked``.
        label: for screen readers; the way to use the keys is added.
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
        meaning: what the values are, with their unit.
        selected: position to mark; may lie outside.
        layer: row to mark.
        key: name of the widget; in ``on_click`` the cell is ``st.session_state[key].clicked``: ``pos`` and ``row``.
        on_click: called before the rerun that a click starts.
    """
    low, high = color_range(values.ravel())
    data = {
        "rows": [f"layer {name}" for name in layers],
        "texts": tokens["text"].tolist(),
        "values": [[None if np.isnan(v) else float(f"{v:.4g}") for v in row] for row in values],
        "low": low,
        "high": high,
        "low_text": f"{low:.3g}",
        "high_text": f"{high:.3g}",
        "meaning": meaning,
        "first": int(tokens["pos"].iloc[0]),
        "selected": int(selected),
        "row": layers.index(layer),
        "label": f"{meaning}, layers by tokens: arrow keys move, Enter selects",
    }
    _GRID(data=data, key=key, on_clicked_change=on_click)


def fired_view(
    layers: list[FiredLayer], chosen: int, lit: int | None, *, key: str, on_act: Callable[[], None], few: int = FEW
) -> None:
    """Show the entries that a token selected, layer by layer.

    Args:
        layers: ``fired_entries``.
        chosen: layer to mark.
        lit: entry that colours the text, if any.
        key: name of the widget.
        on_act: called when the reader asks for something: ``st.session_state[key].acted`` has ``act`` (``open``,
            ``where`` or ``light``), ``entry`` (-1: none) and ``layer``.
        few: entries of a layer that are shown at first.
    """
    data = [
        {
            "layer": layer.layer,
            "note": f"reads {layer.effective:.1f} of {len(layer.entries)} entries effectively"
            if layer.effective
            else "reads nothing here",
            "entries": [_fired(entry) for entry in layer.entries],
        }
        for layer in layers
    ]
    _FIRED(
        data={"layers": data, "chosen": chosen, "lit": -1 if lit is None else lit, "few": few},
        key=key,
        on_acted_change=on_act,
    )


def _fired(fired: FiredEntry) -> dict[str, Any]:
    words, reads = fired.words, fired.slots
    slots = None
    if reads is not None:
        # even reading is half the colour, so that it does not look like reading all of it strongly
        levels = reads / max(float(reads.max(initial=0)), 2 * float(reads.mean()), 1e-30)
        texts = zip(words.sentence, levels.tolist(), reads.tolist(), strict=False)
        slots = [(text, level, f"{read:.3g}") for text, level, read in texts]
    return {
        "entry": fired.entry,
        "gate": f"{fired.gate:.3g}",
        "gate_share": fired.gate_share,
        "read": f"{fired.read:.3g}",
        "read_share": fired.read_share,
        "sentence": words.text,
        "slots": slots,
        "decoded": words.decoded[:_DECODED],
        "title": words.title,
    }


def context_view(groups: dict[str, pd.DataFrame], *, key: str, on_click: Callable[[], None]) -> None:
    """Show rows of ``Recording.contexts()`` under headings, the firing token marked.

    Args:
        groups: rows by heading.
        key: name of the widget; in ``on_click`` the row, counted through all groups, is
            ``st.session_state[key].clicked``.
        on_click: called before the rerun that a click starts.
    """
    data = [
        {
            "title": title,
            "lines": [
                {
                    "about": f"layer {c['layer']} · gate {c['gate']:.3g} · read {c['read']:+.3g} · "
                    f"{c['title'] or 'untitled'} (document {c['doc']}), token {c['pos']}",
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


def decoding_view(
    original: list[tuple[str, bool]],
    now: list[tuple[str, bool, str]],
    slots: list[dict[str, Any]],
    *,
    key: str,
) -> None:
    """Show what an entry said at first beside what it says now.

    Args:
        original: tokens of the init sentence, and whether each is among the nearest now.
        now: nearest tokens, whether each stands in the sentence, and its cosine.
        slots: for entries with several: ``slot from to cosine drift`` each; the other two are then left out.
        key: name of the widget.
    """
    _DECODING(data={"original": original, "now": now, "slots": slots}, key=key)


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
        key: name of the widget; what happened is in ``st.session_state[key]``.
        on_hover: called when the pointer rests on a point: ``hovered`` is its entry.
        on_click: called when a point is clicked: ``clicked`` is its entry.
        on_lasso: called when a lasso is closed: ``lassoed`` has its corners, in thousandths.
    """
    _SCATTER(data=points, key=key, on_hovered_change=on_hover, on_clicked_change=on_click, on_lassoed_change=on_lasso)


def tip(entry: int, text: str, *, key: str) -> None:
    """Hand the text of a hovered point to the map."""
    _TIP(data={"entry": entry, "text": text}, key=key)


def color_range(values: np.ndarray) -> tuple[float, float]:
    """Lowest value and 98th percentile of ``values``: one outlier must not turn the rest pale."""
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 0.0
    return float(known.min()), float(np.quantile(known, 0.98))


def color_levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Strength of the colour per value, 0 at ``low`` to 1 at ``high`` and above; NaN gets none."""
    return np.nan_to_num(np.clip((values - low) / max(high - low, 1e-12), 0, 1))
