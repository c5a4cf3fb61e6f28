"""The census of a recording against loops over every selection, scipy's statistics, and itself on parts of the text."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy, spearmanr

from memscope.base.parquet import read_parquet
from memscope.census.aggregate import write_aggregates
from memscope.census.counts import count_layer
from memscope.census.kernels import (
    MARGIN_BINS,
    MARGIN_LOWEST,
    N_SUMS,
    N_WEIGHTS,
    SHARE_BINS,
    UNREAD_SHARE,
    Sum,
    read_tokens,
    tally,
)
from memscope.census.strata import divide_recording, token_frequency
from memscope.recording.census_file import Census, Evenness, read_census
from memscope.recording.info import RecordingInfo
from memscope.recording.token_rows import TokenRows
from memscope.stats.usage import usage_metrics
from tests.processes import threads_as_processes
from tests.synthetic import all_rows, cut, make_rows, selections_of, write_recording

LENGTHS = [40, 25, 60, 33, 50, 20, 45, 30, 28, 39, 41, 22]
GROUPS = list("aababbaabbab")
N = 80
"""Entries of the bank; nothing selects the last 16."""
SUMS = [column.name.lower() for column in Sum]
READERS_MEANS = (
    "gate_entropy",
    "gate_top_share",
    "read_entropy",
    "effective_entries_read",
    "read_top_share",
    "gate_read_rank_correlation",
    "gate_attention_rank_correlation",
)
"""Means over the tokens that read anything."""


# --- the compiled loops -----------------------------------------------------------------------------------------------


def test_tally_equals_a_loop_over_selections() -> None:
    rows, chance = make_rows([300], entries=20, selected=3), np.random.default_rng(0)
    indices, gate = rows.indices[:, 0], rows.gate[:, 0].astype(np.float32)
    read = np.abs(rows.read[:, 0].astype(np.float32))
    group, classes = chance.integers(0, 2, 300), np.array([0, 4]) + chance.integers(0, 4, (300, 2))
    counts, weights = np.ones((20, 8), np.int32), np.ones((2, 20, N_WEIGHTS))  # added to what is there
    expected_counts, expected_weights = counts.copy(), weights.copy()
    indices[chance.random(indices.shape) < 0.1] = -1  # tokens that select fewer
    tally(indices, gate, read, group, classes, counts, weights)
    for t in range(300):
        for k in range(3):
            entry = indices[t, k]
            if entry < 0:
                continue
            expected_weights[group[t], entry] += [gate[t, k], abs(read[t, k]), read[t, k]]
            for column in classes[t]:
                expected_counts[entry, column] += 1
    np.testing.assert_array_equal(counts, expected_counts)
    np.testing.assert_array_equal(weights, expected_weights)


def odd_weights(seed: int, tokens: int = 300, k: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gate scores, absolute read weights, margins and losses with ties, zeros, silence and NaN."""
    chance = np.random.default_rng(seed)
    gate = (chance.integers(0, 5, (tokens, k)) / 4).astype(np.float32)
    read = np.abs(gate * chance.integers(-2, 3, (tokens, k)).astype(np.float32))
    gate[50:200], read[50:200] = chance.random((150, k)), chance.random((150, k)) ** 6
    gate[:3], read[:3] = 0, 0  # tokens that select without a score and read nothing
    gate[3], read[3] = 0.5, 0.25  # one without any preference
    gate[4], read[4] = [1, 0, 0, 0, 0], [2, 0, 0, 0, 0]  # all in one entry
    gate[5], read[5] = 0.5, 0  # scores, yet nothing is read
    margin = chance.exponential(0.1, (tokens, 2)).astype(np.float32)
    margin[6:9] = [[np.nan, np.nan], [0, np.nan], [1e-9, 6e4]]
    loss = (chance.random(tokens) * 9).astype(np.float32)
    loss[chance.random(tokens) < 0.1] = np.nan
    return gate, read, margin, loss


def odd_comparison(read: np.ndarray, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Norms of read weights, margins in raw scores, and which selections raw scores would have made."""
    chance = np.random.default_rng(9)
    norm = read + (chance.random(read.shape) ** 9 * (chance.random(read.shape) < 0.5)).astype(np.float32)
    norm[:3] = 0
    return norm, margin - chance.random(margin.shape, np.float32), (chance.random(read.shape) < 0.3).astype(np.float32)


def naive_token(
    gate: np.ndarray,
    read: np.ndarray,
    norm: np.ndarray,
    margin: np.ndarray,
    score_margin: np.ndarray,
    by_score: np.ndarray,
    loss: float,
) -> dict[str, float]:
    """What one token adds to the sums."""
    known = margin[~np.isnan(margin)]
    sums = {
        "tokens": 1.0,
        "selections": float(len(gate)),
        "margin": float(known.sum()),
        "margins": float(len(known)),
        "by_score": by_score.sum(),
    }
    sums["score_margin"] = float(score_margin[~np.isnan(margin)].sum())
    sums["unread_by_norm"] = float(sum(n < UNREAD_SHARE * norm.sum() or not norm.sum() for n in norm))
    sums |= {} if math.isnan(loss) else {"loss": float(loss), "losses": 1.0}
    share = read / read.sum() if read.sum() else np.zeros(len(read))
    sums["unread"] = float(sum(s < UNREAD_SHARE for s in share))
    if not read.sum():
        return sums
    attention = np.divide(read, gate, out=np.zeros_like(read), where=gate > 0)

    def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
        return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)

    return sums | {
        "readers": 1.0,
        "gate_entropy": entropy(gate) if gate.sum() else 0.0,
        "gate_top_share": gate.max() / gate.sum() if gate.sum() else 0.0,
        "read_entropy": entropy(read),
        "effective_entries_read": math.exp(entropy(read)),
        "read_top_share": share.max(),
        "gate_read_rank_correlation": rank_correlation(gate, read),
        "gate_attention_rank_correlation": rank_correlation(gate, attention),
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_sums_over_tokens_equal_scipy_token_by_token(seed: int) -> None:
    gate, read, margin, loss = odd_weights(seed)
    classes = np.array([0, 3]) + np.random.default_rng(seed).integers(0, 3, (300, 2))
    sums = np.zeros((6, N_SUMS))
    histograms = [np.zeros(n, np.int64) for n in (SHARE_BINS, SHARE_BINS, MARGIN_BINS)]
    norm, score_margin, by_score = odd_comparison(read, margin)
    indices = np.zeros(gate.shape, np.int64)
    read_tokens(indices, gate, read, norm, margin, score_margin, by_score, loss, classes, sums, *histograms)

    expected = np.zeros_like(sums)
    shares, entropies = [], []
    for t in range(300):
        g, r = gate[t].astype(float), read[t].astype(float)
        judged = (values[t].astype(float) for values in (norm, margin, score_margin, by_score))
        one = naive_token(g, r, *judged, float(loss[t]))
        for row in classes[t]:
            expected[row] += [one.get(name, 0.0) for name in SUMS]
        shares += (r / r.sum() if r.sum() else np.zeros(5)).tolist()
        entropies += [one["gate_entropy"] / math.log(5)] if "readers" in one else []
    np.testing.assert_allclose(sums, expected, rtol=1e-6, atol=1e-9)
    assert histograms[0].sum() == gate.size
    assert histograms[1].sum() == len(entropies) == (read.sum(1) > 0).sum()
    assert histograms[2].sum() == (~np.isnan(margin)).sum()
    # An edge of a bin may fall to either side by one rounding: compare the counts below every edge, give or take those.
    for values, found in ((shares, histograms[0]), (entropies, histograms[1])):
        for edge in range(1, SHARE_BINS):
            below = sum(found[:edge])
            assert sum(v < edge / SHARE_BINS - 1e-6 for v in values) <= below
            assert below <= sum(v < edge / SHARE_BINS + 1e-6 for v in values)


def test_margins_fall_into_half_octaves() -> None:
    octaves = np.array([-40, -17, -16.0, -15.9, -15.49, -1, -0.9, -0.4, 0, 0.6, 7.9, 15])
    margin = np.append(2**octaves, [0.0, np.nan]).astype(np.float32)[:, None]
    n = len(margin)
    found = np.zeros(MARGIN_BINS, np.int64)
    one, empty = np.ones((n, 2), np.float32), np.zeros(SHARE_BINS, np.int64)
    sums, loss = np.zeros((1, N_SUMS)), np.zeros(n, np.float32)
    classes = np.zeros((n, 1), np.int64)
    indices = np.zeros(one.shape, np.int64)
    read_tokens(indices, one, one, one, margin, margin, one, loss, classes, sums, empty, empty.copy(), found)
    bins = [min(max(math.floor((octave - MARGIN_LOWEST) * 2), 0), 47) for octave in octaves] + [0]
    np.testing.assert_array_equal(found, np.bincount(bins, minlength=MARGIN_BINS))


def test_a_single_selection_has_no_entropy_and_no_order() -> None:
    one = np.ones((2, 1), np.float32)
    sums, empty = np.zeros((1, N_SUMS)), np.zeros(SHARE_BINS, np.int64)
    margins = np.zeros(MARGIN_BINS, np.int64)
    zeros = np.zeros((2, 1), np.int64)
    read_tokens(zeros, one, one, one, one, one, one, one[:, 0], zeros, sums, empty.copy(), empty, margins)
    wanted = [Sum.READERS, Sum.EFFECTIVE_ENTRIES_READ, Sum.GATE_READ_RANK_CORRELATION]
    assert sums[0, wanted].tolist() == [2, 2, 0]
    assert empty.sum() == 0  # entropy / ln 1 is no number


# --- one layer over all parts -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return make_rows(LENGTHS, seed=5, heads=2, levels=8, beside=True)


@pytest.fixture(scope="module")
def recording(rows: TokenRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording with all its aggregates; 12 documents of two groups."""
    folder = tmp_path_factory.mktemp("aggregate") / "recording"
    write_aggregates(folder, write_recording(folder, rows, groups=GROUPS, knowledge_num=N))
    return folder


@pytest.fixture(scope="module")
def info(recording: Path) -> RecordingInfo:
    from memscope.recording.info import read_info

    return read_info(recording)


@pytest.fixture(scope="module")
def census(recording: Path, info: RecordingInfo) -> Census:
    return read_census(recording, info)


def test_counts_of_a_layer_equal_loops_whatever_the_parts(
    rows: TokenRows, recording: Path, info: RecordingInfo, tmp_path: Path
) -> None:
    strata = divide_recording(recording, info)
    other = write_recording(tmp_path, rows, groups=GROUPS, knowledge_num=N, bounds=[0, 10, 11, 300, 433])
    for axis in (0, 1):
        one, two = count_layer(recording, info, axis, strata), count_layer(tmp_path, other, axis, strata)
        real = strata.cells + len(strata.positions) + len(strata.frequencies)
        np.testing.assert_array_equal(one.counts[:, :real], two.counts[:, :real])  # the rest is shuffled per part
        for a, b in zip(one[1:], two[1:], strict=True):
            np.testing.assert_array_equal(a, b)
        expected = np.zeros((N, real), int)
        weights = np.zeros((2, N, N_WEIGHTS))
        classes = strata.sum_classes(rows.doc, rows.pos, rows.token, 0)
        group = strata.group_of(rows.doc)
        for row, _, entry, gate, read in selections_of(rows, axis):
            expected[entry, classes[row]] += 1
            weights[group[row], entry] += [gate, abs(read), read]
        np.testing.assert_array_equal(one.counts[:, :real], expected)
        np.testing.assert_array_equal(one.weights, weights)
        # tokens shuffled between classes stay the same selections of as many tokens
        start, width = strata.cells, real - strata.cells
        shuffled = one.counts[:, real:]
        np.testing.assert_array_equal(shuffled.sum(0), expected[:, start : start + width].sum(0))
        np.testing.assert_array_equal(shuffled[:, : len(strata.positions)].sum(1), expected[:, : strata.cells].sum(1))


def test_token_frequencies_are_counted_over_all_parts(rows: TokenRows, recording: Path, info: RecordingInfo) -> None:
    found = token_frequency(recording, info)
    np.testing.assert_array_equal(found, np.bincount(rows.token, minlength=len(found)))
    assert len(found) == 40  # the vocabulary


# --- the census -------------------------------------------------------------------------------------------------------


def naive_usage(rows: TokenRows, axis: int, n: int = N) -> np.ndarray:
    """Count, summed gate score and summed absolute read weight of every entry, [3, N]."""
    usage = np.zeros((3, n))
    for _, _, entry, gate, read in selections_of(rows, axis):
        usage[:, entry] += [1, gate, abs(read)]
    return usage


def test_usage_holds_the_used_entries_of_every_layer(rows: TokenRows, recording: Path) -> None:
    table = read_parquet(recording / "usage.parquet").to_pandas()
    assert table[["layer", "entry"]].equals(table[["layer", "entry"]].sort_values(["layer", "entry"]))
    for axis, layer in enumerate((0, 2)):
        usage = naive_usage(rows, axis)
        here = table[table["layer"] == layer]
        assert here["entry"].tolist() == np.flatnonzero(usage[0]).tolist()
        for name, values in zip(("count", "gate_sum", "read_sum"), usage, strict=True):
            np.testing.assert_array_equal(here[name], values[usage[0] > 0])
    folds = np.stack(table["folds"])
    assert folds.shape[1] == 12  # one document each
    np.testing.assert_array_equal(folds.sum(1), table["count"])
    of_row = np.repeat([0, 1, 0, 2, 1, 2, 3, 4, 3, 4, 5, 5], LENGTHS)  # first, second ... of its group
    for place in range(0, len(table), 11):
        at = (rows.indices[:, 0 if table["layer"][place] == 0 else 1] == table["entry"][place]).sum(1)
        np.testing.assert_array_equal(folds[place], np.bincount(of_row, weights=at, minlength=12))


def without_errors(metrics: Evenness) -> dict[str, Any]:
    return {name: value for name, value in metrics if not name.endswith(("_se", "_few"))}


def test_metrics_of_layers_and_of_all_layers_are_those_of_their_usage(rows: TokenRows, census: Census) -> None:
    usages = [naive_usage(rows, axis) for axis in (0, 1)]
    for part, usage in [*zip(census.layers, usages, strict=True), (census.all_layers, sum(usages))]:
        selections = int(usage[0].sum())
        for name, values in zip(("by_count", "by_gate_score", "by_read_weight"), usage, strict=True):
            assert without_errors(getattr(part, name)) == dict(usage_metrics(values, selections, distinct=2))
        assert all(getattr(part.by_count, f"{name}_se") > 0 for name in ("kl_to_uniform", "gini", "top50"))
    assert [layer.layer for layer in census.layers] == [0, 2]
    assert census.tokens == sum(LENGTHS)


def test_reading_is_the_mean_over_tokens(rows: TokenRows, census: Census) -> None:
    for axis, layer in enumerate(census.layers):
        gate, read = rows.gate[:, axis].astype(float), np.abs(rows.read[:, axis].astype(float))
        assert rows.read_norm is not None and rows.score_margin is not None and rows.by_score is not None
        beside = (rows.read_norm, rows.margin, rows.score_margin, rows.by_score)
        columns = (gate, read, *(values[:, axis].astype(float) for values in beside))
        tokens = [naive_token(*one, float(loss)) for *one, loss in zip(*columns, rows.loss, strict=True)]
        total = {name: sum(token.get(name, 0.0) for token in tokens) for name in SUMS}
        found = dict(layer.reading)
        for name in READERS_MEANS:
            assert found[name] == pytest.approx(total[name] / total["readers"], rel=1e-6), name
        assert found["unread_share"] == pytest.approx(total["unread"] / rows.gate[:, axis].size)
        assert found["unread_share_by_norm"] == pytest.approx(total["unread_by_norm"] / rows.gate[:, axis].size)
        assert found["unread_share_by_norm"] != found["unread_share"]
        assert found["by_score_share"] == pytest.approx(rows.by_score[:, axis].mean())
        assert found["score_margin"] == pytest.approx(np.nanmean(rows.score_margin[:, axis].astype(float)), rel=1e-6)
        assert found["score_margin"] < found["margin"]
        assert found["silent_tokens"] == pytest.approx(1 - total["readers"] / len(tokens))
        assert found["margin"] == pytest.approx(np.nanmean(rows.margin[:, axis].astype(float)))
        assert found["loss"] == pytest.approx(np.nanmean(rows.loss.astype(float)))
        assert sum(found["read_share_histogram"]) == gate.size
        assert len(found["margin_histogram"]) == MARGIN_BINS
        with_error = ("gate_entropy", "margin", "score_margin", "by_score_share", "loss", "unread_share")
        assert all(found[f"{name}_se"] > 0 for name in with_error)
    assert census.loss == pytest.approx(np.nanmean(rows.loss.astype(float)))


def test_profiles_split_every_layer_by_position_and_frequency(rows: TokenRows, census: Census) -> None:
    millionths = np.bincount(rows.token)[rows.token] * 1e6 / len(rows.token)
    values = {"position": rows.pos % 16, "frequency": millionths}
    for axis, layer in enumerate(census.layers):
        whole = np.bincount(rows.indices[:, axis].ravel(), minlength=N)
        for name, of_token in values.items():
            profile = getattr(layer.profiles, name)
            assert sum(row.tokens for row in profile) == sum(LENGTHS)
            for row in profile:
                inside = (of_token >= row.low) & (of_token <= row.high)
                assert row.tokens == inside.sum()
                part = np.bincount(rows.indices[inside, axis].ravel(), minlength=N)
                assert row.coverage == pytest.approx((part > 0).mean())
                assert row.divergence == pytest.approx(entropy(part, whole))
                assert row.margin == pytest.approx(np.nanmean(rows.margin[inside, axis].astype(float)), rel=1e-6)
                assert row.even_divergence > 0
        information = dict(layer.profiles.information)
        for name in ("position", "frequency", "token", "previous"):  # here entries do not depend on them
            assert information[name] == pytest.approx(information[f"even_{name}"], rel=0.5)


def count_all(folder: Path, info: RecordingInfo) -> Census:
    """The census of a recording without aggregates."""
    write_aggregates(folder, info)
    return read_census(folder, info)


def select_documents(rows: TokenRows, wanted: str) -> TokenRows:
    """Only the documents of a group, numbered anew."""
    kept = [number for number, group in enumerate(GROUPS) if group == wanted]
    starts = np.cumsum([0, *LENGTHS])
    pieces = [cut(rows, starts[number], starts[number + 1]) for number in kept]
    columns = {
        name: np.concatenate([getattr(piece, name) for piece in pieces])
        for name in (one.name for one in fields(rows))
        if name != "doc" and getattr(rows, name) is not None
    }
    doc = np.repeat(np.arange(len(kept), dtype=np.uint32), [LENGTHS[number] for number in kept])
    return TokenRows(doc=doc, **columns)


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_census_of_a_group_is_that_of_a_recording_of_its_documents_alone(
    rows: TokenRows, census: Census, tmp_path: Path, name: str
) -> None:
    alone = count_all(tmp_path, write_recording(tmp_path, select_documents(rows, name), knowledge_num=N))
    group = census.groups[name]
    assert alone.groups == {}
    for found, expected in [
        *zip(group.layers, alone.layers, strict=True),
        (group.all_layers, alone.all_layers),
    ]:
        for weighting in ("by_count", "by_gate_score", "by_read_weight"):
            assert without_errors(getattr(found, weighting)) == without_errors(getattr(expected, weighting))
    for found, expected in zip(group.layers, alone.layers, strict=True):
        for key, value in found.reading:
            assert value == pytest.approx(getattr(expected.reading, key), rel=1e-9), key


def test_the_counts_of_groups_add_up_to_the_whole(census: Census) -> None:
    for number, layer in enumerate(census.layers):
        groups = [group.layers[number].by_count for group in census.groups.values()]
        assert sum(group.selections for group in groups) == layer.by_count.selections
        assert max(group.coverage for group in groups) <= layer.by_count.coverage
    assert sorted(census.groups) == ["a", "b"]


def test_a_census_can_be_made_again_and_is_the_same(recording: Path, info: RecordingInfo) -> None:
    names = ["usage", "bias", "contexts", "firing", "neighbours", "titles"]
    files = [recording / "census.json", *(recording / f"{name}.parquet" for name in names)]
    before = [file.read_bytes() for file in files]
    write_aggregates(recording, info)
    assert [file.read_bytes() for file in files] == before


def test_without_a_bias_all_selections_are_the_scores_and_without_signs_nothing_cancels(
    rows: TokenRows, tmp_path: Path
) -> None:
    plain = replace(rows, score_margin=None, by_score=None, read_norm=None)
    info = write_recording(tmp_path, plain, knowledge_num=N)
    assert info.kinds == ("gate", "read", "margin")
    for layer in count_all(tmp_path, info).layers:
        assert layer.reading.by_score_share == 1
        assert layer.reading.score_margin == layer.reading.margin
        assert layer.reading.unread_share_by_norm == layer.reading.unread_share


def test_usage_knows_the_sign_of_what_is_read(rows: TokenRows, recording: Path) -> None:
    table = read_parquet(recording / "usage.parquet").to_pandas()
    for axis, layer in enumerate((0, 2)):
        here = table[table["layer"] == layer].set_index("entry")
        expected = np.zeros(N)
        np.add.at(expected, rows.indices[:, axis].ravel(), rows.read[:, axis].ravel().astype(float))
        np.testing.assert_allclose(here["read_signed_sum"], expected[here.index])
        assert (here["read_signed_sum"].abs() < here["read_sum"]).any()


def test_layers_stand_in_order_whichever_thread_is_done_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows([30] * 4, layers=5, seed=3)
    info = write_recording(tmp_path, rows)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    found = count_all(tmp_path, info)
    assert [layer.layer for layer in found.layers] == [0, 2, 4, 6, 8]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert count_all(tmp_path, info) == found
    table = read_parquet(tmp_path / "usage.parquet").to_pandas()
    for axis, layer in enumerate((0, 2, 4, 6, 8)):
        assert table["gate_sum"][table["layer"] == layer].sum() == rows.gate[:, axis].astype(float).sum()


def test_a_bank_without_sentences_has_no_preferences(recording: Path) -> None:
    table = pd.read_parquet(recording / "bias.parquet")
    assert len(table) == 0
    assert {"layer", "attribute", "label", "lift", "q"} <= set(table.columns)


def test_the_recording_comes_back_from_its_parts(rows: TokenRows, recording: Path, info: RecordingInfo) -> None:
    np.testing.assert_array_equal(all_rows(recording, info).indices, rows.indices)  # so that the tests above hold


@pytest.mark.parametrize("count", [2, 5])
def test_processes_that_share_a_census_write_the_same_bytes_as_one(tmp_path: Path, count: int) -> None:
    rows, alone, shared = make_rows(LENGTHS, layers=3, entries=N - 16), tmp_path / "alone", tmp_path / "shared"
    info = [
        write_recording(path, rows, groups=GROUPS, knowledge_num=N, bounds=[0, 150, 433]) for path in (alone, shared)
    ]
    write_aggregates(alone, info[0])
    threads_as_processes(count, lambda group: write_aggregates(shared, info[1], group))
    files = {path.name: path.read_bytes() for path in alone.glob("*.*")}
    assert {"usage.parquet", "firing.parquet", "neighbours.parquet", "census.json"} <= files.keys()
    assert {path.name: path.read_bytes() for path in shared.glob("*.*")} == files
