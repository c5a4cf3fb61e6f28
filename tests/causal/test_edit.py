"""Edits: the entry that is found, the row that is fitted, and the measures against hand-made rows."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from memscope.base.errors import InputError
from memscope.causal import edit as edit_module
from memscope.causal.edit import edit_facts, fit_row, locate_entry, plan_edits, summarise, write_edits
from memscope.causal.intervene import ablate, rewrite
from memscope.run.checkpoint import LoadedRun
from memscope.text.fact_files import Fact, read_facts
from tests.causal.test_facts import write_facts
from tests.causal.test_intervene import FREE, TOKENS, make_model
from tests.conftest import CliResult

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def facts(tiny_run: LoadedRun, tmp_path_factory: pytest.TempPathFactory) -> list[Fact]:
    found = read_facts(write_facts(tiny_run.path, tmp_path_factory.mktemp("edit") / "facts.jsonl"))
    return [fact._replace(evidence=(f"It is said that {fact.subject} was born in [MASK] .",)) for fact in found]


def rows(values: list[tuple[int, str, float, float, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(values, columns=["edit", "kind", "true_before", "new_before", "true_after", "new_after"])


def test_the_entry_that_does_most_is_found() -> None:
    model = make_model(**FREE)
    question, token = TOKENS[:1], 7

    def logit() -> float:
        with torch.no_grad():
            return float(model(question)[0, -1, token])

    found, plain = locate_entry(model, question, token), logit()
    effects = {}
    for entry in range(64):
        with ablate(model, [entry]):
            effects[entry] = plain - logit()
    assert effects[found] > 0.7 * max(effects.values()) > 0


def test_an_entry_that_speaks_against_the_object_is_not_the_one_that_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    indices, effects = torch.tensor([[[4, 7, 9]]]), torch.tensor([[[0.5, -3.0, 0.4]]])
    found = {0: indices, 1: indices}, {0: effects, 1: torch.tensor([[[0.1, 0.2, 0.3]]])}
    monkeypatch.setattr(edit_module, "gradient_attribution", lambda *_: found)
    assert locate_entry(make_model(**FREE), TOKENS[:1], 3) == 9  # 0.6, -2.8 and 0.7 over both layers


def test_a_fitted_row_makes_the_token_likelier_and_moves_nothing_else() -> None:
    model = make_model(**FREE)
    question, token = TOKENS[:1], 7
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    entry = locate_entry(model, question, token)
    slots = fit_row(model, entry, question, token, steps=10, rate=0.1)
    assert not slots.requires_grad
    with torch.no_grad():
        before = model(question)[0, -1].log_softmax(-1)[token]
        with rewrite(model, entry, slots):
            after = model(question)[0, -1].log_softmax(-1)[token]
    assert after > before + 0.01
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_edits_ask_for_another_object_and_judge_by_neighbours_and_paraphrases(
    tiny_run: LoadedRun, facts: list[Fact]
) -> None:
    edits = plan_edits(tiny_run, facts, 15, seed=0)
    assert len(edits) == 15
    assert [edit.new_object for edit in plan_edits(tiny_run, facts, 15, seed=0)] == [edit.new_object for edit in edits]
    objects = {(fact.predicate, fact.object) for fact in facts}
    for edit in edits:
        assert edit.true_token != edit.new_token
        assert (edit.fact.predicate, edit.new_object) in objects
        texts = [(kind, tiny_run.tokenizer.decode(ids[1:])) for kind, ids in edit.prompts]
        assert texts[0] == ("question", edit.fact.question)
        assert ("paraphrase", f"It is said that {edit.fact.subject} was born in") in texts
        for kind, text in texts:
            if kind == "neighbour":
                others = [fact for fact in facts if fact.question == text and fact.predicate == edit.fact.predicate]
                assert any(o.object == edit.fact.object and o.subject != edit.fact.subject for o in others)
    assert any(kind == "neighbour" for edit in edits for kind, _ in edit.prompts)


def test_measures_are_those_of_counterfact() -> None:
    table = rows(
        [
            (0, "question", 0.5, 0.1, 0.2, 0.6),  # now says the new object
            (0, "paraphrase", 0.5, 0.1, 0.4, 0.5),
            (0, "paraphrase", 0.5, 0.1, 0.4, 0.3),  # half of the paraphrases of edit 0
            (0, "neighbour", 0.5, 0.1, 0.5, 0.1),  # neighbours keep the true object
            (1, "question", 0.5, 0.1, 0.5, 0.2),  # still says the true one
            (1, "paraphrase", 0.5, 0.1, 0.5, 0.2),
            (1, "neighbour", 0.5, 0.1, 0.2, 0.4),  # and a neighbour changed
        ]
    )
    summary = summarise(table)
    assert summary["efficacy"]["before"][0] == 0 and summary["efficacy"]["after"][0] == 0.5
    assert summary["generalisation"]["after"][0] == 0.25
    assert summary["specificity"]["before"][0] == 1 and summary["specificity"]["after"][0] == 0.5
    assert summary["efficacy_margin"]["after"][0] == pytest.approx((0.4 - 0.3) / 2)
    assert summary["specificity_margin"]["after"][0] == pytest.approx((0.4 - 0.2) / 2)
    assert summary["score"]["after"][0] == pytest.approx(3 / (1 / 0.5 + 1 / 0.25 + 1 / 0.5))
    assert summary["score"]["before"][0] == 0
    low, high = summary["efficacy"]["after"][1:]
    assert (low, high) == (0, 1)  # two edits say little


def test_a_measure_without_prompts_is_missing() -> None:
    summary = summarise(rows([(0, "question", 0.1, 0.2, 0.1, 0.2), (1, "neighbour", 0.2, 0.1, 0.2, 0.1)]))
    assert summary["generalisation"]["after"] is None and summary["score"]["after"] is None
    assert summary["efficacy"]["after"][0] == 1


@pytest.mark.parametrize("method", ["sentence", "row"])
def test_edits_are_measured_one_at_a_time_and_undone(
    tiny_run: LoadedRun, facts: list[Fact], method: str, tmp_path: Path
) -> None:
    plain = tiny_run.model(torch.arange(10)[None])
    result = edit_facts(tiny_run, facts, 6, method, steps=30, rate=0.3)
    assert torch.equal(tiny_run.model(torch.arange(10)[None]), plain)
    table = result.rows
    assert sorted(table["edit"].unique()) == list(range(6))
    changed = table[["true_before", "new_before"]].to_numpy() != table[["true_after", "new_after"]].to_numpy()
    assert changed[table["kind"] == "question"].any()
    if method == "row":
        gain = (table["new_after"] - table["new_before"])[table["kind"] == "question"]
        assert gain.mean() > 0 and (gain > -1e-6).mean() > 0.8
    write_edits(result, tmp_path)
    assert json.loads((tmp_path / "edits.json").read_text()) == result.summary
    assert np.allclose(pd.read_parquet(tmp_path / "edits.parquet")["new_after"], table["new_after"])


def test_what_cannot_be_edited_is_refused(tiny_run: LoadedRun, ffn_run: LoadedRun, facts: list[Fact]) -> None:
    with pytest.raises(InputError, match="no layer has a memory of vectors to edit; choose another run"):
        edit_facts(ffn_run, facts)
    with pytest.raises(InputError, match="no fact can be edited"):
        edit_facts(tiny_run, facts[:1])


def test_the_command_prints_the_measures(cli, tiny_run_path: Path, tmp_path: Path) -> None:
    path = write_facts(tiny_run_path, tmp_path / "facts.jsonl")
    done: CliResult = cli("edit", tiny_run_path, path, "--out", tmp_path / "out", "--count", 3, "--steps", 2)
    assert done.code == 0 and json.loads(done.out)["edits"] == 3
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"edits.json", "edits.parquet"}
