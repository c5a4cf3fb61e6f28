"""The pages' access to the open recording: cached answers and figures.

Cached values are read-only and shared by all readers; a reader's choices are only in the session and the address.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import streamlit as st
from matplotlib.figure import Figure

from memscope.base.files import csv_text
from memscope.query import bank_table, catalog
from memscope.query import read_sample as samples
from memscope.query.charts import histograms, map_points
from memscope.query.recording import Recording
from memscope.recording.info import INFO, RECORDINGS
from memscope.recording.token_table import Trace

RECORD = "memscope record RUN --corpus FILE --out recordings/NAME"
Version = tuple[Path, int]
"""A recording as caches know it: its folder, and the time at which it and its map were written."""
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def root() -> Path:
    """The folder that the app was started on; nothing outside it is opened by a name."""
    return Path(os.environ.get(RECORDINGS, "recordings")).resolve()


@st.cache_data(ttl=5, show_spinner=False)
def find_recordings(folder: Path) -> dict[str, Path]:
    """``catalog.find_recordings``, looked up again after five seconds."""
    return catalog.find_recordings(folder)


def opening_order() -> list[str]:
    """Names of all recordings: ``catalog.opening_order``."""
    return _opening_order(root())


@st.cache_data(ttl=5, show_spinner=False)
def _opening_order(folder: Path) -> list[str]:
    return catalog.opening_order(find_recordings(folder), folder)


def usable_first() -> list[str]:
    """Names of all recordings, those that cannot be used last."""
    names, unusable = find_recordings(root()), _in_trouble(root())
    return sorted(names, key=lambda name: name in unusable)


@st.cache_data(ttl=5, show_spinner=False)
def _in_trouble(folder: Path) -> set[str]:
    return {name for name, path in find_recordings(folder).items() if catalog.trouble(path, folder)}


def open_by_name(name: str) -> None:
    """Make a recording the open one of this session.

    Raises:
        InputError: it cannot be read.
    """
    st.session_state["_open"] = _version(name)
    recording()


def recording(name: str | None = None) -> Recording:
    """The open recording, or another one by its name."""
    return _open(*_version(name))


def _version(name: str | None = None) -> Version:
    """The version of the open recording, or of another one by its name."""
    if name is None:
        version: Version = st.session_state["_open"]
        return version
    path = find_recordings(root())[name]
    files = [path / INFO, path / "map.parquet"]
    return path, sum(file.stat().st_mtime_ns for file in files if file.is_file())


@st.cache_resource(max_entries=8, show_spinner="Opening the recording ...")
def _open(path: Path, modified: int) -> Recording:
    return catalog.open_recording(path, root())


def _cached(
    most: int, spinner: bool | str = False
) -> Callable[[Callable[Concatenate[Recording, Arguments], Answer]], Callable[Arguments, Answer]]:
    """Turn a function of a recording into a cached one of the open recording; callers must not change its answers.

    Args:
        most: answers that the cache holds.
        spinner: text while an answer is computed, or false for none.
    """

    def decorate(question: Callable[Concatenate[Recording, Arguments], Answer]) -> Callable[Arguments, Answer]:
        @wraps(question)  # Streamlit tells caches apart by the name and the source of the function
        def ask_version(version: Version, *arguments: Arguments.args, **named: Arguments.kwargs) -> Answer:
            return question(_open(*version), *arguments, **named)

        ask_cached: Callable[..., Answer] = st.cache_resource(ask_version, max_entries=most, show_spinner=spinner)

        @wraps(question)
        def ask(*arguments: Arguments.args, **named: Arguments.kwargs) -> Answer:
            return ask_cached(_version(), *arguments, **named)

        return ask

    return decorate


@_cached(4)
def numbers(recording: Recording) -> pd.DataFrame:
    """``bank_table.entry_numbers``."""
    return bank_table.entry_numbers(recording)


@_cached(4)
def entry_bins(recording: Recording) -> dict[str, histograms.Bins]:
    """``histograms.bin_entries``."""
    return histograms.bin_entries(recording, numbers())


@_cached(16)
def entry_order(recording: Recording, search: str, field: str, state: str, sort: str, descending: bool) -> np.ndarray:
    """``bank_table.select_entries``."""
    return bank_table.select_entries(recording, numbers(), found_entries(search, field), state, sort, descending)


@_cached(32)
def found_entries(recording: Recording, search: str, field: str = "everything") -> np.ndarray:
    """``bank_table.search_entries``."""
    return bank_table.search_entries(recording, search, field)


@_cached(4)
def map_places(recording: Recording) -> pd.DataFrame | None:
    """``Recording.map``."""
    return recording.map()


@_cached(4)
def unit_places(recording: Recording) -> pd.DataFrame:
    """``map_points.unit_places`` of a recording that has a map."""
    places = map_places()
    assert places is not None
    return map_points.unit_places(places)


@_cached(4)
def predicates(recording: Recording) -> tuple[np.ndarray, list[str]]:
    """``bank_table.predicates``."""
    return bank_table.predicates(recording)


@_cached(12)
def points_of_map(
    recording: Recording,
    by: str,
    search: str,
    shown: str,
    focus: int | None,
    lasso: tuple[tuple[int, int], ...],
    dark: bool,
    every: bool,
    chosen: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """The points that the map draws; see ``map_points.pack_points``."""
    count = numbers()["count"].to_numpy()
    kept = {"all": count >= 0, "used": count > 0, "never selected": count == 0}[shown]
    lit = found_entries(search) if search else None
    if chosen:
        lit = histograms.left_over(
            entry_bins(),
            histograms.read_choices(entry_bins(), dict(chosen)),
            np.arange(recording.info.knowledge_num) if lit is None else lit,
        )
    return map_points.pack_points(
        unit_places(), map_colors(by, dark), kept, lit, focus, list(lasso), dark, every, recording.info.word(2)
    )


@_cached(8)
def map_colors(recording: Recording, by: str, dark: bool) -> map_points.Colors:
    """``map_points.entry_colors``."""
    places, table = map_places(), numbers()
    assert places is not None
    cluster = np.full(len(table), -1, np.int32)
    cluster[places["entry"].to_numpy()] = places["cluster"].to_numpy()
    relations = predicates() if by == "predicate" else (np.empty(0, np.int8), [])
    return map_points.entry_colors(by, recording, table, cluster, relations, dark)


@_cached(8, "Reading a sample ...")
def read_sample(recording: Recording, layer: int) -> samples.ReadSample:
    """``read_sample.read_sample``."""
    return samples.read_sample(recording, layer)


def answer(question: Callable[..., Any], *arguments: Any) -> Any:
    """A question on the open recording, cached: ``question(recording, *arguments)``; the answer is a copy."""
    return _answer((_version(),), f"{question.__module__}.{question.__qualname__}", arguments, question)


def answer_two(question: Callable[..., Any], name: str, *arguments: Any) -> Any:
    """A question on the open recording and another one, cached: ``question(a, b, *arguments)``."""
    versions = _version(), _version(name)
    return _answer(versions, f"{question.__module__}.{question.__qualname__}", arguments, question)


@st.cache_data(max_entries=256, show_spinner=False)
def _answer(versions: tuple[Version, ...], name: str, arguments: tuple[Any, ...], _question: Callable[..., Any]) -> Any:
    return _question(*(_open(*version) for version in versions), *arguments)


def trace_document(doc: int, first: int, count: int, name: str | None = None) -> Trace:
    """``Recording.trace`` of the open recording or another one, cached."""
    return _trace_document(_version(name), doc, first, count)


@st.cache_data(max_entries=64, show_spinner=False)
def _trace_document(version: Version, doc: int, first: int, count: int) -> Trace:
    return _open(*version).trace(doc, first, count)


def show_figure(
    draw: Callable[..., Figure], arguments: Callable[[], tuple[Any, ...]], *by: Any, alt: str, of: str | None = None
) -> None:
    """Draw a figure for the reader's theme, as wide as its column.

    Args:
        draw: a function of ``memscope.report.plots`` or ``app.parts.figures``.
        arguments: returns the arguments of ``draw``; called only when the figure is not in the cache.
        by: everything that the arguments depend on besides the open recording.
        alt: a description of the figure, for readers who do not see it.
        of: name of a second recording that the arguments depend on.
    """
    _show((_version(), None if of is None else _version(of)), draw, arguments, by, alt)


def show_run_figure(draw: Callable[..., Figure], arguments: Callable[[], tuple[Any, ...]], *by: Any, alt: str) -> None:
    """``show_figure`` of a run, which needs no recording; ``by`` names the run and how far it is."""
    _show((), draw, arguments, by, alt)


def _show(
    versions: tuple[Version | None, ...],
    draw: Callable[..., Figure],
    arguments: Callable[[], tuple[Any, ...]],
    by: tuple[Any, ...],
    alt: str,
) -> None:
    dark = st.context.theme.type == "dark"
    image = _draw(versions, f"{draw.__module__}.{draw.__name__}", dark, by, draw, arguments)
    [width] = struct.unpack(">I", image[16:20])  # as a PNG begins
    kind = "wide" if width > 1000 else "figure"
    with st.container(key=f"{kind}-{draw.__name__}-{zlib.crc32(repr((versions, by)).encode())}"):
        st.image(image, width="stretch", output_format="PNG", alt=alt)


@st.cache_data(max_entries=256, show_spinner=False)
def _draw(
    versions: tuple[Version | None, ...],
    name: str,
    dark: bool,
    by: tuple[Any, ...],
    _figure: Callable[..., Figure],
    _arguments: Callable[[], tuple[Any, ...]],
) -> bytes:
    buffer = io.BytesIO()
    _figure(*_arguments(), dark=dark).savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def download(label: str, table: Callable[[], pd.DataFrame], name: str) -> None:
    """A button that saves a table as CSV; ``table`` is called on the click."""
    file = f"{recording().path.name}-{name}.csv"
    st.download_button(
        label, lambda: csv_text(table()), file, "text/csv", icon=":material/download:", on_click="ignore"
    )
