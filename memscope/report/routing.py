"""The routing section of a report: load, domains, vocabulary, pairs and paths of layers whose entries are few.

Only layers of other programs' models are reported so: a memory's entries are too many, and its report has preferences
and neighbours instead. The app shows the same of every layer with few entries.
"""

from collections.abc import Iterator

import pandas as pd

from memscope.base.words import span
from memscope.query.recording import Recording
from memscope.report.document import Column, ReportFigure, ReportTable, make_table
from memscope.report.findings import Finding
from memscope.report.plots import routing as plots
from memscope.report.words import ends
from memscope.routing.domains import FALSE_DISCOVERY_RATE, domain_divergence, domain_lift
from memscope.routing.load import load_matrix, load_table
from memscope.routing.pairs import coactivation
from memscope.routing.paths import frequent_paths, transitions
from memscope.routing.rows import routed_layers
from memscope.routing.vocabulary import vocabulary

_SHOWN = 12
_LOAD = {
    "layer": Column("Layer", ",d"),
    "entries": Column("N", ",d"),
    "max_violation": Column("MaxVio", ".3f", "max_violation_se"),
    "even_max_violation": Column("even", ".3f"),
    "least": Column("Least load", ".2f"),
    "effective_entries": Column("Effective number", ".1f"),
    "never": Column("Never selected", ",d"),
}
_VOCABULARY = {
    "layer": Column("Layer", ",d"),
    "kind": Column("Token"),
    "share": Column("Foretold", ".1%", "share_se"),
    "load": Column("by load alone", ".1%"),
    "shuffled": Column("shuffled tokens", ".1%"),
    "explained": Column("Explained by the token", ".1%"),
}
_PATHS = {
    "way": Column("First choices, layer by layer"),
    "tokens": Column("Tokens", ",d"),
    "share": Column("Share", ".2%"),
    "independent": Column("independent layers", ".3%"),
    "lift": Column("Lift", ",.1f"),
}


def is_routed(recording: Recording) -> bool:
    """Whether a recording is of other layers than memories, all with few enough entries."""
    info = recording.info
    return all(site.kind != "memory" for site in info.sites) and len(routed_layers(recording)) == len(info.sites)


def routing_findings(recording: Recording) -> list[Finding]:
    """Answers about domains and tokens; none for a memory."""
    return [_by_domain(recording), _by_token(recording)] if is_routed(recording) else []


def routing_figures(recording: Recording) -> Iterator[ReportFigure]:
    """Load, domains, pairs and transitions of a recording that is routed."""
    if not is_routed(recording):
        return
    info, layers = recording.info, routed_layers(recording)
    words, d = info.word(2), recording.total_selections(layers[0])
    yield ReportFigure(
        "load",
        f"Load of {words}",
        f"Selections of every {info.word()} over the even share of its layer; 1 is even. D = {d:,} selections a layer.",
        plots.load_heatmap(load_matrix(recording), layers, info.word()),
        wide=True,
    )
    lifts = domain_lift(recording, layers[-1])
    if len(lifts):
        yield ReportFigure(
            "domains",
            f"Domains of layer {layers[-1]}",
            f"Share of a group's selections that go to each {info.word()}, over its share in the other documents. "
            f"Dots: q ≤ 5% over all groups and {words} of the layer.",
            plots.lift_heatmap(lifts, info.word()),
            wide=True,
        )
    yield ReportFigure(
        "pairs",
        f"Pairs of layer {layers[-1]}",
        "Tokens that select both, over what the loads of the two alone would give.",
        plots.pair_heatmap(coactivation(recording, layers[-1]).lift, info.word()),
    )
    if len(layers) > 1:
        found = transitions(recording, layers[-2], layers[-1])
        yield ReportFigure(
            "transitions",
            f"From layer {layers[-2]} to layer {layers[-1]}",
            f"First choices of the two layers, over what independent layers would give. They share "
            f"{found.information:.2f} nats of information; tokens shuffled within their token id {found.by_token:.2f}, "
            f"tokens shuffled among all {found.shuffled:.2f}.",
            plots.transition_heatmap(found.lift, (layers[-2], layers[-1]), info.word()),
        )


def routing_tables(recording: Recording) -> Iterator[ReportTable]:
    """Load, vocabulary and frequent paths of a recording that is routed."""
    if not is_routed(recording):
        return
    words = recording.info.word(2)
    yield make_table(
        "Load",
        "MaxVio = (largest load − mean) / mean; even: the mean of draws of even selection at the same D. Least load is "
        "over the even share.",
        load_table(recording),
        _LOAD,
    )
    yield make_table(
        "What a token foretells",
        f"Share of selections among the K {words} that the token selects most often in other documents; beside it the "
        f"K {words} of most load, and the same rule for shuffled tokens. Explained = (foretold − load) / (1 − load).",
        all_vocabulary(recording),
        _VOCABULARY,
    )
    ways = frequent_paths(recording, _SHOWN)
    ways["way"] = [" → ".join(map(str, path)) for path in ways["path"]]
    yield make_table(
        "Frequent paths",
        f"The {len(ways)} ways of first choices through all layers that most tokens take.",
        ways,
        _PATHS,
    )


def all_vocabulary(recording: Recording) -> pd.DataFrame:
    """``vocabulary`` of all layers with few entries, with a column ``layer``."""
    tables = [vocabulary(recording, layer).assign(layer=layer) for layer in routed_layers(recording)]
    return pd.concat(tables, ignore_index=True)


def _by_domain(recording: Recording) -> Finding:
    question, layers, word = "Do domains use different ones?", routed_layers(recording), recording.info.word(2)
    tables = {layer: domain_lift(recording, layer) for layer in layers}
    tested = sum(int(table["p"].notna().sum()) for table in tables.values() if len(table))
    if not tested:
        return Finding(
            question,
            "That cannot be asked: the corpus has no groups of documents, or too little text of each.",
            'A corpus names a document\'s domain as "group".',
            found=False,
        )
    found = {layer: int((table["q"] <= FALSE_DISCOVERY_RATE).sum()) for layer, table in tables.items()}
    control = sum(int((table["control_q"] <= FALSE_DISCOVERY_RATE).sum()) for table in tables.values())
    total = sum(found.values())
    apart = {layer: domain_divergence(recording, layer) for layer in layers}
    farthest = max(layers, key=lambda layer: float(apart[layer]["divergence"].max()))
    row = apart[farthest].loc[apart[farthest]["divergence"].idxmax()]
    short = f"Not shown: none of {tested:,} tests finds a domain that selects {word} more or less than other text does."
    if total:
        short = (
            f"Yes: {total:,} of {tested:,} pairs of domain and {recording.info.word()} go together, most in layer "
            f"{max(found, key=lambda layer: found[layer])} ({max(found.values()):,})."
        )
    answer = (
        f"Tested: every group and {recording.info.word()} of every layer at a false discovery rate of 5% within the "
        f"layer; {control:,} discoveries among as many tests of documents dealt to groups at random. The farthest from "
        f"the other text is “{row['group']}” in layer {farthest}: {row['divergence']:.3f} nats (Jensen-Shannon; with "
        f"documents dealt at random {row['chance']:.3f}, p = {row['p']:.2g})."
    )
    return Finding(question, short, answer, found=total > 0)


def _by_token(recording: Recording) -> Finding:
    table = all_vocabulary(recording)
    own = table[table["kind"] == "input"]
    others = table[table["kind"] != "input"].groupby("kind")["explained"].agg(["min", "max"])
    rest = "; ".join(f"the {kind} token {row['min']:.0%} to {row['max']:.0%}" for kind, row in others.iterrows())
    short = (
        f"The input token alone foretells {span(own['share'], '.0%')} of a layer's selections in other documents; load "
        f"alone {span(own['load'], '.0%')}."
    )
    answer = (
        f"Of what load leaves open the token id explains {span(own['explained'], '.0%')}. Foretold: "
        f"{ends(own, 'share', '.1%')}; of shuffled tokens {span(own['shuffled'], '.0%')}. Explained by other tokens: "
        f"{rest or 'not recorded'}."
    )
    return Finding("How much of the routing does the token alone explain?", short, answer)
