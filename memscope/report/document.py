"""A report as a document: the same findings, figures and tables as one HTML page and as Markdown.

    for path in write_document(document, Path("reports/demo"), "gate_bias"):
        print(path)

writes ``gate_bias.html`` (self-contained, runs no script, loads nothing), ``gate_bias.md``, and every figure as PNG
and SVG under ``figures/``. Sentences, tokens and contexts are text of a corpus: they are escaped for the format they
land in.
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from memscope.base.files import atomic_path, make_folder, write_csv, write_text
from memscope.base.printable import one_line, printable
from memscope.report.findings import Finding

_DPI = 200
_NOTHING = "–"
"""Shown where a number does not exist."""


class ReportFigure(NamedTuple):
    """A figure with the sentence that says how to read it."""

    name: str
    """File name without its ending."""
    title: str
    caption: str
    figure: Figure
    wide: bool = False
    """Whether it takes the whole width of the page."""
    folded: bool = False
    """Whether the page shows its title alone until it is opened: there is nothing to see."""


class Column(NamedTuple):
    """How a column of a table is shown."""

    label: str
    form: str = ""
    """A format specification for numbers (``,d``, ``.3f``, ``.1%``); empty for text."""
    error: str | None = None
    """Column that holds the standard error, shown behind ±."""
    prose: bool = False
    """Whether the cells hold sentences and need room."""


class Cell(NamedTuple):
    """One cell."""

    text: str
    kind: str
    """``number``, ``word`` or ``prose``."""


class ReportTable(NamedTuple):
    """A table of text cells."""

    title: str
    caption: str
    header: list[Cell]
    rows: list[list[Cell]]
    folded: bool = False
    """Whether the page shows its title alone until it is opened: there is nothing to see."""


class Step(NamedTuple):
    """Something to do next."""

    why: str
    """The number that asks for it; empty where none does."""
    do: str
    command: str = ""
    """A command that does it."""


class Opening(NamedTuple):
    """The half page that a report opens with."""

    level: str
    """``good``, ``watch`` or ``bad``."""
    verdict: str
    answer: str
    """The main question and its answer in one sentence each."""
    figure: str
    """Name of the figure that stands here and nowhere else."""
    layers: Sequence[str]
    """A sentence each."""
    steps: Sequence[Step]
    yardsticks: ReportTable


class Context(NamedTuple):
    """A token on which an entry fired, in its text."""

    about: str
    before: str
    token: str
    after: str


class EntryNote(NamedTuple):
    """A short description of an entry."""

    title: str
    about: str
    fires_on: str | None
    """The tokens it fires on most often, with their shares; none for an entry never selected."""
    words: str | None
    """Words that set it apart, by TF-IDF."""
    start: str
    """What its sentence is called."""
    sentence: str | None
    """Its init sentence, or the sentence that it is; none without one."""
    random: bool
    """Whether it is known to have started from random numbers."""
    nearest: list[tuple[str, bool]]
    """Nearest tokens, and whether they stand in the init sentence."""
    contexts: list[Context]


@dataclass(frozen=True)
class Document:
    """A report before it is put on paper."""

    title: str
    subtitle: str
    facts: dict[str, str]
    """The subjects of the report and their values, by name."""
    findings: Sequence[Finding]
    figures: Sequence[ReportFigure]
    tables: Sequence[ReportTable]
    method: Sequence[str]
    """Paragraphs."""
    files: Mapping[str, str]
    """Files beside the report, with what they hold."""
    command: str
    """The command line that writes the report."""
    opening: Opening | None = None
    entries: Sequence[EntryNote] = ()
    entries_title: str = "Most used entries"
    entries_caption: str = ""


def make_table(title: str, caption: str, frame: pd.DataFrame, columns: Mapping[str, Column]) -> ReportTable:
    """The named columns of a frame as a table; columns that the frame lacks are left out. Without rows it is folded."""
    shown = {name: column for name, column in columns.items() if name in frame}
    kinds = {name: "number" if column.form else "prose" if column.prose else "word" for name, column in shown.items()}
    header = [Cell(column.label, kinds[name]) for name, column in shown.items()]
    rows = [
        [Cell(_cell(row, name, column), kinds[name]) for name, column in shown.items()]
        for row in frame.to_dict("records")
    ]
    return ReportTable(title, caption, header, rows, folded=not rows)


def write_document(document: Document, out: Path, name: str) -> Iterator[Path]:
    """Write ``<name>.html``, ``<name>.md`` and ``figures/``; yields each path when written.

    Raises:
        InputError: the folder cannot be written.
    """
    make_folder(out / "figures")
    drawn: dict[str, str] = {}
    for figure in document.figures:
        box = lay_out(figure.figure)
        for kind in ("svg", "png"):
            path = out / "figures" / f"{figure.name}.{kind}"
            image = _draw(figure, kind, box)
            if kind == "svg":
                drawn[figure.name] = f"data:image/svg+xml;base64,{base64.b64encode(image).decode('ascii')}"
            with atomic_path(path) as temporary:
                temporary.write_bytes(image)
            yield path
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    for ending, template in (("html", "document.html.j2"), ("md", "document.md.j2")):
        path = out / f"{name}.{ending}"
        values = {"doc": document, "images": drawn, "written": written, "version": version("memscope")}
        write_text(path, _environment().get_template(template).render(values))
        yield path


def write_table(path: Path, frame: pd.DataFrame) -> Iterator[Path]:
    """Write a table as ``<path>.csv`` and ``<path>.parquet``."""
    write_csv(path.with_suffix(".csv"), frame)
    yield path.with_suffix(".csv")
    with atomic_path(path.with_suffix(".parquet")) as temporary:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), temporary, compression="zstd")
    yield path.with_suffix(".parquet")


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line: neither markup, HTML, a table's border nor a link.

    What only means something at the start of a line is left: no line begins with text of a corpus.
    """
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~$&@^])", r"\\\1", one_line(text))
    return re.sub(r"(?i)(https?:|ftp:|www)(?=[/.])", r"\1\\", escaped)  # else GitHub makes them links


def lay_out(figure: Figure) -> Bbox:
    """Find the places of a figure's parts, once for all formats, and the box around them in inches.

    ``savefig`` would find them anew each time, which takes longer than to draw.
    """
    figure.set_dpi(_DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    return figure.get_tightbbox().padded(matplotlib.rcParams["savefig.pad_inches"])


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memscope.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
    )
    environment.filters["md"] = escape_markdown
    return environment


def shown(value: Any) -> Any:
    """Prepare a value for a template: text with signs for invisible characters (``printable``), markup unchanged."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _draw(figure: ReportFigure, kind: str, box: Bbox) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": figure.name}):  # equal figures give equal bytes
        figure.figure.savefig(buffer, format=kind, dpi=_DPI, bbox_inches=box, metadata=metadata)
    return buffer.getvalue()


def _cell(row: dict[Any, Any], name: str, column: Column) -> str:
    value = row[name]
    if not column.form:
        return _NOTHING if _missing(value) else str(value)
    text = _number(value, column.form)
    error = row.get(column.error) if column.error else None
    return text if _missing(error) or text == _NOTHING else f"{text} ± {_number(error, column.form.lstrip('+'))}"


def _number(value: Any, form: str) -> str:
    if _missing(value):
        return _NOTHING
    return format(int(value) if form.endswith("d") else float(value), form).replace("-", "−")


def _missing(value: Any) -> bool:
    return bool(pd.isna(value))
