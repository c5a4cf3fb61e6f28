"""What tokens selected, against the rows of the trace."""

from pathlib import Path

import numpy as np
import pytest
import torch

from memscope.query.fired import (
    fired_entries,
    predicted_token,
    recorded_slots,
    selected_entries,
    shared_by_layer,
    shared_selections,
)
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.record.trace import trace_text
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun


def test_a_token_shows_what_it_selected_in_every_layer(tiny_recording: Recording) -> None:
    trace = tiny_recording.trace(1, 5, 1)
    layers = fired_entries(tiny_recording, trace, 5)
    assert [part.layer for part in layers] == list(tiny_recording.info.layers)
    for part in layers:
        fired = trace.selections[trace.selections["layer"] == part.layer]
        assert [entry.entry for entry in part.entries] == fired["entry"].tolist()
        shares = [entry.read_share for entry in part.entries]
        assert shares == sorted(shares, reverse=True) and shares[0] == pytest.approx(1)
        assert max(entry.gate_share for entry in part.entries) == pytest.approx(1)
        assert 1 <= part.effective <= len(part.entries) + 1e-9
        sentences = tiny_recording.sentences(fired["entry"])
        assert [entry.words.text for entry in part.entries] == [sentences[e] for e in fired["entry"]]
        assert all(entry.slots is None for entry in part.entries)


def test_slots_show_which_words_were_read(slot_run: LoadedRun, corpus_dir: Path, tmp_path: Path) -> None:
    record(
        OwnRun(slot_run),
        corpus_dir / "valid.jsonl",
        tmp_path / "slots",
        RecordOptions(max_tokens=120, slot_weights=True),
    )
    recording = Recording(tmp_path / "slots")
    traced = trace_text(OwnRun(slot_run), "Ada Holm was born in Aston .")
    slots = {layer: weights[3] for layer, weights in traced.slots.items()}
    layers = fired_entries(recording, traced.trace, 3, slots)
    shown = [entry for part in layers for entry in part.entries if entry.slots is not None]
    assert shown
    for entry in shown:
        assert entry.slots is not None and len(entry.slots) == min(len(entry.words.sentence), 32)
        # the sentence fills the slots of these entries, and a softmax read is positive: slots add up to the entry
        if len(entry.words.sentence) >= 32:
            assert entry.slots.sum() == pytest.approx(entry.read, rel=2e-2)
        assert entry.slots.sum() <= entry.read * 1.02


def test_recorded_slots_are_those_of_the_token(slot_run: LoadedRun, corpus_dir: Path, tmp_path: Path) -> None:
    record(
        OwnRun(slot_run),
        corpus_dir / "valid.jsonl",
        tmp_path / "slots",
        RecordOptions(max_tokens=120, slot_weights=True),
    )
    recording = Recording(tmp_path / "slots")
    slots = recorded_slots(recording, 0, 9)
    assert slots is not None and list(slots) == [0, 1]
    assert all(weights.shape == (recording.info.selected, 32) for weights in slots.values())
    fired = recording.trace(0, 9, 1).selections.sort_values(["layer", "k"])
    together = np.stack([np.abs(slots[layer]).sum(-1) for layer in (0, 1)])
    np.testing.assert_allclose(together.ravel(), fired["read"].abs(), rtol=2e-2, atol=1e-3)


def test_slots_that_were_not_recorded_are_not_shown(tiny_recording: Recording) -> None:
    assert recorded_slots(tiny_recording, 0, 9) is None


def test_the_predicted_token_is_the_models(tiny_recording: Recording, tiny_run: LoadedRun) -> None:
    ids = tiny_recording.trace(2, 0, 32).tokens["token"].to_numpy(np.int64)
    with torch.no_grad():
        likely = tiny_run.model(torch.tensor(ids)[None])[0].argmax(-1).tolist()
    texts = tiny_recording.tokenizer.token_texts
    assert [predicted_token(tiny_recording, 2, pos) for pos in range(32)] == [texts[token] for token in likely]


def test_two_tokens_share_what_both_select(tiny_recording: Recording) -> None:
    trace, layers = tiny_recording.trace(1, 0, 32), tiny_recording.info.layers
    same = shared_selections(trace, trace, 4, 4)
    assert (same["gate_a"] == same["gate_b"]).all()
    assert shared_by_layer(same, layers).tolist() == [tiny_recording.info.selected] * len(layers)
    both = shared_selections(trace, trace, 4, 9)
    rows = {
        pos: set(zip(part["layer"], part["entry"], strict=True))
        for pos, part in trace.selections[trace.selections["pos"].isin([4, 9])].groupby("pos")
    }
    named = set(zip(both["layer"], both["entry"], strict=True))
    assert named == rows[4] | rows[9]
    shared = both.dropna(subset=["gate_a", "gate_b"])
    assert set(zip(shared["layer"], shared["entry"], strict=True)) == rows[4] & rows[9]
    for _, part in both.groupby("layer"):  # shared ones first
        alone = part["gate_a"].isna() | part["gate_b"].isna()
        assert alone.is_monotonic_increasing


def test_entries_that_a_text_selects_are_summed_over_its_tokens(tiny_recording: Recording) -> None:
    trace = tiny_recording.trace(1, 0, 32)
    table = selected_entries(tiny_recording, trace).set_index("entry")
    rows = trace.selections[trace.selections["pos"] > 0]  # the first token is bos
    assert set(table.index) == set(rows["entry"])
    for entry, one in table.iterrows():
        here = rows[rows["entry"] == entry]
        assert one["tokens"] == here["pos"].nunique()
        assert one["layers"] == ", ".join(map(str, sorted(here["layer"].unique())))
        assert one["read"] == pytest.approx(here["read"].abs().sum(), rel=1e-5)
    assert table["read"].is_monotonic_decreasing
    alone = selected_entries(tiny_recording, trace, [1])
    assert set(alone["entry"]) == set(rows.loc[rows["layer"] == 1, "entry"])
