"""Recordings in a folder: what is found, what is said of it."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from memscope.base.errors import InputError
from memscope.base.lock import one_writer
from memscope.query.catalog import (
    find_documents,
    find_recordings,
    opening_order,
    recordings_table,
    run_progress,
    runs_without_recording,
    training_history,
    usage_now,
)
from memscope.query.recording import Recording
from memscope.recording.info import read_info, write_info


@pytest.fixture
def folder(tiny_recording_path: Path, tmp_path: Path) -> Path:
    """``whole``, ``a/b/deep``, ``unfinished``, ``broken``, and one too deep to be found."""
    folder = tmp_path / "recordings"
    for name in ("whole", "a/b/deep", "a/b/c/too_deep", "unfinished", "broken"):
        shutil.copytree(tiny_recording_path, folder / name)
    unfinished = folder / "unfinished"
    write_info(unfinished, read_info(unfinished).model_copy(update={"complete": False}))
    (folder / "broken" / "recording.json").write_text("{")
    return folder


def test_recordings_are_named_by_their_path(folder: Path) -> None:
    found = find_recordings(folder)
    assert list(found) == ["a/b/deep", "broken", "unfinished", "whole"]
    assert find_recordings(folder / "whole") == {"whole": folder / "whole"}
    assert find_recordings(folder / "nothing") == {}


def test_a_reader_opens_the_newest_recording_of_a_whole_run(folder: Path) -> None:
    shutil.copytree(folder / "whole", folder / "later")
    shutil.copytree(folder / "whole", folder / "checkpoint")
    write_info(folder / "checkpoint", read_info(folder / "whole").model_copy(update={"step": 20}))
    for age, name in enumerate(("broken", "checkpoint", "later", "whole", "a/b/deep", "unfinished")):
        os.utime(folder / name / "recording.json", times=(1e9 - age, 1e9 - age))
    found = find_recordings(folder)
    assert opening_order(found, folder) == ["later", "whole", "a/b/deep", "checkpoint", "broken", "unfinished"]


def test_the_history_of_a_run_is_found_beside_recordings_of_it(folder: Path, tmp_path: Path) -> None:
    recording = Recording(folder / "whole")
    shutil.rmtree(folder / "broken")
    assert training_history(recording, find_recordings(folder), folder) is None
    pd.DataFrame({"step": [1, 2]}).to_parquet(folder / "a" / "b" / "history.parquet")
    history = training_history(recording, find_recordings(folder), folder)
    assert history is not None and history["step"].tolist() == [1, 2]
    other = folder / "a" / "b" / "deep"
    write_info(other, read_info(other).model_copy(update={"run": "another"}))
    assert training_history(recording, find_recordings(folder), folder) is None
    write_info(other, read_info(folder / "whole"))
    (folder / "a" / "b" / "history.parquet").rename(tmp_path / "outside.parquet")
    (folder / "a" / "b" / "history.parquet").symlink_to(tmp_path / "outside.parquet")
    with pytest.raises(InputError, match="leads out of"):
        training_history(recording, find_recordings(folder), folder)


def test_the_table_says_what_each_is_and_what_is_wrong(folder: Path) -> None:
    recording = Recording(folder / "whole")
    table = recordings_table(find_recordings(folder), folder).set_index("recording")
    whole = table.loc["whole"]
    assert whole["tokens"] == recording.info.rows and whole["run"] == recording.info.run_name
    assert whole["selections"] == recording.usage().sum()
    assert whole["loss"] == recording.census.loss
    assert whole["state"] == "whole" and not whole["map"]
    assert table["state"]["unfinished"].startswith("unfinished")
    assert table["state"]["broken"] not in ("whole", "")
    assert table.loc["broken"].drop("state").isna().all()


def test_runs_without_a_recording_are_found_beside_the_folder(folder: Path, tiny_run_path: Path) -> None:
    runs = folder.parent / "runs"
    for name in ("waiting", "without_log"):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.yaml").write_text("{}")
    (runs / "waiting" / "metrics.jsonl").write_text("")
    (runs / "recorded").symlink_to(tiny_run_path)
    assert runs_without_recording(folder, find_recordings(folder)) == [runs / "waiting"]
    assert runs_without_recording(folder, {}) == [runs / "recorded", runs / "waiting"]


@pytest.mark.parametrize(
    ("search", "found"),
    [("", [0, 1, 2]), ("RIVER", [1, 3]), ("4", [4]), ("(", [3]), ("9", []), ("1", [1, 2]), ("9" * 30, [])],
)
def test_documents_are_found_by_title_and_number(search: str, found: list[int]) -> None:
    titles = pd.Series(["", "A river", "World War 1", "River (film)", ""])
    assert find_documents(titles, search, 3) == found


def test_a_run_says_how_far_it_is_and_whether_it_goes_on(tiny_run_path: Path, tmp_path: Path) -> None:
    progress = run_progress(tiny_run_path)
    assert (progress.step, progress.steps, progress.left_seconds, progress.running) == (20, 20, 0, False)
    assert progress.curve["kind"].value_counts().to_dict() == {"train": 6, "eval": 3}
    assert progress.samples["step"].tolist() == [20, 20, 20, 10]
    usage = usage_now(progress)
    newest = progress.curve[progress.curve["kind"] == "eval"].iloc[-1]
    assert usage["layer"].tolist() == [0, 1]
    assert usage["coverage"].tolist() == [newest["layer_0/coverage"], newest["layer_1/coverage"]]
    (tmp_path / "config.yaml").touch()
    with one_writer(tmp_path):
        assert run_progress(tmp_path).running
    assert run_progress(tmp_path)[1:5] == (False, 0, None, None)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "eval", "step": 0, "loss": 5.0}\n{"kind": "tr')
    begun = run_progress(tmp_path)  # a line is being written
    assert begun.step == 0 and begun.steps is None and usage_now(begun).empty
    assert runs_without_recording(tmp_path, {}) == [tmp_path]
