"""Choose a recorded document, and a stretch of it."""

from collections.abc import Callable

import streamlit as st

from app.address import View
from memscope.query.catalog import find_documents
from memscope.query.recording import Recording

TITLES = 300
"""Documents that the box of titles offers at once."""


def document_controls(
    view: View, recording: Recording, doc: int, token: int, window: int, start_over: Callable[[], None]
) -> None:
    """Boxes to choose a document, a token and a stretch of it."""
    titles = recording.documents["title"]
    many = len(titles) > TITLES
    *name, number, box, pages = st.columns([2, 3, 1.2, 3.3] if many else [3.5, 1.2, 3.5], vertical_alignment="bottom")
    if many:
        wanted = st.session_state.get("title", "")
        known = sorted({doc, *find_documents(titles, wanted, TITLES)})
        name[0].text_input(
            "Find a document",
            key="title",
            icon=":material/search:",
            placeholder=f"title, or number below {len(titles):,}",
        )
    else:
        known = list(range(len(titles)))
    number.selectbox(
        "Document",
        known,
        format_func=lambda one: f"{one}: {titles[one] or 'untitled'}",
        **view.widget("doc", start_over),
    )
    rows = int(recording.documents["rows"][doc])
    box.number_input("Token", 0, rows - 1, **view.widget("token"))
    with pages:
        pager(view, token, rows, window)


def pager(view: View, token: int, rows: int, window: int) -> None:
    """Buttons that lead through a text, ``window`` tokens at a time; nothing where one window holds it."""
    part, parts = token // window, -(-rows // window)

    def turn() -> None:
        view.put(token=(st.session_state[f"part{part}"] - 1) * window)

    if parts > 1:
        st.pagination(parts, default=part + 1, key=f"part{part}", on_change=turn)


def text_until(recording: Recording, doc: int, pos: int) -> str:
    """The text of a document that the model had read at a token: from where its window begins."""
    start, window = int(recording.documents["first_row"][doc]), recording.info.window
    begin = pos // window * window
    ids = recording.token_ids[start + begin : start + pos + 1].tolist()
    return recording.tokenizer.decode([i for i in ids if i not in recording.tokenizer.control])
