"""The content of a comparison's ``compare.json``; ``compare.schema.json`` beside it is made from these classes."""

from memscope.recording.census_file import Documented
from memscope.report.schema import Answer, Source


class Side(Documented):
    """One of the two recordings that are compared."""

    recording: Source
    """The recording."""
    step: int | None
    """Training step of the model, where it was read from a checkpoint."""


class LayerLikeness(Documented):
    """How alike both recordings use the bank, in one layer or (``layer`` null) in all layers taken together.

    ``halves_*`` is the same measure between two halves of one recording's documents, D/2 each, mean of random splits:
    what other text of the same kind shows under one gate. ``sampled_*`` is that between two samples of independent
    selections, as many as recorded, from the pooled distribution: a lower bound, since a document repeats itself.
    """

    layer: int | None
    """Null: all layers taken together."""
    selections_a: int
    """D of recording A."""
    selections_b: int
    """D of recording B."""
    rank_correlation: float | None
    """Spearman's rho of usage over all N entries, unused ones included; null where one side is constant."""
    sampled_rank_correlation: float | None
    """The same for samples."""
    rank_correlation_both: float | None
    """Spearman's rho over the entries that both use."""
    used_by_both: int
    """Number of those entries."""
    jensen_shannon: float
    """Divergence of the two usage distributions in nats; 0 = equal, ln 2 = 0.693 = disjoint."""
    sampled_jensen_shannon: float
    """The same for samples."""
    halves_jensen_shannon_a: float | None
    """Divergence between two halves of A's documents; null where that is unknown."""
    halves_jensen_shannon_b: float | None
    """The same within B."""
    jaccard: float
    """Entries used by both / entries used by either."""
    independent_jaccard: float
    """The same for two independent random sets of these sizes."""
    sampled_jaccard: float
    """The same for samples."""
    halves_jaccard: float | None
    """The same for halves, the lower one of A's and B's."""
    halves_rank_correlation: float | None
    """Rank correlation between halves, likewise."""
    halves_switched: float | None
    """Entries with at least ``lively`` selections in one half and none in the other, the higher one of A's and B's."""
    died: int
    """Entries with at least ``lively`` selections in A and none in B."""
    died_by_sampling: float
    """Expected number of such entries in two samples from the pooled distribution."""
    woke: int
    """Entries with at least ``lively`` selections in B and none in A."""
    woke_by_sampling: float
    """Expected number likewise."""


class EvennessChange(Documented):
    """One metric of evenness in both recordings."""

    layer: int | None
    """Null: all layers taken together."""
    metric: str
    """Name of a metric in ``metrics.schema.json`` of a gate-bias report."""
    a: float
    """In recording A."""
    b: float
    """In recording B."""
    change: float
    """b - a."""
    change_se: float | None
    """Root of the sum of both squared standard errors; null where one is unknown."""


class PredicateChange(Documented):
    """One relation: its share of the bank and of the selections of all layers, among entries that have a relation."""

    predicate: str
    """Name of the relation."""
    entries_a: int
    """Entries with the relation in bank A."""
    entries_b: int
    """Likewise in bank B."""
    bank_share_a: float
    """Those among all entries with a relation."""
    bank_share_b: float
    """Likewise in bank B."""
    selection_share_a: float
    """Share of the selections that fall on entries with a relation."""
    selection_share_b: float
    """Likewise in recording B."""
    change: float
    """selection_share_b - selection_share_a."""


class LossChange(Documented):
    """Mean loss on the recorded text, nats per token."""

    a: float
    """In recording A."""
    b: float
    """In recording B."""
    change: float
    """b - a."""
    change_se: float | None
    """Standard error over documents: of paired differences if both recorded the same text, else of two means."""
    paired: bool
    """Whether both recorded the same text."""
    documents: int | None
    """Documents that were paired."""
    documents_lower: int | None
    """Those in which B has the lower loss."""


class Comparison(Documented):
    """Every number of a comparison (``compare.json``)."""

    a: Side
    """The first recording."""
    b: Side
    """The one it is held against."""
    same_model: bool
    """Whether both recordings are of the same model file."""
    same_corpus: bool
    """Whether both recorded the same corpus file."""
    same_bank: bool
    """Whether every entry started alike; if not, ``layers`` is empty: an index names two different entries."""
    different_entries: int
    """Entries that started from another sentence, or at random from another seed."""
    lively: int
    """Selections from which on an entry counts as died or woke when the other recording never selects it."""
    draws: int
    """Pairs that the ``sampled_*`` and ``halves_*`` numbers are the mean of."""
    seed: int
    """Of these samples."""
    layers: tuple[LayerLikeness, ...]
    """All layers together first, then each."""
    evenness: tuple[EvennessChange, ...]
    """Layers in the same order, metric by metric."""
    loss: LossChange | None
    """Change of the loss; null where a recording has none."""
    predicates: tuple[PredicateChange, ...]
    """By falling absolute change; empty when no entry has triples."""
    findings: tuple[Answer, ...]
    """The answers in words."""
