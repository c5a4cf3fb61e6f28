"""What the pages share: the open recording, cached answers and figures.

Everything cached is read-only and belongs to the server; what a reader chose is in the session and the address alone.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from matplotlib.figure import Figure

from app import address, outside
from memscope.base.errors import InputError
from memscope.base.files import csv_text
from memscope.base.printable import printable
from memscope.query import bank_table, map_points
from memscope.query.catalog import RECORDINGS, open_recording, trouble
from memscope.query.catalog import find_recordings as find
from memscope.query.read_sample import ReadSample, read_sample
from memscope.query.recording import Recording
from memscope.recording.info import INFO
from memscope.recording.token_table import Trace

RECORD = "memscope record RUN --corpus FILE --out recordings/NAME"


def choose_recording() -> None:
    """Let the reader choose a recording in the sidebar and open it; stops the page where there is none."""
    found = find_recordings(root())
    if not found:
        st.title("No recording yet")
        st.write("A recording holds what a trained model's gate selected on a corpus. Make one, then reload this page:")
        outside.code(RECORD, language="bash")
        st.stop()
    name, missing = address.choose(usable_first())
    if missing:
        st.warning("There is no such recording as the address asks for; this is another one.")
    st.session_state["_recording"] = st.session_state["chosen"] = name
    with st.sidebar:
        st.selectbox(
            "Recording",
            list(found),
            key="chosen",
            on_change=_choose,
            format_func=printable,
            help=f"{len(found):,} found in {root().name}/ and the folders in it.",
        )
    st.session_state["_open"] = _version(found[name])
    with say_what_is_wrong():
        recording()


@contextmanager
def say_what_is_wrong() -> Iterator[None]:
    """Stop the page with a sentence, and with all recordings to choose from, where the open one cannot be read."""
    try:
        yield
    except (InputError, OSError) as error:
        from app.parts.overview import all_recordings

        st.error("This recording cannot be opened.", icon=":material/error:")
        outside.code(str(error), language=None, wrap_lines=True)
        all_recordings()
        st.stop()


def _choose() -> None:
    st.session_state["_recording"] = st.session_state["chosen"]
    st.session_state["_used"] = True


def root() -> Path:
    """The folder that the app was started on; nothing outside it is opened by a name."""
    return Path(os.environ.get(RECORDINGS, "recordings")).resolve()


@st.cache_data(ttl=5, show_spinner=False)
def find_recordings(folder: Path) -> dict[str, Path]:
    """``catalog.find_recordings``, looked up again after five seconds."""
    return find(folder)


def usable_first() -> list[str]:
    """Names of all recordings, those that cannot be used last."""
    found, wrong = find_recordings(root()), _in_trouble(root())
    return sorted(found, key=lambda name: name in wrong)


@st.cache_data(ttl=5, show_spinner=False)
def _in_trouble(folder: Path) -> set[str]:
    return {name for name, path in find_recordings(folder).items() if trouble(path, folder)}


def recording(name: str | None = None) -> Recording:
    """The recording that ``choose_recording`` opened, or another one by its name."""
    return _open(*(st.session_state["_open"] if name is None else _version(find_recordings(root())[name])))


def numbers() -> pd.DataFrame:
    """``bank_table.entry_numbers`` of the open recording; do not change it."""
    return _numbers(*st.session_state["_open"])


def entry_order(search: str, field: str, state: str, sort: str, descending: bool) -> np.ndarray:
    """``bank_table.select_entries`` of the open recording."""
    return _entry_order(*st.session_state["_open"], search, field, state, sort, descending)


def found_entries(search: str, field: str = "everything") -> np.ndarray:
    """``bank_table.search_entries`` of the open recording."""
    return _found(*st.session_state["_open"], search, field)


def map_places() -> pd.DataFrame | None:
    """``Recording.map`` of the open recording; do not change it."""
    return _map(*st.session_state["_open"])


def unit_places() -> pd.DataFrame:
    """``map_points.unit_places`` of the open recording, which has a map; do not change it."""
    return _unit_places(*st.session_state["_open"])


def predicates() -> tuple[np.ndarray, list[str]]:
    """``bank_table.predicates`` of the open recording."""
    return _predicates(*st.session_state["_open"])


def points_of_map(
    by: str, search: str, shown: str, focus: int | None, lasso: tuple[tuple[int, int], ...], dark: bool, every: bool
) -> bytes:
    """What the map draws; see ``map_points``."""
    return _map_points(*st.session_state["_open"], by, search, shown, focus, lasso, dark, every)


def sample(layer: int) -> ReadSample:
    """``read_sample`` of the open recording; do not change it."""
    return _read_sample(*st.session_state["_open"], layer)


def answer(question: Callable[..., Any], *arguments: Any) -> Any:
    """A question on the open recording, cached: ``question(recording, *arguments)``; the answer is a copy."""
    return _answer(*st.session_state["_open"], f"{question.__module__}.{question.__qualname__}", arguments, question)


def answer_two(question: Callable[..., Any], name: str, *arguments: Any) -> Any:
    """A question on the open recording and another one, cached: ``question(a, b, *arguments)``."""
    other = _version(find_recordings(root())[name])
    return _answer_two(*st.session_state["_open"], *other, question.__qualname__, arguments, question)


def trace_document(doc: int, first: int, count: int, name: str | None = None) -> Trace:
    """``Recording.trace`` of the open recording or another one, cached."""
    where = st.session_state["_open"] if name is None else _version(find_recordings(root())[name])
    return _trace_document(*where, doc, first, count)


def show_figure(
    draw: Callable[..., Figure], arguments: Callable[[], tuple[Any, ...]], *by: Any, alt: str, of: str | None = None
) -> None:
    """Draw a figure for the reader's theme, as wide as its column.

    Args:
        draw: one of ``memscope.report.plots.usage`` or ``app.parts.figures``.
        arguments: what it draws; called only when the figure is not in the cache.
        by: what the arguments depend on besides the open recording.
        alt: what the figure shows, for those who do not see it.
        of: name of a second recording that the arguments depend on.
    """
    where = st.session_state["_open"], of and _version(find_recordings(root())[of])
    dark = st.context.theme.type == "dark"
    image = _draw(where, f"{draw.__module__}.{draw.__name__}", dark, by, draw, arguments)
    st.image(image, width="stretch", output_format="PNG", alt=alt)


def download(label: str, table: Callable[[], pd.DataFrame], name: str) -> None:
    """A button that saves a table as CSV; the table is asked for on the click."""
    file = f"{recording().path.name}-{name}.csv"
    st.download_button(
        label, lambda: csv_text(table()), file, "text/csv", icon=":material/download:", on_click="ignore"
    )


def _version(path: Path) -> tuple[Path, int]:
    """What caches know a recording by: its folder, and when it or its map was made."""
    files = [path / INFO, path / "map.parquet"]
    return path, sum(file.stat().st_mtime_ns for file in files if file.is_file())


@st.cache_resource(max_entries=8, show_spinner="Opening the recording ...")
def _open(path: Path, modified: int) -> Recording:
    return open_recording(path, root())


@st.cache_resource(max_entries=4, show_spinner=False)
def _numbers(path: Path, modified: int) -> pd.DataFrame:
    return bank_table.entry_numbers(_open(path, modified))


@st.cache_resource(max_entries=32, show_spinner=False)
def _found(path: Path, modified: int, search: str, field: str) -> np.ndarray:
    return bank_table.search_entries(_open(path, modified), search, field)


@st.cache_resource(max_entries=16, show_spinner=False)
def _entry_order(
    path: Path, modified: int, search: str, field: str, state: str, sort: str, descending: bool
) -> np.ndarray:
    found = _found(path, modified, search, field)
    return bank_table.select_entries(_open(path, modified), _numbers(path, modified), found, state, sort, descending)


@st.cache_resource(max_entries=4, show_spinner=False)
def _map(path: Path, modified: int) -> pd.DataFrame | None:
    return _open(path, modified).map()


@st.cache_resource(max_entries=4, show_spinner=False)
def _unit_places(path: Path, modified: int) -> pd.DataFrame:
    places = _map(path, modified)
    assert places is not None
    return map_points.unit_places(places)


@st.cache_resource(max_entries=4, show_spinner=False)
def _predicates(path: Path, modified: int) -> tuple[np.ndarray, list[str]]:
    return bank_table.predicates(_open(path, modified))


@st.cache_resource(max_entries=8, show_spinner="Reading a sample ...")
def _read_sample(path: Path, modified: int, layer: int) -> ReadSample:
    return read_sample(_open(path, modified), layer)


@st.cache_resource(max_entries=8, show_spinner=False)
def _colors(path: Path, modified: int, by: str, dark: bool) -> map_points.Colors:
    place = _map(path, modified)
    assert place is not None
    table = _numbers(path, modified)
    cluster = np.full(len(table), -1, np.int32)
    cluster[place["entry"].to_numpy()] = place["cluster"].to_numpy()
    relations = _predicates(path, modified) if by == "predicate" else (np.empty(0, np.int8), [])
    return map_points.entry_colors(by, _open(path, modified), table, cluster, relations, dark)


@st.cache_resource(max_entries=12, show_spinner=False)
def _map_points(
    path: Path,
    modified: int,
    by: str,
    search: str,
    shown: str,
    focus: int | None,
    lasso: tuple[tuple[int, int], ...],
    dark: bool,
    every: bool,
) -> bytes:
    count = _numbers(path, modified)["count"].to_numpy()
    kept = {"all": count >= 0, "used": count > 0, "never selected": count == 0}[shown]
    lit = _found(path, modified, search, "everything") if search else None
    colors = _colors(path, modified, by, dark)
    places = _unit_places(path, modified)
    return map_points.pack_points(places, colors, kept, lit, focus, list(lasso), dark, every)


@st.cache_data(max_entries=256, show_spinner=False)
def _answer(path: Path, modified: int, name: str, arguments: tuple[Any, ...], _question: Callable[..., Any]) -> Any:
    return _question(_open(path, modified), *arguments)


@st.cache_data(max_entries=32, show_spinner=False)
def _answer_two(
    path: Path,
    modified: int,
    other: Path,
    other_modified: int,
    name: str,
    arguments: tuple[Any, ...],
    _question: Callable[..., Any],
) -> Any:
    return _question(_open(path, modified), _open(other, other_modified), *arguments)


@st.cache_data(max_entries=64, show_spinner=False)
def _trace_document(path: Path, modified: int, doc: int, first: int, count: int) -> Trace:
    return _open(path, modified).trace(doc, first, count)


@st.cache_data(max_entries=256, show_spinner=False)
def _draw(
    where: tuple[Any, ...],
    name: str,
    dark: bool,
    by: tuple[Any, ...],
    _figure: Callable[..., Figure],
    _arguments: Callable[[], tuple[Any, ...]],
) -> bytes:
    buffer = io.BytesIO()
    _figure(*_arguments(), dark=dark).savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
