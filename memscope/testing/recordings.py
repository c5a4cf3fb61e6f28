"""Make recordings whose answer is known by construction, which every metric and view must find again.

    planted = plant_recording(Path("planted"), seed=0)              # effects in layer 1, layer 0 stays clean
    planted = plant_recording(Path("clean"), seed=0, effects=())    # nothing to find
    find_anomalies(Recording(planted.path))                         # memscope/report/anomalies.py

Rows are drawn at random, not recorded of a model, and written by the real writers, so the census, the query layer and
the app read them like any recording. ``testing/models.py`` does the same with a model built by hand.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from memscope.base.files import write_text
from memscope.base.parquet import write_table
from memscope.base.printable import brief
from memscope.census.aggregate import write_aggregates
from memscope.config.load import dump_config, validate_config
from memscope.config.memory import reachable_entries
from memscope.recording.info import RecordingInfo, write_info
from memscope.recording.parts import write_part
from memscope.recording.sites import Has, Site
from memscope.recording.token_rows import TokenRows

MEMORY: tuple[Has, ...] = ("scores", "reads", "margin", "starts", "lens", "drift")
"""What a memory layer has."""
SPECIAL = ("<pad>", "<s>", "</s>")
Effect = Literal["detector", "duplicates", "dead", "decoy", "preference"]
EFFECTS: tuple[Effect, ...] = get_args(Effect)
FACTOR = 3.0
"""A preferred entry is drawn this many times as often as another one."""
PREDICATES = tuple(f"relation {name}" for name in "abcdefgh")
PLANTED_LAYER = 1
"""Layer that holds the effects; layer 0 is clean, and shows false alarms."""

_N, _K, _VOCAB = 256, 4, 60
_DOCUMENTS, _LENGTH, _WINDOW = 40, 160, 16
_DEAD = 40
_OFTEN = 0.1
"""Share of tokens that select the duplicates, and the decoy."""


@dataclass(frozen=True, repr=False)
class Planted:
    """The planted effects, all in layer ``PLANTED_LAYER``; empty where an effect was not planted."""

    __repr__ = brief

    path: Path
    """The recording, or the run (``testing/models.py``)."""
    detectors: dict[int, int]
    """Entry -> id of the token at which, and only at which, it is always selected."""
    duplicates: tuple[int, ...]
    """Two entries that are always selected together."""
    dead: tuple[int, ...]
    """Entries that are never selected."""
    decoys: tuple[int, ...]
    """Entries that are selected and not read."""
    preferred: str | None
    """Predicate whose entries are ``FACTOR`` times as likely to be selected."""
    predicates: tuple[str, ...]
    """Predicate of every entry's sentence."""


class Roles(NamedTuple):
    """The entries of each effect, in a bank of N; drawn by seed."""

    detector: int
    duplicates: tuple[int, int]
    decoy: int
    dead: tuple[int, ...]
    ordinary: np.ndarray
    """All others."""


def draw_roles(n: int, n_dead: int, chance: np.random.Generator) -> Roles:
    """Deal the roles among n entries."""
    order = chance.permutation(n).tolist()
    dead = tuple(sorted(order[4 : 4 + n_dead]))
    return Roles(order[0], (order[1], order[2]), order[3], dead, np.sort(order[4 + n_dead :]))


def plant_recording(path: Path, seed: int, effects: Collection[Effect] = EFFECTS) -> Planted:
    """Write a finished recording of 2 layers, 256 entries and 6,400 tokens in which ``effects`` hold exactly.

    A clean layer draws K = 4 different entries a token with equal chances, whatever the token. In the planted one a
    ``detector`` is selected exactly where one token stands, ``duplicates`` always together (a tenth of tokens), the
    ``dead`` never, the ``decoy`` on a tenth of tokens with a thousandth of the others' read weight, and entries of one
    predicate are drawn ``FACTOR`` times as likely as others (``preference``).

    Args:
        path: folder of the recording.
        seed: of everything random: the roles of entries, and all rows.
        effects: the effects to plant; entries of the other effects are ordinary ones.

    Example:
        >>> planted = plant_recording(Path("planted-recording"), seed=0)
    """
    chance = np.random.default_rng(seed)
    roles = draw_roles(_N, _DEAD, chance)
    predicates = tuple(PREDICATES[code] for code in chance.permutation(np.arange(_N) % len(PREDICATES)))
    token = chance.integers(len(SPECIAL), _VOCAB, _DOCUMENTS * _LENGTH)
    detected = int(chance.integers(len(SPECIAL), _VOCAB))
    planted = Planted(
        path=path,
        detectors={roles.detector: detected} if "detector" in effects else {},
        duplicates=roles.duplicates if "duplicates" in effects else (),
        dead=roles.dead if "dead" in effects else (),
        decoys=(roles.decoy,) if "decoy" in effects else (),
        preferred=PREDICATES[0] if "preference" in effects else None,
        predicates=predicates,
    )
    rows = _draw_rows(planted, token, chance)
    info = write_recording(path, rows, layers=(0, PLANTED_LAYER), knowledge_num=_N, window=_WINDOW, score_bits=10)
    ids = [chance.choice(np.arange(len(SPECIAL), _VOCAB), chance.integers(5, 13), replace=False) for _ in range(_N)]
    write_bank(path / "bank_init.parquet", [sentence.tolist() for sentence in ids], predicates)
    write_decodings(path / "decodings.parquet", [sentence.tolist() for sentence in ids], (0, PLANTED_LAYER), chance)
    shape = {"vocab_size": _VOCAB, "n_layers": 2, "max_seq_len": _WINDOW}
    config = {"model": shape, "memory": {"knowledge_num": _N, "num_selected": _K}}
    write_text(path / "config.yaml", dump_config(validate_config(config, source="planted")))
    write_aggregates(path, info)
    return planted


def _draw_rows(planted: Planted, token: np.ndarray, chance: np.random.Generator) -> TokenRows:
    n = len(token)
    weight = np.ones((2, _N))
    if planted.preferred:
        weight[PLANTED_LAYER, np.array(planted.predicates) == planted.preferred] = FACTOR
    placed = [*planted.detectors, *planted.duplicates, *planted.dead, *planted.decoys]
    weight[PLANTED_LAYER, placed] = 0  # never drawn at random
    indices = np.stack([_draw_entries(layer_weight, n, chance) for layer_weight in weight], axis=1)
    shares = -np.sort(-chance.uniform(0.5, 1.5, (n, 2, _K)))  # best gate score first
    attention = chance.uniform(0.5, 1.5, (n, 2, _K)) * chance.choice([-1, 1], (n, 2, _K))
    in_layer = indices[:, PLANTED_LAYER]
    for entry, detected in planted.detectors.items():
        in_layer[token == detected, 0] = entry
    if planted.duplicates:
        in_layer[chance.random(n) < _OFTEN, 1:3] = planted.duplicates
    for decoy in planted.decoys:
        in_layer[chance.random(n) < _OFTEN, 3] = decoy
        attention[:, PLANTED_LAYER][in_layer == decoy] *= 1e-3
    loss = chance.exponential(3, n)
    loss[_LENGTH - 1 :: _LENGTH] = np.nan
    return TokenRows(
        doc=np.repeat(np.arange(_DOCUMENTS, dtype=np.uint32), _LENGTH),
        pos=np.tile(np.arange(_LENGTH, dtype=np.uint32), _DOCUMENTS),
        token=token.astype(np.uint32),
        predicted=chance.integers(len(SPECIAL), _VOCAB, n).astype(np.uint32),
        loss=loss.astype(np.float32),
        indices=indices,
        gate=shares.astype(np.float16),
        read=(shares * attention).astype(np.float16),
        margin=chance.exponential(0.1, (n, 2, 1)).astype(np.float16),
    )


def _draw_entries(weight: np.ndarray, tokens: int, chance: np.random.Generator) -> np.ndarray:
    """K different entries a token, drawn with chances ``weight`` (Gumbel top-k), uint32 ``[token, K]``."""
    with np.errstate(divide="ignore"):
        score = np.log(weight) + chance.gumbel(size=(tokens, len(weight)))
    return np.argsort(-score, axis=1)[:, :_K].astype(np.uint32)


def make_info(**settings: Any) -> RecordingInfo:
    """``recording.json`` of a small recording: two memory layers, 64 entries, 4 selected.

    ``settings`` replace fields of it and of its sites, which ``layers``, ``knowledge_num`` and ``bank_groups`` shape.
    """
    layers, entries = settings.pop("layers", (0, 2)), settings.pop("knowledge_num", 64)
    groups = settings.pop("bank_groups", 1)
    site: dict[str, Any] = {"kind": "memory", "selected": 4, "read_heads": 4, "has": MEMORY}
    given = {name: settings.pop(name) for name in list(settings) if name in Site.model_fields}
    sites = []
    for layer in layers:
        own = reachable_entries(layer, layers, entries, groups)
        place = {"layer": layer, "module": f"blocks.{layer}.memory", "first_entry": own.start}
        sites.append(site | given | place | {"entries": own.stop - own.start})
    raw: dict[str, Any] = {
        "run": "somewhere/run",
        "fingerprint": "f",
        "corpus": "somewhere/corpus.jsonl",
        "corpus_sha256": "s",
        "documents": 1000,
        "vocab_size": 2**32,
        "sites": sites,
        "window": 16,
        "dtype": "float32",
        "score_bits": 6,
        "part_tokens": 100,
        "total_tokens": 0,
    }
    return RecordingInfo.model_validate(raw | settings)


def write_recording(
    folder: Path,
    rows: TokenRows,
    *,
    bounds: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    **settings: Any,
) -> RecordingInfo:
    """Write rows as the parts of a recording, with all files that its census needs, but no aggregates.

    Args:
        folder: of the recording.
        rows: of documents 0, 1, 2 ...
        bounds: rows at which parts begin and the last one ends; by default three parts.
        groups: of the documents.
        texts: of the tokens, special ones included; by default " w3", " w4" ... with a space before each.
        settings: of ``make_info``; fields that follow from the rows are set already.
    """
    n, layers, selected = rows.indices.shape
    bounds = bounds or np.linspace(0, n, 4).astype(int).tolist()
    lengths = np.bincount(rows.doc)
    texts = texts or word_texts(max(int(max(rows.token.max(), rows.predicted.max())) + 1, 4))
    info = make_info(
        **{
            "documents": len(lengths),
            "vocab_size": len(texts),
            "layers": tuple(range(0, 2 * layers, 2)),
            "selected": selected,
            "gate_heads": 1 if rows.margin is None else rows.margin.shape[2],
            "selection_bias": rows.by_score is not None,
            "signed_reads": rows.read_norm is not None,
            "total_tokens": n,
            "complete": True,
            **settings,
        }
    )
    parts = [
        write_part(folder, number, first, cut_rows(rows, first, last), info)
        for number, (first, last) in enumerate(pairwise(bounds))
    ]
    info = info.model_copy(update={"parts": tuple(parts)})
    write_info(folder, info)
    write_table(
        folder / "documents.parquet",
        {
            "doc": np.arange(len(lengths), dtype=np.uint32),
            "title": [f"Document {number}" for number in range(len(lengths))],
            "group": list(groups or [""] * len(lengths)),
            "first_row": np.cumsum(lengths) - lengths,
            "rows": lengths,
        },
    )
    write_tokenizer(folder / "tokenizer.json", texts)
    write_bank(folder / "bank_init.parquet", [None] * info.knowledge_num)
    return info


def cut_rows(rows: TokenRows, first: int, last: int) -> TokenRows:
    """Rows ``first`` to ``last``, the latter excluded."""
    values = {field.name: getattr(rows, field.name) for field in fields(rows)}
    cut: dict[str, Any] = {name: None if column is None else column[first:last] for name, column in values.items()}
    return TokenRows(**cut)


def word_texts(vocab: int) -> list[str]:
    """Texts of a vocabulary: the special tokens, then " w3", " w4" ..."""
    return [*SPECIAL, *(f" w{number}" for number in range(len(SPECIAL), vocab))]


def write_tokenizer(path: Path, texts: Sequence[str]) -> None:
    """Write a tokenizer whose token i is ``texts[i]``; text is cut before every space, and texts join without one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = {text: number for number, text in enumerate(texts)}
    assert len(vocabulary) == len(texts)
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=texts[0]))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(" [^ ]+"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.save(str(path))


def write_bank(path: Path, token_ids: Sequence[list[int] | None], predicates: Sequence[str] | None = None) -> None:
    """Write the origin of a bank: sentences " w3 w9 ..." by their token ids, None for random entries.

    Args:
        path: ``bank_init.parquet``.
        token_ids: of every entry's sentence.
        predicates: one for every entry, of a triple with the first word as subject and the last as object.
    """
    n = len(token_ids)
    words = [None if ids is None else [f" w{number}" for number in ids] for ids in token_ids]
    triples: dict[str, list[Any]] = {
        "uuid": [None if predicates is None else [f"u{entry}"] for entry in range(n)],
        "subject": [None if predicates is None or not word else [word[0].strip()] for word in words],
        "predicate": [None if predicates is None else [predicates[entry]] for entry in range(n)],
        "object": [None if predicates is None or not word else [word[-1].strip()] for word in words],
    }
    write_table(
        path,
        {
            "entry": np.arange(n, dtype=np.uint32),
            "sentence": pa.array([word and "".join(word).strip() for word in words], pa.string()),
            "token_ids": pa.array(token_ids, pa.list_(pa.uint32())),
            **{name: pa.array(values, pa.list_(pa.string())) for name, values in triples.items()},
        },
    )


def write_decodings(
    path: Path, token_ids: Sequence[list[int]], layers: Sequence[int], chance: np.random.Generator
) -> None:
    """Write decodings of entries that moved a little and still say their sentence; no model, so no logit lens."""
    n = len(token_ids)
    lens = pa.array([None] * n, pa.list_(pa.uint32()))
    drift = chance.uniform(0.005, 0.05, n).astype(np.float32)
    write_table(
        path,
        {
            "entry": np.arange(n, dtype=np.uint32),
            "drift": drift,
            "nearest": pa.array(token_ids, pa.list_(pa.uint32())),
            "nearest_cosine": pa.array([[0.5] * len(ids) for ids in token_ids], pa.list_(pa.float32())),
            "kept": np.ones(n, np.float32),
            "kept_at_init": np.ones(n, np.float32),
            "slot_drift": pa.array(drift[:, None].tolist(), pa.list_(pa.float32())),
            **{f"l{layer}_{end}": lens for layer in layers for end in ("top", "bottom")},
        },
    )
