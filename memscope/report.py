"""The gate-bias report of a recording: one HTML file that holds everything, and its numbers as CSV and JSON.

memscope report recordings/demo --out reports/demo
"""

import base64
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from memscope import plots
from memscope.files import make_folder, write_csv, write_json, write_text
from memscope.findings import Finding, find
from memscope.query import Recording

_SHOWN_ENTRIES = 20
_SHOWN_CONTEXTS = 3


class ReportFigure(NamedTuple):
    """A figure with the sentence that says how to read it."""

    title: str
    caption: str
    data_uri: str
    """The figure as inline SVG."""


def write_report(recording: Recording, out: Path) -> Iterator[Path]:
    """Write ``gate_bias.html``, ``usage.csv``, ``entries.csv`` and ``metrics.json``; yields each path when written.

    Raises:
        InputError: the folder cannot be written.
    """
    make_folder(out)
    findings = find(recording)
    write_text(out / "gate_bias.html", render(recording, findings))
    yield out / "gate_bias.html"
    write_csv(out / "usage.csv", recording.usage_table())
    yield out / "usage.csv"
    write_csv(out / "entries.csv", recording.entries(limit=recording.info.knowledge_num))
    yield out / "entries.csv"
    write_json(out / "metrics.json", metrics(recording, findings))
    yield out / "metrics.json"


def metrics(recording: Recording, findings: list[Finding]) -> dict[str, Any]:
    """Every number of the report for machines; the census's layout is described in docs/metrics.md."""
    info = recording.info.model_dump(mode="json", exclude={"parts", "run", "corpus"})
    info |= {"run": recording.info.run_name, "corpus": recording.info.corpus_name}
    return {
        "recording": info,
        "run": recording.run_summary,
        "census": recording.census,
        "drift": {name: None if pd.isna(value) else value for name, value in recording.drift_summary().items()},
        "findings": [finding._asdict() for finding in findings],
    }


def render(recording: Recording, findings: list[Finding]) -> str:
    """The report as one self-contained HTML page; every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memscope"), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("gate_bias.html.j2").render(
        recording=recording,
        info=recording.info,
        census=recording.census,
        run=recording.run_summary,
        findings=findings,
        figures=list(_figures(recording)),
        layers=recording.layer_metrics().to_dict("records"),
        reading=recording.reading_metrics().to_dict("records"),
        entries=_top_entries(recording),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _figures(recording: Recording) -> Iterator[ReportFigure]:
    info, counts, metrics = recording.info, recording.usage(), recording.layer_metrics()
    d = f"{info.rows * info.selected:,} selections a layer"
    yield _inline(
        "Selections per entry",
        f"Entries of each layer sorted by how often they were selected; a flat line would be even use. {d}.",
        plots.usage_histogram(counts, info.layers),
    )
    yield _inline(
        "Lorenz curve",
        f"Share of all selections that go to the least used share of entries; the diagonal is even use. {d}.",
        plots.lorenz_curve(counts, info.layers),
    )
    yield _inline(
        "Coverage",
        f"Entries selected at least once, beside what even selection would reach with as many selections. {d}.",
        plots.coverage_bars(metrics),
    )
    yield _inline(
        "Concentration",
        f"How many of the most used entries hold 50, 90 and 99 percent of a layer's selections. {d}.",
        plots.top_mass(metrics),
    )
    yield _inline(
        "Read shares",
        f"How a token's read divides over its {info.selected} selected entries: mass at 0 is selected but unread, "
        f"mass at 1 is a token that reads one entry. {d}.",
        plots.read_share_histogram(recording.reading_metrics()),
    )
    yield _inline(
        "Training",
        "Loss in nats per token on training batches and on validation documents, and the number of entries that the "
        "validation tokens selected.",
        plots.training_curve(recording.training_curve()),
    )


def _inline(title: str, caption: str, figure: Figure) -> ReportFigure:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):  # equal figures give equal bytes
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return ReportFigure(title, caption, f"data:image/svg+xml;base64,{encoded}")


def _top_entries(recording: Recording) -> list[dict[str, Any]]:
    """The most used entries with what they decode to and where they fire."""
    shown = []
    for entry in recording.entries(limit=_SHOWN_ENTRIES)["entry"]:
        card = recording.entry(int(entry))
        contexts = recording.contexts(int(entry)).head(_SHOWN_CONTEXTS)
        shown.append(
            {
                "card": card,
                "count": int(card.usage["count"].sum()),
                "main_layer": int(card.usage.loc[card.usage["count"].idxmax(), "layer"]),
                "nearest": card.nearest.to_dict("records"),
                "contexts": contexts.to_dict("records"),
            }
        )
    return shown
