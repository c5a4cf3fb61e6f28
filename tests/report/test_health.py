"""Flags on a recording say its numbers, and how bad they are."""

import math
import re
import shutil
from pathlib import Path

import pytest

from memscope.base.words import short_percent
from memscope.query.recording import Recording
from memscope.recording.info import read_info, write_info
from memscope.report.gate_findings import choice
from memscope.report.health import Flag, health, short_number, telling_entry
from tests.synthetic import change_layer


def with_census(recording: Path, folder: Path, **changes: dict[str, float]) -> list[Flag]:
    """Flags of a recording after numbers of layer 1 were changed: ``by_count={"dead": 64}``."""
    path = shutil.copytree(recording, folder / "changed")
    change_layer(path, 1, **changes)
    return health(Recording(path))


def test_flags_state_their_numbers(tiny_recording: Recording) -> None:
    layers, reading = tiny_recording.layer_metrics(), tiny_recording.reading_metrics()
    worst = layers.loc[layers["dead"].idxmax()]
    flags = health(tiny_recording)
    assert re.match(rf"[\d.]+% of entries never selected in layer {int(worst['layer'])} ", flags[0].text)
    assert float(flags[0].text.split("%")[0]) == pytest.approx(100 * worst["dead"] / 64, abs=0.5)
    unread = reading["unread_share"].max()
    assert any(flag.text.startswith(f"{short_percent(unread)} of layer") for flag in flags)


def test_a_bank_used_to_the_last_entry_says_nothing_of_unused_ones(
    tiny_recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tiny_recording.drift_summary() | {"median_unused": math.nan}
    monkeypatch.setattr(Recording, "drift_summary", lambda _: summary)
    [moved] = [flag.text for flag in health(tiny_recording) if "moved by" in flag.text]
    assert "unused" not in moved
    assert "nan" not in moved


@pytest.mark.parametrize(("dead", "level"), [(0, "good"), (20, "watch"), (60, "bad")])
def test_dead_entries_are_bad_beyond_what_even_selection_leaves(
    dead: int, level: str, tiny_recording_path: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    change_layer(path, 0, by_count={"dead": 0, "even_coverage": 1.0})
    first = with_census(path, tmp_path, by_count={"dead": dead, "even_coverage": 1.0})[0]
    assert first.level == level
    assert f"{short_percent(dead / 64)} of entries never selected" in first.text


@pytest.mark.parametrize(("share", "level"), [(0.05, "good"), (0.3, "watch"), (0.7, "bad")])
def test_unread_selections_are_bad_when_they_are_many(
    share: float, level: str, tiny_recording_path: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    change_layer(path, 0, reading={"unread_share": 0.0})
    [flag] = [flag for flag in with_census(path, tmp_path, reading={"unread_share": share}) if "unread" in flag.text]
    assert flag.level == level and flag.text.startswith(f"{share:.0%} of layer 1's selections")


@pytest.mark.parametrize(("share", "said"), [(0.0, "reads something in every layer"), (0.4, "40% of ")])
def test_silence_is_said_in_words(share: float, said: str, tiny_recording_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    change_layer(path, 0, reading={"silent_tokens": 0.0})
    flags = with_census(path, tmp_path, reading={"silent_tokens": share})
    assert any(said in flag.text and "tokens read" in flag.text for flag in flags)


def test_the_telling_entry_is_one_that_fires(tiny_recording: Recording) -> None:
    found = telling_entry(tiny_recording)
    assert found is not None
    entry, layer = found
    assert tiny_recording.usage()[tiny_recording.info.layers.index(layer), entry] > 0


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "0%"),
        (0.0001, "0.01%"),
        (0.004, "0.4%"),
        (0.31, "31%"),
        (0.997, "99.7%"),
        (0.99999, "over 99.99%"),
        (1e-12, "under 0.01%"),
        (1.0, "100%"),
    ],
)
def test_shares_are_told_from_none_and_from_all(share: float, said: str) -> None:
    assert short_percent(share) == said


@pytest.mark.parametrize(("number", "said"), [(812, "812"), (9_999, "9,999"), (12_800, "12.8 k"), (4_100_000, "4.1 M")])
def test_large_numbers_are_short(number: int, said: str) -> None:
    assert short_number(number) == said


@pytest.mark.parametrize(("share", "level"), [(0.8, "good"), (0.2, "watch")])
def test_what_the_selection_bias_chose_is_said_where_there_is_one(
    share: float, level: str, tiny_recording_path: Path, tmp_path: Path
) -> None:
    flags = with_census(tiny_recording_path, tmp_path, reading={"by_score_share": share})
    assert not [flag for flag in flags if "bias" in flag.text]  # this recording has none
    info = read_info(tmp_path / "changed")
    sites = tuple(site.model_copy(update={"selection_bias": True}) for site in info.sites)
    write_info(tmp_path / "changed", info.model_copy(update={"sites": sites}))
    recording = Recording(tmp_path / "changed")
    [flag] = [flag for flag in health(recording) if "bias" in flag.text]
    assert flag.level == level
    assert flag.text.startswith(f"Scores alone would have made {share:.0%} of layer 1's ")
    assert f"made {share:.0%} to 100%" in choice(recording).short
    assert recording.evenness().set_index("layer").loc[1, "by_score_share"] == share


def test_without_a_selection_bias_all_of_the_choice_is_the_gates(tiny_recording: Recording) -> None:
    assert choice(tiny_recording).short == "All of it: no selection bias takes part."
    assert (tiny_recording.evenness()["by_score_share"] == 1).all()
