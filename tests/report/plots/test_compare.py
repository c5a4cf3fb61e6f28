"""Figures of a comparison on a light and on a dark page."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from memscope.report.plots import compare as compare_plots

LAYERS = (0, 3)
PAGES = {False: "#FFFFFF", True: "#12161C"}


def figures(dark: bool) -> dict[str, Figure]:
    likeness = pd.DataFrame(
        {
            "layer": LAYERS,
            "jensen_shannon": [0.1, 0.02],
            "halves_jensen_shannon_b": [0.01, 0.001],
            "halves_jensen_shannon_a": [0.03, 0.004],
            "jaccard": [0.5, 0.8],
            "independent_jaccard": [0.3, 0.3],
            "halves_jaccard": [0.9, 0.9],
        }
    )
    metrics = [(layer, metric) for layer in (None, *LAYERS) for metric in ("coverage", "kl_to_uniform")]
    evenness = pd.DataFrame([{"layer": layer, "metric": metric, "a": 0.2, "b": 0.4} for layer, metric in metrics])
    shares = {"bank_share_b": 0.1, "selection_share_a": 0.2, "selection_share_b": 0.3}
    predicates = pd.DataFrame([{"predicate": "place of birth", **shares}, {"predicate": "spouse", **shares}])
    counts = np.random.default_rng(0).poisson(3, (2, 2, 50))
    return {
        "divergence": compare_plots.divergence_dots(likeness, dark=dark),
        "overlap": compare_plots.overlap_bars(likeness, dark=dark),
        "usage": compare_plots.usage_scatter(*counts, LAYERS, dark=dark),
        "evenness": compare_plots.evenness_changes(evenness, dark=dark),
        "predicates": compare_plots.predicate_changes(predicates, dark=dark),
    }


def contrast(one: object, other: object) -> float:
    """Contrast ratio as WCAG 2 defines it, 1 to 21."""

    def luminance(color: object) -> float:
        channels = np.array(to_rgb(color))  # type: ignore[arg-type]
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_can_be_read_on_its_page(dark: bool) -> None:
    for name, figure in figures(dark).items():
        figure.savefig(io.BytesIO(), format="png")
        bars = [patch.get_facecolor() for axes in figure.axes for patch in axes.patches]
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]  # type: ignore[attr-defined]
        assert texts, name
        for text in texts:
            grounds = [PAGES[dark], *(color[:3] for color in bars)]
            assert max(contrast(text.get_color(), ground) for ground in grounds) > 4.5, (name, text.get_text())
            if not bars:
                assert contrast(text.get_color(), PAGES[dark]) > 4.5, (name, text.get_text())


@pytest.mark.parametrize("dark", [False, True])
def test_hollow_markers_hide_the_line_behind_them(dark: bool) -> None:
    drawn = figures(dark)
    for name in ("evenness", "predicates"):
        for axes in drawn[name].axes:
            hollow = [line for line in axes.lines if line.get_markeredgecolor() != line.get_markerfacecolor()]
            assert [to_rgb(line.get_markerfacecolor()) for line in hollow] == [to_rgb(PAGES[dark])] * len(hollow)
            assert hollow
