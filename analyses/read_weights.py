"""How does the cross-attention weigh the selected entries: does it select again, and do its heads agree?

    python analyses/read_weights.py runs/demo recordings/demo --out reports/demo

A read weight is attention times gate score. Per layer, over sampled text:

    effective            entries a token effectively reads, exp(entropy of read shares), mean over heads' weights
    effective_per_head   the same within single read heads
    attention_share      share of the variance of log |read weight| within a token that is the attention's, not the
                         gate's: covariance of log |attention| with log |read weight| over the latter's variance
    negative             share of read weights below zero, possible with a GELU read
    head_agreement       rank correlation of two heads' weights over a token's entries, mean over pairs of heads

From the recording, over all its text: unread selections and the rank correlation of gate score and attention. Prints
how many of the K selected entries are effectively read.
"""

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from study import batches, command_line, run_script, sample_windows, save
from torch import Tensor

from memscope.base.words import span
from memscope.query.recording import Recording
from memscope.report.plots.style import layer_colors, layer_legend, legend, panels
from memscope.run.adapters.own import capture_memory
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.run.subject import Selected

_SMALLEST = 1e-12
_FORMS = {
    **dict.fromkeys(("effective", "effective_per_head"), ".1f"),
    **dict.fromkeys(("attention_share", "negative"), ".0%"),
    **dict.fromkeys(("head_agreement", "gate_attention_rank_correlation"), "+.2f"),
    "unread_share": ".1%",
}


def measure(head_weights: Tensor, gate: Tensor) -> dict[str, float]:
    """Sums over tokens of the numbers above; tokens that read nothing in some head are left out.

    Args:
        head_weights: read weights of entries, ``[token, head, K]``.
        gate: gate scores, ``[token, K]``.
    """
    alive = (head_weights.abs().sum(-1) > _SMALLEST).all(-1) & (gate > 0).all(-1)
    weights, gate = head_weights[alive].double(), gate[alive].double()
    log_read = weights.abs().clamp(min=_SMALLEST).log()
    log_gate = gate.clamp(min=_SMALLEST).log()[:, None].expand_as(log_read)
    log_read, log_gate = (values - values.mean(-1, keepdim=True) for values in (log_read, log_gate))
    return {
        "tokens": len(weights),
        "effective": float(_effective(weights.mean(1)).sum()),
        "effective_per_head": float(_effective(weights).mean(-1).sum()),
        "read_variance": float(log_read.square().sum()),
        "attention_covariance": float(((log_read - log_gate) * log_read).sum()),
        "negative": float((weights < 0).double().mean((1, 2)).sum()),
        "head_agreement": float(_agreement(weights).sum()),
    }


def _effective(weights: Tensor) -> Tensor:
    """exp(entropy of shares) over the last axis."""
    share = weights.abs() / weights.abs().sum(-1, keepdim=True).clamp(min=_SMALLEST)
    effective: Tensor = torch.special.entr(share).sum(-1).exp()
    return effective


def _agreement(weights: Tensor) -> Tensor:
    """Mean Spearman correlation of pairs of heads over the K entries, ``[token]``; NaN with one head or one entry."""
    ranks = weights.argsort(-1).argsort(-1).double()
    ranks = torch.nn.functional.normalize(ranks - ranks.mean(-1, keepdim=True), dim=-1)
    heads = weights.shape[1]
    together = (ranks @ ranks.transpose(1, 2)).sum((1, 2)) - heads  # the diagonal is 1
    return together / (heads * (heads - 1)) if heads > 1 and weights.shape[2] > 1 else together * torch.nan


@torch.no_grad()
def study(run: LoadedRun, recording: Recording, tokens: int) -> pd.DataFrame:
    """One row per layer; columns as in the module's docstring."""
    sums: dict[int, list[dict[str, float]]] = {layer: [] for layer in run.config.model.memory_layers}
    with capture_memory(run.model) as captured:
        for _, batch, lengths in batches(sample_windows(recording, tokens), 8):
            run.model(torch.from_numpy(batch))
            real = torch.arange(batch.shape[1]) < torch.from_numpy(lengths)[:, None]
            for layer, capture in captured.items():
                sums[layer].append(_measure_layer(capture, real))
    total = pd.DataFrame({layer: pd.DataFrame(rows).sum() for layer, rows in sums.items()}).T
    table = pd.DataFrame({"layer": total.index, "tokens": total["tokens"].to_numpy().astype(int)})
    for name in ("effective", "effective_per_head", "negative", "head_agreement"):
        table[name] = (total[name] / total["tokens"]).to_numpy()
    table["attention_share"] = (total["attention_covariance"] / total["read_variance"]).to_numpy()
    recorded = recording.reading_metrics().set_index("layer")
    for name in ("unread_share", "gate_attention_rank_correlation", "effective_entries_read", "read_top_share"):
        table[name] = table["layer"].map(recorded[name])
    return table


def _measure_layer(capture: Selected, real: Tensor) -> dict[str, float]:
    assert capture.gate_scores is not None
    return measure(capture.head_weights[real], capture.gate_scores[real])


def draw(recording: Recording, table: pd.DataFrame) -> Figure:
    """Read shares of selections, from the recording; entries effectively read, by layer."""
    figure, [shares, effective] = panels(2)
    layers = recording.info.layers
    colors = layer_colors(len(layers), dark=False)
    for axis, counts in enumerate(recording.reading_metrics()["read_share_histogram"]):
        density = np.array(counts) / sum(counts) * len(counts)
        shares.stairs(density, np.linspace(0, 1, len(counts) + 1), color=colors[axis])
    shares.axvline(1 / recording.info.selected, linestyle=":", color="grey")
    shares.set(
        xlabel=f"share of a token's read (dotted: 1 / {recording.info.selected})", ylabel="density", yscale="log"
    )
    layer_legend(shares, layers, dark=False)
    effective.plot(table["layer"], table["effective"], marker="o", label="mean over heads")
    effective.plot(table["layer"], table["effective_per_head"], marker="s", label="within a head")
    effective.axhline(recording.info.selected, linestyle=":", color="grey")
    effective.set(xlabel="layer", ylabel="entries effectively read", ylim=(0, None), xticks=table["layer"])
    legend(effective)
    return figure


def main() -> None:
    """Parse, compute, print, save."""
    parser = command_line(__doc__, "run", "recording")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to run for what heads do")
    arguments = parser.parse_args()
    recording = Recording(arguments.recording)
    table = study(load_run(arguments.run), recording, arguments.tokens)
    ends = {name: span(table[name].tolist(), form) for name, form in _FORMS.items()}
    print(
        f"entries effectively read of {recording.info.selected} selected: {ends['effective']} over {len(table)} "
        f"layers, {ends['effective_per_head']} within one of {recording.info.sites[0].read_heads} heads"
    )
    print(
        f"  of the variance of log read weights within a token {ends['attention_share']} is the attention's, the rest "
        f"the gate's; heads agree at a rank correlation of {ends['head_agreement']}; {ends['negative']} of weights are "
        "negative"
    )
    print(
        f"  over the whole recording {ends['unread_share']} of selections stay unread; gate score and attention agree "
        f"at a rank correlation of {ends['gate_attention_rank_correlation']}"
    )
    save(arguments.out, "read_weights", table, draw(recording, table))


if __name__ == "__main__":
    run_script(main)
