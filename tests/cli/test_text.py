"""Commands for runs with text layers: another bank, facts, edits; and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from memscope.base.errors import InputError
from memscope.base.parquet import read_parquet
from memscope.run.checkpoint import LoadedRun, list_files, load_run
from memscope.run.replace_bank import read_bank
from memscope.text_bank.bank import FILE, load_bank
from memscope.text_bank.stating import is_held_out
from tests.cli.test_bad_input import assert_refused
from tests.conftest import CliResult, untrained_run
from tests.text_runs import text_config, world, write_world

pytestmark = pytest.mark.slow

Cli = Callable[..., CliResult]


@pytest.fixture(scope="module")
def run(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    made = untrained_run(text_config(corpus_dir, folder), folder)
    (folder / "tokens").write_text("")
    list_files(folder)
    return made


@pytest.fixture
def copy(run: LoadedRun, tmp_path: Path) -> Path:
    shutil.copytree(run.path, tmp_path / "run")
    return tmp_path / "run"


def texts(run: Path) -> list[str]:
    return [sentence.text for sentence in load_bank(run / FILE).sentences]


def test_a_loaded_run_holds_the_sentences_of_its_file(run: LoadedRun) -> None:
    bank = run.model.text_bank
    assert bank is not None
    assert [sentence.text for sentence in bank.sentences.sentences] == texts(run.path)
    for entry, text in enumerate(texts(run.path)):
        ids = bank.ids[entry][bank.there[entry]].tolist()
        assert ids == run.tokenizer.encode(text)
    uuids = {triple.uuid for sentence in bank.sentences.sentences for triple in sentence.triples}
    assert uuids <= {fact.uuid for fact in world()} and len(uuids) > 50


def test_a_missing_or_damaged_bank_is_named(cli: Cli, copy: Path) -> None:
    (copy / FILE).write_bytes(b"no table")
    assert_refused(cli("trace", copy, "Ada Holm"), FILE)
    (copy / FILE).unlink()
    assert_refused(cli("trace", copy, "Ada Holm"), FILE)


def test_a_bank_that_was_changed_by_hand_is_refused(cli: Cli, copy: Path, run: LoadedRun) -> None:
    load_bank(copy / FILE).edited({0: "Ada Holm came from Farley ."}, run.tokenizer).save(copy / FILE)
    assert_refused(cli("trace", copy, "Ada Holm"), FILE, "restore it or train again")
    table = read_parquet(copy / FILE).drop_columns(["token_ids"])
    pq.write_table(table, copy / FILE)
    with pytest.raises(InputError, match="no column 'token_ids'"):
        load_run(copy)


def test_sentences_are_replaced_added_and_removed_without_training(cli: Cli, run: LoadedRun, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("Ada Holm likes Farley .\nBo Lind likes Aston .\nEva Lind is a spy .\n")
    before = texts(run.path)
    done = cli("bank", run.path, "--replace", tmp_path / "new.txt", "--out", tmp_path / "replaced")
    assert done.code == 0, done.err
    assert json.loads(done.out)["sentences"] == 3 and json.loads(done.out)["before"] == len(before)
    assert texts(tmp_path / "replaced") == ["Ada Holm likes Farley .", "Bo Lind likes Aston .", "Eva Lind is a spy ."]
    uuid = load_bank(run.path / FILE).sentences[4].triples[0].uuid
    words = ["--remove", f"0, {uuid}", "--add", tmp_path / "new.txt"]
    done = cli("bank", run.path, *words, "--out", tmp_path / "changed")
    assert done.code == 0, done.err
    gone = {before[0], before[4]}
    assert texts(tmp_path / "changed") == [text for text in before if text not in gone] + texts(tmp_path / "replaced")
    loaded = load_run(tmp_path / "changed")
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in loaded.model.state_dict().items())
    assert loaded.fingerprint != run.fingerprint  # the same weights read other sentences
    tokens = torch.tensor([[1, *run.tokenizer.encode("Eva Lind is")]])
    assert not torch.allclose(loaded.model(tokens), run.model(tokens))
    assert texts(run.path) == before


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["bank: say what changes", "--replace"]),
        (["--remove", "no-such-uuid"], ["--remove no-such-uuid", "no uuid of a triple"]),
        (["--remove", "99999"], ["--remove 99999", "no number below"]),
        (["--replace", "{empty}"], ["empty.txt", "no sentences"]),
        (["--replace", "nowhere.txt"], ["nowhere.txt", "no such"]),
        (["--add", "{empty}"], ["empty.txt", "no sentences"]),
    ],
)
def test_a_bank_that_cannot_be_made_is_refused(
    cli: Cli, run: LoadedRun, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    filled = [word.replace("{empty}", str(tmp_path / "empty.txt")) for word in words]
    assert_refused(cli("bank", run.path, *filled, "--out", tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()


def test_a_bank_is_not_emptied_nor_another_run_overwritten(cli: Cli, run: LoadedRun, tmp_path: Path) -> None:
    some = ",".join(map(str, range(len(texts(run.path)) - 1)))
    assert_refused(cli("bank", run.path, "--remove", some, "--out", tmp_path / "out"), "two sentences", "1 are left")
    assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "kept.txt").write_text("kept")
    result = cli("bank", run.path, "--remove", "0", "--out", tmp_path / "there")
    assert_refused(result, str(tmp_path / "there"), "choose another --out")
    assert (tmp_path / "there" / "kept.txt").read_text() == "kept"


def test_a_run_without_sentences_has_no_bank_to_change(cli: Cli, tiny_run_path: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("Ada Holm likes Farley .\nBo Lind likes Aston .\n")
    result = cli("bank", tiny_run_path, "--add", tmp_path / "new.txt", "--out", tmp_path / "out")
    assert_refused(result, str(tiny_run_path), "no layer of this run reads sentences")
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps([fact._asdict() for fact in world()]))
    result = cli("edit", tiny_run_path, facts, "--method", "text", "--out", tmp_path / "edits")
    assert_refused(result, str(tiny_run_path), "no layer reads sentences")


def test_facts_are_asked_and_their_sentences_taken_out(cli: Cli, run: LoadedRun, tmp_path: Path) -> None:
    done = cli("facts", run.path, run.path / "facts.json", "--out", tmp_path / "facts", "--json")
    assert done.code == 0, done.err
    groups = json.loads(done.out)
    everything = read_parquet(tmp_path / "facts" / "sentence_facts.parquet").to_pandas()
    assert everything["taught"].tolist() == [
        not is_held_out(subject, run.config.text.held_out) for subject in everything["subject"]
    ]
    assert {name: one["selected"]["facts"] for name, one in groups.items()} == {
        "taught": everything["taught"].sum(),
        "held out": (~everything["taught"]).sum(),
    }
    table, summary = everything[everything["taught"]], groups["taught"]
    assert len(table) > 30
    assert summary["selected"]["mean"] == pytest.approx(table["selected"].mean())
    assert table["searched"].mean() > 0.5 and (table["searched"] == table["selected"]).mean() > 0.9
    fall = (table["logit"] - table["logit_without"])[table["selected"]]
    assert summary["fall"]["mean"] == pytest.approx(fall.mean()) and (fall != 0).all()
    unread = ~table["selected"]
    assert (table["logit"] == table["logit_without"])[unread].all()


def test_facts_that_no_sentence_states_are_refused(cli: Cli, run: LoadedRun, tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(json.dumps([world()[0]._replace(uuid="x", subject="Zed")._asdict()]))
    result = cli("facts", run.path, tmp_path / "facts.json", "--out", tmp_path / "facts")
    assert_refused(result, str(run.path), "no sentence of the bank states")


def test_edits_by_typing_are_measured_and_undone(cli: Cli, run: LoadedRun, tmp_path: Path) -> None:
    words = ["--method", "text", "--count", "4", "--out", tmp_path / "edits"]
    done = cli("edit", run.path, run.path / "facts.json", *words)
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["method"] == "text" and summary["edits"] == 4
    rows = read_parquet(tmp_path / "edits" / "edits.parquet").to_pandas()
    asked = rows[rows["kind"] == "question"] if "question" in set(rows["kind"]) else rows
    assert (asked["new_after"] != asked["new_before"]).any()
    assert read_bank(run.path / "sentences.json", run.tokenizer).sentences  # the files are as they were
    assert len(texts(run.path)) == len(load_run(run.path).model.text_bank)
