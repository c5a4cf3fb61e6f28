"""Every study runs from the command line on a tiny fixture, and finds what was planted there."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.sparse import csr_array

from memscope.base.errors import InputError
from memscope.query.recording import Recording
from memscope.record.loop import record
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.testing.models import PlantedRun, plant_run
from memscope.testing.recordings import PLANTED_LAYER
from memscope.train.loop import train
from tests.conftest import tiny_config, untrained_run
from tests.processes import run_here
from tests.text_runs import LAST, text_config, write_world

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rough_figures")]

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "analyses"))
SHARED_PARTS = {"study", "split_facts"}
from split_facts import split  # noqa: E402

SCRIPTS = sorted(path for path in (ROOT / "analyses").glob("*.py") if path.stem not in SHARED_PARTS)


class World(NamedTuple):
    """A planted run and its recording."""

    plan: PlantedRun
    run: LoadedRun
    recording: Recording


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    plan = plant_run(folder, seed=0)
    run = load_run(plan.run)
    record(OwnRun(run), plan.corpus, folder / "recording")
    return World(plan, run, Recording(folder / "recording"))


@pytest.fixture(scope="module")
def random_runs(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of the tiny run whose entries start random."""
    runs = [tmp_path_factory.mktemp("random") / f"seed-{seed}" for seed in (1, 2)]
    for seed, run in enumerate(runs):
        train(
            tiny_config(corpus_dir, memory={"database_init_path": None}, train={"seed": seed, "steps": 10}),
            run,
            device="cpu",
        )
    return runs


class Biased(NamedTuple):
    """A run whose selection goes by a bias, and its recording."""

    run: LoadedRun
    recording: Recording


@pytest.fixture(scope="module")
def biased(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Biased:
    """The bias of layer 1 is all but the choice; that of layer 0 is zero."""
    folder = tmp_path_factory.mktemp("biased")
    run = untrained_run(tiny_config(corpus_dir, memory={"score_fn": "relu", "balance_bias": 0.1}), folder / "run")
    gate = run.model.memory_layer(1).gate
    assert gate.balance.bias is not None
    gate.balance.bias.normal_(std=100.0, generator=torch.Generator().manual_seed(0))
    save_file(run.model.state_dict(), folder / "run" / "model.safetensors")
    run = load_run(folder / "run")
    record(OwnRun(run), corpus_dir / "valid.jsonl", folder / "recording")
    return Biased(run, Recording(folder / "recording"))


def test_what_a_selection_bias_chose_and_is_worth_is_found(biased: Biased, world: World) -> None:
    from selection_bias import study

    table = study(biased.run, biased.recording, 512).set_index("layer")
    assert table.loc["0", "by_score_share"] == 1 and table.loc["0", "loss"] == 0
    assert table.loc["1", "by_score_share"] == pytest.approx(4 / 64, abs=0.05)  # the bias alone chooses
    assert table.loc["1", "loss"] == table.loc["all", "loss"] != 0
    assert table.loc["1", "loss_low"] <= table.loc["1", "loss"] <= table.loc["1", "loss_high"]
    assert table.loc["1", "top50_with"] == 2 and table.loc["1", "coverage_with"] == 4 / 64  # the same for all tokens
    assert table.loc["1", "kl_to_uniform_with"] == pytest.approx(np.log(64 / 4))
    assert table.loc["1", "coverage_without"] > 0.5
    assert table.loc["0", "coverage_with"] == table.loc["0", "coverage_without"]
    assert table.loc["1", "silent_with"] > table.loc["1", "silent_without"]  # entries that no score speaks for
    with pytest.raises(InputError, match="no selection bias takes part"):
        study(world.run, world.recording, 512)


@pytest.fixture(scope="module")
def reader(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run that reads sentences, hardly trained, and the facts of its world dealt to parts."""
    folder = tmp_path_factory.mktemp("reader")
    write_world(folder, (*LAST, "Marsh", "Noble", "Quick", "Rowe"))
    split(folder / "facts.json", folder / "sentences.json", folder / "data")
    text = {
        "sentences_path": str(folder / "data/sentences.jsonl"),
        "facts_path": str(folder / "data/facts_train.jsonl"),
        "sentence_num": 160,  # all of them
    }
    model = {"vocab_size": 460}  # objects begin with tokens of their own
    config = text_config(corpus_dir, folder, text=text, model=model, train={"steps": 5, "save_interval": 5})
    train(config, folder / "run", device="cpu")
    return [folder / "run", folder / "data"]


def arguments_of(
    script: str, world: World, product: Recording, runs: list[Path], biased: Biased, reader: list[Path]
) -> list[Path]:
    """What a script is called with; by default a run and its recording."""
    special = {
        "text_memory": reader,
        "headline_coverage": [world.recording.path],
        "lookup_context": [product.path],
        "product_key_rows": [world.recording.path],
        "readability": [world.recording.path],
        "sentence_initialisation": runs,
        "selection_bias": [biased.run.path, biased.recording.path],
    }
    return special.get(script, [world.plan.run, world.recording.path])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_study_prints_its_headline_first_and_writes_figure_and_csv(
    script: Path,
    world: World,
    tiny_run_path: Path,
    tiny_recording: Recording,
    random_runs: list[Path],
    biased: Biased,
    reader: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = arguments_of(script.stem, world, tiny_recording, [tiny_run_path, *random_runs], biased, reader)
    done = run_here(script, [*map(str, arguments), "--out", str(tmp_path)], capsys)
    assert done.returncode == 0, done.stderr
    headline = done.stdout.splitlines()[0]
    assert any(character.isdigit() for character in headline) and "nan" not in headline
    assert (tmp_path / f"{script.stem}.png").stat().st_size > 0
    assert len(pd.read_csv(tmp_path / f"{script.stem}.csv")) > 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_study_of_nothing_says_so_in_one_line(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (
        1
        if script.stem
        in ("headline_coverage", "lookup_context", "product_key_rows", "readability", "sentence_initialisation")
        else 2
    )
    arguments = [tmp_path / f"none-{number}" for number in range(given)]
    done = run_here(script, [*map(str, arguments), "--out", str(tmp_path / "out")], capsys)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"{script.name}: {tmp_path}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_study_has_its_question_in_the_readme_and_its_result_in_the_docs(script: Path) -> None:
    assert script.name in (ROOT / "analyses" / "README.md").read_text()
    docs = "".join(page.read_text() for page in (ROOT / "docs" / "log").glob("*.md"))
    assert f"analyses/{script.name}" in docs


def test_facts_that_sentences_state_are_found_by_their_words(reader: list[Path]) -> None:
    from text_memory import measure

    run, data = reader
    table, edited = measure(load_run(run), data, edits=3, larger=200)
    found = table[table["measure"] == "selected"].set_index("part")
    assert (found["mean"] == 1).all()  # names stand in the sentences, and four of them are selected
    assert {"held out", "seen in training", "bank swapped"} <= set(found.index)
    parts = {part: len((data / f"facts_{part}.jsonl").read_text().splitlines()) for part in ("train", "held", "aside")}
    assert found["facts"].to_dict() == {
        "held out": parts["held"],
        "seen in training": parts["train"],
        "bank swapped": parts["aside"],
        "bank enlarged": parts["held"],
    }
    assert edited["edits"] == 3


def test_subjects_are_dealt_to_one_part_alone(reader: list[Path]) -> None:
    _, data = reader
    subjects = {
        part: {json.loads(line)["subject"] for line in (data / f"facts_{part}.jsonl").read_text().splitlines()}
        for part in ("train", "held", "aside")
    }
    assert all(subjects.values()) and len(set.union(*subjects.values())) == sum(map(len, subjects.values()))
    stated = (data / "sentences.jsonl").read_text()
    assert not any(subject in stated for subject in subjects["aside"])
    assert all(subject in stated for subject in subjects["held"])


def test_kl_splits_into_rows_columns_and_entries() -> None:
    from product_key_rows import split_kl

    # All mass in row 0, even over its 4 columns: KL = ln 4, all of it in the rows.
    row = split_kl(np.array([[1, 1, 1, 1], [0] * 4, [0] * 4, [0] * 4]).ravel())
    assert row == pytest.approx({"kl": np.log(4), "rows": np.log(4), "columns": 0, "entries": 0}, abs=1e-12)
    # The diagonal: rows and columns are even, all of it is in the choice of entries.
    diagonal = split_kl(np.eye(4).ravel())
    assert diagonal == pytest.approx({"kl": np.log(4), "rows": 0, "columns": 0, "entries": np.log(4)}, abs=1e-12)


def test_what_a_token_decides_is_foretold_from_it_alone() -> None:
    from lookup_context import foretold

    chance = np.random.default_rng(0)
    token, before = chance.integers(0, 10, (2, 4000))
    learned = np.arange(4000) < 2000
    choice = (3 * token + 1) % 8  # 8 choices of 10 tokens, so two of them twice as often
    assert foretold(choice, token, learned) == 1
    assert foretold(choice, before, learned) == pytest.approx(0.2, abs=0.04)
    never_seen = np.where(learned, 0, 1)
    assert foretold(np.where(token == 9, 1, 0), never_seen, learned) == pytest.approx(0.9, abs=0.02)


def test_rows_follow_the_token_and_columns_the_one_before_under_token_shift(corpus_dir: Path, tmp_path: Path) -> None:
    from lookup_context import study

    config = tiny_config(
        corpus_dir,
        model={"n_layers": 1},
        memory={"gate": "product", "knowledge_num": 64, "query_dim": 16, "token_shift": True},
        train={"steps": 2},
    )
    train(config, tmp_path / "run", device="cpu")
    run = load_run(tmp_path / "run")
    with torch.no_grad():
        run.model.blocks[0].attn.o_proj.weight.zero_()  # no context: the stream is the token's embedding
    record(OwnRun(run), corpus_dir / "valid.jsonl", tmp_path / "recording")
    table = study(Recording(tmp_path / "recording")).set_index("half")
    assert table.loc["row", "the token"] > 0.95 > 0.8 > table.loc["row", "the one before"]
    assert table.loc["column", "the one before"] > 0.95 > 0.8 > table.loc["column", "the token"]


def test_a_full_gate_has_no_rows_to_foretell(world: World) -> None:
    from lookup_context import study

    with pytest.raises(InputError, match="only a product gate"):
        study(world.recording)


def test_the_most_used_half_holds_no_more_than_half() -> None:
    from usage_value import most_used_half

    assert most_used_half(np.array([1, 5, 0, 4, 2])).tolist() == [False, True, False, False, False]  # 5 of 12, 9 of 12
    assert most_used_half(np.array([2, 2, 2, 2])).tolist() == [True, True, False, False]
    assert not most_used_half(np.array([3, 1])).any()  # one entry holds more than half


def test_entries_without_a_value_carry_nothing(world: World) -> None:
    from usage_value import most_used_half, study

    run = load_run(world.plan.run)
    counts = world.recording.usage()[-1]
    with torch.no_grad():  # the most used of the last layer say nothing any more
        run.model.bank.entries[torch.from_numpy(most_used_half(counts))] = 0
    table = study(run, world.recording, tokens=4096)
    assert table.groupby("layer")["part"].agg(list).tolist() == [["most used", "the others", "all"]] * 2
    last = table[table["layer"] == PLANTED_LAYER].set_index("part")
    assert last["entries"]["all"] == last["entries"]["most used"] + last["entries"]["the others"] == (counts > 0).sum()
    assert last["share"]["most used"] <= 0.5 < last["share"]["the others"] + 1e-9
    assert last["loss"]["most used"] == 0
    assert last["loss"]["the others"] == pytest.approx(last["loss"]["all"], rel=1e-4)
    assert abs(last["loss"]["all"]) > 1e-3


def test_a_detector_is_readable_pure_and_followed_by_what_it_promotes(world: World) -> None:
    from readability import MEASURES, study, summary

    table = study(world.recording, world.plan.run)
    detector = next(iter(world.plan.truth.detectors))
    planted = table[table["layer"] == PLANTED_LAYER].set_index("entry")
    own = planted.loc[detector]
    assert own["readability"] == own["balanced_accuracy"] == own["purity"] == 1
    assert own["lens"] > 0.8 > 0.5 > own["lens_base"]  # the token that it pushes follows
    assert planted.drop(detector)["readability"].median() < 0.9
    assert table["loss"].notna().sum() > 0
    means = summary(table)
    assert set(means["measure"]) <= set(MEASURES)
    assert ((means["low"] <= means["mean"]) & (means["mean"] <= means["high"])).all()


def test_contexts_end_at_their_row_and_start_with_its_window(tiny_recording: Recording) -> None:
    from study import contexts_before, sample_windows

    document = tiny_recording.documents.iloc[1]
    first, size = int(document["first_row"]), tiny_recording.info.window
    texts = contexts_before(tiny_recording, [first, first + size - 1, first + size])
    assert [len(text) for text in texts] == [1, size, 1]
    assert texts[1].tolist() == tiny_recording.token_ids[first : first + size].tolist()
    windows = sample_windows(tiny_recording, 10**9)
    assert sum(map(len, windows)) == tiny_recording.info.rows
    assert max(map(len, windows)) <= size


def test_batches_hold_every_text_once() -> None:
    from study import batches

    texts = [np.arange(1, length + 1) for length in (5, 1, 3)]
    found = [
        (number, tokens[row, : lengths[row]].tolist())
        for numbers, tokens, lengths in batches(texts, 2)
        for row, number in enumerate(numbers)
    ]
    assert found == [(1, [1]), (2, [1, 2, 3]), (0, [1, 2, 3, 4, 5])]


def test_intervals_hold_the_mean() -> None:
    from study import mean_interval

    values = np.random.default_rng(0).normal(3, 1, 400)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert (low, high) == pytest.approx((mean - 1.96 / 20, mean + 1.96 / 20), abs=0.02)


def test_whitened_queries_spread_alike_and_keep_their_size() -> None:
    from gate_selection_bias import count_directions, vary

    chance = torch.Generator().manual_seed(0)
    stretch = torch.tensor([10.0, 1, 1, 0.1])
    queries = torch.randn(4000, 2, 4, generator=chance) * stretch + 5
    assert count_directions(queries) == pytest.approx(
        102.01**2 / (10**4 + 2 + 1e-4), rel=0.05
    )  # by variances 100, 1, 1
    assert vary(queries, "as trained") is queries
    centred, whitened = vary(queries, "centred"), vary(queries, "whitened")
    assert centred.mean(0).abs().max() < 1e-4
    assert count_directions(whitened) == pytest.approx(4, rel=1e-3)
    assert whitened.square().sum() == pytest.approx(float(centred.square().sum()), rel=1e-3)
    assert count_directions(vary(queries, "random")) == pytest.approx(4, rel=0.01)


def test_bias_of_queries_in_one_direction_is_told_from_that_of_keys(world: World) -> None:
    from gate_selection_bias import collect_queries, select_kl, vary
    from study import sample_windows

    queries = collect_queries(world.run, sample_windows(world.recording, 3000))[0]  # of the clean layer
    gate = world.run.model.memory_layer(0).gate

    def kl(found: torch.Tensor) -> float:
        metrics = select_kl(found, lambda q: gate.select(q[None]).indices, 256, gate.num_selected)
        return metrics["kl"] - metrics["even_kl"]

    pointed = queries + 20 * queries.std() * torch.nn.functional.normalize(queries[0, 0], dim=0)
    assert kl(pointed) > 3 * kl(queries)
    assert kl(vary(pointed, "centred")) < 0.5 * kl(pointed)


def test_read_weights_are_measured_as_written() -> None:
    from read_weights import measure

    gate = torch.tensor([[1.0, 2.0, 4.0]])
    even = measure(torch.ones(1, 2, 3), gate)
    assert (even["effective"], even["effective_per_head"]) == pytest.approx((3, 3))
    by_gate = measure(gate[:, None].expand(1, 2, 3), gate)  # attention is the same for all: the gate decides
    assert by_gate["attention_covariance"] == pytest.approx(0, abs=1e-12)
    assert by_gate["head_agreement"] == pytest.approx(1)
    attention = torch.tensor([[[1.0, -3.0, 9.0], [9.0, 3.0, 1.0]]])
    alone = measure(attention, torch.ones(1, 3))
    assert alone["attention_covariance"] == pytest.approx(alone["read_variance"])  # the gate is the same for all
    assert alone["negative"] == pytest.approx(1 / 6)
    assert alone["head_agreement"] == pytest.approx(-0.5)  # ranks 2 1 3 and 3 2 1
    assert measure(torch.zeros(1, 2, 3), gate)["tokens"] == 0


def test_what_heads_read_on_all_text_is_what_the_recording_says(world: World) -> None:
    from read_weights import study

    table = study(world.run, world.recording, 10**9)
    assert (table["tokens"] == world.recording.info.rows).all()
    assert table["effective"].to_numpy() == pytest.approx(table["effective_entries_read"].to_numpy(), rel=0.01)
    assert table["head_agreement"].to_numpy() == pytest.approx(1)  # planted heads are alike


def test_auc_counts_pairs() -> None:
    from entry_meaning import score_auc

    values = np.random.default_rng(0).integers(0, 6, (3, 12)).astype(float)
    sentences = csr_array(np.random.default_rng(1).integers(0, 2, (3, 12)).astype(float))
    found = score_auc(values, sentences).matrix
    for entry in range(3):
        for sentence, has in enumerate(sentences.toarray() > 0):
            pairs = np.sign(values[entry, has][:, None] - values[entry, ~has]) / 2 + 0.5
            assert found[entry, sentence] == pytest.approx(pairs.mean())


def test_entries_that_mean_what_they_say_are_found(world: World) -> None:
    from entry_meaning import choose_entries, study

    entries = {layer: chosen[::5] for layer, chosen in choose_entries(world.recording).items()}
    [detector] = [entry for entry, token in world.plan.truth.detectors.items() if token == 3]
    silent = [*world.plan.truth.duplicates, *world.plan.truth.decoys]  # wired entries whose sentence names no trigger
    entries[PLANTED_LAYER] = np.array(sorted({detector, *entries[PLANTED_LAYER].tolist()} - set(silent)))
    table, summary = study(world.run, world.recording, entries, sample=100, contexts=3)
    by_meaning = summary.set_index("meaning")
    # Values hold the words of the sentence and nothing else.
    assert by_meaning.loc["lens", "own"] > 0.99 and by_meaning.loc["causal", "own"] > 0.97
    for name in ("lens", "causal"):
        assert by_meaning.loc[name, "low"] > 0.3 and by_meaning.loc[name, "p"] == 1e-4
        assert abs(by_meaning.loc[name, "other"] - 0.5) < 0.1
    # Keys know nothing of sentences, but for the detector's.
    row = table.set_index(["layer", "entry"]).loc[(PLANTED_LAYER, detector)]
    assert row["input_own"] == 1 and row["next_own"] > 0.8 and row["fires_on"].startswith("' w3'")
    assert row["raises"].startswith(f"' w{world.plan.pushed}'")
    rest = table[table["entry"] != detector]
    assert abs((rest["input_own"] - rest["input_other"]).mean()) < 0.05


def test_entry_meaning_needs_sentences(world: World) -> None:
    from entry_meaning import study

    with pytest.raises(InputError, match="fewer than two used entries"):
        study(world.run, world.recording, {0: np.array([5])}, sample=1, contexts=1)


def test_shuffled_sentences_keep_lengths_and_words() -> None:
    from sentence_initialisation import shuffle_words

    sentences = ["a b c", "d", "e f"]
    shuffled = shuffle_words(sentences)
    assert [len(one.split()) for one in shuffled] == [3, 1, 2]
    assert sorted(" ".join(shuffled).split()) == ["a", "b", "c", "d", "e", "f"]
    assert shuffled != sentences


def test_random_vectors_that_start_alike_are_an_arm_of_their_own(corpus_dir: Path) -> None:
    from sentence_initialisation import RANDOM, arm_name

    start = {"database_init_path": None}
    assert arm_name(tiny_config(corpus_dir, memory=start)) == RANDOM
    assert arm_name(tiny_config(corpus_dir, memory=start | {"entry_cosine": 0.2})) == f"{RANDOM} of cosine 0.2"


def test_arms_are_compared_at_their_last_step(tiny_run_path: Path, random_runs: list[Path]) -> None:
    from sentence_initialisation import RANDOM, check_comparable, compare, describe_run

    runs = [tiny_run_path, *random_runs]
    table = pd.concat([describe_run(run) for run in runs], ignore_index=True)
    summary = compare(table).set_index("arm")
    assert set(summary.index) == {RANDOM, "sentences.json"}
    last = table.groupby("run")["loss"].last()
    expected = last[tiny_run_path.name] - last[[run.name for run in random_runs]].mean()
    assert summary.loc["sentences.json", "difference"] == pytest.approx(expected)
    assert summary.loc[RANDOM, "runs"] == 2 and summary["drift"].between(0, 2).all()
    assert np.isnan(summary.loc["sentences.json", "low"])  # one run has no spread
    assert check_comparable(runs) == ["train.steps"]
    again = table[table["arm"] != RANDOM].assign(run="again", loss=lambda rows: rows["loss"] + 0.01)
    doubled = pd.concat([table, again], ignore_index=True)
    interval = compare(doubled).set_index("arm").loc["sentences.json"]
    assert interval["low"] < interval["difference"] < interval["high"]
