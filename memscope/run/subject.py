"""A **subject**: any model that selects, as recorder, trace and interventions ask for it.

    for done in run_windows(subject, corpus, windows):
        done.captured[layer].indices      # [batch, pos, K]

Each kind of model has an adapter in ``run/adapters/``. An adapter says which sites there are, what hooks capture at
them during a forward pass, and what can be said of entries. Hooks only observe: logits are the same bit for bit, and
the hooks are removed when the block ends, also by an exception.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memscope.base.printable import brief
from memscope.base.runtime import on_device
from memscope.recording.sites import Site
from memscope.text.corpus import DocumentWindow, PackedCorpus, WindowBatch, window_batch
from memscope.text.tokenizer import Tokenizer

_ROWS = 64
_BLOCK = 64


@dataclass(repr=False)
class Selected:
    """One site in the latest forward pass; later passes overwrite it. Padding is included."""

    __repr__ = brief

    indices: Int[Tensor, "batch pos K"]
    """Selected entries, numbered as in the recording; -1 where a token selects fewer than K."""
    gate_scores: Float[Tensor, "batch pos K"] | None = None
    """Their scores as the model uses them."""
    margin: Float[Tensor, "batch pos head"] | None = None
    """Raw score plus selection bias of every gate head's weakest selected entry above its best rejected one."""
    slot_weights: Float[Tensor, "batch pos K slot"] | None = None
    """Read weight of every slot, mean over read heads; none where nothing reads apart from the gate."""
    pattern: Float[Tensor, "batch pos read_head all_slots"] | None = None
    """Read weights in the order of ``hook_pattern``: all slots of entry 0, then of entry 1 ...; none if not kept."""
    score_margin: Float[Tensor, "batch pos head"] | None = None
    """``margin`` in raw scores alone, below 0 where the bias passed over a better entry; none without ``detail``."""
    by_score: Bool[Tensor, "batch pos K"] | None = None
    """Whether raw scores alone would have selected the entry too; none without ``detail``."""
    read_norms: Float[Tensor, "batch pos K"] | None = None
    """Absolute read weights of entries, mean over read heads and sum over slots; none without ``detail``."""

    @property
    def read_weights(self) -> Float[Tensor, "batch pos K"]:
        """Read weights of entries: mean over read heads, sum over slots."""
        assert self.slot_weights is not None, "nothing reads apart from the gate"
        return self.slot_weights.sum(-1)

    @property
    def head_weights(self) -> Float[Tensor, "batch pos read_head K"]:
        """Read weights of entries in every read head, sum over slots."""
        assert self.pattern is not None, "the pattern of read heads was not kept"
        return self.pattern.float().unflatten(-1, (self.indices.shape[-1], -1)).sum(-1)


@runtime_checkable
class Capture(Protocol):
    """What ``run_windows`` needs: a model with hooks."""

    @property
    def model(self) -> torch.nn.Module:
        """What runs; hooks are put on its modules."""

    def capture(
        self, keep_pattern: bool = False, detail: bool = False
    ) -> AbstractContextManager[Mapping[int, Selected]]:
        """Capture every site: layer -> what it selected, filled by each forward pass in the block."""

    def logits(
        self, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Next-token logits; ``mask`` is false where the batch is filled up on the right."""


Batches = Iterable[tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]]
"""Tokens, and where they stand, of some batches of text."""
Edit = Callable[[int, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""``edit(layer, indices, scores)`` returns what the layer shall select in their place: entries as the recording numbers
them, -1 for none, and scores, ``[batch, pos, K]`` each."""


@runtime_checkable
class Subject(Capture, Protocol):
    """A model that can be recorded."""

    @property
    def name(self) -> str:
        """Folder that it came from; the recording keeps it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights, 64 hexadecimal digits."""

    @property
    def step(self) -> int | None:
        """Training step, where it is known."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The layers that select, in rising order."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back."""

    @property
    def window(self) -> int:
        """Most tokens that it reads at once."""

    @property
    def dtype(self) -> str:
        """Precision of the forward pass."""

    @property
    def cache_dir(self) -> Path:
        """Where packed corpora go."""

    @property
    def copies(self) -> Mapping[str, Path]:
        """Files that a recording keeps of it, by their name there."""

    def starts(self) -> pa.Table | None:
        """What every entry started from, with the columns of ``bank_init.parquet``; none where no entry has a text."""

    def drifted(self) -> "Drifted | None":
        """Entries now and at their start; none where no start is known."""

    def values(self, layer: int, entries: Int[Tensor, " row"], sample: Batches) -> Float[Tensor, "row dim"]:
        """What selecting each entry adds to the residual stream, for a site that has a ``lens``.

        Where an entry has no value of its own, as an expert, it is the mean of its output over the tokens of the
        sample that select it; NaN where there is none.
        """

    def unembed(self, resid: Float[Tensor, "row dim"]) -> Float[Tensor, "row vocab"]:
        """Final norm and unembedding of residual-stream vectors."""

    def rewrite(self, edit: Edit) -> AbstractContextManager[None]:
        """Change what every site selects while a block runs.

        Raises:
            InputError: a site cannot be written.
        """


class Drifted(NamedTuple):
    """Entries now and at their start, in a space in which tokens have vectors too."""

    now: Float[Tensor, "entry slot width"]
    before: Float[Tensor, "entry slot width"]
    space: Float[Tensor, "vocab width"]
    token_ids: list[list[int] | None]
    """Tokens of every entry's init sentence; none where it started from random numbers."""


class WindowPass(NamedTuple):
    """One forward pass over a padded batch of document windows."""

    windows: list[DocumentWindow]
    batch: WindowBatch
    logits: Float[Tensor, "batch pos vocab"]
    losses: Float[Tensor, "batch pos"]
    """Loss of every target in nats, 0 where there is none."""
    predicted: Int[Tensor, "batch pos"]
    """Most likely next token."""
    captured: Mapping[int, Selected]
    """Selections and reads of every site, by layer."""


def run_windows(
    subject: Capture,
    corpus: PackedCorpus,
    windows: list[DocumentWindow],
    pad: int,
    batch_size: int = 16,
    keep_pattern: bool = False,
    detail: bool = False,
) -> Iterator[WindowPass]:
    """Run a model over document windows, shortest first (little padding), without gradients, with capturing hooks.

    Evaluation, recording and tracing all read text through this function; ``keep_pattern`` and ``detail`` are those of
    ``capture``.

    Example:
        >>> corpus = recorded_corpus(recording)
        >>> windows = list(document_windows(corpus, subject.window, 64))
        >>> for step in run_windows(subject, corpus, windows, pad=subject.tokenizer.pad):
        ...     step.logits.shape  # [batch, pos, vocab]
    """
    device = next(subject.model.parameters()).device
    by_length = sorted(windows, key=lambda window: window.end - window.start)
    with evaluating(subject.model), subject.capture(keep_pattern, detail) as captured:
        for start in range(0, len(windows), batch_size):
            chosen = by_length[start : start + batch_size]
            batch = window_batch(corpus, chosen, pad)
            logits = subject.logits(on_device(batch.tokens, device), on_device(batch.mask, device))
            losses, predicted = _judge(logits, on_device(batch.targets, logits.device))
            yield WindowPass(chosen, batch, logits, losses, predicted, captured)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training


def _judge(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and most likely tokens, as ``next_token_loss``, for a few rows at a time, which stay in the cache."""
    losses, predicted = [], []
    shifted = torch.empty(_ROWS, logits.shape[-1], device=logits.device)
    for rows, wanted in zip(logits.flatten(0, 1).split(_ROWS), targets.flatten().split(_ROWS), strict=True):
        values = rows.float()
        top, best = _largest(values)
        picked = values.gather(-1, wanted.clamp(min=0)[:, None])[:, 0]
        exponents = torch.sub(values, top[:, None], out=shifted[: len(values)])
        loss = exponents.exp_().sum(-1).log_() + top - picked
        losses.append(loss.masked_fill_(wanted < 0, 0.0))
        predicted.append(best)
    return torch.cat(losses).view(targets.shape), torch.cat(predicted).view(targets.shape)


def _largest(values: Float[Tensor, "row vocab"]) -> tuple[Tensor, Tensor]:
    """The largest number of every row and its first place, as ``max``, which looks for the place in half the speed."""
    width = min(_BLOCK, values.shape[-1])
    blocks = values.unfold(-1, width, width).amax(-1)
    last = values[:, -width:].amax(-1, keepdim=True)  # what the blocks leave out, and some of the last one again
    top, block = torch.cat([blocks, last], -1).max(-1)
    start = (block * width).clamp(max=values.shape[-1] - width)
    inside = values.gather(-1, start[:, None] + torch.arange(width, device=values.device))
    return top, start + inside.argmax(-1)
