"""Write a recording as a folder of pages that any browser opens from disk, without a server or network.

    memscope report recordings/demo --static site/demo

``index.html`` lists the entries in use (search and sorting in ``site.js``, rows in ``data/``). Each of them has a page,
``page.html#17``, which ``page.js`` unpacks from ``pages/``: packed, 256 to a file, pages take a third of the room.
Sentences, tokens and contexts are text of a corpus: they are escaped in pages and set as text by the script, and a
content security policy allows no other script, style or address.
"""

import base64
import gzip
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
from memscope.base.words import first_upper, span, visible
from memscope.base.work import watched
from memscope.query.entry_cards import EntryCard
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import SCORES, is_private
from memscope.report.document import shown
from memscope.report.words import entry_name, model_name, selections, start_names

TOP_CONTEXTS = 8
"""Contexts of highest gate score shown per layer; the samples of every fifth come beside them."""
_MARKER = "memscope-site.json"
"""Marks a folder as a site: only a site is ever replaced."""
_ROWS_PER_FILE = 4096
_PAGES_PER_FILE = 256
_BEFORE, _AFTER = 20, 12
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
        facts = _facts(recording, len(used), left_out)
        for name, values in (("index", {"used": len(used), "data": data}), ("page", {"group": _PAGES_PER_FILE})):
            template = _environment().get_template(f"site_{name}.html.j2")
            html = template.render(facts=facts, **values, **_words(recording.info))
            (folder / f"{name}.html").write_text(html, encoding="utf-8")
        _write_pages(recording, used, folder / "pages")
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


def _write_pages(recording: Recording, used: pd.DataFrame, folder: Path) -> None:
    """The page of every entry, packed with those of near numbers."""
    environment = _environment()
    environment.filters["name"] = lambda entry: entry_name(recording.info, entry)
    template = environment.get_template("site_entry.html.j2")
    order = [int(entry) for entry in used["entry"]]
    ranks = {entry: rank for rank, entry in enumerate(order)}
    groups: dict[int, list[int]] = {}
    for entry in sorted(order):
        groups.setdefault(entry // _PAGES_PER_FILE, []).append(entry)
    folder.mkdir()
    for number, group in watched(
        groups.items(), "writing pages", recording.info.word(2), len(order), lambda g: len(g[1])
    ):
        firing = _grouped(recording.firing_of(group), ["entry"])
        contexts = _grouped(recording.contexts_of(group, _BEFORE, _AFTER), ["entry", "layer"])
        neighbours = _grouped(recording.neighbours_of(group), ["entry", "layer"])
        pages: dict[int, str] = {}
        for card in recording.cards(group):
            rank = ranks[card.entry]
            layers = sorted(firing[card.entry,], key=lambda row: -row["count"])
            pages[card.entry] = template.render(
                **_summary(recording, card),
                rank=rank + 1,
                used=len(order),
                more_used=order[rank - 1] if rank else None,
                less_used=order[rank + 1] if rank + 1 < len(order) else None,
                layers=[
                    _layer(recording, row, contexts.get(key := (card.entry, row["layer"]), []), neighbours.get(key, []))
                    for row in layers
                ],
                linked=ranks,
            )
        packed = gzip.compress(json.dumps(pages, ensure_ascii=False).encode(), mtime=0)
        script = f'memscope.unpack({number}, "{base64.b64encode(packed).decode()}");\n'
        (folder / f"{number:04d}.js").write_text(script, encoding="ascii")


def _summary(recording: Recording, card: EntryCard) -> dict[str, Any]:
    info = recording.info
    own = {site.layer: site for site in info.sites if site.own.start <= card.entry < site.own.stop}
    has = {what for site in own.values() for what in site.has}
    return {
        **_words(info),
        "card": card,
        "name": first_upper(info.label(card.entry)),
        "has": has,
        "lens_of": next(iter(own.values())).kind,
        "total": int(card.usage["count"].sum()),
        "all_selections": recording.total_selections(),
        "d": span([recording.total_selections(layer) for layer in own], ","),
        "documents": len(recording.documents),
        "triples": [t for t in card.triples.to_dict("records") if t["predicate"] or t["object"]],
        "usage": card.usage[card.usage["layer"].isin(list(own))].to_dict("records"),
        "top_share": float(card.usage["share"].max()),
        "nearest": card.nearest.to_dict("records"),
        "best_cosine": float(card.nearest["cosine"].max()),
        "slots": info.slots,
        "before": _BEFORE,
        "lens": card.lens.to_dict("records"),
    }


def _layer(
    recording: Recording, firing: dict[str, Any], contexts: list[dict[str, Any]], neighbours: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of a page about one layer that uses the entry."""
    info, site = recording.info, recording.info.site(firing["layer"])
    kinds = {
        "previous": "after the token",
        "input": "on the token",
        "predicted": "where the model predicts",
        "next": "where the text goes on with",
    }
    typical = [
        (name, list(zip(firing[f"{kind}_tokens"], firing[f"{kind}_count"], firing[f"{kind}_lift"], strict=True)))
        for kind, name in kinds.items()
    ]
    return {
        "number": firing["layer"],
        "count": firing["count"],
        "fires_on": firing["fires_on"],
        "docs": firing["docs"],
        "d": recording.total_selections(site.layer),
        "score": SCORES[site.kind],
        "gates": list(firing["gate_deciles"]) if "scores" in site.has else [],
        "typical": [(name, tokens) for name, tokens in typical if tokens],
        "contexts": list(_contexts(contexts, SCORES[site.kind] if "scores" in site.has else None)),
        "neighbours": [one | {"name": entry_name(info, one["other"])} for one in neighbours],
    }


def _contexts(contexts: list[dict[str, Any]], score: str | None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Contexts under their headings; rows that the top already shows are not repeated. ``score``: what it is called."""
    contexts = [_space_outside(context) for context in contexts]
    top = [c | {"label": ""} for c in contexts if c["kind"] == "top"][:TOP_CONTEXTS]
    yield f"Highest {score}s" if score else "Some of its tokens", top
    shown = {c["row"] for c in top}
    fifths = [
        c | {"label": f"fifth {c['rank'] + 1} of 5 · " if score else ""}
        for c in contexts
        if c["kind"] == "quantile" and c["row"] not in shown
    ]
    if fifths:
        yield f"Samples over all its {score}s, highest fifth first" if score else "More of its tokens", fifths


def _space_outside(context: dict[str, Any]) -> dict[str, Any]:
    """The context with the space that begins its token moved before it, where it reads as a space."""
    word = context["token"].lstrip(" ")
    spaces = context["token"].removesuffix(word) if word else ""
    return context | {"before": context["before"] + spaces, "token": word or context["token"]}


def _grouped(frame: pd.DataFrame, keys: list[str]) -> dict[tuple[int, ...], list[dict[str, Any]]]:
    """Rows as plain dictionaries, grouped; pandas takes longer over many small groups than all other work here."""
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memscope.export"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
    )
    environment.filters |= {
        "visible": visible,
        "flat": lambda text: text.replace("\n", " ↵ ").replace("\t", " "),
        "path": lambda entry: f"page.html#{int(entry)}",
    }
    return environment


def _text(value: Any) -> str | None:
    return printable(value) if isinstance(value, str) else None
