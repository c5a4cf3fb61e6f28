"""What loss do runs have on text that none of them was trained or evaluated on, and how sure is the difference?

    python benchmarks/held_out.py runs/ffn runs/memory --corpus valid.jsonl --skip 131072
    python benchmarks/held_out.py runs/ffn runs/memory --corpus data/wiki/train.jsonl --not-in pretrain.jsonl

All runs have one tokenizer and read the same windows. Differences are of the first run, in nats a token, with a 95%
interval over documents. Leave out what was seen: the tokens that evaluations in training read (``--skip``, which are
the first of a corpus), and articles whose titles stand in another corpus (``--not-in``).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from memscope.run.adapters.own import OwnModel
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.run.subject import run_windows
from memscope.stats.jackknife import ratio_interval
from memscope.text.corpus import DocumentWindow, PackedCorpus, document_windows, pack_corpus


def main() -> None:
    """Parse, read, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="the first one is the baseline")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=0, help="tokens at the start of the corpus that are left out")
    parser.add_argument("--not-in", type=Path, nargs="*", default=[], help="corpora whose titles are left out")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    arguments = parser.parse_args()
    runs = [load_run(path) for path in arguments.runs]
    corpus = pack_corpus(arguments.corpus, runs[0].tokenizer, arguments.cache)
    seen = {title for path in arguments.not_in for title in _titles(path)}
    windows = _windows(corpus, runs[0].config.model.max_seq_len, arguments.skip, seen, arguments.tokens)
    documents = len({window.doc for window in windows})
    print(f"{arguments.corpus}: {sum(w.end - w.start for w in windows):,} tokens of {documents} documents")
    counts, before = _losses(runs[0], corpus, windows)
    for path, run in zip(arguments.runs, runs, strict=True):
        _, nats = _losses(run, corpus, windows)
        apart = ratio_interval((nats - before)[counts > 0], counts[counts > 0])
        loss, base = nats.sum() / counts.sum(), before.sum() / counts.sum()
        print(
            f"{path.name:<24}{loss:>8.4f}{loss / base - 1:>+8.2%}   "
            f"{apart.estimate:+z.4f} ({apart.low:+z.4f} to {apart.high:+z.4f})"
        )


def _titles(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line).get("title", "") for line in lines]


def _windows(corpus: PackedCorpus, length: int, skip: int, seen: set[str], most: int) -> list[DocumentWindow]:
    """Windows of whole documents that nobody saw, until they have ``most`` tokens."""
    chosen: list[DocumentWindow] = []
    for window in document_windows(corpus, length):
        if corpus.starts[window.doc] < skip or corpus.titles[window.doc] in seen:
            continue
        if most <= 0:
            break
        chosen.append(window)
        most -= window.end - window.start
    return chosen


def _losses(run: LoadedRun, corpus: PackedCorpus, windows: list[DocumentWindow]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted tokens, and the sum of their losses in nats, of every document."""
    counts, nats = np.zeros(len(corpus.titles)), np.zeros(len(corpus.titles))
    model = OwnModel(run.model, run.config.train.dtype)
    for done in run_windows(model, corpus, windows, run.tokenizer.pad):
        predicted = torch.from_numpy(done.batch.targets >= 0)
        documents = [window.doc for window in done.windows]
        np.add.at(counts, documents, predicted.sum(1).numpy())
        np.add.at(nats, documents, done.losses.double().sum(1).numpy())
    return counts, nats


if __name__ == "__main__":
    main()
