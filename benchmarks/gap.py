"""How far is one run ahead of another that saw the same batches, along training, and does the lead last?

    python benchmarks/gap.py runs/memory runs/ffn [--tokens-per-step 4096]

Prints both validation losses and their difference at every evaluation, with the use of each memory layer. Between two
evaluations it prints the mean difference of training losses: both runs saw the same tokens at the same step, so most of
what differs from batch to batch cancels. Then it fits that difference to a + b ln(tokens) from ``--from`` steps on, by
least squares over blocks of steps, and says what the line gives at twice and ten times as many tokens: an extension of
a line, no measurement.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from memscope.run.metrics_log import read_metrics

BLOCKS = 20
"""Blocks of steps that the line is fitted to."""


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--from", dest="first", type=int, default=600, help="first step of the fit")
    arguments = parser.parse_args()
    run, baseline = (_lines(path) for path in (arguments.run, arguments.baseline))
    trained = _together(run, baseline, "train")
    print(
        f"{'step':>6}{'M tokens':>10}{'loss':>9}{'baseline':>10}{'gap':>8}   {'trained, nats':<20}coverage by layer, %"
    )
    before = 0
    for step, row in _together(run, baseline, "eval").iterrows():
        between = trained.loc[before + 1 : step, "difference"]
        seen = f"{between.mean():+.4f} +- {between.std() / len(between) ** 0.5:.4f}" if len(between) > 1 else ""
        used = [100 * row[name] for name in sorted(row.index) if name.endswith("/coverage_of_run")]
        print(
            f"{step:>6}{step * arguments.tokens_per_step / 1e6:>10.2f}{row['loss_of_run']:>9.4f}{row['loss']:>10.4f}"
            f"{row['difference'] / row['loss']:>8.2%}   {seen:<20}" + " ".join(f"{value:.0f}" for value in used)
        )
        before = step
    _fit(trained.loc[arguments.first :, "difference"], arguments.tokens_per_step)


def _lines(run: Path) -> pd.DataFrame:
    return pd.DataFrame(read_metrics(run / "metrics.jsonl"))


def _together(run: pd.DataFrame, baseline: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Lines of a kind that both runs have, by step, with the ``difference`` of their losses."""
    one, other = (lines[lines["kind"] == kind].drop_duplicates("step").set_index("step") for lines in (run, baseline))
    joined = other.join(one.add_suffix("_of_run"), how="inner")
    return joined.assign(difference=joined["loss_of_run"] - joined["loss"])


def _fit(difference: pd.Series, tokens_per_step: int) -> None:
    """Print the line through means of blocks of steps, and what it gives further on."""
    blocks = [difference.iloc[places] for places in np.array_split(np.arange(len(difference)), BLOCKS) if len(places)]
    tokens = np.array([block.index.to_numpy().mean() * tokens_per_step for block in blocks])
    means = np.array([block.mean() for block in blocks])
    (slope, start), covariance = np.polyfit(np.log(tokens), means, 1, cov=True)
    print(
        f"\nfrom step {difference.index[0]} on: {start + slope * np.log(tokens[-1]):+.4f} nats at the end of the line, "
    )
    print(f"{slope:+.4f} +- {covariance[0, 0] ** 0.5:.4f} nats for each e-fold of tokens")
    for times in (2, 10):
        at = np.log(times * tokens[-1])
        error = (covariance[0, 0] * at**2 + 2 * covariance[0, 1] * at + covariance[1, 1]) ** 0.5
        print(f"{times:>3} times as many tokens, if the line goes on: {start + slope * at:+.4f} +- {error:.4f} nats")


if __name__ == "__main__":
    main()
