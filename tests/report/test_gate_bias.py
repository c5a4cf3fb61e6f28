"""The gate-bias report: its words agree with the census, its files with one another, and corpus text stays text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import BaseModel

from memscope import __version__
from memscope.base.errors import InputError
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.recording.census_file import Evenness
from memscope.report.compare.schema import Comparison
from memscope.report.document import Column, escape_markdown, make_table
from memscope.report.findings import find
from memscope.report.gate_bias.opening import ADVICE, YARDSTICKS, make_opening
from memscope.report.gate_bias.write import write_report
from memscope.report.health import CHECKS, health
from memscope.report.schema import Metrics, json_schema
from memscope.run.adapters.own import OwnRun
from memscope.stats.usage import JACKKNIFED, UsageMetrics
from tests.conftest import HOSTILE, tiny_config, untrained_run
from tests.made import rough_drawing

pytestmark = pytest.mark.slow

TABLES = ("usage", "entries", "layers", "preferences")


@pytest.fixture(scope="module")
def report(tiny_recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:  # all entries, so that the one with hostile text is among them
        patch.setattr("memscope.report.gate_bias.document._SHOWN_ENTRIES", 64)
        written = sorted(write_report(tiny_recording, out))
    assert written == sorted(path for path in out.rglob("*") if path.is_file())
    return out


class _Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"
        self.text += " " if tag in ("td", "th", "dd") else ""

    def handle_data(self, data: str) -> None:
        self.text += "" if self._style else data


def read(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


def test_the_page_is_self_contained_and_runs_nothing(report: Path) -> None:
    page = read(report / "gate_bias.html")
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/svg+xml;base64,")), (tag, attributes)
    [policy] = [a["content"] for tag, a in page.tags if tag == "meta" and "Content-Security-Policy" in a.values()]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_findings_stand_first_and_every_number_has_its_d(report: Path, tiny_recording: Recording) -> None:
    html = (report / "gate_bias.html").read_text()
    places = [html.index(f'id="{name}"') for name in ("opening", "recorded", "findings", "figures", "tables", "method")]
    assert places == sorted(places)
    d = tiny_recording.info.rows * tiny_recording.info.selected
    for finding in find(tiny_recording):
        numbers = finding.short + finding.answer
        assert f"{d:,}" in numbers or f"{2 * d:,}" in numbers, finding.question


def opening_of(report: Path) -> str:
    [(_, text)] = re.findall(r'<section class="opening (\w+)" id="opening">(.*?)</section>', _html(report), re.DOTALL)
    return " ".join(_Page(text).text.split())


def _html(report: Path) -> str:
    return (report / "gate_bias.html").read_text(encoding="utf-8")


def test_the_report_opens_with_half_a_page(report: Path, tiny_recording: Recording) -> None:
    said = opening_of(report)
    assert len(said.split()) < 400
    flags, layers = health(tiny_recording), tiny_recording.layer_metrics()
    worst = min(flags, key=lambda flag: ["bad", "watch", "good"].index(flag.level))
    assert said.startswith({"bad": "Not healthy", "watch": "To watch", "good": "Healthy"}[worst.level])
    assert find(tiny_recording)[0].short in said
    for row in layers.to_dict("records"):
        [sentence] = re.findall(rf"Layer {row['layer']:.0f} uses [^;]*; [^.]*\.\d[^.]*\.", said)
        assert f"{row['coverage']:.0%}" in sentence and f"go to {row['top50']:.0f}," in sentence
    steps = {flag.text for flag in flags if flag.level == worst.level != "good"}
    assert not steps or any(text in said for text in steps)
    assert f"memscope app {tiny_recording.path.name}" in said


def test_the_opening_has_the_only_picture_of_its_figure(report: Path) -> None:
    html = _html(report)
    assert html.count('alt="Lorenz curve.') == 1
    assert html.index('alt="Lorenz curve.') < html.index('id="recorded"')


def test_markdown_opens_as_the_page_does(report: Path, tiny_recording: Recording) -> None:
    text = (report / "gate_bias.md").read_text().partition("## What was recorded")[0].replace("\\", "")
    said = opening_of(report)
    for line in make_opening(tiny_recording, find(tiny_recording), health(tiny_recording)).layers:
        assert line in said and f"- {line}\n" in text
    assert "(figures/lorenz.png)" in text and "| Entries used |" in text


def test_what_found_nothing_is_folded(report: Path, tiny_recording: Recording) -> None:
    opened = {
        " ".join(_Page(question).text.split()): bool(state)
        for state, question in re.findall(r'<details class="finding"( open)?><summary><h3>(.*?)</h3>', _html(report))
    }
    assert opened == {finding.question: finding.found for finding in find(tiny_recording)}
    assert set(opened.values()) == {True, False}
    preferences = tiny_recording.preferences()
    found = preferences[["significant", "rank_significant"]].to_numpy().any()
    assert ('<details class="table"><summary><h3>Preferences' in _html(report)) == (not found)


def test_the_footer_says_which_version_and_command_made_the_report(report: Path, tiny_recording: Recording) -> None:
    command = f"memscope report {tiny_recording.path.name} --out {report.name}"  # paths tell of the machine
    for text in (_html(report), (report / "gate_bias.md").read_text()):
        assert f"by memscope {__version__}" in text and command in text


def test_yardsticks_are_numbers_of_the_lab_book() -> None:
    log = Path(__file__).parents[2] / "docs" / "log"

    def ends_of(name: str, column: int) -> tuple[float, float]:
        [row] = [row for row in (log / "memory-dim-256.md").read_text().splitlines() if row.startswith(f"| {name} |")]
        numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", row.split("|")[column])]
        return min(numbers), max(numbers)

    for name, side in (("**`memory_small.yaml`**", "healthy"), ("the founding experiment's design", "collapsed")):
        used, kl = ends_of(name, -3), ends_of(name, -2)
        assert getattr(YARDSTICKS["used"], side) == pytest.approx([share / 100 for share in used])
        assert getattr(YARDSTICKS["kl"], side) == pytest.approx([nats / np.log(16_384) for nats in kl])
    preset = (log / "selection-bias.md").read_text().partition("## The preset `memory_small.yaml`")[2]
    half = [int(row.split("|")[6].split(", ")[0].replace(",", "")) for row in re.findall(r"^\| \d .*", preset, re.M)]
    assert YARDSTICKS["half"].healthy == (min(half) / 16_384, max(half) / 16_384)
    assert "half of a layer's selections go to 9 to 23 of 65,536 entries" in (log / "trex65k.md").read_text()
    assert YARDSTICKS["half"].collapsed == (9 / 65_536, 23 / 65_536)


def test_every_check_has_advice(tiny_recording: Recording) -> None:
    assert {check.name for check in CHECKS} == set(ADVICE)


def test_every_figure_lies_beside_the_page_as_png_and_svg(report: Path) -> None:
    page = read(report / "gate_bias.html")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == len(list((report / "figures").glob("*.svg"))) == len(list((report / "figures").glob("*.png")))
    assert all(attributes["alt"] for attributes in images)
    for path in (report / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 800
    names = re.findall(r"\(figures/(\w+)\.png\)", (report / "gate_bias.md").read_text())
    assert sorted(names) == sorted(path.stem for path in (report / "figures").glob("*.png"))


def test_markdown_says_what_the_page_says(report: Path, tiny_recording: Recording) -> None:
    page, markdown = read(report / "gate_bias.html").text, (report / "gate_bias.md").read_text()
    for finding in find(tiny_recording):
        assert finding.answer in page
        assert escape_markdown(finding.answer) in markdown
    words = [word for word in re.findall(r"\d[\d.,%]*\d", page) if len(word) > 4]
    plain = markdown.replace("\\", "")
    missing = [word for word in words if word not in plain]
    assert not missing, missing[:5]


def test_hostile_text_stays_text_on_the_page_and_in_markdown(report: Path) -> None:
    page = read(report / "gate_bias.html")
    assert HOSTILE.strip() in page.text
    markdown_it = pytest.importorskip("markdown_it")
    rendered = _Page(
        markdown_it.MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render((report / "gate_bias.md").read_text())
    )
    assert "<script>window.hacked = true</script>" in rendered.text
    for found in (page, rendered):
        assert not [tag for tag, _ in found.tags if tag == "script"]
        assert not [a for tag, a in found.tags if tag == "img" and a.get("src") == "x"]
        assert not [a for tag, a in found.tags if tag == "a" and not (a["href"] or "").startswith("#")]


@pytest.mark.parametrize(
    "text",
    [
        "| a | b |",
        "a\n# b",
        "<b>x</b>",
        "![i](x.png)",
        "[l](http://a.b)",
        "*a* _b_ `c` ~~d~~",
        "&lt;",
        "$x^2$",
        "see www.a.b",
    ],
)
def test_escaped_markdown_shows_the_text_itself(text: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    html = markdown_it.MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(f"say {escape_markdown(text)}")
    page = _Page(html)
    assert page.text.strip() == f"say {' '.join(text.split())}"
    assert [tag for tag, _ in page.tags] == ["p"]


def test_metrics_follow_their_schema(report: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((report / "metrics.schema.json").read_text())
    assert schema == json_schema(Metrics)
    jsonschema.Draft202012Validator.check_schema(schema)
    metrics = json.loads((report / "metrics.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(metrics)
    metrics["layers"][0]["by_count"]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        jsonschema.Draft202012Validator(schema).validate(metrics)


@pytest.mark.parametrize("model", [Metrics, Comparison])
def test_schemas_describe_every_field(model: type[BaseModel]) -> None:
    schema = json_schema(model)
    for name, part in [*schema["$defs"].items(), (model.__name__, schema)]:
        assert part["description"], name
        for field, described in part["properties"].items():
            assert "description" in described or "$ref" in described, f"{name}.{field}"


def test_evenness_has_an_error_for_every_number_that_is_jackknifed() -> None:
    errors = {f"{name}_se" for name in JACKKNIFED} | {"kl_to_uniform_few"}
    assert Evenness.model_fields.keys() - UsageMetrics.model_fields.keys() == errors


def test_metrics_are_the_census_and_the_findings(report: Path, tiny_recording: Recording) -> None:
    metrics, census = json.loads((report / "metrics.json").read_text()), tiny_recording.census
    assert metrics["layers"] == [layer.model_dump(mode="json") for layer in census.layers]
    assert metrics["overlap"] == census.overlap.model_dump(mode="json")
    assert metrics["loss"] == census.loss
    assert metrics["findings"] == [finding.in_words() for finding in find(tiny_recording)]
    assert len(metrics["preferences"]) == len(tiny_recording.preferences())
    assert metrics["recording"]["tokens"] == tiny_recording.info.rows
    assert "/" not in metrics["recording"]["run"]  # paths tell of the machine


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_same_in_csv_and_parquet(report: Path, name: str) -> None:
    csv, parquet = pd.read_csv(report / f"{name}.csv"), pq.read_table(report / f"{name}.parquet").to_pandas()
    assert csv.columns.tolist() == parquet.columns.tolist()
    assert len(csv) == len(parquet) > 0
    for column in parquet.select_dtypes("number"):
        np.testing.assert_allclose(csv[column].to_numpy(float), parquet[column].to_numpy(float), rtol=1e-6)


def test_no_text_cell_is_a_formula(report: Path) -> None:
    for path in report.glob("*.csv"):
        for cell in pd.read_csv(path, dtype=str, keep_default_na=False).to_numpy().ravel():
            assert not cell.startswith(("=", "@", "\t", "\r")), (path.name, cell)
            assert not cell.startswith(("+", "-")) or re.fullmatch(r"[+-][\d.e+-]+", cell), (path.name, cell)


def test_the_same_recording_gives_the_same_figures(report: Path, tiny_recording: Recording, tmp_path: Path) -> None:
    for _ in write_report(tiny_recording, tmp_path):
        pass
    for path in (report / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "figures" / path.name).read_bytes(), path.name


def test_findings_say_yes_only_where_even_selection_is_far(tiny_recording: Recording) -> None:
    bias = find(tiny_recording)[0]
    layers = tiny_recording.layer_metrics()
    beyond = (
        layers["kl_to_uniform"] - tiny_recording.census.critical * layers["kl_to_uniform_se"]
        > layers["even_kl_to_uniform"]
    ).sum()
    verdict = "Yes, in every layer." if beyond == 2 else f"In {beyond} of 2 layers." if beyond else "Not shown."
    assert bias.short.startswith(verdict)


def test_findings_claim_no_preference_that_no_test_finds(tiny_recording: Recording) -> None:
    preferences = tiny_recording.preferences()
    [finding] = [finding for finding in find(tiny_recording) if finding.question == "Toward what is it biased?"]
    found = int((preferences["significant"] | preferences["rank_significant"]).sum())
    assert finding.short.startswith(f"{found} of {len(preferences)}" if found else "Not shown")
    assert f"q = {preferences[['q', 'rank_q']].min().min():.2g}" in finding.answer


def test_a_bank_without_sentences_and_one_layer_has_a_report(corpus_dir: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus_dir, model={"n_layers": 1}, memory={"database_init_path": None})
    run = untrained_run(config, tmp_path / "run")
    record(OwnRun(run), corpus_dir / "valid.jsonl", tmp_path / "recording", RecordOptions(max_tokens=300))
    recording = Recording(tmp_path / "recording")
    answers = {finding.question: finding for finding in find(recording)}
    assert answers["Does each layer use the bank differently?"].short == "There is one memory layer."
    assert answers["Toward what is it biased?"].short == "That cannot be asked of this bank."
    assert "started random" in answers["How far have entries drifted from their sentences?"].answer
    with rough_drawing():
        paths = list(write_report(recording, tmp_path / "report"))
    assert tmp_path / "report" / "gate_bias.html" in paths
    assert not (tmp_path / "report" / "figures" / "preferences.svg").exists()


def test_groups_of_documents_get_a_table(corpus_dir: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (corpus_dir / "valid.jsonl").read_text().splitlines()]
    grouped = [json.dumps(line | {"group": "<i>odd</i>" if n % 2 else "even"}) for n, line in enumerate(lines * 4)]
    (tmp_path / "grouped.jsonl").write_text("\n".join(grouped))
    run = untrained_run(tiny_config(corpus_dir), tmp_path / "run")
    record(OwnRun(run), tmp_path / "grouped.jsonl", tmp_path / "recording", RecordOptions())
    recording = Recording(tmp_path / "recording")
    with rough_drawing():
        list(write_report(recording, tmp_path / "report"))
    page = read(tmp_path / "report" / "gate_bias.html")
    assert "Groups of documents" in page.text
    assert "<i>odd</i>" in page.text
    assert "i" not in {tag for tag, _ in page.tags}
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert set(metrics["groups"]) == {"<i>odd</i>", "even"}


def test_a_folder_that_cannot_be_written_is_refused(tiny_recording: Recording, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot create this folder"):
        next(write_report(tiny_recording, tmp_path / "file" / "report"))


def test_cells_show_numbers_errors_and_what_is_missing() -> None:
    frame = pd.DataFrame({"a": [1234, 5], "b": [-0.25, float("nan")], "b_se": [0.125, 1.0], "c": ["x", None]})
    columns = {
        "a": Column("A", ",d"),
        "b": Column("B", "+.2f", "b_se"),
        "c": Column("C", prose=True),
        "gone": Column("D"),
    }
    table = make_table("T", "", frame, columns)
    assert [cell.text for cell in table.header] == ["A", "B", "C"]
    assert [cell.kind for cell in table.header] == ["number", "number", "prose"]
    assert [[cell.text for cell in row] for row in table.rows] == [["1,234", "−0.25 ± 0.12", "x"], ["5", "–", "–"]]
