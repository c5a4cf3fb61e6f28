"""A first look at a recording: flags in words, and an entry to serve as an example."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from memscope.base.words import first_upper, short_percent
from memscope.query.recording import Recording
from memscope.report.anomalies import ERROR_RATE, FAULTS, fault_in_words, find_anomalies
from memscope.report.words import bias_name

LEAST_DRIFT = 0.001
"""Used entries with a smaller median drift hardly moved."""


class Flag(NamedTuple):
    """A sentence on the health of a memory."""

    level: str
    """``good``, ``watch`` or ``bad``."""
    text: str
    name: str = ""
    """The check's."""


class Measure(NamedTuple):
    """A number on the health of a memory, worse when larger, and the sentence that says it."""

    value: float
    text: str


class Check(NamedTuple):
    """A measure, and from where on it is to be watched or bad."""

    name: str
    measure: Callable[[Recording], Measure | None]
    """None where there is nothing to measure."""
    watch: float
    bad: float = float("inf")


def health(recording: Recording) -> list[Flag]:
    """Flags for dead entries, concentration, unread selections, silence, drift and wasted entries."""
    measured = [(check, check.measure(recording)) for check in CHECKS]
    return [
        Flag(_level(measure.value, check), measure.text, check.name)
        for check, measure in measured
        if measure is not None
    ]


def _level(value: float, check: Check) -> str:
    return "bad" if value >= check.bad else "watch" if value >= check.watch else "good"


def _dead_in_a_layer(recording: Recording) -> Measure:
    layers = recording.layer_metrics()
    worst = layers.loc[(layers["dead"] / layers["entries"]).idxmax()]
    dead, even = worst["dead"] / worst["entries"], 1 - worst["even_coverage"]
    words = recording.info.site(int(worst["layer"])).word(2)
    return Measure(
        dead - even,
        f"{short_percent(dead)} of {words} never selected in layer {int(worst['layer'])} over "
        f"{short_number(int(worst['selections']))} selections; even selection would leave {short_percent(even)}.",
    )


def _dead_in_all_layers(recording: Recording) -> Measure | None:
    if len(recording.info.banks) == len(recording.info.sites) > 1:
        return None  # each layer has entries of its own
    everywhere = recording.census.all_layers.by_count
    dead, even = everywhere.dead / everywhere.entries, 1 - everywhere.even_coverage
    whole = "the bank" if recording.info.kind == "memory" else f"all {recording.info.word(2)}"
    return Measure(
        dead - even,
        f"{short_percent(dead)} of {whole} is selected by no layer at all over "
        f"{short_number(everywhere.selections)} selections; even selection would leave {short_percent(even)}.",
    )


def _concentration(recording: Recording) -> Measure:
    layers = recording.layer_metrics()
    narrow = layers.loc[(layers["top50"] / layers["entries"]).idxmin()]
    times = narrow["max_violation"] + 1
    share, words = narrow["top50"] / narrow["entries"], recording.info.site(int(narrow["layer"])).word(2)
    return Measure(
        0.5 - share,
        f"Half of layer {int(narrow['layer'])}'s {short_number(int(narrow['selections']))} selections go to "
        f"{int(narrow['top50']):,} of {int(narrow['entries']):,} {words} ({short_percent(share)}); the busiest one "
        f"takes {times:,.{1 if times < 2 else 0}f} times the even share.",
    )


def _unread(recording: Recording) -> Measure | None:
    if not recording.info.has("reads"):
        return None
    reading = recording.reading_metrics()
    worst = reading.loc[reading["unread_share"].idxmax()]
    return Measure(
        worst["unread_share"],
        f"{short_percent(worst['unread_share'])} of layer {int(worst['layer'])}'s selections stay unread, below "
        f"1% of their token's read ({short_percent(worst['unread_share_by_norm'])} by norm over read heads); a "
        f"token effectively reads {worst['effective_entries_read']:.1f} of "
        f"{recording.info.site(int(worst['layer'])).selected}.",
    )


def _selection_bias(recording: Recording) -> Measure | None:
    if not any(site.selection_bias for site in recording.info.sites):
        return None
    reading, d = recording.reading_metrics(), recording.layer_metrics().set_index("layer")["selections"]
    least = reading.loc[reading["by_score_share"].idxmin()]
    return Measure(
        1 - least["by_score_share"],
        f"Scores alone would have made {short_percent(least['by_score_share'])} of layer {int(least['layer'])}'s "
        f"{short_number(int(d[least['layer']]))} selections; the selection bias made the others.",
    )


def _silence(recording: Recording) -> Measure | None:
    if not recording.info.has("reads"):
        return None
    reading, tokens = recording.reading_metrics(), recording.info.rows
    worst = reading.loc[reading["silent_tokens"].idxmax()]
    share = worst["silent_tokens"]
    if share > 0:
        text = f"{short_percent(share)} of {tokens:,} tokens read nothing in layer {int(worst['layer'])}."
    else:
        every = "every layer" if recording.info.has("reads", everywhere=True) else "every layer with a read of its own"
        text = f"Each of {tokens:,} tokens reads something in {every}."
    return Measure(share, text)


def _stillness(recording: Recording) -> Measure | None:
    """1 where used entries hardly moved, or where none is used; else 0."""
    if not recording.info.has("drift"):
        return None
    drift = recording.drift_summary()
    text = f"Used entries moved by a median of {drift['median_used']:.3f} (1 - cosine)"
    text += "." if np.isnan(drift["median_unused"]) else f", unused ones by {drift['median_unused']:.3f}."
    if not np.isnan(drift["kept"]):
        text += f" {drift['kept']:.0%} of what they decode to is still their sentence."
    return Measure(0.0 if drift["median_used"] > LEAST_DRIFT else 1.0, text)


def _faults(recording: Recording) -> Measure:
    """How many faults stand out; that an entry answers one token or class, say, is no fault."""
    kinds = find_anomalies(recording)["kind"].value_counts()
    faults = {name: int(kinds[name]) for name in FAULTS if name in kinds}
    rate, page = f"The chance of a false one is {ERROR_RATE:.0%}", first_upper(bias_name(recording.info))
    if not faults:
        return Measure(0.0, f"No {recording.info.word()} or layer stands out as a fault. {rate} in all.")
    named = ", ".join(fault_in_words(name, count, recording.info) for name, count in faults.items())
    return Measure(
        float(sum(faults.values())),
        f"Faults that stand out: {named}. {rate} in all; {page}, Anomalies lists them.",
    )


CHECKS = (
    Check("dead", _dead_in_a_layer, watch=0.1, bad=0.5),
    Check("unused", _dead_in_all_layers, watch=0.1, bad=0.5),
    Check("concentration", _concentration, watch=0.35, bad=0.48),
    Check("unread", _unread, watch=0.2, bad=0.5),
    Check("choice", _selection_bias, watch=0.5),
    Check("silence", _silence, watch=0.01, bad=0.2),
    Check("drift", _stillness, watch=1.0),
    Check("faults", _faults, watch=1.0),
)
"""Every check in the order in which they are shown."""


def telling_entry(recording: Recording) -> tuple[int, int] | None:
    """An entry and a layer that show what entries are: much used, with a sentence, firing on one word above all.

    A sentence that a layer reads comes before an entry that started as one.
    """
    reading = [site.layer for site in recording.info.sites if site.kind == "text"]
    if (found := _telling_sentence(recording, reading)) is not None:
        return found
    frame = recording.sql(
        """SELECT firing.entry, layer, input_token[1] AS token, count
           FROM firing JOIN bank USING (entry) WHERE count >= 20 AND input_count[1] > 0.6 * count
           ORDER BY sentence IS NULL, count DESC LIMIT 500"""
    )
    texts = recording.tokenizer.token_texts
    for row in frame.itertuples():
        word = texts[row.token] if row.token >= 0 else ""
        if word.startswith(" ") and len(word) > 3 and word.strip().isalpha():
            return int(row.entry), int(row.layer)
    used = recording.sql("SELECT entry, layer FROM usage ORDER BY count DESC, entry LIMIT 1")
    return (int(used["entry"][0]), int(used["layer"][0])) if len(used) else None


def _telling_sentence(recording: Recording, layers: list[int]) -> tuple[int, int] | None:
    """The most used sentence that fires on one of its own words more than on any other, or else the most used."""
    if not layers:
        return None
    frame = recording.sql(
        f"""SELECT firing.entry, layer, input_token[1] AS token, sentence FROM firing JOIN bank USING (entry)
            WHERE layer IN ({", ".join(map(str, layers))})
            ORDER BY count < 20 OR input_count[1] < 0.2 * count, count DESC, entry, layer LIMIT 2000"""
    )
    texts = recording.tokenizer.token_texts
    for row in frame.itertuples():
        word = texts[row.token].strip() if row.token >= 0 else ""
        if len(word) > 4 and word.lower() in re.findall(r"\w+", row.sentence.lower()):
            return int(row.entry), int(row.layer)
    return (int(frame["entry"][0]), int(frame["layer"][0])) if len(frame) else None


def short_number(number: int) -> str:
    """A count with its thousands, millions or billions as k, M or G."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 10 * size or (number >= size and size > 1e3):
            return f"{number / size:.1f} {name}"
    return f"{number:,.0f}"
