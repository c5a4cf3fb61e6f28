"""A bank split in groups: layers select, read, move and are measured among the entries of their group alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from memscope.base.errors import InputError
from memscope.causal.ablation import study_ablation
from memscope.causal.effects import entry_usage, usage_matched
from memscope.causal.fact_tables import Questions, _even_recall
from memscope.causal.intervene import ablate, force, swap
from memscope.census.summaries import layer_overlap
from memscope.config.load import Config
from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.report.compare.changes import find_changes
from memscope.report.findings import find
from memscope.report.gate_bias.write import write_report
from memscope.report.health import health
from memscope.run.adapters.own import OwnRun, capture_memory
from memscope.run.bank_init import PARQUET, deal
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.run.metrics_log import read_metrics
from memscope.stats.usage import Bank, even_selection, usage_metrics
from memscope.text.corpus import pack_corpus
from memscope.train.loop import train
from tests.conftest import tiny_config, untrained_run
from tests.synthetic import make_info

pytestmark = pytest.mark.slow

G, N = 2, 128
TOKENS = torch.randint(3, 320, (4, 33), generator=torch.Generator().manual_seed(0))


def grouped(corpus_dir: Path = Path("unused"), train: dict[str, object] | None = None, **memory: object) -> Config:
    """Two layers, each with 64 of 128 entries, read as the recommended memory reads."""
    memory = {
        **{"knowledge_num": N, "bank_groups": G, "score_fn": "relu", "read_fn": "gelu"},
        **{"slot_proj": False, "read_norm": "rms", "read_slices": 2, **memory},
    }
    return tiny_config(corpus_dir, memory=memory, train=train or {})


def backward(config: Config) -> tuple[MemoryTransformer, torch.Tensor]:
    """A model of seed 0 after one backward pass, and the gradient of its entries."""
    model = MemoryTransformer(config)
    next_token_loss(model(TOKENS[:, :-1]), TOKENS[:, 1:]).mean().backward()
    gradient = model.bank.entries.grad
    return model, gradient.to_dense() if gradient.is_sparse else gradient


# --- config -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"memory": {"bank_groups": 3, "gate": "full"}}, "bank_groups=3 does not divide knowledge_num=64; try .*=63"),
        ({"memory": {"bank_groups": 2}}, r"square knowledge_num / bank_groups=2: 32 is none; try knowledge_num=72"),
        ({"memory": {"bank_groups": 32, "gate": "full"}}, "num_selected=4 exceeds knowledge_num=64 / bank_groups=32"),
        ({"memory": {"bank_groups": 4}}, "bank_groups=4 does not divide the 2 memory layers; lower it or change"),
    ],
)
def test_a_split_that_does_not_work_out_is_refused(sections: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_config(Path("unused"), **sections)


def test_layers_in_order_own_slices_in_order() -> None:
    blocks = {"n_layers": 5, "block": ["memory", "ffn", "memory", "memory", "both"]}
    config = tiny_config(Path("unused"), model=blocks, memory={"knowledge_num": 128, "bank_groups": 2})
    owned = {layer: config.entries_of(layer) for layer in config.model.memory_layers}
    assert owned == {0: slice(0, 64), 2: slice(0, 64), 3: slice(64, 128), 4: slice(64, 128)}
    assert tiny_config(Path("unused")).entries_of(1) == slice(0, 64)


# --- model ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["full", "product"])
def test_layers_select_only_entries_of_their_group(gate: str) -> None:
    model = MemoryTransformer(grouped(gate=gate, gate_heads=2))
    with capture_memory(model) as captured:
        model(TOKENS)
    for layer in (0, 1):
        own = model.cfg.entries_of(layer)
        found = captured[layer].indices
        assert found.min() >= own.start and found.max() < own.stop
        assert len(found.unique()) > 20
        assert model.memory_layer(layer).gate.keys.shape == ((2, 64, 16) if gate == "full" else (2, 2, 8, 8))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("projected", [True, False])
def test_lazy_and_dense_gradients_reach_the_entries_that_a_layer_selects_and_no_others(
    monkeypatch: pytest.MonkeyPatch, projected: bool, native: bool
) -> None:
    if not native:
        for module in ("bank", "ops.product_keys"):
            monkeypatch.setattr(f"memscope.model.{module}.native_for", lambda _: None)
    read = {"slot_proj": True, "read_slices": 1} if projected else {}
    model, dense = backward(grouped(**read))
    _, lazy = backward(grouped(train={"lazy_bank": True}, **read))
    torch.testing.assert_close(lazy, dense)
    with capture_memory(model) as captured:
        model(TOKENS[:, :-1])
    selected = torch.cat([layer.indices.flatten() for layer in captured.values()]).unique()
    moved = dense.flatten(1).abs().sum(1).nonzero().flatten()
    assert set(moved.tolist()) <= set(selected.tolist()) and len(moved) > 0.5 * len(selected)
    assert (moved < 64).any() and (moved >= 64).any()


def test_a_layer_is_deaf_to_the_entries_of_other_groups() -> None:
    model = MemoryTransformer(grouped())
    before, cache = model.run_with_cache(TOKENS)
    with torch.no_grad():
        model.bank.entries[64:] += 1
    after, changed = model.run_with_cache(TOKENS)
    assert torch.equal(cache["blocks.0.hook_mem_out"], changed["blocks.0.hook_mem_out"])
    assert not torch.allclose(cache["blocks.1.hook_mem_out"], changed["blocks.1.hook_mem_out"])
    assert not torch.allclose(before, after)


# --- sentences and training -------------------------------------------------------------------------------------------


def test_groups_take_sentences_in_turn() -> None:
    assert deal(["a", "b", "c"], 6, 2) == ["a", "c", None, "b", None, None]
    assert deal(["a", "b", "c"], 4, 1) == ["a", "b", "c", None]


@pytest.fixture(scope="module")
def run(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    path = tmp_path_factory.mktemp("groups") / "run"
    train(grouped(corpus_dir), path, device="cpu")
    return load_run(path)


def test_every_group_starts_from_sentences(run: LoadedRun) -> None:
    sentences = pq.read_table(run.path / PARQUET)["sentence"].to_pylist()
    told = [sum(text is not None for text in half) for half in (sentences[:64], sentences[64:])]
    assert abs(told[0] - told[1]) <= 1 and sum(told) == len({*sentences} - {None})


def test_evaluation_measures_a_layer_against_its_own_entries(run: LoadedRun) -> None:
    last = [line for line in read_metrics(run.path / "metrics.jsonl") if line["kind"] == "eval"][-1]
    for layer in (0, 1):
        assert last[f"layer_{layer}/entries"] == 64
        even = even_selection((Bank(64, last[f"layer_{layer}/selections"], run.config.memory.num_selected),))
        assert last[f"layer_{layer}/even_kl_to_uniform"] == pytest.approx(even.kl)
        assert last[f"layer_{layer}/coverage"] > 0.5  # of half the bank: it could not be of all of it


@pytest.mark.parametrize("lazy", [False, True])
def test_two_processes_train_a_split_bank_like_one(
    corpus_dir: Path, tmp_path: Path, group: Callable[..., Any], lazy: bool
) -> None:
    settings = {"steps": 4, "eval_interval": 2, "log_interval": 1, "eval_tokens": 128, "lazy_bank": lazy}
    train(grouped(corpus_dir, {**settings, "batch_size": 4}), tmp_path / "one", device="cpu")
    done = group(grouped(corpus_dir, {**settings, "batch_size": 2}), tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = (
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("one", "two")
    )
    assert two == pytest.approx(one, abs=1e-4)


# --- what is measured -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(run: LoadedRun, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("groups") / "recording"
    record(OwnRun(run), corpus_dir / "valid.jsonl", path, RecordOptions(part_tokens=500))
    return Recording(path)


def test_the_census_measures_a_layer_against_its_own_entries(recording: Recording) -> None:
    usage, d = recording.usage(), recording.info.rows * recording.info.selected
    assert not usage[0, 64:].any() and not usage[1, :64].any()
    own = recording.reachable_usage()
    assert [len(counts) for counts in own] == [64, 64] and sum(counts.sum() for counts in own) == usage.sum()
    metrics = recording.layer_metrics()
    for row, counts in zip(metrics.to_dict("records"), own, strict=True):
        expected = dict(usage_metrics(counts, d, recording.info.sites[0].distinct))
        assert {name: row[name] for name in expected} == expected
    assert max(row.coverage for row in recording.census.layers[1].profiles.position) > 0.5
    everywhere = dict(recording.census.all_layers.by_count)
    banks = [Bank(64, d, recording.info.sites[0].distinct)] * 2
    assert everywhere == everywhere | dict(usage_metrics(usage.sum(0), 2 * d, banks=banks))


def test_preferences_compare_a_layer_with_its_own_entries(recording: Recording) -> None:
    origin = recording.preferences().query("attribute == 'origin'")
    sentences = recording.sql("SELECT sentence FROM bank ORDER BY entry")["sentence"].notna().to_numpy()
    for layer, own in enumerate((slice(0, 64), slice(64, 128))):
        row = origin[(origin["layer"] == layer) & (origin["label"] == "sentence")].iloc[0]
        usage = recording.usage()[layer, own]
        assert row["entries"] == sentences[own].sum()
        lift = usage[sentences[own]].sum() / usage.sum() / sentences[own].mean()
        assert row["lift"] == pytest.approx(lift)


def test_overlap_is_measured_within_groups() -> None:
    chance = np.random.default_rng(0)
    usage = chance.poisson(0.7, (4, 32))
    sites = make_info(layers=(0, 1, 2, 3), knowledge_num=64, bank_groups=2).sites
    found = {name: np.array(values) for name, values in layer_overlap(list(usage), sites)}
    pairs = [layer_overlap(list(usage[part]), sites[part]) for part in (slice(2), slice(2, 4))]
    for name, values in found.items():
        np.testing.assert_array_equal(values[:2, :2], getattr(pairs[0], name))
        np.testing.assert_array_equal(values[2:, 2:], getattr(pairs[1], name))
        apart = np.log(2) if name == "jensen_shannon" else 0
        assert (values[:2, 2:] == apart).all() and (values[2:, :2] == apart).all()


@pytest.mark.slow
@pytest.mark.usefixtures("rough_figures")
def test_the_report_says_how_the_bank_is_split(recording: Recording, tmp_path: Path) -> None:
    list(write_report(recording, tmp_path / "report"))
    text = (tmp_path / "report" / "gate_bias.md").read_text()
    assert "in 2 groups of 64, one for each layer" in text and "shared by all layers" not in text
    source = json.loads((tmp_path / "report" / "metrics.json").read_text())["recording"]
    assert source["knowledge_num"] == 128
    assert [(site["first_entry"], site["entries"]) for site in source["sites"]] == [(0, 64), (64, 64)]


def test_findings_and_flags_speak_of_the_entries_a_layer_can_select(recording: Recording) -> None:
    answers = {finding.question: finding for finding in find(recording)}
    evenness = answers["Is the gate biased?"]
    assert "of the 64 entries it can select" in evenness.short
    assert "of the 128 entries were used" in evenness.answer and f"of at most {np.log(64):.2f} nats" in evenness.answer
    assert answers["Does each layer use the bank differently?"].short.startswith("By construction")
    worst = recording.layer_metrics()["dead"].max()
    assert health(recording)[0].text.startswith(f"{worst / 64:.0%} of entries never selected")


def test_comparisons_stay_within_groups(recording: Recording, tiny_recording: Recording) -> None:
    same = find_changes(recording, recording)
    assert [row.jaccard for row in same.layers] == [1, 1, 1]
    layer = same.layers[1]
    used = recording.reachable_usage()[0] > 0
    assert layer.independent_jaccard == pytest.approx(used.mean() / (2 - used.mean()))
    other = Recording(tiny_recording.path)
    sites = tuple(site.model_copy(update={"entries": N}) for site in other.info.sites)
    other.info = other.info.model_copy(update={"sites": sites})
    with pytest.raises(
        InputError, match=r"its entries are shared by all layers, those of .* are in 2 groups of 64, one for each layer"
    ):
        find_changes(recording, other)


# --- interventions and controls ---------------------------------------------------------------------------------------


def test_an_entry_is_forced_in_the_layers_that_can_select_it(run: LoadedRun) -> None:
    with force(run.model, 70, 0.5), capture_memory(run.model) as captured:
        run.model(TOKENS)
    assert (captured[1].indices == 70).any(-1).all() and captured[0].indices.max() < 64


def test_what_no_layer_can_select_is_refused(run: LoadedRun) -> None:
    with (
        pytest.raises(InputError, match="not every layer named can select entry 70"),
        force(run.model, 70, 1.0, layers=[0]),
    ):
        pass
    with pytest.raises(InputError, match="no layer can select entry 3 and 70: the bank is split in 2 groups"):
        swap(run.model, 3, 70).__enter__()
    with swap(run.model, 66, 70), ablate(run.model, [3, 70]):
        run.model(TOKENS)


@pytest.mark.parametrize("control", ["usage", "random"])
def test_controls_are_of_the_same_group(
    run: LoadedRun, recording: Recording, corpus_dir: Path, monkeypatch: pytest.MonkeyPatch, control: str
) -> None:
    usage = entry_usage(recording.path)
    entries = np.array([*np.argsort(-usage[:64])[:3], *(64 + np.argsort(-usage[64:])[:5])])
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(
        "memscope.causal.ablation.measure_effects", lambda *arguments: drawn.append(arguments[3]) or 1 / 0
    )
    corpus = pack_corpus(corpus_dir / "valid.jsonl", run.tokenizer, corpus_dir / "cache")
    with pytest.raises(ZeroDivisionError):
        study_ablation(OwnRun(run), corpus, entries, usage, controls=4, control=control)
    for name, trial in drawn[0].items():
        assert (np.asarray(trial.entries) < 64).sum() == 3 and len(set(trial.entries)) == 8
        assert name == "ablated" or not set(trial.entries) & set(entries)
    assert (usage_matched(usage, [70], 0, banks=[range(64), range(64, 128)]) >= 64).all()


def test_even_recall_counts_the_stating_entries_that_a_layer_can_select() -> None:
    entries = [np.array([1, 2, 70]), np.array([80])]
    questions = Questions((0, 1), 2, N, entries, groups=2)
    for layer, own in enumerate((0, 64)):
        indices = np.arange(own, own + 8).reshape(1, 2, 4).repeat(2, 0)
        questions.add(layer, np.arange(2), np.array([2, 2]), indices, np.ones((2, 2, 4)))
    even = _even_recall(questions.finish(), np.arange(2), "asked")
    missed = np.array([[(1 - 2 / 64) ** 4, 1], [(1 - 1 / 64) ** 4, (1 - 1 / 64) ** 4]])
    np.testing.assert_allclose(even, [*(1 - missed.mean(1)), 1 - missed.prod(0).mean()])


def test_an_undivided_bank_is_as_before(corpus_dir: Path, tmp_path: Path) -> None:
    run = untrained_run(tiny_config(corpus_dir), tmp_path / "run")
    sentences = pq.read_table(run.path / PARQUET)["sentence"].to_pylist()
    count = sum(text is not None for text in sentences)
    assert all(sentences[:count]) and run.model.memory_layer(1).gate.first == 0
