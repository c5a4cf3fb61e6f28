"""What the map draws: colours, and points as bytes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from memscope.query.bank_table import entry_numbers, predicates
from memscope.query.charts import map_points
from memscope.query.charts.map_points import COLORS, entry_colors, inside, pack_points, unit_places
from memscope.query.recording import Recording
from tests.app_folder import make_folder


@pytest.fixture(scope="module")
def recording(tiny_recording_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return Recording(make_folder(tiny_recording_path, tmp_path_factory.mktemp("map") / "recordings") / "tiny")


@pytest.fixture(scope="module")
def places(recording: Recording) -> pd.DataFrame:
    found = recording.map()
    assert found is not None
    return unit_places(found)


def unpack(block: bytes) -> tuple[dict[str, object], np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Head, entries, x, y, colours and weights of a block, as the script in the browser reads them."""
    length = int(np.frombuffer(block, np.uint32, 1)[0])
    head = json.loads(block[4 : 4 + length])
    count, start = head["points"], 4 + length
    assert length % 4 == 0 and len(block) == start + 10 * count
    entry = np.frombuffer(block, np.uint32, count, start)
    x, y = (np.frombuffer(block, np.uint16, count, start + (4 + 2 * axis) * count) for axis in (0, 1))
    level, weight = (np.frombuffer(block, np.uint8, count, start + (8 + number) * count) for number in (0, 1))
    return head, entry, x, y, level, weight


@pytest.mark.parametrize("by", COLORS)
@pytest.mark.parametrize("dark", [False, True])
def test_every_point_is_packed_with_its_colour(by: str, dark: bool, recording: Recording, places: pd.DataFrame) -> None:
    numbers = entry_numbers(recording)
    colors = entry_colors(by, recording, numbers, np.arange(64) % 2, predicates(recording), dark)
    shown = numbers["count"].to_numpy() >= 0
    head, entry, x, y, level, weight = unpack(pack_points(places, colors, shown, None, 5, [], dark))
    assert sorted(entry.tolist()) == list(range(64)) and head["focus"] == 5
    assert not head["dense"] and (weight == 255).all()
    assert (level == colors.number[entry]).all() and level.max() < len(head["palette"])
    for sent, place in ((x, places["x"]), (y, places["y"])):
        np.testing.assert_allclose(2 * (sent / 32767.5 - 1), place.to_numpy()[entry], atol=1e-4)


def test_found_points_are_drawn_above_the_others(recording: Recording, places: pd.DataFrame) -> None:
    numbers = entry_numbers(recording)
    colors = entry_colors("usage", recording, numbers, np.arange(64) % 2, predicates(recording), False)
    lit = np.array([3, 40, 63])
    block = pack_points(places, colors, np.ones(64, bool), lit, None, [(1, 2)], False)
    head, entry, _, _, level, _ = unpack(block)
    assert set(entry[-3:].tolist()) == set(lit.tolist())
    assert set(level[:-3].tolist()) == {len(colors.palette)}  # all others fade
    assert head["lasso"] == [[0.001, 0.002]]
    only = unpack(pack_points(places, colors, np.isin(np.arange(64), lit), None, None, [], False))
    assert sorted(only[1].tolist()) == lit.tolist()


def test_many_points_are_drawn_by_density_first(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_points, "DENSE", 64)
    numbers = entry_numbers(recording)
    # entries 0 to 39 share one place, the others stand alone
    x = np.where(np.arange(64) < 40, 0.0, (np.arange(64) - 50.0) / 20)
    places = pd.DataFrame({"entry": np.arange(64), "x": x, "y": -x})
    colors = entry_colors("drift", recording, numbers, np.zeros(64, int), predicates(recording), False)
    shown, lit = np.ones(64, bool), np.array([7, 50])

    head, entry, *_, weight = unpack(pack_points(places, colors, shown, None, None, [], False))
    assert head["dense"] and "64 entries" in str(head["label"])
    assert sorted(entry.tolist()) == list(range(40, 64))  # 50 lies where the 40 are, on top of them
    alone = weight[np.isin(entry, np.arange(51, 64))]
    assert weight.max() == 255 and (weight == 255).sum() == 1
    assert (alone == np.rint(255 * np.log(2) / np.log(42))).all()

    *_, found, _ = unpack(pack_points(places, colors, shown, np.array([7]), None, [], False))
    assert (found != len(colors.palette)).sum() == 1  # the found one stands for its cell
    assert 3 in unpack(pack_points(places, colors, shown, lit, 3, [], False))[1]  # and the marked one before it
    everything = unpack(pack_points(places, colors, shown, None, None, [], False, every=True))
    assert not everything[0]["dense"] and len(everything[1]) == 64
    fewer = unpack(pack_points(places, colors, np.arange(64) < 63, None, None, [], False))
    assert not fewer[0]["dense"] and len(fewer[1]) == 63


def test_versions_differ_when_anything_drawn_does(recording: Recording, places: pd.DataFrame) -> None:
    numbers = entry_numbers(recording)
    colors = entry_colors("drift", recording, numbers, np.arange(64) % 2, predicates(recording), False)
    every = np.ones(64, bool)
    versions = [
        unpack(pack_points(places, colors, every, lit, focus, [], False))[0]["version"]
        for lit, focus in ((None, None), (None, None), (np.array([1]), None), (None, 4))
    ]
    assert versions[0] == versions[1] and len(set(versions)) == 3


def test_a_lasso_holds_what_lies_inside(places: pd.DataFrame) -> None:
    x, y = places["x"], places["y"]
    right = inside(places, [(0, -2000), (2000, -2000), (2000, 2000), (0, 2000)])
    assert right.tolist() == np.flatnonzero((x > 0) & (y > -2)).tolist()
    assert inside(places, [(1900, 1900), (2000, 1900), (2000, 2000)]).size == 0


def test_a_far_point_does_not_shrink_the_map() -> None:
    near = np.random.default_rng(0).normal(size=(1000, 2))
    places = pd.DataFrame(np.concatenate([near, [[1e6, 0]]]), columns=["x", "y"]).assign(entry=np.arange(1001))
    x, y = unit_places(places)[["x", "y"]].to_numpy().T
    assert 0.9 < max(np.abs(x[:-1]).max(), np.abs(y).max()) < 1  # all others fill the square
    assert x[-1] == 2.0
