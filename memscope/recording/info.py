"""``recording.json``: the model, the corpus, the settings and the list of finished parts of a recording."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from memscope.base.errors import InputError
from memscope.base.seals import SEAL, read_own_json, unseal, write_sealed
from memscope.recording.sites import (
    READERS,
    SCORES,
    SELECTORS,
    WORDS,
    Has,
    Kind,
    Site,
    describe_sites,
    entry_label,
    is_private,
)
from memscope.text.special_tokens import ROLES_FILE

INFO = "recording.json"
"""Files that a recording has and a run has not."""
RECORDINGS = "MEMSCOPE_RECORDINGS"
"""Environment variable with what the app opens: a recording, or a folder of recordings."""
FORMAT_VERSION = 6
AGGREGATES = (
    *(
        f"{name}.parquet"
        for name in ("documents", "usage", "bias", "contexts", "firing", "titles", "neighbours", "readability")
    ),
    *("anomalies.parquet", "decodings.parquet", "bank_init.parquet", "census.json", "tokenizer.json"),
)
"""Files that a finished recording has beside its parts."""
COPIES = (ROLES_FILE, "config.yaml", "run.json", "metrics.jsonl")
"""Further files, if the run has them."""
AGAIN = "record again"
STARTS = "bank_init.parquet"
"""What entries started from; one empty row each where no entry has a text."""
_Count = Annotated[int, Field(ge=1, le=2**32)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """A finished part: both its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(pattern=r"^part-[0-9]{6,}\.parquet$")]
    rows: _Count
    tokens_sha256: _Sha256
    selections_sha256: _Sha256


class RecordingInfo(BaseModel):
    """``recording.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    format_version: int = FORMAT_VERSION
    run: str
    """Folder that the model came from."""
    fingerprint: str
    """SHA-256 of its weights."""
    step: int | None = None
    """Training step of the model, where it was read from a checkpoint."""
    corpus: str
    corpus_sha256: str
    documents: _Count
    """Documents of the corpus that are recorded, whole or in part."""
    vocab_size: _Count
    """Token ids of the model's tokenizer."""
    sites: tuple[Site, ...]
    """Layers that select, in the order of the layer axis."""
    window: _Count
    """Most tokens that the model reads at once; documents are cut into such windows."""
    dtype: str
    score_bits: Annotated[int, Field(ge=1, le=10)]
    """Mantissa bits kept of scores and weights; they are off by at most 2^-(score_bits + 1) of their value."""
    predictions: bool = True
    """Whether predicted tokens and losses were recorded; a list of selections alone has none."""
    head_weights: bool = False
    """Whether read weights per read head were recorded."""
    slot_weights: bool = False
    """Whether read weights per slot were recorded."""
    part_tokens: _Count
    total_tokens: Annotated[int, Field(ge=0)]
    """Tokens that the finished recording holds."""
    complete: bool = False
    """Whether all parts and aggregates are there."""
    seconds: float = 0.0
    """Wall time spent on parts so far, aggregates excluded."""
    parts: tuple[Part, ...] = ()
    files: dict[Annotated[str, Field(pattern=r"^\w[\w.]*$")], _Sha256] = {}
    """SHA-256 of the finished recording's other files, by name."""

    @model_validator(mode="after")
    def _check(self) -> "RecordingInfo":
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError("layers must be there and rise")
        end = 0
        for first, entries in sorted({(site.first_entry, site.entries) for site in self.sites}):
            if first != end:
                raise ValueError("banks must follow one another without gaps, from entry 0 on")
            end += entries
        for site in self.sites:
            if site.selected % site.gate_heads or site.selected > site.gate_heads * site.entries:
                raise ValueError("selected must be a multiple of gate_heads, and each can select what a layer has")
        if len({part.name for part in self.parts}) < len(self.parts):
            raise ValueError("a part is listed twice")
        return self

    def __repr__(self) -> str:
        unfinished = "" if self.complete else f" of {self.total_tokens:,}, unfinished"
        return (
            f"RecordingInfo({self.rows:,} tokens{unfinished} of {self.corpus_name}, run {self.run_name}, "
            f"{describe_sites(self.sites)})"
        )

    __str__ = __repr__

    @property
    def run_name(self) -> str:
        """The name of the run folder; reports show it in place of the path, which depends on the machine."""
        return Path(self.run).name

    @property
    def corpus_name(self) -> str:
        """The name of the corpus file, for the same reason."""
        return Path(self.corpus).name

    @property
    def rows(self) -> int:
        """Tokens recorded so far."""
        return sum(part.rows for part in self.parts)

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers that select, in the order of the layer axis."""
        return tuple(site.layer for site in self.sites)

    @property
    def knowledge_num(self) -> int:
        """Entries of all banks."""
        return max(site.own.stop for site in self.sites)

    @property
    def selected(self) -> int:
        """The most selections that a token makes in a layer: the length of the K axis."""
        return max(site.selected for site in self.sites)

    def word(self, count: int = 1) -> str:
        """What ``count`` entries are called: the word of their kind where all layers are of one, else entries."""
        return WORDS[self.kind][count != 1]

    @property
    def kind(self) -> Kind:
        """The kind of all layers, or ``selection`` where they are of several."""
        kinds = {site.kind for site in self.sites}
        return kinds.pop() if len(kinds) == 1 else "selection"

    @property
    def score(self) -> str:
        """What the score of a selection is called, where all layers have one word for it."""
        words = {SCORES[site.kind] for site in self.sites}
        return words.pop() if len(words) == 1 else SCORES[self.kind]

    @property
    def selector(self) -> str:
        """What selects is called, where all layers have one word for it: a gate, a router."""
        words = {SELECTORS[site.kind] for site in self.sites}
        return words.pop() if len(words) == 1 else SELECTORS[self.kind]

    @property
    def reader(self) -> str:
        """What weighs selections apart from their scores is called, in the layers that have reads: the attention."""
        kinds = {site.kind for site in self.sites if "reads" in site.has}
        return READERS.get(kinds.pop(), "read") if len(kinds) == 1 else "read"

    @property
    def private(self) -> bool:
        """Whether any layer has entries of its own, counted from 0 there."""
        return any(is_private(self.sites, site) for site in self.sites)

    @property
    def slots(self) -> int:
        """Vectors of an entry; the most where layers differ."""
        return max(site.slots for site in self.sites)

    @property
    def per_token(self) -> int:
        """Selections of a token in all layers together; the most where their number varies."""
        return sum(site.selected for site in self.sites)

    @property
    def banks(self) -> tuple[tuple[Site, ...], ...]:
        """Sites by the bank that they select from, in the order of the entries."""
        owners: dict[int, list[Site]] = {}
        for site in self.sites:
            owners.setdefault(site.first_entry, []).append(site)
        return tuple(tuple(owners[first]) for first in sorted(owners))

    def label(self, entry: int) -> str:
        """What an entry is called: "entry 70", or "layer 1, expert 6" where the entries of layers are their own."""
        return entry_label(self.sites, entry)

    def site(self, layer: int) -> Site:
        """What selects in a layer.

        Raises:
            InputError: nothing selects there.
        """
        self.expect_layers([layer])
        return self.sites[self.layers.index(layer)]

    def expect_layers(self, layers: Iterable[int]) -> None:
        """Check that something selects in every one of some layers.

        Raises:
            InputError: nothing selects in one.
        """
        known = ", ".join(map(str, self.layers))
        for layer in layers:
            if layer not in self.layers:
                raise InputError(f"layer {layer} selects nothing; layers that select are {known}")

    def expect_entries(self, entries: Iterable[int]) -> None:
        """Check that entries are among those that the recording numbers.

        Raises:
            InputError: one is not.
        """
        for entry in entries:
            if not 0 <= entry < self.knowledge_num:
                words = f"{self.knowledge_num:,} {self.word(self.knowledge_num)}"
                raise InputError(f"there is no {self.word()} {entry}; the {words} count from 0")

    def entries_of(self, layer: int) -> slice:
        """The entries that a layer can select."""
        return self.site(layer).own

    def has(self, what: Has, everywhere: bool = False) -> bool:
        """Whether any layer, or every one, has something."""
        return (all if everywhere else any)(what in site.has for site in self.sites)

    def columns_of(self, site: Site) -> tuple[str, ...]:
        """Names in ``TokenRows`` of the columns that rows hold of a site beside the entries."""
        more = ("head_read",) * self.head_weights + ("slot_read",) * self.slot_weights
        return site.columns + (more if "reads" in site.has else ())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The columns of ``columns_of`` that any site has."""
        return tuple(dict.fromkeys(kind for site in self.sites for kind in self.columns_of(site)))

    def first_rows(self) -> list[int]:
        """Number of every part's first row."""
        return np.cumsum([0, *(part.rows for part in self.parts)]).tolist()[:-1]

    def same_source(self, other: "RecordingInfo") -> list[str]:
        """Names of the settings in which two recordings differ; progress and paths are left out."""
        left_out = {"complete", "seconds", "parts", "files", "documents", "run", "corpus"}
        mine, its = self.model_dump(exclude=left_out), other.model_dump(exclude=left_out)
        return [name for name, value in mine.items() if its[name] != value]


def read_info(recording: Path) -> RecordingInfo:
    """Read ``recording.json``.

    Raises:
        DamageError: the file is not as ``write_info`` wrote it.
        InputError: the folder is not a recording, or one of another format version.
    """
    if not (recording / INFO).is_file():
        parts = any((recording / name).exists() for name in (INFO, "tokens"))
        is_run = (recording / "config.yaml").is_file() and not parts
        problem = "a run" if is_run else f"not a recording (no {INFO})"
        raise InputError(f"{recording}: {problem}; make a recording with 'memscope record'")
    raw = read_own_json(recording / INFO)
    if isinstance(raw, dict) and SEAL in raw:
        unseal(raw, recording / INFO, AGAIN)  # before any value of it is used
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{recording / INFO}: format version {version}, this memscope reads {FORMAT_VERSION}; record again, "
            "into another folder or after removing this one"
        )
    try:
        return RecordingInfo.model_validate(unseal(raw, recording / INFO, AGAIN))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{recording / INFO}: {key}: {first['msg']}; record again") from error


def write_info(recording: Path, info: RecordingInfo) -> None:
    """Write ``recording.json``, atomically."""
    write_sealed(recording / INFO, info.model_dump(mode="json"))
