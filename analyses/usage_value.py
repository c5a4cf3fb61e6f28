"""Is concentrated usage wasted? What the most used entries of a layer are worth, and what all others are.

    python analyses/usage_value.py runs/demo recordings/demo --out reports/demo

The most used entries that together hold half of a layer's selections are one part, the others the second. The loss
without the values of a part (``ablate``, mode ``zero``: nothing else changes in that layer) is the worth of its
selections. If a gate selected the same few entries for lack of better ones, they would be worth little; if most tokens
need them, they are worth at least as much as the many others. The loss without all entries of the layer is printed
too: the two parts need not add up to it.

Losses are in nats per token of the recorded text, with 95% intervals over documents. Prints them per layer.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from study import command_line, run_script, save

from memscope.causal.ablation import recorded_corpus, spread_windows
from memscope.causal.effects import Trial, mean_change, measure_effects
from memscope.causal.intervene import ablate
from memscope.query.recording import Recording
from memscope.report.plots.style import GREEN, ORANGE, blue, legend, panel
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun, load_run

PARTS = ("most used", "the others", "all")
TOKENS = 16384


def most_used_half(counts: np.ndarray) -> np.ndarray:
    """The most used entries that hold half of all selections, bool ``[N]``; an entry that crosses the half is out."""
    order = np.argsort(-counts, kind="stable")
    most = np.zeros(len(counts), bool)
    most[order[np.cumsum(counts[order]) <= counts.sum() / 2]] = True
    return most


def study(run: LoadedRun, recording: Recording, tokens: int = TOKENS) -> pd.DataFrame:
    """One row per layer and part of its entries: ``layer part entries share loss loss_low loss_high``.

    ``share`` is that of the layer's selections, ``loss`` what is lost without the part's values; a part without entries
    is left out.
    """
    corpus, subject = recorded_corpus(recording), OwnRun(run)
    parts: dict[str, dict[str, Any]] = {}
    trials: dict[str, Trial] = {}
    for layer, counts in zip(recording.info.layers, recording.usage(), strict=True):
        used, most = counts > 0, most_used_half(counts)
        for part, chosen in zip(PARTS, (most, used & ~most, used), strict=True):
            if not chosen.any():
                continue
            entries, name = np.flatnonzero(chosen), f"{part} of layer {layer}"
            trials[name] = Trial(partial(ablate, run.model, entries, "zero", layers=[layer]), entries, [layer])
            share = counts[chosen].sum() / counts.sum()
            parts[name] = {"layer": layer, "part": part, "entries": len(entries), "share": share}
    effects = measure_effects(subject, corpus, spread_windows(subject, corpus, tokens), trials)
    losses = ("loss", "loss_low", "loss_high")
    return pd.DataFrame(
        [row | dict(zip(losses, mean_change(effects[name], "loss"), strict=True)) for name, row in parts.items()]
    )


def draw(table: pd.DataFrame) -> Figure:
    """Rise of the loss by layer: a mark for each part, whiskers for its interval; logarithmic, as it varies widely."""
    figure, axes = panel()
    axes.set_yscale("symlog", linthresh=0.01)
    layers = sorted(table["layer"].unique())
    for position, (part, colour) in enumerate(zip(PARTS, (blue(dark=False), ORANGE, GREEN), strict=True)):
        rows = table[table["part"] == part]
        x = [layers.index(layer) + (position - 1) * 0.15 for layer in rows["layer"]]
        spread = [rows["loss"] - rows["loss_low"], rows["loss_high"] - rows["loss"]]
        axes.errorbar(x, rows["loss"], spread, fmt="o", markersize=4, color=colour, label=part)
    axes.set(xlabel="layer", ylabel="nats per token lost without them")
    axes.set_xticks(range(len(layers)), layers)
    legend(axes)
    return figure


def main() -> None:
    """Parse, compute, print, save."""
    arguments = command_line(__doc__, "run", "recording").parse_args()
    table = study(load_run(arguments.run), Recording(arguments.recording))
    for layer, rows in table.groupby("layer"):
        parts = "; ".join(
            f"{row.part} {row.loss:.4f} ({row.loss_low:.4f} to {row.loss_high:.4f}), {row.entries:,} entries"
            for row in rows.itertuples()
        )
        print(f"layer {layer}, nats lost without the {parts}")
    save(arguments.out, "usage_value", table, draw(table))


if __name__ == "__main__":
    run_script(main)
