"""The gate-bias report of a recording: findings in words, figures, tables, and every number for machines.

    memscope report recordings/demo --out reports/demo

writes ``gate_bias.html`` and ``gate_bias.md`` (``document.py``), ``metrics.json`` with its schema
(``report/schema.py``), the tables as CSV and Parquet, and the figures as PNG and SVG.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from memscope.base.files import make_folder, write_json
from memscope.query.recording import Recording
from memscope.report.anomalies import anomalies_in_words, find_anomalies
from memscope.report.document import write_document, write_table
from memscope.report.findings import Finding, find
from memscope.report.gate_bias.document import make_document
from memscope.report.routing import routing_findings
from memscope.report.schema import Metrics, describe_source, json_schema
from memscope.report.words import place


def write_report(recording: Recording, out: Path) -> Iterator[Path]:
    """Write the report into the folder ``out``; yields each path when written.

    Raises:
        InputError: the folder cannot be written.

    Example:
        >>> for path in write_report(recording, Path("reports/new")):
        ...     print(path)
    """
    make_folder(out)
    findings = [*find(recording), *routing_findings(recording)]
    command = f"memscope report {place(recording.path)} --out {place(out)}"
    yield from write_document(make_document(recording, findings, command), out, "gate_bias")
    for name, frame in tables(recording).items():
        yield from write_table(out / name, frame)
    write_json(out / "metrics.json", metrics(recording, findings).model_dump(mode="json"))
    yield out / "metrics.json"
    write_json(out / "metrics.schema.json", json_schema(Metrics))
    yield out / "metrics.schema.json"


def tables(recording: Recording) -> dict[str, pd.DataFrame]:
    """The tables beside the report, by file name."""
    reading = recording.reading_metrics()
    reading = reading.drop(columns=[name for name in reading if name.endswith("_histogram")])
    layers = [
        recording.layer_metrics(weighting).assign(weighting=weighting).merge(reading, on="layer")
        for weighting in recording.weightings
    ]
    merged = pd.concat(layers, ignore_index=True)
    merged.insert(1, "weighting", merged.pop("weighting"))
    return {
        "usage": recording.usage_table(),
        "entries": recording.entries(limit=recording.info.knowledge_num),
        "layers": merged,
        "preferences": recording.preferences(),
        "anomalies": anomalies_in_words(recording),
    }


def metrics(recording: Recording, findings: list[Finding]) -> Metrics:
    """Every number of the report for machines."""
    drift = {name: None if pd.isna(value) else value for name, value in recording.drift_summary().items()}
    census = {name: value for name, value in recording.census if name != "tokens"}  # the source says how many
    return Metrics.model_validate(
        {
            "recording": describe_source(recording),
            "run": recording.run_summary,
            "drift": drift,
            "preferences": _without_nan(recording.preferences()),
            "anomalies": find_anomalies(recording).to_dict("records"),
            "findings": [finding.in_words() for finding in findings],
            **census,
        }
    )


def _without_nan(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table; JSON has no NaN."""
    rows: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows
