"""Every kind of anomaly is found where it is planted, and none in recordings that have all that misleads a test."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from memscope.base.parquet import read_parquet
from memscope.census.aggregate import write_usage
from memscope.census.anomalies.entries import class_bits, write_anomalies
from memscope.census.anomalies.kernels import EvennessSum, ReadCount, count_negative, describe_tokens, sum_evenness
from memscope.census.anomalies.looks import RowText, lower_tail, pick_looks, row_text, stretch_length, upper_tail
from memscope.census.neighbours import write_neighbours
from memscope.census.strata import divide_recording
from memscope.query.recording import Recording
from memscope.recording.token_rows import TokenRows
from memscope.report.anomalies import ERROR_RATE, KINDS, anomalies_in_words, find_anomalies
from memscope.report.findings import find
from memscope.report.gate_bias.write import metrics
from memscope.report.health import health
from memscope.testing.anomalies import KINDS as PLANTED
from memscope.testing.anomalies import PlantedText, plant_anomalies
from memscope.testing.recordings import write_recording
from tests.synthetic import make_rows

CLEAN_SEEDS = range(4)


def found(recording: Recording, error_rate: float = ERROR_RATE) -> set[tuple[object, ...]]:
    table = find_anomalies(recording, error_rate)[["kind", "layer", "entry", "other", "label"]]
    return set(table.itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> PlantedText:
    return plant_anomalies(tmp_path_factory.mktemp("planted") / "recording", seed=0)


def test_every_kind_is_planted() -> None:
    assert {*PLANTED, "preference"} == KINDS.keys()  # preferences have a test of their own
    assert sum(kind.error_share for kind in KINDS.values()) <= 1


@pytest.mark.slow
def test_all_kinds_are_found_and_nothing_else(planted: PlantedText, tmp_path: Path) -> None:
    for truth in (planted, plant_anomalies(tmp_path / "other", seed=1, burst=0.5)):
        assert found(Recording(truth.path)) == truth.rows
        assert {row[0] for row in truth.rows} == set(PLANTED)


@pytest.mark.slow
def test_clean_recordings_have_none(tmp_path: Path) -> None:
    """At a rate that expects as many false ones of them all as 5% does of twenty."""
    clean = [plant_anomalies(tmp_path / str(seed), 100 + seed, kinds=(), tokens=5000) for seed in CLEAN_SEEDS]
    error_rate = 20 * ERROR_RATE / len(CLEAN_SEEDS)
    assert [found(Recording(one.path), error_rate) for one in clean] == [set()] * len(CLEAN_SEEDS)


def test_anomalies_are_said_in_words_in_the_report_and_on_the_first_page(planted: PlantedText) -> None:
    recording = Recording(planted.path)
    words = anomalies_in_words(recording)
    assert list(dict.fromkeys(words["kind"])) == [kind for kind in KINDS if kind in PLANTED]  # faults first
    row = words[words["kind"] == "duplicate"].iloc[0]
    assert row["text"] == f"selected with entry {row['other']} at 100% of their tokens"
    assert len(metrics(recording, find(recording)).anomalies) == len(words) == len(planted.rows)
    flag = health(recording)[-1]
    assert flag.level == "watch"
    assert "1 layer that leaves entries out" in flag.text and "1 pair of entries selected together" in flag.text


# Small recordings, each built for one question: entries 60 and 61 are put in, all others are ordinary.

ONE, OTHER, LENGTH, DOCUMENTS, WINDOW = 60, 61, 200, 30, 20
NOWHERE = np.zeros(LENGTH * DOCUMENTS, bool)


class Small(NamedTuple):
    """A recording under construction."""

    rows: TokenRows

    def put(self, entry: int, where: np.ndarray, slot: int) -> None:
        self.rows.indices[where, 0, slot] = entry

    def kinds(self, folder: Path) -> dict[str, float]:
        """Kinds of anomalies that layer 0 has, with their effects."""
        info = write_recording(folder, self.rows, knowledge_num=64, window=WINDOW)
        write_usage(folder, info, divide_recording(folder, info))
        write_anomalies(folder, info, write_neighbours(folder, info))
        table = read_parquet(folder / "anomalies.parquet").to_pandas()
        table = table[(table["layer"] == 0) & (table["p"] <= 0.001)]
        return dict(zip(table["kind"], table["effect"], strict=True))


@pytest.fixture
def small() -> Small:
    """Two gate heads of two selections; 12 words."""
    chance = np.random.default_rng(0)
    rows = make_rows([LENGTH] * DOCUMENTS, entries=60, heads=2, seed=1)
    token = chance.integers(3, 15, len(rows.doc)).astype(np.uint32)
    gate = -np.sort(-chance.uniform(0.5, 1.5, rows.gate.shape))
    read = gate * chance.uniform(-1, 1, gate.shape)
    gate, read = gate.astype(np.float16), read.astype(np.float16)
    return Small(replace(rows, token=token, gate=gate, read=read, read_norm=np.abs(read)))


def test_an_ordinary_recording_has_none(small: Small, tmp_path: Path) -> None:
    assert small.kinds(tmp_path) == {}


@pytest.mark.parametrize(("share", "named"), [(0.55, {}), (1.0, {"token": 1.0})])
def test_two_heads_that_select_an_entry_count_its_token_once(
    share: float, named: dict[str, float], small: Small, tmp_path: Path
) -> None:
    where = (small.rows.token == 5) & (np.random.default_rng(3).random(len(NOWHERE)) < share)
    small.put(ONE, where, slot=0)
    small.put(ONE, where, slot=2)
    assert small.kinds(tmp_path) == named


def test_duplicates_are_found_where_heads_select_one_of_them_twice(small: Small, tmp_path: Path) -> None:
    where = np.random.default_rng(3).random(len(NOWHERE)) < 0.1
    for entry, slot in ((ONE, 0), (ONE, 2), (OTHER, 1)):
        small.put(entry, where, slot)
    assert small.kinds(tmp_path) == {"duplicate": 1.0}


@pytest.mark.parametrize("bursts", [False, True])
def test_one_burst_is_no_evidence_where_all_selections_come_in_bursts(
    bursts: bool, small: Small, tmp_path: Path
) -> None:
    if bursts:
        small.rows.indices[:] = small.rows.indices[np.arange(len(NOWHERE)) // 50 * 50]
    once = NOWHERE.copy()
    once[1010:1070] = True
    small.put(ONE, once, slot=0)
    small.put(OTHER, once, slot=1)
    assert set(small.kinds(tmp_path)) == (set() if bursts else {"document"})


def test_an_entry_all_over_one_document_is_bound_to_it(small: Small, tmp_path: Path) -> None:
    small.put(ONE, (small.rows.doc == 7) & (np.arange(len(NOWHERE)) % 3 == 0), slot=0)
    assert small.kinds(tmp_path) == {"document": 1.0}


def test_entries_that_take_turns_on_the_same_words_exclude_each_other(small: Small, tmp_path: Path) -> None:
    coin = np.random.default_rng(3).random(len(NOWHERE))
    small.put(ONE, coin < 0.15, slot=0)
    small.put(OTHER, coin > 0.85, slot=1)
    assert small.kinds(tmp_path) == {"exclusive": 0.0}


def test_entries_of_different_words_exclude_each_other_and_nobody_wonders(small: Small, tmp_path: Path) -> None:
    coin = np.random.default_rng(3).random(len(NOWHERE)) < 0.8
    small.put(ONE, coin & (small.rows.token < 6), slot=0)
    small.put(OTHER, coin & (small.rows.token > 11), slot=1)
    assert small.kinds(tmp_path) == {}


def test_heads_that_select_one_entry_each_exclude_by_construction(small: Small, tmp_path: Path) -> None:
    rows = replace(small.rows, margin=np.repeat(small.rows.margin, 2, axis=2))  # four heads
    coin = np.random.default_rng(3).random(len(NOWHERE))
    Small(rows).put(ONE, coin < 0.15, slot=0)
    Small(rows).put(OTHER, coin > 0.85, slot=0)
    assert Small(rows).kinds(tmp_path) == {}


def test_attention_that_weighs_all_alike_is_told_from_reads_that_are_equal(small: Small, tmp_path: Path) -> None:
    read = small.rows.read.copy()
    read[:, 0] = (0.5 * small.rows.gate[:, 0].astype(np.float32)).astype(np.float16)
    even = replace(small.rows, read=read, read_norm=np.abs(read))
    assert Small(even).kinds(tmp_path) == {"uniform": pytest.approx(1, abs=1e-4)}
    [label] = set(read_parquet(tmp_path / "anomalies.parquet")["label"].to_pylist())
    assert label == "attention"


@pytest.mark.parametrize(("cancels", "named"), [(True, set()), (False, {"unread"})])
def test_an_entry_whose_read_heads_cancel_is_read(cancels: bool, named: set[str], small: Small, tmp_path: Path) -> None:
    small.put(ONE, np.random.default_rng(3).random(len(NOWHERE)) < 0.1, slot=1)
    here = small.rows.indices == ONE
    small.rows.read[here] *= 0.001
    assert small.rows.read_norm is not None
    small.rows.read_norm[here] *= 1 if cancels else 0.001
    assert set(small.kinds(tmp_path)) == named


def test_classes_are_of_texts(tmp_path: Path) -> None:
    texts = [" 12", "3", "a1", ".", " --", "", " ", "\n", "Ab", " AB", "b", "\ufffd", "Ä", "½"]
    bits = class_bits(texts).tolist()
    of_class = [[text for text, bit in zip(texts, bits, strict=True) if bit >> number & 1] for number in range(3)]
    assert of_class == [[" 12", "3"], [".", " --"], ["Ab", " AB", "Ä"]]


def test_a_stretch_is_as_long_as_selection_repeats_itself(small: Small, tmp_path: Path) -> None:
    info = write_recording(tmp_path, small.rows, knowledge_num=64, window=WINDOW)
    text, indices = row_text(tmp_path, info), small.rows.indices[:, 0]
    assert stretch_length(indices, text) == 8
    blocks = np.arange(len(indices))
    lengths = [stretch_length(indices[blocks // size * size], text) for size in (4, 20, 50)]
    assert lengths == [8, 64, 128]
    assert stretch_length(indices[:1].repeat(len(indices), 0), text) == 8  # the same everywhere: nothing comes and goes


def test_looks_are_one_row_in_each_stretch(small: Small, tmp_path: Path) -> None:
    info = write_recording(tmp_path, small.rows, knowledge_num=64, window=WINDOW)
    text = row_text(tmp_path, info)
    rows = np.flatnonzero(np.random.default_rng(0).random(len(NOWHERE)) < 0.1)
    stretches = text.stretch_of(rows, 16)
    looks = pick_looks(rows, stretches)
    assert set(looks) <= set(rows)
    assert text.stretch_of(looks, 16).tolist() == np.unique(stretches).tolist()
    per_document = -(-LENGTH // 16)
    assert stretches.tolist() == [row // LENGTH * per_document + row % LENGTH // 16 for row in rows]


def test_tails_are_no_smaller_than_those_of_the_true_law() -> None:
    chances = np.random.default_rng(0).random(12) ** 2
    law = np.ones(1)
    for chance in chances:
        law = np.convolve(law, [1 - chance, chance])  # of the number of hits
    for hits in range(13):
        assert upper_tail(hits, chances) >= law[hits:].sum() - 1e-12 or hits < chances.sum() + 1
        assert lower_tail(hits, chances) >= law[: hits + 1].sum() - 1e-12 or hits > chances.sum() - 1
    assert upper_tail(12, np.full(12, 0.5)) == pytest.approx(0.5**12)
    assert (upper_tail(0, chances[:0]), lower_tail(0, chances[:0])) == (1.0, 1.0)


def test_tokens_of_entries_are_described_as_a_plain_count_does() -> None:
    chance = np.random.default_rng(0)
    token, doc = chance.integers(0, 5, 300), np.arange(300) // 60
    previous = np.where(np.arange(300) % 20 == 0, -1, np.roll(token, 1))
    text = RowText(token, previous, token * 6 + previous + 1, doc, np.arange(5) * 60, np.full(5, 60))
    bits = np.array([1, 2, 4, 6, 0], np.uint8)
    of = [np.flatnonzero(chance.random(300) < share) for share in (0.3, 0.02, 0.9)]
    starts = np.cumsum([0, *map(len, of)])
    found = describe_tokens(starts, np.concatenate(of), text, bits)
    for entry, rows in enumerate(of):
        for got, labels in (
            (found.token, token),
            (found.previous, previous),
            (found.bigram, text.bigram),
            (found.doc, doc),
        ):
            counts = Counter(labels[rows][labels[rows] >= 0].tolist())
            label, hits = min(counts.items(), key=lambda item: (-item[1], item[0]))
            assert (got.label[entry], got.hits[entry]) == (label, hits)
        assert found.starts[entry] == (previous[rows] < 0).sum()
        assert found.classes[entry].tolist() == [(bits[token[rows]] >> n & 1).sum() for n in range(3)]


def test_negative_reads_are_summed_over_the_slots_of_an_entry() -> None:
    indices = np.array([[1, 1, 2], [1, 2, 0], [2, 1, 1]])
    read = np.array([[-3.0, 1.0, -1.0], [2.0, 0.0, -1.0], [-1.0, -1.0, 2.0]], np.float32)
    counts, last = np.zeros((3, len(ReadCount)), np.int64), np.full(3, -1)
    count_negative(indices, read, np.array([0, 0, 1]), last, counts)
    assert counts.tolist() == [[1, 1, 1, 1], [3, 1, 2, 1], [3, 2, 2, 2]]


def test_evenness_of_reads_is_that_of_their_shares() -> None:
    gate = np.array([[1.0, 0.5, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0]], np.float32)
    read = np.array([[1.0, -0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    sums = np.zeros(len(EvennessSum))
    sum_evenness(gate, read, sums)
    shares = 2 * np.sqrt(2) / 4  # exp(entropy) of 1/2, 1/4, 1/4, over four
    assert sums.tolist() == pytest.approx([1, shares, shares, 1, 1])
