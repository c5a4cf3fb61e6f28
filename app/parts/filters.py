"""Linked histograms on a page: what is chosen in them is in the address, and filters what the page shows."""

from collections.abc import Callable

import numpy as np
import streamlit as st

from app import state
from app.address import View, words
from app.components.filters import histogram_view
from memscope.query.charts.histograms import choice_text, histograms, known_histograms, left_over, read_choices
from memscope.query.recording import Recording


def fields(view: View, recording: Recording) -> dict[str, str]:
    """The fields of the histograms, and those that filter with their texts."""
    found = {name: view.field(name, words()) for name in known_histograms(recording.info)}
    return {name: text for name, text in found.items() if text}


def leave(texts: dict[str, str], found: np.ndarray) -> np.ndarray:
    """Those of the entries ``found`` that the choices leave, in their order."""
    return left_over(state.entry_bins(), read_choices(state.entry_bins(), texts), found) if texts else found


def show(
    view: View, recording: Recording, texts: dict[str, str], found: np.ndarray, on_choose: Callable[[], None]
) -> None:
    """The histograms over the entries ``found``; a choice changes the fields and calls ``on_choose``."""
    bins = state.entry_bins()
    chosen = read_choices(bins, texts)

    def choose() -> None:
        asked = st.session_state["filters"].chosen
        names = [str(asked["name"])] if asked["name"] else list(bins)
        view.put(**{name: choice_text(bins[name], [int(n) for n in asked["bins"]]) for name in names})
        on_choose()

    if lost := [name for name in texts if not chosen.get(name)]:
        said = f"This recording has nothing of what the address chooses: {', '.join(lost)}."
        st.warning(said, icon=":material/link_off:")
    said = f"{len(found):,} {recording.info.word(2)}"
    if any(chosen.values()):
        said = f"{len(leave(texts, found)):,} of {said} left"
    histogram_view(histograms(bins, chosen, found), said, key="filters", on_choose=choose)
