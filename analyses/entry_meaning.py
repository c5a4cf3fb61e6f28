"""Do entries mean what they say? Their init sentence against where they fire and what they do.

    python analyses/entry_meaning.py runs/demo recordings/demo --out reports/demo

Four meanings of an entry in a layer, each scored against the tokens of a sentence:

    input    share of its selections at tokens that the sentence has
    next     share of its selections followed by tokens that the sentence has
    lens     AUC of the sentence's tokens in the logit lens of its value: probability that a token of the sentence ranks
             above a token of the vocabulary outside of it
    causal   AUC of the sentence's tokens in the entry's effect on the logits where it is selected: logits minus those
             with this selection ablated, mean over some of its contexts

Each entry is scored with its own sentence and, as control, with those of the other entries of the layer, which are as
long and have words as common. All entries with enough selections and an init sentence are scored, and a random sample
of them for the causal meaning. p: sentences are dealt to entries at random 9,999 times, within layers. Prints own minus
other for the causal meaning.
"""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.sparse import coo_array, csr_array
from scipy.stats import rankdata
from study import batches, command_line, contexts_before, mean_interval, run_script, save
from torch import Tensor

from memscope.base.errors import InputError
from memscope.causal.intervene import ablate
from memscope.query.recording import Recording
from memscope.record.decode import logit_lens
from memscope.report.plots.style import legend, panels
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun, load_run

MEANINGS = ("input", "next", "lens", "causal")
MIN_COUNT = 20
"""Least number of selections of an entry in a layer."""
PERMUTATIONS = 9_999
N_SHOWN = 5
"""Number of tokens named in the table."""


class Score(NamedTuple):
    """A meaning of the entries of one layer, scored with every sentence: ``[entry, sentence]``, own on the diagonal."""

    matrix: np.ndarray

    @property
    def own(self) -> np.ndarray:
        """Score of each entry with its own sentence."""
        return np.diag(self.matrix)

    @property
    def other(self) -> np.ndarray:
        """Mean score of each entry with the sentences of others; NaN where it is alone."""
        n = len(self.matrix)
        return (self.matrix.sum(1) - self.own) / (n - 1) if n > 1 else np.full(n, np.nan)


def choose_entries(recording: Recording) -> dict[int, np.ndarray]:
    """Entries to ask, by layer: those that are used enough and started from a sentence, rising."""
    frame = recording.sql(
        """SELECT layer, entry FROM usage JOIN bank USING (entry)
           WHERE count >= ? AND sentence IS NOT NULL ORDER BY layer, entry""",
        [MIN_COUNT],
    )
    return {int(layer): rows["entry"].to_numpy(np.int64) for layer, rows in frame.groupby("layer")}


def sentence_tokens(recording: Recording, entries: np.ndarray) -> csr_array:
    """Whether the sentences of entries have each token, 0 or 1, ``[sentence, vocab]``."""
    ids = recording.rows_of("bank", entries.tolist(), ["entry", "token_ids"]).set_index("entry")["token_ids"][entries]
    tokens = [np.unique(sentence) for sentence in ids]
    rows = np.repeat(np.arange(len(tokens)), [len(sentence) for sentence in tokens])
    shape = (len(entries), recording.tokenizer.vocab_size)
    return csr_array(coo_array((np.ones(len(rows)), (rows, np.concatenate(tokens))), shape))


def score_firing(recording: Recording, layer: int, entries: np.ndarray, sentences: csr_array) -> tuple[Score, Score]:
    """``input`` and ``next`` meaning of a layer's entries."""
    ends = (recording.documents["first_row"] + recording.documents["rows"] - 1).to_numpy()
    following = np.append(recording.token_ids[1:], 0)
    has_next = np.ones(len(following), bool)
    has_next[ends] = False
    inputs, nexts = np.zeros((2, *sentences.shape), np.float32)  # shares of tokens
    for number, entry in enumerate(entries.tolist()):
        rows = np.unique(recording.selections(entry, layer)["row"])
        for shares, tokens in ((inputs, recording.token_ids[rows]), (nexts, following[rows[has_next[rows]]])):
            shares[number] = np.bincount(tokens, minlength=sentences.shape[1]) / max(1, len(tokens))
    return Score((sentences @ inputs.T).T), Score((sentences @ nexts.T).T)


def score_auc(values: np.ndarray, sentences: csr_array) -> Score:
    """AUC of every sentence's tokens in every entry's ``values [entry, vocab]`` (Mann-Whitney, ties half)."""
    ranks = rankdata(values, axis=1)
    sizes = sentences.sum(1)
    above = (sentences @ ranks.T).T - sizes * (
        sizes + 1
    ) / 2  # tokens of the vocabulary below, summed over the sentence
    return Score(above / (sizes * (values.shape[1] - sizes)))


@torch.no_grad()
def causal_logits(
    run: LoadedRun, recording: Recording, layer: int, entries: np.ndarray, contexts: int, seed: int = 0
) -> np.ndarray:
    """Mean effect of each entry on the logits at random selections of it in a layer, ``[entry, vocab]``.

    The model reads the recorded window up to the selection, in float32. There a selection with a narrow margin may be
    missing; its effect is then 0.
    """
    chance = np.random.default_rng([seed, layer])
    places = [
        (number, int(row))
        for number, entry in enumerate(entries.tolist())
        for row in chance.permutation(recording.selections(entry, layer)["row"])[:contexts]
    ]
    texts = contexts_before(recording, [row for _, row in places])
    number_of = np.array([number for number, _ in places])
    added = np.zeros((len(entries), run.config.model.vocab_size))
    for numbers, tokens, lengths in batches(texts, 8):
        batch, last = torch.from_numpy(tokens), torch.from_numpy(lengths) - 1
        rows = torch.arange(len(batch))
        is_entry = torch.zeros(batch.shape, dtype=torch.bool)
        is_entry[rows, last] = True
        wanted = torch.from_numpy(entries[number_of[numbers]])[:, None]
        before = run.model(batch)[rows, last]
        with without(run, layer, wanted, is_entry):
            after = run.model(batch)[rows, last]
        np.add.at(added, number_of[numbers], (before - after).double().numpy())
    return added / np.bincount(number_of, minlength=len(entries))[:, None]


def without(run: LoadedRun, layer: int, wanted: Tensor, at: Tensor) -> AbstractContextManager[None]:
    """Take an entry of each row of the batch, ``wanted [batch, 1]``, out of a layer at positions ``[batch, pos]``."""
    if layer not in run.config.model.text_layers:
        return ablate(run.model, wanted, layers=[layer], positions=at)

    def edit(number: int, indices: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor | None]:
        gone = (indices == wanted[:, None]) & at[..., None]
        return (indices.masked_fill(gone, -1) if number == layer else indices), scores

    return OwnRun(run).rewrite(edit)


def permutation_p(scores: list[Score], seed: int = 0) -> float:
    """Probability that sentences dealt at random within layers score at least as high as on their own entries."""
    chance = np.random.default_rng(seed)
    observed = sum(score.own.sum() for score in scores)
    drawn = np.zeros(PERMUTATIONS)
    for score in scores:
        entries = np.arange(len(score.matrix))
        for number in range(PERMUTATIONS):
            drawn[number] += score.matrix[entries, chance.permutation(entries)].sum()
    return float((1 + (drawn >= observed - 1e-9).sum()) / (1 + PERMUTATIONS))


def study(
    run: LoadedRun, recording: Recording, entries: dict[int, np.ndarray], sample: int, contexts: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row per layer and entry, and a row per meaning with its mean over entries, interval and p.

    Args:
        run: the run.
        recording: a recording of that run.
        entries: entries to score, by layer.
        sample: number of random entries of every layer that are ablated.
        contexts: number of selections of each that are ablated.

    Raises:
        InputError: no layer has two entries that can be asked.
    """
    several = {layer: chosen for layer, chosen in entries.items() if len(chosen) > 1}
    if not several:
        raise InputError(f"{recording.path}: fewer than two used entries of a layer started from a sentence")
    tables: list[pd.DataFrame] = []
    scores: dict[str, list[Score]] = {name: [] for name in MEANINGS}
    chance = np.random.default_rng(0)
    for layer, chosen in several.items():
        sentences = sentence_tokens(recording, chosen)
        lens = logit_lens(OwnRun(run), layer, torch.from_numpy(chosen)).numpy()
        ablated = np.sort(chance.permutation(len(chosen))[:sample])
        added = causal_logits(run, recording, layer, chosen[ablated], contexts)
        by_meaning = dict(zip(MEANINGS, score_firing(recording, layer, chosen, sentences), strict=False))
        by_meaning["lens"], by_meaning["causal"] = score_auc(lens, sentences), score_auc(added, sentences[ablated])
        tables.append(_describe(recording, layer, chosen, by_meaning, ablated, added))
        for name, score in by_meaning.items():
            scores[name].append(score)
    table = pd.concat(tables, ignore_index=True)
    return table, pd.DataFrame([_summarise(table, name, scores[name]) for name in MEANINGS])


def _summarise(table: pd.DataFrame, name: str, scores: list[Score]) -> dict[str, Any]:
    rows = table[table[f"{name}_own"].notna()]
    own, other = rows[f"{name}_own"], rows[f"{name}_other"]
    difference, low, high = mean_interval((own - other).to_numpy())
    row = {"own": own.mean(), "other": other.mean(), "difference": difference, "low": low, "high": high}
    return {"meaning": name, "entries": len(rows), **row, "p": permutation_p(scores)}


def _describe(
    recording: Recording,
    layer: int,
    entries: np.ndarray,
    found: dict[str, Score],
    ablated: np.ndarray,
    added: np.ndarray,
) -> pd.DataFrame:
    """One row per entry; the causal columns are empty for those that were not ``ablated`` (places in ``entries``)."""
    texts, numbers = recording.tokenizer.token_texts, entries.tolist()
    sentences = recording.rows_of("bank", numbers, ["entry", "sentence"]).set_index("entry")["sentence"]
    usage = recording.rows_of("usage", numbers, ["layer", "entry", "count"])
    firing = recording.firing_of(numbers)
    inputs = firing[firing["layer"] == layer].set_index("entry")["input_tokens"]
    table = pd.DataFrame(
        {
            "layer": layer,
            "entry": entries,
            "count": usage[usage["layer"] == layer].set_index("entry")["count"][entries].to_numpy(),
            "sentence": sentences[entries].to_numpy(),
            "fires_on": [" ".join(map(repr, tokens[:N_SHOWN])) for tokens in inputs[entries]],
            "raises": "",
        }
    )
    table.loc[ablated, "raises"] = [" ".join(repr(texts[t]) for t in np.argsort(-row)[:N_SHOWN]) for row in added]
    for name, score in found.items():
        at = ablated if name == "causal" else slice(None)
        for column, values in ((f"{name}_own", score.own), (f"{name}_other", score.other)):
            table[column] = np.nan
            table.loc[table.index[at], column] = values
    return table


def draw(table: pd.DataFrame) -> Figure:
    """Own minus other by layer: shares of selections on the left, AUC on the right, with 95% intervals over entries."""
    figure, axes = panels(2)
    for panel, names, label in (
        (axes[0], MEANINGS[:2], "share of selections, own − other sentence"),
        (axes[1], MEANINGS[2:], "AUC, own − other sentence"),
    ):
        for name in names:
            by_layer = (table[f"{name}_own"] - table[f"{name}_other"]).dropna().groupby(table["layer"])
            spans = np.array([mean_interval(values.to_numpy()) for _, values in by_layer])
            errors = np.abs(spans[:, 1:] - spans[:, :1]).T
            panel.errorbar(list(by_layer.groups), spans[:, 0], errors, marker="o", capsize=3, label=name)
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set(xlabel="layer", ylabel=label, xticks=sorted(table["layer"].unique()))
        legend(panel)
    return figure


def main() -> None:
    """Parse, compute, print, save."""
    parser = command_line(__doc__, "run", "recording")
    parser.add_argument("--sample", type=int, default=40, help="entries of every layer that are ablated")
    parser.add_argument("--contexts", type=int, default=3, help="selections of each that are")
    arguments = parser.parse_args()
    recording = Recording(arguments.recording)
    entries = choose_entries(recording)
    table, summary = study(load_run(arguments.run), recording, entries, arguments.sample, arguments.contexts)
    causal = summary.set_index("meaning").loc["causal"]
    print(
        "what an entry adds to the logits speaks of its own sentence more than of others' by "
        f"{causal['difference']:+.3f} of AUC ({causal['low']:+.3f} to {causal['high']:+.3f}, p = {causal['p']:.2g}; "
        f"{1 - causal['other']:.2f} would be all of it) over {int(causal['entries'])} entries in "
        f"{table['layer'].nunique()} layers"
    )
    print(summary.to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    save(arguments.out, "entry_meaning", table, draw(table))


if __name__ == "__main__":
    run_script(main)
