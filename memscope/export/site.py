"""Write a recording as a folder of pages that any browser opens from disk, without a server or network.

    memscope report recordings/demo --static site/demo

``index.html`` lists the entries in use (search and sorting in ``site.js``, rows in ``data/``). Each of them has a page,
``page.html#17``, which ``page.js`` draws from what ``site_pages.py`` writes. Sentences, tokens and contexts are text of
a corpus: the scripts set them as text, and a content security policy allows no other script, style or address.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd

from memscope.base.errors import InputError
from memscope.base.files import atomic_path
from memscope.base.lock import one_maker
from memscope.base.printable import printable
from memscope.base.words import first_upper, span
from memscope.export.site_pages import write_pages
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import is_private
from memscope.report.document import shown
from memscope.report.words import model_name, selections, start_names

_MARKER = "memscope-site.json"
"""Marks a folder as a site: only a site is ever replaced."""
_ROWS_PER_FILE = 4096
_TEMPLATES = Path(__file__).parent / "templates"


class StaticSite(NamedTuple):
    """A site that was written."""

    home: Path
    """Its ``index.html``."""
    entries: int
    """Entries with a page."""
    left_out: int
    """Entries without a page: no layer selected them, or they were not asked for."""
    bytes: int
    seconds: float


def write_static(
    recording: Recording, out: Path, limit: int | None = None, entries: Sequence[int] | None = None
) -> StaticSite:
    """Write the site into the folder ``out``, which appears whole or not at all; an earlier site there is replaced.

    Args:
        recording: the recording.
        out: the folder.
        limit: at most this many entries, most used first.
        entries: only these, by number.

    Raises:
        InputError: ``out`` holds files that are not a site, or cannot be written; or no entry is left.
    """
    started = time.perf_counter()
    out = out.absolute()
    table = recording.entries(sort="count", limit=recording.info.knowledge_num)
    shown = table[table["count"] > 0]
    if entries is not None:
        shown = shown[shown["entry"].isin(entries)]
    if shown.empty:
        raise InputError(f"{recording.path}: none of these {recording.info.word(2)} was selected; nothing to write")
    with one_maker(out):
        return _write_site(recording, out, started, shown[:limit].reset_index(drop=True), len(table))


def _write_site(recording: Recording, out: Path, started: float, used: pd.DataFrame, n_entries: int) -> StaticSite:
    _check_target(out)
    left_out = n_entries - len(used)
    with atomic_path(out) as folder:
        folder.mkdir()
        for name in ("site.css", "site.js", "page.js"):
            shutil.copyfile(_TEMPLATES / name, folder / name)
        data = list(_write_data(recording, used, folder / "data"))
        facts, words = _facts(recording, len(used), left_out), _words(recording.info)
        for name in ("index", "page"):
            template = _environment().get_template(f"site_{name}.html.j2")
            html = template.render(facts=facts, used=len(used), data=data, **words)
            (folder / f"{name}.html").write_text(html, encoding="utf-8")
        write_pages(recording, used, folder, words)
        marker = {"made_by": "memscope", **facts}
        (folder / _MARKER).write_text(json.dumps(marker, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return StaticSite(out / "index.html", len(used), left_out, size, time.perf_counter() - started)


def _check_target(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: this is a file; name a folder that is new, empty or an earlier site")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARKER).is_file():
        raise InputError(f"{out}: holds files that are not a site of memscope; name a folder that is new or empty")


def _facts(recording: Recording, used: int, left_out: int) -> dict[str, str]:
    info = recording.info
    return {
        "Model": model_name(recording),
        "Corpus": f"{info.corpus_name}, {len(recording.documents):,} documents, {info.rows:,} tokens",
        "Selections": f"D = {selections(recording)} a layer ({_per_token(info)} per token), "
        f"{selections(recording, all_layers=True)} in {len(info.layers)} layers",
        first_upper(info.word(2)): f"{used:,} of {info.knowledge_num:,} are listed here; the other {left_out:,} were "
        "never selected or not asked for, and have no page",
    }


def _per_token(info: RecordingInfo) -> str:
    most = "at most " if any(site.varies for site in info.sites) else ""
    return most + span([site.selected for site in info.sites], ",")


def _words(info: RecordingInfo) -> dict[str, Any]:
    """Names for the templates, and which columns there are."""
    memory = info.kind == "memory"
    return {
        "word": info.word(),
        "words": info.word(2),
        "what": "Memory" if memory else first_upper(info.word(2)),
        "of_a_bank": f"{first_upper(info.word(2))} of a memory bank" if memory else first_upper(info.word(2)),
        "selector": info.selector,
        "gate": "gate" if memory else info.score,
        "starts": start_names(info) if info.has("starts") else "",
        "drifts": info.has("drift"),
    }


def _write_data(recording: Recording, used: pd.DataFrame, folder: Path) -> Iterator[str]:
    """Rows for ``site.js``, most used first, so that the first file fills the first pages; yields file names."""
    folder.mkdir()
    usage = recording.usage()
    layers = np.asarray(recording.info.layers)
    rows = [
        [
            int(row["entry"]),
            int(row["count"]),
            None if np.isnan(row.get("drift", np.nan)) else round(max(0.0, float(row["drift"])), 5),
            int(row["layers_used"]),
            int(layers[usage[:, row["entry"]].argmax()]),
            _text(row["title"]),
            _text(row["words"]),
            _text(row.get("sentence")),
            _triple_text(row),
            *_label(recording.info, row["entry"]),
        ]
        for row in used.to_dict("records")
    ]
    for number, start in enumerate(range(0, len(rows), _ROWS_PER_FILE)):
        name = f"entries-{number:03d}.js"
        lines = ",\n".join(_script_json(row) for row in rows[start : start + _ROWS_PER_FILE])
        (folder / name).write_text(f"memscope.add([\n{lines}\n]);\n", encoding="utf-8")
        yield name


def _label(info: RecordingInfo, entry: int) -> list[Any]:
    """Label and number of an entry where layers have entries of their own, else nothing."""
    if not info.private:
        return []
    site = next(site for site in info.sites if site.own.start <= entry < site.own.stop)
    return [info.label(entry), int(entry) - (site.first_entry if is_private(info.sites, site) else 0)]


def _triple_text(row: dict[str, Any]) -> str:
    """The words of an entry's triples that a search should find and that its sentence lacks."""
    sentence = _text(row.get("sentence"))
    if sentence is None:
        return ""
    texts = [printable(str(text)) for name in ("subject", "predicate", "object") for text in row[name]]
    return " ".join(text for text in dict.fromkeys(texts) if text.lower() not in sentence.lower())


def _script_json(value: Any) -> str:
    """JSON inside a script: markup and line separators are escaped, so that nothing can end the script early."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memscope.export"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
    )
    return environment


def _text(value: Any) -> str | None:
    return printable(value) if isinstance(value, str) else None
