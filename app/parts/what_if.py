"""Parts of the page What if: the entries that a text selects, what colours the difference, two continuations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from app import address, outside
from app.address import View, choice, integer
from app.components.fired import fired_view
from app.components.tokens import token_view
from app.parts import tables
from app.parts.texts import generated, token
from memscope.base.words import visible
from memscope.query.fired import fired_entries, selected_entries
from memscope.query.recording import Recording
from memscope.recording.token_table import Trace
from memscope.report.words import entry_name

if TYPE_CHECKING:
    from memscope.causal.what_if.change import Change
    from memscope.record.traced import Continued

SHOWN = 100
"""Most entries that are offered as choices."""
SIDES = ("without the change", "with the change")


class Measure(NamedTuple):
    """What colours the tokens of a text that a change alters."""

    name: str
    meaning: str
    legend: str
    signed: bool = False


MEASURES = {
    "change": Measure(
        "Change of loss",
        "change of loss, nats",
        "Blue tokens are followed by one that the change makes less likely, orange ones by one that it makes more "
        "likely.",
        signed=True,
    ),
    "kl": Measure("KL", "KL of the next token, nats", "The deeper the blue, the more the prediction moved."),
    "before": Measure("Loss before", "loss before, nats", "The deeper the blue, the larger the loss."),
    "after": Measure("Loss after", "loss after, nats", "The deeper the blue, the larger the loss."),
}


def values(compared: pd.DataFrame, by: str) -> np.ndarray:
    """A measure of ``MEASURES`` of every token, float64 ``[token]``."""
    if by == "change":
        return (compared["loss_after"] - compared["loss_before"]).to_numpy(np.float64)
    return compared[{"kl": "kl", "before": "loss_before", "after": "loss_after"}[by]].to_numpy(np.float64)


def most_moved(compared: pd.DataFrame) -> int:
    """The token of the text whose prediction moved most."""
    return int(compared["kl"].where(~compared["control"], -1.0).to_numpy().argmax())


def nowhere(trace: Trace, change: "Change") -> bool:
    """Whether a change acts on entries that no token of a text selects."""
    if change.kind in ("force", "scale"):
        return False
    rows = trace.selections
    rows = rows if change.layers is None else rows[rows["layer"].isin(change.layers)]
    return bool(not rows["entry"].isin(change.entries).any())


def choices(view: View, recording: Recording, trace: Trace, layers: list[int]) -> None:
    """A table of the entries that the text selects; its rows name the entries of the change.

    It is closed where a reader comes with an entry, so that what changes stands higher; else it stays open.
    """
    info = recording.info
    table = selected_entries(recording, trace, layers)
    offered = table.head(SHOWN)
    st.session_state["_choices"] = offered["entry"].tolist()

    def name() -> None:
        rows = st.session_state["choices"].selection.rows
        if rows:
            view.put(entries=", ".join(entry_name(info, st.session_state["_choices"][row]) for row in rows), token=None)

    text, named = (st.session_state[view.key(name)] for name in ("text", "entries"))
    if st.session_state.get("_offered", ("", True))[0] != text:
        st.session_state["_offered"] = text, not named
    there = f"The {len(table):,} {info.word(2)} that this text selects in the chosen layers"
    with st.expander(there, expanded=st.session_state["_offered"][1]):
        outside.table(
            tables.named(info, offered),
            hide_index=True,
            height=275,
            row_height=tables.ROW_HEIGHT,
            key="choices",
            on_select=name,
            selection_mode="multi-row",
            column_order=["entry", "tokens", "sentence", "title", "layers", "gate", "read"],
            column_config=tables.entry_columns(info)
            | {
                "tokens": st.column_config.NumberColumn("tokens", width=60, help="Tokens of this text that select it."),
                "layers": st.column_config.TextColumn("in layers", width=80),
                "gate": st.column_config.NumberColumn(f"{info.score}, sum", format="%.3g", width=80),
                "read": st.column_config.NumberColumn("read, sum", format="%.3g", width=80),
            },
            alt=f"{info.word(2)} that this text selects",
        )
        order = "most read" if info.has("reads") else "of the largest scores" if info.has("scores") else "most often"
        st.caption(f"{f'{len(offered)} shown, ' * (len(offered) < len(table))}{order} first. Select rows to name them.")


@contextmanager
def progress() -> Iterator[Callable[[int, int], None]]:
    """A bar that shows how much recorded text is read; gives the function that moves it."""
    bar = st.empty()

    def watch(done: int, all_: int) -> None:
        bar.progress(done / all_, f"Reading recorded text: {done} of {all_} windows")

    try:
        yield watch
    finally:
        bar.empty()


def two_continuations(view: View, recording: Recording, text: str, asked: generated.Asked, change: "Change") -> None:
    """What the model writes without and with a change, and what fired at a chosen token."""
    side = view.field("side", choice(SIDES, SIDES[1], name="side"))
    both = [generated.continued(text, asked, one) for one in (None, change)]
    shown = both[SIDES.index(side)]
    last = len(shown.traced.trace.tokens)
    at = view.field("at", integer(0, last, min(shown.prompt - 1, last - 1), "token"))
    view.write()
    for place, name, one in zip(st.columns(2, gap="medium"), SIDES, both, strict=True):

        def pick(name: str = name) -> None:
            view.put(side=name, at=st.session_state[f"continued {name}"].clicked)

        tokens = one.traced.trace.tokens
        with place:
            st.markdown(f"**{name.capitalize()}**")
            token_view(
                tokens,
                tokens["loss"].to_numpy(np.float64),
                "loss of predicting the next token, nats",
                at if name == side else -1,
                key=f"continued {name}",
                label=f"Tokens {name}",
                new=tokens["pos"].to_numpy() >= one.prompt,
                on_click=pick,
            )
    apart = _first_difference(both)
    said = "Both are the same." if apart is None else f"They part at token {apart}."
    st.caption(said + generated.NOTE + " Both are drawn with the same seed.")
    trace = shown.traced.trace
    st.markdown(f"**Token {at}, {side}**")
    outside.code(visible(token.label(trace.tokens.iloc[at])), language=None, width="content")
    token.likely_next(shown.traced.predictions, at)
    slots = {layer: weights[at] for layer, weights in shown.traced.slots.items()}

    def act() -> None:
        clicked = st.session_state["fired"].acted
        address.go("entries", entry=int(clicked["entry"]), layer=int(clicked["layer"]))

    fired_view(
        fired_entries(recording, trace, at, slots), -1, None, recording.info, key="fired", on_act=act, lights=False
    )


def _first_difference(both: "list[Continued]") -> int | None:
    """The first token in which two continuations differ."""
    ids = [one.traced.trace.tokens["token"].tolist() for one in both]
    if ids[0] == ids[1]:
        return None
    return next((n for n, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
