"""The figure of a run's history: how evenly the bank is used, how many entries woke and died, how far they drifted."""

import pandas as pd
from matplotlib.figure import Figure

from memscope.report.plots import style


def history_curves(history: pd.DataFrame, words: str = "entries", *, dark: bool = False) -> Figure:
    """Three panels over training steps, four where drift is known, one line per layer.

    Args:
        history: ``history.parquet``.
        words: what several entries are called.
        dark: for a dark page.
    """
    layers = sorted(history["layer"].unique().tolist())
    drawn = {"coverage": f"{words} used", "kl_to_uniform": "KL to uniform (nats)"}
    if "drift_used" in history:
        drawn["drift_used"] = f"median drift of used {words}"
    figure, axes = style.panels(len(drawn) + 1, dark)
    figure.set_size_inches(2.9 * len(axes), 2.7)
    for (column, name), panel in zip(drawn.items(), axes[:-1], strict=True):
        for layer, color in zip(layers, style.layer_colors(len(layers), dark), strict=True):
            rows = history[history["layer"] == layer]
            panel.plot(rows["step"], rows[column], "o-", color=color, markersize=4)
        panel.set(xlabel="training step", ylabel=name, ylim=(0, None))
    axes[0].yaxis.set_major_formatter(style.PERCENT)
    totals = history.groupby("step")[["woke", "died"]].sum()
    axes[-1].plot(totals.index, totals["woke"], "o-", color="#009E73", label="woke")
    axes[-1].plot(totals.index, totals["died"], "s--", color="#D55E00", label="died")
    axes[-1].set(xlabel="training step", ylabel="(layer, entry) pairs", ylim=(0, None))
    axes[-1].yaxis.set_major_formatter(style.THOUSANDS)
    axes[-1].legend(frameon=False, fontsize=8, labelcolor=axes[-1].xaxis.label.get_color())
    style.layer_legend(axes[0], layers, dark, columns=2)
    return figure
