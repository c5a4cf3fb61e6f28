"""Is information between entries and tokens right where there is some? Planted values of 0 to 6 nats, the demo's size.

    python benchmarks/information.py

Every token type has private entries. A selection takes one of them with some probability, and otherwise any entry;
types follow Zipf's law. Prints the true information, that counted from one table, the same less its value for shuffled
tokens, and ``memscope.census.information`` with its standard error.
"""

import argparse

import numpy as np
from sklearn.metrics import mutual_info_score

from memscope.census.information import HeldOut
from memscope.stats.jackknife import Jackknife

TYPES, ENTRIES, SELECTED = 6400, 16384, 16
PLANTED = ((0.0, 8), (0.2, 16), (0.5, 64), (0.5, 8), (0.8, 64), (0.9, 16), (0.98, 8), (1.0, 4))
"""Probability that a selection takes a private entry of its token, and the number of such entries."""


def main() -> None:
    """Parse, simulate, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, action="append", help="size of the text; may be repeated")
    sizes = parser.parse_args().tokens or [23_000, 77_000]
    print(f"{'tokens':>8}{'own':>6}{'of':>5}{'true':>8}{'counted':>9}{'less shuffled':>15}{'held out':>10}{'se':>8}")
    for tokens in sizes:
        for private, count in PLANTED:
            rng = np.random.default_rng(0)
            token, entry, true = plant(tokens, private, count, rng)
            label = np.repeat(token, SELECTED)
            counted = mutual_info_score(label, entry.ravel())
            shuffled = mutual_info_score(np.repeat(rng.permutation(token), SELECTED), entry.ravel())
            nats, error = measure(token, entry, 20)
            print(f"{tokens:8,}{private:6.2f}{count:5}{true:8.3f}{counted:9.3f}", end="")
            print(f"{counted - shuffled:15.3f}{nats:10.3f}{error:8.3f}", flush=True)


def plant(
    tokens: int, private: float, count: int, rng: np.random.Generator, types: int = TYPES, entries: int = ENTRIES
) -> tuple[np.ndarray, np.ndarray, float]:
    """Tokens ``[token]``, entries ``[token, SELECTED]`` and the information between them in nats."""
    frequency, share = (
        1 / np.arange(first, n + first) ** power for first, n, power in ((1, types, 1), (10, entries, 0.6))
    )
    frequency, share = frequency / frequency.sum(), rng.permutation(share / share.sum())
    mine = rng.choice(entries, (types, count), p=share)
    token = rng.choice(types, tokens, p=frequency)
    entry = mine[token[:, None], rng.integers(0, count, (tokens, SELECTED))]
    any_entry = rng.random(entry.shape) >= private
    entry[any_entry] = rng.choice(entries, any_entry.sum(), p=share)
    overall = (1 - private) * share
    np.add.at(overall, mine.ravel(), np.repeat(frequency, count) * private / count)
    true = 0.0
    for kind, weight in enumerate(frequency):
        p = (1 - private) * share
        np.add.at(p, mine[kind], private / count)
        used = p > 0
        true += weight * float((p[used] * np.log(p[used] / overall[used])).sum())
    return token, entry, true


def measure(token: np.ndarray, entry: np.ndarray, folds: int) -> tuple[float, float]:
    """``HeldOut.information`` with blocks of tokens for documents."""
    fold = np.arange(len(token)) * folds // len(token)
    held_out = HeldOut(token, fold, folds)
    order = np.argsort(entry.ravel(), kind="stable")
    held_out.add(entry.ravel()[order].astype(np.int64), order // entry.shape[1])
    nats, error = held_out.information(Jackknife(np.bincount(fold)))
    assert nats is not None and error is not None
    return nats, error


if __name__ == "__main__":
    main()
