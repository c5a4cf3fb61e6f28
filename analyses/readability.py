"""Is a memory more readable than what it replaces? Entries, neurons and experts on equal text, each by its own tokens.

    python analyses/readability.py recordings/memory recordings/neurons recordings/experts --out reports/readability
    python analyses/readability.py ... --models runs/memory runs/ffn models/olmoe            # and the loss when ablated

Recordings are of the same corpus and tokens, with as many selections a token. Every number is about single entries of a
layer, those that at least ten tokens of each half of the documents select:

- ``readability``: AUROC of a rule made of the entry's typical tokens and pairs in one half of the documents, asked on
  the other half where it fires; ``control`` asks it where another entry of the layer fires;
- ``purity``: share of its firings on its most typical token;
- ``lens``: share of its firings whose true next token is among the ten that its value points to most (logit lens), and
  ``lens_base``, the share of all tokens whose next one is among them;
- ``loss``: rise of the loss in nats at the tokens that select it when it is ablated (random entries of each layer).

Means are over entries, with 95% intervals from drawing entries anew: they are about other entries of the same model on
the same text, not about other models.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from study import command_line, run_script, save

from memscope.base.errors import InputError
from memscope.base.parquet import matrix, read_parquet
from memscope.query.recording import Recording
from memscope.recording.part_reader import read_columns
from memscope.report.plots.style import ORANGE, blue, ink, legend, panels

MEASURES = ("readability", "control", "balanced_accuracy", "purity", "lens", "lens_base", "loss")
DRAWS = 2000
ABLATED, TOKENS = 8, 8192
"""Entries of each layer that are ablated, and tokens of text for each."""


def study(recording: Recording, model: Path | None = None) -> pd.DataFrame:
    """One row per scored entry and layer: ``name kind layer entry tokens`` and ``MEASURES``."""
    table = recording.sql("SELECT * FROM readability")
    table = table.merge(follows(recording), on=["layer", "entry"], how="left")
    kind = {site.layer: site.word(2) for site in recording.info.sites}
    table.insert(0, "name", recording.path.name)
    table.insert(1, "kind", table["layer"].map(kind))
    table["loss"] = np.nan
    if model is not None:
        for (layer, entry), loss in ablated(recording, table, model).items():
            table.loc[(table["layer"] == layer) & (table["entry"] == entry), "loss"] = loss
    return table


def follows(recording: Recording) -> pd.DataFrame:
    """Agreement of the logit lens with what follows: ``layer entry lens lens_base``, for layers that have a lens."""
    info, parts = recording.info, []
    for site in info.sites:
        if "lens" not in site.has:
            continue
        tops = read_parquet(recording.path / "decodings.parquet", ["entry", f"l{site.layer}_top"]).to_pandas()
        tops = tops.dropna()
        named = np.concatenate([np.full(len(row), entry) for entry, row in tops.to_numpy()]).astype(np.int64)
        tokens = np.concatenate(tops[f"l{site.layer}_top"].to_list()).astype(np.int64)
        keys = np.sort(named * info.vocab_size + tokens)
        hits, fired = np.zeros(info.knowledge_num), np.zeros(info.knowledge_num)
        following = np.zeros(info.vocab_size)
        for part in info.parts:
            columns = read_columns(recording.path, info, part, ["token", "doc", f"l{site.layer}_indices"])
            token, doc = columns["token"].to_numpy().astype(np.int64), columns["doc"].to_numpy()
            known = np.append(doc[1:] == doc[:-1], False)
            after = np.append(token[1:], -1)[known]
            entries = matrix(columns[f"l{site.layer}_indices"]).astype(np.int64)[known]
            flat, of_row = entries.ravel(), np.repeat(after, entries.shape[1])
            flat, of_row = flat[flat >= 0], of_row[flat >= 0]
            wanted = flat * info.vocab_size + of_row
            place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
            hits += np.bincount(flat[keys[place] == wanted], minlength=info.knowledge_num)
            fired += np.bincount(flat, minlength=info.knowledge_num)
            following += np.bincount(after, minlength=info.vocab_size)
        base = np.bincount(named, following[tokens] / max(following.sum(), 1), info.knowledge_num)
        entry = np.flatnonzero((fired > 0) & np.isin(np.arange(info.knowledge_num), named))
        share = hits[entry] / fired[entry]
        parts.append(pd.DataFrame({"layer": site.layer, "entry": entry, "lens": share, "lens_base": base[entry]}))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["layer", "entry", "lens", "lens_base"])


def ablated(recording: Recording, table: pd.DataFrame, model: Path) -> dict[tuple[int, int], float]:
    """Rise of the loss at the tokens that select an entry when it is ablated, for random entries of each layer."""
    from memscope.causal.ablation import recorded_corpus, spread_windows
    from memscope.causal.effects import Trial, measure_effects
    from memscope.causal.selections import ablate
    from memscope.run.adapters.load import open_subject

    subject = open_subject(model, neurons=_neurons(recording))
    if subject.fingerprint != recording.info.fingerprint:
        raise InputError(f"{model}: is not the model that {recording.path} was recorded of")
    chance, trials = np.random.default_rng(0), {}
    for layer, rows in table.groupby("layer"):
        for entry in chance.permutation(rows["entry"].to_numpy())[:ABLATED].tolist():
            trials[layer, entry] = Trial(partial(ablate, subject, [entry], "zero", layers=[layer]), [entry], [layer])
    corpus = recorded_corpus(recording)
    effects = measure_effects(
        subject, corpus, spread_windows(subject, corpus, TOKENS), {f"{a} {b}": one for (a, b), one in trials.items()}
    )
    first = recording.documents["first_row"].to_numpy()
    found = {}
    for layer, entry in trials:
        effect, rows = effects[f"{layer} {entry}"], recording.selections(entry, layer)["row"].to_numpy()
        at = np.isin(first[effect["doc"].to_numpy()] + effect["pos"].to_numpy(), rows)
        if at.any():
            found[layer, entry] = float((effect["loss_after"] - effect["loss_before"])[at].mean())
    return found


def _neurons(recording: Recording) -> int | None:
    return recording.info.selected if recording.info.sites[0].kind == "neurons" else None


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over entries with 95% intervals, and quartiles, one row per recording and measure."""
    chance, rows = np.random.default_rng(0), []
    for name, own in table.groupby("name", sort=False):
        for measure in MEASURES:
            values = own[measure].dropna().to_numpy(float)
            if len(values):
                drawn = chance.choice(values, (DRAWS, len(values))).mean(1) if len(values) > 1 else values
                low, high = np.quantile(drawn, [0.025, 0.975])
                quartiles = dict(zip(("q25", "median", "q75"), np.quantile(values, [0.25, 0.5, 0.75]), strict=True))
                row: dict[str, Any] = {"name": name, "measure": measure, "entries": len(values)}
                rows.append(row | {"mean": values.mean(), "low": low, "high": high, **quartiles})
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """Distributions of readability and its control, and of purity, one line a recording."""
    figure, [left, right] = panels(2)
    colours = [blue(dark=False), ORANGE, "#009E73", "#CC79A7", ink(dark=False)]
    for colour, (name, own) in zip(colours, table.groupby("name", sort=False), strict=False):
        for axes, measure in ((left, "readability"), (right, "purity")):
            values = np.sort(own[measure].dropna())
            axes.plot(values, np.arange(1, len(values) + 1) / len(values), color=colour, label=name)
        control = np.sort(own["control"].dropna())
        left.plot(control, np.arange(1, len(control) + 1) / len(control), ":", color=colour, linewidth=1)
    left.set(xlabel="readability, AUROC (dotted: where another entry fires)", ylabel="share of entries")
    right.set(xlabel="purity: share of firings on the most typical token", ylabel="share of entries")
    legend(left, loc="upper left")
    return figure


def main() -> None:
    """Compare recordings, print the means, write figure and tables."""
    parser = command_line(__doc__)
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("--models", type=Path, nargs="+", default=[])
    arguments = parser.parse_args()
    opened = [Recording(path) for path in arguments.recordings]
    texts = {(recording.info.corpus_sha256, recording.info.rows) for recording in opened}
    if len(texts) > 1:
        raise InputError("the recordings are of different text; record all on the same corpus and tokens")
    if arguments.models and len(arguments.models) != len(opened):
        raise InputError("give a model for each recording, in the same order")
    models = arguments.models or [None] * len(opened)
    table = pd.concat([study(one, model) for one, model in zip(opened, models, strict=True)], ignore_index=True)
    means = summary(table)
    for row in means.to_dict("records"):
        print(
            f"{row['name']}: {row['measure']} {row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f}) over "
            f"{row['entries']:,}, quartiles {row['q25']:.3f} {row['median']:.3f} {row['q75']:.3f}"
        )
    for recording, (name, own) in zip(opened, table.groupby("name", sort=False), strict=True):
        every, share = sum(site.entries for site in recording.info.sites), own["tokens"].sum()
        print(f"{name}: {len(own):,} of {every:,} scored, {share / recording.total_selections():.0%} of selections")
    save(arguments.out, "readability", table, draw(table))


if __name__ == "__main__":
    run_script(main)
