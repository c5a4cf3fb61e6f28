"""Comparing two recordings: every number against a loop that a reader can check, and refusals of what is not alike."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, spearmanr

from memscope.base.errors import InputError
from memscope.config.load import Config
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.report.compare.changes import METRICS, find_changes
from memscope.report.compare.comparison import write_comparison
from memscope.report.compare.findings import describe
from memscope.report.compare.schema import Comparison
from memscope.report.schema import json_schema
from memscope.run.adapters.own import OwnRun
from memscope.stats.stability import (
    LIVELY,
    halves,
    independent_jaccard,
    jaccard,
    jensen_shannon,
    likeness,
    paired_change,
    rank_correlation,
    sampled_likeness,
    switches,
)
from tests.conftest import tiny_config, untrained_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rough_figures")]

Make = Callable[..., Recording]


@pytest.fixture(scope="module")
def untrained(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Record an untrained model, by default of the tiny run's seed and bank."""

    def make(max_tokens: int | None = None, **sections: dict[str, object]) -> Recording:
        folder = tmp_path_factory.mktemp("untrained")
        config: Config = tiny_config(corpus_dir, **sections)
        run = untrained_run(config, folder / "start")
        record(OwnRun(run), corpus_dir / "valid.jsonl", folder / "recording", RecordOptions(max_tokens=max_tokens))
        return Recording(folder / "recording")

    return make


@pytest.fixture(scope="module")
def start(untrained: Make) -> Recording:
    """The tiny run before training, on the same text."""
    return untrained()


@pytest.fixture(scope="module")
def folder(start: Recording, tiny_recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare")
    written = sorted(write_comparison(start, tiny_recording, out))
    assert written == sorted(path for path in out.rglob("*") if path.is_file())
    return out


def random_usage(seed: int, n: int = 200, total: int = 3000) -> np.ndarray:
    chance = np.random.default_rng(seed)
    share = chance.pareto(0.7, n) * (chance.random(n) < 0.6)
    return chance.multinomial(total, share / share.sum())


def naive_divergence(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for x, y in zip(a / a.sum(), b / b.sum(), strict=True):
        for share in (x, y):
            if share > 0:
                total += share * np.log(share / ((x + y) / 2)) / 2
    return total


@pytest.mark.parametrize("seed", range(5))
def test_likeness_equals_naive_loops(seed: int) -> None:
    a, b = random_usage(seed), random_usage(seed + 100)
    found = likeness(a, b)
    used_a, used_b = ({entry for entry, count in enumerate(side) if count} for side in (a, b))
    both = sorted(used_a & used_b)
    assert found.jensen_shannon == pytest.approx(naive_divergence(a, b))
    assert found.jaccard == len(used_a & used_b) / len(used_a | used_b)
    assert found.rank_correlation == pytest.approx(spearmanr(a, b).statistic)
    assert found.rank_correlation_both == pytest.approx(spearmanr(a[both], b[both]).statistic)


def test_equal_usage_is_as_alike_as_can_be_whatever_its_size() -> None:
    a = random_usage(1)
    assert likeness(a, 3 * a) == pytest.approx((1.0, 1.0, 0.0, 1.0))


def test_disjoint_usage_is_ln_2_nats_apart() -> None:
    assert jensen_shannon(np.array([4, 0, 0]), np.array([0, 1, 2])) == pytest.approx(np.log(2))
    assert jaccard(np.array([4, 0, 0]), np.array([0, 1, 2])) == 0


def test_nothing_used_is_like_nothing_used() -> None:
    none, some = np.zeros(5, np.int64), np.arange(5)
    assert (jensen_shannon(none, none), jaccard(none, none)) == (0.0, 1.0)
    assert (jensen_shannon(none, some), jaccard(none, some)) == (pytest.approx(np.log(2)), 0.0)


@pytest.mark.parametrize("a", [np.array([3, 3, 3, 3]), np.array([1, 2])])
def test_a_constant_side_or_two_entries_have_no_rank_correlation(a: np.ndarray) -> None:
    assert rank_correlation(a, np.arange(len(a))) is None


def test_independent_sets_overlap_as_drawn_sets_do() -> None:
    chance = np.random.default_rng(0)
    drawn = [
        jaccard(*(np.isin(np.arange(500), chance.choice(500, size, replace=False)) for size in (100, 250)))
        for _ in range(400)
    ]
    expected = independent_jaccard(np.arange(500) < 100, np.arange(500) < 250)
    assert np.mean(drawn) == pytest.approx(expected, rel=0.01)


def test_samples_of_one_gate_lie_apart_as_the_chi_square_law_says() -> None:
    """Of two samples of size D over K even entries the divergence is about (K - 1) / (4 D)."""
    even = np.full(50, 200)
    assert sampled_likeness(even, even).jensen_shannon == pytest.approx(49 / (4 * even.sum()), rel=0.2)


def test_samples_depend_on_the_seed_alone() -> None:
    a, b = random_usage(1), random_usage(2)
    assert sampled_likeness(a, b) == sampled_likeness(a, b)
    assert sampled_likeness(a, b) != sampled_likeness(a, b, seed=1)


def test_samples_of_one_gate_look_like_samples_of_one_gate() -> None:
    """Two real samples of a distribution lie as far apart as the yardstick says."""
    a, b = (np.random.default_rng(seed).multinomial(5000, random_usage(9) / 3000) for seed in (1, 2))
    found, expected = likeness(a, b), sampled_likeness(a, b)
    assert found.jensen_shannon == pytest.approx(expected.jensen_shannon, rel=0.5)
    assert found.jaccard == pytest.approx(expected.jaccard, abs=0.1)


def test_switches_equal_a_naive_loop() -> None:
    a, b = random_usage(3), random_usage(4, total=2000)
    found = switches(a, b)
    died = [entry for entry in range(len(a)) if a[entry] >= LIVELY and b[entry] == 0]
    woke = [entry for entry in range(len(a)) if b[entry] >= LIVELY and a[entry] == 0]
    assert sorted(found.died) == died and sorted(found.woke) == woke
    assert (np.diff(a[found.died]) <= 0).all() and (np.diff(b[found.woke]) <= 0).all()
    by_chance = 0.0
    for x, y in zip(a, b, strict=True):
        p = (x + y) / 5000
        by_chance += (1 - sum(binom.pmf(k, 3000, p) for k in range(LIVELY))) * (1 - p) ** 2000
    assert found.died_by_sampling == pytest.approx(by_chance)


def test_expected_switches_are_those_of_drawn_samples() -> None:
    pool = random_usage(5, n=400, total=4000)
    chance = np.random.default_rng(0)
    drawn = [
        len(switches(*(chance.multinomial(2000, pool / 4000) for _ in range(2))).died) for _ in range(300)
    ]  # each pair is compared with its own pool, but what counts is how many there are
    half = pool // 2
    assert np.mean(drawn) == pytest.approx(switches(half, pool - half).died_by_sampling, abs=0.3)


def test_a_paired_change_equals_naive_sums_and_its_error_a_bootstrap() -> None:
    chance = np.random.default_rng(0)
    tokens = chance.integers(50, 500, 60)
    a, b = chance.normal(5, 1, 60), chance.normal(5, 1, 60)
    found = paired_change(tokens, a, b)
    sums = [sum(t * loss for t, loss in zip(tokens, side, strict=True)) / sum(tokens) for side in (a, b)]
    assert found.change == pytest.approx(sums[1] - sums[0])
    assert found.lower == sum(y < x for x, y in zip(a, b, strict=True))
    picks = [chance.integers(0, 60, 60) for _ in range(4000)]
    bootstrap = [(tokens[i] * (b - a)[i]).sum() / tokens[i].sum() for i in picks]
    assert found.se == pytest.approx(np.std(bootstrap), rel=0.1)
    assert paired_change(tokens[:1], a[:1], b[:1]).se is None


def test_changes_of_two_recordings_are_those_of_their_usage(start: Recording, tiny_recording: Recording) -> None:
    changes = find_changes(start, tiny_recording)
    a, b = start.usage(), tiny_recording.usage()
    assert [row.layer for row in changes.layers] == [None, 0, 1]
    sides = [(a.sum(0), b.sum(0)), (a[0], b[0]), (a[1], b[1])]
    for row, (one, other) in zip(changes.layers, sides, strict=True):
        assert (row.selections_a, row.selections_b) == (one.sum(), other.sum())
        assert row.jensen_shannon == pytest.approx(naive_divergence(one, other))
        assert row.rank_correlation == pytest.approx(spearmanr(one, other).statistic)
        names = set(
            changes.switched.loc[changes.switched["layer"] == ("all" if row.layer is None else str(row.layer)), "entry"]
        )
        expected = {e for e in range(64) if max(one[e], other[e]) >= LIVELY and min(one[e], other[e]) == 0}
        assert names == expected
        assert row.died + row.woke == len(expected)
    folds = tiny_recording.usage_folds().astype(int)
    split = halves(folds[:, 1])
    assert split is not None and changes.layers[2].halves_jensen_shannon_b == split.jensen_shannon


def test_halves_of_one_text_lie_as_far_apart_as_texts_of_that_size() -> None:
    """Documents have tastes of their own, so that independent samples would claim several times too little."""
    chance = np.random.default_rng(0)
    source = 1 / np.arange(1, 401)

    def documents() -> np.ndarray:
        tastes = [chance.dirichlet(source / source.sum() * 100 + 1e-9) for _ in range(20)]
        return np.stack([chance.multinomial(2000, taste) for taste in tastes])

    text = documents()
    others = [(documents()[:10].sum(0), documents()[:10].sum(0)) for _ in range(20)]
    found = halves(text)
    assert found is not None
    assert found.jensen_shannon == pytest.approx(np.mean([naive_divergence(*pair) for pair in others]), rel=0.2)
    assert found.jaccard == pytest.approx(np.mean([jaccard(*pair) for pair in others]), abs=0.05)
    assert found.rank_correlation == pytest.approx(np.mean([rank_correlation(*pair) for pair in others]), abs=0.05)
    switched = [len(one) for pair in others for one in switches(*pair)[:2]]
    assert found.switched == pytest.approx(np.mean(switched), rel=0.3)
    assert found.jensen_shannon > 3 * sampled_likeness(text.sum(0), documents().sum(0)).jensen_shannon


def test_one_fold_cannot_be_halved() -> None:
    assert halves(np.array([[0, 0], [3, 4], [0, 0]])) is None


def test_changes_of_evenness_are_differences_of_the_census(start: Recording, tiny_recording: Recording) -> None:
    changes = find_changes(start, tiny_recording)
    assert len(changes.evenness) == 3 * len(METRICS)
    before, after = start.layer_metrics().set_index("layer"), tiny_recording.layer_metrics().set_index("layer")
    for row in changes.evenness:
        if row.layer is not None:
            assert row.change == pytest.approx(after[row.metric][row.layer] - before[row.metric][row.layer])
            name = f"{row.metric}_se"
            if name in after:
                assert row.change_se == pytest.approx(np.hypot(after[name][row.layer], before[name][row.layer]))
            else:
                assert row.change_se is None


def test_relations_are_counted_entry_by_entry(start: Recording, tiny_recording: Recording) -> None:
    [change] = find_changes(start, tiny_recording).predicates
    bank = tiny_recording.entries(limit=64, sort="entry", descending=False)
    having = [e for e, names in enumerate(bank["predicate"]) if isinstance(names, np.ndarray) and len(names)]
    assert (change.predicate, change.entries_a, change.entries_b) == ("place of birth", len(having), len(having))
    assert (change.bank_share_b, change.selection_share_b, change.change) == (1, 1, 0)  # every sentence has this one


def test_shares_of_several_relations_equal_a_naive_loop() -> None:
    from memscope.report.compare.changes import _predicate_shares

    predicates = pd.Series([np.array(["a", "b"]), np.array(["a", "a"]), np.array([""]), None, np.array([], object)])
    usage = np.array([10, 30, 1000, 1000, 1000])
    shares = _predicate_shares(predicates, usage)
    assert shares["entries"].to_dict() == {"a": 2, "b": 1}
    assert shares["bank_share"].to_dict() == {"a": 1.0, "b": 0.5}
    assert shares["selection_share"].to_dict() == {"a": 1.0, "b": 0.25}


def test_loss_on_the_same_text_is_paired_by_document(start: Recording, tiny_recording: Recording) -> None:
    loss = find_changes(start, tiny_recording).loss
    assert loss.paired and loss.documents == 6 and loss.documents_lower == 6  # training lowers it everywhere
    assert loss.change == pytest.approx(tiny_recording.census.loss - start.census.loss)
    assert loss.change_se is not None and 0 < loss.change_se < abs(loss.change)


def test_a_recording_against_itself_has_not_changed(tiny_recording: Recording, tmp_path: Path) -> None:
    changes = find_changes(tiny_recording, tiny_recording)
    for row in changes.layers:
        assert (row.jensen_shannon, row.jaccard, row.died, row.woke) == (0, 1, 0, 0)
        assert row.rank_correlation == pytest.approx(1)
    assert all(row.change == 0 for row in changes.evenness)
    assert changes.loss.change == 0
    list(write_comparison(tiny_recording, tiny_recording, tmp_path / "same"))


def test_other_sentences_leave_distributions_alone_to_compare(
    untrained: Make, tiny_recording: Recording, tmp_path: Path
) -> None:
    other = untrained(train={"seed": 7})
    changes = find_changes(other, tiny_recording)
    assert changes.different_entries > 32
    assert changes.layers == [] and len(changes.switched) == 0
    assert len(changes.evenness) == 3 * len(METRICS)
    names = {path.name for path in write_comparison(other, tiny_recording, tmp_path)}
    assert "compare.html" in names and "usage.csv" not in names and "divergence.svg" not in names
    assert "did not start alike" in (tmp_path / "compare.html").read_text()
    assert json.loads((tmp_path / "compare.json").read_text())["same_bank"] is False


def test_random_entries_are_alike_only_from_the_same_seed(untrained: Make) -> None:
    random = {"database_init_path": None}
    one, same, other = (untrained(max_tokens=200, memory=random, train={"seed": seed}) for seed in (1, 1, 2))
    assert find_changes(one, same).different_entries == 0
    assert find_changes(one, other).different_entries == 64


def test_other_text_is_said_to_differ(untrained: Make, tiny_recording: Recording) -> None:
    short = untrained(max_tokens=500)
    changes = find_changes(short, tiny_recording)
    assert not changes.loss.paired
    words = {finding.question: finding.answer for finding in describe(short, tiny_recording, changes)}
    assert "texts differ" in words["Has the loss changed?"]
    assert "depend on D" in words["Has selection become more even?"]


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"memory": {"knowledge_num": 256}}, r"its bank has 256 entries, that of \S+ has 64"),
        ({"model": {"block": ["ffn", "memory"]}}, r"its memory layers are 1, those of \S+ are 0, 1"),
    ],
)
def test_banks_that_cannot_be_compared_are_refused(
    untrained: Make, tiny_recording: Recording, tmp_path: Path, sections: dict[str, dict[str, object]], reason: str
) -> None:
    other = untrained(max_tokens=100, **sections)
    with pytest.raises(InputError, match=reason):
        list(write_comparison(tiny_recording, other, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_files_agree(folder: Path, start: Recording, tiny_recording: Recording) -> None:
    numbers = json.loads((folder / "compare.json").read_text())
    page, markdown = (folder / "compare.html").read_text(), (folder / "compare.md").read_text()
    assert numbers["same_bank"] and numbers["same_corpus"] and not numbers["same_model"]
    layers = pd.read_parquet(folder / "layers.parquet")
    assert layers["jensen_shannon"].tolist() == [row["jensen_shannon"] for row in numbers["layers"]]
    usage = pd.read_csv(folder / "usage.csv")
    assert usage["count_a"].sum() == start.usage().sum() and usage["count_b"].sum() == tiny_recording.usage().sum()
    for finding in numbers["findings"]:
        assert finding["question"] in page and finding["question"] in markdown
    d = tiny_recording.info.rows * tiny_recording.info.selected
    assert f"{d:,}" in numbers["findings"][0]["answer"]
    assert "<script" not in page


def test_the_numbers_follow_their_schema(folder: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((folder / "compare.schema.json").read_text())
    assert schema == json_schema(Comparison)
    jsonschema.Draft202012Validator(schema).validate(json.loads((folder / "compare.json").read_text()))
