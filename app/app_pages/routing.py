"""Load, domains, vocabulary, pairs, paths and the atlas of layers with few enough entries, and saturation."""

import streamlit as st

from app import address, outside, state
from app.address import choice
from app.parts.tables import ROW_HEIGHT
from memscope.base.words import first_upper, visible
from memscope.report.plots import routing as plots
from memscope.report.routing import all_vocabulary
from memscope.report.words import bias_name
from memscope.routing.atlas import atlas
from memscope.routing.domains import domain_divergence, domain_lift
from memscope.routing.load import load_matrix, load_table
from memscope.routing.pairs import coactivation
from memscope.routing.paths import frequent_paths, transitions
from memscope.routing.rows import MOST_ENTRIES, routed_layers
from memscope.routing.saturation import saturation

PARTS = ("load", "atlas", "domains", "tokens", "pairs", "paths", "saturation")
ATLAS = ("number", "load", "fires_on", "input", "next", "promotes", "group", "group_lift")
WITH_LAYER = ("atlas", "domains", "pairs", "paths")
_NUMBER, _TEXT = st.column_config.NumberColumn, st.column_config.TextColumn


def joined(tokens: list[str]) -> str:
    """Tokens in one text."""
    return "  ".join(map(visible, tokens))


recording = state.recording()
info = recording.info
layers = routed_layers(recording)

st.title("Routing")
if not layers:
    st.info(
        f"Every layer of this recording selects among more than {MOST_ENTRIES:,} {info.word(2)}, too many for tables "
        f"of all of them. The pages {first_upper(bias_name(info))} and {first_upper(info.word(2))} show what is known "
        "of each."
    )
    st.stop()
view = address.View("routing")
part = view.field("part", choice(PARTS, name="part"))
layer = view.field("layer", choice(layers, name="layer"))
view.write()
st.segmented_control(
    "Part", PARTS, required=True, format_func=str.capitalize, label_visibility="collapsed", **view.widget("part")
)
if part in WITH_LAYER:
    st.segmented_control("Layer", list(layers), required=True, **view.widget("layer"))
word, words = info.site(layer).word(), info.site(layer).word(2)
d = f"D = {recording.total_selections(layer):,} selections in layer {layer}."

if part == "load":
    state.show_figure(
        plots.load_heatmap,
        lambda: (state.answer(load_matrix), layers, info.word()),
        alt="Load of every entry over the even share, layer by layer",
    )
    st.caption(f"Selections of every {info.word()} over the even share of its layer: 1 is even, 2 twice as many.")
    outside.table(
        state.answer(load_table),
        hide_index=True,
        height="content",
        column_config={
            "entries": _NUMBER(info.word(2), format="localized"),
            "selections": _NUMBER(format="localized"),
            "max_violation": _NUMBER("MaxVio", format="%.3f", help="(largest load - mean load) / mean load."),
            "max_violation_se": _NUMBER("± SE", format="%.3f", help="Standard error over documents."),
            "even_max_violation": _NUMBER("even", format="%.3f", help="Mean MaxVio of even selection at the same D."),
            "least": _NUMBER("least load", format="%.2f", help="Smallest load over the even share."),
            "entropy": _NUMBER(format="%.3f", help="Entropy of the shares, nats."),
            "effective_entries": _NUMBER("effective", format="%.1f", help="exp(entropy of the shares)."),
            "never": _NUMBER("never selected", format="%d"),
        },
        alt="Load per layer",
    )
    state.download("Load as CSV", lambda: load_table(recording), "load")

if part == "atlas":
    table = state.answer(atlas, layer)

    def open_row() -> None:
        if rows := st.session_state["_atlas"].selection.rows:
            address.go("entries", entry=int(table["entry"].iloc[rows[0]]), layer=layer)

    # A cell of text wraps, and one of a list is cut.
    tokens = {name: table[name].map(joined, na_action="ignore") for name in ("input", "next", "promotes")}
    outside.table(
        table.assign(**tokens),
        hide_index=True,
        height="content" if len(table) <= 10 else 700,
        row_height=ROW_HEIGHT,
        key="_atlas",
        on_select=open_row,
        selection_mode="single-row",
        column_order=[name for name in ATLAS if table[name].notna().any()],
        column_config={
            "number": _NUMBER(word, format="%d", width=60),
            "load": _NUMBER("x even", format="%.2f", width=65),
            "fires_on": _TEXT("fires on", width=230),
            "input": _TEXT("typical tokens", width=150),
            "next": _TEXT("next tokens", width=150),
            "promotes": _TEXT(width=150, help="Tokens that its output points to: mean output on a sample, logit lens."),
            "group": _TEXT("domain", help="Group of largest significant lift."),
            "group_lift": _NUMBER("lift", format="%.2f", width=60),
        },
        alt=f"All {words} of layer {layer}",
    )
    st.caption(f"All {words} of layer {layer}, most loaded first. Select a row to open it. {d}")
    state.download("Atlas as CSV", lambda: table, f"atlas-layer-{layer}")

if part == "domains":
    lifts = state.answer(domain_lift, layer)
    if lifts.empty:
        st.info('The corpus has no groups of documents. A corpus names the domain of a document as "group".')
        st.stop()
    state.show_figure(plots.lift_heatmap, lambda: (lifts, word), layer, alt="Lift of every entry in every group")
    st.caption(
        f"Share of a group's selections that go to a {word}, over its share in the other documents. Dots: q ≤ 5% over "
        f"all groups and {words} of the layer. {int((lifts['q'] <= 0.05).sum()):,} discoveries; "
        f"{int((lifts['control_q'] <= 0.05).sum()):,} where documents are dealt to groups at random. {d}"
    )
    outside.table(
        state.answer(domain_divergence, layer),
        hide_index=True,
        height="content",
        column_config={
            "divergence": _NUMBER(format="%.4f", help="Jensen-Shannon divergence from the other documents, nats."),
            "chance": _NUMBER(format="%.4f", help="Mean of the same with documents dealt at random."),
            "chance_high": _NUMBER("95%", format="%.4f", help="95% quantile of the same."),
            "p": _NUMBER(format="%.3f"),
        },
        alt="How far groups are from other text",
    )
    shown = lifts.sort_values(["q", "p"], kind="stable")
    outside.table(
        shown,
        hide_index=True,
        height=360,
        column_order=["group", "entry", "lift", "low", "high", "share", "elsewhere", "selections", "q"],
        column_config={
            "entry": _NUMBER(word, format="%d"),
            "lift": _NUMBER(format="%.2f"),
            "low": _NUMBER("95% from", format="%.2f"),
            "high": _NUMBER("to", format="%.2f"),
            "share": _NUMBER(format="percent"),
            "elsewhere": _NUMBER(format="percent"),
            "selections": _NUMBER(format="localized"),
            "q": _NUMBER(format="%.2g"),
        },
        alt="Lifts with intervals",
    )
    state.download("Lifts as CSV", lambda: lifts, f"domains-layer-{layer}")

if part == "tokens":
    table = state.answer(all_vocabulary)
    own = table[table["kind"] == "input"]
    left, right = st.columns([3, 2], gap="large", vertical_alignment="center")
    with left:
        state.show_figure(
            plots.shares_by_layer,
            lambda: (own, "share", "load", "foretold by the input token", "by load alone"),
            alt="Share of selections that the input token foretells, per layer",
        )
    right.caption(
        "Share of a layer's selections among the K that the token selects most often in other documents. Load alone: "
        "the K of most load, whatever the token. Bars are 95% intervals over documents."
    )
    outside.table(
        table,
        hide_index=True,
        height="content",
        column_order=["layer", "kind", "share", "low", "high", "load", "shuffled", "explained", "rows"],
        column_config={
            "kind": _TEXT("token"),
            **{name: _NUMBER(format="percent") for name in ("share", "low", "high", "load", "shuffled", "explained")},
            "rows": _NUMBER("tokens", format="localized"),
        },
        alt="What tokens foretell of the routing",
    )
    state.download("Tokens as CSV", lambda: table, "routing-by-token")

if part == "pairs":
    found = state.answer(coactivation, layer)
    left, right = st.columns(2, gap="medium")
    with left:
        state.show_figure(plots.pair_heatmap, lambda: (found.lift, word), layer, alt="Lift of pairs of a layer")
        st.caption(f"Tokens that select both {words}, over what their loads alone would give. {d}")
    with right:
        outside.table(
            found.pairs,
            hide_index=True,
            height=420,
            column_config={
                "entry": _NUMBER(word, format="%d"),
                "other": _NUMBER("with", format="%d"),
                "together": _NUMBER(format="localized"),
                "expected": _NUMBER(format="%.0f"),
                "lift": _NUMBER(format="%.2f"),
                "low": _NUMBER("95% from", format="%.2f"),
                "high": _NUMBER("to", format="%.2f"),
                "p": None,
                "q": _NUMBER(format="%.2g"),
            },
            alt="Pairs with the strongest evidence",
        )
        st.caption("Pairs with the strongest evidence first; q is over all pairs of the layer.")
    state.download("Pairs as CSV", lambda: found.pairs, f"pairs-layer-{layer}")

if part == "paths":
    if len(layers) > 1:
        position = min(layers.index(layer), len(layers) - 2)
        here, there = layers[position], layers[position + 1]
        moves = state.answer(transitions, here, there)
        left, right = st.columns(2, gap="medium")
        with left:
            state.show_figure(
                plots.transition_heatmap,
                lambda: (moves.lift, (here, there), word),
                layer,
                alt="First choices of two layers",
            )
        right.metric("Information of the two first choices", f"{moves.information:.3f} nats")
        right.caption(
            f"± {moves.information_se:.3f} over documents. Tokens shuffled within their token id share "
            f"{moves.by_token:.3f} nats: that much the id explains. Tokens shuffled among all share "
            f"{moves.shuffled:.3f}: that much is chance."
        )
    ways = state.answer(frequent_paths)
    outside.table(
        ways.assign(path=[" → ".join(map(str, path)) for path in ways["path"]]),
        hide_index=True,
        height="content",
        column_config={
            "path": _TEXT("first choices, layer by layer"),
            "tokens": _NUMBER(format="localized"),
            "share": _NUMBER(format="percent"),
            "independent": _NUMBER("independent layers", format="%.2e"),
            "lift": _NUMBER(format="%.1f"),
        },
        alt="Frequent paths",
    )
    st.caption(f"The ways of first choices through {len(layers)} layers that most tokens take.")

if part == "saturation":
    names = [name for name in state.usable_first() if state.recording(name).path != recording.path]
    if not names:
        st.info("Saturation compares two checkpoints on the same text. Record another one into the same folder.")
        st.stop()
    other = st.selectbox("Compare with", names)
    table = state.answer_two(saturation, other)
    left, right = st.columns([3, 2], gap="large", vertical_alignment="center")
    with left:
        state.show_figure(
            plots.shares_by_layer,
            lambda: (table, "overlap", "by_load", "selections in common", "by load alone"),
            of=other,
            alt="Share of selections that two checkpoints have in common, per layer",
        )
    right.caption(
        "Share of a token's selections that it makes in both recordings, with 95% intervals over documents. By load "
        "alone: the same for shuffled tokens."
    )
    outside.table(
        table,
        hide_index=True,
        height="content",
        column_config={name: _NUMBER(format="percent") for name in table.columns if name != "layer"},
        alt="Saturation per layer",
    )
