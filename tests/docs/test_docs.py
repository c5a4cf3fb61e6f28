"""The docs name every command, module, file and number that there is, and none that there is not."""

import json
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer

from memscope.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import generate  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
COMMANDS = list(typer.main.get_command(app).commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_stands_in_the_readme(command: str) -> None:
    group = typer.main.get_command(app)
    assert group.commands[command].help, f"{command} is missing its help"
    assert f"memscope {command}" in (ROOT / "README.md").read_text()


def test_generated_pages_are_up_to_date() -> None:
    message = "run 'make docs'"
    assert (REFERENCE / "cli.md").read_text() == generate.render_cli() + "\n", message
    assert (REFERENCE / "config.md").read_text() == generate.render_config() + "\n", message


def test_readme_commands_exist() -> None:
    text = (ROOT / "README.md").read_text()
    used = set(re.findall(r"^memscope (\w+)", text, flags=re.MULTILINE))
    assert used <= set(COMMANDS), f"README names unknown commands {used - set(COMMANDS)}"
    targets = set(re.findall(r"^make ([\w-]+)", text + (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_readme_tree_lists_every_room() -> None:
    [tree] = re.findall(r"^```\n(memscope/.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    rooms = [path.parent for path in (ROOT / "memscope").rglob("__init__.py") if path.parent != ROOT / "memscope"]
    assert rooms
    assert [room.name for room in rooms if f"{room.name}/" not in tree] == []


def numbers(census: object) -> set[str]:
    """Names of everything in ``census.json``, names of groups left out."""
    if isinstance(census, list):
        return set().union(*map(numbers, census))
    if not isinstance(census, dict):
        return set()
    return set(census) | set().union(*(numbers(value) for key, value in census.items() if key != "groups"))


def test_every_file_column_and_number_of_a_recording_is_explained(tiny_recording_path: Path) -> None:
    text = (REFERENCE / "metrics.md").read_text()
    names = numbers(json.loads((tiny_recording_path / "census.json").read_text()))
    names |= json.loads((tiny_recording_path / "recording.json").read_text()).keys()
    for file in tiny_recording_path.rglob("*.parquet"):
        names |= set(pq.read_schema(file).names)
    names |= {file.name for file in tiny_recording_path.iterdir()}

    def explained(name: str) -> bool:
        name = re.sub(r"^l\d+_", "l{l}_", name).removesuffix("_se")
        kinds = re.sub(r"^(input|predicted|next)_", "{kind}_", name)
        return any(re.search(rf"\b{re.escape(word)}\b|{re.escape(word)}`", text) for word in (name, kinds))

    missing = sorted(name for name in names if not explained(name))
    assert not missing, f"docs/reference/metrics.md does not explain {', '.join(missing)}"


@pytest.mark.parametrize("folder", ["analyses", "benchmarks"])
def test_every_script_stands_in_the_readme_of_its_folder(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    assert [path.name for path in (ROOT / folder).glob("*.py") if path.name not in text] == []


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
