"""A text, token by token: which entries fire, and how strongly."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from memscope.base.errors import InputError
from memscope.model.transformer import next_token_loss
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.record.trace import describe_trace, text_ids, trace_ids, trace_text
from memscope.record.traced import TextTrace
from memscope.run.adapters.load import open_subject
from memscope.run.adapters.own import OwnRun, capture_memory
from memscope.run.checkpoint import LoadedRun
from tests.conftest import make_sentences, tiny_config, untrained_run

TEXT = "Ada Holm was born in Aston ."


@pytest.fixture(scope="module")
def biased_run(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """An untrained run that selects by more than scores, and reads with signs."""
    memory = {"balance_bias": 0.1, "score_fn": "relu", "read_fn": "gelu"}
    return untrained_run(tiny_config(corpus_dir, memory=memory), tmp_path_factory.mktemp("runs") / "biased")


@pytest.fixture(params=["tiny_run", "slot_run", "biased_run"])
def run(request: pytest.FixtureRequest) -> LoadedRun:
    return request.getfixturevalue(request.param)


@pytest.fixture
def traced(run: LoadedRun) -> TextTrace:
    return trace_text(OwnRun(run), TEXT)


def test_tokens_are_bos_and_the_text(run: LoadedRun, traced: TextTrace) -> None:
    tokens = traced.trace.tokens
    assert tokens["token"].tolist() == [run.tokenizer.bos, *run.tokenizer.encode(TEXT)]
    assert "".join(tokens["text"][1:]) == TEXT
    assert tokens["pos"].tolist() == list(range(len(tokens)))


def test_selections_losses_and_predictions_are_those_of_the_model(run: LoadedRun, traced: TextTrace) -> None:
    ids = torch.tensor([[run.tokenizer.bos, *run.tokenizer.encode(TEXT)]])
    with capture_memory(run.model) as captured:
        logits = run.model(ids)
    losses = next_token_loss(logits[:, :-1], ids[:, 1:])[0]
    np.testing.assert_allclose(traced.trace.tokens["loss"][:-1], losses, rtol=1e-5)
    assert np.isnan(traced.trace.tokens["loss"].iloc[-1])
    assert traced.predictions["text"][::5].tolist() == [
        run.tokenizer.token_texts[token] for token in logits[0].argmax(-1)
    ]
    several = run.config.memory.knowledge_length > 1
    assert list(traced.slots) == ([0, 1] if several else [])
    for layer, slots in traced.slots.items():
        np.testing.assert_allclose(slots, captured[layer].slot_weights[0], rtol=1e-5)
    for row in traced.trace.selections.itertuples():
        capture = captured[row.layer]
        assert row.entry == capture.indices[0, row.pos, row.k]
        assert row.gate == pytest.approx(float(capture.gate_scores[0, row.pos, row.k]), abs=1e-3)
        assert row.read == pytest.approx(float(capture.read_weights[0, row.pos, row.k]), abs=1e-3)


def test_description_is_json_with_a_token_per_row(run: LoadedRun, traced: TextTrace) -> None:
    described = describe_trace(OwnRun(run), traced)
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert [token["text"] for token in described] == traced.trace.tokens["text"].tolist()
    assert described[-1]["loss"] is None
    for token in described:
        assert len(token["next"]) == 5
        probabilities = [candidate["probability"] for candidate in token["next"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert [layer["layer"] for layer in token["layers"]] == [0, 1]
        for layer in token["layers"]:
            assert len(layer["entries"]) == run.config.memory.selected
            weights = [abs(fired["read"]) for fired in layer["entries"]]
            assert weights == sorted(weights, reverse=True)  # most read first


def test_slots_add_up_to_the_read_weight_of_their_selection(slot_run: LoadedRun) -> None:
    # Two gate heads with equal keys and queries select every entry twice; only the gate scores tell them apart.
    gate = slot_run.model.blocks[0].memory.gate
    before = [parameter.detach().clone() for parameter in (gate.keys, gate.proj.weight)]
    with torch.no_grad():
        gate.keys[1] = gate.keys[0]
        first, second = gate.proj.weight.unflatten(0, (2, -1))
        second.copy_(first * 20)  # the same order of entries, sharper scores
    described = describe_trace(OwnRun(slot_run), trace_text(OwnRun(slot_run), TEXT))
    with torch.no_grad():
        for parameter, value in zip((gate.keys, gate.proj.weight), before, strict=True):
            parameter.copy_(value)
    for token in described:
        fired = token["layers"][0]["entries"]
        assert len({entry["entry"] for entry in fired}) == 4  # of eight selections
        for entry in fired:
            assert len(entry["slots"]) == 32
            assert sum(entry["slots"]) == pytest.approx(entry["read"], abs=1e-3)


def test_pooled_entries_have_no_slots_and_every_entry_names_its_sentence(tiny_run: LoadedRun) -> None:
    described = describe_trace(OwnRun(tiny_run), trace_text(OwnRun(tiny_run), TEXT))
    sentences = {f["entry"]: f["sentence"] for t in described for layer in t["layers"] for f in layer["entries"]}
    fired = described[0]["layers"][0]["entries"][0]
    assert set(fired) == {"entry", "label", "gate", "read", "sentence"}
    assert fired["label"] == f"entry {fired['entry']}"
    assert all(isinstance(text, str) for entry, text in sentences.items() if entry < 53)
    assert all(text is None for entry, text in sentences.items() if entry >= 53)


def test_a_live_trace_equals_the_recording_of_the_same_text(tiny_run: LoadedRun, tmp_path: Path) -> None:
    text = " ".join(make_sentences(2, seed=9))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": text}) + "\n")
    record(OwnRun(tiny_run), corpus, tmp_path / "recording", RecordOptions(score_bits=10))
    recorded, live = Recording(tmp_path / "recording").trace(0), trace_text(OwnRun(tiny_run), text).trace
    n = len(live.tokens)
    assert n == len(recorded.tokens) - 1  # the recording has an end token too
    np.testing.assert_array_equal(live.tokens["token"], recorded.tokens["token"][:n])
    for column in ("pos", "layer", "entry"):
        np.testing.assert_array_equal(live.selections[column], recorded.selections[column][: n * 8])
    np.testing.assert_allclose(live.selections["read"], recorded.selections["read"][: n * 8], atol=1e-3)


def test_what_cannot_be_traced_is_refused(tiny_run: LoadedRun, ffn_run: LoadedRun) -> None:
    with pytest.raises(InputError, match="FFN baseline has no memory to record"):
        open_subject(ffn_run.path)
    with pytest.raises(InputError, match="the text is empty"):
        trace_text(OwnRun(tiny_run), "")
    with pytest.raises(InputError, match=r"the text has [\d,]+ tokens, more than 65,536; record it as a corpus"):
        trace_text(OwnRun(tiny_run), TEXT * 7000)


def test_a_long_text_is_read_in_windows_as_when_it_is_recorded(slot_run: LoadedRun) -> None:
    subject = OwnRun(slot_run)
    ids = text_ids(subject.tokenizer, TEXT * 20)
    traced, window = trace_ids(subject, ids), subject.window
    assert len(ids) > 2 * window and len(traced.trace.tokens) == len(ids) == len(traced.predictions) // 5
    second = trace_ids(subject, ids[window : 2 * window])
    here = traced.trace.selections["pos"].between(window, 2 * window - 1)
    np.testing.assert_array_equal(traced.trace.selections.loc[here, "entry"], second.trace.selections["entry"])
    np.testing.assert_allclose(traced.slots[1][window : 2 * window], second.slots[1], atol=1e-6)
    assert traced.predictions["text"].tolist()[5 * window : 10 * window] == second.predictions["text"].tolist()
    assert np.isnan(traced.trace.tokens["loss"]).tolist() == [False] * (len(ids) - 1) + [True]


def test_a_character_of_several_tokens_is_one_character(tiny_run: LoadedRun) -> None:
    text = "Ada 漢 was"
    traced = trace_text(OwnRun(tiny_run), text)
    tokens = traced.trace.tokens[1:]
    assert "".join(tokens["text"]) == text
    parts = tokens[tokens["bytes"] != ""]
    assert parts["bytes"].tolist() == ["e6", "bc", "a2"]
    assert parts[["part", "parts", "whole"]].values.tolist() == [[n, 3, "漢"] for n in range(3)]
    assert traced.trace.tokens["control"].tolist() == [True] + [False] * len(tokens)
    described = [token for token in describe_trace(OwnRun(tiny_run), traced) if "bytes" in token]
    assert [(token["label"], token["text"]) for token in described] == [
        ("漢 1/3", "漢"),
        ("漢 2/3", ""),
        ("漢 3/3", ""),
    ]
