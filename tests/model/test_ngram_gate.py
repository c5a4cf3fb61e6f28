"""The gate that looks entries up by hashes of n-grams: against a loop, what it may depend on, and a run that has it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from memscope.bank_map.spaces import entry_keys
from memscope.base.errors import InputError
from memscope.causal.intervene import ablate
from memscope.config.memory import MemoryConfig
from memscope.model.ngram_gate import NgramGate
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.own import OwnRun, capture_memory
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.train.loop import train
from tests.conftest import tiny_config, untrained_run

ORDERS, HASHES, ENTRIES, FIRST = (2, 3), 4, 100, 7
PART = ENTRIES // (len(ORDERS) * HASHES)


@pytest.fixture
def gate() -> NgramGate:
    config = MemoryConfig(knowledge_num=ENTRIES, gate_heads=2, ngram_orders=ORDERS, num_selected=HASHES)
    return NgramGate(16, config, FIRST)


def look_up(gate: NgramGate, tokens: list[list[int]]) -> Tensor:
    gate.tokens = torch.tensor(tokens)
    query = gate.query(torch.zeros(*gate.tokens.shape, 16))
    return gate.select(query).indices.unflatten(-1, (len(ORDERS), HASHES))


def signed(value: int) -> int:
    """What 64 bits hold of a number."""
    return (value + 2**63) % 2**64 - 2**63


def test_it_equals_a_loop(gate: NgramGate) -> None:
    text = [5, 3, 3, 319, 5, 3]
    expected = []
    for pos in range(len(text)):
        for head, order in enumerate(ORDERS):
            for number in range(HASHES):
                state = 0
                for back in range(order):
                    token = text[pos - back] + 2 if back <= pos else 1
                    state = signed((state ^ token * int(gate.factors[head, number, back])) * 6364136223846793005)
                    state ^= state >> 29
                expected.append(FIRST + (head * HASHES + number) * PART + state % PART)
    assert look_up(gate, [text]).flatten().tolist() == expected


def test_an_entry_is_selected_wherever_its_ngram_stands(gate: NgramGate) -> None:
    found = look_up(gate, [[9, 4, 5, 6, 8, 5, 6], [1, 1, 5, 6, 4, 5, 6]])
    assert (found[:, [3, 6], 0] == found[0, 3, 0]).all()  # "5 6", whatever came before
    assert (found[0, 3, 1] == found[1, 6, 1]).all()  # "4 5 6"
    assert (found[0, 3, 1] != found[0, 6, 1]).any()  # "8 5 6"
    assert (found[0, 3, 0] != found[0, 2, 0]).any()
    own = FIRST + torch.arange(len(ORDERS) * HASHES).unflatten(0, (len(ORDERS), HASHES)) * PART
    assert ((found >= own) & (found < own + PART)).all()  # every hash has entries of its own


def test_many_ngrams_use_all_entries(gate: NgramGate) -> None:
    tokens = torch.randint(0, 300, (40, 50), generator=torch.Generator().manual_seed(0)).tolist()
    used = look_up(gate, tokens).unique()
    assert len(used) == PART * len(ORDERS) * HASHES


def test_scores_are_learned_and_start_near_one(gate: NgramGate) -> None:
    gate.tokens = torch.tensor([[1, 2, 3]])
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))
    selection = gate.select(gate.query(x), compare=True)
    torch.testing.assert_close(selection.scores, 2 * (x @ gate.proj.weight.T).sigmoid())
    assert selection.by_score is not None and selection.by_score.all() and selection.margin.isnan().all()
    selection.scores.sum().backward()
    assert gate.proj.weight.grad is not None and gate.proj.weight.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"memory": {"ngram_orders": [2, 3]}}, "2 orders for gate_heads=1"),
        ({"memory": {"ngram_orders": [2]}, "train": {"revive_after": 5}}, "revive_after is for gates that learn"),
        ({"memory": {"ngram_orders": [2, 3], "gate_heads": 2, "num_selected": 40}}, "80 hashes need as many entries"),
    ],
)
def test_what_does_not_fit_is_said(corpus_dir: Path, section: dict[str, dict[str, object]], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        tiny_config(corpus_dir, model={"block": ["ngram", "memory"]}, **section)


@pytest.mark.slow
def test_a_run_trains_is_recorded_and_changed(corpus_dir: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus_dir, model={"block": ["ngram", "memory"]}, memory={"ngram_orders": [2]})
    train(config, tmp_path / "run", device="cpu")
    run = load_run(tmp_path / "run")
    record(OwnRun(run), corpus_dir / "valid.jsonl", tmp_path / "recording", RecordOptions(max_tokens=512))
    recording = Recording(tmp_path / "recording")
    tokens = run.tokens("Ada Holm was born in Aston . Ada Holm works")
    with torch.no_grad(), capture_memory(run.model) as captured:
        before = run.model(tokens)
    entry = int(captured[0].indices[0, 5, 0])
    first = int((captured[0].indices[0] == entry).any(-1).nonzero()[0])  # other n-grams may fall on it before
    assert recording.contexts(entry, layer=0)["token"].notna().all()
    stands_for = recording.ngrams(entry, layer=0, order=2)
    assert (stands_for["fires"] == 1).all() and stands_for[
        "share"
    ].sum() > 0.9  # wherever its bigrams stand, for certain
    assert (recording.ngrams(entry, layer=0, order=1)["fires"] < 1).any()
    with torch.no_grad(), ablate(run.model, [entry], layers=[0]):
        after = run.model(tokens)
    torch.testing.assert_close(before[:, :first], after[:, :first])
    assert (before[:, first] - after[:, first]).abs().max() > 1e-4
    assert entry_keys(run, [0, 1]).shape == entry_keys(run, [1]).shape  # the first layer has none


def test_a_map_of_keys_needs_some(corpus_dir: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus_dir, model={"block": "ngram"}, memory={"ngram_orders": [2]})
    run: LoadedRun = untrained_run(config, tmp_path)
    with pytest.raises(InputError, match="no gate has keys; map another space"):
        entry_keys(run, [0, 1])
