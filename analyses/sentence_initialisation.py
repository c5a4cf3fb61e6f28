"""Does it help to start entries from sentences? Compares runs that differ only in the start of their bank.

    python analyses/sentence_initialisation.py runs/trex-0 runs/trex-1 runs/random-0 runs/random-1 --out reports/init
    python analyses/sentence_initialisation.py --shuffle sentences.json --out data      # the control: data/shuffled.txt

Runs are grouped by ``database_init_path``: an arm is a file of sentences, or random vectors (and random vectors that
start alike, by ``entry_cosine``); several seeds of one arm are told apart by ``seed``. In the control every sentence
keeps its length and the file its words, but words are combined at random: a gain there is due to the embeddings of
words, not to the meaning of sentences. Per arm: validation loss at the end and on the way, entries used, and how far
entries drifted. Prints the loss of every arm against random vectors, with a 95% interval over seeds (Welch) where both
arms have at least two.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from safetensors.torch import load_file
from scipy.stats import ttest_ind
from study import command_line, run_script, save

from memscope.base.errors import InputError
from memscope.base.files import make_folder, write_text
from memscope.config.load import Config, load_config
from memscope.report.plots.style import PERCENT, legend, panels
from memscope.run.bank_init import load_bank_init
from memscope.run.checkpoint import MODEL
from memscope.run.metrics_log import read_metrics
from memscope.text.sentences import read_sentences

RANDOM = "random vectors"
_TOLD_APART = ("database_init_path", "entry_cosine")


def shuffle_words(sentences: list[str], seed: int = 0) -> list[str]:
    """Deal the words of all sentences out at random; each sentence keeps its number of words."""
    words = [sentence.split() for sentence in sentences]
    dealt = iter(np.random.default_rng(seed).permutation([word for sentence in words for word in sentence]).tolist())
    return [" ".join(next(dealt) for _ in sentence) for sentence in words]


def describe_run(path: Path) -> pd.DataFrame:
    """Evaluations during a run: ``run arm seed step loss used relative_perplexity drift``.

    ``used`` and ``relative_perplexity`` are means over memory layers; ``drift`` is the median over all entries of 1 -
    cosine with their start, at the last step only.
    """
    config = load_config(path / "config.yaml")
    lines = [line for line in read_metrics(path / "metrics.jsonl") if line["kind"] == "eval"]
    if not lines:
        raise InputError(f"{path}: no evaluations in metrics.jsonl; train with an eval_interval")
    table = pd.DataFrame(
        {
            "run": path.name,
            "arm": arm_name(config),
            "seed": config.train.seed,
            "step": [line["step"] for line in lines],
            "loss": [line["loss"] for line in lines],
            "used": [_layer_mean(line, "coverage") for line in lines],
            "relative_perplexity": [_layer_mean(line, "relative_perplexity") for line in lines],
            "drift": np.nan,
        }
    )
    table.loc[table.index[-1], "drift"] = median_drift(path)
    return table


def arm_name(config: Config) -> str:
    """The file that the bank's sentences came from, or random vectors, with the cosine between them if it is set."""
    source, cosine = config.memory.database_init_path, config.memory.entry_cosine
    return Path(source).name if source else f"{RANDOM} of cosine {cosine:g}" if cosine else RANDOM


def median_drift(run: Path) -> float:
    """Median over entries of 1 - cosine between an entry's start and the run's newest model, mean over slots."""
    before, now = load_bank_init(run).entries, load_file(run / MODEL)["bank.entries"].float().numpy()
    cosine = (before * now).sum(-1) / np.maximum(np.linalg.norm(before, axis=-1) * np.linalg.norm(now, axis=-1), 1e-12)
    return float(np.median(1 - cosine.mean(-1)))


def _layer_mean(line: dict[str, Any], name: str) -> float:
    values = [value for key, value in line.items() if key.startswith("layer_") and key.endswith(f"/{name}")]
    return float(np.mean(values)) if values else float("nan")


def check_comparable(runs: list[Path]) -> list[str]:
    """Config values in which runs differ beside their start and their seed: what else may be the cause."""
    configs = [load_config(run / "config.yaml").model_dump(mode="json") for run in runs]
    left_out = {("memory", key) for key in _TOLD_APART} | {
        ("train", "seed"),
        ("data", "cache_dir"),
        ("train", "tracker"),
    }
    return [
        f"{section}.{key}"
        for section, values in configs[0].items()
        for key in values
        if (section, key) not in left_out and any(config[section][key] != values[key] for config in configs)
    ]


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """One row per arm at its last step: ``arm runs loss difference low high used drift``.

    ``difference`` is to the arm of random vectors, NaN without one; the interval is Welch's.
    """
    last = table.loc[table.groupby("run")["step"].idxmax()]
    base = last[last["arm"] == RANDOM]["loss"].to_numpy()
    rows = []
    for arm, runs in last.groupby("arm"):
        losses = runs["loss"].to_numpy()
        low = high = float("nan")
        if arm != RANDOM and min(len(losses), len(base)) > 1:
            low, high = ttest_ind(losses, base, equal_var=False).confidence_interval()
        rows.append(
            {
                "arm": arm,
                "runs": len(runs),
                "step": int(runs["step"].max()),
                "loss": losses.mean(),
                "difference": losses.mean() - base.mean() if len(base) else float("nan"),
                "low": low,
                "high": high,
                "used": runs["used"].mean(),
                "drift": runs["drift"].mean(),
            }
        )
    return pd.DataFrame(rows).sort_values("loss", ignore_index=True)


def draw(table: pd.DataFrame) -> Figure:
    """Loss and share of entries used on the way, a line per run, a colour per arm."""
    figure, axes = panels(2)
    colors = {arm: f"C{number}" for number, arm in enumerate(sorted(table["arm"].unique()))}
    for panel, name, label in (
        (axes[0], "loss", "validation loss, nats"),
        (axes[1], "used", "entries used by a layer"),
    ):
        for number, ((arm, _), rows) in enumerate(table.groupby(["arm", "run"])):
            first = number == 0 or arm not in panel.get_legend_handles_labels()[1]
            panel.plot(rows["step"], rows[name], color=colors[arm], marker=".", label=arm if first else None)
        panel.set(xlabel="step", ylabel=label)
        legend(panel)
    axes[1].yaxis.set_major_formatter(PERCENT)
    return figure


def main() -> None:
    """Parse, compute, print, save; or write the control's sentences."""
    parser = command_line(__doc__)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--shuffle", type=Path, help="only write the control of a file of sentences")
    arguments = parser.parse_args()
    if arguments.shuffle:
        shuffled = shuffle_words([sentence.text for sentence in read_sentences(arguments.shuffle)])
        write_text(make_folder(arguments.out) / "shuffled.txt", "\n".join(shuffled) + "\n")
        print(f"{len(shuffled):,} sentences of shuffled words in {arguments.out / 'shuffled.txt'}")
        return
    if not arguments.runs:
        parser.error("name at least one run")
    table = pd.concat([describe_run(run) for run in arguments.runs], ignore_index=True)
    summary = compare(table)
    arms = [row for row in summary.to_dict("records") if row["arm"] != RANDOM]
    for row in arms:
        against = (
            "no run starts from random vectors"
            if np.isnan(row["difference"])
            else f"{row['difference']:+.4f} against random vectors"
            + ("" if np.isnan(row["low"]) else f" ({row['low']:+.4f} to {row['high']:+.4f})")
        )
        print(f"{row['arm']}: loss {row['loss']:.4f} after {row['step']:,} steps, {against}; runs: {row['runs']}")
    if differing := check_comparable(arguments.runs):
        print(f"  not comparable as they stand: the runs also differ in {', '.join(differing)}")
    print(summary.to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    save(arguments.out, "sentence_initialisation", table, draw(table))


if __name__ == "__main__":
    run_script(main)
