"""Ablation studies: the recorded text as a corpus, controls, the table, what is written, the command."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from memscope.base.errors import InputError
from memscope.causal.ablation import recorded_corpus, spread_windows, study_ablation, write_study
from memscope.causal.effects import compare_change, entry_usage, mean_change
from memscope.query.recording import Recording
from memscope.run.adapters.own import OwnModel, OwnRun
from memscope.run.checkpoint import LoadedRun
from memscope.run.subject import run_windows
from memscope.text.corpus import PackedCorpus
from tests.conftest import CliResult

pytestmark = pytest.mark.slow


def test_a_recording_is_the_corpus_it_was_made_of(tiny_recording: Recording, tiny_corpus: PackedCorpus) -> None:
    corpus = recorded_corpus(tiny_recording)
    assert np.array_equal(corpus.tokens, tiny_corpus.tokens)
    assert np.array_equal(corpus.starts, tiny_corpus.starts)
    assert corpus.titles == tiny_corpus.titles and corpus.sha256 == tiny_corpus.sha256


def test_the_most_used_entries_matter_more_than_controls(
    tiny_run: LoadedRun, tiny_recording: Recording, tmp_path: Path
) -> None:
    usage = entry_usage(tiny_recording.path)
    top = np.argsort(-usage)[:8]
    study = study_ablation(OwnRun(tiny_run), recorded_corpus(tiny_recording), top, usage, controls=2, control="random")
    table = study.table.set_index("what")
    assert table.index.tolist() == ["ablated", "control 1", "control 2", "difference"]
    assert (table["entries"][:3] == 8).all() and table.loc["ablated", "usage"] == usage[top].sum()
    assert table.loc["ablated", "kl"] > 2 * table.loc[["control 1", "control 2"], "kl"].max()
    assert table.loc["difference", "kl_low"] > 0
    assert table.loc["ablated", "loss"] == mean_change(study.effects).estimate
    controls = table.loc[["control 1", "control 2"], "loss"].mean()
    assert table.loc["difference", "loss"] == pytest.approx(table.loc["ablated", "loss"] - controls)

    write_study(study, tmp_path / "study")
    written = json.loads((tmp_path / "study" / "ablation.json").read_text())
    assert written["entries"] == sorted(top.tolist()) and written["tokens"] == len(study.effects)
    assert written["table"][0]["loss"] == table.loc["ablated", "loss"]
    effects = pd.read_parquet(tmp_path / "study" / "effects.parquet")
    assert mean_change(effects) == mean_change(study.effects)
    contexts = pd.read_parquet(tmp_path / "study" / "contexts.parquet")
    assert contexts["kl"].iloc[0] == effects["kl"].max()
    assert compare_change(effects, [effects]).estimate == 0


def test_layers_and_tokens_limit_a_study(tiny_run: LoadedRun, tiny_recording: Recording) -> None:
    usage, corpus = entry_usage(tiny_recording.path, [1]), recorded_corpus(tiny_recording)
    entry = int(usage.argmax())
    study = study_ablation(OwnRun(tiny_run), corpus, [entry], usage, layers=[1], tokens=100, controls=0)
    assert study.table["what"].tolist() == ["ablated"]
    assert len(study.effects) <= 100 and study.summary["layers"] == [1]
    reached = 0
    model = OwnModel(tiny_run.model)
    for done in run_windows(model, corpus, spread_windows(OwnRun(tiny_run), corpus, 100), 0, batch_size=1):
        selected = (done.captured[1].indices[0] == entry).any(-1)
        reached += int((selected.cumsum(0) > 0)[torch.from_numpy(done.batch.targets[0]) >= 0].sum())
    assert study.summary["reached_tokens"] == study.effects["reached"].sum() == reached > 0
    assert (study.effects["kl"][~study.effects["reached"]] == 0).all()


def test_what_cannot_be_studied_is_refused(tiny_run: LoadedRun, tiny_recording: Recording) -> None:
    corpus, usage = recorded_corpus(tiny_recording), entry_usage(tiny_recording.path)
    with pytest.raises(InputError, match="name at least one"):
        study_ablation(OwnRun(tiny_run), corpus, [], usage)
    with pytest.raises(InputError, match="entry 64 is not in the bank"):
        study_ablation(OwnRun(tiny_run), corpus, [64], usage)
    with pytest.raises(InputError, match="left for a control"):
        study_ablation(OwnRun(tiny_run), corpus, np.arange(40), usage)


def test_the_command_prints_a_table_and_writes_a_study(
    cli, tiny_run_path: Path, tiny_recording_path: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    usage = entry_usage(tiny_recording_path)
    common = (tiny_run_path, tiny_recording_path, "--out", out, "--tokens", 200, "--controls", 1)
    done: CliResult = cli("ablate", *common, "--entries", f"{usage.argmax()},3", "--mode", "zero")
    assert done.code == 0 and "control 1" in done.out and "difference" in done.out
    assert {file.name for file in out.iterdir()} == {"ablation.json", "effects.parquet", "contexts.parquet"}
    valid = corpus_dir / "valid.jsonl"
    done = cli("ablate", *common, "--top-usage", "5%", "--control", "random", "--corpus", valid, "--json")
    assert len(json.loads(done.out)["entries"]) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give the entries"),
        (("--entries", "1", "--top-usage", "1%"), "give the entries"),
        (("--entries", "one"), "--entries one: expected numbers"),
        (("--top-usage", "much"), "--top-usage much: expected a share"),
        (("--entries", "1", "--layers", "9"), "layer 9 selects nothing; layers that select are 0, 1"),
    ],
)
def test_bad_options_are_named(
    cli, tiny_run_path: Path, tiny_recording_path: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done: CliResult = cli("ablate", tiny_run_path, tiny_recording_path, "--out", tmp_path / "out", *words)
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 1


def test_a_recording_of_another_model_is_refused(
    cli, slot_run: LoadedRun, tiny_recording_path: Path, tmp_path: Path
) -> None:
    done: CliResult = cli("ablate", slot_run.path, tiny_recording_path, "--out", tmp_path, "--entries", "1")
    assert done.code == 2 and "recorded of another model" in done.err
