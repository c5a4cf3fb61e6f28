"""What share of the selections is due to the selection bias, and what does a model lose without the bias?

    python analyses/selection_bias.py runs/demo recordings/demo --out reports/demo

A selection bias (``balance_bias``) is added to the scores of keys before the best are selected, to make usage more
even. The same trained model then selects by raw scores alone (``unbias``), in each memory layer and in all of them. The
rise of the loss is the worth of the bias at inference, not in training.

Prints per layer the share of the recorded selections that raw scores alone would have made; the change of the loss,
nats per token with 95% intervals over documents; and coverage, KL to uniform, the entries that hold half of the
selections, and the share of selections whose gate score is 0, with the bias in all layers and without it in any.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from study import command_line, run_script, save

from memscope.base.errors import InputError
from memscope.causal.ablation import recorded_corpus, spread_windows
from memscope.causal.effects import Trial, mean_change, measure_effects
from memscope.causal.intervene import unbias
from memscope.query.recording import Recording
from memscope.report.plots.style import ORANGE, blue, legend, panel
from memscope.run.adapters.own import OwnModel, OwnRun
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.run.subject import run_windows
from memscope.stats.usage import UsageCounts, usage_metrics
from memscope.text.corpus import DocumentWindow

TOKENS = 16384
ALL = "all"
SHOWN = ("coverage", "kl_to_uniform", "top50")


def study(run: LoadedRun, recording: Recording, tokens: int = TOKENS) -> pd.DataFrame:
    """One row per memory layer, and one of all: ``layer by_score_share loss loss_low loss_high`` and usage.

    ``loss`` is what is lost without the bias in that layer. Usage are the metrics ``SHOWN`` and the share of ``silent``
    selections, of gate score 0, each ``_with`` the bias and ``_without`` it in all layers; unknown in the last row.

    Raises:
        InputError: the model has no selection bias.
    """
    if not any(site.selection_bias for site in recording.info.sites):
        raise InputError(f"{run.path}: no selection bias takes part in the choice (memory.balance_bias is 0)")
    corpus, layers, model = recorded_corpus(recording), recording.info.layers, run.model
    subject = OwnRun(run)
    windows = spread_windows(subject, corpus, tokens)
    trials = {str(layer): Trial(partial(unbias, model, layers=[layer])) for layer in layers}
    trials[ALL] = Trial(partial(unbias, model))
    effects = measure_effects(subject, corpus, windows, trials)
    shares = dict(zip(map(str, layers), recording.reading_metrics()["by_score_share"], strict=True))
    usage = {
        name: count_usage(run, recording, windows, block)
        for name, block in (("with", nullcontext()), ("without", unbias(model)))
    }
    rows: list[dict[str, Any]] = []
    for name in trials:
        loss = dict(zip(("loss", "loss_low", "loss_high"), mean_change(effects[name], "loss"), strict=True))
        row = {"layer": name, "by_score_share": shares.get(name, np.mean(list(shares.values()))), **loss}
        for when, tables in usage.items():
            row |= {f"{measure}_{when}": value for measure, value in tables.get(name, {}).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def count_usage(
    run: LoadedRun, recording: Recording, windows: list[DocumentWindow], block: AbstractContextManager[None]
) -> dict[str, dict[str, float]]:
    """Metrics ``SHOWN`` of each layer's selections inside a block, and ``silent``, the share without a gate score."""
    info, corpus = recording.info, recorded_corpus(recording)
    counts, silent = UsageCounts(len(info.layers), info.knowledge_num), np.zeros(len(info.layers))
    with block:
        for done in run_windows(OwnModel(run.model), corpus, windows, run.tokenizer.pad):
            for axis, layer in enumerate(info.layers):
                seen = done.captured[layer]
                assert seen.gate_scores is not None
                chosen = (seen.indices, seen.gate_scores, seen.read_weights)
                values = [part.cpu().numpy()[done.batch.mask] for part in chosen]
                counts.update(axis, *values)
                silent[axis] += (values[1] == 0).sum()
    usage = {}
    for axis, layer in enumerate(info.layers):
        count = counts.count[axis][info.entries_of(layer)]
        metrics = usage_metrics(count, int(count.sum()))
        usage[str(layer)] = {name: getattr(metrics, name) for name in SHOWN} | {"silent": silent[axis] / count.sum()}
    return usage


def draw(table: pd.DataFrame) -> Figure:
    """Shares of selections by raw scores and by the bias, by layer."""
    figure, axes = panel()
    layers = table[table["layer"] != ALL]
    axes.bar(layers["layer"], layers["by_score_share"], color=blue(dark=False), label="raw scores alone")
    rest = 1 - layers["by_score_share"]
    axes.bar(layers["layer"], rest, bottom=layers["by_score_share"], color=ORANGE, label="the selection bias")
    axes.set(xlabel="layer", ylabel="share of selections", ylim=(0, 1.18))
    legend(axes, loc="upper center", ncols=2)
    return figure


def main() -> None:
    """Parse, compute, print, save."""
    arguments = command_line(__doc__, "run", "recording").parse_args()
    table = study(load_run(arguments.run), Recording(arguments.recording))
    for row in table.itertuples():
        where = "all layers" if row.layer == ALL else f"layer {row.layer}"
        print(
            f"{where}: raw scores alone would have made {row.by_score_share:.1%} of the selections; without the bias "
            f"{row.loss:+.4f} nats per token ({row.loss_low:+.4f} to {row.loss_high:+.4f})"
        )
    for row in table[table["layer"] != ALL].itertuples():
        print(
            f"layer {row.layer}, with the bias and without it in any layer: coverage {row.coverage_with:.1%}, "
            f"{row.coverage_without:.1%}; KL to uniform {row.kl_to_uniform_with:.3f}, {row.kl_to_uniform_without:.3f}; "
            f"half of the selections on {row.top50_with:,.0f}, {row.top50_without:,.0f} entries; gate score 0 in "
            f"{row.silent_with:.1%}, {row.silent_without:.1%} of selections"
        )
    save(arguments.out, "selection_bias", table, draw(table))


if __name__ == "__main__":
    run_script(main)
