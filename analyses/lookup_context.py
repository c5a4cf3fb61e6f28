"""By which token does a gate look up entries: the current one, or the one before?

    python analyses/lookup_context.py recordings/demo --out reports/demo

A product gate selects a row and a column of the square of its entries. For each of them and for either token, the most
common choice is learned on every other document and predicted on the rest. Prints how often the prediction is true,
beside that of the choice that is most common for all tokens: only the excess over it is information of the token.

Measured on the best entry of every gate head, mean over heads; the first token of a window has no token before it and
is left out. If the same token predicts both row and column, the two are redundant; with ``token_shift`` they need not
be. Prints the shares per layer.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from study import command_line, run_script, save

from memscope.base.errors import InputError
from memscope.query.recording import Recording
from memscope.recording.part_reader import read_part
from memscope.report.plots.style import PERCENT, legend, panels

HALVES, GIVEN = ("row", "column"), ("the token", "the one before", "nothing")


def foretold(choice: np.ndarray, given: np.ndarray, learned: np.ndarray) -> float:
    """Share of rows not ``learned`` from whose ``choice`` is the most common one of ``given`` among those that are.

    Args:
        choice: what was chosen, from 0 up, ``[row]``.
        given: what it is foretold from, from 0 up, ``[row]``; one never seen foretells the choice most common at all.
        learned: the rows to learn from, bool ``[row]``.
    """
    seen = np.zeros((given.max() + 1, choice.max() + 1), np.int64)
    np.add.at(seen, (given[learned], choice[learned]), 1)
    usual = np.where(seen.any(1), seen.argmax(1), seen.sum(0).argmax())
    return float((usual[given[~learned]] == choice[~learned]).mean())


def study(recording: Recording) -> pd.DataFrame:
    """One row per layer and half key: ``layer half`` and the shares by what the choice is foretold from.

    Raises:
        InputError: the gate is not a product gate.
    """
    info = recording.info
    if recording.config["memory"]["gate"] != "product":
        raise InputError(f"{recording.path}: only a product gate has rows and columns to foretell")
    side, k = round(info.sites[0].entries ** 0.5), info.sites[0].distinct
    kept = []  # of one part after the other: nothing but the best entries is kept of its selections
    for part in info.parts:
        rows = read_part(recording.path, part, info)
        kept.append((rows.doc, rows.pos, rows.token, rows.indices[:, :, ::k].copy()))
    doc, pos, token, best = map(np.concatenate, zip(*kept, strict=True))  # the last [row, layer, head]
    has_before = pos % info.window > 0
    given = dict(zip(GIVEN, (token, np.roll(token, 1), np.zeros_like(token)), strict=True))
    learned = (doc % 2 == 0)[has_before]
    table = []
    for axis, layer in enumerate(info.layers):
        entries = best[has_before, axis] - info.entries_of(layer).start
        for half, choices in zip(HALVES, (entries // side, entries % side), strict=True):
            shares = {
                name: float(np.mean([foretold(choice, tokens[has_before], learned) for choice in choices.T]))
                for name, tokens in given.items()
            }
            table.append({"layer": layer, "half": half, **shares})
    return pd.DataFrame(table)


def draw(table: pd.DataFrame) -> Figure:
    """A panel for rows and one for columns; layers along x, a line for each thing to foretell from."""
    figure, both = panels(len(HALVES))
    for axes, half in zip(both, HALVES, strict=True):
        rows = table[table["half"] == half]
        for name, style in zip(GIVEN, ("-", "-", ":"), strict=True):
            axes.plot(rows["layer"], rows[name], style, marker="o", label=f"from {name}")
        axes.set(xlabel="layer", ylabel=f"{half}s foretold", ylim=(0, 1))
        axes.set_xticks(sorted(table["layer"].unique()))
        axes.yaxis.set_major_formatter(PERCENT)
    legend(both[0])
    return figure


def main() -> None:
    """Parse, compute, print, save."""
    arguments = command_line(__doc__, "recording").parse_args()
    recording = Recording(arguments.recording)
    table = study(recording)
    for half in HALVES:
        rows = table[table["half"] == half]
        shares = "; ".join(f"from {name} {', '.join(f'{share:.0%}' for share in rows[name])}" for name in GIVEN)
        print(f"{half}s foretold, layers {', '.join(map(str, rows['layer']))}: {shares}")
    save(arguments.out, "lookup_context", table, draw(table))


if __name__ == "__main__":
    run_script(main)
