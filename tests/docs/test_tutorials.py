"""The tutorials run as they stand, cell by cell, and find what they say that they find."""

import re
from pathlib import Path
from typing import Any

import pytest

from memscope.query.recording import Recording

pytestmark = pytest.mark.slow

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"


def run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a tutorial leaves behind, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    text = (TUTORIALS / name).read_text(encoding="utf-8")
    space: dict[str, Any] = {"__name__": "tutorial"}
    for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:  # as a notebook: each is compiled alone
        exec(compile(f"# %%{cell}", name, "exec"), space)
    return space


def test_from_text_to_a_picture_in_ten_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (TUTORIALS / "text_to_picture.py").read_text(encoding="utf-8")
    assert len(re.findall(r"^# %% (?!\[markdown\])", text, flags=re.MULTILINE)) == 10
    left = run("text_to_picture.py", tmp_path, monkeypatch)
    assert left["summary"]["valid_loss"] < 5  # of 300 tokens even chance is 5.7
    assert isinstance(left["recording"], Recording) and left["recording"].entry(left["most_used"]).sentence
    assert Path("tutorial/lorenz.png").read_bytes().startswith(b"\x89PNG")


def test_the_entry_that_carries_a_prediction_is_the_planted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = run("carries_a_prediction.py", tmp_path, monkeypatch)
    assert left["suspect"] == left["detector"]
    assert left["effect"] > 5 * abs(left["control_effect"])
    difference = left["study"].table.set_index("what").loc["difference"]
    assert difference["loss_low"] > 0


def test_a_mixture_of_experts_is_recorded_and_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = run("hugging_face_experts.py", tmp_path, monkeypatch)
    info = left["recording"].info
    assert [(site.kind, site.entries, site.selected) for site in info.sites] == [("experts", 8, 2)] * 2
    assert info.label(left["most_used"]).startswith("layer ")
    assert list(left["study"].table["what"]) == ["ablated", "control 1", "difference"]
