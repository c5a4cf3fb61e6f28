"""Parts of the pages on interventions: what to change, and tables of what changed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from app import outside
from app.address import View
from memscope.base.errors import InputError
from memscope.base.words import visible

if TYPE_CHECKING:
    from memscope.causal.what_if import Change

_NUMBER = st.column_config.NumberColumn
KINDS = {
    "ablate": "ablate",
    "zero": "zero its value",
    "force": "force",
    "swap": "swap two",
    "rewrite": "rewrite",
    "scale": "scale the memory",
}
MEANINGS = {
    "ablate": "The entries are not selected. Reads that compete give their weight to the remaining selections.",
    "zero": "The entries are selected as before, and their values are zero.",
    "force": "Every token selects the entry at this gate score, in place of its weakest selection.",
    "swap": "Each of the two entries is read where the other is selected.",
    "rewrite": "The entry is replaced by the one that initialisation makes of this sentence.",
    "scale": "The outputs of the memory layers are multiplied by this factor; 0 switches them off.",
}
_AMOUNTS = {"force": "Gate score", "scale": "Factor"}
_TOKENS = {
    "pos": _NUMBER("token"),
    "text": "text",
    "loss_before": _NUMBER("loss", format="%.3f"),
    "loss_after": _NUMBER("loss after", format="%.3f"),
    "kl": _NUMBER("KL", format="%.4f"),
    "next_before": "next",
    "p_before": _NUMBER("p", format="percent"),
    "next_after": "next after",
    "p_after": _NUMBER("p after", format="percent"),
}


def change_form(view: View, kind: str, layers: Sequence[int]) -> None:
    """Show a form for the text and the values that the kind of change needs."""
    with st.form("change", border=False):
        fields = iter(st.columns(2))
        if kind != "scale":
            label = {"swap": "Two entries", "force": "Entry", "rewrite": "Entry"}.get(kind, "Entries")
            next(fields).text_input(label, key=view.key("entries"), placeholder="numbers with commas between them")
        if kind in _AMOUNTS:
            next(fields).text_input(_AMOUNTS[kind], key=view.key("amount"))
        if kind == "rewrite":
            column = next(fields)
            column.text_input("Sentence", key=view.key("sentence"), placeholder="Ada Lovelace was born in Paris .")
        st.segmented_control("Layers", list(layers), selection_mode="multi", key=view.key("layers"))
        st.text_area("Text to read", key=view.key("text"), placeholder="Ada Lovelace was born in", height=80)
        st.form_submit_button("Change it", type="primary", on_click=lambda: view.put(token=0))


def read_change(view: View, kind: str, layers: Sequence[int]) -> "Change":
    """Read the change from the form.

    Raises:
        InputError: an entry or the amount is not a number, or no layer is chosen.
    """
    from memscope.causal.what_if import Change

    values = {name: st.session_state[view.key(name)] for name in ("entries", "layers", "amount", "sentence")}
    if not values["layers"]:
        raise InputError("no layer is chosen; choose at least one")
    try:
        entries = tuple(int(part) for part in values["entries"].replace(",", " ").split()) if kind != "scale" else ()
        amount = float(values["amount"]) if kind in _AMOUNTS else 0.0
    except ValueError as error:
        raise InputError(f"expected numbers ({error})") from error
    chosen = None if list(values["layers"]) == list(layers) else tuple(values["layers"])
    return Change(kind, entries, chosen, amount, values["sentence"] if kind == "rewrite" else "")  # type: ignore[arg-type]


def token_change(compared: pd.DataFrame, token: int) -> None:
    """Show the prediction after the chosen token, before and after the change."""
    row = compared.iloc[token]
    with st.container(horizontal=True):
        st.metric("KL of the next token", f"{row['kl']:.4f} nats")
        for name in ("before", "after"):
            loss = row[f"loss_{name}"]
            st.metric(f"Loss {name}", "none" if pd.isna(loss) else f"{loss:.3f} nats")
            st.metric(f"Next {name}", f"{row[f'p_{name}']:.1%}")
            outside.code(visible(row[f"next_{name}"]), language=None, width="content")


def token_table(compared: pd.DataFrame) -> None:
    """Show every token before and after the change."""
    texts = {name: compared[name].map(visible) for name in ("text", "next_before", "next_after")}
    outside.table(
        compared.assign(**texts),
        hide_index=True,
        column_order=list(_TOKENS),
        column_config=_TOKENS,
        alt="Every token before and after the change",
    )


def context_table(contexts: pd.DataFrame) -> None:
    """Show the contexts that changed most."""
    shown = contexts.assign(
        token_text=contexts["token_text"].map(visible),
        target_text=contexts["target_text"].map(visible),
        change=contexts["loss_after"] - contexts["loss_before"],
    )
    outside.table(
        shown,
        hide_index=True,
        column_order=["before", "token_text", "target_text", "loss_before", "loss_after", "change", "kl", "title"],
        column_config={
            "before": st.column_config.TextColumn("text before", width="large"),
            "token_text": "token",
            "target_text": "next",
            "loss_before": _NUMBER("loss", format="%.3f"),
            "loss_after": _NUMBER("loss after", format="%.3f"),
            "change": _NUMBER(format="%+.3f"),
            "kl": _NUMBER("KL", format="%.4f"),
            "title": "document",
        },
        alt="Recorded tokens that changed most",
    )
