"""The layers of a recorded model that select: what each one is, which entries are its, and what was recorded of it.

A **site** is one layer's selection: a memory's gate, a router of experts, the largest neurons of a feed-forward layer.
Entries are numbered through a whole recording. A site owns a contiguous range of them, its bank; sites with the same
range select from the same bank. Entries of a private bank are named by layer and number: "layer 1, expert 6".
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from memscope.base.errors import InputError

Kind = Literal["memory", "text", "experts", "product_keys", "peer", "neurons", "features", "selection"]
"""What selects: a memory with a read of its own, a layer that reads sentences, a mixture of experts, product keys
(arXiv 1907.05242), PEER (arXiv 2407.04153), neurons of a feed-forward layer, features of a sparse autoencoder, or any
other module."""
Has = Literal["scores", "reads", "margin", "starts", "lens", "drift"]
"""What a site may have: scores of selections; reads apart from the scores (an attention); the margin to the best
rejected entry; init sentences; values for a logit lens; starts to measure drift from."""
HAS: tuple[Has, ...] = get_args(Has)
WORDS: dict[Kind, tuple[str, str]] = {
    "memory": ("entry", "entries"),
    "text": ("sentence", "sentences"),
    "experts": ("expert", "experts"),
    "product_keys": ("entry", "entries"),
    "peer": ("expert", "experts"),
    "neurons": ("neuron", "neurons"),
    "features": ("feature", "features"),
    "selection": ("entry", "entries"),
}
"""What one entry of a kind of site is called, and several."""
SCORES: dict[Kind, str] = {
    "memory": "gate score",
    "text": "gate score",
    "experts": "router weight",
    "product_keys": "score",
    "peer": "score",
    "neurons": "activation",
    "features": "activation",
    "selection": "score",
}
"""What the score of a selection is called; of experts it is the weight as the model uses it."""
SELECTORS: dict[Kind, str] = {
    "memory": "gate",
    "text": "gate",
    "experts": "router",
    "product_keys": "gate",
    "peer": "gate",
    "neurons": "selection",
    "features": "selection",
    "selection": "selection",
}
"""What selects in a kind of site is called."""
READERS: dict[Kind, str] = {"memory": "attention", "peer": "activation"}
"""What weighs selections apart from their scores; a read in general."""
_Count = Annotated[int, Field(ge=1, le=2**31)]
_WORD = "|".join(sorted({word for pair in WORDS.values() for word in pair}))
_NAMED = re.compile(
    rf"(?:layer\s+(?P<layer>\d{{1,9}})[\s,:]+)?(?:(?:{_WORD})\s+)?(?P<number>\d{{1,12}})(?![^\s,;])", re.IGNORECASE
)


class Site(BaseModel):
    """One layer that selects."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    layer: Annotated[int, Field(ge=0, lt=2**16)]
    """Number of the layer, unique in a recording; a running number where a block of the model has several sites."""
    module: str
    """Path of the module that selects, as in ``model.named_modules()``."""
    kind: Kind
    """What selects."""
    first_entry: Annotated[int, Field(ge=0, le=2**31)] = 0
    """First entry of its bank."""
    entries: _Count
    """Entries of its bank (N)."""
    selected: _Count
    """Selections per token (K), or the most where they vary."""
    varies: bool = False
    """Whether a token may select fewer than K; the rest of its K are then -1."""
    gate_heads: _Count = 1
    """Heads that select apart from one another, K / H entries each, all different."""
    read_heads: _Count = 1
    """Heads of the attention that reads; 1 where nothing reads apart from the gate."""
    slots: _Count = 1
    """Vectors of one entry."""
    has: tuple[Has, ...]
    """What there is of its selections and entries."""
    selection_bias: bool = False
    """Whether a selection bias takes part in the choice: then the choice is compared with that of raw scores."""
    signed_reads: bool = False
    """Whether read weights can be negative: then they are also recorded without their signs."""
    always: str = ""
    """Module that every token passes beside the selected entries, a shared expert; it is no selection."""

    @property
    def own(self) -> slice:
        """The entries that it can select."""
        return slice(self.first_entry, self.first_entry + self.entries)

    @property
    def distinct(self) -> int:
        """Entries that a gate head selects for a token, all different; 1 where their number varies."""
        return 1 if self.varies else self.selected // self.gate_heads

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that every recording has of it beside the entries, by their names in ``TokenRows``."""
        there = (("gate", "scores"), ("read", "reads"), ("margin", "margin"))
        compared = ("score_margin", "by_score") * self.selection_bias
        return (*(name for name, what in there if what in self.has), *compared, *("read_norm",) * self.signed_reads)

    def word(self, count: int = 1) -> str:
        """What ``count`` of its entries are called."""
        return WORDS[self.kind][count != 1]


def in_common(sites: Sequence[Site]) -> np.ndarray:
    """Which layers select from the same bank, bool ``[site, site]``; others have no entry in common."""
    firsts = np.array([site.first_entry for site in sites])
    return firsts[:, None] == firsts


def is_private(sites: Sequence[Site], site: Site) -> bool:
    """Whether the entries of a site are its own and counted from 0 there; those of a memory count through all banks."""
    return site.kind != "memory" and sum(other.first_entry == site.first_entry for other in sites) == 1


def entry_label(sites: Sequence[Site], entry: int) -> str:
    """What an entry is called: "entry 70", or "layer 1, expert 6" where the entries of layers are their own."""
    site = next(site for site in sites if site.own.start <= entry < site.own.stop)
    if is_private(sites, site):
        return f"layer {site.layer}, {site.word()} {entry - site.first_entry}"
    return f"{site.word()} {entry}"


def describe_sites(sites: Sequence[Site]) -> str:
    """What selects, in a few words: "4 layers that select 16 of 16,384 entries"."""
    chosen = [f"{site.selected:,} of {site.entries:,} {site.word(site.entries)}" for site in sites]
    layers = f"{len(sites)} layer{'s' * (len(sites) != 1)} that select{'s' * (len(sites) == 1)}"
    return f"{layers} {chosen[0] if len(set(chosen)) == 1 else 'from banks of their own'}"


def read_entries(sites: Sequence[Site], text: str) -> list[int]:
    """Entries that a text names, with commas or spaces between them: "70", "expert 70", "layer 1, expert 6".

    The word of an entry may be left out behind a layer, and any kind's may stand there.

    Raises:
        InputError: something else stands there, or a layer is named that has no such entry.
    """
    entries, rest = [], text
    while rest := rest.lstrip(" ,;\t\n"):
        match = _NAMED.match(rest)
        if match is None:
            raise InputError(f"{rest[:40]!r} names no {sites[0].word()}; write {_examples(sites)}")
        number, rest = int(match["number"]), rest[match.end() :]
        if match["layer"] is None:
            entries.append(number)
            continue
        site = next((site for site in sites if site.layer == int(match["layer"])), None)
        if site is None:
            known = ", ".join(str(site.layer) for site in sites)
            raise InputError(f"layer {match['layer']} selects nothing; layers that select are {known}")
        entry = site.first_entry + number if is_private(sites, site) else number
        if not site.own.start <= entry < site.own.stop:
            last = entry_label(sites, site.own.stop - 1)
            raise InputError(f"layer {site.layer} has no {site.word()} {number}; its last one is {last}")
        entries.append(entry)
    return entries


def _examples(sites: Sequence[Site]) -> str:
    last = max(sites, key=lambda site: site.own.stop).own.stop - 1
    return f"{last}, or {entry_label(sites, last)}"
