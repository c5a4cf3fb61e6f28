"""Entries of a recording as Neuronpedia features, in the layout that Neuronpedia exports and imports.

    export_neuronpedia(Recording("recordings/demo"), Path("exports/neuronpedia"), entries=[4711])

    exports/neuronpedia/demo/0-memory/model.jsonl  sourceset.jsonl  source.jsonl      one line each
    exports/neuronpedia/demo/0-memory/features/batch-0.jsonl.gz                       one line per entry
    exports/neuronpedia/demo/0-memory/activations/batch-0.jsonl.gz                    one line per context
    exports/neuronpedia/demo/0-memory/explanations/batch-0.jsonl.gz                   its init sentence and tokens

A source is a layer that selects, named by its kind (``0-memory``, ``3-experts``), and a feature is an entry that the
layer selected, with its number in the layer where the layer has entries of its own. ``export/neuronpedia_rows.py``
makes the lines.
"""

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from memscope.base.errors import InputError
from memscope.base.files import write_text
from memscope.base.printable import printable_values
from memscope.config.load import load_config
from memscope.export.interchange import entry_runs, new_folder, scored_sites
from memscope.export.neuronpedia_rows import CREATOR, Rows, Source, entry_rows
from memscope.query.recording import Recording
from memscope.recording.part_reader import SelectionReader
from memscope.recording.sites import SCORES

BATCH_ENTRIES = 1024
"""Most lines of a features file, as in Neuronpedia's own exports."""


class NeuronpediaExport(NamedTuple):
    """The files that were written."""

    folder: Path
    """The model's folder, with one folder per layer."""
    features: int
    """Pairs of layer and entry."""
    activations: int
    """Contexts of all of them."""


def export_neuronpedia(
    recording: Recording, out: Path, entries: Iterable[int] | None = None, limit: int | None = 1000
) -> NeuronpediaExport:
    """Write entries, in every layer that selected them, as Neuronpedia features.

    Args:
        recording: the recording.
        out: folder to create.
        entries: the entries to write; none takes those with most selections over all layers.
        limit: how many of those; none takes every entry in use. Ignored when ``entries`` are given.

    Raises:
        InputError: ``out`` exists, an entry does not exist, none of the entries was ever selected, or the recording
            has no scores.
    """
    scored = [site.layer for site in scored_sites(recording)]
    usage = _chosen_usage(recording, entries, limit)
    usage = usage[usage["layer"].isin(scored)]
    model_id = re.sub(r"[^a-z0-9_-]+", "-", recording.info.run_name.lower()).strip("-") or "model"
    reader = SelectionReader(recording.path, recording.info)
    first_rows = recording.documents["first_row"].to_numpy()
    past_rows = first_rows + recording.documents["rows"].to_numpy()
    n_activations = 0
    with new_folder(out) as folder:
        for layer, mine in usage.groupby("layer"):
            site = recording.info.site(int(layer))
            keys = {"modelId": model_id, "layer": f"{layer}-{site.kind}"}
            source = Source(recording, reader, site, keys, first_rows, past_rows)
            path = folder / model_id / source.keys["layer"]
            _write_metadata(path, source)
            runs = entry_runs(mine["entry"].tolist(), mine["read"].tolist(), BATCH_ENTRIES)
            for number, batch in enumerate(runs):
                n_activations += _write_batch(path, f"batch-{number}.jsonl.gz", entry_rows(source, batch))
    return NeuronpediaExport(out / model_id, len(usage), n_activations)


def _chosen_usage(recording: Recording, entries: Iterable[int] | None, limit: int | None) -> pd.DataFrame:
    """``layer entry read`` of the entries to export, by layer and entry.

    ``read`` counts the selections that a sequential reader passes from the entry before, entries between included.
    """
    n, usage = recording.info.knowledge_num, recording.usage_table()[["layer", "entry", "count"]]
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be 1 or more")
    if entries is None:
        totals = usage.groupby("entry")["count"].sum()
        chosen = set(totals.sort_values(ascending=False, kind="stable").index[:limit])
    else:
        chosen = {int(entry) for entry in entries}
        wrong = [entry for entry in sorted(chosen) if not 0 <= entry < n]
        if wrong:
            raise InputError(f"entry {wrong[0]} does not exist; entries are 0 to {n - 1}")
    usage["past"] = usage.groupby("layer")["count"].cumsum()
    usage = usage[usage["entry"].isin(chosen)]
    if usage.empty:
        raise InputError(f"{recording.path}: none of these entries was selected; nothing to export")
    return usage.assign(read=usage.groupby("layer")["past"].diff().fillna(usage["count"]).astype(int))


def _write_batch(path: Path, name: str, lines: Iterator[Rows]) -> int:
    """Write one batch of every table and return the number of activations."""
    n_activations = 0
    with ExitStack() as stack:
        files = [stack.enter_context(_gzip(path / table / name)) for table in Rows._fields]
        for tables in lines:
            n_activations += len(tables.activations)
            for file, table in zip(files, tables, strict=True):
                file.write("".join(_json_line(line) for line in table).encode())
    return n_activations


def _gzip(path: Path) -> gzip.GzipFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    return gzip.GzipFile(path, "wb", compresslevel=5, mtime=0)  # no time stamp: the same export is the same bytes


def _write_metadata(path: Path, source: Source) -> None:
    """``model.jsonl``, ``sourceset.jsonl`` and ``source.jsonl``: the model and source of the features."""
    info, model_id, site = source.recording.info, source.keys["modelId"], source.site
    config = source.recording.path / "config.yaml"
    model = load_config(config).model if config.is_file() else None
    mean = " Logits are of an expert's mean output over tokens that selected it."
    bank = f"Memory bank of {info.knowledge_num} entries"
    if site.kind != "memory":
        bank = f"{site.entries} {site.word(2)} of {site.module}"
    ours = {"creatorId": CREATOR, "visibility": "PUBLIC"}
    lines = {
        "model": {
            "id": model_id,
            "displayName": info.run_name,
            "displayNameShort": info.run_name,
            "owner": "memscope",
            "instruct": False,
            "layers": model.n_layers if model else max(info.layers) + 1,
            "neuronsPerLayer": 0,
            "dimension": model.dim if model else 0,
        },
        "sourceset": {
            "modelId": model_id,
            "name": site.kind,
            "description": bank,
            "creatorName": "memscope",
            "urls": [],
            "allowInferenceSearch": False,
        },
        "source": {
            "modelId": model_id,
            "id": source.keys["layer"],
            "setName": site.kind,
            "dataset": info.corpus_name,
            "num_prompts": -(-info.rows // info.window),
            "num_tokens_in_prompt": info.window,
            "notes": f"Activations are {SCORES[site.kind]}s." + mean * (site.kind == "experts" and "lens" in site.has),
        },
    }
    for name, line in lines.items():
        write_text(path / f"{name}.jsonl", _json_line(line | ours))


def _json_line(line: dict[str, Any]) -> str:
    """A row; printable, because the database behind Neuronpedia takes no text with a NUL."""
    return json.dumps(printable_values(line), ensure_ascii=False, allow_nan=False) + "\n"
