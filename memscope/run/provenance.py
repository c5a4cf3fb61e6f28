"""Find the starts of a loaded model's entries, also of those that were revived in training.

    start_table(run)      # sentence, token ids and triples per entry, as bank_init.parquet
    start_entries(run)    # the starts themselves, [N, L, D]

``bank_init.*`` of a run keep the state of step 0. A model's file names its revived entries (``model/entry_starts.py``),
and ``bank_spare.parquet`` has their sentences; the vectors are made again from both, as in training. So every
checkpoint gives the starts of its entries.
"""

import numpy as np
import pyarrow as pa
import torch

from memscope.base.parquet import read_parquet
from memscope.base.seals import check_listed
from memscope.run.bank_init import PARQUET, SPARE, FreshStarts, load_bank_init
from memscope.run.checkpoint import LoadedRun
from memscope.text_bank.bank import FILE as TEXT_BANK


def start_entries(run: LoadedRun) -> np.ndarray:
    """The start of every entry of the model, float32 ``[N, L, D]``.

    Raises:
        InputError: the run's files of starts are missing or corrupted.

    Example:
        >>> moved = run.model.bank.entries.detach().cpu().numpy() - start_entries(run)
    """
    entries = load_bank_init(run.path).entries
    rows, steps, sentences = _revived(run)
    if len(rows):
        config = run.config
        starts = FreshStarts(run.path, run.tokenizer.pad, config.train.seed, config.memory.entry_cosine)
        fresh = starts.slots(rows, steps, sentences)
        kept_as = getattr(torch, run.config.memory.entry_dtype)
        entries[rows] = torch.from_numpy(fresh).to(kept_as).float().numpy()
    return entries


def start_table(run: LoadedRun, columns: list[str] | None = None) -> pa.Table:
    """One row per entry as in ``bank_init.parquet``, or some of its columns; where entries are revived also
    ``start_step``, the optimiser steps done when the entry started.

    Raises:
        InputError: see ``start_entries``.

    Example:
        >>> start_table(run, ["sentence"]).to_pandas().head()
    """
    table = read_parquet(run.path / PARQUET, columns)
    check_listed(run.path, [PARQUET, SPARE], "restore it or train again")
    assert run.model.bank is not None
    if run.model.bank.starts is None:
        return table
    texts = [name for name in table.column_names if name != "entry"]
    rows, steps, sentences = _revived(run)
    spare = read_parquet(run.path / SPARE, texts)
    blank = pa.table({field.name: pa.nulls(1, field.type) for field in spare.schema})
    source = np.arange(table.num_rows)
    source[rows] = table.num_rows + np.where(sentences < 0, spare.num_rows, sentences)  # past all: the blank one
    started = pa.concat_tables([table.select(texts), spare, blank]).take(source)
    for name in set(table.column_names) - set(texts):
        started = started.add_column(table.schema.get_field_index(name), name, table[name])
    step = np.zeros(table.num_rows, np.uint32)
    step[rows] = steps
    return started.append_column("start_step", pa.array(step))


def all_starts(run: LoadedRun, known: bool) -> pa.Table:
    """``start_table`` with the sentences of a text layer behind the entries of the memory.

    Args:
        run: a run with a text layer.
        known: whether the run has the starts of its memory; if not, or without a memory, they are null.
    """
    bank = read_parquet(run.path / TEXT_BANK)
    check_listed(run.path, [TEXT_BANK], "restore it or train again")
    first = run.config.first_sentence
    sentences = bank.set_column(0, "entry", pa.array(np.arange(first, first + bank.num_rows, dtype=np.uint32)))
    if not first:
        return sentences
    memory = start_table(run) if known else pa.table({"entry": np.arange(first, dtype=np.uint32)})
    return pa.concat_tables([memory, sentences], promote_options="default")


def _revived(run: LoadedRun) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Revived entries, the steps at which they last started, and their rows of the spare sentences or -1."""
    assert run.model.bank is not None
    starts = run.model.bank.starts
    if starts is None:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    step, sentence = starts.step.cpu().numpy(), starts.sentence.cpu().numpy()
    rows = step.nonzero()[0]
    return rows, step[rows], sentence[rows]
