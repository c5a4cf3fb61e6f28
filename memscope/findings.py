"""A recording's answers in words, each with its numbers: what the report opens with and the app shows as flags."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.query import Recording


class Finding(NamedTuple):
    """One answer."""

    question: str
    answer: str


def find(recording: Recording) -> list[Finding]:
    """Answers to the standing questions about a memory, most important first."""
    return [
        _evenness(recording.layer_metrics(), recording.census["all_layers"]),
        _layers(recording.usage(), recording.info.layers),
        _reading(recording.reading_metrics()),
        _drift(recording.drift_summary()),
    ]


def _evenness(layers: pd.DataFrame, everywhere: dict[str, int | float]) -> Finding:
    worst = layers.loc[layers["kl_to_uniform"].idxmax()]
    n, d = int(worst["entries"]), int(worst["selections"])
    answer = (
        f"Over {everywhere['selections']:,} selections {everywhere['coverage']:.1%} of the {n:,} entries were used "
        f"at least once in some layer; even selection would use {everywhere['even_coverage']:.1%}. "
        f"Layer {int(worst['layer'])} is the most uneven: {worst['coverage']:.1%} used over {d:,} selections "
        f"(even: {worst['even_coverage']:.1%}), half of its selections go to {int(worst['top50']):,} entries, "
        f"KL to uniform {worst['kl_to_uniform']:.2f} of at most {np.log(n):.2f} nats "
        f"(even: {worst['even_kl_to_uniform']:.2f}), Gini {worst['gini']:.2f} (even: {worst['even_gini']:.2f})."
    )
    return Finding("Is the gate biased?", answer)


def _layers(counts: np.ndarray, layers: tuple[int, ...]) -> Finding:
    used_by = (counts > 0).sum(0)
    if len(layers) == 1:
        return Finding("Do layers use the bank differently?", "There is one memory layer.")
    used = int((used_by > 0).sum())
    once, all_layers = int((used_by == 1).sum()), int((used_by == len(layers)).sum())
    overlaps = []
    for a in range(len(layers)):
        for b in range(a + 1, len(layers)):
            both = int(((counts[a] > 0) & (counts[b] > 0)).sum())
            either = int(((counts[a] > 0) | (counts[b] > 0)).sum())
            overlaps.append((both / max(1, either), layers[a], layers[b], _chance_jaccard(counts[a], counts[b])))
    lowest, highest = min(overlaps), max(overlaps)
    answer = (
        f"Of {used:,} entries in use, {once:,} are used by one layer only and {all_layers:,} by all {len(layers)}. "
        f"Sets of used entries overlap least between layers {lowest[1]} and {lowest[2]} "
        f"(Jaccard {lowest[0]:.2f}; independent sets of these sizes: {lowest[3]:.2f}) "
        f"and most between layers {highest[1]} and {highest[2]} ({highest[0]:.2f}; independent: {highest[3]:.2f})."
    )
    return Finding("Do layers use the bank differently?", answer)


def _chance_jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Expected Jaccard index of two independent random sets of these sizes (ratio of expectations)."""
    p, q = float((a > 0).mean()), float((b > 0).mean())
    return p * q / (p + q - p * q) if p + q > 0 else 0.0


def _reading(reading: pd.DataFrame) -> Finding:
    def span(column: str, form: str) -> str:
        """Lowest and highest layer of a column."""
        low, high = (reading.loc[getattr(reading[column], end)()] for end in ("idxmin", "idxmax"))
        return (
            f"{format(low[column], form)} (layer {int(low['layer'])}) to "
            f"{format(high[column], form)} (layer {int(high['layer'])})"
        )

    answer = (
        f"A token effectively reads {span('effective_entries_read', '.1f')} entries a layer. "
        f"{span('unread_share', '.0%')} of selections stay unread, below 1% of their token's read. "
        f"Gate score and attention agree at a rank correlation of {span('gate_attention_rank_correlation', '+.2f')}; "
        "the attention is taken alone (read weight / gate score), since the read weight contains the gate score."
    )
    return Finding("Does the attention read what the gate selects?", answer)


def _drift(drift: dict[str, float]) -> Finding:
    answer = (
        f"Median drift (1 - cosine to the initial entry) is {drift['median_used']:.3f} among used entries and "
        f"{drift['median_unused']:.3f} among entries never selected; a tenth of the used moved more than "
        f"{drift['p90_used']:.3f}. "
    )
    if np.isnan(drift["kept"]):
        answer += "Entries started random, so there is no sentence to compare with."
    else:
        answer += (
            f"Of the tokens nearest to a used entry, {drift['kept']:.1%} stand in its init sentence now, "
            f"{drift['kept_at_init']:.1%} did before training."
        )
    return Finding("How far have entries drifted from their sentences?", answer)
