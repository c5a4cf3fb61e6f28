"""The gate-bias report as a document: its facts, figures, tables and method; ``report/gate_bias.py`` writes it."""

from collections.abc import Iterator

import pandas as pd

from memscope.base.words import plural
from memscope.query.recording import Recording
from memscope.report.anomaly_table import METHOD, anomaly_table
from memscope.report.document import Column, Context, Document, EntryNote, ReportFigure, ReportTable, make_table
from memscope.report.facts import fact_figures, fact_findings, fact_tables
from memscope.report.findings import Finding, find_choice
from memscope.report.plots import bias as bias_plots
from memscope.report.plots import usage as plots
from memscope.report.words import selections, shared_by

_SHOWN_ENTRIES, _SHOWN_CONTEXTS, _SHOWN_PREFERENCES = 20, 3, 20

_EVENNESS = {
    "layer": Column("Layer", ",d"),
    "coverage": Column("Coverage", ".2%", "coverage_se"),
    "even_coverage": Column("even", ".1%"),
    "kl_to_uniform": Column("KL to uniform, nats", ".3f", "kl_to_uniform_se"),
    "even_kl_to_uniform": Column("even", ".3f"),
    "relative_perplexity": Column("Relative perplexity", ".4f"),
    "gini": Column("Gini", ".4f", "gini_se"),
    "even_gini": Column("even", ".3f"),
    "top50": Column("Top 50%", ",d", "top50_se"),
    "top90": Column("Top 90%", ",d"),
    "top99": Column("Top 99%", ",d"),
    "max_violation": Column("MaxVio", ",.1f"),
    "dead": Column("Dead", ",d"),
    "hot": Column("Hot", ",d"),
    "by_score_share": Column("By scores alone", ".1%", "by_score_share_se"),
}
_PREFERENCES = {
    "layer": Column("Layer", ",d"),
    "name": Column("Label", prose=True),
    "entries": Column("Entries", ",d"),
    "used": Column("used", ",d"),
    "top_share": Column("Top entry's share", ".0%"),
    "lift": Column("Lift", ".3g"),
    "documents": Column("Other documents, 95%"),
    "shuffled": Column("Shuffled labels, 95%"),
    "q": Column("q", ".2g"),
    "superiority": Column("Superiority", ".3f"),
    "rank_q": Column("Rank q", ".2g"),
    "decision": Column("Significant"),
}
_GROUPS = {
    "group": Column("Group"),
    "selections": Column("D, all layers", ",d"),
    "coverage": Column("Coverage", ".1%", "coverage_se"),
    "even_coverage": Column("even", ".1%"),
    "kl_to_uniform": Column("KL to uniform, nats", ".3f", "kl_to_uniform_se"),
    "even_kl_to_uniform": Column("even", ".3f"),
    "gini": Column("Gini", ".3f", "gini_se"),
    "top50": Column("Top 50%", ",d", "top50_se"),
    "loss": Column("Loss, nats", ".3f"),
}
_READING = {
    "layer": Column("Layer", ",d"),
    "gate_entropy": Column("Gate entropy, nats", ".3f", "gate_entropy_se"),
    "read_entropy": Column("Read entropy, nats", ".3f", "read_entropy_se"),
    "effective_entries_read": Column("Effective entries", ".2f", "effective_entries_read_se"),
    "unread_share": Column("Unread", ".2%", "unread_share_se"),
    "unread_share_by_norm": Column("by norm", ".2%", "unread_share_by_norm_se"),
    "silent_tokens": Column("Silent tokens", ".2%"),
    "gate_attention_rank_correlation": Column(
        "Rank corr. gate, attention", "+.3f", "gate_attention_rank_correlation_se"
    ),
    "gate_read_rank_correlation": Column("Rank corr. gate, read", "+.3f", "gate_read_rank_correlation_se"),
    "margin": Column("Selection margin", ".3f", "margin_se"),
    "score_margin": Column("in raw scores", "+.3f", "score_margin_se"),
}


def make_document(recording: Recording, findings: list[Finding]) -> Document:
    """The report before it is put on paper."""
    info, run = recording.info, recording.run_summary
    facts = {
        "Corpus": f"{info.corpus_name}, {len(recording.documents):,} documents (SHA-256 {info.corpus_sha256[:12]})",
        "Model": f"{info.run_name} (SHA-256 {info.fingerprint[:12]})",
        "Recorded": f"{info.rows:,} tokens, {len(info.layers)} memory {plural(len(info.layers), 'layer', 'layers')}, "
        f"{info.selected} selections a token and layer: D = {selections(recording)} selections a layer",
        "Choice": find_choice(recording).short,
        "Bank": f"{info.knowledge_num:,} entries of {info.knowledge_length} slot{'s'[: info.knowledge_length > 1]}, "
        + shared_by(info),
        "Loss": f"{_loss(recording)} nats per token on the recorded text",
    }
    if run:
        facts["Training"] = (
            f"{run['steps']:,} steps, {run['tokens']:,} tokens; validation loss went from "
            f"{run['untrained_valid_loss']:.4f} to {run['valid_loss']:.4f} nats per token"
        )
    return Document(
        title="Gate-bias report",
        subtitle="Which entries the gate selects, how evenly, toward what, and what the attention reads of them.",
        facts=facts,
        findings=[*findings, *fact_findings(recording.path)],
        figures=[*_figures(recording), *fact_figures(recording.path)],
        tables=[*_tables(recording), anomaly_table(recording), *fact_tables(recording.path)],
        method=[*_method(recording), METHOD],
        files={
            "metrics.json": "every number of this report; metrics.schema.json describes its fields",
            "layers.csv, .parquet": "the evenness and reading metrics of each layer, for three weightings of usage",
            "preferences.csv, .parquet": "lift of every label in every layer, with intervals, chance and tests",
            "anomalies.csv, .parquet": "what stands out, each with its effect, its chance and the tokens it is over",
            "usage.csv, .parquet": "selections, summed gate scores and read weights of every used (layer, entry)",
            "entries.csv, .parquet": "every entry with its init sentence, triples, drift and usage",
            "figures/": "the figures as PNG and SVG",
        },
        entries=_entry_notes(recording),
        entries_caption="Nearest tokens are measured in the space that the bank started in; marked ones stand in the "
        "init sentence. In contexts the firing token is marked; gate scores are of that selection.",
    )


def _figures(recording: Recording) -> Iterator[ReportFigure]:
    info, census, counts = recording.info, recording.census, recording.reachable_usage()
    layers, reading, preferences = recording.layer_metrics(), recording.reading_metrics(), recording.preferences()
    d = f"D = {selections(recording)} selections a layer"
    yield ReportFigure(
        "usage",
        "Selections per entry",
        f"Entries of each layer sorted by how often they were selected; a flat line would be even use. {d}.",
        plots.usage_histogram(counts, info.layers),
    )
    yield ReportFigure(
        "lorenz",
        "Lorenz curve",
        f"Share of all selections that go to the least used share of entries; the diagonal is even use. {d}.",
        plots.lorenz_curve(counts, info.layers),
    )
    yield ReportFigure(
        "coverage",
        "Coverage",
        f"Entries selected at least once, beside what even selection would reach with as many selections. {d}.",
        plots.coverage_bars(layers),
    )
    yield ReportFigure(
        "concentration",
        "Concentration",
        f"How many of the most used entries hold 50, 90 and 99 percent of a layer's selections. {d}.",
        plots.top_mass(layers),
    )
    if len(preferences):
        yield ReportFigure(
            "preferences",
            "Preferences",
            "Lift of labels of the init sentence, significant ones and those with the smallest p-values; lifts beyond "
            "1/32 and 32 lie at the edge. A dot outside its grey bar is more "
            f"than which entries happen to be hot; it is filled when that holds after correction for all "
            f"{2 * len(preferences):,} tests. {d}.",
            bias_plots.preference_forest(preferences),
            wide=True,
        )
    for name, title, classes in (
        ("position", "Choice by position", "position in the window"),
        ("frequency", "Choice by token frequency", "frequency of the input token"),
    ):
        profiles = [layer["profiles"][name] for layer in census["layers"]]
        yield ReportFigure(
            f"{name}_profile",
            title,
            f"How far the entries chosen for tokens of a class differ from those of the whole layer; dotted: as many "
            f"tokens at random, which differ by chance. {d}.",
            bias_plots.class_divergence(profiles, info.layers, classes),
        )
    if len(info.layers) > 1:
        yield ReportFigure(
            "layer_overlap",
            "Overlap of layers",
            f"Left: Jaccard index of the sets of entries that two layers use, orange above and purple below what "
            f"independent sets of these sizes would have. Right: distance of usage, 0.69 = no entry in common. {d}.",
            bias_plots.overlap_heatmap(census["overlap"], info.layers),
            wide=True,
        )
    yield ReportFigure(
        "entropy",
        "Sureness of gate and read",
        "Entropy of a token's gate and read shares, 1 = all selected entries alike, 0 = one takes all; bars are one "
        f"standard error. {info.rows:,} tokens, {d}.",
        bias_plots.entropy_dots(reading, info.selected),
    )
    yield ReportFigure(
        "margins",
        "Selection margin",
        "How far the weakest selected entry stands above the best rejected one, by raw score plus the selection "
        "bias where there is one, in half octaves; ties are scores that the precision of the forward pass "
        f"({info.dtype}) does not tell apart. {info.rows:,} tokens, {d}.",
        bias_plots.margin_lines(reading),
    )
    yield ReportFigure(
        "read_shares",
        "Read shares",
        f"How a token's read divides over its {info.selected} selected entries: mass at 0 is selected but unread, "
        f"mass at 1 is a token that reads one entry. {d}.",
        plots.read_share_histogram(reading),
    )
    yield ReportFigure(
        "drift",
        "Drift",
        "Share of entries that moved at least so far from where they started, used and never selected ones; those "
        "that moved less than 0.000001 lie at the left edge. "
        f"{info.knowledge_num:,} entries, D = {selections(recording, all_layers=True)} selections in all layers.",
        bias_plots.drift_curves(recording.drift(), recording.usage().sum(0) > 0),
    )
    curve = recording.training_curve()
    if len(curve):
        yield ReportFigure(
            "training",
            "Training",
            "Loss in nats per token on training batches and on validation documents, and the number of entries that "
            "the validation tokens selected.",
            plots.training_curve(curve),
            wide=True,
        )


def _tables(recording: Recording) -> Iterator[ReportTable]:
    census, preferences = recording.census, recording.preferences()
    errors = f"± is one standard error over {census['folds']} folds of {census['interval_unit']}, where it is known."
    yield make_table(
        "Evenness of selection",
        "Columns headed “even” give what selection at random with equal chances shows at the same D; the last is "
        f"the share of selections that raw scores alone, without a bias, would have made. {errors} D = "
        f"{selections(recording)} selections a layer.",
        recording.evenness(),
        _EVENNESS,
    )
    yield make_table(
        "Gate and read",
        f"Means over the tokens that read anything, of {recording.info.rows:,} tokens. The columns “by norm” and “in "
        "raw scores” are the same as those before them, without the signs of read heads and without the bias. "
        f"{errors}",
        recording.reading_metrics(),
        _READING,
    )
    if len(preferences):
        by_p = preferences.loc[preferences[["p", "rank_p"]].min(axis=1).sort_values(kind="stable").index]
        yield make_table(
            "Preferences",
            f"The {min(_SHOWN_PREFERENCES, len(by_p))} labels and layers of {len(by_p):,} with the smallest p-values; "
            "preferences.csv has all. 95% over other documents; shuffled: 95% of the lifts that shuffled labels reach. "
            "Superiority: chance that an entry with the label is selected more often than one without. q: p adjusted "
            f"for all {2 * len(by_p):,} tests. D = {selections(recording)} selections a layer.",
            _in_words(by_p.head(_SHOWN_PREFERENCES)),
            _PREFERENCES,
        )
    if census["groups"]:
        rows = [
            {"group": name, **group["all_layers"]["by_count"], "loss": group["layers"][0]["reading"]["loss"]}
            for name, group in census["groups"].items()
        ]
        yield make_table(
            "Groups of documents",
            f"All layers together. Groups differ in D, and these metrics depend on it: compare with “even”. {errors}",
            pd.DataFrame(rows),
            _GROUPS,
        )


def _in_words(preferences: pd.DataFrame) -> pd.DataFrame:
    """Preferences with intervals, label and decision as text."""

    def interval(low: float, high: float) -> str | None:
        return None if pd.isna(low) else f"{low:.2g} to {high:.2g}"

    return preferences.assign(
        name=[f"{row.attribute}: {row.label}" for row in preferences.itertuples()],
        documents=[interval(row.low, row.high) for row in preferences.itertuples()],
        shuffled=[interval(row.chance_low, row.chance_high) for row in preferences.itertuples()],
        decision=[
            " and ".join(name for name, found in (("lift", row.significant), ("ranks", row.rank_significant)) if found)
            or "no"
            for row in preferences.itertuples()
        ],
    )


def _loss(recording: Recording) -> str:
    error = recording.census["layers"][0]["reading"].get("loss_se")
    return f"{recording.census['loss']:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _entry_notes(recording: Recording) -> list[EntryNote]:
    """The most used entries with what they decode to and where they fire."""
    notes = []
    for number in recording.entries(limit=_SHOWN_ENTRIES)["entry"]:
        card = recording.entry(int(number))
        most = card.usage.loc[card.usage["count"].idxmax()]
        contexts = [
            Context(
                f"layer {c['layer']}, gate {c['gate']:.3f}{', ' + c['title'] if c['title'] else ''}",
                *(c[part] for part in ("before", "token", "after")),
            )
            for c in recording.contexts(card.entry).head(_SHOWN_CONTEXTS).to_dict("records")
        ]
        notes.append(
            EntryNote(
                title=f"Entry {card.entry}",
                about=f"{int(card.usage['count'].sum()):,} selections, most in layer {int(most['layer'])} "
                f"({most['share']:.1%} of its selections); drift {max(0.0, card.drift):.3f}",
                fires_on=card.title,
                words=card.words,
                sentence=card.sentence,
                nearest=list(zip(card.nearest["token"], card.nearest["in_sentence"], strict=True)),
                contexts=contexts,
            )
        )
    return notes


def _method(recording: Recording) -> list[str]:
    info, census = recording.info, recording.census
    return [
        "Every token of the corpus passed through the model once, in windows that never cross a document; hooks noted "
        "the selected entries, their gate scores and their read weights (mean over read heads, sum over slots) without "
        f"changing the output. The precision of the forward pass was {info.dtype}. D is the number of selections that "
        f"a number is over: {info.rows:,} tokens times {info.selected} selections in each layer.",
        "z is the share of each entry among a layer's D selections. Coverage = share of entries with z > 0. KL to "
        "uniform = ln N + Σ z ln z. Relative perplexity = exp(entropy of z) / N. Gini = 1 − 2 mean(cumsum(sort z)) + "
        "1/N. Top 50/90/99% = number of most used entries that hold that share. MaxVio = (largest load − mean) / mean. "
        "Dead = never selected; hot = more than ten times the even share. A finite D makes even selection look uneven: "
        "compare each value with its “even” twin (every gate head takes its entries for a token at random), not with 0 "
        "or 1. N is "
        f"the number of entries that a layer can select, {info.group_size:,}.",
        f"Standard errors leave out one of {census['folds']} folds of {census['interval_unit']} after the other "
        "(delete-a-group jackknife): text inside a document is correlated, so tokens are not the unit. They say how "
        "far other text of this kind would move a number, not another model.",
        "Lift = share of selections / share of entries of a label, both among the entries that have the attribute. "
        "Its 95% interval holds the entries fixed and varies documents (jackknife of the log odds, Student's t). p "
        "shuffles labels over entries and holds the counts fixed: it asks whether usage and label go together more "
        "than which entries happen to be hot; rank p asks the same of ranks of counts, where hot entries weigh no more "
        "than others. q adjusts both for all tests together (Benjamini-Hochberg, 5%). A small q does not say that the "
        "label is the cause: labels overlap with one another and with the words of a sentence.",
        "Choice by class: KL of the entries chosen for a class of tokens from those of the layer, beside as many "
        "tokens at random. Overlap of layers: Jaccard index = entries used by both / by either, chance = independent "
        "sets of these sizes; Jensen-Shannon divergence of usage, natural logarithm.",
        "A token's gate shares and read shares are its gate scores and absolute read weights divided by their sums. "
        "Effective entries = exp(entropy of read shares). Unread = less than 1% of the token's read; by norm: of the "
        "mean over read heads of absolute weights, in which heads that add and heads that subtract do not cancel. The "
        "rank correlation of gate and attention takes the attention alone (read weight / gate score), since the read "
        "weight contains the gate score. Selection margin = raw score, plus the selection bias where there is one, of "
        "the weakest selected entry minus that of the best rejected one; in raw scores = lowest raw score of the "
        "selected minus highest of the rejected entries. By scores alone = share of selections that are among their "
        "gate head's best by raw score. Drift = 1 − cosine between an entry at initialisation and now.",
    ]
