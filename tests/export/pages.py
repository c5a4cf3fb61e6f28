"""What the pages of a static site are drawn from, and the pages themselves as Chromium shows them."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

from memscope.export.site_pages import PAGES_PER_FILE


def unpack(file: Path) -> Any:
    """What a packed file hands over."""
    [(name, packed)] = re.findall(
        r'^memscope\.unpack\("([\w/]+)", "([\w+/=]+)"\);\n$', file.read_text(encoding="ascii")
    )
    assert file.as_posix().endswith(f"/{name}.js")
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def pages_of(home: Path) -> dict[int, dict[str, Any]]:
    """The data of the pages of a site by entry; ``home`` is its ``index.html``."""
    pages: dict[int, dict[str, Any]] = {}
    for path in (home.parent / "pages").iterdir():
        group = {int(entry): page for entry, page in unpack(path).items()}
        assert {entry // PAGES_PER_FILE for entry in group} == {int(path.stem)}
        pages |= group
    return pages


def open_page(tab: Any, home: Path, entry: int) -> Any:
    """The page of an entry, drawn in a tab; returns its main part."""
    tab.goto("about:blank")
    tab.goto(f"{(home.parent / 'page.html').as_uri()}#{entry}")
    tab.get_by_role("heading", level=1).wait_for()
    return tab.locator("main")
