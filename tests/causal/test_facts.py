"""The fact audit on facts whose entries are known, and its numbers against loops."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from memscope.base.errors import InputError
from memscope.base.parquet import read_parquet
from memscope.causal import fact_tables
from memscope.causal.fact_tables import FactAudit, Questions, load_audit, write_audit
from memscope.causal.facts import ask, audit_facts, match_entries, tokenize_facts
from memscope.causal.intervene import ablate
from memscope.report.facts import fact_figures, fact_finding, fact_findings
from memscope.report.facts import fact_tables as report_tables
from memscope.run.adapters.own import capture_memory
from memscope.run.bank_init import PARQUET
from memscope.run.checkpoint import LoadedRun
from memscope.text.fact_files import Fact, read_facts
from tests.conftest import SHARED, CliResult

pytestmark = pytest.mark.slow


def write_facts(run: Path, path: Path, **override: object) -> Path:
    """A fact for every entry with a sentence, and ten that no entry states; entry 0 is hostile text."""
    bank = read_parquet(run / PARQUET).to_pandas().dropna(subset=["sentence"])
    lines = []
    for row in bank.itertuples():
        words = row.sentence.split()
        fact = {"uuid": row.uuid[0], "subject": " ".join(words[:2]), "predicate": f"relation {row.entry % 3}"}
        fact |= {"object": words[-2], "template": "[X] was born in [Y] .", "evidence": [row.sentence]}
        lines.append(json.dumps(fact | override))
    for number in range(10):
        fact = {"uuid": f"none{number}", "subject": "Nobody", "predicate": "relation 0", "object": "Nowhere"}
        lines.append(json.dumps(fact | {"template": "[X] lives in [Y] .", "evidence": []}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def facts(tiny_run: LoadedRun, tmp_path_factory: pytest.TempPathFactory) -> list[Fact]:
    return read_facts(write_facts(tiny_run.path, tmp_path_factory.mktemp("facts") / "facts.jsonl"))


@pytest.fixture(scope="module")
def audit(tiny_run: LoadedRun, facts: list[Fact]) -> FactAudit:
    return audit_facts(tiny_run, facts)


def test_a_question_is_the_template_up_to_the_object() -> None:
    fact = Fact("u", "Alan Turing", "field of work", "logic", "[X] works in the field of [Y] .")
    assert fact.question == "Alan Turing works in the field of"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "expected an object"),
        ('{"subject": "a"}', 'needs a text "predicate"'),
        ('{"subject": "a", "predicate": "p", "object": "o", "template": "[Y] is [X]"}', "must hold"),
        ('{"subject": "a", "predicate": "p", "object": "o", "template": "[X] is [Y]", "evidence": 3}', "evidence"),
        ("{subject: a}", "not a JSON object"),
    ],
)
def test_bad_facts_are_named_with_their_line(
    tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = '{"subject": "a", "predicate": "p", "object": "o", "template": "[X] is [Y] ."}\n'
    path = tmp_path / "facts.jsonl"
    path.write_text(f"{good}{line}\n")
    assert len(read_facts(path)) == 1
    said = capsys.readouterr().err
    assert f"{path}:2: " in said and message in said
    path.write_text(f"\n{line}\n" if line != "[1]" else "5\n")
    with pytest.raises(InputError, match=rf"facts\.jsonl:\d: .*{message}"):
        read_facts(path)


def test_facts_find_their_entries_by_uuid_and_by_triple(tiny_run: LoadedRun, facts: list[Fact]) -> None:
    bank = read_parquet(tiny_run.path / PARQUET).to_pandas()
    uuids = [set() if uuid is None else set(uuid) for uuid in bank["uuid"]]
    for fact, found in zip(facts, match_entries(facts, tiny_run), strict=True):
        assert found.tolist() == [entry for entry, known in enumerate(uuids) if fact.uuid in known]
    triple = Fact("", "Ada Holm", "place of birth", "Aston", "[X] in [Y]")
    [found] = match_entries([triple], tiny_run)
    assert len(found) == bank["subject"].notna().sum()  # every sentence of the fixture carries this triple


def test_asking_gives_the_logits_of_the_asked_position(tiny_run: LoadedRun) -> None:
    tokens = torch.randint(5, 300, (4, 9))
    asked = torch.tensor([8, 3, 5, 0])
    expected = tiny_run.model(tokens)[torch.arange(4), asked]
    torch.testing.assert_close(ask(tiny_run.model, tokens, asked), expected.detach())
    assert not any(point.has_hooks() for point in tiny_run.model.hook_points())


def test_the_audit_is_what_asking_each_fact_alone_finds(
    tiny_run: LoadedRun, facts: list[Fact], audit: FactAudit
) -> None:
    asked = tokenize_facts(facts, tiny_run.tokenizer)
    entries = match_entries(facts, tiny_run)
    table = audit.facts
    assert table["anywhere"].any() and not table["anywhere"].all()
    for row in range(0, len(facts), 3):
        tokens = torch.tensor([asked.questions[row]])
        with capture_memory(tiny_run.model) as captured:
            logits = tiny_run.model(tokens)[0, -1]
        answer = asked.answers[row]
        assert table["logit"][row] == pytest.approx(float(logits[answer]), abs=1e-4)
        assert table["rank"][row] == 1 + int((logits > logits[answer]).sum())
        everywhere, shares = set(), []
        for layer, found in captured.items():
            last, rest = set(found.indices[0, -1].tolist()), set(found.indices[0, 1:].flatten().tolist())
            assert table[f"l{layer}_asked"][row] == bool(last & set(entries[row]))
            assert table[f"l{layer}_anywhere"][row] == bool(rest & set(entries[row]))
            everywhere |= rest
            read = found.read_weights[0, -1].abs()
            mine = torch.isin(found.indices[0, -1], torch.from_numpy(entries[row]))
            shares.append(float(read[mine].sum() / read.sum()))
        assert table["read_share"][row] == pytest.approx(max(shares), abs=1e-5)
        own = sorted(everywhere & set(entries[row]))
        assert sorted(table["ablated"][row]) == own
        if own:
            control = table["control"][row]
            assert len(control) == len(own) and set(control) <= everywhere - set(entries[row])
            for name, taken in (("own", own), ("control", control)):
                with torch.no_grad(), ablate(tiny_run.model, [int(entry) for entry in taken]):
                    without = tiny_run.model(tokens)[0, -1, answer]
                drop = float(logits[answer] - without)
                assert table[f"drop_{name}"][row] == pytest.approx(drop, abs=1e-4)
        else:
            assert np.isnan(table["drop_own"][row]) and np.isnan(table["drop_control"][row])


def made_up_audit(selects: np.ndarray, entries: list[np.ndarray], predicates: list[str]) -> pd.DataFrame:
    """Recall of facts whose questions select ``selects[question]`` at their one token, in one layer."""
    n = len(entries)
    questions = Questions((0,), n, 1000, entries)
    rows = np.arange(n)
    indices = np.repeat(selects[:, None, :], 2, axis=1)  # bos and the asked token
    ones = np.ones(indices.shape)
    questions.add(0, rows, np.full(n, 2), indices, ones)
    table = pd.DataFrame({"predicate": predicates, "n_entries": [len(own) for own in entries]})
    stated = np.flatnonzero(table["n_entries"].to_numpy() > 0)
    return fact_tables._recall_table(table, questions.finish(), stated, seed=0).set_index(["layer", "place"])


def test_found_facts_beat_chance_and_hot_entries_do_not() -> None:
    entries = [np.array([number]) for number in range(60)]
    predicates = [f"p{number % 3}" for number in range(60)]
    knows = np.stack([np.arange(60), np.full(60, 900)], 1)  # every question selects its own entry, and a hot one
    row = made_up_audit(knows, entries, predicates).loc[(0, "asked")]
    assert row["recall"] == 1 and row["shuffled"] < 0.1 and row["same_predicate"] < 0.15
    assert row["p"] == row["p_same"] == pytest.approx(1 / 201)
    hot = np.tile(np.arange(30), (60, 1))  # every question selects the same thirty entries
    row = made_up_audit(hot, entries, predicates).loc[(0, "asked")]
    assert row["recall"] == row["shuffled"] == 0.5  # and yet half of the facts are "found"
    assert row["p"] == row["p_same"] == 1
    assert row["even"] == pytest.approx(1 - 0.999**30)


def test_knowing_the_predicate_alone_is_told_from_knowing_the_fact() -> None:
    entries = [np.array([number]) for number in range(60)]
    predicates = [f"p{number % 3}" for number in range(60)]
    of_predicate = np.stack([np.arange(60)[np.arange(60) % 3 == number % 3] for number in range(60)])
    row = made_up_audit(of_predicate, entries, predicates).loc[(0, "asked")]
    assert row["recall"] == row["same_predicate"] == 1
    assert row["p"] < 0.01 and row["p_same"] == 1


def test_chance_never_asks_a_question_for_its_own_fact() -> None:
    entries = [np.array([number]) for number in range(12)]
    knows = np.arange(12)[:, None]  # every question selects its own entry and no other
    pairs = made_up_audit(knows, entries, [f"p{number // 2}" for number in range(12)]).loc[(0, "asked")]
    assert pairs["recall"] == pairs["recall_same"] == 1 and pairs["facts_same"] == 12
    assert pairs["shuffled"] == pairs["same_predicate"] == 0  # a plain permutation finds half of the pairs
    twins = [np.array([number // 2]) for number in range(12)]  # two facts an entry: asking for the twin is no chance
    row = made_up_audit(np.arange(12)[:, None] // 2, twins, ["p"] * 12).loc[(0, "asked")]
    assert row["recall"] == 1 and row["shuffled"] == row["same_predicate"] == 0


def test_a_fact_alone_with_its_predicate_is_not_compared_with_itself() -> None:
    entries = [np.array([number]) for number in range(5)]
    selects = np.array([[0], [7], [7], [7], [7]])  # the one that is found has no other of its predicate
    predicates = ["alone", "p", "p", "q", "q"]
    row = made_up_audit(selects, entries, predicates).loc[(0, "asked")]
    assert (row["recall"], row["recall_same"], row["facts_same"]) == (0.2, 0, 4)
    assert row["same_predicate"] == 0 and row["p_same"] == 1
    row = made_up_audit(selects, entries, list("abcde")).loc[(0, "asked")]
    assert row["facts_same"] == 0 and pd.isna(row["same_predicate"]) and pd.isna(row["p_same"])
    assert row["shuffled"] == 0 and row["p"] < 1


def test_an_audit_survives_the_disk_and_feeds_the_report(audit: FactAudit, tmp_path: Path) -> None:
    write_audit(audit, tmp_path)
    again = load_audit(tmp_path)
    assert again is not None
    pd.testing.assert_frame_equal(again.recall, audit.recall)
    assert again.summary == audit.summary
    assert again.facts["drop_own"].equals(audit.facts["drop_own"])
    assert [figure.name for figure in fact_figures(tmp_path)] == ["facts_recall", "facts_drop"]
    assert [finding.question for finding in fact_findings(tmp_path)] == ["Are facts found where they are stated?"]
    [table] = report_tables(tmp_path)
    older = json.loads((tmp_path / "facts.json").read_text()) | {"format": 1}
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "facts.json").write_text(json.dumps(older))
    with pytest.raises(InputError, match="run memscope facts again"):
        load_audit(tmp_path / "older")
    assert len(table.rows) == audit.facts["predicate"].nunique()
    finding = fact_finding(audit)
    assert f"{audit.summary['stated']:,} facts" in finding.short and "difference" in finding.answer
    assert load_audit(tmp_path / "nowhere") is None
    assert (
        list(fact_findings(tmp_path / "nowhere"))
        == list(fact_figures(tmp_path / "nowhere"))
        == list(report_tables(tmp_path / "nowhere"))
        == []
    )


def test_a_sample_of_facts_is_drawn_by_the_seed(tiny_run: LoadedRun, facts: list[Fact]) -> None:
    first, again = (audit_facts(tiny_run, facts, limit=20, seed=3) for _ in range(2))
    assert first.facts["subject"].tolist() == again.facts["subject"].tolist()
    assert len(first.facts) == 20


def test_what_cannot_be_audited_is_refused(tiny_run: LoadedRun, ffn_run: LoadedRun, facts: list[Fact]) -> None:
    with pytest.raises(InputError, match="FFN baseline"):
        audit_facts(ffn_run, facts)
    with pytest.raises(InputError, match="no entry started from"):
        audit_facts(tiny_run, [fact for fact in facts if fact.uuid.startswith("none")])
    with pytest.raises(InputError, match="the model reads 64"):
        audit_facts(tiny_run, [facts[0]._replace(subject="long " * 100)])


def test_the_command_writes_into_the_recording(
    cli, tiny_run_path: Path, tiny_recording_path: Path, tmp_path: Path
) -> None:
    path = write_facts(tiny_run_path, tmp_path / "facts.jsonl")
    out = tmp_path / "audit"
    done: CliResult = cli("facts", tiny_run_path, path, "--recording", tiny_recording_path, "--out", out)
    assert done.code == 0 and "recall_asked" in done.out and "same_predicate" in done.out
    assert {file.name for file in out.iterdir()} == {"facts.json", "facts.parquet"}
    done = cli("facts", tiny_run_path, path, "--out", out, "--limit", 30, "--json")
    assert json.loads(done.out)["facts"] == 30
    assert cli("facts", tiny_run_path, path).code == 2


@pytest.mark.shared
def test_the_real_facts_can_be_read_and_asked(tiny_run: LoadedRun) -> None:
    facts = read_facts(SHARED / "facts" / "trex_facts.jsonl")
    assert len(facts) == 17097 and len({fact.predicate for fact in facts}) == 28
    assert all(fact.subject in fact.question for fact in facts)
    assert all(len(asked) > 1 for asked in tokenize_facts(facts[:200], tiny_run.tokenizer).questions)
