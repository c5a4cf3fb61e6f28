"""One entry of the bank: what it started as, what it says now, where it fires and with whom."""

import numpy as np
import pandas as pd
import streamlit as st

from app import address, outside, state
from app.components.chips import chip_table
from app.components.contexts import context_view
from app.components.decoding import decoding_view
from app.parts import figures, tables
from app.parts.texts.document import text_until
from memscope.base.words import command_line, first_upper, visible
from memscope.query.bank_table import words_of
from memscope.query.entry_cards import EntryCard
from memscope.query.recording import Recording
from memscope.recording.sites import SCORES
from memscope.report.words import reworded, selections, start_names
from memscope.stats.usage import HOT_FACTOR

KINDS = {"top": "Highest gate scores", "quantile": "Median of each fifth of its gate scores, highest first"}
UNSCORED = {"top": "Some of its tokens", "quantile": "More of its tokens"}
"""Headings where selections have no scores."""
BY_SCORE, BY_READ = "by score", "by read weight"
_LENS = {
    "memory": "Next tokens that become more and less likely when a layer reads this entry alone.",
    "experts": "Next tokens that become more and less likely with the mean output of this expert, over tokens of this "
    "text that selected it. An expert has no output of its own.",
}
"""What the lens shows, by the kind of the layer."""


def header(recording: Recording, card: EntryCard) -> None:
    """Sentence, triples and the numbers that sum an entry up."""
    info = recording.info
    total = int(card.usage["count"].sum())
    owners = [site for site in info.sites if site.own.start <= card.entry < site.own.stop]
    even = sum(recording.total_selections(site.layer) / site.entries for site in owners)
    has = {what for site in owners for what in site.has}
    read, signed = (float(card.usage[name].sum()) for name in ("read_sum", "read_signed_sum"))
    status = "never selected" if total == 0 else "hot" if total > HOT_FACTOR * even else "in use"
    if card.sentence is None and "starts" in has:
        st.caption("This entry started from random numbers, so it has no sentence.")
    elif card.sentence is not None:
        outside.text(card.sentence)
    if card.title:
        outside.text(
            f"Fires on: {card.title}",
            help="The tokens it fires on most often, in the layer where it fires most, with their shares of its "
            "firings. In brackets: the part of a share that follows one token, where that is more specific.",
        )
    if card.words:
        outside.text(
            f"Words that set it apart: {card.words}", help="The words with the highest TF-IDF among those it fires in."
        )
    with st.container(horizontal=True):
        _metric(
            "Selections",
            f"{total:,}",
            f"{_times(total / max(even, 1e-9))} x even",
            f"Even selection gives {even:,.1f}.",
        )
        _metric(
            "Layers that select it",
            f"{int((card.usage['count'] > 0).sum())} of {len(owners)}",
            status,
        )
        if not total:
            pass  # nothing to take a mean of
        elif "reads" in has:
            _metric(
                "Read per selection",
                f"{read / total:.3g}",
                f"{signed / total:+.3g} with its sign",
                "Mean absolute read weight. With its sign it is below 0 where the entry is mostly subtracted.",
            )
        elif "scores" in has:
            score = SCORES[owners[0].kind]
            mean = float(card.usage["gate_sum"].sum()) / total
            _metric(f"Mean {score}", f"{mean:.3g}", "over its selections", _as_used(owners[0].kind))
        if card.drift is not None:
            _metric("Drift", f"{card.drift:.4f}", "1 - cosine to its start")
        if card.kept is not None and card.kept_at_init is not None:
            _metric(
                "Still says its sentence",
                f"{card.kept:.0%}",
                f"{card.kept_at_init:.0%} at the start",
                "Share of its nearest tokens that stand in the init sentence.",
            )


def decodings(recording: Recording, card: EntryCard, key: str = "") -> None:
    """Tokens at first and now, triples, and the logit lens; ``key`` tells widgets of two entries apart."""
    words = words_of(recording, [card.entry])[card.entry]
    owners = [site for site in recording.info.sites if site.own.start <= card.entry < site.own.stop]
    lensed = any("lens" in site.has for site in owners)
    if len(card.nearest):
        st.markdown("**What it says**")
    if not len(card.nearest):
        pass
    elif len(card.slot_drift) > 1:
        slots = [
            {
                "slot": slot,
                "from": words.sentence[slot] if slot < len(words.sentence) else None,
                "to": row.token,
                "cosine": f"{row.cosine:.3f}",
                "drift": f"{card.slot_drift[slot]:.4f}",
            }
            for slot, row in enumerate(card.nearest.itertuples())
        ]
        decoding_view([], [], slots, key=f"decoding{key}")
        st.caption("Slot by slot: the token it started from and, where that changed, the one it is nearest to now.")
    else:
        near = set(card.nearest["token"])
        decoding_view(
            [(token, token in near) for token in words.sentence],
            [(row.token, bool(row.in_sentence), f"{row.cosine:.3f}") for row in card.nearest.itertuples()],
            [],
            key=f"decoding{key}",
        )
        st.caption(
            "Above: the tokens of the sentence. Below: the ten nearest tokens now, by cosine in the space that "
            "sentences were initialised in. Filled tokens are in both."
        )
    if not card.triples.empty and any(card.triples["predicate"]):
        outside.table(
            card.triples,
            hide_index=True,
            height="content",
            column_order=["subject", "predicate", "object"],
            alt="Triples that came with the init sentence",
        )
    if not lensed:
        return
    word = owners[0].word()
    st.markdown("**Logit lens**")
    if card.lens.empty:
        unused = f"No layer selected this {word} on this corpus, so there is no lens to show."
        st.caption(unused if not card.usage["count"].any() else f"There is no lens of this {word}.")
        return
    chip_table(
        ["layer", "more likely", "less likely"],
        [
            [str(row.layer), [visible(token) for token in row.top], [visible(token) for token in row.bottom]]
            for row in card.lens.itertuples()
        ],
        key=f"lens{key}",
        label=f"Tokens that this {word} makes more and less likely, per layer",
    )
    other = f"Next tokens that become more and less likely with what this {word} adds."
    st.caption(_LENS.get(owners[0].kind, other))
    state.download("Logit lens as CSV", lambda: recording.lens_of([card.entry]), f"logit-lens-{card.entry}")


def usage(recording: Recording, card: EntryCard) -> None:
    """Usage by layer and the histogram of gate scores."""
    info = recording.info
    owners = [site for site in info.sites if site.own.start <= card.entry < site.own.stop]
    d = max(recording.total_selections(site.layer) for site in owners)
    even = d / owners[0].entries
    word, score = owners[0].word(), SCORES[owners[0].kind]
    shown = card.usage[card.usage["layer"].isin([site.layer for site in owners])] if info.private else card.usage
    left, right = st.columns(2, gap="medium")
    with left:
        state.show_figure(
            figures.layer_usage, lambda: (shown, even), card.entry, alt=f"Selections of this {word} per layer"
        )
        st.caption(f"Selections per layer, over D = {d:,} a layer. The dashed line is the even share.")
    used = [int(layer) for layer in card.usage.loc[card.usage["count"] > 0, "layer"]]
    with right:
        if not used:
            st.caption(f"No {score}s: nothing selected this {word}.")
            return
        if "scores" not in owners[0].has:
            return

        def scores() -> tuple[dict[int, np.ndarray], tuple[int, ...]]:
            return {layer: recording.selections(card.entry, layer)["gate"].to_numpy() for layer in used}, info.layers

        state.show_figure(
            figures.score_histogram, lambda: (*scores(), score), card.entry, alt=f"Histogram of this {word}'s {score}s"
        )
        total = int(card.usage["count"].sum())
        of = f"all its {total:,} selections" if total > 1 else "its one selection"
        st.caption(f"{first_upper(score)}s of {of}.{_as_used(owners[0].kind) or ''}")


def contexts(recording: Recording, entry: int, layer: int | None, order: str, key: str = "") -> None:
    """Where it fires: its top contexts and a sample of the rest (``BY_SCORE``), or where it is most read (``BY_READ``).

    ``key`` tells widgets of two entries apart.
    """
    info = recording.info
    site = next(site for site in info.sites if site.own.start <= entry < site.own.stop)
    score, scored = SCORES[site.kind], "scores" in site.has
    if order == BY_READ:
        table = state.answer(Recording.most_read, entry, layer)
        groups = {"Most read": table}
        said = "The tokens whose read of it is largest, whatever its sign, of all its selections. "
    else:
        table = state.answer(Recording.contexts, entry, layer, 24, 12)
        titles = {kind: title.replace("gate score", score) for kind, title in (KINDS if scored else UNSCORED).items()}
        groups = {title: table[table["kind"] == kind].head(20) for kind, title in titles.items()}
        said = (
            f"Shown are the tokens with the highest {score}s and, beyond them, the median of each fifth of all its "
            f"{'scores' if score == 'gate score' else f'{score}s'}. "
        ) * scored
    if table.empty:
        st.caption("It fires nowhere: no token of this corpus selected it.")
        return
    groups = {title: rows for title, rows in groups.items() if len(rows)}
    shown = pd.concat(groups.values())

    def open_token() -> None:
        row = shown.iloc[int(st.session_state[f"contexts{key}"].clicked)]
        address.go("prompts", doc=int(row["doc"]), token=int(row["pos"]), layer=int(row["layer"]))

    context_view(groups, key=f"contexts{key}", on_click=open_token, score=tables.score_name(info))
    st.caption(
        f"{len(shown)} of its selections; D = {selections(recording)} a layer. {said}The text begins where the "
        f"model's window begins. Click a context to see all {info.word(2)} that its token selected."
    )
    state.download("These contexts as CSV", lambda: shown, f"contexts-{entry}")


def example_text(recording: Recording, entry: int) -> str:
    """A text on which an entry fires: up to the token of its first context, from where the model's window begins."""
    table = state.answer(Recording.contexts, entry, None, 24, 12)
    return "" if table.empty else text_until(recording, int(table["doc"].iloc[0]), int(table["pos"].iloc[0]))


def firing(recording: Recording, entry: int) -> None:
    """Tokens that it fires on, follows, predicts and precedes."""
    table = state.answer(Recording.firing_of, [entry])
    if table.empty:
        return
    st.markdown("**Typical tokens**")
    kinds = {"previous": "after", "input": "on the token", "predicted": "model predicts next", "next": "comes next"}
    if not recording.info.predictions:
        del kinds["predicted"]
    lists = [_tokens(table, kind) for kind in kinds]
    chip_table(
        ["layer", "selections", "documents", "fires on", *kinds.values()],
        [
            [str(row["layer"]), f"{row['count']:,}", f"{row['docs']:,}", row["fires_on"], *(each[n] for each in lists)]
            for n, row in enumerate(table.to_dict("records"))
        ],
        key="typical",
        label=f"Tokens typical of this {recording.info.word()}",
    )
    st.caption(
        "Fires on: its most frequent tokens in that layer, with shares. The other columns show tokens that are more "
        "frequent at its selections than elsewhere, with their lift."
    )
    state.download("Typical tokens as CSV", lambda: table, f"typical-tokens-{entry}")


def neighbours(recording: Recording, entry: int, layer: int | None) -> None:
    """Entries selected together with it."""
    info = recording.info
    table = state.answer(Recording.neighbours_of, [entry])
    table = table if layer is None else table[table["layer"] == layer]
    if table.empty:
        st.caption(f"No {info.word()} is selected together with it more often than at chance level.")
        return
    table = table.sort_values("npmi", ascending=False).head(20)
    tables.entry_table(
        table,
        [{"entry": other} for other in table["other"].tolist()],
        key="neighbours",
        height="content",
        column_order=["other", "layer", "together", "npmi", "title", "sentence"],
        column_config={"other": st.column_config.NumberColumn("entry", format="%d", width=70)}
        | tables.entry_columns(info)
        | {
            "layer": st.column_config.NumberColumn(width=50),
            "together": st.column_config.NumberColumn("together", format="localized", width=75),
            "npmi": st.column_config.NumberColumn("NPMI", format="%.2f"),
            "title": st.column_config.TextColumn("fires on", width=180),
            "sentence": st.column_config.TextColumn(start_names(info), width=190),
        },
        alt=reworded(info, "Entries that are selected together with this one"),
    )
    said = (
        "NPMI is 1 for entries that are only selected together and 0 at chance level. Select a row to open its entry."
    )
    st.caption(reworded(info, said))


def map_position(recording: Recording, entry: int) -> None:
    """Its position on the map."""
    places = state.map_places()
    st.markdown("**Position on the map**")
    if places is None:
        st.caption("No map yet. Make one:")
        outside.code(command_line("memscope", "map", recording.info.run, recording.path), language="bash")
        return

    def coordinates() -> tuple[np.ndarray, np.ndarray, int]:
        full = places.set_index("entry").reindex(range(recording.info.knowledge_num))
        return full["x"].to_numpy(np.float64), full["y"].to_numpy(np.float64), entry

    if entry not in places["entry"].to_numpy():
        st.caption(f"The map leaves this {recording.info.word()} out.")
        return
    if not recording.map_info["trusted"]:
        st.caption("This map is not trusted; its page says why.")
    state.show_figure(
        figures.place_on_map, coordinates, entry, alt=f"Where this {recording.info.word()} lies among all"
    )
    if st.button("Show on the map", icon=":material/scatter_plot:"):
        address.go("map", entry=entry)


def _times(ratio: float) -> str:
    """How many times as much, with two digits where it is less than one."""
    return f"{ratio:,.1f}" if ratio >= 1 else f"{ratio:.2g}"


def _as_used(kind: str) -> str | None:
    """A note on scores of a kind, for readers who know others."""
    return " The weight is as the model uses it." if kind == "experts" else None


def _metric(label: str, value: str, note: str, help_: str | None = None) -> None:
    st.metric(label, value, note, delta_color="off", delta_arrow="off", border=True, help=help_)


def _tokens(table: pd.DataFrame, kind: str) -> list[list[str]]:
    return [
        [f"{visible(token)} ×{lift:,.0f}" for token, lift in zip(tokens, lifts, strict=True)]
        for tokens, lifts in zip(table[f"{kind}_tokens"], table[f"{kind}_lift"], strict=True)
    ]
