"""Turn forward passes into token-major rows, which ``record/loop.py`` stores and ``record/trace.py`` shows."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from memscope.base.errors import InputError
from memscope.base.runtime import on_device, on_host
from memscope.recording.sites import Site
from memscope.recording.token_rows import BLANK, NONE, PER_SELECTION, TokenRows
from memscope.run.subject import Selected, WindowPass
from memscope.text.corpus import DocumentWindow, PackedCorpus

EXACT_BITS = 10
"""Mantissa bits of float16: rounding to these changes nothing."""


class RowCollector:
    """Makes the rows of some windows from forward passes over them.

    Args:
        corpus: the corpus of the windows.
        sites: layers of the model that select.
        score_bits: mantissa bits to keep of scores and weights.
        columns: columns to keep of every site beside the entries, by their names in ``TokenRows``; by default those
            that all recordings have.
    """

    def __init__(
        self,
        corpus: PackedCorpus,
        sites: Sequence[Site],
        score_bits: int = EXACT_BITS,
        columns: Sequence[Sequence[str]] | None = None,
    ):
        self.corpus, self.sites, self.score_bits = corpus, sites, score_bits
        self.columns = columns or [site.columns for site in sites]

    def collect(self, windows: list[DocumentWindow], passes: Iterable[WindowPass]) -> TokenRows:
        """Rows of ``windows`` in their order; ``passes`` cover them in any order.

        Raises:
            InputError: scores or weights are not finite.
        """
        lengths = [window.end - window.start for window in windows]
        offsets = dict(zip(windows, np.cumsum([0, *lengths[:-1]]), strict=True))
        n = sum(lengths)
        columns: dict[str, np.ndarray] = {}
        for done in passes:
            at = np.concatenate([np.arange(w.end - w.start) + offsets[w] for w in done.windows])
            for name, values in self._values(done).items():
                if name not in columns:
                    columns[name] = np.empty((n, *values.shape[1:]), values.dtype)
                columns[name][at] = values
        return TokenRows(
            doc=np.concatenate([np.full(w.end - w.start, w.doc, np.uint32) for w in windows]),
            pos=np.concatenate([np.arange(w.pos, w.pos + w.end - w.start, dtype=np.uint32) for w in windows]),
            token=np.concatenate([self.corpus.tokens[w.start : w.end] for w in windows]).astype(np.uint32),
            **columns,
        )

    def _values(self, done: WindowPass) -> dict[str, np.ndarray]:
        """Columns of one forward pass, one row per token that is not padding."""
        targets = on_device(done.batch.targets, done.logits.device)
        places = None if done.batch.mask.all() else on_device(np.flatnonzero(done.batch.mask), done.logits.device)

        def flat(values: Tensor) -> Tensor:
            rows = values.flatten(0, 1)
            return rows if places is None else rows[places]

        captured = [done.captured[site.layer] for site in self.sites]
        tensors = {
            "predicted": flat(done.predicted).long(),
            "loss": flat(done.losses.masked_fill(targets < 0, torch.nan)).float(),
            "indices": _stacked([flat(c.indices.long()) for c in captured], NONE),
        }
        are_finite: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for names in self.columns for name in names):
            of_sites = [
                flat(_captured(site, name)).flatten(1) if name in names else None
                for site, names in zip(captured, self.columns, strict=True)
            ]
            if "margin" not in name:
                are_finite[name] = torch.stack([one.isfinite().all() for one in of_sites if one is not None]).all()
            at_least = tensors["indices"].shape[2] if name in PER_SELECTION else 0
            stacked = _stacked(of_sites, BLANK.get(name, torch.nan), at_least)
            tensors[name] = stacked if stacked.dtype == torch.bool else stacked.float()
        values = on_host(tensors)
        if diverged := [name for name, finite in on_host(are_finite).items() if not finite]:
            raise InputError(f"{self.corpus.path}: the model's {diverged[0]} scores are not finite; it has diverged")
        return {
            name: round_scores(column, self.score_bits) if column.dtype == np.float32 and name != "loss" else column
            for name, column in values.items()
        }


def _stacked(of_sites: Sequence[Tensor | None], blank: float | int, at_least: int = 0) -> Tensor:
    """Values of sites side by side, ``[token, layer, number]``; a site that has fewer or none is filled up."""
    known = [values for values in of_sites if values is not None]
    width = max(at_least, *(values.shape[1] for values in known))
    if len(known) == len(of_sites) and all(values.shape[1] == width for values in known):
        return torch.stack(known, 1)
    full = known[0].new_full((len(known[0]), len(of_sites), width), blank)
    for axis, values in enumerate(of_sites):
        if values is not None:
            full[:, axis, : values.shape[1]] = values
    return full


def _captured(site: Selected, kind: str) -> Tensor:
    """A captured tensor of a site, by its name in ``TokenRows``."""
    names = {"gate": "gate_scores", "read": "read_weights", "head_read": "head_weights", "slot_read": "slot_weights"}
    values: Tensor | None = getattr(site, {**names, "read_norm": "read_norms"}.get(kind, kind))
    assert values is not None, f"{kind} was not captured"
    return values


def round_scores(values: np.ndarray, bits: int) -> np.ndarray:
    """float32 to float16 with ``bits`` of its 10 mantissa bits, the rest zero: fewer bytes once compressed.

    Rounds half to even, so sums stay unbiased; off by at most 2^-(bits + 1) of the value plus float16's own 2^-25. The
    idea is bit rounding (Kloewer et al. 2021, doi 10.1038/s43588-021-00156-2).
    """
    limited = np.clip(values.astype(np.float32), -65504, 65504)
    limited[np.isnan(limited)] = np.nan  # of the many bit patterns of NaN, the one that survives rounding
    drop = 23 - bits
    raw = limited.view(np.uint32)
    half = np.uint32((1 << (drop - 1)) - 1)
    rounded = (raw + half + ((raw >> np.uint32(drop)) & np.uint32(1))) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
    # Rounding up may exceed the largest float16; larger values become the largest.
    return np.clip(rounded.view(np.float32), -65504, 65504).astype(np.float16)
