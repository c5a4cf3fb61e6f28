"""The figure of a run's history: how evenly the bank is used, how many entries woke and died, how far they drifted."""

import pandas as pd
from matplotlib.figure import Figure

from memscope.report.plots import style


def history_curves(history: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Four panels over training steps, one line per layer.

    Args:
        history: ``history.parquet``.
        dark: for a dark page.
    """
    figure, axes = style.panels(4, dark)
    layers = sorted(history["layer"].unique().tolist())
    drawn = {
        "coverage": "entries used",
        "kl_to_uniform": "KL to uniform (nats)",
        "drift_used": "median drift of used entries",
    }
    for (column, name), panel in zip(drawn.items(), axes[:3], strict=True):
        for layer, color in zip(layers, style.layer_colors(len(layers), dark), strict=True):
            rows = history[history["layer"] == layer]
            panel.plot(rows["step"], rows[column], "o-", color=color, markersize=4)
        panel.set(xlabel="training step", ylabel=name, ylim=(0, None))
    axes[0].yaxis.set_major_formatter(style.PERCENT)
    totals = history.groupby("step")[["woke", "died"]].sum()
    axes[3].plot(totals.index, totals["woke"], "o-", color="#009E73", label="woke")
    axes[3].plot(totals.index, totals["died"], "s--", color="#D55E00", label="died")
    axes[3].set(xlabel="training step", ylabel="(layer, entry) pairs since the step before", ylim=(0, None))
    axes[3].yaxis.set_major_formatter(style.THOUSANDS)
    axes[3].legend(frameon=False, fontsize=8, labelcolor=axes[3].xaxis.label.get_color())
    style.layer_legend(axes[0], layers, dark)
    return figure
