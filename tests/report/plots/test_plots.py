"""Figures show the numbers they are given, in both themes, at any number of layers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from memscope.census.kernels import MARGIN_BINS
from memscope.query.recording import Recording
from memscope.recording.census_file import ClassProfile, Overlap
from memscope.report.plots import bias as bias_plots
from memscope.report.plots import compare as compare_plots
from memscope.report.plots import style
from memscope.report.plots import usage as plots


def _draw_all(recording: Recording, dark: bool = False) -> dict[str, Figure]:
    counts, layers, metrics = recording.usage(), recording.info.layers, recording.layer_metrics()
    reading, drift = recording.reading_metrics(), recording.drift()
    positions = [layer.profiles.position for layer in recording.census.layers]
    return {
        "preferences": bias_plots.preference_forest(recording.preferences(), dark=dark),
        "position": bias_plots.class_divergence(positions, layers, "position in the window", dark=dark),
        "entropy": bias_plots.entropy_dots(reading, recording.info.selected, dark=dark),
        "margins": bias_plots.margin_lines(reading, dark=dark),
        "drift": bias_plots.drift_curves(drift, counts.sum(0) > 0, dark=dark),
        "usage": plots.usage_histogram(counts, layers, dark=dark),
        "lorenz": plots.lorenz_curve(counts, layers, dark=dark),
        "coverage": plots.coverage_bars(metrics, dark=dark),
        "mass": plots.top_mass(metrics, dark=dark),
        "reading": plots.read_share_histogram(reading, dark=dark),
        "training": plots.training_curve(recording.training_curve(), dark=dark),
    }


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_every_figure_labels_its_axes_and_renders(tiny_recording: Recording, dark: bool, tmp_path: Path) -> None:
    for name, figure in _draw_all(tiny_recording, dark).items():
        for axes in figure.axes:
            assert axes.get_xlabel() and axes.get_ylabel(), name
            assert axes.get_legend() is not None, name
        figure.savefig(tmp_path / f"{name}.png")
        figure.set_layout_engine(None)  # it is laid out now
        figure.savefig(tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


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


def test_steps_of_a_run_that_has_just_begun_are_whole_numbers() -> None:
    curve = pd.DataFrame({"kind": ["eval"], "step": [0], "loss": [8.8], "layer_0/entries": [16], "layer_0/dead": [3]})
    figure = plots.training_curve(curve)
    for axes in figure.axes:
        low, high = axes.get_xlim()
        steps = [step for step in axes.get_xticks() if low <= step <= high]
        assert 0 in steps and all(step == int(step) >= 0 for step in steps)


def test_an_empty_log_draws_an_empty_panel() -> None:
    assert len(plots.training_curve(pd.DataFrame(columns=["kind", "step", "loss"])).axes) == 1


def test_an_unused_bank_draws() -> None:
    counts = np.zeros((2, 16), np.int64)
    plots.lorenz_curve(counts, [0, 1]).savefig("/dev/null", format="png")
    plots.usage_histogram(counts, [0, 1]).savefig("/dev/null", format="png")


def test_many_layers_are_named_in_part() -> None:
    legend = plots.lorenz_curve(np.ones((24, 8), np.int64), range(24)).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["even selection", "layer 0", "layer 12", "layer 23"]


def test_small_coverage_is_not_rounded_to_nothing() -> None:
    metrics = pd.DataFrame({"layer": [0], "coverage": [0.004], "even_coverage": [0.0]})
    assert [text.get_text() for text in plots.coverage_bars(metrics).axes[0].texts] == ["0.4%", "0%"]


def preferences(lifts: list[float], significant: list[bool]) -> pd.DataFrame:
    n = len(lifts)
    lift = np.array(lifts)
    return pd.DataFrame(
        {
            "layer": range(n),
            "attribute": "predicate",
            "label": [f"label {number}" for number in range(n)],
            "lift": lift,
            "low": lift / 1.1,
            "high": lift * 1.1,
            "chance_low": 0.5,
            "chance_high": 2.0,
            "p": np.linspace(0.9, 0.1, n),
            "rank_p": 0.5,
            "significant": significant,
            "rank_significant": False,
        }
    )


def test_preferences_fill_significant_dots_and_show_them_first() -> None:
    axes = bias_plots.preference_forest(preferences([4, 1, 0.5, 3], [True, False, False, False]), limit=3).axes[0]
    open_dots, filled = axes.lines[0], axes.lines[1]
    assert open_dots.get_xdata() == pytest.approx([3, 0.5])
    assert filled.get_xdata() == pytest.approx([4])
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["predicate: label 0 · layer 0", "predicate: label 3 · layer 3", "predicate: label 2 · layer 2"]


def test_lifts_out_of_reach_lie_at_the_edge() -> None:
    axes = bias_plots.preference_forest(preferences([0, 1000], [False, False])).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [32, 1 / 32]
    assert axes.get_xlim()[0] < 1 / 32 and axes.get_xlim()[1] > 32


def test_overlap_names_every_pair_of_layers_once_in_each_half() -> None:
    overlap = Overlap(
        jaccard=((1.0, 0.25), (0.25, 1.0)),
        even_jaccard=((1.0, 0.2), (0.2, 1.0)),
        rank_correlation=((1.0, 0.5), (0.5, 1.0)),
        jensen_shannon=((0.0, 0.3), (0.3, 0.0)),
    )
    left, right, *_ = bias_plots.overlap_heatmap(overlap, [0, 5], np.ones((2, 2), bool)).axes
    assert [text.get_text() for text in left.texts] == ["0.25", "0.25"]
    assert [text.get_text() for text in right.texts] == ["0.30", "0.30"]
    assert left.images[0].get_array()[0, 1] == pytest.approx(0.05)
    assert right.images[0].get_clim() == (0, pytest.approx(np.log(2)))


def test_layers_of_different_banks_have_no_overlap_to_draw() -> None:
    overlap = Overlap.model_validate(dict.fromkeys(Overlap.model_fields, np.full((3, 3), 0.5).tolist()))
    together = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], bool)
    for axes in bias_plots.overlap_heatmap(overlap, [0, 1, 2], together).axes[:2]:
        assert sorted(text.get_position() for text in axes.texts) == [(0, 2), (2, 0)]


def test_many_layers_overlap_without_numbers_in_cells() -> None:
    overlap = Overlap.model_validate(dict.fromkeys(Overlap.model_fields, np.ones((24, 24)).tolist()))
    assert len(bias_plots.overlap_heatmap(overlap, range(24), np.ones((24, 24), bool)).axes[0].texts) == 0


def test_classes_that_a_layer_lacks_leave_a_gap() -> None:
    rows = [ClassProfile.model_construct(label=name, divergence=1.0, even_divergence=0.5) for name in ("a", "b", "c")]
    axes = bias_plots.class_divergence([rows, rows[1:]], [0, 1], "letters").axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0, 1, 2]
    assert axes.lines[2].get_xdata().tolist() == [1, 2]


def test_margins_name_ties_and_start_where_bins_do() -> None:
    histogram = [25] + [0] * 31 + [75] + [0] * (MARGIN_BINS - 33)  # bin 32 begins at 2^0
    axes = bias_plots.margin_lines(pd.DataFrame({"layer": [3], "margin_histogram": [histogram]})).axes[0]
    assert axes.get_legend().get_texts()[0].get_text() == "layer 3 (25% ties)"
    values, edges, _ = axes.patches[0].get_data()
    assert values.max() == 0.75
    assert edges[values.argmax()] == 1
    assert axes.get_xlim() == (1, 2)


def test_drift_curves_say_how_many_moved_at_least_so_far() -> None:
    axes = bias_plots.drift_curves(np.array([0.1, 0.2, 0.3, 0.4, 0.0]), np.array([1, 1, 1, 1, 0], bool)).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0.1, 1], [0.2, 0.75], [0.3, 0.5], [0.4, 0.25]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["used (4)", "never selected (1)"]


def test_a_bank_used_whole_has_one_drift_curve() -> None:
    assert len(bias_plots.drift_curves(np.array([0.1, 0.2]), np.ones(2, bool)).axes[0].lines) == 1


def test_divergence_stands_among_its_yardsticks() -> None:
    layers = pd.DataFrame(
        {
            "layer": [0],
            "jensen_shannon": [0.3],
            "halves_jensen_shannon_b": [0.001],
            "halves_jensen_shannon_a": [0.01],
            "jaccard": [0.5],
            "independent_jaccard": [0.1],
            "halves_jaccard": [0.9],
        }
    )
    axes = compare_plots.divergence_dots(layers).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [0.3]
    names = {text.get_text() for text in axes.get_legend().get_texts()}
    assert {"A against B", "two halves of A", "two halves of B", "no entry in common (ln 2)"} == names
    assert [bar.get_height() for bar in compare_plots.overlap_bars(layers).axes[0].patches] == [0.5]
    unknown = layers.assign(halves_jensen_shannon_a=None, jensen_shannon=0.0)
    compare_plots.divergence_dots(unknown).savefig("/dev/null", format="png")


@pytest.mark.parametrize("n_layers", [1, 3])
def test_entries_of_one_side_alone_lie_on_an_axis(n_layers: int) -> None:
    a, b = np.zeros((2, n_layers, 4), np.int64)
    a[0], b[0] = [0, 5, 7, 0], [0, 5, 0, 9]
    figure = compare_plots.usage_scatter(a, b, range(n_layers))
    points = figure.axes[0].lines[0].get_xydata().tolist()
    assert points == [[5, 5], [7, 0.4], [0.4, 9]]
    assert len(figure.axes) == min(2, n_layers)


def test_a_notebook_shows_a_figure_as_a_picture() -> None:
    figure, axes = style.panel(False)
    axes.plot([0, 1], [1, 0])
    assert figure._repr_png_().startswith(b"\x89PNG")
