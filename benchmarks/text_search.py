"""How long does a text layer search its sentences, up to a million of them, beside a released BM25?

    OMP_NUM_THREADS=1 python benchmarks/text_search.py --data pretrain.jsonl --tokenizer tokenizer.json

The bank holds pieces of the corpus of 28 tokens; windows of another part of it are searched, for every token the last
32 words of the text so far. bm25s (arXiv 2407.03618), compiled by numba as ours is, is asked for the same words of the
same tokens, with the usual weights of BM25 in place of squared ones. Both look at every entry, so nothing that they
would find is lost. Prints CPU seconds of indexing and milliseconds a token, with the ratio, in one process and thread,
the two in turns.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import bm25s
import numpy as np

from memscope.base.runtime import peak_rss_bytes
from memscope.text.corpus import pack_corpus
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.lexical import LexicalIndex
from memscope.text_bank.words import WordReader

PIECE, WINDOW, WORDS, FOUND = 28, 256, 32, 32


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a piece of work, and its result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def spelled(reader: WordReader, ids: np.ndarray) -> list[str]:
    """The whole words of some text, as what bm25s takes for words."""
    ends = reader.read(ids)
    return [str(word) for word in ends.words[ends.whole]]


def questions(reader: WordReader, window: np.ndarray) -> list[list[str]]:
    """For every token of a window the last words up to it, each once."""
    found = []
    for end in range(1, len(window) + 1):
        words = spelled(reader, window[:end])[-WORDS:]
        found.append(list(dict.fromkeys(words)))
    return found


def measure(reader: WordReader, bank: np.ndarray, windows: np.ndarray, bos: int, rounds: int) -> dict[str, float]:
    """CPU seconds of both for one bank ``[N, 28]`` and windows ``[round, 256]``."""
    lengths = np.full(len(bank), bank.shape[1])
    build, index = timed(lambda: LexicalIndex.build(bank, lengths, reader, bos, WORDS))
    peer = bm25s.BM25(k1=1.2, b=0.75, backend="numba")
    words = [spelled(reader, row) for row in bank]
    peer_build, _ = timed(lambda: peer.index(words, show_progress=False))
    ours, theirs = [], []
    for window in windows[: rounds + 1]:
        ours.append(timed(lambda: index.search(window[None], FOUND))[0])  # noqa: B023
        asked = [one or ["0"] for one in questions(reader, window)]
        theirs.append(timed(lambda: peer.retrieve(asked, k=FOUND, show_progress=False, n_threads=1))[0])  # noqa: B023
    per_token = [1000 * median(times[1:]) / windows.shape[1] for times in (ours, theirs)]  # the first warms up
    return {
        "entries": len(bank), "index s": build, "bm25s s": peer_build,
        "ms a token": per_token[0], "bm25s ms": per_token[1], "ratio": per_token[1] / per_token[0],
        "peak GiB": peak_rss_bytes() / 2**30,
    }  # fmt: skip


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("data", "tokenizer"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--entries", type=int, nargs="+", default=[16384, 65536, 1048576])
    parser.add_argument("--rounds", type=int, default=5, help="windows, behind one that warms up")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    arguments = parser.parse_args()
    tokenizer = Tokenizer.load(arguments.tokenizer)
    tokens = pack_corpus(arguments.data, tokenizer, arguments.cache).tokens
    asked = (arguments.rounds + 1) * WINDOW
    most = (len(tokens) - asked) // PIECE
    reader = WordReader(tokenizer)
    windows = np.asarray(tokens[-asked:]).reshape(-1, WINDOW)
    print(
        f"{'entries':>9} {'index s':>8} {'bm25s s':>8} {'ms a token':>11} {'bm25s ms':>9} {'ratio':>6} {'peak GiB':>9}"
    )
    for size in arguments.entries:
        if size > most:
            parser.error(f"the corpus gives {most:,} pieces, fewer than {size:,}")
        bank = np.asarray(tokens[: size * PIECE]).reshape(-1, PIECE)
        row = measure(reader, bank, windows, tokenizer.bos, arguments.rounds)
        print(
            f"{row['entries']:9,} {row['index s']:8.1f} {row['bm25s s']:8.1f} {row['ms a token']:11.3f} "
            f"{row['bm25s ms']:9.3f} {row['ratio']:6.2f} {row['peak GiB']:9.2f}"
        )


if __name__ == "__main__":
    main()
