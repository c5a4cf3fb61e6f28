"""Reports of recordings of every kind of layer: they are written, and speak only of what the recording has."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from memscope.base.errors import InputError
from memscope.query.recording import Recording
from memscope.report.anomalies import known_kinds
from memscope.report.compare.comparison import write_comparison
from memscope.report.findings import find
from memscope.report.gate_bias.write import write_report
from memscope.report.health import health
from tests.kinds import ENTRIES, FORBIDDEN, KINDS, MARGIN, READING, SCORES, absent

LACKING = [kind for kind in KINDS if kind not in ("mixed", "peer", "text")]


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rough_figures")]


@pytest.fixture(scope="module")
def recordings(kinds_folder: Path) -> dict[str, Recording]:
    return {kind: Recording(kinds_folder / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def report_of(recordings: dict[str, Recording], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the report of a kind, written once."""

    @cache
    def write(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("report")
        written = sorted(write_report(recordings[kind], folder))
        assert written == sorted(path for path in folder.rglob("*") if path.is_file())
        return folder

    return write


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def spoken(text: str, words: tuple[str, ...]) -> set[str]:
    return {word for word in words if re.search(rf"\b{word}\b", text, re.IGNORECASE)}


def of_report(page: str) -> str:
    """A report without the contexts, which are text of the corpus, and without what is random in the shuffles."""
    page = page.replace("`entries.csv, .parquet`", "")  # the name of a file
    return re.sub(r"tokens at random|takes its \w+ for a token at random|selection at random", "", page)


@pytest.mark.parametrize("kind", LACKING)
def test_a_report_speaks_only_of_what_the_recording_has(kind: str, report_of: Callable[[str], Path]) -> None:
    folder = report_of(kind)
    page = of_report((folder / "gate_bias.md").read_text())
    assert not spoken(page, absent(kind)) - {"random"}
    names = names_in(folder)
    assert not {"margins.png", "read_shares.png", "drift.png", "preferences.png"} & names
    assert ("entropy.png" in names) == (kind != "selections")
    if kind == "selections":
        assert not spoken(page, SCORES) - {"entropy"} and "Loss:" not in page
    header = (folder / "entries.csv").read_text().splitlines()[0].split(",")
    assert not {"drift", "sentence", "read_sum", "kept"} & set(header)
    assert json.loads((folder / "metrics.json").read_text())["drift"]["median_used"] is None


def test_a_report_of_experts_that_an_activation_reads_speaks_of_it(
    recordings: dict[str, Recording], report_of: Callable[[str], Path]
) -> None:
    written = names_in(report_of("peer"))
    assert "read_shares.png" in written and "margins.png" not in written
    page = of_report((report_of("peer") / "gate_bias.md").read_text())
    assert not spoken(page, FORBIDDEN + ENTRIES + MARGIN) - set(READING["peer"])
    assert "rank correlation of score and activation is" in page
    said = " ".join(flag.text for flag in health(recordings["peer"]))
    assert not spoken(said, FORBIDDEN + ENTRIES) - set(READING["peer"])


def test_a_report_of_sentences_speaks_of_their_reads_and_of_no_drift(report_of: Callable[[str], Path]) -> None:
    folder = report_of("text")
    written = names_in(folder)
    page = of_report((folder / "gate_bias.md").read_text())
    assert not spoken(page, absent("text"))
    assert {"margins.png", "read_shares.png"} <= written and "drift.png" not in written
    assert re.search(r"sentence \d+\n", page)
    header = (folder / "entries.csv").read_text().splitlines()[0].split(",")
    assert {"sentence", "read_sum"} <= set(header) and not {"drift", "kept"} & set(header)


def test_entries_of_layers_are_named_by_layer_and_number(report_of: Callable[[str], Path]) -> None:
    page = (report_of("experts") / "gate_bias.md").read_text()
    assert re.search(r"### Layer [012], expert \d+\n", page) and "experts in each layer" not in page
    assert "# Router-bias report" in page and "Most used experts" in page


def test_a_mixed_report_shows_reads_of_the_layers_that_have_them(
    recordings: dict[str, Recording], report_of: Callable[[str], Path]
) -> None:
    written = names_in(report_of("mixed"))
    page = (report_of("mixed") / "gate_bias.md").read_text()
    assert {"margins.png", "read_shares.png", "drift.png", "entropy.png"} <= written
    assert not spoken(page, ("nan",))
    answers = {finding.question: finding for finding in find(recordings["mixed"])}
    reading = answers["Does the attention follow what the selection weighs?"]
    assert "of the 4 entries it selects" in reading.short and "D = 1,176 selections a layer" in reading.answer
    assert "Over 64 used entries" in answers["How far have entries drifted from their sentences?"].answer


@pytest.mark.parametrize("kind", [*LACKING, "text"])
def test_health_speaks_of_what_is_selected(kind: str, recordings: dict[str, Recording]) -> None:
    said = " ".join(flag.text for flag in health(recordings[kind]))
    assert not spoken(said, absent(kind)) and recordings[kind].info.word(2) in said


def test_kinds_of_anomalies_are_those_that_a_recording_can_show(recordings: dict[str, Recording]) -> None:
    assert not {"unread", "uniform", "negative", "preference"} & set(known_kinds(recordings["experts"].info))
    assert {"unread", "uniform", "negative", "preference"} <= set(known_kinds(recordings["mixed"].info))


@pytest.mark.parametrize("kind", list(KINDS))
def test_two_recordings_of_a_kind_are_compared(kind: str, recordings: dict[str, Recording], tmp_path: Path) -> None:
    list(write_comparison(recordings[kind], recordings[kind], tmp_path))
    page = (tmp_path / "compare.md").read_text()
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["layers"] and all(row["jaccard"] == 1 for row in found["layers"])
    if kind != "mixed":
        assert not spoken(of_report(page), absent(kind)) - {"random"}
        assert ("matched by their numbers" in page) == (kind != "text")


def test_experts_are_not_compared_with_neurons(recordings: dict[str, Recording], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layers select features .*, those of .* select experts"):
        list(write_comparison(recordings["selections"], recordings["features"], tmp_path))
