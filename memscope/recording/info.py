"""``recording.json``: the model, the corpus, the settings and the list of finished parts of a recording."""

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from memscope.base.errors import InputError
from memscope.base.seals import SEAL, read_own_json, unseal, write_sealed
from memscope.config.memory import reachable_entries
from memscope.recording.token_rows import KINDS
from memscope.text.special_tokens import ROLES_FILE

INFO = "recording.json"
"""Files that a recording has and a run has not."""
RECORDINGS = "MEMSCOPE_RECORDINGS"
"""Environment variable with what the app opens: a recording, or a folder of recordings."""
FORMAT_VERSION = 4
AGGREGATES = (
    *(f"{name}.parquet" for name in ("documents", "usage", "bias", "contexts", "firing", "titles", "neighbours")),
    *("anomalies.parquet", "decodings.parquet", "bank_init.parquet", "census.json", "tokenizer.json", "config.yaml"),
)
"""Files that a finished recording has beside its parts."""
COPIES = (ROLES_FILE, "run.json", "metrics.jsonl")
"""Further files, if the run has them."""
AGAIN = "record again"
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
    """Run folder the model came from."""
    fingerprint: str
    """SHA-256 of its model file."""
    step: int | None = None
    """Training step of the model, where it was read from a checkpoint."""
    corpus: str
    corpus_sha256: str
    documents: _Count
    """Documents of the corpus that are recorded, whole or in part."""
    vocab_size: _Count
    """Token ids of the model's tokenizer."""
    layers: tuple[Annotated[int, Field(ge=0, lt=2**16)], ...]
    """Memory layers, in the order of the layer axis."""
    knowledge_num: _Count
    bank_groups: _Count = 1  # equal parts of the layers and of the entries; the layers of a part use its entries
    knowledge_length: _Count
    selected: _Count
    """Selections per token and layer (K)."""
    gate_heads: _Count
    read_heads: _Count
    window: _Count
    """Most tokens that the model reads at once; documents are cut into such windows."""
    dtype: str
    score_bits: Annotated[int, Field(ge=1, le=10)]
    """Mantissa bits kept of scores and weights; they are off by at most 2^-(score_bits + 1) of their value."""
    selection_bias: bool = False
    """Whether a selection bias takes part in the choice (``balance_bias``): then it is compared with raw scores."""
    signed_reads: bool = False
    """Whether read weights can be negative: then they were also recorded without their signs."""
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
        if len(self.layers) % self.bank_groups or self.knowledge_num % self.bank_groups:
            raise ValueError("bank_groups must divide the number of layers and knowledge_num")
        if self.selected % self.gate_heads or self.selected > self.gate_heads * self.group_size:
            raise ValueError("selected must be a multiple of gate_heads, and each can select what a layer has")
        if len({part.name for part in self.parts}) < len(self.parts):
            raise ValueError("a part is listed twice")
        return self

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
    def group_size(self) -> int:
        """Entries that a layer can select."""
        return self.knowledge_num // self.bank_groups

    @property
    def distinct(self) -> int:
        """Entries that a gate head selects for a token, all different."""
        return self.selected // self.gate_heads

    def entries_of(self, layer: int) -> slice:
        """The entries that a memory layer can select."""
        return reachable_entries(layer, self.layers, self.knowledge_num, self.bank_groups)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names in ``TokenRows`` of the columns that rows hold of every layer beside the entries."""
        compared = ("score_margin", "by_score") * self.selection_bias
        more = ("read_norm",) * self.signed_reads + ("head_read",) * self.head_weights
        return KINDS + compared + more + ("slot_read",) * self.slot_weights

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
