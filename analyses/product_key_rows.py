"""Is uneven use a matter of single entries, or of whole rows and columns of product keys?

    python analyses/product_key_rows.py recordings/demo --out reports/demo

A product gate scores entry (i, j) as the sum of a row and a column score, so a popular half key lifts sqrt(N) entries
at once. With z the usage over the N = n x n entries, and r and c its row and column sums, KL to uniform splits exactly:

    KL(z) = KL(r) + KL(c) + I(row; column)

The first two terms are bias that single half keys explain; the last, their mutual information, is selection of
particular entries. Prints the share of the first two per layer.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from study import command_line, run_script, save

from memscope.query.recording import Recording


def split_kl(counts: np.ndarray) -> dict[str, float]:
    """KL to uniform of ``counts [N]`` in nats, and its row, column and mutual-information parts."""
    side = round(len(counts) ** 0.5)
    z = counts.reshape(side, side) / counts.sum()
    rows, columns = _kl_to_uniform(z.sum(1)), _kl_to_uniform(z.sum(0))
    total = _kl_to_uniform(z.ravel())
    return {"kl": total, "rows": rows, "columns": columns, "entries": total - rows - columns}


def draw(counts: np.ndarray, layers: tuple[int, ...]) -> Figure:
    """Usage of every layer as a row x column image, log scale."""
    side = round(counts.shape[1] ** 0.5)
    figure = Figure(figsize=(3.2 * len(layers), 3.6), layout="constrained")
    for axis, layer in enumerate(layers):
        panel = figure.add_subplot(1, len(layers), axis + 1)
        image = panel.imshow(np.log10(1 + counts[axis].reshape(side, side)), cmap="viridis", interpolation="nearest")
        panel.set(title=f"layer {layer}", xlabel="column key", ylabel="row key" if axis == 0 else "")
    figure.colorbar(image, ax=figure.axes, label="log10(1 + selections)", shrink=0.8)
    return figure


def main() -> None:
    """Parse, compute, print, save."""
    arguments = command_line(__doc__, "recording").parse_args()
    recording = Recording(arguments.recording)
    counts, layers = np.stack(recording.reachable_usage()), recording.info.layers
    table = pd.DataFrame([{"layer": layer, **split_kl(counts[axis])} for axis, layer in enumerate(layers)])
    table["half_key_share"] = (table["rows"] + table["columns"]) / table["kl"]
    save(arguments.out, "product_key_rows", table, draw(counts, layers))
    selections = recording.info.rows * recording.info.selected
    shares = ", ".join(f"layer {int(row.layer)} {row.half_key_share:.0%}" for row in table.itertuples())
    print(f"share of KL to uniform that rows and columns explain, {selections:,} selections a layer: {shares}")


def _kl_to_uniform(z: np.ndarray) -> float:
    used = z[z > 0]
    return float(np.log(len(z)) + (used * np.log(used)).sum())


if __name__ == "__main__":
    run_script(main)
