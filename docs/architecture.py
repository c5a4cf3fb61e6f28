"""Draw the way of the data through the rooms of memscope: docs/images/architecture.svg.

    python docs/architecture.py

``make docs`` runs it too. A test compares the rooms of the picture with the folders that there are.
"""

from html import escape
from pathlib import Path
from typing import NamedTuple

PICTURE = Path(__file__).parent / "images" / "architecture.svg"


class Column(NamedTuple):
    """A station of the data, and the rooms that bring the data there."""

    station: str
    files: str
    rooms: tuple[tuple[str, str], ...]
    """Name and task of each room."""


COLUMNS = (
    Column(
        "text",
        "corpus, sentences, config",
        (
            ("text/", "corpora, tokenizer"),
            ("text_bank/", "sentences as entries"),
            ("config/", "sections of the YAML"),
        ),
    ),
    Column(
        "run/",
        "weights, metrics, starts",
        (
            ("model/", "transformer, gate, bank"),
            ("model/text/", "reads sentences"),
            ("model/ops/", "fast loops"),
            ("model/ops/gpu/", "Triton kernels"),
            ("train/", "loop, processes"),
            ("train/lessons/", "statements, batches"),
            ("run/", "load a run, its starts"),
            ("run/adapters/", "hooks of any model"),
        ),
    ),
    Column(
        "recording/",
        "tokens, selections, census",
        (
            ("record/", "model + text to rows"),
            ("recording/", "the format on disk"),
            ("census/", "count the rows"),
            ("census/firing/", "what entries fire on"),
            ("census/anomalies/", "what stands out"),
        ),
    ),
    Column(
        "tables",
        "DataFrames, map, effects",
        (
            ("query/", "questions to a recording"),
            ("query/charts/", "points, histograms"),
            ("bank_map/", "places of entries"),
            ("notebook/", "HTML of what is asked"),
            ("routing/", "load, domains, paths"),
            ("causal/", "change, then measure"),
            ("causal/sentences/", "facts, typed edits"),
            ("causal/what_if/", "a text, changed"),
        ),
    ),
    Column(
        "answers",
        "for readers and other tools",
        (
            ("report/", "findings, health"),
            ("report/plots/", "figures"),
            ("report/gate_bias/", "the report"),
            ("report/compare/", "two recordings"),
            ("export/", "other formats, pages"),
            ("cli/", "the commands"),
            ("app/", "the browser view"),
        ),
    ),
)
FOOT = (("base/", "errors, files, locks, hashes"), ("stats/", "jackknife, evenness"), ("testing/", "known answers"))
"""Rooms beneath all others, and the one that makes models and recordings whose answer is known."""

_WIDTH, _STEP, _TOP, _ROW = 176, 196, 116, 46
_INK, _QUIET, _STATION, _ROOM = "#1f2933", "#52606d", "#1d4ed8", "#eef2f7"


def draw() -> str:
    """The picture as SVG: stations above, joined by arrows; the rooms of each beneath; the foot below."""
    longest = max(len(column.rooms) for column in COLUMNS)
    foot = _TOP + longest * _ROW + 14
    width, height = 20 + len(COLUMNS) * _STEP, foot + 58
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" role="img">',
        "<title>The way of the data through the rooms of memscope</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{_STATION}"/></marker></defs>',
    ]
    for number, column in enumerate(COLUMNS):
        x = 20 + number * _STEP
        parts += _box(x, 20, _WIDTH, 62, _STATION, column.station, column.files, "#ffffff", "#dbeafe", 17)
        if number:
            parts.append(
                f'<path d="M{x - 20} 51H{x - 1}" stroke="{_STATION}" stroke-width="2" marker-end="url(#tip)"/>'
            )
        for row, (name, task) in enumerate(column.rooms):
            parts += _box(x, _TOP + row * _ROW, _WIDTH, _ROW - 8, _ROOM, name, task, _INK, _QUIET, 13)
    for number, (name, task) in enumerate(FOOT):
        share = (width - 40) // len(FOOT)
        parts += _box(20 + number * share, foot, share - 8, _ROW - 8, "#e2e8f0", name, task, _INK, _QUIET, 13)
    return "\n".join([*parts, "</svg>"])


def _box(
    x: int, y: int, width: int, height: int, fill: str, name: str, task: str, ink: str, quiet: str, size: int
) -> list[str]:
    """A rounded box with a name and, beneath it, a line of text."""
    middle = x + width // 2
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}"/>',
        f'<text x="{middle}" y="{y + height // 2 - 3}" text-anchor="middle" font-size="{size}" font-weight="600" '
        f'fill="{ink}">{escape(name)}</text>',
        f'<text x="{middle}" y="{y + height // 2 + 12}" text-anchor="middle" font-size="11" fill="{quiet}">'
        f"{escape(task)}</text>",
    ]


if __name__ == "__main__":
    PICTURE.write_text(draw() + "\n", encoding="utf-8")
