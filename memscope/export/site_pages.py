"""What ``page.js`` draws the page of an entry from: its data, packed with those of near numbers.

A context is a place in the recorded text, which is there once, and a token is a number of one list of texts. Files are
scripts, since a browser reads no other file from disk.
"""

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memscope.base.printable import printable
from memscope.base.work import watched
from memscope.query.recording import Recording
from memscope.recording.sites import SCORES
from memscope.report.words import entry_name

TOP_CONTEXTS = 8
"""Contexts of highest gate score shown per layer; the samples of every fifth come beside them."""
PAGES_PER_FILE = 256
ROWS_PER_FILE = 65_536
BEFORE, AFTER = 20, 12
"""Tokens around that of a context."""
_SPARE = 16
"""Tokens beyond those, in which a character that the context cuts may begin or end."""
_ENDS = ("top", "bottom")
_UNUSED = {"count": 0, "gate_sum": 0.0, "read_sum": 0.0}
KINDS = ("previous", "input", "predicted", "next")


class Texts:
    """Texts by number, in the order in which they were first asked for."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text, which is made printable."""
        return self._numbers.setdefault(printable(text), len(self._numbers))

    def numbers(self, texts: list[str]) -> list[int]:
        """The numbers of some texts."""
        return [self.number(text) for text in texts]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)


def write_pages(recording: Recording, used: pd.DataFrame, folder: Path, words: dict[str, Any]) -> None:
    """Write ``shared.js`` for all pages, ``pages/`` of the entries and ``text/`` that contexts are in.

    Args:
        recording: what is shown.
        used: the entries that have a page, most used first.
        folder: of the site.
        words: what things are called.
    """
    texts, shown = Texts(), np.zeros(len(recording.token_ids) + 1, np.int64)
    listed = {int(entry) for entry in used["entry"]}
    others: dict[int, list[Any]] = {}
    groups: dict[int, list[int]] = {}
    for entry in sorted(listed):
        groups.setdefault(entry // PAGES_PER_FILE, []).append(entry)
    for name in ("pages", "text"):
        (folder / name).mkdir(exist_ok=True)
    for number, group in watched(
        groups.items(), "writing pages", recording.info.word(2), len(listed), lambda g: len(g[1])
    ):
        neighbours = recording.neighbours_of(group)
        for row in neighbours[~neighbours["other"].isin(listed)].drop_duplicates("other").to_dict("records"):
            others[int(row["other"])] = [
                entry_name(recording.info, row["other"]),
                _text(row["title"]),
                _text(row.get("sentence")),
            ]
        pages = dict(_pages(recording, group, neighbours, texts, shown))
        _write_packed(folder, f"pages/{number:04d}", pages)
    for number, rows in enumerate(_text_rows(recording, texts, shown)):
        _write_packed(folder, f"text/{number:04d}", rows)
    _write_packed(folder, "shared", {**_describe(recording, words), "texts": list(texts), "others": others})


def _pages(
    recording: Recording, group: list[int], neighbours: pd.DataFrame, texts: Texts, shown: np.ndarray
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The data of some pages, by entry; counts into ``shown`` where stretches of text begin and end."""
    firing = _grouped(recording.firing_of(group), ["entry"])
    contexts = _grouped(recording.rows_of("contexts", group).astype({"kind": str}), ["entry", "layer"])
    beside = _grouped(neighbours, ["entry", "layer"])
    usage, bank, decodings = (
        _grouped(recording.rows_of(name, group), keys)
        for name, keys in (("usage", ["entry", "layer"]), ("bank", ["entry"]), ("decodings", ["entry"]))
    )
    for entry in group:
        layers = []
        for row in sorted(firing[entry,], key=lambda row: -row["count"]):
            key = (entry, row["layer"])
            places = _contexts(contexts.get(key, []))
            for place in places[0]:
                shown[max(0, place - BEFORE - _SPARE)] += 1
                shown[min(len(shown) - 1, place + AFTER + _SPARE)] -= 1
            layers.append([*_layer(recording, row, texts), places, _neighbours(beside.get(key, []))])
        own = [site.layer for site in recording.info.sites if site.own.start <= entry < site.own.stop]
        counts = [(layer, usage.get((entry, layer), [_UNUSED])[0]) for layer in own]
        card = _card(recording, bank[entry,][0], decodings[entry,][0], texts)
        yield entry, {**card, "usage": [_usage(*count) for count in counts], "layers": layers}


def _card(recording: Recording, bank: dict[str, Any], decoding: dict[str, Any], texts: Texts) -> dict[str, Any]:
    """What a page says of an entry apart from where it fires; ``Recording.cards`` take far longer."""
    tokens = recording.tokenizer.token_texts
    said, triples = set[int](), []
    if isinstance(bank["sentence"], str):
        said = {int(token) for token in bank["token_ids"]}
        triples = list(zip(bank["subject"], bank["predicate"], bank["object"], strict=True))
    nearest = [int(token) for token in _listed(decoding["nearest"])]
    lens = [
        [layer, *(texts.numbers([tokens[int(token)] for token in decoding[f"l{layer}_{end}"]]) for end in _ENDS)]
        for layer in recording.info.layers
        if decoding.get(f"l{layer}_top") is not None
    ]
    return {
        "drift": None if decoding["drift"] is None else round(max(0.0, float(decoding["drift"])), 4),
        "kept": None if decoding["kept"] is None else [_digits(decoding[name]) for name in ("kept", "kept_at_init")],
        "triples": [[printable(str(text)) for text in triple] for triple in triples if triple[1] or triple[2]],
        "nearest": [
            texts.numbers([tokens[token] for token in nearest]),
            [_digits(cosine) for cosine in _listed(decoding["nearest_cosine"])],
            [int(token in said) for token in nearest],
        ],
        "lens": lens,
    }


def _usage(layer: int, usage: dict[str, Any]) -> list[Any]:
    """Selections of an entry in a layer, and its summed scores and reads."""
    return [layer, int(usage["count"]), _digits(usage["gate_sum"], 6), _digits(usage["read_sum"], 6)]


def _listed(values: Any) -> list[Any]:
    """Values of a list column; none where it is null."""
    return [] if values is None else list(values)


def _layer(recording: Recording, firing: dict[str, Any], texts: Texts) -> list[Any]:
    """How often an entry fires in a layer, on what, with which scores, and its typical tokens."""
    gates = firing["gate_deciles"] if "scores" in recording.info.site(firing["layer"]).has else []
    typical = [
        [
            number,
            texts.numbers(firing[f"{kind}_tokens"]),
            firing[f"{kind}_count"],
            [_digits(lift) for lift in firing[f"{kind}_lift"]],
        ]
        for number, kind in enumerate(KINDS)
        if firing[f"{kind}_tokens"]
    ]
    told = [_digits(gates[at]) for at in (0, 5, -1)] if len(gates) else []
    return [firing["layer"], firing["count"], firing["docs"], _text(firing["fires_on"]), told, typical]


def _contexts(contexts: list[dict[str, Any]]) -> list[list[Any]]:
    """Rows of contexts, gates, reads and fifths (-1 for the highest); rows that the top has are not repeated."""
    falling = sorted(contexts, key=lambda context: (-(context["gate"] or 0.0), context["row"]))
    top = [context for context in falling if context["kind"] == "top"][:TOP_CONTEXTS]
    there = {context["row"] for context in top}
    fifths = [c for c in falling if c["kind"] == "quantile" and c["row"] not in there]
    ranks = [*[-1] * len(top), *(int(context["rank"]) for context in fifths)]
    rows = [int(context["row"]) for context in [*top, *fifths]]
    gates, reads = ([_digits(context[name]) for context in [*top, *fifths]] for name in ("gate", "read"))
    return [rows, gates, reads, ranks]


def _neighbours(neighbours: list[dict[str, Any]]) -> list[list[Any]]:
    """Entries that are selected together with one, at how many tokens, and their NPMI."""
    return [
        [int(row["other"]) for row in neighbours],
        [int(row["together"]) for row in neighbours],
        [round(float(row["npmi"]), 2) for row in neighbours],
    ]


def _text_rows(recording: Recording, texts: Texts, shown: np.ndarray) -> Iterator[list[int]]:
    """The recorded tokens, file by file: the number of the text of each, or -1 for one token after the first of a
    character, -2 for the next, and so on. Tokens that no context shows are 0.
    """
    needed, numbers = np.cumsum(shown[:-1]) > 0, np.zeros(len(recording.token_ids), np.int64)
    for first, rows in recording.documents[["first_row", "rows"]].itertuples(index=False):
        if not needed[first : first + rows].any():
            continue
        for unit in recording.tokenizer.units(recording.token_ids[first : first + rows]):
            start = first + unit.first
            numbers[start : start + unit.tokens] = [texts.number(unit.text), *range(-1, -unit.tokens, -1)]
    numbers[~needed] = 0
    for start in range(0, len(numbers), ROWS_PER_FILE):
        yield numbers[start : start + ROWS_PER_FILE].tolist()


def _describe(recording: Recording, words: dict[str, Any]) -> dict[str, Any]:
    """What all pages share."""
    info, documents = recording.info, recording.documents
    return {
        **words,
        "before": BEFORE,
        "after": AFTER,
        "pages_per_file": PAGES_PER_FILE,
        "rows_per_file": ROWS_PER_FILE,
        "all_selections": recording.total_selections(),
        "window": info.window,
        "documents": [[int(row.first_row), _text(row.title) or "untitled"] for row in documents.itertuples()],
        "tokens": len(recording.token_ids),
        "sites": {
            site.layer: {
                "d": recording.total_selections(site.layer),
                "score": SCORES[site.kind],
                "kind": site.kind,
                "slots": site.slots,
                "has": site.has,
                "own": [site.own.start, site.own.stop],
            }
            for site in info.sites
        },
    }


def _write_packed(folder: Path, name: str, value: Any) -> None:
    """Write a value as a script that hands it over, packed."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    (folder / f"{name}.js").write_text(f'memscope.unpack("{name}", "{packed}");\n', encoding="ascii")


def _grouped(frame: pd.DataFrame, keys: list[str]) -> dict[tuple[int, ...], list[dict[str, Any]]]:
    """Rows as plain dictionaries, grouped; pandas takes longer over many small groups than all other work here."""
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _digits(value: Any, digits: int = 3) -> float | None:
    """A number with so many digits; none for one that there is not."""
    return None if value is None or np.isnan(value) else float(f"{value:.{digits}g}")


def _text(value: Any) -> str | None:
    return printable(value) if isinstance(value, str) else None
