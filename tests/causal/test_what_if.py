"""A change in plain values does what the intervention does, on typed and on recorded text."""

from itertools import product

import numpy as np
import pytest
import torch

from memscope.base.errors import InputError
from memscope.causal.edit import encode_sentence
from memscope.causal.intervene import rewrite, scale
from memscope.causal.what_if import Change, changed_contexts, compare_text, open_change
from memscope.query.recording import Recording
from memscope.run.adapters.own import capture_memory
from memscope.run.checkpoint import LoadedRun

TEXT = "Ada Holm was born in Aston ."


def test_a_text_is_compared_token_by_token(tiny_run: LoadedRun) -> None:
    table = compare_text(tiny_run, TEXT, Change("scale", layers=(1,), amount=0.5))
    ids = [tiny_run.tokenizer.bos, *tiny_run.tokenizer.encode(TEXT)]
    with torch.no_grad():
        before = tiny_run.model(torch.tensor([ids]))[0].log_softmax(-1)
        with scale(tiny_run.model, 0.5, layers=[1]):
            after = tiny_run.model(torch.tensor([ids]))[0].log_softmax(-1)
    assert "".join(table["text"][1:]) == TEXT
    for row, target in enumerate(ids[1:]):
        assert table["loss_before"][row] == pytest.approx(-float(before[row, target]), abs=1e-5)
        assert table["loss_after"][row] == pytest.approx(-float(after[row, target]), abs=1e-5)
        assert table["p_after"][row] == pytest.approx(float(after[row].exp().max()), abs=1e-5)
        assert table["next_after"][row] == tiny_run.tokenizer.token_texts[int(after[row].argmax())]
    assert np.isnan(table["loss_after"].iloc[-1]) and not np.isnan(table["kl"]).any()


def test_a_rewrite_takes_its_slots_from_the_sentence(tiny_run: LoadedRun) -> None:
    tokens, sentence = torch.arange(12)[None], "Bo Lind works as a farmer in Calder ."
    with capture_memory(tiny_run.model) as captured:
        tiny_run.model(tokens)
    entry = int(captured[0].indices[0, -1, 0])
    with torch.no_grad():
        with rewrite(tiny_run.model, entry, encode_sentence(tiny_run, sentence)):
            expected = tiny_run.model(tokens)
        with open_change(tiny_run, Change("rewrite", (entry,), sentence=sentence)):
            assert torch.equal(tiny_run.model(tokens), expected)


def test_recorded_text_is_read_where_the_entry_is_selected(tiny_run: LoadedRun, tiny_recording: Recording) -> None:
    used = tiny_recording.usage_table().groupby("entry")["count"].sum()
    entry = int(used.idxmin())
    changed = changed_contexts(tiny_run, tiny_recording, Change("ablate", (entry,)), limit=3)
    recorded = tiny_recording.contexts(entry)
    assert changed.tokens < len(tiny_recording.token_ids)
    assert set(changed.contexts["doc"]) <= set(recorded["doc"])
    assert changed.contexts["kl"].iloc[0] > 0
    selected = {(int(row.entry), int(row.layer)) for row in tiny_recording.usage_table().itertuples()}
    never, layer = next(place for place in product(range(64), (0, 1)) if place not in selected)
    with pytest.raises(InputError, match="none of these entries was selected"):
        changed_contexts(tiny_run, tiny_recording, Change("ablate", (never,), (layer,)))
