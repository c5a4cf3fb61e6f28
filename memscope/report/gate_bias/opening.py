"""The half page that the gate-bias report opens with: verdict, a sentence a layer, what to do next, yardsticks.

opening = make_opening(recording, find(recording), health(recording))

The yardsticks of a memory are numbers of the lab book, each with the page that has its runs; those of any other layer
are what even selection shows.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from memscope.base.words import plural, short_percent, span
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.report.document import Column, Opening, ReportTable, Step, make_table
from memscope.report.findings import Finding
from memscope.report.health import Flag
from memscope.report.words import place, rows_having

FIGURE = "lorenz"
"""Name of the figure that the opening shows."""
STEPS = 3
"""Pieces of advice that it gives."""
_SHOWN_LAYERS = 8
"""Layers that get a sentence each; of more, the most uneven ones."""
_LEVELS = ("bad", "watch", "good")
_VERDICTS = {"bad": "Not healthy", "watch": "To watch", "good": "Healthy"}
_WIDEN = "Train longer, or with a faster selection bias (balance_bias): use widens to the end of training."
_TO_OTHER_TEXT = "Record other text too: {words} that answer to nothing here may answer to that."
ADVICE = {
    "dead": (_WIDEN, _TO_OTHER_TEXT),
    "unused": (_WIDEN, _TO_OTHER_TEXT),
    "concentration": (_WIDEN, "See which tokens the busiest {words} take (the app, Routing)."),
    "unread": (
        "Try a smaller num_selected: every selection costs time, read or not (docs/log/training-speed.md).",
        "Try to select fewer {words}.",
    ),
    "choice": (
        "Say that the use is even with the bias; memory_small needs it as much (docs/log/selection-bias.md).",
        "Say that the use is even with the bias.",
    ),
    "silence": ("See which tokens these are (the app, Reading).",) * 2,
    "drift": ("Train longer, or raise memory_lr_scale.",) * 2,
    "faults": ("Look at each of them: Anomalies, below.",) * 2,
}
"""What to do about a check of ``report.health``, by its name: where there is a memory, and elsewhere."""


class Yardstick(NamedTuple):
    """A number that a memory is held against: what runs of the lab book have in a layer, from the least to the most."""

    healthy: tuple[float, float]
    collapsed: tuple[float, float]


YARDSTICKS = {
    "used": Yardstick((0.92, 1.0), (0.04, 0.10)),
    "half": Yardstick((561 / 16_384, 4_233 / 16_384), (9 / 65_536, 23 / 65_536)),
    "kl": Yardstick((0.1 / np.log(16_384), 1.6 / np.log(16_384)), (5.2 / np.log(16_384), 6.3 / np.log(16_384))),
}
"""Of ``memory_small`` in 3 seeds and of the founding design on 131,072 tokens (docs/log/memory-dim-256.md); "half" of
one seed of ``memory_small`` on 16,452 tokens (docs/log/selection-bias.md), and of 65,536 sentences after 200 steps
(docs/log/trex65k.md)."""
_SOURCES = (
    "Healthy: memory_small, three seeds on 131,072 tokens (docs/log/memory-dim-256.md); the row of halves on 16,452 "
    "tokens (docs/log/selection-bias.md). Collapsed: the founding experiment's design, same page; the row of halves is "
    "of 65,536 sentences after 200 steps (docs/log/trex65k.md)."
)


def make_opening(recording: Recording, findings: list[Finding], flags: list[Flag]) -> Opening:
    """The opening of a report.

    Args:
        recording: what the report is on.
        findings: ``report.findings.find`` of it; the first one is part of the verdict.
        flags: ``report.health.health`` of it.
    """
    level = next(level for level in _LEVELS if level == "good" or any(flag.level == level for flag in flags))
    first = findings[0]
    return Opening(
        level=level,
        verdict=f"{_VERDICTS[level]}: {_count(flags)}.",
        answer=f"{first.question} {first.short}",
        figure=FIGURE,
        layers=_layers(recording),
        steps=_steps(recording, flags),
        yardsticks=_yardsticks(recording),
    )


def _count(flags: list[Flag]) -> str:
    bad, watch = (sum(flag.level == level for flag in flags) for level in ("bad", "watch"))
    if not bad and not watch:
        return f"all {len(flags)} checks are good"
    if not bad:
        return f"{watch} of {len(flags)} checks"
    return f"{bad} of {len(flags)} checks {plural(bad, 'is', 'are')} bad" + (f", {watch} to watch" if watch else "")


def _layers(recording: Recording) -> list[str]:
    """A sentence a layer; where layers are many, on the most uneven ones, and one on the others."""
    layers, info = recording.layer_metrics(), recording.info
    reads = pd.DataFrame({"layer": []})
    if info.has("reads"):
        reads = rows_having(recording, recording.reading_metrics(), "reads")
    read = dict(zip(reads["layer"], reads.get("effective_entries_read", []), strict=True))
    excess = layers["kl_to_uniform"] - layers["even_kl_to_uniform"]
    shown = layers
    if len(layers) > _SHOWN_LAYERS:
        shown = layers.loc[excess.nlargest(_SHOWN_LAYERS - 1).index.sort_values()]
    said = [_layer(info, row, read.get(row["layer"])) for row in shown.to_dict("records")]
    rest = layers.drop(shown.index)
    if len(rest):
        said.append(
            f"The other {len(rest)} layers are more even: they use {span(rest['coverage'], '.1%')} of their "
            f"{info.word(2)}, and half of their selections go to {span(rest['top50'], ',')}."
        )
    return said


def _layer(info: RecordingInfo, row: dict[Any, Any], read: float | None) -> str:
    site = info.site(int(row["layer"]))
    said = (
        f"Layer {site.layer} uses {short_percent(row['coverage'])} of its {int(row['entries']):,} {site.word(2)} (even "
        f"selection: {short_percent(row['even_coverage'])}); half of its selections go to {int(row['top50']):,}"
    )
    return f"{said}." if read is None else f"{said}, and a token reads {read:.1f} of {site.selected}."


def _steps(recording: Recording, flags: list[Flag]) -> list[Step]:
    """What to do about the worst checks, and where to look next."""
    info = recording.info
    steps: dict[str, Step] = {}
    for flag in sorted(flags, key=lambda flag: _LEVELS.index(flag.level)):
        if flag.level != "good":
            do = ADVICE[flag.name][not _memories(info)].format(words=info.word(2))
            steps.setdefault(do, Step(flag.text, do))
    look = Step(
        "", f"Look at single {info.word(2)}, and at what fires on a text:", f"memscope app {place(recording.path)}"
    )
    return [*list(steps.values())[:STEPS], look]


def _yardsticks(recording: Recording) -> ReportTable:
    """What is healthy, beside what is here; of the memory layers where there are any."""
    layers, info = recording.layer_metrics(), recording.info
    memories = _memories(info)
    if memories:
        layers = layers[layers["layer"].isin(memories)]
    most = np.log(layers["entries"])
    rows = {
        "used": (f"{info.word(2)} used".capitalize(), layers["coverage"], layers["even_coverage"]),
        "half": (f"{info.word(2)} with half of the selections".capitalize(), layers["top50"] / layers["entries"], None),
        "kl": ("KL to uniform / ln N", layers["kl_to_uniform"] / most, layers["even_kl_to_uniform"] / most),
    }
    frame = pd.DataFrame(
        {
            "measure": title,
            "here": _span(here),
            "even": "at most 50%" if even is None else _span(even),
            "healthy": _span(YARDSTICKS[name].healthy),
            "collapsed": _span(YARDSTICKS[name].collapsed),
        }
        for name, (title, here, even) in rows.items()
    )
    whose = "Of a memory layer" if 0 < len(memories) < len(info.layers) else "Of a layer"
    columns = {"measure": Column(whose), "here": Column("Here"), "even": Column("Even selection")}
    if memories:
        columns |= {"healthy": Column("Healthy"), "collapsed": Column("Collapsed")}
    return make_table("What is healthy", _SOURCES if memories else "", frame, columns)


def _memories(info: RecordingInfo) -> list[int]:
    """Layers that are memories."""
    return [site.layer for site in info.sites if site.kind == "memory"]


def _span(shares: Iterable[float]) -> str:
    """The least and the most of some shares."""
    ordered = sorted(map(float, shares))
    ends = [short_percent(end) for end in (ordered[0], ordered[-1])]
    return " to ".join(dict.fromkeys(ends))
