"""How often do 95% intervals of few and unequal documents hold the truth, and are standard errors right?

    python benchmarks/intervals.py

Simulates corpora whose documents differ, and prints how often an interval of a mean, of a lift's log odds and of KL to
uniform contains the expectation over such corpora: by the plain jackknife with Student's t, and by
``memscope.stats.jackknife``; then standard errors over the true spread, and the rise of KL to uniform by few documents.
"""

import argparse

import numpy as np
from scipy.stats import t

from memscope.stats.jackknife import Jackknife
from memscope.stats.usage import jackknife_errors, usage_metrics

DEMO = np.array([9900, 17000, 2500, 8600, 7500, 17900, 1000, 5000, 2800, 1500, 1800, 800])
"""Tokens of the 12 documents that the demo records, rounded."""
LENGTHS = {
    "demo's 12": DEMO,
    "one of 70%": np.array([53_400, *[2_080] * 11]),
    "20 equal": np.full(20, 3_800),
}
_ENTRIES, _SELECTED = 1024, 4


def main() -> None:
    """Parse, simulate, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--corpora", type=int, default=400, help="simulated corpora for KL to uniform; means get 20 times as many"
    )
    corpora = parser.parse_args().corpora
    print(f"{'':44}{'plain, t':>12}{'memscope':>12}{'error/spread':>14}")
    for name, lengths in LENGTHS.items():
        rng = np.random.default_rng(0)
        for label, within in (("mean, documents differ", 0.0), ("mean, tokens differ as much", 50.0)):
            shape = (len(lengths), 20 * corpora)
            means = rng.normal(0, 1, shape) + rng.normal(0, within, shape) / np.sqrt(lengths)[:, None]
            _line(name, label, means * lengths[:, None], lengths, None)
        share = rng.beta(2, 18, (len(lengths), 20 * corpora))
        _line(name, "log odds of a label on 10%", share * lengths[:, None], lengths, np.log(1 / 9))
        _kl(name, lengths, corpora, rng)


def _line(name: str, label: str, sums: np.ndarray, lengths: np.ndarray, log_odds: float | None) -> None:
    """Coverage for sums ``[document, corpus]``; of log odds if their truth is given, else of a mean of 0."""

    def number(total: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        made: np.ndarray = total / tokens if log_odds is None else np.log(total / (tokens - total))
        return made

    spread, truth = Jackknife(lengths), log_odds or 0.0
    value = number(sums.sum(0), np.array(lengths.sum()))
    left = number(spread.without(sums), spread.without(lengths)[:, None])
    n = len(lengths)
    plain = np.sqrt((n - 1) / n * ((left - left.mean(0)) ** 2).sum(0))
    errors = spread.errors(value, left)
    held = [np.mean(np.abs(value - truth) <= half) for half in (t.ppf(0.975, n - 1) * plain, spread.critical * errors)]
    print(f"{name + ': ' + label:44}{held[0]:12.3f}{held[1]:12.3f}{errors.mean() / value.std():14.2f}")


def _kl(name: str, lengths: np.ndarray, corpora: int, rng: np.random.Generator) -> None:
    source = 1 / np.arange(1, _ENTRIES + 1)
    source /= source.sum()
    spread, kl, metrics, plain, n = Jackknife(lengths), [], [], [], len(lengths)
    for _ in range(corpora):
        taste = rng.gamma(source * 1000, size=(n, _ENTRIES)) + 1e-300
        folds = np.stack(
            [rng.multinomial(size * _SELECTED, p / p.sum()) for size, p in zip(lengths, taste, strict=True)]
        )
        kl.append(_kl_of(folds.sum(0)))
        metrics.append(jackknife_errors(folds, spread))
        left = np.array([_kl_of(usage) for usage in spread.without(folds)])
        plain.append(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum()))
    value, errors = np.array(kl), np.array([sample["kl_to_uniform_se"] for sample in metrics])
    off = np.abs(value - value.mean())
    held = np.mean(off <= t.ppf(0.975, n - 1) * np.array(plain)), np.mean(off <= spread.critical * errors)
    print(f"{name + ': KL to uniform':44}{held[0]:12.3f}{held[1]:12.3f}{errors.mean() / value.std():14.2f}")
    more = value.mean() - (np.log(_ENTRIES) + (source * np.log(source)).sum())
    few, even = (
        np.mean([sample["kl_to_uniform_few"] for sample in metrics]),
        (_ENTRIES - 1) / (2 * lengths.sum() * _SELECTED),
    )
    print(f"    few documents add {more:.4f} nats; estimated {few:.4f}; independent selections would add {even:.4f}")


def _kl_of(counts: np.ndarray) -> float:
    return usage_metrics(counts, int(counts.sum())).kl_to_uniform


if __name__ == "__main__":
    main()
