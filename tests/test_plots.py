"""Figures show the numbers they are given, in both themes, at any number of layers, without pyplot."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from memscope import plots
from memscope.query import Recording


def _draw_all(recording: Recording, dark: bool = False) -> dict[str, Figure]:
    counts, layers, metrics = recording.usage(), recording.info.layers, recording.layer_metrics()
    return {
        "usage": plots.usage_histogram(counts, layers, dark=dark),
        "lorenz": plots.lorenz_curve(counts, layers, dark=dark),
        "coverage": plots.coverage_bars(metrics, dark=dark),
        "mass": plots.top_mass(metrics, dark=dark),
        "reading": plots.read_share_histogram(recording.reading_metrics(), dark=dark),
        "training": plots.training_curve(recording.training_curve(), dark=dark),
    }


@pytest.mark.parametrize("dark", [False, True])
def test_every_figure_labels_its_axes_and_renders(tiny_recording: Recording, dark: bool, tmp_path: Path) -> None:
    for name, figure in _draw_all(tiny_recording, dark).items():
        for axes in figure.axes:
            assert axes.get_xlabel() and axes.get_ylabel(), name
            assert axes.get_legend() is not None, name
        figure.savefig(tmp_path / f"{name}.png")
        figure.savefig(tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_figures_do_without_pyplot() -> None:
    code = "import sys; from memscope import plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_usage_is_sorted_from_the_most_used_entry_and_leaves_unused_ones_out() -> None:
    axes = plots.usage_histogram(np.array([[1, 0, 7, 3], [0, 0, 0, 5]]), [0, 2]).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1, 7], [2, 3], [3, 1]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mean, all layers", "layer 0", "layer 2"]
    assert axes.get_ylabel() == "selections"


def test_summed_weights_are_named_as_such() -> None:
    assert plots.usage_histogram(np.array([[0.5, 2.0]]), [0]).axes[0].get_ylabel() == "summed weight"


def test_lorenz_curve_of_even_use_is_the_diagonal() -> None:
    line = plots.lorenz_curve(np.full((1, 1000), 3), [0]).axes[0].lines[0].get_xydata()
    np.testing.assert_allclose(line[:, 0], line[:, 1], atol=1e-12)


def test_lorenz_curve_of_one_entry_in_four_stays_down_until_the_end() -> None:
    line = plots.lorenz_curve(np.array([[0, 9, 0, 0]]), [0]).axes[0].lines[0].get_xydata()
    assert line.tolist() == [[0, 0], [0.25, 0], [0.5, 0], [0.75, 0], [1, 1]]


def test_coverage_stands_beside_even_coverage() -> None:
    metrics = pd.DataFrame({"layer": [1, 4], "coverage": [0.25, 0.5], "even_coverage": [0.9, 1.0]})
    axes = plots.coverage_bars(metrics).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.25, 0.5, 0.9, 1.0]
    assert [text.get_text() for text in axes.texts] == ["25%", "50%", "90%", "100%"]


def test_top_mass_names_every_number() -> None:
    metrics = pd.DataFrame({"layer": [0], "entries": [5000], "top50": [3], "top90": [40], "top99": [1200]})
    assert [text.get_text() for text in plots.top_mass(metrics).axes[0].texts] == ["3", "40", "1,200"]


def test_read_shares_are_shares_of_all_selections() -> None:
    reading = pd.DataFrame({"layer": [0], "read_share_histogram": [[30, 10] + [0] * 48]})
    values, edges, _ = plots.read_share_histogram(reading).axes[0].patches[0].get_data()
    assert values[:2].tolist() == [0.75, 0.25]
    assert edges[[0, -1]].tolist() == [0, 1]


def test_a_run_without_memory_has_a_loss_curve_alone() -> None:
    curve = pd.DataFrame({"kind": ["train", "eval"], "step": [1, 10], "loss": [5.0, 4.5]})
    [axes] = plots.training_curve(curve).axes
    assert axes.get_ylabel() == "loss (nats per token)"


def test_an_empty_log_draws_an_empty_panel() -> None:
    assert len(plots.training_curve(pd.DataFrame(columns=["kind", "step", "loss"])).axes) == 1


def test_an_unused_bank_draws() -> None:
    counts = np.zeros((2, 16), np.int64)
    plots.lorenz_curve(counts, [0, 1]).savefig("/dev/null", format="png")
    plots.usage_histogram(counts, [0, 1]).savefig("/dev/null", format="png")


def test_many_layers_are_named_in_part() -> None:
    legend = plots.lorenz_curve(np.ones((24, 8), np.int64), range(24)).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["even selection", "layer 0", "layer 12", "layer 23"]
