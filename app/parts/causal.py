"""Parts of the pages on interventions: what to change, and tables of what changed."""

from typing import TYPE_CHECKING, NamedTuple, NoReturn

import pandas as pd
import streamlit as st

from app import outside
from app.address import View
from app.live import can_type, compare_typed, expect_text
from app.parts.texts.typed import EXAMPLE
from memscope.base.errors import InputError
from memscope.base.words import first_upper, visible
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import Kind, read_entries
from memscope.recording.token_table import token_label

if TYPE_CHECKING:
    from memscope.causal.what_if.change import Change

_NUMBER = st.column_config.NumberColumn


class Way(NamedTuple):
    """A kind of change, as a reader chooses it."""

    name: str
    meaning: str


_WAYS: dict[Kind, dict[str, Way]] = {
    "memory": {
        "ablate": Way(
            "ablate", "The entries are not selected. Reads that compete give their weight to the remaining selections."
        ),
        "zero": Way("zero its value", "The entries are selected as before, and their values are zero."),
        "force": Way("force", "Every token selects the entry at this gate score, in place of its weakest selection."),
        "swap": Way("swap two", "Each of the two entries is read where the other is selected."),
        "rewrite": Way("rewrite", "The entry is replaced by the one that initialisation makes of this sentence."),
        "scale": Way(
            "scale the memory", "The outputs of the memory layers are multiplied by this factor; 0 switches them off."
        ),
    },
    "text": {
        "ablate": Way(
            "ablate", "The sentences are not selected; the token's others take over their gate scores in proportion."
        ),
        "zero": Way("zero its score", "The gate score of the sentences is 0, and all other gate scores stay."),
        "force": Way(
            "force", "Every token selects the sentence at this gate score, in place of its weakest selection."
        ),
        "swap": Way("swap two", "Each of two sentences is read where the other is selected."),
        "rewrite": Way(
            "retype", "The sentence reads so: it is found by its new words and read word by word. No weight changes."
        ),
        "scale": Way("scale the layers", "What the layers add is multiplied by this factor; 0 switches them off."),
    },
    "experts": {
        "ablate": Way(
            "ablate",
            "The experts are not used. The other router weights of a token take over in proportion: their sum stays.",
        ),
        "zero": Way("zero its weight", "The router weight of the experts is 0, and all other weights stay."),
        "force": Way("force", "Every token uses the expert with this router weight, in place of its weakest expert."),
        "swap": Way("swap two", "Each of two experts of a layer is used where the other is selected, with its weight."),
        "scale": Way(
            "scale the layers",
            "All router weights of the layers are multiplied by this factor. At 0 what every token passes is left: the "
            "rest of the model and shared experts.",
        ),
    },
    "neurons": {
        "ablate": Way("ablate", "Wherever they are among the recorded neurons of a token, their activation is 0."),
        "force": Way(
            "force",
            "The neuron has an activation of this size in every token, with the sign that it has there. The weakest of "
            "the token's recorded neurons is 0 in its place, unless it is among them.",
        ),
        "swap": Way(
            "swap two",
            "Where one of two neurons of a layer is among the recorded ones, the other gets the size of its "
            "activation, with its own sign.",
        ),
        "scale": Way(
            "scale the layers",
            "The activations of the recorded neurons are multiplied by this factor. All other neurons stay.",
        ),
    },
}
"""Ways to change the layers of models that a folder gives back."""
_AMOUNTS = {"force", "scale"}
_ONE = {"force", "rewrite"}
"""Changes of one entry."""
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


def changes(info: RecordingInfo) -> dict[str, Way]:
    """What can be changed in the recorded model; nothing where it cannot be opened or written."""
    if not can_type(info):
        return {}
    if {site.kind for site in info.sites} != {"memory", "text"}:
        return _WAYS.get(info.kind, {})
    meanings = {
        name: f"Entries: {way.meaning} Sentences: {_WAYS['text'][name].meaning}"
        for name, way in _WAYS["memory"].items()
    }
    return {name: Way(_WAYS["memory"][name].name, meaning) for name, meaning in meanings.items()}


def refusal(info: RecordingInfo) -> str:
    """Why nothing of the recorded model can be changed on a page."""
    if not info.predictions:
        return (
            f"This recording is a list of selected {info.word(2)} that another program returned. The model is not "
            "here, so nothing can be changed and run."
        )
    return (
        f"These {info.word(2)} were recorded from Python, and the model's folder does not say how. Change and run them "
        "there: memscope.causal.selections has ablate, force, swap, scale and replay."
    )


def change_form(view: View, kind: str, info: RecordingInfo) -> None:
    """Show a form for the values that the kind of change needs."""
    word, many = info.word(), info.word(2)
    named = "number" if kind in _ONE else "numbers with commas between them"
    if info.private:
        named = info.label(info.knowledge_num - 1) + "; more with commas between them" * (kind not in _ONE)
    with st.form("change", border=False):
        fields = iter(st.columns(3 if kind in ("force", "rewrite") else 2))  # all in one row: answers stand higher
        if kind != "scale":
            label = f"Two {many}" if kind == "swap" else word if kind in _ONE else many
            next(fields).text_input(first_upper(label), key=view.key("entries"), placeholder=named)
        if kind in _AMOUNTS:
            amount = "factor" if kind == "scale" else info.score
            next(fields).text_input(first_upper(amount), key=view.key("amount"))
        if kind == "rewrite":
            column = next(fields)
            column.text_input("Sentence", key=view.key("sentence"), placeholder="Ada Lovelace was born in Paris .")
        next(fields).segmented_control("Layers", list(info.layers), selection_mode="multi", key=view.key("layers"))
        st.form_submit_button("Change it", type="primary", on_click=lambda: view.put(token=None))


def unnamed(view: View, kind: str) -> bool:
    """Whether a change needs entries and none is named yet."""
    return kind != "scale" and not st.session_state[view.key("entries")].strip()


def cannot(error: InputError, said: str = "This cannot be done.") -> NoReturn:
    """Say why a change cannot be shown, and stop the page."""
    st.warning(said, icon=":material/warning:")
    outside.code(str(error), language=None, wrap_lines=True)
    st.stop()
    raise AssertionError("the page has stopped")


def read_change(view: View, kind: str, info: RecordingInfo) -> "Change":
    """Read the change from the form.

    Raises:
        InputError: an entry is not named, the amount is not a number, or no layer is chosen.
    """
    from memscope.causal.what_if.change import Change

    values = {name: st.session_state[view.key(name)] for name in ("entries", "layers", "amount", "sentence")}
    if not values["layers"]:
        raise InputError("no layer is chosen; choose at least one")
    entries = tuple(read_entries(info.sites, values["entries"])) if kind != "scale" else ()
    try:
        amount = float(values["amount"]) if kind in _AMOUNTS else 0.0
    except ValueError as error:
        raise InputError(f"expected a number ({error})") from error
    chosen = None if list(values["layers"]) == list(info.layers) else tuple(values["layers"])
    return Change(kind, entries, chosen, amount, values["sentence"] if kind == "rewrite" else "")  # type: ignore[arg-type]


def can_retype(info: RecordingInfo, entry: int) -> bool:
    """Whether an entry is a sentence of a model that can be opened again."""
    site = next(site for site in info.sites if site.own.start <= entry < site.own.stop)
    return site.kind == "text" and can_type(info)


def retype(entry: int, sentence: str) -> None:
    """A form in which a sentence can read otherwise, and what a typed text then makes of it."""
    from memscope.causal.what_if.change import Change

    expect_text()
    with st.form("retype", border=False):
        left, right = st.columns(2)
        new = left.text_area("The sentence reads", sentence, key=f"retype.{entry}", height=100)
        text = right.text_area("Text to read", key="retype.text", placeholder=EXAMPLE, height=100)
        st.form_submit_button("Read the text with it", type="primary")
    st.caption("Nothing is trained: the sentence is found by its new words and read word by word, in this text alone.")
    if not text.strip():
        return
    try:
        compared = compare_typed(text, Change("rewrite", (entry,), sentence=new))
    except InputError as error:
        st.warning("This cannot be done.", icon=":material/warning:")
        outside.code(str(error), language=None, wrap_lines=True)
        return
    token_change(compared, len(compared) - 1)
    token_table(compared)


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
    texts = {name: compared[name].map(visible) for name in ("next_before", "next_after")}
    texts["text"] = [visible(token_label(row.whole, row.part, row.parts)) for row in compared.itertuples()]
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
