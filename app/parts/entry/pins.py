"""Pinned entries and notes on them: kept in the address, saved to a file, opened from one."""

import csv
import io
from typing import NamedTuple

import pandas as pd
import streamlit as st

from app import outside, state
from app.address import Field, View
from app.parts import tables
from memscope.base.errors import InputError
from memscope.query.bank_table import entry_rows
from memscope.query.recording import Recording

MOST = 200
"""Most pins."""
LONGEST = 300
"""Most characters of a note."""


class Pin(NamedTuple):
    """An entry that a reader keeps, and why."""

    entry: int
    note: str = ""


def pins(entries: int) -> Field:
    """A field of the address that holds pins: ``12 gods;70;99 dates``; a semicolon in a note becomes a comma."""

    def parse(text: str) -> tuple[Pin, ...]:
        found = []
        for part in text.split(";")[:MOST]:
            number, _, note = part.strip().partition(" ")
            if not (number.isascii() and number.isdecimal() and len(number) < 18 and int(number) < entries):
                raise ValueError("The address holds a pin that is no entry of this recording.")
            found.append(Pin(int(number), note[:LONGEST]))
        return tuple(found)

    def text(value: tuple[Pin, ...]) -> str:
        return ";".join(f"{pin.entry} {pin.note.replace(';', ',')}".rstrip() for pin in value)

    def valid(value: object) -> bool:
        return isinstance(value, tuple) and all(pin.entry < entries for pin in value)

    return Field((), parse, valid, text, carried=True)


def read_pins(text: str, entries: int) -> tuple[Pin, ...]:
    """Pins of a CSV file with columns ``entry`` and, if there are any, ``note``.

    Raises:
        InputError: there is no such column, or a row names no entry of the recording.
    """
    rows = csv.DictReader(io.StringIO(text))
    if "entry" not in (rows.fieldnames or ()):
        raise InputError("a file of pins is CSV with a column 'entry', and 'note' for notes; this one has no 'entry'")
    found = []
    for number, row in enumerate(rows, 2):
        name = (row["entry"] or "").strip()
        if not (name.isascii() and name.isdecimal() and len(name) < 18 and int(name) < entries):
            raise InputError(f"line {number}: '{name[:40]}' is no entry of this recording, which has {entries:,}")
        found.append(Pin(int(name), (row.get("note") or "")[:LONGEST]))
    if len(found) > MOST:
        raise InputError(f"the file has {len(found):,} pins; a page keeps at most {MOST}")
    return tuple(found)


def pinned_table(recording: Recording, kept: tuple[Pin, ...]) -> pd.DataFrame:
    """Pins with notes and the columns of the table of entries."""
    table = entry_rows(recording, state.numbers(), [pin.entry for pin in kept])
    table.insert(1, "note", [pin.note for pin in kept])
    return table


def pin_button(view: View, entry: int, kept: tuple[Pin, ...]) -> None:
    """A button that pins an entry or takes the pin away."""
    there = any(pin.entry == entry for pin in kept)

    def turn() -> None:
        view.put(pins=tuple(pin for pin in kept if pin.entry != entry) if there else (*kept, Pin(entry)))

    st.button(
        "Take the pin away" if there else "Pin",
        icon=":material/keep_off:" if there else ":material/keep:",
        on_click=turn,
        disabled=not there and len(kept) >= MOST,
        help="Pins and notes are in the address of this page; All entries lists them.",
    )


def note_box(view: View, entry: int, kept: tuple[Pin, ...]) -> None:
    """A box for the note on a pinned entry; nothing for others."""
    pin = next((pin for pin in kept if pin.entry == entry), None)
    if pin is None:
        return
    key = f"note.{entry}"
    st.session_state[key] = pin.note

    def write() -> None:
        note = st.session_state[key][:LONGEST]
        view.put(pins=tuple(Pin(entry, note) if one.entry == entry else one for one in kept))

    st.text_input("Note", key=key, on_change=write, max_chars=LONGEST, placeholder="why this entry is kept")


def pin_list(view: View, recording: Recording, kept: tuple[Pin, ...]) -> None:
    """All pins as a table that opens entries and can be saved, and a way to open a file of pins."""
    info = recording.info
    with st.expander(f"Pins ({len(kept)})", icon=":material/keep:", expanded=bool(kept)):
        table = pinned_table(recording, kept) if kept else None  # here: a download runs outside of the session
        if table is not None:
            tables.entry_table(
                table,
                [{"entry": pin.entry} for pin in kept],
                key="pinned",
                height="content",
                column_config=tables.entry_columns(info) | {"note": st.column_config.TextColumn(width=260)},
                column_order=["entry", "note", "count", "sentence", "title"],
                alt=f"Pinned {info.word(2)} and notes",
            )
        with st.container(horizontal=True, vertical_alignment="center"):
            if table is not None:
                state.download("Save pins as CSV", lambda: table, "pins")
                st.button("Take all pins away", on_click=lambda: view.put(pins=()))
        file = st.file_uploader("Open a file of pins", type="csv", key="pins.file")
        if file is not None and st.session_state.get("_pins_of") != file.file_id:
            st.session_state["_pins_of"] = file.file_id
            try:
                found = read_pins(file.getvalue().decode("utf-8-sig", "replace"), info.knowledge_num)
            except InputError as error:
                outside.code(str(error), language=None, wrap_lines=True)
                return
            view.put(pins=found)
            st.rerun()
        if not kept:
            st.caption(
                f"No pins yet: open one of the {info.word(2)} and pin it. Pins and notes stay in the address of this "
                "page, and in a file that you save."
            )
