"""Recordings with a known truth, of any size, for benchmarks: written part by part by the real writers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import WordPiece as Joiner
from tokenizers.models import WordLevel

from memscope.base.parquet import ENTRY_ROW_GROUP, fixed_lists, write_table
from memscope.record.rows import round_scores
from memscope.recording.info import RecordingInfo, write_info
from memscope.recording.parts import write_part
from memscope.recording.sites import HAS, Site
from memscope.recording.token_rows import TokenRows

VOCAB, WINDOW, K, LAYERS = 6400, 512, 8, 8
SCORE_BITS = 6
SPECIAL = ("<pad>", "<s>", "</s>")


def zipf_shares(n: int, exponent: float = 1.0) -> np.ndarray:
    """Shares of ``n`` entries under Zipf's law, in a seeded random order, ``[n]``."""
    shares = 1.0 / np.arange(1, n + 1) ** exponent
    return np.random.default_rng(1).permutation(shares / shares.sum())


def write_recording(folder: Path, n_entries: int, selections: int, part_tokens: int = 65536) -> RecordingInfo:
    """Write a recording with all its parts, without aggregates.

    Every selection is an independent draw from ``zipf_shares``; the gate shares of a token are those of raw scores
    K - 1 ... 0 (so gate entropy is known), read weights are gate scores times an independent attention, margins are
    exponential with mean 0.1, token ids Zipf, one document every 2,048 tokens.
    """
    tokens = selections // (K * LAYERS)
    rng = np.random.default_rng(0)
    draw = np.cumsum(zipf_shares(n_entries))
    frequency = np.cumsum(zipf_shares(VOCAB - len(SPECIAL)))
    info = RecordingInfo(
        run=str(folder / "run"),
        fingerprint="synthetic",
        corpus="synthetic",
        corpus_sha256="synthetic",
        documents=-(-tokens // 2048),
        vocab_size=VOCAB,
        sites=tuple(
            Site(layer=layer, module="", kind="memory", entries=n_entries, selected=K, read_heads=8, has=HAS)
            for layer in range(LAYERS)
        ),
        window=WINDOW,
        dtype="float32",
        score_bits=SCORE_BITS,
        part_tokens=part_tokens,
        total_tokens=tokens,
    )
    gate = np.exp(-np.arange(K, dtype=np.float32))
    parts = []
    for number, first in enumerate(range(0, tokens, part_tokens)):
        n = min(part_tokens, tokens - first)
        row = first + np.arange(n)
        shape = (n, LAYERS, K)
        attention = rng.random(shape, np.float32)
        rows = TokenRows(
            doc=(row // 2048).astype(np.uint32),
            pos=(row % 2048).astype(np.uint32),
            token=(len(SPECIAL) + np.searchsorted(frequency, rng.random(n))).clip(max=VOCAB - 1).astype(np.uint32),
            predicted=rng.integers(0, VOCAB, n, np.uint32),
            loss=np.where(row % 2048 == 2047, np.nan, rng.exponential(5, n)).astype(np.float32),
            indices=np.searchsorted(draw, rng.random(shape)).clip(max=n_entries - 1).astype(np.uint32),
            gate=np.broadcast_to(round_scores(gate / gate.sum(), SCORE_BITS), shape),
            read=round_scores(gate * attention, SCORE_BITS),
            margin=round_scores(rng.exponential(0.1, (n, LAYERS, 1)).astype(np.float32), SCORE_BITS),
        )
        parts.append(write_part(folder, number, first, rows, info))
    info = info.model_copy(update={"parts": tuple(parts)})
    write_info(folder, info)
    _write_context(folder, n_entries, tokens)
    return info


def _write_context(folder: Path, n_entries: int, tokens: int) -> None:
    """Documents, tokenizer and bank: sentences of two words, every tenth entry with another predicate."""
    n_docs = -(-tokens // 2048)
    rows = np.full(n_docs, 2048)
    rows[-1] = tokens - 2048 * (n_docs - 1)
    titles = [f"Document {number}" for number in range(n_docs)]
    write_table(
        folder / "documents.parquet",
        {
            "doc": np.arange(n_docs, dtype=np.uint32),
            "title": titles,
            "group": [""] * n_docs,
            "first_row": np.cumsum(rows) - rows,
            "rows": rows,
        },
    )
    words = [*SPECIAL, *(f" w{number}" for number in range(VOCAB - len(SPECIAL)))]
    backend = Backend(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    backend.decoder = Joiner("", cleanup=False)
    backend.save(str(folder / "tokenizer.json"))
    ids = np.random.default_rng(2).integers(len(SPECIAL), VOCAB, (n_entries, 2))
    predicates = np.where(np.arange(n_entries) % 10 == 0, "planted", "other").tolist()
    offsets = np.arange(n_entries + 1, dtype=np.int32)
    write_table(
        folder / "bank_init.parquet",
        {
            "entry": np.arange(n_entries, dtype=np.uint32),
            "sentence": [f"{words[a]}{words[b]}".strip() for a, b in ids],
            "token_ids": fixed_lists(ids, pa.uint32()),
            **{
                name: pa.ListArray.from_arrays(offsets, pa.array(values))
                for name, values in (
                    ("subject", [words[a] for a, _ in ids]),
                    ("predicate", predicates),
                    ("object", [words[b] for _, b in ids]),
                    ("uuid", [""] * n_entries),
                )
            },
        },
        ENTRY_ROW_GROUP,
    )
