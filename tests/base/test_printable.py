"""What is unseen in a text from outside is a sign wherever it is shown."""

import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app.outside import printable_frame
from app.parts import figures
from memscope.base.errors import InputError
from memscope.base.files import csv_text, read_json, write_json
from memscope.base.printable import one_line, printable, printable_json, printable_values
from memscope.base.words import visible
from memscope.recording.census_file import ClassProfile
from memscope.report.document import escape_markdown, shown
from memscope.report.plots.bias import class_divergence, preference_forest
from memscope.report.plots.compare import predicate_changes
from memscope.report.plots.style import plain_label
from tests.conftest import CliResult

Cli = Callable[..., CliResult]
ROOT = Path(__file__).parents[2]

UNSEEN = "\x00\x07\x08\x0b\x1b\x7f\x85\x9b\u061c\u200b\u200e\u202e\u2028\u2066\u2069\ufeff\U000e0041\ud83d"
FORMULAS = [
    "costs $5 and $10",
    "US$ to A$",
    "price_$x^$",
    "$\\badcommand$",
    "a $100% b $",
    "$$",
    "\\$",
    "$\\frac{",
    "$",
]
"""Labels with dollar signs: none of them is TeX."""


@pytest.mark.parametrize("character", UNSEEN)
def test_an_unseen_character_is_written_out(character: str) -> None:
    escape = character.encode("unicode_escape", "surrogatepass").decode()
    assert printable(f"a{character}b") == f"a{escape}b" == visible(f"a{character}b")
    text = printable_json(json.dumps({"text": character}, ensure_ascii=False))
    assert text.isascii() and json.loads(text) == {"text": character}


def test_what_is_seen_stays_as_it_is() -> None:
    text = "Größe 漢字 ‘quoted’ – 👩\u200d👩\u200d👧 می\u200cخواهم soft\u00adhyphen\u00a0space\ttab\nline"
    assert printable(text) == text
    assert printable("one\r\ntwo") == "one\ntwo"
    assert one_line(" one\r\n two\tthree ") == "one two three"
    assert printable_values({"a": ["\x1b", 1, None, ("\x00",)]}) == {"a": ["\\x1b", 1, None, ["\\x00"]]}


def test_no_control_or_direction_character_is_let_through() -> None:
    every = "".join(map(chr, range(0x110000)))
    left = {character for character in printable(every) if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")}
    assert left == {"\t", "\n"}
    turning = {c for c in printable(every) if unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF")}
    assert turning == set()


def test_pages_show_signs_and_markup_stays_text() -> None:
    assert shown("\x1b[2J") == "\\x1b[2J"
    assert shown(7) == 7
    assert escape_markdown("a\u202eb\r\n<c>") == "a\\\\u202eb \\<c\\>"


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_labels_of_figures_are_drawn_as_they_are(tmp_path: Path, kind: str) -> None:
    texts = [*FORMULAS, "\x1b[31m", "two\nlines", "x" * 99]
    forest = {"layer": 0, "attribute": "predicate", "lift": 1.2, "low": 1.0, "high": 1.5, "p": 0.01}
    forest |= {"chance_low": 0.9, "chance_high": 1.1, "significant": True, "rank_significant": False}
    shares = {"bank_share_b": 0.1, "selection_share_a": 0.2, "selection_share_b": 0.3}
    profile = [ClassProfile.model_construct(label=text, divergence=0.1, even_divergence=0.05) for text in texts]
    drawn = [
        preference_forest(pd.DataFrame([forest | {"label": text} for text in texts])),
        predicate_changes(pd.DataFrame([shares | {"predicate": text} for text in texts])),
        class_divergence([profile], [0], "groups"),
        figures.profile({0: pd.DataFrame(map(dict, profile))}, "divergence", "KL", "group"),
        figures.histograms_of({text: np.ones(3) for text in texts[:8]}, np.arange(4), "x", "y", ""),
    ]
    for number, figure in enumerate(drawn):
        figure.savefig(tmp_path / f"{number}.{kind}")
    assert len(list(tmp_path.iterdir())) == len(drawn)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", "".join(path.read_text() for path in tmp_path.glob("*.svg")))


def test_files_hold_signs_and_json_means_the_same(tmp_path: Path) -> None:
    value = {"\u202etext": ["\x00", "\x1b", "\udcff", "漢字"]}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    raw = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert printable(raw) == raw and "漢字" in raw
    (tmp_path / "long.json").write_text(f'{{"n": {"9" * 5000}}}')
    with pytest.raises(InputError, match=r"long\.json: not JSON that can be read"):
        read_json(tmp_path / "long.json")
    cells = pd.DataFrame({"text": ["\x00a", "=1\x1b", "\r=1", None], "list": [np.array(["\u202e", "b"])] * 4})
    assert csv_text(cells).splitlines()[1:] == [
        r"\x00a,\u202e; b",
        r"'=1\x1b,\u202e; b",
        r"\x0d=1,\u202e; b",
        r",\u202e; b",
    ]


def test_a_label_is_one_short_line() -> None:
    assert plain_label("a\n b $x$") == r"a b \$x\$"
    assert plain_label("x" * 99, 5) == "xxxx…"


def test_an_argument_that_is_not_utf8_is_refused(cli: Cli, tiny_run_path: Path) -> None:
    bad = os.fsdecode(b"bad \xff bytes")
    for words in (["trace", tiny_run_path, bad], ["generate", tiny_run_path, bad], ["census", bad], ["--" + bad]):
        result = cli(*words)
        assert result.code == 2 and result.out == ""
        assert result.err.strip().startswith("memscope: this argument is not UTF-8 text: ")
        assert r"bad \udcff bytes" in result.err and result.err.count("\n") == 1


def test_a_trace_and_a_continuation_show_signs(cli: Cli, tiny_run_path: Path) -> None:
    text = "Ada \x1b[31mHolm \u202ewas"
    for words in (["trace", tiny_run_path, text], ["generate", tiny_run_path, text, "--tokens", 3]):
        printed = cli(*words, "--device", "cpu")
        assert printed.code == 0
        assert "\x1b" not in printed.out and "\u202e" not in printed.out
        assert "\\x1b" in printed.out
    assert "\\u202e" in printed.out
    rows = json.loads(cli("trace", tiny_run_path, "a \x1b[31mb", "--json", "--device", "cpu").out)
    assert "".join(row["text"] for row in rows[1:]) == "a \x1b[31mb"  # for machines the text is what it was


@pytest.mark.slow
def test_a_terminal_that_knows_only_ascii_gets_escapes(tiny_run_path: Path) -> None:
    command = [sys.executable, "-m", "memscope", "generate", str(tiny_run_path), "Größe 漢", "--tokens", "2"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(r"Gr\xf6\xdfe \u6f22")


def test_frames_of_the_app_show_signs_in_cells_and_lists() -> None:
    frame = pd.DataFrame(
        {"n": [1, 2], "text": ["a\x1b", None], "tokens": [["\u202e"], np.array(["b", "\x00"], object)]}
    )
    seen = printable_frame(frame)
    assert seen["n"].tolist() == [1, 2]
    assert seen["text"][0] == "a\\x1b" and pd.isna(seen["text"][1])
    assert seen["tokens"].tolist() == [["\\u202e"], ["b", "\\x00"]]


@pytest.mark.parametrize("path", sorted((ROOT / "app").rglob("*.py")), ids=lambda path: path.name)
def test_pages_show_text_from_outside_through_one_gate(path: Path) -> None:
    """HTML may be a file of the app's own."""
    if path.name != "outside.py":
        own = r"html\((?!Path\(__file__\))"
        assert not re.search(rf"\bst\.((dataframe|table|text|code|json)\(|{own})", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted((ROOT / "memscope").glob("cli*.py")), ids=lambda path: path.name)
def test_commands_print_through_one_gate(path: Path) -> None:
    printed = [line for line in path.read_text(encoding="utf-8").splitlines() if re.search(r"(?<![_\w])print\(", line)]
    own = ("printable", "memscope {version", 'f"memscope: {line', "memscope: stopped", "memscope: listening")
    assert [line for line in printed if not any(part in line for part in own)] == []
