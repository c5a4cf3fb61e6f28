"""A recording of text layers, alone and beside a memory: sentences are entries, and words are slots."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from memscope.base.errors import InputError
from memscope.base.parquet import read_parquet
from memscope.query.fired import fired_entries, recorded_slots
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.record.trace import describe_trace, trace_text
from memscope.report.health import telling_entry
from memscope.run.adapters.neurons import run_neurons
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from memscope.text.corpus import document_windows, pack_corpus
from tests.conftest import CliResult, untrained_run
from tests.synthetic import all_rows
from tests.text_runs import text_config, write_world

pytestmark = pytest.mark.slow

Cli = Callable[..., CliResult]
QUESTION = "Eva Lind works as a"


@pytest.fixture(scope="module", params=[("memory", "text"), ("text_ffn", "text")], ids=["beside a memory", "alone"])
def run(request: pytest.FixtureRequest, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    made = untrained_run(text_config(corpus_dir, folder, model={"block": list(request.param)}), folder)
    for name, parameter in made.model.named_parameters():  # so that words are not all read alike
        if "text.read.k_proj" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return made


@pytest.fixture(scope="module")
def recording(run: LoadedRun, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("recordings") / "text"
    record(OwnRun(run), corpus_dir / "valid.jsonl", path, RecordOptions(part_tokens=300, slot_weights=True))
    return Recording(path)


def test_recorded_selections_are_those_of_a_direct_capture(
    run: LoadedRun, recording: Recording, corpus_dir: Path
) -> None:
    info, model = recording.info, run.config.model
    rows, corpus = (
        all_rows(recording.path, info),
        pack_corpus(corpus_dir / "valid.jsonl", run.tokenizer, corpus_dir / "cache"),
    )
    assert [site.kind for site in info.sites] == ["memory" if kind == "memory" else "text" for kind in model.blocks]
    assert info.knowledge_num == run.config.first_sentence + len(run.model.text_bank)
    none = 0
    for window in document_windows(corpus, 64)[::4]:
        here = slice(window.start, window.end)
        with OwnRun(run).capture() as captured:
            run.model(torch.from_numpy(corpus.tokens[here].astype(np.int64))[None])
        for axis, site in enumerate(info.sites):
            seen = captured[site.layer]
            indices, read = rows.indices[here, axis, : site.selected], rows.read[here, axis, : site.selected]
            np.testing.assert_array_equal(indices, seen.indices[0])
            assert ((indices == -1) | ((indices >= site.own.start) & (indices < site.own.stop))).all()
            there = indices >= 0
            none += (~there).sum()
            np.testing.assert_allclose(read[there].astype(float), seen.read_weights[0][there], rtol=2**-7, atol=3e-6)
            slots = rows.slot_read[here, axis, : site.selected * site.slots].astype(float)
            slots = slots.reshape(*there.shape, site.slots)
            np.testing.assert_allclose(slots, seen.slot_weights[0], rtol=2**-7, atol=3e-6)
            np.testing.assert_allclose(slots.sum(-1)[there], seen.read_weights[0][there], rtol=0.02, atol=1e-4)
    assert none > 4


def test_usage_counts_selections_and_only_those(run: LoadedRun, recording: Recording) -> None:
    rows = all_rows(recording.path, recording.info)
    usage = recording.sql("SELECT layer, entry, count, gate_sum FROM usage")
    for axis, site in enumerate(recording.info.sites):
        selected = rows.indices[:, axis, : site.selected].ravel()
        gate = np.nan_to_num(rows.gate[:, axis, : site.selected].astype(float)).ravel()
        expected = np.bincount(selected[selected >= 0], minlength=recording.info.knowledge_num)
        sums = np.bincount(selected[selected >= 0], gate[selected >= 0], minlength=recording.info.knowledge_num)
        mine = usage[usage["layer"] == site.layer].set_index("entry")
        assert mine["count"].to_dict() == {int(n): int(expected[n]) for n in np.flatnonzero(expected)}
        np.testing.assert_allclose(mine["gate_sum"], sums[mine.index], rtol=1e-3)


def test_a_sentence_has_its_text_and_triples_and_neither_drift_nor_nearest_tokens(
    run: LoadedRun, recording: Recording
) -> None:
    first, bank = run.config.first_sentence, run.model.text_bank
    starts = read_parquet(recording.path / "bank_init.parquet").to_pandas()
    assert starts["sentence"][first:].tolist() == [sentence.text for sentence in bank.sentences.sentences]
    assert starts["entry"].tolist() == list(range(recording.info.knowledge_num))
    decoded = read_parquet(recording.path / "decodings.parquet").to_pandas()
    assert decoded["drift"][first:].isna().all() and decoded["nearest"][first:].isna().all()
    assert decoded["drift"][:first].notna().all()
    card = recording.entry(first + 5)
    assert card.sentence == bank.sentences.sentences[5].text
    assert card.drift is None and card.kept is None and card.nearest.empty
    assert card.triples["object"].tolist() == [bank.sentences.sentences[5].triples[0].object]
    used = recording.sql("SELECT entry FROM usage WHERE layer = 1 ORDER BY count DESC LIMIT 1")["entry"][0]
    assert not recording.entry(int(used)).lens.empty  # what reading its words makes likely


def test_words_of_a_recorded_token_are_shaded_by_what_is_read_of_them(run: LoadedRun, recording: Recording) -> None:
    trace = recording.trace(doc=1)
    pos = 40
    slots = recorded_slots(recording, 1, pos)
    assert slots is not None and list(slots) == list(run.config.model.text_layers)
    fired = fired_entries(recording, trace, pos, slots)
    sentences_first = sorted(recording.info.layers, key=lambda layer: layer not in slots)
    assert [layer.layer for layer in fired] == sentences_first
    for layer in fired:
        for entry in layer.entries:
            if layer.layer not in slots:
                assert entry.slots is None
                continue
            assert "".join(entry.words.sentence).strip() == entry.words.text
            assert entry.slots is not None and len(entry.slots) == len(entry.words.sentence)
            assert entry.slots.sum() == pytest.approx(entry.read, rel=0.02, abs=1e-4)


def test_the_example_is_a_sentence(recording: Recording) -> None:
    found = telling_entry(recording)
    assert found is not None and recording.info.site(found[1]).kind == "text"
    count = recording.sql(f"SELECT count FROM usage WHERE entry = {found[0]} AND layer = {found[1]}")["count"][0]
    assert count > 0


def test_a_typed_text_shows_the_words_of_the_sentences_that_it_reads(run: LoadedRun) -> None:
    traced = trace_text(OwnRun(run), QUESTION)
    assert list(traced.slots) == list(run.config.model.text_layers)
    [*_, last] = describe_trace(OwnRun(run), traced)
    entries = last["layers"][1]["entries"]
    assert entries[0]["sentence"].startswith("People knew Eva Lind as a")  # what shares most words stands first
    assert len(entries[0]["slots"]) == traced.slots[1].shape[2]
    assert sum(entries[0]["slots"]) == pytest.approx(entries[0]["read"], rel=1e-3)


def test_a_map_of_sentences_compares_them_by_usage(
    run: LoadedRun, recording: Recording, cli: Cli, tmp_path: Path
) -> None:
    """Beside a memory too, whose entries alone have vectors."""
    copy = shutil.copytree(recording.path, tmp_path / "copy")
    done = cli("map", run.path, copy, "--feature", "usage")
    assert done.code == 0, done.err
    assert json.loads(done.out)["entries"] == recording.info.knowledge_num
    refused = cli("map", run.path, copy, "--feature", "values")
    assert refused.code == 2 and "compares entries of a memory; map usage, contexts, coselection" in refused.err


def test_sentences_are_ablated_by_their_label(run: LoadedRun, recording: Recording, cli: Cli, tmp_path: Path) -> None:
    used = recording.sql("SELECT entry FROM usage WHERE layer = 1 ORDER BY count DESC LIMIT 2")["entry"].tolist()
    words = ["--entries", ",".join(map(str, used)), "--layers", "1", "--controls", "2", "--tokens", "400"]
    done = cli("ablate", run.path, recording.path, *words, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    effects = (
        read_parquet(tmp_path / "out" / "effects.parquet").to_pandas()
        if (tmp_path / "out" / "effects.parquet").is_file()
        else None
    )
    assert effects is None or effects["kl"].max() > 0
    assert json.loads(done.out)


def test_neurons_are_those_of_blocks_that_have_feed_forward_layers(run: LoadedRun) -> None:
    if run.config.model.blocks[0] == "memory":
        with pytest.raises(InputError, match="no feed-forward layer"):
            run_neurons(run, 4)
        return
    modules = [site.module for site in run_neurons(run, 4).sites if site.kind == "neurons"]
    assert modules == ["blocks.0.ffn.w2"]
