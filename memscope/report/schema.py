"""The content of a report's ``metrics.json``; ``metrics.schema.json`` beside it is made from these classes.

    write_json(out / "metrics.json", metrics.model_dump(mode="json"))
    write_json(out / "metrics.schema.json", json_schema(Metrics))

A field that is not described here cannot be written, so the file and its description do not differ.
"""

from typing import Any

from pydantic import BaseModel

from memscope.query.recording import Recording
from memscope.recording.census_file import Counted, Documented
from memscope.recording.sites import Site

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Source(Documented):
    """The recording, its run and its corpus."""

    run: str
    """Name of the run's folder."""
    corpus: str
    """Name of the corpus' file."""
    fingerprint: str
    """SHA-256 of the model file."""
    corpus_sha256: str
    """SHA-256 of the corpus' file."""
    layers: tuple[int, ...]
    """Layers that select."""
    knowledge_num: int
    """Entries of all banks."""
    sites: tuple[Site, ...]
    """What selects in each layer; its N is the number of its entries."""
    tokens: int
    """Tokens recorded; a layer has D = tokens * selected selections, or fewer where a token may select fewer."""
    documents: int
    """Documents recorded."""
    dtype: str
    """Precision of the forward pass."""
    format_version: int
    """Version of the recording's format."""


class Preference(Documented):
    """How much a layer prefers entries with a label, beside chance (``memscope.census.preference``)."""

    layer: int
    """Number of the layer."""
    attribute: str
    """The property that labels name: predicate, subject type, sentence length ..."""
    label: str
    """Name of the label."""
    entries: int
    """Entries with the label."""
    used: int
    """Those that the layer selected."""
    bank_share: float
    """Entries with the label / entries with any label of the attribute."""
    selections: int
    """Selections of entries with the label."""
    selection_share: float | None
    """Those / selections of entries with any label of the attribute."""
    top_share: float
    """Share of the label's selections that its most selected entry takes."""
    lift: float | None
    """selection_share / bank_share."""
    low: float | None
    """95% interval of the lift over other documents, the entries held fixed."""
    high: float | None
    """Upper end of that interval."""
    chance_low: float | None
    """95% range of the lift when labels are shuffled over entries."""
    chance_high: float | None
    """Upper end of that range."""
    p: float
    """Of the label's selections when labels are shuffled, two-sided."""
    superiority: float | None
    """Chance that an entry with the label is selected more often than one without, ties counted half."""
    rank_p: float
    """Like p, for ranks of counts: hot entries weigh no more than others."""
    q: float
    """p adjusted for all tests of the recording (Benjamini-Hochberg)."""
    rank_q: float
    """rank_p adjusted likewise."""
    significant: bool
    """q <= 0.05."""
    rank_significant: bool
    """rank_q <= 0.05."""
    control_significant: bool
    """The same decision on labels that were shuffled: there should be none."""
    control_rank_significant: bool
    """Likewise for ranks."""


class Anomaly(Documented):
    """Something that stands out (``memscope.report.anomalies``)."""

    kind: str
    """One of dead, unread, duplicate, everywhere, document, uniform, negative, exclusive, token, previous, bigram,
    start, class, preference; docs/reference/metrics.md defines them."""
    layer: int
    """Number of the layer."""
    entry: int
    """Entry; -1 for kinds of a whole layer."""
    other: int
    """The other entry of a pair; -1 elsewhere."""
    label: str
    """Text of a token or two, a class of tokens, a document's title, what is uniform or preferred; may be empty."""
    effect: float
    """Its size, as the kind defines it."""
    p: float
    """Probability of such an effect in any of the tests, in a recording without effects; 0 where chance has none."""
    tokens: int
    """Tokens that select the entry, or either of two; of a layer all that were counted."""


class Drift(Documented):
    """1 - cosine between an entry at initialisation and now; null where there is no such entry."""

    median_used: float | None
    """Median over entries that some layer selected."""
    p90_used: float | None
    """A tenth of the used entries moved further."""
    median_unused: float | None
    """Over entries that no layer selected."""
    kept: float | None
    """Share of the tokens nearest to used entries that stand in their init sentences now."""
    kept_at_init: float | None
    """The same before training."""


class Answer(Documented):
    """A finding in words."""

    question: str
    """The question."""
    short: str
    """The answer in one sentence."""
    answer: str
    """The numbers behind it."""


class _Recorded(Documented):
    recording: Source
    """The recording."""
    run: dict[str, Any]
    """Summary of the training run (``run.json``); empty if training had not finished."""


class Metrics(Counted, _Recorded):  # fields of the last base come first, in the file and in its schema
    """Every number of a gate-bias report (``metrics.json``)."""

    preferences: tuple[Preference, ...]
    """One row per layer, attribute and label; empty where sentences have no labels."""
    anomalies: tuple[Anomaly, ...]
    """The anomalies, at an error rate of 5% for the whole list."""
    drift: Drift
    """How far entries moved from where they started."""
    findings: tuple[Answer, ...]
    """The answers in words."""


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a model's file."""
    return {"$schema": DIALECT, **model.model_json_schema(mode="serialization")}


def describe_source(recording: Recording) -> Source:
    """Describe the run and the corpus of a recording."""
    info = recording.info
    return Source(
        run=info.run_name,
        corpus=info.corpus_name,
        fingerprint=info.fingerprint,
        corpus_sha256=info.corpus_sha256,
        layers=info.layers,
        knowledge_num=info.knowledge_num,
        sites=info.sites,
        tokens=info.rows,
        documents=len(recording.documents),
        dtype=info.dtype,
        format_version=info.format_version,
    )
