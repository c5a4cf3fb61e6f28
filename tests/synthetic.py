"""Recordings with chosen contents, written through the real store: what the census is tested on."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import tokenizers
from tokenizers import decoders, models

from memscope.parquet import write_table
from memscope.rows import round_scores
from memscope.store import RecordingInfo, TokenRows, read_part, write_info, write_part

SPECIAL = ("<pad>", "<s>", "</s>")


def make_rows(
    lengths: Sequence[int],
    seed: int = 0,
    *,
    entries: int = 64,
    layers: int = 2,
    selected: int = 4,
    heads: int = 1,
    vocab: int = 40,
    levels: int = 0,
) -> TokenRows:
    """Random rows of documents of some lengths.

    Low entries and low token ids are frequent, high ones rare or absent; the entries of a token differ. With
    ``levels`` gate scores take only so many values, so that there are ties. Losses end with their document.
    """
    chance = np.random.default_rng(seed)
    n = sum(lengths)
    liking = chance.random((n, layers, entries)) ** (np.arange(1, entries + 1) / 3)
    order = np.argsort(-liking, axis=-1)
    gate = chance.random((n, layers, selected), np.float32)
    if levels:
        gate = np.floor(gate * levels) / levels
    gate[chance.random(n) < 0.02] = 0  # some tokens select without any score
    read = gate * chance.standard_normal(gate.shape).astype(np.float32)
    margin = chance.exponential(0.1, (n, layers, heads)).astype(np.float32)
    margin[chance.random(n) < 0.1] = np.nan
    loss = chance.random(n, np.float32) * 9
    loss[np.cumsum(lengths) - 1] = np.nan
    return TokenRows(
        doc=np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths),
        pos=np.concatenate([np.arange(length, dtype=np.uint32) for length in lengths]),
        token=(chance.random(n) ** 3 * vocab).astype(np.uint32),
        predicted=chance.integers(0, vocab, n).astype(np.uint32),
        loss=loss,
        indices=order[..., :selected].astype(np.uint32),
        gate=round_scores(gate.astype(np.float32), 6),
        read=round_scores(read, 6),
        margin=round_scores(margin, 6),
    )


def make_info(**settings: object) -> RecordingInfo:
    """What ``make_rows`` makes by default, in a recording."""
    raw: dict[str, object] = {
        "run": "somewhere/run",
        "fingerprint": "f",
        "corpus": "somewhere/corpus.jsonl",
        "corpus_sha256": "s",
        "layers": (0, 2),
        "knowledge_num": 64,
        "knowledge_length": 1,
        "selected": 4,
        "gate_heads": 1,
        "read_heads": 4,
        "window": 16,
        "dtype": "float32",
        "score_bits": 6,
        "part_tokens": 100,
        "total_tokens": 0,
    }
    return RecordingInfo.model_validate(raw | settings)


def cut(rows: TokenRows, first: int, last: int) -> TokenRows:
    """Rows first to last, exclusive."""
    found = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return TokenRows(**{name: None if values is None else values[first:last] for name, values in found.items()})


def write_recording(
    folder: Path,
    rows: TokenRows,
    *,
    bounds: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    **settings: object,
) -> RecordingInfo:
    """Write rows as the parts of a recording, with all that its census needs, but no aggregates.

    Args:
        folder: of the recording.
        rows: of documents 0, 1, 2 ...
        bounds: rows at which parts begin and the last one ends; by default three parts.
        groups: of the documents.
        texts: of the tokens, special ones included; by default " w3", " w4" ... with a space before each.
        settings: of ``make_info``; what rows tell is set already.
    """
    n, layers, selected = rows.indices.shape
    bounds = bounds or np.linspace(0, n, 4).astype(int).tolist()
    info = make_info(
        **{
            "layers": tuple(range(0, 2 * layers, 2)),
            "selected": selected,
            "gate_heads": rows.margin.shape[2],
            "total_tokens": n,
            "complete": True,
            **settings,
        }
    )
    parts = [
        write_part(folder, number, first, cut(rows, first, last), info)
        for number, (first, last) in enumerate(pairwise(bounds))
    ]
    info = info.model_copy(update={"parts": tuple(parts)})
    write_info(folder, info)
    lengths = np.bincount(rows.doc)
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
    vocab = int(max(rows.token.max(), rows.predicted.max())) + 1
    write_tokenizer(folder / "tokenizer.json", texts or [*SPECIAL, *(f" w{i}" for i in range(3, max(vocab, 4)))])
    write_random_bank(folder / "bank_init.parquet", info.knowledge_num)
    return info


def write_tokenizer(path: Path, texts: Sequence[str]) -> None:
    """A tokenizer whose token i decodes to ``texts[i]``, side by side without spaces."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = {text: number for number, text in enumerate(texts)}
    assert len(vocabulary) == len(texts)
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=texts[0]))
    backend.decoder = decoders.Fuse()
    backend.save(str(path))


def write_random_bank(path: Path, entries: int) -> None:
    """The origin of a bank without any sentence."""
    nothing = [None] * entries
    write_table(
        path,
        {
            "entry": np.arange(entries, dtype=np.uint32),
            "sentence": pa.array(nothing, pa.string()),
            "token_ids": pa.array(nothing, pa.list_(pa.uint32())),
            **{name: pa.array(nothing, pa.list_(pa.string())) for name in ("uuid", "subject", "predicate", "object")},
        },
    )


def all_rows(recording: Path, info: RecordingInfo) -> TokenRows:
    """Every row of a recording, as stored."""
    parts = [read_part(recording, part, info) for part in info.parts]
    columns = {
        field.name: [getattr(part, field.name) for part in parts]
        for field in fields(TokenRows)
        if getattr(parts[0], field.name) is not None
    }
    return TokenRows(**{name: np.concatenate(values) for name, values in columns.items()})


def selections_of(rows: TokenRows, axis: int) -> Iterator[tuple[int, int, int, float, float]]:
    """The selections of a layer, one by one: row, place along K, entry, gate score, read weight."""
    for row, entries in enumerate(rows.indices[:, axis].tolist()):
        for k, entry in enumerate(entries):
            yield row, k, entry, float(rows.gate[row, axis, k]), float(rows.read[row, axis, k])
