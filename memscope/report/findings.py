"""A recording's answers in words, each with its numbers: what the report opens with and the app shows as flags.

    for finding in find(Recording("recordings/demo")):
        print(finding.question, finding.short, finding.answer)

A word like "yes" stands only where the numbers show it: even selection lies outside of the 95% interval, or a discovery
after correction for all tests.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from memscope.base.words import plural, span
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.report.words import selections
from memscope.stats.jackknife import DOMINANT, FEW_DOCUMENTS

_NAMED = 3
"""Preferred labels that a sentence names."""
_KINDS = {
    "token": "input token",
    "previous": "token before it",
    "frequency": "frequency of the input token",
    "position": "position in the window",
}


class Finding(NamedTuple):
    """One answer."""

    question: str
    short: str
    """The answer in one sentence."""
    answer: str
    """The numbers behind it, with the number of selections D that they are over."""


def find(recording: Recording) -> list[Finding]:
    """Answers to the standing questions about a memory, most important first."""
    census, info = recording.census, recording.info
    return [
        _evenness(recording.layer_metrics(), census),
        find_choice(recording),
        _preferences(recording.preferences(), selections(recording)),
        _dependence(census, selections(recording)),
        _certainty(recording),
        _layers(recording.usage(), info, census["overlap"]),
        _reading(recording.reading_metrics(), info),
        _drift(recording.drift_summary(), recording.usage()),
    ]


def _evenness(layers: pd.DataFrame, census: dict[str, Any]) -> Finding:
    everywhere = census["all_layers"]["by_count"]
    worst = layers.loc[layers["kl_to_uniform"].idxmax()]
    n, d = int(worst["entries"]), int(worst["selections"])
    beyond = _beyond_even(layers, census["critical"])
    verdict = (
        "Yes, in every layer. "
        if beyond == len(layers)
        else f"In {beyond} of {len(layers)} layers. "
        if beyond
        else "Not shown. "
    )
    short = f"{verdict}Half of a layer's {d:,} selections go to {span(layers['top50'], ',')} of the {n:,} entries"
    short += "." if n == everywhere["entries"] else " it can select."
    answer = (
        f"Over {everywhere['selections']:,} selections in all layers {everywhere['coverage']:.1%} of the "
        f"{everywhere['entries']:,} entries "
        f"were used at least once; even selection would use {everywhere['even_coverage']:.1%}. "
        f"Layer {int(worst['layer'])} is the most uneven: {worst['coverage']:.1%} used over D = {d:,} selections "
        f"(even: {worst['even_coverage']:.1%}), half of its selections go to {int(worst['top50']):,} entries, "
        f"KL to uniform {_with_error(worst, 'kl_to_uniform', '.3f')} of at most {np.log(n):.2f} nats "
        f"(even: {worst['even_kl_to_uniform']:.3f}), Gini {worst['gini']:.3f} (even: {worst['even_gini']:.3f})."
    )
    return Finding("Is the gate biased?", short, answer)


def _beyond_even(layers: pd.DataFrame, critical: float | None) -> int:
    """Layers in which the 95% interval of KL to uniform lies above that of even selection."""
    if critical is None:
        return 0
    half = critical * pd.to_numeric(layers["kl_to_uniform_se"])
    return int((layers["kl_to_uniform"] - half > layers["even_kl_to_uniform"]).sum())


def find_choice(recording: Recording) -> Finding:
    """What the scores, and what the selection bias, have to do with the choice."""
    question, reading, d = "How much of the choice is the gate's?", recording.reading_metrics(), selections(recording)
    if reading["margin"].isna().any():
        return Finding(question, "There is no choice: every gate head selects all entries.", f"D = {d} a layer.")
    margin = f"{span(reading['margin'], '.3f')} above the best rejected one"
    if not recording.info.selection_bias:
        answer = f"Scores alone made all D = {d} selections of a layer. The weakest selected entry scores {margin}."
        return Finding(question, "All of it: no selection bias takes part.", answer)
    short = (
        f"Scores alone would have made {span(reading['by_score_share'], '.0%')} of a layer's selections; the selection "
        "bias made the others."
    )
    answer = (
        "A selection bias, which training moves toward even use, is added to the scores before the best are "
        f"selected. Of D = {d} selections a layer, raw scores alone would have made "
        f"{_ends(reading, 'by_score_share', '.1%')}. With the bias the weakest selected entry stands {margin} (mean "
        f"over tokens); in raw scores the lowest selected one lies {span(reading['score_margin'], '+.3f')} from the "
        "highest rejected one (below 0: better ones were passed over). How even the selection is, and what entries "
        "fire on, is said of the choice with the bias."
    )
    return Finding(question, short, answer)


def _preferences(preferences: pd.DataFrame, d: str) -> Finding:
    question = "Toward what is it biased?"
    if preferences.empty:
        return Finding(question, "That cannot be asked of this bank.", "Its entries have no labels that can be tested.")
    tests = 2 * len(preferences)
    by_lift, by_rank = int(preferences["significant"].sum()), int(preferences["rank_significant"].sum())
    control = int(preferences[["control_significant", "control_rank_significant"]].to_numpy().sum())
    attributes = ", ".join(dict.fromkeys(preferences["attribute"]))
    found = preferences[preferences["significant"] | preferences["rank_significant"]]
    shown = found if len(found) else preferences
    strongest = shown.loc[shown[["p", "rank_p"]].min(axis=1).sort_values(kind="stable").index[:_NAMED]]
    if len(found):
        short = (
            f"{len(found)} of {len(preferences)} labels and layers go together with usage more than chance would "
            f"have it, first “{strongest.iloc[0]['label']}” in layer {strongest.iloc[0]['layer']}."
        )
    else:
        short = (
            f"Not shown: none of {tests:,} tests finds usage and a label of the init sentence to go together more than "
            "chance would have it."
        )
    answer = (
        f"Tested: {attributes}; each label in each layer (D = {d}), by its share of selections and by ranks of "
        f"entries; {by_lift} and {by_rank} discoveries at a false discovery rate of 5%, {control} among as many tests "
        f"of shuffled labels. {'Strongest' if len(found) else 'The smallest p-values'}: "
        f"{'; '.join(_preference(row) for row in strongest.to_dict('records'))}. "
    )
    if not len(found):
        answer += (
            "That is no proof of indifference: where few entries take most selections, any labels get large lifts, "
            "and a preference must be larger still to be seen."
        )
    return Finding(question, short, answer)


def _preference(row: dict[str, Any]) -> str:
    interval = "" if pd.isna(row["low"]) else f", {row['low']:.2g} to {row['high']:.2g} over other documents"
    return (
        f"{row['attribute']} “{row['label']}” in layer {row['layer']}, lift {row['lift']:.2g}{interval} (shuffled "
        f"labels: {row['chance_low']:.2g} to {row['chance_high']:.2g}), q = {min(row['q'], row['rank_q']):.2g}"
    )


def _dependence(census: dict[str, Any], d: str) -> Finding:
    """What the choice goes by on the side of the reading token."""
    question = "What does the choice of entries go by?"
    information = [layer["profiles"]["information"] for layer in census["layers"]]
    if census["critical"] is None:
        return Finding(
            question, "That is not known: fewer than two folds hold text.", f"Nothing can be held out. D = {d}."
        )
    nats = {kind: [one[f"{kind}_held_out"] for one in information] for kind in _KINDS}
    mean = {kind: float(np.mean(values)) for kind, values in nats.items()}
    error = {kind: float(np.mean([one[f"{kind}_held_out_se"] for one in information])) for kind in _KINDS}
    best, *others = sorted(_KINDS, key=lambda kind: -mean[kind])
    ties = [k for k in others if mean[best] - mean[k] <= census["critical"] * np.hypot(error[best], error[k])]
    least = f"at least {span(nats[best], '.2f')} nats of information a layer"
    if mean[best] <= census["critical"] * error[best]:
        short = "Not shown: nothing that was measured foretells entries in other documents."
    elif ties:
        equal = " and ".join(f"the {_KINDS[kind]} ({span(nats[kind], '.2f')})" for kind in ties)
        short = (
            f"The choice goes by the {_KINDS[best]}, {least}, and about as much by {equal}: too close to tell apart."
        )
    else:
        short = f"Of what was measured the choice goes most by the {_KINDS[best]}: {least}."
    parts = [
        f"{name} {span(nats[kind], '.3f')} ± {span([one[f'{kind}_held_out_se'] for one in information], '.3f')} nats"
        for kind, name in _KINDS.items()
    ]
    answer = (
        f"Mutual information between the selected entry and a property of the token, over D = {d} selections a layer, "
        f"as the other {census['interval_unit']} foretell it (± one standard error): {'; '.join(parts)}. These are "
        "lower bounds: what is too rare to be learned does not count, which concerns tokens more than classes."
    )
    return Finding(question, short, answer)


def _certainty(recording: Recording) -> Finding:
    census, layers, info = recording.census, recording.layer_metrics(), recording.info
    errors = pd.to_numeric(layers["kl_to_uniform_se"])
    question = "How sure are these numbers?"
    if errors.isna().any():
        return Finding(
            question,
            "Standard errors are not known: fewer than two folds hold text.",
            f"D = {selections(recording)} selections a layer; compare numbers only with their even twins.",
        )
    unit, few = census["interval_unit"], pd.to_numeric(layers["kl_to_uniform_few"])
    short = (
        f"{few_documents(recording)}With other {unit} of this kind, as many and as long, a layer's KL to uniform would "
        f"move by about {span(errors, '.3f')} nats (one standard error; a 95% interval reaches "
        f"{census['critical']:.1f} of them to either side)."
    )
    answer = (
        f"By leaving out one of {census['folds']} folds of {unit} after the other (jackknife), over "
        f"D = {selections(recording)} selections a layer, {info.rows:,} tokens and {len(recording.documents):,} "
        f"documents, which tell as much as {census['equal_documents']:.1f} {unit} of equal length. "
        f"Coverage would move by {span(pd.to_numeric(layers['coverage_se']), '.2%')} at most. Of the KL to uniform "
        f"even selection would show {span(layers['even_kl_to_uniform'], '.3f')} nats at this D, and {unit} being few "
        f"explains {span(few, '.3f')}: much more text of this kind would show that much less, or lower still. All of "
        "this is about one model: another seed may differ by more."
    )
    return Finding(question, short, answer)


def few_documents(recording: Recording) -> str:
    """A warning where the text is too little for firm statements about other text; empty otherwise."""
    documents, longest = len(recording.documents), recording.census["longest_document"]
    if documents >= FEW_DOCUMENTS and longest < DOMINANT:
        return ""
    count = f"{documents:,} {plural(documents, 'document', 'documents')}"
    dominated = f", one of which is {longest:.0%} of the text" if longest >= DOMINANT and documents > 1 else ""
    return f"With care, from {count}{dominated}: intervals are rough, and other text may differ by more. "


def _layers(counts: np.ndarray, info: RecordingInfo, overlap: dict[str, Any]) -> Finding:
    question, layers = "Does each layer use the bank differently?", info.layers
    if len(layers) == 1:
        return Finding(question, "There is one memory layer.", "Layers cannot be compared.")
    together = len(layers) // info.bank_groups  # layers that share a group of entries
    apart = f"The bank is split in {info.bank_groups} groups of {info.group_size:,} entries, "
    if together == 1:
        return Finding(question, "By construction: each layer has entries of its own.", f"{apart}one for each layer.")
    used_by = (counts > 0).sum(0)
    used, once = int((used_by > 0).sum()), int((used_by == 1).sum())
    jaccard, chance, divergence = (np.array(overlap[k]) for k in ("jaccard", "even_jaccard", "jensen_shannon"))
    pairs = [(a, b) for a in range(len(layers)) for b in range(a + 1, len(layers)) if a // together == b // together]
    low, high = (choose(pairs, key=lambda pair: jaccard[pair]) for choose in (min, max))
    two = "two layers" if together == len(layers) else "two layers of a group"
    short = (
        f"{once / max(1, used):.0%} of the {used:,} entries in use are used by one layer only; usage of {two} "
        f"lies {span([divergence[pair] for pair in pairs], '.2f')} nats apart (0.69 = no entry in common)."
    )
    answer = (
        f"{once:,} entries are used by one layer only and {int((used_by == together).sum()):,} by all "
        f"{together}, over D = {int(counts[0].sum()):,} selections a layer. "
    )
    if together < len(layers):
        answer = f"{apart}one for every {together} layers in order; layers of different groups share none. {answer}"
    if low == high:
        answer += (
            f"Their sets of used entries have a Jaccard index of {jaccard[low]:.3f}; independent sets of these sizes "
            f"would have {chance[low]:.3f}. The distance is the Jensen-Shannon divergence."
        )
    else:
        answer += (
            f"Sets of used entries overlap least between layers {layers[low[0]]} and {layers[low[1]]} (Jaccard "
            f"{jaccard[low]:.3f}; independent sets of these sizes: {chance[low]:.3f}) and most between layers "
            f"{layers[high[0]]} and {layers[high[1]]} ({jaccard[high]:.3f}; independent: {chance[high]:.3f}). "
            "Distances are Jensen-Shannon divergences."
        )
    return Finding(question, short, answer)


def _reading(reading: pd.DataFrame, info: RecordingInfo) -> Finding:
    tokens, selected, by_norm = info.rows, info.selected, ""
    if info.signed_reads:
        by_norm = (
            "; by norm, in which read heads of different signs do not cancel, "
            f"{span(reading['unread_share_by_norm'], '.2%')}"
        )
    short = (
        f"A token effectively reads {span(reading['effective_entries_read'], '.1f')} of the {selected} entries it "
        "selects; the rank correlation of gate score and attention is "
        f"{span(reading['gate_attention_rank_correlation'], '+.2f')}."
    )
    answer = (
        f"Over {tokens:,} tokens (D = {tokens * selected:,} selections a layer), effective entries read are "
        f"{_ends(reading, 'effective_entries_read', '.3f')}. {_ends(reading, 'unread_share', '.2%')} of selections "
        f"stay unread, below 1% of their token's read{by_norm}. Gate score and attention agree at a rank correlation "
        f"of {_ends(reading, 'gate_attention_rank_correlation', '+.3f')}; the attention is taken alone (read weight "
        "/ gate score), since the read weight contains the gate score."
    )
    return Finding("Does the attention read what the gate selects?", short, answer)


def _drift(drift: dict[str, float], counts: np.ndarray) -> Finding:
    used = int((counts.sum(0) > 0).sum())
    unused = counts.shape[1] - used
    short = f"Used entries moved by a median of {drift['median_used']:.3f} (1 − cosine)"
    short += f", entries never selected by {drift['median_unused']:.3f}." if unused else "."
    answer = (
        f"Over {used:,} used {plural(used, 'entry', 'entries')} and {unused:,} that none of D = {int(counts.sum()):,} "
        f"selections in all layers took: a tenth of the used moved more than {drift['p90_used']:.3f}. "
    )
    if np.isnan(drift["kept"]):
        answer += "Entries started random, so there is no sentence to compare with."
    else:
        answer += (
            f"Of the tokens nearest to a used entry, {drift['kept']:.1%} stand in its init sentence now, "
            f"{drift['kept_at_init']:.1%} did before training."
        )
    return Finding("How far have entries drifted from their sentences?", short, answer)


def _ends(table: pd.DataFrame, column: str, form: str) -> str:
    """Lowest and highest layer of a column."""
    low, high = (table.loc[getattr(table[column], end)()] for end in ("idxmin", "idxmax"))
    if len(table) == 1:
        return _with_error(low, column, form)
    return (
        f"{_with_error(low, column, form)} (layer {int(low['layer'])}) to "
        f"{_with_error(high, column, form)} (layer {int(high['layer'])})"
    )


def _with_error(row: pd.Series, name: str, form: str) -> str:
    """A number with its standard error, where that is known."""
    error = row.get(f"{name}_se")
    text = format(row[name], form)
    return text if error is None or np.isnan(error) else f"{text} ± {format(error, form.lstrip('+'))}"
