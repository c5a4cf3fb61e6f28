"""The packed pages of a static site."""

import base64
import gzip
import json
import re
from pathlib import Path

from memscope.export.site import _PAGES_PER_FILE


def pages_of(home: Path) -> dict[int, str]:
    """The pages of a site by entry, as its script unpacks them; ``home`` is its ``index.html``."""
    pages: dict[int, str] = {}
    for path in (home.parent / "pages").iterdir():
        [(number, packed)] = re.findall(
            r'^memscope\.unpack\((\d+), "([\w+/=]+)"\);\n$', path.read_text(encoding="ascii")
        )
        assert path.name == f"{int(number):04d}.js"
        group = {int(entry): page for entry, page in json.loads(gzip.decompress(base64.b64decode(packed))).items()}
        assert {entry // _PAGES_PER_FILE for entry in group} == {int(number)}
        pages |= group
    return pages
