"""Make a component from its script and style in ``frontend/``, and colour strengths from values.

Corpus text is untrusted. It is passed as data, and the scripts set it only with ``textContent`` or ``title``, so no
character of it is ever read as markup.
"""

from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from memscope.base.printable import printable_values

_FRONTEND = Path(__file__).parents[1] / "frontend"


def make_component(name: str, html: str, *vendored: Path) -> Any:
    """A component of ``frontend/NAME.js`` and ``NAME.css``; call it with ``data`` to put it on a page."""
    script = "\n".join(path.read_text("utf-8") for path in (*vendored, _FRONTEND / "base.js", _FRONTEND / f"{name}.js"))
    style = "\n".join((_FRONTEND / f"{part}.css").read_text("utf-8") for part in ("base", name))
    component = st.components.v2.component(f"memscope_{name}", html=html, css=style, js=script)

    def mount(data: Any, **options: Any) -> Any:
        return component(data=printable_values(data), **options)  # invisible characters are written out

    return mount


def color_range(values: np.ndarray) -> tuple[float, float]:
    """Lowest value and 98th percentile of ``values``, so that one outlier does not make the rest pale."""
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 0.0
    return float(known.min()), float(np.quantile(known, 0.98))


def scale_ends(low: float, high: float) -> tuple[str, str]:
    """Both ends of a scale with as many decimals as the larger one needs for three digits: no -0, no 5.46e-05."""
    size = max(abs(low), abs(high))
    decimals = max(0, 2 - int(np.floor(np.log10(size)))) if size else 0
    if decimals > 6:
        return f"{low:.3g}", f"{high:.3g}"
    said = (f"{end:,.{decimals}f}" for end in (low, high))
    first, second = (end if float(end.replace(",", "")) else "0" for end in said)
    return first, second


def color_levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Strength of the colour per value, 0 at ``low`` to 1 at ``high`` and above; NaN gets none."""
    return np.nan_to_num(np.clip((values - low) / max(high - low, 1e-12), 0, 1))
