"""Batches of training: windows of the corpus and, where a text layer has facts to learn from, of statements."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor

from memscope.base.runtime import on_device
from memscope.config.load import Config
from memscope.model.text.bank import Lesson
from memscope.model.transformer import MemoryTransformer
from memscope.text.corpus import TrainingOrder
from memscope.text.fact_files import read_facts
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.bank import SentenceBank
from memscope.text_bank.overlap import Overlaps
from memscope.text_bank.words import WordReader
from memscope.train.lessons.clozes import make_clozes
from memscope.train.lessons.retold import retell
from memscope.train.lessons.statements import Stated, StatementMaker, Statements, taught_facts


class Batch(NamedTuple):
    """One micro-batch of one process."""

    tokens: Int[Tensor, "batch window"]
    """Windows of ``max_seq_len + 1`` tokens; those of the corpus come first."""
    lesson: Lesson | None
    """What is taught beside; none without a text layer."""


class Teacher:
    """Makes statements, and finds the sentences that a window of the corpus contains.

    Args:
        config: the run's, with a text layer.
        bank: its sentences.
        tokenizer: its tokenizer.
    """

    def __init__(self, config: Config, bank: SentenceBank, tokenizer: Tokenizer):
        text = config.text
        self.maker: StatementMaker | None = None
        if text.statement_share:
            retold: list[Stated] = []
            if text.facts_path:
                taught = taught_facts(read_facts(Path(text.facts_path)), bank, text.held_out)
                if text.retold_share:
                    retold = retell(taught, bank, text.held_out, config.train.seed)
            else:
                taught = make_clozes(bank, text.held_out, config.train.seed)
            self.maker = StatementMaker(taught, bank, tokenizer, text.object_swap, retold, text.retold_share)
        reader = WordReader(tokenizer)
        self.overlaps = Overlaps(bank.ids, bank.lengths, reader, text.leak_ngram) if text.leak_ngram else None

    def blocked(self, windows: np.ndarray) -> list[np.ndarray]:
        """Sentences that each window contains, and so must not select."""
        none = np.empty(0, np.int64)
        return [none if self.overlaps is None else self.overlaps.find(window) for window in windows]


@contextmanager
def teaching(net: MemoryTransformer, lesson: Lesson | None) -> Iterator[None]:
    """Let the text layers of a model have what a batch teaches beside its tokens."""
    if net.text_bank is None:
        yield
        return
    net.text_bank.lesson = lesson
    try:
        yield
    finally:
        net.text_bank.lesson = None


def taught_loss(lesson: Lesson | None) -> Tensor:
    """What text layers add to the loss of the forward pass that was just made; 0 where nothing was asked."""
    if lesson is None or not lesson.losses:
        return torch.zeros(())
    return torch.stack(lesson.losses).sum()


class Batches:
    """Which windows this process trains on in each step: a function of the step alone.

    The windows of the corpus of a step are consecutive in the training order: first by micro-batch, then by process.

    Args:
        order: of the windows of the corpus.
        config: the run's.
        accelerator: this process among the others.
        teacher: makes what is taught beside; none without a text layer.
    """

    def __init__(self, order: TrainingOrder, config: Config, accelerator: Accelerator, teacher: Teacher | None = None):
        settings = config.train
        self.order, self.size, self.device = order, settings.batch_size, accelerator.device
        self.process, self.micro_samples = accelerator.process_index, settings.batch_size * accelerator.num_processes
        self.step_samples = self.micro_samples * settings.accumulation_steps
        """Windows of one step, over all processes and micro-batches."""
        self.teacher, self._seed, self._window = teacher, settings.seed, config.model.max_seq_len
        has_facts = teacher is not None and teacher.maker is not None
        self.statement_rows = round(self.size * config.text.statement_share) if has_facts else 0
        """Windows of a micro-batch of this process that hold statements."""
        self.step_windows = self.step_samples * (self.size - self.statement_rows) // self.size or self.step_samples
        """Windows of the corpus in one step, or of statements where there are no others."""

    def batch(self, step: int, micro: int) -> Batch:
        """Micro-batch ``micro`` of a step, on the device."""
        rows = self.size - self.statement_rows
        first = (step * self.step_samples + micro * self.micro_samples + self.process * self.size) * rows // self.size
        corpus = self.order.batch(first, rows) if rows else np.empty((0, self._window + 1), np.int64)
        if self.teacher is None:
            return Batch(on_device(corpus, self.device), None)
        made = Statements(np.empty((0, self._window + 1), np.int64), [], [], [], {})
        if self.statement_rows:
            assert self.teacher.maker is not None
            seed = (self._seed, step, micro, self.process)
            made = self.teacher.maker.windows(seed, self.statement_rows, self._window + 1)
        tokens = np.concatenate([corpus, made.tokens])
        lesson = Lesson(
            step=step,
            rows=torch.tensor(made.rows, dtype=torch.int64, device=self.device) + rows,
            positions=torch.tensor(made.positions, dtype=torch.int64, device=self.device),
            answers=on_device(made.tokens[made.rows, np.array(made.positions, np.int64) + 1], self.device),
            stating=[on_device(entries, self.device) for entries in made.stating],
            swapped=made.swapped,
            blocked=self.teacher.blocked(corpus) + [np.empty(0, np.int64)] * self.statement_rows,
        )
        return Batch(on_device(tokens, self.device), lesson)
