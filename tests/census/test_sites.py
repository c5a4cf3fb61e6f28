"""The census of layers that select in different ways, against loops: numbers where a layer has them, and none else."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy

from memscope.base.errors import InputError
from memscope.census.aggregate import write_aggregates
from memscope.census.kernels import UNREAD_SHARE
from memscope.recording.census_file import MEANS_NEED, Census, Evenness, read_census
from memscope.recording.info import RecordingInfo, read_info
from memscope.recording.token_rows import TokenRows
from memscope.stats.usage import Bank, usage_metrics
from tests.synthetic import MIXED, make_mixed_rows, write_recording

LENGTHS = [40, 25, 60, 33, 50, 20, 45, 30, 28, 39, 41, 22]
GROUPS = list("aababbaabbab")
ENTRIES = 84
TOKENS = sum(LENGTHS)


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return make_mixed_rows(LENGTHS, seed=3)


@pytest.fixture(scope="module")
def recording(rows: TokenRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "recording"
    write_aggregates(folder, write_recording(folder, rows, sites=MIXED, groups=GROUPS))
    return folder


@pytest.fixture(scope="module")
def info(recording: Path) -> RecordingInfo:
    return read_info(recording)


@pytest.fixture(scope="module")
def census(recording: Path, info: RecordingInfo) -> Census:
    return read_census(recording, info)


def usage_of(rows: TokenRows, axis: int, tokens: np.ndarray | None = None) -> np.ndarray:
    """Count, summed gate score and summed absolute read weight of every entry in a layer, ``[3, N]``."""
    usage = np.zeros((3, ENTRIES))
    assert rows.gate is not None and rows.read is not None
    for row in range(TOKENS) if tokens is None else np.flatnonzero(tokens):
        for k, entry in enumerate(rows.indices[row, axis]):
            if entry >= 0:
                usage[:, entry] += [1, rows.gate[row, axis, k], abs(rows.read[row, axis, k])]
    return usage


def plain_metrics(metrics: Evenness) -> dict[str, float]:
    return {name: value for name, value in metrics if not name.endswith(("_se", "_few"))}


def test_every_layer_is_even_or_not_over_its_own_entries_and_selections(rows: TokenRows, census: Census) -> None:
    for axis, (site, layer) in enumerate(zip(MIXED, census.layers, strict=True)):
        count, gate, read = usage_of(rows, axis)[:, site.own]
        d = int(count.sum())
        assert d == (rows.indices[:, axis] >= 0).sum() <= TOKENS * site.selected
        assert (d < TOKENS * site.selected) == site.varies
        expected = dict(usage_metrics(count, d, site.distinct))
        assert plain_metrics(layer.by_count) == expected
        assert (layer.by_count.entries, layer.by_count.selections) == (site.entries, d)
        for found, weights, what in ((layer.by_gate_score, gate, "scores"), (layer.by_read_weight, read, "reads")):
            assert (found is not None) == (what in site.has)
            assert found is None or plain_metrics(found) == dict(usage_metrics(weights, d, site.distinct))


@pytest.mark.parametrize("group", [None, "a", "b"])
def test_all_layers_together_are_compared_with_even_selection_in_each_bank(
    group: str | None, rows: TokenRows, census: Census
) -> None:
    chosen = np.array([True] * TOKENS if group is None else [GROUPS[doc] == group for doc in rows.doc])
    usage = [usage_of(rows, axis, chosen) for axis in range(len(MIXED))]
    d = [int(one[0].sum()) for one in usage]
    banks = [Bank(24, d[0] + d[4], 2), Bank(8, d[1], 2), Bank(40, d[2], 1), Bank(12, d[3], 3)]
    found = census.all_layers if group is None else census.groups[group].all_layers
    assert plain_metrics(found.by_count) == dict(usage_metrics(sum(usage)[0], sum(d), banks=banks))
    assert found.by_gate_score is None and found.by_read_weight is None  # not every layer has such
    if group is not None:
        for axis, (site, layer) in enumerate(zip(MIXED, census.groups[group].layers, strict=True)):
            expected = usage_metrics(usage[axis][0, site.own], d[axis], site.distinct)
            assert plain_metrics(layer.by_count) == dict(expected)
            assert (layer.by_read_weight is None) == ("reads" not in site.has)


def test_numbers_of_reading_are_there_where_the_layer_has_what_they_need(census: Census) -> None:
    for site, layer in zip(MIXED, census.layers, strict=True):
        for name, what in MEANS_NEED.items():
            assert (getattr(layer.reading, name) is None) == (what not in site.has), (site.layer, name)
            for row in (*layer.profiles.position, *layer.profiles.frequency):
                assert (getattr(row, name) is None) <= (what not in site.has) or name in ("margin", "score_margin")
            if what not in site.has:
                assert getattr(layer.reading, f"{name}_se") is None
        assert layer.reading.loss is not None and layer.reading.loss_se is not None
        histograms = (layer.reading.read_share_histogram, layer.reading.gate_entropy_histogram)
        histograms = (*histograms, layer.reading.margin_histogram)
        for values, what in zip(histograms, ("reads", "scores", "margin"), strict=True):
            assert bool(values) == (what in site.has)


def test_what_tokens_make_of_scores_and_reads_equals_a_loop(rows: TokenRows, census: Census) -> None:
    assert rows.gate is not None and rows.read is not None and rows.margin is not None
    for axis, (site, layer) in enumerate(zip(MIXED, census.layers, strict=True)):
        if "scores" not in site.has:
            continue
        apart, reading = "reads" in site.has, layer.reading
        gates, selections, unread = [], 0, 0
        for row in range(TOKENS):
            here = rows.indices[row, axis] >= 0
            gate = rows.gate[row, axis, here].astype(float)
            read = np.abs((rows.read if apart else rows.gate)[row, axis, here].astype(float))
            selections += here.sum()
            unread += (read < UNREAD_SHARE * read.sum()).sum() if read.sum() else len(read)
            if read.sum():
                gates.append(gate / gate.sum() if gate.sum() else np.zeros(1))
        assert reading.gate_entropy == pytest.approx(np.mean([entropy(g) if g.sum() else 0 for g in gates]), rel=1e-6)
        assert reading.gate_top_share == pytest.approx(np.mean([g.max() for g in gates]), rel=1e-6)
        assert reading.unread_share == (pytest.approx(unread / selections) if apart else None)
        assert reading.by_score_share == 1  # no selection bias takes part, of however many
        assert reading.margin == reading.score_margin == pytest.approx(np.nanmean(rows.margin[:, axis].astype(float)))
        if apart:
            assert reading.silent_tokens == pytest.approx(1 - len(gates) / TOKENS)


def test_layers_of_one_bank_overlap_and_others_do_not(rows: TokenRows, census: Census) -> None:
    overlap = census.overlap
    for a in range(len(MIXED)):
        for b in range(len(MIXED)):
            found = tuple(getattr(overlap, name)[a][b] for name in ("jaccard", "rank_correlation", "jensen_shannon"))
            if {a, b} == {0, 4}:
                one, other = (set(np.flatnonzero(usage_of(rows, axis)[0])) for axis in (a, b))
                assert found[0] == pytest.approx(len(one & other) / len(one | other))
                assert 0 <= found[2] < math.log(2)
            elif a != b:
                assert found == (0, 0, pytest.approx(math.log(2)))


def test_tables_of_entries_hold_selections_and_null_where_a_layer_has_no_such_number(
    rows: TokenRows, recording: Path
) -> None:
    usage, contexts, firing = (
        pd.read_parquet(recording / f"{name}.parquet") for name in ("usage", "contexts", "firing")
    )
    for axis, site in enumerate(MIXED):
        count = usage_of(rows, axis)[0]
        used = np.flatnonzero(count)
        for table in (usage, firing):
            assert table["entry"][table["layer"] == site.layer].tolist() == used.tolist()
        assert usage["count"][usage["layer"] == site.layer].tolist() == count[used].tolist()
        here = contexts[contexts["layer"] == site.layer]
        assert set(here["entry"]) == set(used)
        for context in here.itertuples():
            assert context.entry in rows.indices[context.row, axis]
        for name, what in (("gate", "scores"), ("read", "reads")):
            assert here[name].isna().all() == (what not in site.has)
            assert here[name].notna().all() == (what in site.has)
        deciles = np.stack(firing["gate_deciles"][firing["layer"] == site.layer])
        assert np.isnan(deciles).all() == ("scores" not in site.has)
        assert np.isfinite(deciles).all() == ("scores" in site.has)


def test_information_about_tokens_counts_the_selections_that_were_made(rows: TokenRows, census: Census) -> None:
    """Mutual information of entry and token over the selections of a layer, from their table."""
    for axis, layer in enumerate(census.layers):
        row, place = np.nonzero(rows.indices[:, axis] >= 0)
        table = np.zeros((ENTRIES, 40))
        np.add.at(table, (rows.indices[row, axis, place], rows.token[row]), 1)
        seen = np.zeros(40)
        np.add.at(seen, rows.token, 1)
        joint, of_entry = table / table.sum(), table.sum(1, keepdims=True) / table.sum()
        expected = joint * np.log(np.where(joint > 0, joint, 1) / np.maximum(of_entry * seen / seen.sum(), 1e-300))
        assert layer.profiles.information.token == pytest.approx(expected[joint > 0].sum(), rel=1e-6)


def test_neighbours_are_selected_with_one_another(rows: TokenRows, recording: Path) -> None:
    table = pd.read_parquet(recording / "neighbours.parquet")
    assert {0, 2} <= set(table["layer"])
    for row in table.itertuples():
        axis = [site.layer for site in MIXED].index(row.layer)
        own = MIXED[axis].own
        assert own.start <= row.entry < own.stop and own.start <= row.other < own.stop
        both = (rows.indices[:, axis] == row.entry).any(1) & (rows.indices[:, axis] == row.other).any(1)
        assert row.together == both.sum()


def test_without_predictions_there_is_no_loss(rows: TokenRows, tmp_path: Path) -> None:
    unknown = rows.__class__(
        **{
            **{name: getattr(rows, name) for name in ("doc", "pos", "token", "indices", "gate", "read", "margin")},
            "predicted": np.full(TOKENS, -1),
            "loss": np.full(TOKENS, np.nan, np.float32),
        }
    )
    info = write_recording(tmp_path / "none", unknown, sites=MIXED, predictions=False)
    write_aggregates(tmp_path / "none", info)
    census = read_census(tmp_path / "none", read_info(tmp_path / "none"))
    assert census.loss is None and all(layer.reading.loss is None for layer in census.layers)
    assert (np.stack(pd.read_parquet(tmp_path / "none" / "firing.parquet")["predicted_token"]) == -1).all()
    predicted = rows.__class__(**{**unknown.__dict__, "predicted": rows.predicted})
    with pytest.raises(InputError, match="no recorded token has a successor"):
        write_aggregates(tmp_path / "one", write_recording(tmp_path / "one", predicted, sites=MIXED))
