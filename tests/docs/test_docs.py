"""The docs name every command, room, file and number that there is, and none that there is not."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click import Command

from memscope.config.load import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
import architecture  # noqa: E402
import generate  # noqa: E402
import memory_figure  # noqa: E402

COMMANDS: dict[str, Command] = generate.commands()
LOG = sorted(page for page in (DOCS / "log").glob("*.md") if page.name != "README.md")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "analyses").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
PAGES += sorted(DOCS.rglob("*.md"))
CURRENT = [page for page in PAGES if page not in LOG and page.name != "CHANGELOG.md"]
"""Pages about the code as it is; a command of the lab book is of its commit."""
ENTRY = re.compile(
    r"# .+\?\n\n- Date: \d{4}-\d\d-\d\d, commit `[0-9a-f]{7,}`\.(.*\n)+?- Answer: (.+\n)+"
    r"\n(.*\n)*## Command\n(.*\n)+?## Result\n"
)


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def code_blocks(language: str, pages: list[Path]) -> Iterator[tuple[Path, str]]:
    for page in pages:
        for block in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            yield page, block


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_stands_in_the_readme(command: str) -> None:
    assert COMMANDS[command].help, f"{command} is missing its help"
    assert f"memscope {command}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", generate.PAGES)
def test_generated_pages_are_up_to_date(page: str) -> None:
    assert (DOCS / page).read_text() == generate.PAGES[page]() + "\n", "run 'make docs'"


def test_the_picture_of_the_architecture_shows_every_room() -> None:
    assert architecture.PICTURE.read_text() == architecture.draw() + "\n", "run 'make docs'"
    drawn = {name for column in architecture.COLUMNS for name, _ in column.rooms} | {
        name for name, _ in architecture.FOOT
    }
    assert drawn == {f"{room.relative_to(ROOT / 'memscope').as_posix()}/" for room in rooms()} | {"app/"}


def rooms() -> list[Path]:
    return [path.parent for path in (ROOT / "memscope").rglob("__init__.py") if path.parent != ROOT / "memscope"]


def test_readme_tree_lists_every_room() -> None:
    [tree] = re.findall(r"^```\n(memscope/.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(rooms()) > 15
    assert [room.name for room in rooms() if f"{room.name}/" not in tree] == []


def test_make_targets_exist() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^make ([\w-]+)", text, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_commands_options_and_config_keys_in_shell_blocks_exist() -> None:
    keys = {key for section in SECTIONS.values() for key in section.model_fields}
    unknown = []
    for page, block in code_blocks("sh", CURRENT):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.partition(" #")[0]
            used = re.search(r"\bmemscope (\w+)(.*)", line)
            if used is None:
                continue
            command, arguments = used.groups()
            if f"{command} {arguments.split()[0] if arguments.split() else ''}" in COMMANDS:
                command = f"{command} {arguments.split()[0]}"
            if command not in COMMANDS:
                unknown.append(f"{page.name}: memscope {command}")
                continue
            options = {option for parameter in COMMANDS[command].params for option in parameter.opts}
            unknown += [
                f"{page.name}: {command} {o}" for o in re.findall(r"(?<=\s)--[\w-]+", arguments) if o not in options
            ]
            unknown += [f"{page.name}: {key}" for key in re.findall(r"--set (\w+)=", arguments) if key not in keys]
    assert unknown == []


def test_python_blocks_parse_and_import_public_names_alone() -> None:
    api = (DOCS / "reference" / "api.md").read_text()
    blocks = list(code_blocks("python", PAGES))
    assert len(blocks) > 3
    for page, block in blocks:
        for node in ast.walk(ast.parse(block, filename=str(page))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("memscope"):
                for alias in node.names:
                    assert f"### {alias.name}\n" in api, f"{page.name}: {alias.name} is not in docs/reference/api.md"


def test_the_query_of_the_page_on_large_recordings_counts_selections(
    tiny_recording_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(_, block)] = code_blocks("python", [DOCS / "reference" / "large.md"])
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "demo").symlink_to(tiny_recording_path)
    monkeypatch.chdir(tmp_path)
    rows = pd.concat(map(pd.read_parquet, sorted(tiny_recording_path.glob("tokens/*.parquet"))))
    token = int(rows["token"].mode()[0])
    assert block.count("token = 262") == 1
    names: dict[str, Any] = {}
    exec(block.replace("token = 262", f"token = {token}"), names)
    found = names["selected"]
    entries = pd.Series(np.concatenate(rows["l0_indices"][rows["token"] == token].to_numpy())).value_counts()
    assert found["selections"].tolist() == entries.head(10).tolist()
    assert entries[found["entry"]].tolist() == found["selections"].tolist()


def numbers(census: object) -> set[str]:
    """Names of everything in ``census.json``, names of groups left out."""
    if isinstance(census, list):
        return set().union(*map(numbers, census))
    if not isinstance(census, dict):
        return set()
    return set(census) | set().union(*(numbers(value) for key, value in census.items() if key != "groups"))


def test_every_file_column_and_number_of_a_recording_is_explained(tiny_recording_path: Path) -> None:
    text = "".join((DOCS / "reference" / page).read_text() for page in ("metrics.md", "files.md"))
    in_use = numbers(json.loads((tiny_recording_path / "census.json").read_text()))
    in_use |= json.loads((tiny_recording_path / "recording.json").read_text()).keys()
    for file in tiny_recording_path.rglob("*.parquet"):
        in_use |= set(pq.read_schema(file).names)
    in_use |= {file.name for file in tiny_recording_path.iterdir()}

    def explained(name: str) -> bool:
        name = re.sub(r"^l\d+_", "l{l}_", name).removesuffix("_se")
        kinds = re.sub(r"^(input|predicted|next)_", "{kind}_", name)
        return any(re.search(rf"\b{re.escape(word)}\b|{re.escape(word)}`", text) for word in (name, kinds))

    missing = sorted(name for name in in_use if not explained(name))
    assert not missing, f"docs/reference/metrics.md and files.md do not explain {', '.join(missing)}"


def test_the_page_of_the_design_has_every_hook() -> None:
    source = "".join(path.read_text() for path in (ROOT / "memscope" / "model").glob("*.py"))
    made = {
        name
        for line in re.findall(r"^.*= HookPoint\(\)", source, re.MULTILINE)
        for name in re.findall(r"hook_\w+", line)
    }
    assert made >= {"hook_indices", "hook_pattern", "hook_resid_post"}
    assert made == set(re.findall(r"hook_\w+", (DOCS / "explanation" / "design.md").read_text()))


@pytest.mark.parametrize("folder", ["analyses", "benchmarks"])
def test_every_script_stands_in_the_readme_of_its_folder(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    assert [path.name for path in (ROOT / folder).glob("*.py") if path.name not in text] == []


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    earlier = [plain[:number].count(name) for number, name in enumerate(plain)]
    return {f"{name}-{count}" if count else name for name, count in zip(plain, earlier, strict=True)}


def links(page: Path) -> Iterator[tuple[str, Path, str]]:
    """Links of a page to files of this repository: as written, the file, the anchor."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if not target.startswith("http"):
            yield f"{target}#{anchor}", (page.parent / target).resolve() if target else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    for written, target, anchor in links(page):
        assert target.exists(), f"{page.name}: {written}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {written}"


def test_links_to_headings_are_looked_at() -> None:
    assert anchors(DOCS / "reference" / "bank.md") >= {"groups", "entries-in-bfloat16"}
    assert sum(bool(anchor) for page in PAGES for _, _, anchor in links(page)) > 10


def test_every_page_is_reached_from_the_index() -> None:
    reached: set[Path] = set()
    waiting = [DOCS / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        waiting += [target for _, target, _ in links(page)]
    assert [page for page in DOCS.rglob("*.md") if page not in reached] == []


def test_every_picture_is_shown() -> None:
    shown = {target for page in PAGES for _, target, _ in links(page)}
    assert [path.name for path in (DOCS / "images").glob("*.*g") if path not in shown] == []


def test_pages_that_code_and_messages_name_exist() -> None:
    files = [ROOT / "Makefile", *ROOT.glob("*.md"), *(ROOT / "memscope" / "presets").rglob("*.yaml")]
    for folder in ("memscope", "app", "analyses", "benchmarks", "tests", "docs"):
        files += [
            path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".cpp", ".h", ".j2", ".js")
        ]
    named = {
        (file, name) for file in files for name in re.findall(r"(?<![\w/])docs/[\w/]+\.(?:md|py)\b", file.read_text())
    }
    assert len(named) > 10
    assert [f"{file.relative_to(ROOT)}: {name}" for file, name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("entry", LOG, ids=lambda page: page.stem)
def test_an_entry_of_the_lab_book_has_its_parts(entry: Path) -> None:
    assert ENTRY.match(entry.read_text()), (
        "an entry is '# Question?', '- Date: YYYY-MM-DD, commit `...`.', '- Answer: ...', '## Command', '## Result'"
    )


def test_the_glossary_defines_each_word_once() -> None:
    lines = re.findall(r"^- \*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(), flags=re.MULTILINE)
    terms = [term for line in lines for term in line.split(", ")]
    assert len(terms) == len(set(terms))
    words = {
        "entry",
        "bank",
        "slot",
        "key",
        "gate",
        "selection",
        "read",
        "read weight",
        "drift",
        "coverage",
        "evenness",
    }
    assert words | {"lens", "look", "census", "recording", "run"} <= set(terms)


def test_the_page_of_the_recommended_memory_is_short_and_its_losses_are_in_the_lab_book() -> None:
    text = (DOCS / "explanation" / "memory.md").read_text()
    assert text.count("\n") <= 150
    log = "".join(entry.read_text() for entry in LOG)
    rows = [*memory_figure.losses("256").items(), *memory_figure.losses("512").items()]
    assert len(rows) == 9
    for model, seeds in rows:
        assert seeds and all(re.search(rf"\b{loss:.3f}\b", log) for loss in seeds), model
