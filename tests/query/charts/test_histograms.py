"""Linked histograms, against loops over the entries."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from memscope.query.bank_table import entry_numbers
from memscope.query.charts import histograms as charts
from memscope.query.charts.histograms import (
    Bins,
    bin_entries,
    choice_text,
    histograms,
    known_histograms,
    left_over,
    read_choices,
)
from memscope.query.recording import Recording
from memscope.testing.recordings import PREDICATES, Planted, plant_recording
from tests.kinds import KINDS


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant_recording(tmp_path_factory.mktemp("planted") / "planted", seed=0)


@pytest.fixture(scope="module")
def recording(planted: Planted) -> Recording:
    return Recording(planted.path)


@pytest.fixture(scope="module")
def numbers(recording: Recording) -> pd.DataFrame:
    return entry_numbers(recording)


@pytest.fixture(scope="module")
def bins(recording: Recording, numbers: pd.DataFrame) -> dict[str, Bins]:
    return bin_entries(recording, numbers)


def entries_of(bins: Bins, number: int) -> set[int]:
    return set(bins.entry[bins.bin == number].tolist())


def test_entries_are_in_the_bin_of_their_number(
    recording: Recording, bins: dict[str, Bins], numbers: pd.DataFrame, planted: Planted
) -> None:
    columns = {"usage": "count", "layers": "layers_used", "drift": "drift", "readability": "readability"}
    for name, column in columns.items():
        own, values = bins[name], numbers[column].to_numpy(np.float64)
        assert own.edges is not None and sorted(own.entry.tolist()) == list(range(len(values)))
        for number in range(len(own.edges) - 1):
            low, high = own.edges[number : number + 2]
            last = number == len(own.edges) - 2
            inside = (values >= low) & ((values <= high) if last else (values < high))
            assert entries_of(own, number) == set(np.flatnonzero(inside).tolist()), (name, number)
    assert bins["usage"].labels[:3] == ["never selected", "1", "2 to 3"]
    assert entries_of(bins["usage"], 0) == set(np.flatnonzero(numbers["count"] == 0).tolist())
    rare = numbers["readability"].mask(numbers["entry"] % 5 == 3)
    own = charts._bin("readability", recording, numbers.assign(readability=rare))
    assert own.labels[-1] == "unknown" and entries_of(own, len(own.labels) - 1) == set(range(3, 256, 5))
    for predicate in PREDICATES:
        own = {entry for entry, name in enumerate(planted.predicates) if name == predicate}
        assert entries_of(bins["predicate"], bins["predicate"].labels.index(predicate)) == own
    for layer in (0, 1):
        assert entries_of(bins["most_in"], layer) == {*np.flatnonzero(numbers["top_layer"] == layer).tolist()}


def test_each_histogram_counts_what_the_others_leave(bins: dict[str, Bins]) -> None:
    found = np.array([5, 3, *range(20, 200)])
    chosen = {"usage": [5, 6, 7], "predicate": [0, 1, 2], "most_in": []}
    inside = {
        name: set().union(*(entries_of(bins[name], number) for number in numbers)) if numbers else set(range(256))
        for name, numbers in chosen.items()
    }
    left = left_over(bins, chosen, found)
    assert left.tolist() == [e for e in found.tolist() if all(e in one for one in inside.values())]
    assert 0 < len(left) < len(found)
    for one in histograms(bins, chosen, found):
        others = [numbers for name, numbers in inside.items() if name != one.name]
        for number in range(len(one.labels)):
            here = entries_of(bins[one.name], number) & set(found.tolist())
            assert one.every[number] == len(here)
            assert one.counts[number] == len({e for e in here if all(e in other for other in others)})
            assert one.chosen[number] == (number in chosen.get(one.name, ()))
    assert left_over(bins, {}, found) is found


def test_choices_are_read_back_from_their_texts(bins: dict[str, Bins]) -> None:
    for name, own in bins.items():
        size = len(own.labels)
        tries = [[number] for number in range(size)] + ([[1, 2]] if own.kind == "range" else [[0, size - 1]])
        for chosen in tries:
            text = choice_text(own, chosen)
            assert read_choices(bins, {name: text}) == {name: chosen}, (name, text)
    assert choice_text(bins["usage"], []) == "" and choice_text(bins["usage"], [0]) == "0_1"
    assert choice_text(bins["predicate"], [1, 0]) == "relation a,relation b"


@pytest.mark.parametrize("text", ["x", "1_2_3", "nan_nan", "9e9_9e10", "*unknown", "a,b", "_"])
def test_texts_of_what_is_not_there_choose_nothing(bins: dict[str, Bins], text: str) -> None:
    assert read_choices(bins, {"usage": text, "predicate": text, "elsewhere": text}) == {"usage": [], "predicate": []}
    assert left_over(bins, {"usage": [], "elsewhere": [3]}, np.arange(9)).tolist() == list(range(9))


def test_names_with_commas_and_several_names_of_an_entry_are_kept_apart(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(0, "a,b"), (0, "c"), (1, "a,b"), (1, "*none"), (2, "d"), (2, "e"), (3, ""), (5, "c"), (6, None)]
    monkeypatch.setattr(recording, "sql", lambda _: pd.DataFrame(rows, columns=["entry", "name"]))
    monkeypatch.setattr(charts, "_LISTED", 3)
    own = charts._bin("subject", recording, pd.DataFrame({"entry": range(8)}))
    assert own.labels == ["a,b", "c", "*none", "others", "none"]
    assert [sorted(entries_of(own, number)) for number in range(5)] == [[0, 1], [0, 5], [1], [2], [3, 4, 6, 7]]
    for chosen in ([0], [2], [4], [0, 2, 3]):
        assert read_choices({"subject": own}, {"subject": choice_text(own, chosen)}) == {"subject": chosen}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_has_histograms_of_what_it_knows(kind: str, kinds_folder: Path) -> None:
    recording = Recording(kinds_folder / kind)
    bins = bin_entries(recording, entry_numbers(recording))
    assert "usage" in bins and set(bins) <= set(known_histograms(recording.info))
    assert ("drift" in known_histograms(recording.info)) == recording.info.has("drift")
    found = np.arange(recording.info.knowledge_num)
    assert all(one.every.sum() >= len(found) for one in histograms(bins, {}, found))
