"""Record which entries every token of a corpus selects and reads, into Parquet parts.

    memscope record runs/demo --corpus data/wiki/valid.jsonl --out recordings/demo

One forward pass per token; parts are written as they are made, and the census is counted in the same pass, so memory
does not grow with the corpus. An interrupted recording goes on at its first missing or damaged part.
"""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from memscope.aggregate import Census
from memscope.capture import WindowPass, run_windows
from memscope.checkpoint import LoadedRun
from memscope.corpus import DocumentWindow, PackedCorpus, document_windows, pack_corpus
from memscope.decode import write_decodings
from memscope.errors import InputError
from memscope.files import make_folder
from memscope.store import (
    FORMAT_VERSION,
    INFO,
    Part,
    RecordingInfo,
    TokenRows,
    part_is_whole,
    part_name,
    read_info,
    read_part,
    write_info,
    write_part,
    write_table,
)

_COPIED = ("tokenizer.json", "bank_init.parquet", "config.yaml", "run.json", "metrics.jsonl")


def record(
    run: LoadedRun,
    corpus_path: Path,
    recording: Path,
    max_tokens: int | None = None,
    part_tokens: int = 32768,
    dtype: str | None = None,
) -> RecordingInfo:
    """Record a corpus into the folder ``recording``, with census and decodings.

    Args:
        run: a run whose model has memory layers.
        corpus_path: JSON-lines corpus.
        recording: folder to write; one that holds an unfinished recording of the same is completed.
        max_tokens: stop after so many tokens; none records the whole corpus.
        part_tokens: tokens per part, rounded up to whole windows.
        dtype: precision of the forward pass; none takes the run's.

    Raises:
        InputError: a baseline model, an unusable corpus, or a folder with a recording of something else.
    """
    started = time.perf_counter()
    config = run.config
    if not config.model.memory_layers:
        raise InputError(f"{run.path}: an FFN baseline has no memory to record")
    corpus = pack_corpus(corpus_path, run.tokenizer, Path(config.data.cache_dir))
    windows = document_windows(corpus, config.model.max_seq_len, max_tokens)
    plan = list(_group_windows(windows, part_tokens))
    info = RecordingInfo(
        format_version=FORMAT_VERSION,
        run=str(run.path.resolve()),
        fingerprint=run.fingerprint,
        corpus=corpus.path,
        corpus_sha256=corpus.sha256,
        layers=config.model.memory_layers,
        knowledge_num=config.memory.knowledge_num,
        knowledge_length=config.memory.knowledge_length,
        selected=config.memory.selected,
        dtype=dtype or config.train.dtype,
        part_tokens=part_tokens,
        total_tokens=sum(window.end - window.start for window in windows),
        complete=False,
        seconds=0.0,
        parts=(),
    )
    earlier = _earlier(recording, info)
    if earlier is not None and earlier.complete and all(part_is_whole(recording, part) for part in earlier.parts):
        return earlier
    make_folder(recording / "tokens")
    for stale in (recording / "tokens").glob(".*.tmp"):
        stale.unlink()

    parts = {part.name: part for part in (earlier.parts if earlier else ()) if part_is_whole(recording, part)}
    seconds = earlier.seconds if earlier else 0.0
    census = Census(info)
    first_row = 0
    with tqdm(total=info.total_tokens, unit="token", unit_scale=True, file=sys.stderr, disable=None) as progress:
        for number, part_windows in enumerate(plan):
            part = parts.get(part_name(number))
            if part is not None:
                rows = read_part(recording, part, info)
            else:
                passes = run_windows(run.model, corpus, part_windows, run.tokenizer.pad, info.dtype)
                rows = collect_rows(corpus, part_windows, passes, info.layers, info.selected)
                part = write_part(recording, number, rows, info, run.tokenizer.vocab_size)
                parts[part.name] = part
                write_info(recording, _progress(info, parts, seconds + time.perf_counter() - started))
            census.update(rows, first_row)
            first_row += part.rows
            progress.update(part.rows)
    info = _progress(info, parts, 0.0)
    _finish(run, corpus, windows, recording, census)
    seconds += time.perf_counter() - started
    info = info.model_copy(update={"complete": True, "seconds": seconds})
    write_info(recording, info)
    return info


def _progress(info: RecordingInfo, parts: dict[str, Part], seconds: float) -> RecordingInfo:
    """``info`` with the parts that are finished, in their order."""
    return info.model_copy(update={"parts": tuple(parts[name] for name in sorted(parts)), "seconds": seconds})


def collect_rows(
    corpus: PackedCorpus,
    windows: list[DocumentWindow],
    passes: Iterable[WindowPass],
    layers: tuple[int, ...],
    selected: int,
) -> TokenRows:
    """What a model selects and reads on every token of ``windows``, rows in their order.

    Args:
        corpus: where the windows lie.
        windows: the windows that ``passes`` covers, in any order.
        passes: forward passes over them.
        layers: memory layers of the model.
        selected: selections per token and layer.
    """
    lengths = [window.end - window.start for window in windows]
    offsets = dict(zip(windows, np.cumsum([0, *lengths[:-1]]), strict=True))
    n = sum(lengths)
    rows = TokenRows(
        doc=np.concatenate([np.full(w.end - w.start, w.doc, np.uint32) for w in windows]),
        pos=np.concatenate([np.arange(w.pos, w.pos + w.end - w.start, dtype=np.uint32) for w in windows]),
        token=np.concatenate([corpus.tokens[w.start : w.end] for w in windows]).astype(np.uint32),
        loss=np.full(n, np.nan, np.float32),
        indices=np.empty((n, len(layers), selected), np.uint32),
        gate=np.empty((n, len(layers), selected), np.float16),
        read=np.empty((n, len(layers), selected), np.float16),
    )
    for done in passes:
        at = np.concatenate([np.arange(w.end - w.start) + offsets[w] for w in done.windows])
        _fill(rows, at, done, layers)
    return rows


def _fill(rows: TokenRows, at: np.ndarray, done: WindowPass, layers: tuple[int, ...]) -> None:
    """Copy one forward pass into the rows ``at``."""
    mask = torch.from_numpy(done.batch.mask).to(done.logits.device)
    losses = done.losses.masked_fill(torch.from_numpy(done.batch.targets < 0).to(mask.device), torch.nan)
    rows.loss[at] = losses[mask].float().cpu().numpy()
    for axis, layer in enumerate(layers):
        capture = done.captured[layer]
        rows.indices[at, axis] = capture.indices[mask].cpu().numpy()
        rows.gate[at, axis] = capture.gate_scores[mask].half().cpu().numpy()
        rows.read[at, axis] = capture.read_weights[mask].half().cpu().numpy()


def _group_windows(windows: list[DocumentWindow], part_tokens: int) -> Iterator[list[DocumentWindow]]:
    group: list[DocumentWindow] = []
    tokens = 0
    for window in windows:
        group.append(window)
        tokens += window.end - window.start
        if tokens >= part_tokens:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _earlier(recording: Path, info: RecordingInfo) -> RecordingInfo | None:
    """The recording that lies there already, if it is of the same model, corpus and settings."""
    if not (recording / INFO).is_file():
        return None
    earlier = read_info(recording)
    names = {"fingerprint": "model", "corpus_sha256": "corpus"}
    if different := [names.get(name, name) for name in earlier.same_source(info)]:
        raise InputError(
            f"{recording}: holds a recording with another {', '.join(different)}; choose another --out or remove it"
        )
    return earlier


def _finish(
    run: LoadedRun,
    corpus: PackedCorpus,
    windows: list[DocumentWindow],
    recording: Path,
    census: Census,
) -> None:
    """Write the aggregates, and copy what makes the recording readable without the run."""
    census.write(recording)
    rows = np.bincount([w.doc for w in windows], weights=[w.end - w.start for w in windows]).astype(np.int64)
    write_table(
        recording / "documents.parquet",
        {
            "doc": np.arange(len(rows), dtype=np.uint32),
            "title": corpus.titles[: len(rows)],
            "first_row": np.cumsum(rows) - rows,
            "rows": rows,
        },
    )
    for name in _COPIED:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, recording / name)
    used = {layer: np.flatnonzero(census.usage.count[axis]) for axis, layer in enumerate(census.info.layers)}
    write_decodings(run, recording / "decodings.parquet", used)
