"""Answers about the gate: how even its choice is, what made it, what it prefers and what it goes by."""

from typing import Any

import numpy as np
import pandas as pd

from memscope.base.words import ends_form, interval, span
from memscope.query.recording import Recording
from memscope.report.words import Reply, ends, rows_having, selections, with_error

_NAMED = 3
"""Preferred labels that a sentence names."""
_KINDS = {
    "token": "input token",
    "previous": "token before it",
    "frequency": "frequency of the input token",
    "position": "position in the window",
}
"""Properties of a token that the choice may go by: kinds of ``Information`` and their names."""


def evenness(recording: Recording) -> Reply:
    """How evenly the gate selects, beside even selection."""
    layers, everywhere = recording.layer_metrics(), recording.census.all_layers.by_count
    worst = layers.loc[layers["kl_to_uniform"].idxmax()]
    n, d, words = int(worst["entries"]), int(worst["selections"]), recording.info.word(2)
    sizes = span(layers["entries"], ",")
    beyond = _beyond_even(layers, recording.census.critical)
    verdict = "Not shown. "
    if beyond:
        verdict = "Yes, in every layer. " if beyond == len(layers) else f"In {beyond} of {len(layers)} layers. "
    short = (
        f"{verdict}Half of a layer's {selections(recording)} selections go to {span(layers['top50'], ',')} of the "
        f"{sizes} {words}{'.' if n == everywhere.entries else ' it can select.'}"
    )
    answer = (
        f"Over {everywhere.selections:,} selections in all layers {everywhere.coverage:.1%} of the "
        f"{everywhere.entries:,} {words} "
        f"were used at least once; even selection would use {everywhere.even_coverage:.1%}. "
        f"Layer {int(worst['layer'])} is the most uneven: {worst['coverage']:.1%} used over D = {d:,} selections "
        f"(even: {worst['even_coverage']:.1%}), half of its selections go to {int(worst['top50']):,} {words}, "
        f"KL to uniform {with_error(worst, 'kl_to_uniform', '.3f')} of at most {np.log(n):.2f} nats "
        f"(even: {worst['even_kl_to_uniform']:.3f}), Gini {worst['gini']:.3f} (even: {worst['even_gini']:.3f})."
    )
    return Reply(short, answer, found=beyond > 0)


def _beyond_even(layers: pd.DataFrame, critical: float | None) -> int:
    """Layers in which the 95% interval of KL to uniform lies above that of even selection."""
    if critical is None:
        return 0
    half = critical * pd.to_numeric(layers["kl_to_uniform_se"])
    return int((layers["kl_to_uniform"] - half > layers["even_kl_to_uniform"]).sum())


def choice(recording: Recording) -> Reply:
    """How much of the choice the scores made, and how much the selection bias."""
    reading, d = rows_having(recording, recording.reading_metrics(), "margin"), selections(recording, having="margin")
    words, selector = recording.info.word(2), recording.info.selector
    if reading["margin"].isna().any():
        return Reply(
            f"There is no choice: every {selector} head selects all {words}.", f"D = {d} a layer.", found=False
        )
    margin = f"{span(reading['margin'], '.3f')} above the best rejected one"
    if not any(site.selection_bias for site in recording.info.sites):
        answer = f"Scores alone made all D = {d} selections of a layer. The weakest selected entry scores {margin}."
        return Reply("All of it: no selection bias takes part.", answer, found=False)
    short = (
        f"Scores alone would have made {span(reading['by_score_share'], '.0%')} of a layer's selections; the selection "
        "bias made the others."
    )
    answer = (
        "A selection bias, which training moves toward even use, is added to the scores before the best are "
        f"selected. Of D = {d} selections a layer, raw scores alone would have made "
        f"{ends(reading, 'by_score_share', '.1%')}. With the bias the weakest selected entry stands {margin} (mean "
        f"over tokens); in raw scores the lowest selected one lies {span(reading['score_margin'], '+.3f')} from the "
        "highest rejected one (below 0: better ones were passed over). How even the selection is, and what "
        f"{words} fire on, is said of the choice with the bias."
    )
    return Reply(short, answer)


def preferences(recording: Recording) -> Reply:
    """Labels of init sentences that go together with usage."""
    preferences = recording.preferences()
    if preferences.empty:
        return Reply(
            "That cannot be asked of this bank.", "Its entries have no labels that can be tested.", found=False
        )
    significant = preferences[preferences["significant"] | preferences["rank_significant"]]
    shown = significant if len(significant) else preferences
    strongest = shown.loc[shown[["p", "rank_p"]].min(axis=1).sort_values(kind="stable").index[:_NAMED]]
    short = (
        f"Not shown: none of {2 * len(preferences):,} tests finds usage and a label of the sentence to go "
        "together more than chance would have it."
    )
    if len(significant):
        short = (
            f"{len(significant)} of {len(preferences)} labels and layers go together with usage more than chance would "
            f"have it, first “{strongest.iloc[0]['label']}” in layer {strongest.iloc[0]['layer']}."
        )
    return Reply(short, _tests(preferences, strongest, selections(recording)), found=len(significant) > 0)


def _tests(preferences: pd.DataFrame, strongest: pd.DataFrame, d: str) -> str:
    """The tests of labels, and the labels with the strongest evidence."""
    by_lift, by_rank = int(preferences["significant"].sum()), int(preferences["rank_significant"].sum())
    control = int(preferences[["control_significant", "control_rank_significant"]].to_numpy().sum())
    answer = (
        f"Tested: {', '.join(preferences['attribute'].unique())}; each label in each layer (D = {d}), by its share of "
        f"selections and by ranks of entries; {by_lift} and {by_rank} discoveries at a false discovery rate of 5%, "
        f"{control} among as many tests of shuffled labels. "
        f"{'Strongest' if by_lift or by_rank else 'The smallest p-values'}: "
        f"{'; '.join(_preference(row) for row in strongest.to_dict('records'))}. "
    )
    if not by_lift and not by_rank:
        answer += (
            "That is no proof of indifference: where few entries take most selections, any labels get large lifts, "
            "and a preference must be larger still to be seen."
        )
    return answer


def _preference(row: dict[str, Any]) -> str:
    documents, form = "", ".2g"
    if not pd.isna(row["low"]):
        documents, form = (
            f", {interval(row['low'], row['high'])} over other documents",
            ends_form(row["low"], row["high"]),
        )
    return (
        f"{row['attribute']} “{row['label']}” in layer {row['layer']}, lift {row['lift']:{form}}{documents} (shuffled "
        f"labels: {interval(row['chance_low'], row['chance_high'])}), q = {min(row['q'], row['rank_q']):.2g}"
    )


def dependence(recording: Recording) -> Reply:
    """Properties of the token that foretell the choice in other documents."""
    census, d, word = recording.census, selections(recording), recording.info.word()
    if census.critical is None:
        return Reply(
            "That is not known: fewer than two folds hold text.", f"Nothing can be held out. D = {d}.", found=False
        )
    information = [layer.profiles.information for layer in census.layers]
    nats = {kind: [getattr(layer, f"{kind}_held_out") for layer in information] for kind in _KINDS}
    errors = {kind: [getattr(layer, f"{kind}_held_out_se") for layer in information] for kind in _KINDS}
    parts = [f"{name} {span(nats[kind], '.3f')} ± {span(errors[kind], '.3f')} nats" for kind, name in _KINDS.items()]
    answer = (
        f"Mutual information between the selected {word} and a property of the token, over D = {d} selections a layer, "
        f"as the other {census.interval_unit} foretell it (± one standard error): {'; '.join(parts)}. These are "
        "lower bounds: what is too rare to be learned does not count, which concerns tokens more than classes."
    )
    short, found = _strongest_kind(nats, errors, census.critical, recording.info.word(2))
    return Reply(short, answer, found)


def _strongest_kind(
    nats: dict[str, list[float]], errors: dict[str, list[float]], critical: float, words: str
) -> tuple[str, bool]:
    """The kind of information that tells most of the choice, or that none does; and whether one does.

    Args:
        nats: held-out information per kind and layer.
        errors: their standard errors.
        critical: standard errors from the centre of a 95% interval to either end.
        words: what several entries are called.
    """
    mean = {kind: float(np.mean(values)) for kind, values in nats.items()}
    error = {kind: float(np.mean(values)) for kind, values in errors.items()}
    best, *others = sorted(_KINDS, key=lambda kind: -mean[kind])
    if mean[best] <= critical * error[best]:
        return f"Not shown: nothing that was measured foretells {words} in other documents.", False
    ties = [kind for kind in others if mean[best] - mean[kind] <= critical * np.hypot(error[best], error[kind])]
    least = f"at least {span(nats[best], '.2f')} nats of information a layer"
    if ties:
        equal = " and ".join(f"the {_KINDS[kind]} ({span(nats[kind], '.2f')})" for kind in ties)
        tied = f"The choice goes by the {_KINDS[best]}, {least}, and about as much by {equal}: too close to tell apart."
        return tied, True
    return f"Of what was measured the choice goes most by the {_KINDS[best]}: {least}.", True
