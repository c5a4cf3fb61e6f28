"""``census.json`` is read as what was written, and refused in one line where it is damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memscope.base.errors import InputError
from memscope.recording.census_file import CENSUS, plain, read_census, write_census
from memscope.recording.info import read_info


def test_a_census_is_written_as_it_was_read(tiny_recording_path: Path, tmp_path: Path) -> None:
    census = read_census(tiny_recording_path, read_info(tiny_recording_path))
    write_census(tmp_path, census)
    assert (tmp_path / CENSUS).read_bytes() == (tiny_recording_path / CENSUS).read_bytes()  # the order of fields too


def test_fields_that_were_never_set_are_left_out_and_unknown_numbers_are_null(tiny_recording_path: Path) -> None:
    layer = read_census(tiny_recording_path, read_info(tiny_recording_path)).layers[0]
    assert layer.by_gate_score.gini_se is None and "gini_se" not in plain(layer)["by_gate_score"]
    unknown = layer.by_count.model_copy(update={"gini_se": None})
    assert plain(unknown)["gini_se"] is None
    assert next(iter(plain(layer))) == "layer"


def removed(census: dict[str, Any]) -> None:
    del census["layers"][0]["reading"]["loss"]


def of_text(census: dict[str, Any]) -> None:
    census["overlap"]["jaccard"] = "none"


def with_more(census: dict[str, Any]) -> None:
    census["all_layers"]["by_count"]["surprise"] = 1


def of_other_layers(census: dict[str, Any]) -> None:
    census["layers"].pop()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (removed, "'layers.0.reading.loss' is not there; record again"),
        (of_text, r"'overlap.jaccard' has a wrong value \(.*\); record again"),
        (with_more, r"'all_layers.by_count.surprise' has a wrong value \(.*\); record again"),
        (of_other_layers, "is not about the layers that recording.json names; record again"),
    ],
)
def test_a_census_of_the_wrong_shape_is_refused_in_one_line(
    damage: Callable[[dict[str, Any]], None], message: str, tiny_recording_path: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    content = json.loads((path / CENSUS).read_text())
    damage(content)
    (path / CENSUS).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as refused:
        read_census(path, read_info(path))
    assert str(refused.value).startswith(f"{path / CENSUS}: ") and "\n" not in str(refused.value)
