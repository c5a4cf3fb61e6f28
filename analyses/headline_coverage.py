"""How often does an entry fire on what its headline names?

    python analyses/headline_coverage.py recordings/demo --out reports/demo

Prints shares of the top contexts of every entry and layer: those whose token (or the token before, if the headline is
about it) is one that ``fires_on`` names; the same for entries with a clear pattern; and, for comparison, those whose
token is part of a word that sets the entry apart by TF-IDF.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from study import command_line, run_script, save

from memscope.census.firing.fires_on import START
from memscope.census.firing.row_words import words_of_rows
from memscope.query.recording import Recording
from memscope.report.plots.style import PERCENT, legend, panels

SHARES = ("headline", "headline, clear pattern", "words that set it apart")


def study(recording: Recording) -> pd.DataFrame:
    """One row per layer: ``layer contexts``, the share of them whose entry has a ``clear`` pattern, and ``SHARES``."""
    ids, documents = recording.token_ids.astype(np.int64), recording.documents
    starts = documents["first_row"].to_numpy()
    words = words_of_rows(ids.astype(np.int32), starts, recording.tokenizer)
    contexts = recording.sql(
        """SELECT c.layer, c.row, pattern_by, top_token, words FROM contexts c JOIN firing f USING (layer, entry)
           JOIN titles USING (entry) WHERE kind = 'top'"""
    )
    row = contexts["row"].to_numpy(np.int64)
    position = row - starts[np.searchsorted(starts, row, side="right") - 1]
    before = np.where(position % recording.info.window == 0, START, ids[row - 1])
    label = np.where(contexts["pattern_by"] == "before", before, ids[row])
    named = (np.stack(contexts["top_token"].to_numpy()) == label[:, None]).any(1)
    clear = (contexts["pattern_by"] != "none").to_numpy()
    in_word = np.array([*words.texts, None], object)[words.of_row[row]]
    apart = [
        word is not None and isinstance(some, str) and word in some.split(" · ")
        for word, some in zip(in_word, contexts["words"], strict=True)
    ]
    frame = pd.DataFrame({"layer": contexts["layer"], "clear": clear, "headline": named, SHARES[2]: apart})
    table = frame.groupby("layer").mean()
    table[SHARES[1]] = frame[clear].groupby("layer")["headline"].mean()
    return table.assign(contexts=frame.groupby("layer").size()).reset_index()


def draw(table: pd.DataFrame) -> Figure:
    """Layers along x, a line for each share."""
    figure, (axes,) = panels(1)
    for name in SHARES:
        axes.plot(table["layer"], table[name], marker="o", label=name)
    axes.set(xlabel="layer", ylabel="top contexts covered", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PERCENT)
    legend(axes)
    return figure


def main() -> None:
    """Parse, compute, print, save."""
    arguments = command_line(__doc__, "recording").parse_args()
    table = study(Recording(arguments.recording))
    total = table["contexts"].sum()

    def over_all(name: str, weight: pd.Series) -> str:
        return f"{(table[name] * weight).sum() / weight.sum():.1%}"

    headline, clear, apart = SHARES
    print(
        f"{over_all(headline, table['contexts'])} of {total:,} top contexts fire on what the headline names; "
        f"{over_all(clear, table['contexts'] * table['clear'])} where it shows a clear pattern, as for "
        f"{over_all('clear', table['contexts'])} of them; {over_all(apart, table['contexts'])} on a word that sets the "
        "entry apart"
    )
    print(table.to_string(index=False, float_format="{:.3f}".format))
    save(arguments.out, "headline_coverage", table, draw(table))


if __name__ == "__main__":
    run_script(main)
