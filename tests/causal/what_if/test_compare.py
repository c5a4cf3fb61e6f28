"""A change in plain values does what the intervention does, on typed and on recorded text."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from memscope.base.errors import InputError
from memscope.causal import selections
from memscope.causal.edit import encode_sentence
from memscope.causal.intervene import rewrite, scale
from memscope.causal.what_if.change import Change
from memscope.causal.what_if.compare import changed_contexts, compare_text, open_change
from memscope.query.recording import Recording
from memscope.record.loop import record
from memscope.run.adapters.experts import HuggingFaceExperts
from memscope.run.adapters.neurons import run_neurons
from memscope.run.adapters.own import OwnRun, capture_memory
from memscope.run.checkpoint import LoadedRun
from memscope.run.subject import Subject
from tests.conftest import tiny_config, untrained_run
from tests.run.adapters.families import make_model, make_tokenizer

TEXT = "Ada Holm was born in Aston ."


def test_a_text_is_compared_token_by_token(tiny_run: LoadedRun) -> None:
    table = compare_text(OwnRun(tiny_run), TEXT, Change("scale", layers=(1,), amount=0.5))
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
        with open_change(OwnRun(tiny_run), Change("rewrite", (entry,), sentence=sentence)):
            assert torch.equal(tiny_run.model(tokens), expected)


def test_recorded_text_is_read_where_the_entry_is_selected(tiny_run: LoadedRun, tiny_recording: Recording) -> None:
    used = tiny_recording.usage_table().groupby("entry")["count"].sum()
    entry = int(used.idxmin())
    changed = changed_contexts(OwnRun(tiny_run), tiny_recording, Change("ablate", (entry,)), limit=3)
    recorded = tiny_recording.contexts(entry)
    assert changed.tokens < len(tiny_recording.token_ids)
    assert set(changed.contexts["doc"]) <= set(recorded["doc"])
    assert changed.contexts["kl"].iloc[0] > 0
    selected = {(int(row.entry), int(row.layer)) for row in tiny_recording.usage_table().itertuples()}
    never, layer = next(place for place in product(range(64), (0, 1)) if place not in selected)
    with pytest.raises(InputError, match="none of these entries was selected"):
        changed_contexts(OwnRun(tiny_run), tiny_recording, Change("ablate", (never,), (layer,)))


@pytest.fixture(scope="module")
def experts() -> HuggingFaceExperts:
    return HuggingFaceExperts(make_model("olmoe"), make_tokenizer())


@pytest.mark.parametrize(
    ("change", "block"),
    [
        (Change("ablate", (9,)), lambda subject: selections.ablate(subject, [9])),
        (Change("zero", (9, 10)), lambda subject: selections.ablate(subject, [9, 10], "zero")),
        (Change("force", (9,), amount=0.5), lambda subject: selections.force(subject, 9, 0.5)),
        (Change("swap", (9, 11)), lambda subject: selections.swap(subject, 9, 11)),
        (Change("scale", layers=(1,), amount=0.0), lambda subject: selections.scale(subject, 0.0, layers=[1])),
    ],
)
def test_a_text_is_compared_under_changes_of_experts(
    experts: HuggingFaceExperts, change: Change, block: Callable[[Subject], AbstractContextManager[None]]
) -> None:
    text = " ".join(f"w{3 + 7 * i % 300}" for i in range(40))
    table = compare_text(experts, text, change)
    ids = torch.tensor([experts.tokenizer.opening + experts.tokenizer.encode(text)])
    with torch.no_grad(), block(experts):
        after = experts.logits(ids)[0].float().log_softmax(-1)
    losses = -after[:-1].gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(table["loss_after"].to_numpy()[:-1]), losses, atol=1e-5, rtol=0)
    assert table["kl"].max() > 1e-7


def test_only_entries_of_a_run_are_rewritten(experts: HuggingFaceExperts) -> None:
    for count, message in ((1, "only entries of a run of memscope can be rewritten"), (2, "takes one expert, not 2")):
        with pytest.raises(InputError, match=message):
            compare_text(experts, "w5 w6", Change("rewrite", tuple(range(count)), sentence="w5"))


def test_recorded_text_is_read_with_other_neurons(corpus_dir: Path, tmp_path: Path) -> None:
    run = untrained_run(tiny_config(corpus_dir, model={"block": "ffn"}), tmp_path / "ffn")
    subject = run_neurons(run, 4)
    record(subject, corpus_dir / "valid.jsonl", tmp_path / "recording")
    recording = Recording(tmp_path / "recording")
    neuron = int(recording.usage_table().query("layer == 1")["entry"].iloc[0])
    changed = changed_contexts(subject, recording, Change("ablate", (neuron,)), limit=3)
    assert changed.contexts["kl"].iloc[0] > 0
    other = next(site.first_entry for site in subject.sites if site.layer == 0)
    with pytest.raises(InputError, match=r"no layer can select .*; choose neurons of one layer"):
        changed_contexts(subject, recording, Change("swap", (neuron, other)))
