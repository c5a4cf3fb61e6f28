"""Build the documentation as a site, for ``make docs``: ``build/docs/html/index.html``. A warning is an error.

The pages stay Markdown for GitHub. They are copied with their folders, so that links between them hold; the site adds
the contents, tutorials that are scripts become pages, and docstrings become a page of the API for each room.
"""

import re
import shutil
import sys
from pathlib import Path

import generate
import jupytext
from sphinx.cmd.build import main as sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
OUT = ROOT / "build" / "docs"
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "analyses/README.md", "benchmarks/README.md"]
PAGES += sorted(str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md"))
CONTENTS = {
    "README.md": {
        "Start": ["docs/README"],
        "Tutorials": ["docs/tutorials/first_recording", "docs/tutorials/text_to_picture", "docs/tutorials/*"],
        "Reference": ["docs/reference/*", "docs/glossary"],
        "Explanation": ["docs/explanation/*"],
        "Lab book": ["docs/log/README", "docs/results", "analyses/README", "benchmarks/README"],
        "Project": ["CONTRIBUTING", "CHANGELOG"],
    },
    "docs/log/README.md": {"Entries": ["*"]},
    "docs/reference/api.md": {"Rooms": ["api/*"]},
}
"""Pages that lead to others: the others by caption, as patterns."""


def stage(folder: Path) -> None:
    """Write the sources of the site into a new folder."""
    for name in PAGES:
        write(folder / name, prepare(name, (ROOT / name).read_text(encoding="utf-8")))
        copy_linked(name, folder)
    for script in TUTORIALS:
        cells = jupytext.reads(script.read_text(encoding="utf-8"), "py:percent")
        write(folder / script.relative_to(ROOT).with_suffix(".md"), plain_markdown(jupytext.writes(cells, "md")))
    for room, modules in rooms().items():
        write(folder / "docs" / "reference" / "api" / f"{room}.md", api_page(room, modules))


TUTORIALS = [path for path in (DOCS / "tutorials").glob("*.py") if "\n# %%" in path.read_text(encoding="utf-8")]
"""Scripts that are notebooks."""


def prepare(name: str, text: str) -> str:
    """A page with links that lead to pages of the site, and with its contents."""
    for script in TUTORIALS:
        text = text.replace(f"{script.name})", f"{script.stem}.md)")
    for anchor, room in api_anchors().items():
        text = text.replace(f"api.md#{anchor})", f"api/{room}.md#{anchor})")
    if name == "docs/reference/api.md":
        text = text.partition("\n## ")[0] + "\n"
        for anchor, room in api_anchors().items():
            text = text.replace(f"](#{anchor})", f"](api/{room}.md#{anchor})")
    for caption, patterns in CONTENTS.get(name, {}).items():
        text += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n" + "\n".join(patterns) + "\n```\n"
    return text


def copy_linked(name: str, folder: Path) -> None:
    """Copy the pictures and files that a page links to."""
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#\s:]+)(?:#[^)\s]*)?\)", page.read_text(encoding="utf-8")):
        file = (page.parent / target).resolve()
        if file.is_file() and file.suffix != ".md" and file not in TUTORIALS:
            copy = folder / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def plain_markdown(text: str) -> str:
    """A notebook's Markdown without the header that is for notebooks alone."""
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)


def rooms() -> dict[str, list[str]]:
    """Modules of the API by the room that they are in, or are below."""
    found: dict[str, list[str]] = {}
    for module in generate.PUBLIC:
        found.setdefault(module.partition(".")[0], []).append(module)
    return found


def api_anchors() -> dict[str, str]:
    """The anchor of every public name on GitHub's page of the API, and the room whose page it is on here."""
    names = [(name.lower(), module.partition(".")[0]) for module, names in generate.PUBLIC.items() for name in names]
    anchors: dict[str, str] = {}
    for name, room in names:
        earlier = sum(anchor == name or anchor.startswith(f"{name}-") for anchor in anchors)
        anchors[f"{name}-{earlier}" if earlier else name] = room
    return anchors


def api_page(room: str, modules: list[str]) -> str:
    """The page of a room of the API: Sphinx fills it from docstrings."""
    lines = [f"# memscope.{room}", ""]
    for module in modules:
        lines += [f"## memscope.{module}", ""]
        for name in generate.PUBLIC[module]:
            kind = "autoclass" if name[0].isupper() else "autofunction"
            lines += [f"### {name}", "", "```{eval-rst}", f".. {kind}:: memscope.{module}.{name}"]
            lines += ["   :members:"] * (kind == "autoclass") + ["```", ""]
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Write a file and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main() -> int:
    """Build the site; the status is 1 if Sphinx warned of anything."""
    shutil.rmtree(OUT, ignore_errors=True)
    source, html = OUT / "source", OUT / "html"
    stage(source)
    status: int = sphinx(["-W", "--keep-going", "-q", "-b", "html", "-c", str(DOCS), str(source), str(html)])
    if not status:
        shutil.copyfile(html / "README.html", html / "index.html")  # beside it, so that its links hold
        print(html / "index.html")
    return status


if __name__ == "__main__":
    sys.exit(main())
