"""Parts of the overview: what an entry is, the model card, gate metrics over training, all recordings."""

import re
from collections.abc import Sequence

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import address, outside, state
from app.components.contexts import context_view
from app.parts import figures
from app.parts.tables import score_name
from app.parts.texts import typed
from memscope.base.words import first_upper, span
from memscope.query.catalog import training_history
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import Site
from memscope.report.health import telling_entry
from memscope.report.plots.history import history_curves
from memscope.report.words import a_word, shared_by

_OVER_TIME = {
    "coverage": "share of entries used",
    "kl_to_uniform": "KL to uniform, nats",
    "gini": "Gini",
    "top50": "entries that hold half",
}


def number(label: str, value: str, help_: str | None = None) -> None:
    """Show a number in a frame."""
    st.metric(label, value, border=True, height="stretch", help=help_)


def text_box(info: RecordingInfo) -> None:
    """A box for a text, which the page Prompts has the model read; left empty, it is the example in grey."""
    with st.form("read", border=False):
        left, right = st.columns([6, 1], vertical_alignment="bottom")
        said = f"Type a text and see, token by token, the {info.word(2)} that it selects"
        text = left.text_input(said, key="read.text", placeholder=typed.EXAMPLE)
        sent = right.form_submit_button("Read it", type="primary")
    if sent:
        address.go("prompts", source="your text", text=text or typed.EXAMPLE)


def example(recording: Recording) -> None:
    """Explain an entry with a real one."""
    info = recording.info
    telling = state.answer(telling_entry)
    what = "a memory entry" if info.kind == "memory" else a_word(info)
    with st.expander(f"What is {what}? A real one in two minutes", icon=":material/school:", expanded=True):
        left, right = st.columns([2, 3], gap="large")
        _explain(left, info)
        if telling is None:
            right.caption(f"No {info.word()} was selected on this corpus, so there is none to show.")
            return
        entry, layer = telling
        sentence = recording.sentences([entry])[entry]
        with right:
            name = first_upper(info.label(entry))
            if "starts" in info.site(layer).has:
                st.markdown(f"**{name}**, for example, {'started as' if 'drift' in info.site(layer).has else 'reads'}")
                outside.text(sentence or "random numbers: this bank has no sentences")
            else:
                st.markdown(f"**{name}**, for example,")
            contexts = state.answer(Recording.contexts, entry, layer, 14, 6)
            contexts = contexts[contexts["kind"] == "top"].head(3)

            def open_token() -> None:
                context = contexts.iloc[int(st.session_state["example"].clicked)]
                address.go("prompts", doc=int(context["doc"]), token=int(context["pos"]), layer=int(context["layer"]))

            scored = "scores" in info.site(layer).has
            title = "and now fires most strongly on the marked tokens" if scored else "is selected at the marked tokens"
            if "drift" not in info.site(layer).has and scored:
                title = "fires most strongly on the marked tokens"
            context_view({title: contexts}, key="example", on_click=open_token, score=score_name(info))
            with st.container(horizontal=True):
                if st.button(f"Open this {info.word()}", icon=":material/database:"):
                    address.go("entries", entry=entry, layer=layer)
                if st.button("Read a text token by token", icon=":material/notes:"):
                    address.go("prompts", doc=0)


_MEMORY = (
    "Where other models have feed-forward layers, this one has a **memory bank**: {entries:,} **entries**, vectors "
    "that training changes. For every token the **gate** of each of {layers} layers scores entries and **selects** "
    "{selected}. An **attention** then **reads** them with different weights. The layer adds their sum to the "
    "prediction of the next token."
)
_SHOWN = (
    "Entries can start as sentences. These pages show whether they still mean these sentences, on which words they "
    "fire, and whether the attention reads them."
)
_SENTENCES = (
    "In {where} the entries are {entries:,} **sentences**. A gate finds {selected} of them for every token, first by "
    "the words that they share, and the attention reads their words."
)
_LAYERS = {
    "experts": "In each of {layers} layers a **router** sends every token to {selected} of {entries} **experts**, "
    "feed-forward networks of their own. The layer adds their outputs, multiplied by the **router weights**.",
    "product_keys": "In each of {layers} layers product keys find, for every token, the {selected} best of {entries} "
    "**entries**, whose values the layer adds.",
    "peer": "In each of {layers} layers product keys find, for every token, the {selected} best of {entries} "
    "**experts**, each a single hidden unit.",
    "neurons": "Of the {entries} **neurons** in each of {layers} feed-forward layers, the recording keeps the "
    "{selected} with the largest **activations** for every token.",
    "features": "In each of {layers} layers a sparse autoencoder writes every token as a sum of {selected} of "
    "{entries} **features**.",
    "text": "In each of {layers} layers a **gate** finds {selected} of {entries} **sentences** for every token, first "
    "by the words that they share. An **attention** reads their words.",
    "selection": "Each of {layers} layers selects {selected} of {entries} **entries** for every token.",
}


def _explain(place: DeltaGenerator, info: RecordingInfo) -> None:
    """What selects, and what these pages show of it."""
    sites = {site.kind: site for site in info.sites}
    if "memory" in sites and sites.keys() <= {"memory", "text"}:
        layers = [site for site in info.sites if site.kind == "memory"]
        place.markdown(_MEMORY.format(entries=sites["memory"].entries, layers=len(layers), selected=layers[0].selected))
        if "text" not in sites:
            place.markdown(_SHOWN)
            return
        text = [site.layer for site in info.sites if site.kind == "text"]
        where = f"{'layer' if len(text) == 1 else 'layers'} {', '.join(map(str, text))}"
        found = sites["text"]
        place.markdown(_SENTENCES.format(where=where, selected=found.selected, entries=found.entries))
        place.markdown("These pages show which entries and sentences fire, how evenly, and which words are read.")
        return
    selected = (
        _each(info, "selected") if not any(site.varies for site in info.sites) else f"up to {_each(info, 'selected')}"
    )
    place.markdown(
        _LAYERS[info.kind].format(layers=len(info.layers), selected=selected, entries=_each(info, "entries"))
    )
    place.markdown(f"These pages show which {info.word(2)} are selected, how evenly, and on which words each fires.")


def model_card(recording: Recording) -> None:
    """Show config, parameters, bank and corpus."""
    info, run = recording.info, recording.run_summary
    config = recording.config if "config.yaml" in recording.info.files else None
    memory = info.kind == "memory"
    recorded = {
        "run": info.run_name,
        "model file": f"SHA-256 {info.fingerprint[:16]} ...",
        "corpus": info.corpus_name,
        "corpus file": f"SHA-256 {info.corpus_sha256[:16]} ...",
        "documents": f"{len(recording.documents):,}",
        "tokens": f"{info.rows:,}, in windows of {info.window:,}",
        "memory layers" if memory else "layers": ", ".join(map(str, info.layers)),
        "selections": f"{_each(info, 'selected')} per token and layer"
        + (f", of {_each(info, 'gate_heads')} gate head(s)" if memory else ""),
        info.word(2): f"{info.knowledge_num:,}"
        + (f", of {_each(info, 'slots')} slot(s)" if memory else "")
        + f", {shared_by(info)}",
        **({} if memory else {"modules": _modules(info.sites)}),
        **({"always on": ", ".join(always)} if (always := [s.always for s in info.sites if s.always]) else {}),
        **({"read heads": _each(info, "read_heads")} if memory or max(s.read_heads for s in info.sites) > 1 else {}),
        "precision": info.dtype + (f"; scores keep {info.score_bits} bits of their mantissa" * info.has("scores")),
        "recording took": f"{info.seconds:,.0f} s",
    }
    if run:
        recorded |= {
            "training": f"{run['steps']:,} steps, {run['tokens']:,} tokens, {run['seconds']:,.0f} s on {run['device']}",
            "speed": f"{run['tokens_per_second']:,.0f} tokens/s in training",
            "validation loss": f"{run['untrained_valid_loss']:.3f} untrained, {run['valid_loss']:.3f} trained, nats",
            "bits per byte": f"{run['valid_bits_per_byte']:.3f} on validation",
        }
    left, right = st.columns(2, gap="medium")
    with left:
        st.subheader("Recording and run")
        _facts(recorded, "Facts about this recording and its model")
    if config is None:
        return
    with right:
        st.subheader("Config")
        flat = {f"{section}.{name}": value for section, values in config.items() for name, value in values.items()}
        _facts({name: _plain(value) for name, value in flat.items()}, "Config of the run", height=480)
        st.download_button(
            "Config as YAML",
            (recording.path / "config.yaml").read_bytes(),
            f"{info.run_name}.yaml",
            "application/yaml",
            icon=":material/download:",
            on_click="ignore",
        )


def _modules(sites: Sequence[Site]) -> str:
    """Modules, those that differ by the layer's number alone as one: ``blocks.*.memory, blocks.2.text``."""
    patterns: dict[str, list[str]] = {}
    for site in sites:
        patterns.setdefault(re.sub(rf"\b{site.layer}\b", "*", site.module, count=1), []).append(site.module)
    return ", ".join(pattern if len(modules) > 1 else modules[0] for pattern, modules in patterns.items())


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _each(info: RecordingInfo, name: str) -> str:
    """A number of every layer: one, or the least and the most."""
    return span([getattr(site, name) for site in info.sites], ",")


def gate_over_time(curve: pd.DataFrame) -> None:
    """Show evenness on validation over training."""
    if not any(name.startswith("layer_") for name in curve):
        return
    st.subheader("The gate over training")
    state.show_figure(
        figures.metrics_over_time, lambda: (curve, _OVER_TIME), alt="Coverage, KL, Gini and concentration over training"
    )
    rows = curve[curve["kind"] == "eval"].iloc[-1]
    d = rows.filter(like="/selections").max()
    st.caption(
        f"Usage on validation documents at each evaluation, D = {d:,.0f} selections a layer; fewer than in the "
        "recording, so coverage is lower here."
    )


def checkpoints(recording: Recording) -> None:
    """Show what changed between the checkpoints of the run, where they were recorded."""
    found = state.find_recordings(state.root())
    history = training_history(recording, found, state.root())
    if history is None:
        return
    st.subheader("From checkpoint to checkpoint")
    steps = history["step"].unique().tolist()
    state.show_figure(
        history_curves,
        lambda: (history, recording.info.word(2)),
        *steps,
        alt="Use, drift, and what woke and died from checkpoint to checkpoint",
    )
    st.caption(
        f"Checkpoints at steps {', '.join(f'{step:,}' for step in steps)}, each recorded on the same text, "
        f"D = {history['selections'].max():,} selections a layer. Woke: used now and not at the checkpoint before; "
        "died: the other way round. Compare sets two of them side by side."
    )


def _facts(facts: dict[str, str], alt: str, height: int | str = "content") -> None:
    outside.table(
        {"what": list(facts), "value": list(facts.values())},
        hide_index=True,
        height=height,
        column_config={"what": st.column_config.TextColumn(width=150)},
        alt=alt,
    )
