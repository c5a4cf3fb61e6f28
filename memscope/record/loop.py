"""Record which entries every token of a corpus selects and reads, into Parquet parts.

    memscope record runs/demo --corpus data/wiki/valid.jsonl --out recordings/demo
    torchrun --nproc_per_node 4 -m memscope record ...      # each process records its own parts

Every token passes the model once. A part is written while the next one is computed, so memory does not grow with the
corpus. An interrupted recording continues at its first missing or damaged part, with any number of processes. The
aggregates are made from the parts afterwards, so they do not depend on which process recorded which part.
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from memscope.base.errors import DamageError, InputError
from memscope.base.files import atomic_path
from memscope.base.lock import one_writer
from memscope.base.parquet import ENTRY_ROW_GROUP, read_parquet, write_table
from memscope.base.runtime import processes, return_freed_memory
from memscope.base.work import ALONE, Processes, progress
from memscope.census.aggregate import write_aggregates
from memscope.record.decode import no_starts, write_decodings
from memscope.record.rows import RowCollector
from memscope.recording.aggregates import check_files, list_files
from memscope.recording.info import AGGREGATES, INFO, STARTS, Part, RecordingInfo, read_info, write_info
from memscope.recording.parts import drop_progress, finished_parts, write_part, write_progress
from memscope.run.folder import check_no_run
from memscope.run.subject import Batches, Capture, Subject, WindowPass, run_windows
from memscope.text.corpus import DocumentWindow, PackedCorpus, document_windows, pack_corpus, window_batch

BATCH = 16
"""Windows of one forward pass."""
_SAMPLE = 32
"""Windows that values of entries are averaged over which have none of their own."""


class RecordOptions(NamedTuple):
    """How to record."""

    max_tokens: int | None = None
    """Stop after this many tokens; none records the whole corpus."""
    part_tokens: int = 32768
    """Tokens per part, rounded up to whole windows."""
    score_bits: int = 6
    """Mantissa bits kept of scores and weights: 6 means an error of at most 0.8%, 10 keeps float16."""
    head_weights: bool = False
    """Also record read weights per read head."""
    slot_weights: bool = False
    """Also record read weights per slot of an entry."""
    batch_size: int = BATCH
    """Windows of one forward pass; the recording does not depend on it, but for rounding."""


class PlannedPart(NamedTuple):
    """A part to be recorded."""

    number: int
    first_row: int
    windows: list[DocumentWindow]


def record(
    subject: Subject, corpus_path: Path, recording: Path, options: RecordOptions | None = None
) -> RecordingInfo | None:
    """Record a corpus into the folder ``recording``, with all aggregates and decodings.

    Returns the description of the recording, or None in processes other than the main one.

    Args:
        subject: a model with layers that select (``run/adapters``).
        corpus_path: JSON-lines corpus.
        recording: folder to write; an unfinished recording of the same model and corpus there is completed.
        options: how to record.

    Raises:
        InputError: the model has no layer that selects, the corpus is unusable, the folder holds another recording, or
            another process writes there.

    Example:
        >>> record(subject, Path("corpus.jsonl"), Path("recordings/new"), RecordOptions(max_tokens=500))
    """
    options = options or RecordOptions()
    if not subject.sites:
        raise InputError(f"{subject.name}: no layer of this model selects, so there is nothing to record")
    check_no_run(recording)
    with one_writer(recording):
        return _record(subject, corpus_path, recording, options)


def _record(subject: Subject, corpus_path: Path, recording: Path, options: RecordOptions) -> RecordingInfo | None:
    group = processes()
    if not group.is_main:
        group.wait()  # the main process first packs the corpus and prepares the folder
    corpus = pack_corpus(corpus_path, subject.tokenizer, subject.cache_dir)
    windows = document_windows(corpus, subject.window, options.max_tokens)
    info = describe(subject, corpus, windows, options)
    if group.is_main:
        _open_recording(recording, info)
        group.wait()
    finished = finished_parts(recording)
    seconds = read_info(recording).seconds
    plan = plan_parts(windows, options.part_tokens)
    info = info.model_copy(update={"parts": _in_order(finished)})
    if not (len(finished) == len(plan) and read_info(recording).complete):
        started = time.perf_counter()
        todo = [p for p in plan if _name(p) not in finished and p.number % group.world_size == group.rank]
        record_parts(subject, subject.tokenizer.pad, corpus, recording, info, todo, options.batch_size, group.rank)
        group.wait()
        if group.is_main:
            seconds += time.perf_counter() - started
            info = info.model_copy(update={"parts": _in_order(finished_parts(recording)), "seconds": seconds})
            write_info(recording, info)
            drop_progress(recording)
            write_documents(recording, corpus, windows)
            write_copies(subject, recording, info)
        group.wait()
        finish(subject, recording, lambda: _sample(subject, corpus, windows), group)
    return read_info(recording) if group.is_main else None


def finish(subject: Subject, recording: Path, sample: Callable[[], Batches], group: Processes = ALONE) -> None:
    """Make the aggregates and decodings of a recording whose parts are all there, and mark it complete.

    Args:
        subject: the recorded model.
        recording: its folder.
        sample: gives text for models whose entries have no value of their own.
        group: the processes that recorded the parts, and share the layers of the census.
    """
    info = read_info(recording)
    return_freed_memory()  # of the forward passes, before the census takes memory
    write_aggregates(recording, info, group)
    if not group.is_main:
        return
    usage = read_parquet(recording / "usage.parquet", ["layer", "entry"]).to_pandas()
    used = {layer: usage["entry"][usage["layer"] == layer].to_numpy() for layer in info.layers}
    write_decodings(subject, info, recording / "decodings.parquet", used, sample)
    write_info(recording, list_files(recording, info.model_copy(update={"complete": True})))


def describe(
    subject: Subject, corpus: PackedCorpus, windows: list[DocumentWindow], options: RecordOptions
) -> RecordingInfo:
    """The description of a recording of these windows by this model, before its first part."""
    return RecordingInfo(
        run=subject.name,
        fingerprint=subject.fingerprint,
        step=subject.step,
        corpus=corpus.path,
        corpus_sha256=corpus.sha256,
        documents=windows[-1].doc + 1,
        vocab_size=subject.tokenizer.vocab_size,
        sites=subject.sites,
        window=subject.window,
        dtype=subject.dtype,
        score_bits=options.score_bits,
        head_weights=options.head_weights,
        slot_weights=options.slot_weights,
        part_tokens=options.part_tokens,
        total_tokens=sum(window.end - window.start for window in windows),
    )


def plan_parts(windows: list[DocumentWindow], part_tokens: int) -> list[PlannedPart]:
    """Assign windows to parts; a function of the corpus and the part size alone."""
    plan: list[PlannedPart] = []
    group: list[DocumentWindow] = []
    first_row = tokens = 0
    for window in windows:
        group.append(window)
        tokens += window.end - window.start
        if tokens >= part_tokens or window is windows[-1]:
            plan.append(PlannedPart(len(plan), first_row, group))
            first_row += tokens
            group, tokens = [], 0
    return plan


def record_parts(
    subject: Capture,
    pad: int,
    corpus: PackedCorpus,
    recording: Path,
    info: RecordingInfo,
    todo: list[PlannedPart],
    batch_size: int = BATCH,
    process: int = 0,
) -> list[Part]:
    """Record some parts; each is listed as soon as both its files are written.

    Args:
        subject: the model.
        pad: token id that fills up batches.
        corpus: the corpus of the windows.
        recording: folder to write.
        info: what is being recorded.
        todo: the parts.
        batch_size: windows of one forward pass.
        process: number of this process among those that record.
    """
    done: list[Part] = []
    pending: Future[Part] | None = None

    def list_pending() -> None:
        if pending is not None:
            done.append(pending.result())
            write_progress(recording, process, done)

    columns = [info.columns_of(site) for site in info.sites]
    collector = RowCollector(corpus, info.sites, info.score_bits, columns)
    with (
        ThreadPoolExecutor(1) as writer,
        progress("recording", _tokens(todo), "tokens") as bar,
    ):
        for part in todo:
            passes = run_windows(subject, corpus, part.windows, pad, batch_size, info.head_weights, detail=True)
            rows = collector.collect(part.windows, _counted(passes, bar.update))
            list_pending()
            pending = writer.submit(write_part, recording, part.number, part.first_row, rows, info)
        list_pending()
    return done


def _counted(passes: Iterable[WindowPass], count: Callable[[int], object]) -> Iterator[WindowPass]:
    for done in passes:
        yield done
        count(sum(window.end - window.start for window in done.windows))


def _open_recording(recording: Path, info: RecordingInfo) -> None:
    """Prepare the folder, or continue in one that holds the same recording, unfinished or damaged.

    The lists of earlier processes are gathered in ``recording.json``. If that file is damaged, the parts are unknown,
    and all are recorded again.
    """
    earlier = _earlier(recording)
    if earlier is not None:
        names = {"fingerprint": "model", "corpus_sha256": "corpus"}
        if different := [names.get(name, name) for name in earlier.same_source(info)]:
            raise InputError(
                f"{recording}: holds a recording with another {', '.join(different)}; choose another --out or remove it"
            )
        parts = _in_order(finished_parts(recording))
        complete = earlier.complete and parts == earlier.parts and _is_aggregated(recording, earlier)
        write_info(recording, earlier.model_copy(update={"parts": parts, "complete": complete}))
        drop_progress(recording)
    else:
        write_info(recording, info)


def _earlier(recording: Path) -> RecordingInfo | None:
    """The description of the recording in a folder; none if there is none or it cannot be read."""
    if not (recording / INFO).is_file():
        return None
    try:
        return read_info(recording)
    except DamageError as error:
        print(f"{error}: recording all of it again", file=sys.stderr)
        return None


def _is_aggregated(recording: Path, info: RecordingInfo) -> bool:
    try:
        check_files(recording, info)
    except DamageError as error:
        print(f"{error}: making the aggregates again", file=sys.stderr)
        return False
    return info.files.keys() >= set(AGGREGATES)


def _tokens(plan: list[PlannedPart]) -> int:
    return sum(window.end - window.start for part in plan for window in part.windows)


def _name(part: PlannedPart) -> str:
    return f"part-{part.number:06d}.parquet"


def _in_order(parts: dict[str, Part]) -> tuple[Part, ...]:
    return tuple(parts[name] for name in sorted(parts))


def write_documents(recording: Path, corpus: PackedCorpus, windows: list[DocumentWindow]) -> None:
    """Write ``documents.parquet``: title, group and rows of every document that the windows are of."""
    rows = np.bincount([w.doc for w in windows], weights=[w.end - w.start for w in windows]).astype(np.int64)
    write_table(
        recording / "documents.parquet",
        {
            "doc": np.arange(len(rows), dtype=np.uint32),
            "title": corpus.titles[: len(rows)],
            "group": (corpus.groups or [""] * len(rows))[: len(rows)],
            "first_row": np.cumsum(rows) - rows,
            "rows": rows,
        },
    )


def write_copies(subject: Subject, recording: Path, info: RecordingInfo) -> None:
    """Copy the files that make the recording readable without the model."""
    for name, path in subject.copies.items():
        with atomic_path(recording / name) as temporary:
            shutil.copyfile(path, temporary)
    if "tokenizer.json" not in subject.copies:
        subject.tokenizer.save(recording / "tokenizer.json")
    starts = subject.starts()
    write_table(recording / STARTS, no_starts(info.knowledge_num) if starts is None else starts, ENTRY_ROW_GROUP)


def _sample(subject: Subject, corpus: PackedCorpus, windows: list[DocumentWindow]) -> Batches:
    """Some windows from all over the recorded text."""
    spread = [windows[index] for index in sorted({*np.linspace(0, len(windows) - 1, _SAMPLE).astype(int).tolist()})]
    device = next(subject.model.parameters()).device
    for start in range(0, len(spread), BATCH):
        batch = window_batch(corpus, spread[start : start + BATCH], subject.tokenizer.pad)
        yield torch.from_numpy(batch.tokens).to(device), torch.from_numpy(batch.mask).to(device)
