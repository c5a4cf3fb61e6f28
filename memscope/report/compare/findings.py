"""A comparison of two recordings in words, each sentence with its numbers and what other text alone would show."""

from memscope.base.words import first_upper, plural, span
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.report.compare.changes import Changes
from memscope.report.compare.schema import LayerLikeness, LossChange
from memscope.report.findings import Finding
from memscope.report.words import a_word, few_documents, selections
from memscope.stats.stability import LIVELY


def describe(a: Recording, b: Recording, changes: Changes) -> list[Finding]:
    """Answers to the standing questions about two recordings, most important first."""
    unit = a.census.interval_unit
    same = (
        [_same_entries(a, b, changes, unit), _switched(a, changes, unit)]
        if changes.layers
        else [_other_bank(a, changes)]
    )
    loss = [] if changes.loss is None else [_loss(a, b, changes.loss)]
    relations = [_predicates(a, b, changes)] if a.info.has("starts") or b.info.has("starts") else []
    return [*same, _evenness(a, b, changes), *relations, *loss]


def _other_bank(a: Recording, changes: Changes) -> Finding:
    return Finding(
        f"Do both select the same {a.info.word(2)}?",
        "That cannot be asked: the banks did not start alike.",
        f"{changes.different_entries:,} of {a.info.knowledge_num:,} entries started from another sentence in B than in "
        "A, or at random from another seed, so an entry's number names two different things. Only distributions are "
        "compared here.",
    )


def _same_entries(a: Recording, b: Recording, changes: Changes, unit: str) -> Finding:
    layers = [row for row in changes.layers if row.layer is not None]
    short = f"{_care(a, b)}Usage per layer lies {span([row.jensen_shannon for row in layers], '.3f')} nats apart "
    short += f"(Jensen-Shannon divergence; 0 = equal, 0.693 = no {a.info.word()} in common)"
    apart = [row.halves_jensen_shannon_a for row in layers] + [row.halves_jensen_shannon_b for row in layers]
    known = [value for value in apart if value is not None]
    short += f"; two halves of one recording's {unit} lie {span(known, '.3f')} apart." if known else "."
    far = max(layers, key=lambda row: row.jensen_shannon)
    answer = (
        f"Most in layer {far.layer}: {far.jensen_shannon:.3f} nats over D = {far.selections_a:,} (A) and "
        f"{far.selections_b:,} (B) selections{_halves(far, unit)}. The sets of {a.info.word(2)} used there have a "
        "Jaccard index "
        f"of {far.jaccard:.2f}; independent sets of these sizes would have {far.independent_jaccard:.2f}"
        f"{'' if far.halves_jaccard is None else f', two such halves {far.halves_jaccard:.2f}'}. Over layers the "
        f"Jaccard index is {span([row.jaccard for row in layers], '.2f')}"
    )
    rho = [row.rank_correlation for row in layers if row.rank_correlation is not None]
    answer += f", the rank correlation of usage over all {a.info.word(2)} {span(rho, '+.2f')}." if rho else "."
    if not a.info.has("starts"):
        answer += " " + numbers_mean(a.info)
    return Finding(f"Do both select the same {a.info.word(2)}?", short, answer)


def numbers_mean(info: RecordingInfo) -> str:
    """How far a number names the same entry in two models of which no start is known."""
    words = info.word(2)
    return (
        f"{first_upper(words)} are matched by their numbers, which name the same ones in checkpoints of one model and "
        "in fine-tuned copies of it, not in models that were trained apart."
    )


def _switched(a: Recording, changes: Changes, unit: str) -> Finding:
    layers = [row for row in changes.layers if row.layer is not None]
    died, woke = sum(row.died for row in layers), sum(row.woke for row in layers)
    short = f"{died:,} {plural(died, a.info.word(), a.info.word(2))} died in a layer and {woke:,} woke"
    switched = [row.halves_switched for row in layers if row.halves_switched is not None]
    short += f"; between two halves of one recording's {unit} {sum(switched):,.1f} do." if switched else "."
    by_chance = sum(row.died_by_sampling for row in layers), sum(row.woke_by_sampling for row in layers)
    answer = (
        f"Died: selected at least {LIVELY} times in A and never in B, over D = {layers[0].selections_a:,} and "
        f"{layers[0].selections_b:,} selections a layer. Woke: the other way round. {first_upper(a_word(a.info))} "
        f"counts once per layer. Samples of independent selections would show {by_chance[0]:,.1f} and "
        f"{by_chance[1]:,.1f}, and other text of the same kind more than that. "
    )
    for row in changes.layers:
        if row.layer is None:
            answer += (
                f"With all layers taken together {row.died:,} died and {row.woke:,} woke (independent selections: "
                f"{row.died_by_sampling:,.1f} and {row.woke_by_sampling:,.1f}, D = {row.selections_a:,} and "
                f"{row.selections_b:,}). "
            )
    return Finding(f"Which {a.info.word(2)} died, which woke?", short, answer + "Tables name them.")


def _evenness(a: Recording, b: Recording, changes: Changes) -> Finding:
    rows = [row for row in changes.evenness if row.metric == "kl_to_uniform" and row.layer is not None]
    known = all(row.change_se is not None for row in rows)
    critical = max(recording.census.critical or 0.0 for recording in (a, b))
    up, down = (sum(sign * row.change > critical * (row.change_se or 0.0) for row in rows) for sign in (1, -1))
    short = f"KL to uniform rose in {up} of {len(rows)} layers (less even) and fell in {down} (more even)"
    short += ", counting changes whose 95% interval excludes none." if known else "."
    far = max(rows, key=lambda row: abs(row.change))
    error = f" ± {far.change_se:.3f}" if far.change_se is not None else ""
    covered = [row for row in changes.evenness if row.metric == "coverage" and row.layer is not None]
    answer = (
        f"Most in layer {far.layer}: from {far.a:.3f} to {far.b:.3f} nats ({far.change:+z.3f}{error}). Coverage per "
        f"layer is {span([row.a for row in covered], '.1%')} in A and {span([row.b for row in covered], '.1%')} in B, "
        f"over D = {selections(a)} and {selections(b)} selections a layer."
    )
    if any(a.total_selections(layer) != b.total_selections(layer) for layer in a.info.layers):
        answer += " These metrics depend on D, so part of the change may come from its difference."
    if not known:
        answer += " No standard errors are known here, so small changes may be chance."
    return Finding("Has selection become more even?", short, answer)


def _predicates(a: Recording, b: Recording, changes: Changes) -> Finding:
    question = "Has the gate turned to other relations?"
    if not changes.predicates:
        return Finding(question, "No entry of these banks has triples.", "There are no relations to compare.")
    top = changes.predicates[0]
    short = (
        f"“{top.predicate}” changed most: from {top.selection_share_a:.1%} to {top.selection_share_b:.1%} of the "
        f"selections of entries with triples; its share of the bank is {top.bank_share_b:.1%}."
    )
    answer = (
        f"Over {len(changes.predicates)} relations and all layers, D = {selections(a, all_layers=True)} and "
        f"{selections(b, all_layers=True)} selections. An entry with several relations counts for each of them. Where "
        "few entries take most selections, these shares are those of few entries: a change says where the gate went, "
        "not that it went there because of the relation."
    )
    return Finding(question, short, answer)


def _loss(a: Recording, b: Recording, loss: LossChange) -> Finding:
    error = f" ± {loss.change_se:.4f}" if loss.change_se is not None else ""
    short = (
        f"Loss on the recorded text: {loss.a:.4f} in A, {loss.b:.4f} in B ({loss.change:+z.4f}{error} nats per token)."
    )
    answer = f"Over {a.info.rows:,} and {b.info.rows:,} tokens. "
    if loss.paired:
        answer += (
            f"Both are means over the same text; the error is that of differences over its {loss.documents:,} "
            f"documents, and B is lower in {loss.documents_lower:,} of them."
        )
    else:
        answer += "The texts differ, so this is a difference of texts as well as of models."
    return Finding("Has the loss changed?", short, answer)


def _halves(row: LayerLikeness, unit: str) -> str:
    if row.halves_jensen_shannon_a is None or row.halves_jensen_shannon_b is None:
        return ""
    return (
        f" (two halves of the {unit} under one gate, D/2 each: {row.halves_jensen_shannon_a:.4f} in A, "
        f"{row.halves_jensen_shannon_b:.4f} in B; whole texts would lie closer, independent selections "
        f"{row.sampled_jensen_shannon:.2g} apart)"
    )


def _care(a: Recording, b: Recording) -> str:
    """A warning where one of the texts is too little."""
    return few_documents(min((a, b), key=lambda recording: recording.census.equal_documents))
