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


def color_levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Strength of the colour per value, 0 at ``low`` to 1 at ``high`` and above; NaN gets none."""
    return np.nan_to_num(np.clip((values - low) / max(high - low, 1e-12), 0, 1))
