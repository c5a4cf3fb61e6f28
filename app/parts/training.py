"""A run that trains: how far it is, its losses, its usage per layer and its samples, followed while it goes on."""

from pathlib import Path

import streamlit as st

from app import outside, state
from app.parts import tables
from memscope.base.errors import InputError
from memscope.base.words import command_line
from memscope.config.load import load_config
from memscope.query.catalog import RunProgress, run_progress, runs_without_recording, usage_now
from memscope.report.plots import usage as plots

EVERY = 5
"""Seconds between two looks at a run that is under way."""


def runs() -> list[Path]:
    """Runs in the app's folder, or in ``runs`` beside it, that were not recorded."""
    return runs_without_recording(state.root(), state.find_recordings(state.root()))


def follow(paths: list[Path]) -> None:
    """Let the reader choose a run, and show how far it is; a run under way is looked at again by itself."""
    names = {path.name: path for path in paths}
    chosen = names[st.selectbox("Run", list(names), key="_run")] if len(names) > 1 else paths[0]
    try:
        running = run_progress(chosen).running
    except InputError as error:
        outside.code(str(error), language=None, wrap_lines=True)
        return
    st.fragment(_follow, run_every=EVERY if running else None)(chosen)


def _follow(path: Path) -> None:
    progress = run_progress(path)
    _how_far(progress)
    if progress.curve.empty:
        st.caption("Nothing is logged yet.")
        return
    by = (str(path), len(progress.curve))
    state.show_run_figure(
        plots.training_curve, lambda: (progress.curve,), *by, alt="Loss and entries used over training steps"
    )
    usage = usage_now(progress)
    if len(usage):
        st.markdown("**Usage per layer at the newest validation**")
        outside.table(
            usage,
            hide_index=True,
            height="content",
            column_config=tables.METRICS,
            alt="Evenness of usage per layer at the newest validation",
        )
    if len(progress.samples):
        st.markdown("**What it writes**")
        for sample in progress.samples.head(3).to_dict("records"):
            outside.text(f"step {sample['step']:,}: {sample['prompt']} → {sample['text']}")
    st.caption("Record the run when it is finished, and all pages open:")
    command = command_line("memscope", "record", path, "--corpus", _corpus(path), "--out", state.root() / path.name)
    outside.code(command, language="bash")


def _corpus(path: Path) -> str:
    """The text that the run was validated on."""
    try:
        return load_config(path / "config.yaml").data.valid_path or "FILE"
    except InputError:
        return "FILE"


def _how_far(progress: RunProgress) -> None:
    """Step, speed and time left."""
    done = f"step {progress.step:,}"
    if progress.steps:
        state_word = "is training" if progress.running else "is finished" if _is_done(progress) else "has stopped"
        st.progress(
            min(1.0, progress.step / progress.steps), f"{progress.path.name} {state_word}: {done} of {progress.steps:,}"
        )
    else:
        st.caption(f"{progress.path.name}: {done}")
    losses = progress.curve[["kind", "step", "loss"]].dropna() if len(progress.curve) else progress.curve
    with st.container(horizontal=True):
        for kind, name in (("train", "Training loss"), ("eval", "Validation loss")):
            rows = losses[losses["kind"] == kind] if len(losses) else losses
            if len(rows):
                st.metric(
                    name,
                    f"{rows['loss'].iloc[-1]:.3f} nats",
                    f"at step {rows['step'].iloc[-1]:,}",
                    delta_color="off",
                    delta_arrow="off",
                    border=True,
                )
        if progress.tokens_per_second:
            st.metric("Speed", f"{progress.tokens_per_second:,.0f} tokens/s", border=True)
        if progress.running and progress.left_seconds is not None:
            st.metric("Time left", _time(progress.left_seconds), border=True, help="Without validations and saving.")


def _is_done(progress: RunProgress) -> bool:
    return progress.step == progress.steps and (progress.path / "run.json").is_file()


def _time(seconds: float) -> str:
    """A duration in the units that a reader plans with."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"
