"""What was recorded, how training went, and how evenly the bank is used."""

import streamlit as st

from app import columns, state
from memscope import plots
from memscope.findings import find

recording = state.recording()
info, run, census = recording.info, recording.run_summary, recording.census
per_layer = info.rows * info.selected

st.title("Overview")
with st.container(horizontal=True):
    st.metric("Recorded tokens", f"{info.rows:,}", border=True, height="stretch")
    st.metric("Selections (D)", f"{per_layer * len(info.layers):,}", border=True, height="stretch")
    st.metric("Bank entries (N)", f"{info.knowledge_num:,}", border=True, height="stretch")
    st.metric("Parameters", f"{run['parameters']:,}" if run else "unknown", border=True, height="stretch")
    if run:
        change = run["valid_loss"] - run["untrained_valid_loss"]
        st.metric(
            "Validation loss",
            f"{run['valid_loss']:.3f}",
            f"{change:+.3f} from untrained",
            delta_color="inverse",
            border=True,
            height="stretch",
            help="Nats per token, at the end of training.",
        )

st.subheader("What was recorded")
recorded = {
    "run": info.run_name,
    "corpus": info.corpus_name,
    "documents": f"{len(recording.documents):,}",
    "loss on this corpus": f"{census['loss']:.3f} nats per token",
    "memory layers": ", ".join(str(layer) for layer in info.layers),
    "selected entries": f"{info.selected} per token and layer, {info.knowledge_length} slot(s) each",
}
trained = {"model file": f"SHA-256 {info.fingerprint[:16]} ...", "precision": info.dtype}
if run:
    trained |= {
        "training": f"{run['steps']:,} steps, {run['tokens']:,} tokens, {run['seconds']:,.0f} s on {run['device']}",
        "speed": f"{run['tokens_per_second']:,.0f} tokens/s in training",
        "loss, untrained": f"{run['untrained_valid_loss']:.3f} nats per token on validation",
        "loss, trained": f"{run['valid_loss']:.3f} nats per token, {run['valid_bits_per_byte']:.3f} bits per byte",
    }
for column, facts in zip(st.columns(2), (recorded, trained), strict=True):
    column.dataframe(
        {"what": list(facts), "value": list(facts.values())},
        hide_index=True,
        column_config={"what": st.column_config.TextColumn(width="small")},
        alt="Facts about this recording and its model",
    )

st.subheader("Is the memory healthy?")
for finding in find(recording):
    with st.container(border=True, gap="xsmall"):
        st.markdown(f"**{finding.question}**")
        st.text(finding.answer)

st.subheader("Usage per layer")
st.dataframe(
    recording.layer_metrics(),
    hide_index=True,
    column_order=columns.METRIC_COLUMNS,
    column_config=columns.METRICS,
    alt="Evenness of selection per layer, beside what even selection gives",
)
st.caption(
    f"Each layer made {per_layer:,} selections. The columns named even say what choosing every entry with equal chance "
    "gives after as many; the further a layer is from them, the more its gate is biased."
)

st.subheader("Training")
curve = recording.training_curve()
if curve.empty:
    st.caption("The run kept no training log.")
else:
    state.show_figure(plots.training_curve, curve, alt="Loss and entries used over training steps")
    st.caption(
        "Left: loss on training batches and on validation documents. Right: how many entries the validation tokens "
        "selected at least once; a line that falls means that the gate forgets entries."
    )
