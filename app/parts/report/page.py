"""The report on a page: made when a reader asks, shown as it is, downloaded as one page or with all its files."""

import time
from pathlib import Path

import streamlit as st

from app import address, outside
from app.components.component import make_component
from app.parts.report.kept import make_report, report_file, report_page
from memscope.base.words import command_line
from memscope.query.recording import Recording

_WANTED = "_report_wanted"
# The report holds text from outside: none of its scripts, forms and windows works in its frame. It has this page's
# origin, or else a browser would not follow the links within it.
_PAPER = make_component(
    "paper", "\n<iframe sandbox='allow-same-origin' title='The report'></iframe>\n<!-- a report -->\n"
)


def to_report(recording: Recording) -> None:
    """A button to the report, which is made on the way if it is not there."""
    label = "Make the report" if report_file(recording) is None else "Open the report"
    if st.button(label, icon=":material/summarize:", help="Findings, figures and tables on one page, to keep or send."):
        st.session_state[_WANTED] = True
        address.go("gate_bias", part="report")


def report(recording: Recording) -> None:
    """The report, or a button that makes it."""
    wanted = st.session_state.pop(_WANTED, False)
    ready = report_file(recording)
    if ready is None:
        st.write(
            "The full report: findings in words, all figures and tables as one web page and as Markdown, every table "
            "as CSV and Parquet, and all numbers as JSON with its schema."
        )
        if not wanted and not st.button("Make the report", icon=":material/summarize:", type="primary"):
            st.caption("It is made once and stays in the recording's folder. The command in a shell is:")
            out = f"reports/{recording.path.name}"
            outside.code(command_line("memscope", "report", recording.path, "--out", out), language="bash")
            return
        _make(recording)
        st.rerun()
    assert ready is not None
    _downloads(recording, ready)
    _PAPER(data={"page": _page(ready, ready.stat().st_mtime_ns)}, key="paper")


def _make(recording: Recording) -> None:
    started = time.monotonic()
    with st.status("Making the report ...", expanded=True):
        st.button("Stop", icon=":material/stop_circle:", key="stop")  # any click ends this run of the page
        bar = st.progress(0.0)
        for number, name in enumerate(make_report(recording)):
            bar.progress(1 - 0.93 ** (number + 1), text=f"{name}, {time.monotonic() - started:.0f} s")


def _downloads(recording: Recording, ready: Path) -> None:
    """Buttons for the page alone and for all files; both are read on the click."""
    name, size = recording.path.name, ready.stat().st_size / 1e6
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Download this page",
            lambda: report_page(ready),
            f"{name}-report.html",
            "text/html",
            icon=":material/download:",
            type="primary",
            on_click="ignore",
        )
        st.download_button(
            "Download all files",
            ready.read_bytes,
            f"{name}-report.zip",
            "application/zip",
            icon=":material/folder_zip:",
            on_click="ignore",
        )
        st.caption(
            f"The page needs no other file. All files are HTML, Markdown, CSV, Parquet, JSON, PNG and SVG: {size:.1f} "
            "MB.",
            width="content",
        )


@st.cache_data(max_entries=4, show_spinner=False)
def _page(ready: Path, written: int) -> str:
    return report_page(ready).decode("utf-8")
