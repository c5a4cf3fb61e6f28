"""Tables, searches and measures of recordings of every kind of layer have only what the recording has."""

import numpy as np
import pandas as pd
import pytest

from memscope.base.errors import InputError
from memscope.query.bank_table import (
    entry_numbers,
    entry_rows,
    known_fields,
    known_sorts,
    search_entries,
    select_entries,
)
from memscope.query.charts.map_points import known_colors
from memscope.query.entry_cards import numbered
from memscope.query.fired import fired_entries, shared_by_layer, shared_selections
from memscope.query.recording import Recording
from memscope.query.token_measures import MEASURES, known_measures, layer_measure
from tests.kinds import KINDS, write_kind

LACKING = {"sentence", "subject", "predicate", "object", "drift", "kept", "decoded", "read_sum", "read_per_selection"}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recording]:
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: Recording(write_kind(kind, folder / kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mixed", "text")])
def test_tables_have_no_column_of_which_nothing_is_known(kind: str, recordings: dict[str, Recording]) -> None:
    recording = recordings[kind]
    numbers = entry_numbers(recording)
    tables = [recording.entries(), numbers, entry_rows(recording, numbers, [0, 3]), recording.usage_table()]
    tables += [recording.most_used(0), recording.neighbours_of([0]), recording.contexts(0)]
    reads = {"read_sum", "read_per_selection"} if recording.info.has("reads") else set()
    assert not (LACKING - reads) & {column for table in tables for column in table}
    scored = [("gate_sum" in table or "gate" in table) for table in tables]
    assert any(scored) == recording.info.has("scores")
    with pytest.raises(InputError, match="cannot sort by 'drift'"):
        recording.entries(sort="drift")


def test_a_memory_beside_experts_keeps_all_columns(recordings: dict[str, Recording]) -> None:
    table = recordings["mixed"].entries(limit=80, sort="entry", descending=False)
    assert LACKING - {"decoded", "read_per_selection"} <= set(table)
    assert table["drift"].notna().sum() == 64


@pytest.mark.parametrize("kind", list(KINDS))
def test_sums_are_null_where_a_layer_has_nothing_to_sum_up(kind: str, recordings: dict[str, Recording]) -> None:
    recording = recordings[kind]
    usage = pd.read_parquet(recording.path / "usage.parquet")
    numbers = entry_numbers(recording).set_index("entry")
    page = recording.entries(limit=1000, sort="entry", descending=False).set_index("entry")
    for site in recording.info.sites:
        here, own = usage[usage["layer"] == site.layer], range(site.own.start, site.own.stop)
        needs = {"gate_sum": "scores", "read_sum": "reads", "read_signed_sum": "reads"}
        for column, what in needs.items():
            assert here[column].notna().all() == here[column].notna().any() == (what in site.has)
        for table in (numbers, page):
            for column in {"gate_sum", "read_sum", "read_per_selection"} & set(table):
                known = "scores" if column == "gate_sum" else "reads"
                assert table.loc[own, column].notna().all() == (known in site.has)
                assert table.loc[own, column].notna().any() == (known in site.has)
        for name in recording.weightings:
            assert np.isfinite(recording.usage(name)).all()
    if kind == "mixed":
        assert recording.most_used(1, weighting="by_count")["read_sum"].isna().all()
        best = select_entries(recording, entry_numbers(recording), np.arange(80), "all", "read_sum", True)
        assert set(best[:64]) == set(range(64))


def test_weightings_are_those_that_a_layer_has(recordings: dict[str, Recording]) -> None:
    assert recordings["selections"].weightings == ("by_count",)
    assert recordings["experts"].weightings == ("by_count", "by_gate_score")
    mixed = recordings["mixed"]
    assert mixed.layer_metrics("by_read_weight")["layer"].tolist() == [0]
    assert [len(counts) for counts in mixed.reachable_usage()] == [64, 16]


def test_sorts_fields_and_colours_are_known_ones(recordings: dict[str, Recording]) -> None:
    experts, mixed = recordings["experts"].info, recordings["mixed"].info
    assert known_sorts(experts) == ["count", "gate_sum", "readability", "layers_used", "entry"]
    assert known_fields(experts) == ["everything", "fires on"]
    assert known_colors(experts) == ["usage", "layer of most use", "readability", "cluster"]
    assert "drift" in known_sorts(mixed) and "sentence" in known_fields(mixed) and "predicate" in known_colors(mixed)


def test_a_number_finds_the_expert_of_each_layer(recordings: dict[str, Recording]) -> None:
    assert numbered(recordings["experts"].info, 6) == [6, 22, 38]
    assert numbered(recordings["experts"].info, 16) == []  # layers have experts 0 to 15
    assert numbered(recordings["mixed"].info, 6) == [6, 70]
    assert set(search_entries(recordings["experts"], "6").tolist()) >= {6, 22, 38}
    assert set(recordings["experts"].entries(search="6")["entry"]) >= {6, 22, 38}
    assert {6, 70} <= set(search_entries(recordings["mixed"], "6").tolist())


@pytest.mark.parametrize("kind", list(KINDS))
def test_measures_are_there_where_the_layer_has_what_they_need(kind: str, recordings: dict[str, Recording]) -> None:
    recording = recordings[kind]
    info, trace = recording.info, recording.trace(1)
    names = known_measures(info)
    assert list(names) == [name for name in MEASURES if name in names] and "one entry" in names
    assert ("loss" in names) == info.predictions and ("effective entries" in names) == info.has("reads")
    drift = recording.drift()
    for name in set(names) - {"loss", "one entry"}:
        values = layer_measure(trace, info.layers, name, drift)
        for axis, site in enumerate(info.sites):
            needs = "reads" if name in ("effective entries", "drift of the read entry") else "scores"
            assert np.isfinite(values[axis]).any() == (needs in site.has)
    selected = trace.selections
    entry = int(selected["entry"].iloc[0])
    shown = layer_measure(trace, info.layers, "one entry", None, entry)
    assert np.isfinite(shown).sum() == len(selected[selected["entry"] == entry].drop_duplicates(["pos", "layer"]))


@pytest.mark.parametrize("kind", list(KINDS))
def test_fired_entries_are_all_that_the_token_selected(kind: str, recordings: dict[str, Recording]) -> None:
    recording = recordings[kind]
    trace = recording.trace(2)
    for layer in fired_entries(recording, trace, 3):
        here = trace.selections[(trace.selections["pos"] == 3) & (trace.selections["layer"] == layer.layer)]
        assert [one.entry for one in layer.entries] == here["entry"].tolist()
        has = recording.info.site(layer.layer).has
        assert all((one.gate is not None) == ("scores" in has) for one in layer.entries)
        assert all((one.read is not None) == ("reads" in has) for one in layer.entries)
        assert (layer.effective is not None) == ("reads" in has)
    shared = shared_selections(trace, trace, 3, 3)
    assert shared_by_layer(shared, recording.info.layers).sum() == len(shared) > 0
