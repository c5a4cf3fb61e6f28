"""What a first look at a recording should tell: flags in words, an entry that shows what entries are."""

from typing import NamedTuple

import numpy as np

from memscope.query.recording import Recording
from memscope.report.anomalies import ERROR_RATE, KINDS, find_anomalies


class Flag(NamedTuple):
    """A sentence on the health of a memory."""

    level: str
    """``good``, ``watch`` or ``bad``."""
    text: str


def health(recording: Recording) -> list[Flag]:
    """What a glance should tell: dead entries, concentration, unread selections, silence, drift, wasted entries."""
    info, layers, reading = recording.info, recording.layer_metrics(), recording.reading_metrics()
    d = info.rows * info.selected
    n = info.group_size  # entries that a layer can select
    flags = []
    worst = layers.loc[layers["dead"].idxmax()]
    dead, even = worst["dead"] / n, 1 - worst["even_coverage"]
    flags.append(
        Flag(
            _level(dead - even, 0.1, 0.5),
            f"{short_percent(dead)} of entries never selected in layer {int(worst['layer'])} over {short_number(d)} "
            f"selections; even selection would leave {short_percent(even)}.",
        )
    )
    everywhere = recording.census["all_layers"]["by_count"]
    unused = everywhere["dead"] / everywhere["entries"]
    flags.append(
        Flag(
            _level(unused - (1 - everywhere["even_coverage"]), 0.1, 0.5),
            f"{short_percent(unused)} of the bank is selected by no layer at all over "
            f"{short_number(d * len(info.layers))} selections; even selection would leave "
            f"{short_percent(1 - everywhere['even_coverage'])}.",
        )
    )
    narrow = layers.loc[layers["top50"].idxmin()]
    flags.append(
        Flag(
            _level(0.5 - narrow["top50"] / n, 0.35, 0.48),
            f"Half of layer {int(narrow['layer'])}'s {short_number(d)} selections go to {int(narrow['top50']):,} of "
            f"{n:,} entries ({short_percent(narrow['top50'] / n)}); the busiest one takes "
            f"{narrow['max_violation'] + 1:,.0f} times the even share.",
        )
    )
    unread = reading.loc[reading["unread_share"].idxmax()]
    flags.append(
        Flag(
            _level(unread["unread_share"], 0.2, 0.5),
            f"{short_percent(unread['unread_share'])} of layer {int(unread['layer'])}'s selections stay unread, below "
            f"1% of their token's read ({short_percent(unread['unread_share_by_norm'])} by norm over read heads); a "
            f"token effectively reads {unread['effective_entries_read']:.1f} of {info.selected}.",
        )
    )
    if info.selection_bias:
        least = reading.loc[reading["by_score_share"].idxmin()]
        flags.append(
            Flag(
                _level(1 - least["by_score_share"], 0.5, 1.1),
                f"Scores alone would have made {short_percent(least['by_score_share'])} of layer "
                f"{int(least['layer'])}'s {short_number(d)} selections; the selection bias made the others.",
            )
        )
    silent = reading.loc[reading["silent_tokens"].idxmax()]
    flags.append(
        Flag(
            _level(silent["silent_tokens"], 0.01, 0.2),
            f"{short_percent(silent['silent_tokens'])} of {info.rows:,} tokens read nothing in layer "
            f"{int(silent['layer'])}."
            if silent["silent_tokens"] > 0
            else f"Each of {info.rows:,} tokens reads something in every layer.",
        )
    )
    drift = recording.drift_summary()
    flags.append(
        Flag(
            "good" if drift["median_used"] > 0.001 else "watch",
            f"Used entries moved by a median of {drift['median_used']:.3f} (1 - cosine)"
            + ("." if np.isnan(drift["median_unused"]) else f", unused ones by {drift['median_unused']:.3f}.")
            + (
                ""
                if np.isnan(drift["kept"])
                else f" {drift['kept']:.0%} of what they decode to is still their sentence."
            ),
        )
    )
    return [*flags, _anomalies(recording)]


def _anomalies(recording: Recording) -> Flag:
    """How many faults stand out; that an entry answers one token or class, say, is no fault."""
    kinds = find_anomalies(recording)["kind"].value_counts()
    faults = [f"{kinds[name]:,} {kind.fault}" for name, kind in KINDS.items() if kind.fault and name in kinds]
    rate = f"The chance of a false one is {ERROR_RATE:.0%}"
    if not faults:
        return Flag("good", f"No entry or layer stands out as a fault. {rate} in all.")
    return Flag("watch", f"Faults that stand out: {', '.join(faults)}. {rate} in all; Gate bias, Anomalies lists them.")


def telling_entry(recording: Recording) -> tuple[int, int] | None:
    """An entry and a layer that show what entries are: much used, with a sentence, firing on one word above all."""
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


def short_percent(share: float) -> str:
    """A share with as many digits as tell it from none and from all."""
    if 0 < share < 5e-5:
        return "under 0.01%"
    if 1 - 5e-5 < share < 1:
        return "over 99.99%"
    if share in (0, 1) or 0.01 <= share <= 0.99:
        return f"{share:.0%}"
    return f"{share:.1%}" if 0.001 <= share <= 0.999 else f"{share:.2%}"


def short_number(number: int) -> str:
    """A count with its thousands, millions or billions as k, M or G."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 10 * size or (number >= size and size > 1e3):
            return f"{number / size:.1f} {name}"
    return f"{number:,.0f}"


def _level(value: float, watch: float, bad: float) -> str:
    return "bad" if value >= bad else "watch" if value >= watch else "good"
