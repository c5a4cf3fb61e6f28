"""Pictures of the app are of the run that the docs speak of, and show its numbers."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from memscope.query.recording import Recording

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
DEMO = ROOT / "recordings" / "demo"
"""Where ``make demo`` records its run."""
PICTURES: dict[str, dict[str, object]] = {}
if (IMAGES / "pictures.json").is_file():
    PICTURES = json.loads((IMAGES / "pictures.json").read_text(encoding="utf-8"))
OTHER = {"compare", "load", "atlas"}
"""Pictures of other recordings than the demo's: of its checkpoints, and of experts."""

pytestmark = pytest.mark.skipif(not PICTURES, reason="no pictures were taken since docs/screenshots.py notes numbers")


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_the_one_whose_number_was_read(name: str) -> None:
    assert hashlib.sha256((IMAGES / f"{name}.png").read_bytes()).hexdigest() == PICTURES[name]["sha256"], (
        "take it by docs/screenshots.py"
    )


def test_pictures_are_of_one_run_which_the_lab_book_has() -> None:
    pictures = [picture for name, picture in PICTURES.items() if name not in OTHER]
    [of] = {(picture["fingerprint"], picture["tokens"], picture["valid_loss"]) for picture in pictures}
    entry = (ROOT / "docs" / "log" / "demo.md").read_text(encoding="utf-8")
    assert f"{of[1]:,} validation tokens" in entry and f"{of[2]:.3f}" in entry


def test_the_demo_here_gives_the_numbers_of_its_pictures() -> None:
    if not (DEMO / "census.json").is_file():
        pytest.skip("there is no recordings/demo here: make demo")
    recording = Recording(DEMO)
    if recording.info.fingerprint not in {picture["fingerprint"] for picture in PICTURES.values()}:
        pytest.skip("recordings/demo is of another machine's run, whose last digits differ")
    sys.path.insert(0, str(ROOT / "docs"))
    from screenshots import numbers

    shows = numbers(recording)
    for name, picture in PICTURES.items():
        if (picture["fingerprint"], picture["tokens"]) == (recording.info.fingerprint, recording.info.rows):
            assert picture["number"] == shows.get(name.removesuffix("_dark"), shows[""]), name
