"""Answers about the bank and its readers: how sure the numbers are, how layers share it, what is read, how it moved."""

import numpy as np
import pandas as pd

from memscope.base.words import plural, short_percent, span
from memscope.query.recording import Recording
from memscope.report.words import (
    Reply,
    ends,
    few_documents,
    layer_name,
    reworded,
    rows_having,
    selections,
    shared_by,
)


def certainty(recording: Recording) -> Reply:
    """How far the numbers would move with other text."""
    census, layers, info = recording.census, recording.layer_metrics(), recording.info
    errors = pd.to_numeric(layers["kl_to_uniform_se"])
    if errors.isna().any():
        return Reply(
            "Standard errors are not known: fewer than two folds hold text.",
            f"D = {selections(recording)} selections a layer; compare numbers only with their even twins.",
            found=False,
        )
    unit, few = census.interval_unit, pd.to_numeric(layers["kl_to_uniform_few"])
    short = (
        f"{few_documents(recording)}With other {unit} of this kind, as many and as long, a layer's KL to uniform would "
        f"move by about {span(errors, '.3f')} nats (one standard error; a 95% interval reaches "
        f"{census.critical:.1f} of them to either side)."
    )
    answer = (
        f"By leaving out one of {census.folds} folds of {unit} after the other (jackknife), over "
        f"D = {selections(recording)} selections a layer, {info.rows:,} tokens and {len(recording.documents):,} "
        f"documents, which tell as much as {census.equal_documents:.1f} {unit} of equal length. "
        f"Coverage would move by {span(pd.to_numeric(layers['coverage_se']), '.2%')} at most. Of the KL to uniform "
        f"even selection would show {span(layers['even_kl_to_uniform'], '.3f')} nats at this D, and {unit} being few "
        f"explains {span(few, '.3f')}: much more text of this kind would show that much less, or lower still. All of "
        "this is about one model: another seed may differ by more."
    )
    return Reply(short, answer)


def layers(recording: Recording) -> Reply:
    """How far layers use different entries."""
    info, counts, words = recording.info, recording.usage(), recording.info.word(2)
    if len(info.layers) == 1:
        return Reply(f"There is one {layer_name(info)}.", "Layers cannot be compared.", found=False)
    together = max(len(bank) for bank in info.banks)  # layers that share a group of entries
    if together == 1:
        whose = f"There are {info.knowledge_num:,}" if info.private else "Entries are"
        whose += ", " if info.private else " "
        short = f"By construction: each layer has {words} of its own."
        return Reply(short, f"{whose}{shared_by(info)}.", found=False)
    users = (counts > 0).sum(0)
    used, once = int((users > 0).sum()), int((users == 1).sum())
    pairs = [(a, b) for a in range(len(info.layers)) for b in range(a + 1, len(info.layers))]
    pairs = [(a, b) for a, b in pairs if info.sites[a].first_entry == info.sites[b].first_entry]
    divergence = recording.census.overlap.jensen_shannon
    two = "two layers" if together == len(info.layers) else "two layers of a group"
    alone = short_percent(once / max(1, used))
    short = (
        f"{alone} of the {used:,} {words} in use are used by one layer only; usage of {two} "
        f"lies {span([divergence[a][b] for a, b in pairs], '.2f')} nats apart (0.69 = no {info.word()} in common)."
    )
    answer = (
        f"{once:,} {words} are used by one layer only and {int((users == together).sum()):,} by all "
        f"{together}, over D = {int(counts[0].sum()):,} selections a layer. {_overlaps(recording, pairs)}"
    )
    if together < len(info.layers):
        answer = f"Entries are {shared_by(info)}; layers of different groups share none. {answer}"
    return Reply(short, answer)


def _overlaps(recording: Recording, pairs: list[tuple[int, int]]) -> str:
    """The least and the most overlap of used entries, among pairs of layers by their position in ``info.layers``."""
    layers, overlap = recording.info.layers, recording.census.overlap
    jaccard, independent = np.array(overlap.jaccard), np.array(overlap.even_jaccard)
    low, high = (end(pairs, key=lambda pair: jaccard[pair]) for end in (min, max))
    if low == high:
        return (
            f"Their sets of used entries have a Jaccard index of {jaccard[low]:.3f}; independent sets of these sizes "
            f"would have {independent[low]:.3f}. The distance is the Jensen-Shannon divergence."
        )
    return (
        f"Sets of used entries overlap least between layers {layers[low[0]]} and {layers[low[1]]} (Jaccard "
        f"{jaccard[low]:.3f}; independent sets of these sizes: {independent[low]:.3f}) and most between layers "
        f"{layers[high[0]]} and {layers[high[1]]} ({jaccard[high]:.3f}; independent: {independent[high]:.3f}). "
        "Distances are Jensen-Shannon divergences."
    )


def reading(recording: Recording) -> Reply:
    """How much of what the gate selects the attention reads."""
    reading, info, by_norm = rows_having(recording, recording.reading_metrics(), "reads"), recording.info, ""
    d, selected = selections(recording, having="reads"), [site.selected for site in info.sites if "reads" in site.has]
    if any(site.signed_reads for site in info.sites):
        by_norm = (
            "; by norm, in which read heads of different signs do not cancel, "
            f"{span(reading['unread_share_by_norm'], '.2%')}"
        )
    short = (
        f"A token effectively reads {span(reading['effective_entries_read'], '.1f')} of the {span(selected, ',')} "
        "entries it selects; the rank correlation of gate score and attention is "
        f"{span(reading['gate_attention_rank_correlation'], '+.2f')}."
    )
    answer = (
        f"Over {info.rows:,} tokens (D = {d} selections a layer), effective entries read are "
        f"{ends(reading, 'effective_entries_read', '.3f')}. {ends(reading, 'unread_share', '.2%')} of selections "
        f"stay unread, below 1% of their token's read{by_norm}. Gate score and attention agree at a rank correlation "
        f"of {ends(reading, 'gate_attention_rank_correlation', '+.3f')}; the attention is taken alone (read weight "
        "/ gate score), since the read weight contains the gate score."
    )
    return Reply(reworded(info, short), reworded(info, answer))


def drift(recording: Recording) -> Reply:
    """How far entries moved from their sentences."""
    drift, sites = recording.drift_summary(), recording.info.sites
    having = np.array(["drift" in site.has for site in sites])
    counts = recording.usage()[having]
    own = np.zeros(counts.shape[1], bool)
    for site in sites:
        own[site.own] |= "drift" in site.has
    used = int((counts.sum(0) > 0).sum())
    unused = int(own.sum()) - used
    short = f"Used entries moved by a median of {drift['median_used']:.3f} (1 − cosine)"
    short += f", entries never selected by {drift['median_unused']:.3f}." if unused else "."
    answer = (
        f"Over {used:,} used {plural(used, 'entry', 'entries')} and {unused:,} that none of D = {int(counts.sum()):,} "
        f"selections in {'all layers' if having.all() else 'its layers'} took: a tenth of the used moved more than "
        f"{drift['p90_used']:.3f}. "
    )
    if np.isnan(drift["kept"]):
        answer += "Entries started random, so there is no sentence to compare with."
    else:
        answer += (
            f"Of the tokens nearest to a used entry, {drift['kept']:.1%} stand in its init sentence now, "
            f"{drift['kept_at_init']:.1%} did before training."
        )
    return Reply(short, answer)
