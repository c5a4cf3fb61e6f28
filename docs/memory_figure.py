"""Draw docs/images/memory.png from the table of docs/explanation/memory.md.

python docs/memory_figure.py
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

DOCS = Path(__file__).parent
LEFT_OUT = "the founding experiment's design"


def losses(dim: str) -> dict[str, list[float]]:
    """Validation losses of every model of one width in the page's table, one a seed."""
    found = {}
    for line in (DOCS / "explanation" / "memory.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 7 and cells[1] == dim:
            found[cells[0].replace("`", "")] = [float(loss) for loss in re.findall(r"\d+\.\d+", cells[4])]
    return found


def draw(table: dict[str, list[float]]) -> Figure:
    """A row a model, a dot a seed, a line at their mean."""
    figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
    for row, seeds in enumerate(table.values()):
        axes.plot(seeds, [row] * len(seeds), "o", color="#1d4ed8", alpha=0.7)
        mean = sum(seeds) / len(seeds)
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color="#1f2933", linewidth=1.5)
    axes.set_yticks(range(len(table)), list(table))
    axes.invert_yaxis()
    axes.set_xlabel("validation loss, nats per token, after 2.46 million tokens (dim 256)", loc="right")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    small = {model: seeds for model, seeds in losses("256").items() if model != LEFT_OUT}
    draw(small).savefig(DOCS / "images" / "memory.png", dpi=150)
