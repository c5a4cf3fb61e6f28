"""Why does the gate select so unevenly: the direction of its queries, their spread, or its keys?

    python analyses/gate_selection_bias.py runs/demo recordings/demo --out reports/demo

The same trained keys get other queries, and KL to uniform of the selections is compared:

    as trained    queries of sampled text
    centred       minus their mean, which removes the common part of all queries
    whitened      centred, with equal variance in every direction
    random        Gaussian queries of the same length: the KL is then due to the keys alone

A KL above that of even selection at the same number of selections is bias. Prints the share of the bias that whitening
removes, beside the number of directions that queries use (participation ratio: (sum v)^2 / sum v^2 over the variances v
of principal components) and numbers of the recording: tests of init sentences, information about tokens.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from study import batches, command_line, run_script, sample_windows, save
from torch import Tensor

from memscope.base.words import span
from memscope.query.recording import Recording
from memscope.report.plots.style import legend, panel
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.stats.usage import usage_metrics

VARIANTS = ("as trained", "centred", "whitened", "random")


@torch.no_grad()
def collect_queries(run: LoadedRun, windows: list[np.ndarray]) -> dict[int, Tensor]:
    """Gate queries of every token, by memory layer, ``[token, head, query]``."""
    queries: dict[int, list[Tensor]] = {layer: [] for layer in run.config.model.memory_layers}
    names = [f"blocks.{layer}.memory.hook_query" for layer in queries]
    for _, tokens, lengths in batches(windows, 8):
        _, cache = run.model.run_with_cache(torch.from_numpy(tokens), names_filter=names)
        real = torch.arange(tokens.shape[1]) < torch.from_numpy(lengths)[:, None]
        for layer, name in zip(queries, names, strict=True):
            queries[layer].append(cache[name][real])
    return {layer: torch.cat(parts) for layer, parts in queries.items()}


def vary(queries: Tensor, variant: str, seed: int = 0) -> Tensor:
    """Queries ``[token, head, query]`` of a variant, with the same mean length per head."""
    if variant == "as trained":
        return queries
    centred = queries - queries.mean(0)
    if variant == "whitened":
        return torch.stack([_whiten(head) for head in centred.unbind(1)], dim=1)
    if variant == "random":
        noise = torch.randn(queries.shape, generator=torch.Generator().manual_seed(seed))
        return noise * (centred.square().mean((0, 2), keepdim=True)).sqrt()
    return centred


def _whiten(centred: Tensor) -> Tensor:
    """Linear map that gives ``[token, query]`` the same variance in every direction, and the total it had."""
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    scale = (values.mean() / values.clamp(min=1e-6 * values.max())).sqrt()
    whitened: Tensor = centred @ vectors * scale @ vectors.T
    return whitened


def count_directions(queries: Tensor) -> float:
    """Participation ratio of the principal components of ``[token, head, query]``, mean over heads; at most query."""
    centred = (queries - queries.mean(0)).unbind(1)
    variances = [torch.linalg.eigvalsh(head.T @ head) for head in centred]
    return float(np.mean([float(v.sum() ** 2 / v.square().sum()) for v in variances]))


@torch.no_grad()
def select_kl(queries: Tensor, select: Callable[[Tensor], Tensor], n_entries: int, distinct: int) -> dict[str, float]:
    """How evenly ``select`` chooses for ``queries``: KL to uniform in nats, its even twin, coverage.

    Args:
        queries: ``[token, head, query]``.
        select: the entries that queries select, ``distinct`` of each head.
        n_entries: N.
        distinct: entries of one head for a token, all different.
    """
    chosen = [select(chunk).flatten() for chunk in queries.split(2048)]
    counts = np.bincount(torch.cat(chosen).numpy(), minlength=n_entries)
    metrics = usage_metrics(counts, int(counts.sum()), distinct)
    return {"kl": metrics.kl_to_uniform, "even_kl": metrics.even_kl_to_uniform, "coverage": metrics.coverage}


def study(run: LoadedRun, recording: Recording, tokens: int) -> pd.DataFrame:
    """One row per layer and variant: ``layer variant kl even_kl coverage directions beyond_even``."""
    queries = collect_queries(run, sample_windows(recording, tokens))
    rows = []
    for layer, layer_queries in queries.items():
        select = partial(_select, run, layer)
        directions, site = count_directions(layer_queries), recording.info.site(layer)
        for variant in VARIANTS:
            metrics = select_kl(vary(layer_queries, variant), select, site.entries, site.distinct)
            rows.append({"layer": layer, "variant": variant, **metrics, "directions": directions})
    table = pd.DataFrame(rows)
    return table.assign(beyond_even=table["kl"] - table["even_kl"])


def _select(run: LoadedRun, layer: int, queries: Tensor) -> Tensor:
    gate = run.model.memory_layer(layer).gate
    return gate.select(queries[None]).indices - gate.first


def draw(table: pd.DataFrame) -> Figure:
    """KL beyond even selection, layers along x, one line per variant."""
    figure, axes = panel()
    for variant in VARIANTS:
        rows = table[table["variant"] == variant]
        axes.plot(rows["layer"], rows["beyond_even"], marker="o", label=variant)
    axes.set(xlabel="layer", ylabel="KL to uniform beyond even, nats", ylim=(0, None))
    axes.set_xticks(sorted(table["layer"].unique()))
    legend(axes)
    return figure


def main() -> None:
    """Parse, compute, print, save."""
    parser = command_line(__doc__, "run", "recording")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to ask the gate about")
    arguments = parser.parse_args()
    recording = Recording(arguments.recording)
    run = load_run(arguments.run)
    table = study(run, recording, arguments.tokens)
    wide = table.pivot(index="layer", columns="variant", values="beyond_even")
    queries = run.config.memory.key_dim
    gone = {name: span((1 - wide[name] / wide["as trained"]).tolist(), ".0%") for name in ("whitened", "centred")}
    print(
        f"share of the bias that goes when queries spread alike in all directions: {gone['whitened']} over {len(wide)} "
        f"layers; with the mean query alone: {gone['centred']}; queries use "
        f"{span(table['directions'].tolist(), '.1f')} of {queries} directions"
    )
    for variant in VARIANTS:
        print(f"  {variant}: KL to uniform beyond even {span(wide[variant].tolist(), '.2f')} nats")
    layers, preferences = recording.layer_metrics(), recording.preferences()
    nats = [layer.profiles.information.token_held_out for layer in recording.census.layers]
    by_share, by_rank = (int(preferences[name].sum()) for name in ("significant", "rank_significant"))
    print(
        f"  the recording: half of a layer's selections on {span(layers['top50'].tolist(), ',')} of "
        f"{recording.info.sites[0].entries:,} entries; {by_share} and {by_rank} of {len(preferences)} tests of init "
        f"sentences by share and by rank; at least {span(nats, '.2f')} nats of information about the input token"
    )
    save(arguments.out, "gate_selection_bias", table, draw(table))


if __name__ == "__main__":
    run_script(main)
