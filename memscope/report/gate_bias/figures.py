"""The figures of the gate-bias report: a table of their names, titles, captions and how each is drawn."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from memscope.base.words import first_upper, span
from memscope.query.recording import Recording
from memscope.recording.sites import Has, in_common
from memscope.report.document import ReportFigure
from memscope.report.plots import bias, usage
from memscope.report.words import a_word, rows_having, selections


class Numbers(NamedTuple):
    """All that the figures show, asked of a recording once."""

    recording: Recording
    layers: tuple[int, ...]
    words: tuple[str, str]
    """What an entry and several are called."""
    counts: list[np.ndarray]
    """Selections of the entries that each layer can select, int64 ``[entry]`` for every layer."""
    evenness: pd.DataFrame
    reading: pd.DataFrame
    preferences: pd.DataFrame
    curve: pd.DataFrame
    """Training curve; empty where the run has none."""


class Plan(NamedTuple):
    """One figure of the report before it is drawn."""

    name: str
    """File name without its ending."""
    title: str
    caption: str
    """Names in braces are those of ``_caption_values``."""
    draw: Callable[[Numbers], Figure]
    wide: bool = False
    """Whether it takes the whole width of the page."""
    needs: Callable[[Numbers], int] = lambda _: True
    """Whether there is anything to draw."""
    found: Callable[[Numbers], bool] = lambda _: True
    """Whether there is anything to see."""


def figures(recording: Recording) -> Iterator[ReportFigure]:
    """The figures of the report, in order."""
    numbers = Numbers(
        recording,
        recording.info.layers,
        (recording.info.word(), recording.info.word(2)),
        recording.reachable_usage(),
        recording.layer_metrics(),
        recording.reading_metrics(),
        recording.preferences(),
        recording.training_curve(),
    )
    values = _caption_values(numbers)
    for plan in PLANS:
        if plan.needs(numbers):
            title, caption = plan.title.format(**values), plan.caption.format(**values)
            yield ReportFigure(plan.name, title, caption, plan.draw(numbers), plan.wide, not plan.found(numbers))


def _caption_values(numbers: Numbers) -> dict[str, str]:
    recording, info = numbers.recording, numbers.recording.info
    score = "gate" if info.kind == "memory" else info.score
    return {
        "d": f"D = {selections(recording)} selections a layer",
        "d_read": f"D = {selections(recording, having='reads')} selections a layer" if info.has("reads") else "",
        "d_of_all": f"D = {selections(recording, all_layers=True)} selections in all layers",
        "tests": f"{2 * len(numbers.preferences):,}",
        "tokens": f"{info.rows:,}",
        "selected": span([site.selected for site in info.sites if "reads" in site.has] or [0], ","),
        "entries": f"{sum(bank[0].entries for bank in info.banks if 'drift' in bank[0].has):,}",
        "word": info.word(),
        "words": info.word(2),
        "Words": first_upper(info.word(2)),
        "score": info.score,
        "weighed": f"{score} and read shares" if info.has("reads") else f"{info.score}s",
        "sureness": f"Sureness of {info.selector} and read" if info.has("reads") else f"Evenness of {info.score}s",
        "dtype": info.dtype,
    }


def _profiles(kind: str, axis: str) -> Callable[[Numbers], Figure]:
    """Draws the profile of one kind of class."""

    def draw(numbers: Numbers) -> Figure:
        profiles = [getattr(layer.profiles, kind) for layer in numbers.recording.census.layers]
        return bias.class_divergence(profiles, numbers.layers, axis)

    return draw


def _drift(numbers: Numbers) -> Figure:
    return bias.drift_curves(numbers.recording.drift(), numbers.recording.usage().sum(0) > 0)


def _entropy(numbers: Numbers) -> Figure:
    info, reading = numbers.recording.info, rows_having(numbers.recording, numbers.reading, "scores")
    each = [info.site(layer).selected for layer in reading["layer"]]
    labels = ("gate shares", "all selected entries alike")
    if info.kind != "memory":
        labels = (f"shares of {info.score}s", f"all selected {numbers.words[1]} alike")
    return bias.entropy_dots(reading, each[0] if len(set(each)) == 1 else each, labels)


def _has(what: Has) -> Callable[[Numbers], bool]:
    return lambda numbers: numbers.recording.info.has(what)


_CHOICE_BY_CLASS = (
    "KL divergence of the {words} that a class of tokens selects from those of the whole layer. Dotted: as many tokens "
    "at random, the chance level. {d}."
)
PLANS = (
    Plan(
        "usage",
        "Selections per {word}",
        "{Words} of each layer sorted by how often they were selected; a flat line would be even use. {d}.",
        lambda numbers: usage.usage_histogram(numbers.counts, numbers.layers, numbers.words),
    ),
    Plan(
        "lorenz",
        "Lorenz curve",
        "Share of all selections that go to the least used share of {words}; the diagonal is even use. {d}.",
        lambda numbers: usage.lorenz_curve(numbers.counts, numbers.layers, numbers.words),
    ),
    Plan(
        "coverage",
        "Coverage",
        "{Words} selected at least once, beside what even selection would reach with as many selections. {d}.",
        lambda numbers: usage.coverage_bars(numbers.evenness, numbers.words),
    ),
    Plan(
        "concentration",
        "Concentration",
        "How many of the most used {words} hold 50, 90 and 99 percent of a layer's selections. {d}.",
        lambda numbers: usage.top_mass(numbers.evenness, numbers.words),
    ),
    Plan(
        "preferences",
        "Preferences",
        "Lift of labels of sentences, significant ones and those with the smallest p-values; lifts beyond "
        "1/32 and 32 lie at the edge. A dot outside its grey bar is more than which entries happen to be hot; it is "
        "filled when that holds after correction for all {tests} tests. {d}.",
        lambda numbers: bias.preference_forest(numbers.preferences),
        wide=True,
        needs=lambda numbers: len(numbers.preferences),
        found=lambda numbers: bool(numbers.preferences[["significant", "rank_significant"]].to_numpy().any()),
    ),
    Plan(
        "position_profile",
        "Choice by position",
        _CHOICE_BY_CLASS,
        _profiles("position", "position in the window"),
    ),
    Plan(
        "frequency_profile",
        "Choice by token frequency",
        _CHOICE_BY_CLASS,
        _profiles("frequency", "frequency of the input token"),
    ),
    Plan(
        "layer_overlap",
        "Overlap of layers",
        "Left: Jaccard index of the sets of entries that two layers use, orange above and purple below what "
        "independent sets of these sizes would have. Right: distance of usage, 0.69 = no entry in common. Layers of "
        "different banks have none, and their cells are empty. {d}.",
        lambda numbers: bias.overlap_heatmap(
            numbers.recording.census.overlap, numbers.layers, in_common(numbers.recording.info.sites)
        ),
        wide=True,
        needs=lambda numbers: max(map(len, numbers.recording.info.banks)) > 1,  # else none in common by construction
    ),
    Plan(
        "entropy",
        "{sureness}",
        "Entropy of a token's {weighed}, 1 = all selected {words} alike, 0 = one takes all; bars are one "
        "standard error. {tokens} tokens, {d}.",
        _entropy,
        needs=_has("scores"),
    ),
    Plan(
        "margins",
        "Selection margin",
        "How far the weakest selected {word} stands above the best rejected one, by raw score plus the selection "
        "bias where there is one, in half octaves; ties are scores that the precision of the forward pass "
        "({dtype}) does not tell apart. {tokens} tokens, {d}.",
        lambda numbers: bias.margin_lines(rows_having(numbers.recording, numbers.reading, "margin")),
        needs=_has("margin"),
    ),
    Plan(
        "read_shares",
        "Read shares",
        "How a token's read divides over its {selected} selected {words}: mass at 0 is selected but unread, "
        "mass at 1 is a token that reads one {word}. {d_read}.",
        lambda numbers: usage.read_share_histogram(
            rows_having(numbers.recording, numbers.reading, "reads"), a_word(numbers.recording.info)
        ),
        needs=_has("reads"),
    ),
    Plan(
        "drift",
        "Drift",
        "Share of entries that moved at least so far from where they started, used and never selected ones; those "
        "that moved less than 0.000001 lie at the left edge. {entries} entries, {d_of_all}.",
        _drift,
        needs=_has("drift"),
    ),
    Plan(
        "training",
        "Training",
        "Loss in nats per token on training batches and on validation documents, and the number of entries that "
        "the validation tokens selected.",
        lambda numbers: usage.training_curve(numbers.curve),
        wide=True,
        needs=lambda numbers: len(numbers.curve),
    ),
)
"""Every figure, in the order of the report."""
