"""Does a memory reach the loss of the feed-forward layers it replaces, at equal tokens, data order and seeds?

    python benchmarks/quality.py --train pretrain.jsonl --valid valid.jsonl --tokenizer tokenizer.json \\
        --out reports/quality

Trains every variant with every seed by ``memscope train`` at dim 256, 4 layers, 16 x 256 tokens a step; runs that
``--out`` holds already are not trained again, so seeds and variants can be added. Writes ``quality.csv`` and a figure
of the validation losses, and prints the table. ``--set`` changes all variants; ``--config configs/memory.yaml --set
batch_size=8`` trains them at the founding experiment's sizes.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from memscope.base.files import atomic_path, read_json, write_csv
from memscope.config.load import load_config
from memscope.model.transformer import MemoryTransformer
from memscope.report.plots.style import panel
from memscope.run.metrics_log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = ["gate=full", "gate_heads=1", "num_selected=8", "score_fn=softmax", "read_fn=softmax", "read_norm=none"]
EXPERIMENT += ["slot_proj=true", "read_slices=1", "read_gain=1", "read_heads=0", "output_gate=false"]
EXPERIMENT += ["knowledge_dim=128", "query_dim=0", "lazy_bank=false", "balance_bias=0", "entry_cosine=0"]
EXPERIMENT += ["memory_lr_scale=1", "learning_rate=1e-3", "normalize_scores=false", "token_shift=false"]
STARTING_APART = ["entry_cosine=0", "balance_bias=0.002"]  # was run with 0.001 at every step, which moves as far
SHORT_WARMUP = ["learning_rate=1e-3", "warmup_iters=20"]
EARLIER = ["gate_heads=4", "knowledge_dim=64", "read_heads=32", "read_slices=4", "read_gain=1", "output_gate=true"]
EARLIER += ["normalize_scores=false", "token_shift=false", *STARTING_APART, *SHORT_WARMUP]
SLIM = ["block=both", "hidden_dim=376"]
VARIANTS = {
    "FFN": ["block=ffn"],
    "memory": [],
    "memory beside a slim FFN": SLIM,
    "experiment's design": EXPERIMENT,
    "FFN, hashed bigram table": ["block=ffn", "bigram_rows=6151"],  # as many numbers as the bank of memory_small.yaml
    "memory of hashed n-grams in the first layer, FFN above": ["block=[ngram,ffn,ffn,ffn]"],
    "memory, n-grams hashed in the first layer": ["block=[ngram,memory,memory,memory]"],
    "memory, FFN in the first layer": ["block=[ffn,memory,memory,memory]"],
    "memory, entries start apart": ["entry_cosine=0"],
    "memory, entries start apart, slow bias": STARTING_APART,
    "memory, no token shift": [*STARTING_APART, "token_shift=false"],
    "memory, no token shift, scores not normalised": [*STARTING_APART, "token_shift=false", "normalize_scores=false"],
    "memory, 32 read heads of 4 slices": ["knowledge_dim=64", "read_heads=32", "read_slices=4", "read_gain=2"],
    "FFN, short warm-up": ["block=ffn", *SHORT_WARMUP],
    "earlier": EARLIER,
    "earlier, 2 x 8 selected": [*EARLIER, "gate_heads=2"],
    "earlier, half the read heads": [*EARLIER, "read_heads=16"],
    "earlier, half the read heads, half as wide": [*EARLIER, "read_slices=8"],
    "earlier, slots whole": [*EARLIER, "read_heads=8", "read_slices=1"],
    "earlier, slots whole, 4 x 16 selected": [*EARLIER, "read_heads=8", "read_slices=1", "num_selected=16"],
    "earlier, no output gate": [*EARLIER, "output_gate=false"],
    "earlier, no balance bias": [*EARLIER, "balance_bias=0"],
    "earlier, read gain 2": [*EARLIER, "read_gain=2"],
    "earlier, a bank for each layer": [*EARLIER, "bank_groups=4"],
    "earlier, a bank for each layer, as many entries each": [*EARLIER, "bank_groups=4", "knowledge_num=65536"],
    "earlier, softmax gate": [*EARLIER, "score_fn=softmax"],
    "earlier, softmax read": [*EARLIER, "read_fn=softmax"],
    "earlier, base learning rate": [*EARLIER, "memory_lr_scale=1"],
}
"""Changes to the config by name; ``EARLIER`` is the memory that docs/explanation/memory.md varies."""


def main() -> None:
    """Parse, train what is missing, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", required=True, help="training corpus, JSON lines")
    parser.add_argument("--valid", required=True, help="validation corpus")
    parser.add_argument("--tokenizer", required=True, help="tokenizer.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "memory_small.yaml")
    parser.add_argument("--variant", action="append", metavar="NAME", help="only these; default: the first four")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change all variants")
    arguments = parser.parse_args()
    paths = {"train_path": arguments.train, "valid_path": arguments.valid, "tokenizer_path": arguments.tokenizer}
    common = [f"{key}={value}" for key, value in paths.items()]
    common += [f"steps={arguments.steps}", f"eval_interval={max(1, arguments.steps // 12)}", "save_interval=1000000"]
    rows = []
    for seed in range(arguments.seeds):  # all variants of a seed first: a run cut short still compares them
        for name in arguments.variant or list(VARIANTS)[:4]:
            changes = [*common, f"seed={seed}", *VARIANTS[name], *arguments.set]
            run = arguments.out / "runs" / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            if not (run / "run.json").is_file():
                _train(arguments.config, run, changes)
            rows.append({"variant": name, "seed": seed, **_result(run)})
    frame = pd.DataFrame(rows)
    write_csv(arguments.out / "quality.csv", frame)
    _draw(frame, arguments.out)
    print(_table(frame).to_string(float_format=lambda value: f"{value:.4g}"))


def _train(config: Path, run: Path, changes: list[str]) -> None:
    settings = [part for change in changes for part in ("--set", change)]
    resume = ["--resume"] if (run / "config.yaml").is_file() else []
    command = [sys.executable, "-m", "memscope", "train", str(config)]
    subprocess.run([*command, "--out", str(run), *settings, *resume], check=True, stdout=subprocess.DEVNULL)


def _result(run: Path) -> dict[str, float]:
    """Numbers of a run: its losses, speed and sizes, and the evenness of its bank on validation, mean over layers."""
    summary = read_json(run / "run.json")
    config = load_config(run / "config.yaml")
    model = MemoryTransformer(config)
    last = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "eval"][-1]
    evenness: dict[str, float] = {}
    for metric in ("coverage", "kl_to_uniform"):
        values = [value for name, value in last.items() if name.endswith(f"/{metric}")]
        evenness |= {metric: float(np.mean(values))} if values else {}
    return {
        "valid_loss": summary["valid_loss"],
        "tokens_per_second": summary["tokens_per_second"],
        "parameters": summary["parameters"],
        "parameters_per_token": model.count_used_parameters(),
        **evenness,
    }


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, the spread of losses, and the gap to the FFN of the same seed in percent."""
    baseline = frame[frame["variant"] == "FFN"].set_index("seed")["valid_loss"]
    frame = frame.assign(gap=100 * (frame["valid_loss"] / frame["seed"].map(baseline) - 1))
    grouped = frame.groupby("variant", sort=False)
    table = grouped.mean(numeric_only=True).drop(columns="seed")
    table.insert(1, "loss_sd", grouped["valid_loss"].std())
    return table.assign(gap_sd=grouped["gap"].std(), seeds=grouped.size())


def _draw(frame: pd.DataFrame, out: Path) -> None:
    figure, axes = panel()
    for name in frame["variant"].unique():
        curves = []
        for seed in frame.loc[frame["variant"] == name, "seed"]:
            run = out / "runs" / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "eval"]
            config = load_config(run / "config.yaml")
            step_tokens = config.train.batch_size * config.train.accumulation_steps * config.model.max_seq_len
            curves.append([(line["step"] * step_tokens / 1e6, line["loss"]) for line in lines[1:]])
        mean = np.mean(curves, axis=0)
        axes.plot(mean[:, 0], mean[:, 1], label=name, linewidth=1.5)
    axes.set_xlabel("training tokens, millions")
    axes.set_ylabel("validation loss, nats per token")
    axes.legend(frameon=False, fontsize=8)
    with atomic_path(out / "quality.png") as temporary:
        figure.savefig(temporary, dpi=150, format="png")


if __name__ == "__main__":
    main()
