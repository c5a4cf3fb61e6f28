"""``census.json`` of a recording: the classes of what it holds, field by field; how it is read and written.

    census = read_census(folder, read_info(folder))
    census.layers[0].reading.loss

``memscope.census`` makes the numbers, ``Recording.census`` gives them to every reader.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from memscope.base.errors import InputError
from memscope.base.files import read_json, write_json
from memscope.recording.info import INFO, RecordingInfo
from memscope.recording.sites import Has
from memscope.stats.usage import UsageMetrics

CENSUS = "census.json"
MARGIN_LOWEST = -16.0
"""Histograms of margins begin at 2 to this power."""


class Documented(BaseModel):
    """Fields are described by the text below them, and no other field may occur."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Evenness(UsageMetrics):
    """How evenly a bank is used; z is the share of each entry, ``even_*`` what even selection shows at the same D.

    ``*_se`` are standard errors by the jackknife over folds of documents; null for usage weighted by scores, and where
    there are fewer than two folds.
    """

    coverage_se: float | None = None
    """Standard error of coverage."""
    kl_to_uniform_se: float | None = None
    """Standard error of kl_to_uniform, nats."""
    relative_perplexity_se: float | None = None
    """Standard error of relative_perplexity."""
    gini_se: float | None = None
    """Standard error of gini."""
    top50_se: float | None = None
    """Standard error of top50."""
    kl_to_uniform_few: float | None = None
    """By how much kl_to_uniform would fall, at least, with many more documents of the same kind, nats."""


class Weightings(Documented):
    """Evenness under three weightings of usage."""

    by_count: Evenness
    """Usage = selections."""
    by_gate_score: Evenness | None
    """Usage = summed gate scores; null where selections have none."""
    by_read_weight: Evenness | None
    """Usage = summed absolute read weights; null where nothing reads apart from the gate."""


class TokenMeans(Documented):
    """Measures of gate and attention, means over the tokens that read anything; null where a layer has no such."""

    gate_entropy: float | None
    """Entropy of a token's gate shares, nats."""
    gate_top_share: float | None
    """Largest gate share of a token."""
    read_entropy: float | None
    """Entropy of a token's read shares, nats."""
    effective_entries_read: float | None
    """exp(entropy of a token's read shares)."""
    read_top_share: float | None
    """Largest read share of a token."""
    gate_read_rank_correlation: float | None
    """Spearman's rho of gate score and read weight over a token's selections."""
    gate_attention_rank_correlation: float | None
    """The same with read weight / gate score: the attention alone."""
    unread_share: float | None
    """Share of selections with less than 1% of their token's read, by absolute read weights."""
    unread_share_by_norm: float | None
    """The same by the norm over read heads, in which weights of different signs do not cancel."""
    silent_tokens: float | None
    """Share of tokens that read nothing."""
    margin: float | None
    """Selection margin: raw score plus selection bias of the weakest selected above the best rejected entry, mean over
    tokens and gate heads."""
    score_margin: float | None
    """The same in raw scores alone; below 0 where the bias passes over better entries."""
    by_score_share: float | None
    """Share of selections that raw scores alone, without the selection bias, would have made; 1 without a bias."""
    loss: float | None
    """Loss of predicting the next token, nats."""


MEANS_NEED: dict[str, Has] = {
    **dict.fromkeys(("gate_entropy", "gate_top_share"), "scores"),
    **dict.fromkeys(("read_entropy", "effective_entries_read", "read_top_share", "silent_tokens"), "reads"),
    **dict.fromkeys(("gate_read_rank_correlation", "gate_attention_rank_correlation"), "reads"),
    **dict.fromkeys(("unread_share", "unread_share_by_norm"), "reads"),
    **dict.fromkeys(("margin", "score_margin", "by_score_share"), "margin"),
}
"""What a layer must have for a number of ``TokenMeans``; other layers have none."""


class Reading(TokenMeans):
    """Means over all tokens of a layer; ``*_se`` are standard errors by the jackknife over folds of documents."""

    gate_entropy_se: float | None = None
    """Standard error of gate_entropy."""
    gate_top_share_se: float | None = None
    """Standard error of gate_top_share."""
    read_entropy_se: float | None = None
    """Standard error of read_entropy."""
    effective_entries_read_se: float | None = None
    """Standard error of effective_entries_read."""
    read_top_share_se: float | None = None
    """Standard error of read_top_share."""
    gate_read_rank_correlation_se: float | None = None
    """Standard error of gate_read_rank_correlation."""
    gate_attention_rank_correlation_se: float | None = None
    """Standard error of gate_attention_rank_correlation."""
    unread_share_se: float | None = None
    """Standard error of unread_share."""
    unread_share_by_norm_se: float | None = None
    """Standard error of unread_share_by_norm."""
    silent_tokens_se: float | None = None
    """Standard error of silent_tokens."""
    margin_se: float | None = None
    """Standard error of margin."""
    score_margin_se: float | None = None
    """Standard error of score_margin."""
    by_score_share_se: float | None = None
    """Standard error of by_score_share."""
    loss_se: float | None = None
    """Standard error of loss."""
    read_share_histogram: tuple[int, ...]
    """Selections by read share, equal bins over [0, 1]."""
    gate_entropy_histogram: tuple[int, ...]
    """Tokens by gate entropy / ln K, equal bins over [0, 1]."""
    margin_histogram: tuple[int, ...]
    """Selection margins by size: half octaves from 2^-16 up, the first bin also takes all below."""


class ClassProfile(TokenMeans):
    """One class of tokens: what the gate does there, and how its choice differs from that of the whole layer."""

    label: str
    """Name of the class."""
    low: float
    """Lower bound: position in the window, or occurrences per million tokens."""
    high: float
    """Upper bound."""
    tokens: int
    """Tokens of the class."""
    coverage: float
    """Share of entries that these tokens select."""
    divergence: float
    """KL(entries of the class || entries of the layer), nats."""
    even_divergence: float
    """The same for as many tokens taken at random."""


class Information(Documented):
    """Mutual information of entry and class of a selection, nats.

    ``*_held_out`` is what the other documents foretell of a document, a lower bound with its standard error; null with
    fewer than two folds. The rest is counted from one table, which shows some even in shuffled tokens: too high alone,
    and too low less that of shuffled tokens.
    """

    position: float
    """Entry and octave of the position in the window."""
    even_position: float
    """The same for shuffled tokens."""
    frequency: float
    """Entry and decade of the input token's frequency."""
    even_frequency: float
    """The same for shuffled tokens."""
    token: float
    """Entry and input token."""
    even_token: float
    """The same for shuffled tokens."""
    previous: float
    """Entry and the token before, where the model saw one."""
    even_previous: float
    """The same for shuffled tokens."""
    position_held_out: float | None
    """Of the octave of the position, at least."""
    position_held_out_se: float | None
    """Its standard error over documents."""
    frequency_held_out: float | None
    """Of the decade of the input token's frequency, at least."""
    frequency_held_out_se: float | None
    """Its standard error."""
    token_held_out: float | None
    """Of the input token, at least."""
    token_held_out_se: float | None
    """Its standard error."""
    previous_held_out: float | None
    """Of the token before, at least."""
    previous_held_out_se: float | None
    """Its standard error."""


class Profiles(Documented):
    """How selection depends on the position and the frequency of tokens."""

    position: tuple[ClassProfile, ...]
    """By octave of the position in the window."""
    frequency: tuple[ClassProfile, ...]
    """By decade of the input token's frequency."""
    information: Information
    """Information of the selected entries about these classes."""


class LayerMetrics(Weightings):
    """One memory layer."""

    layer: int
    """Number of the layer."""
    reading: Reading
    """Gate and attention on all tokens."""
    profiles: Profiles
    """Gate and attention on classes of tokens."""


class Overlap(Documented):
    """How alike layers use the bank: matrices ``[layer, layer]`` in the order of ``recording.layers``."""

    jaccard: tuple[tuple[float, ...], ...]
    """Entries used by both / by either."""
    even_jaccard: tuple[tuple[float, ...], ...]
    """The same for independent random sets of these sizes."""
    rank_correlation: tuple[tuple[float, ...], ...]
    """Spearman's rho of usage over all entries."""
    jensen_shannon: tuple[tuple[float, ...], ...]
    """Divergence of usage in nats; ln 2 = no entry in common."""


class GroupLayer(Weightings):
    """One memory layer on the documents of one group."""

    layer: int
    """Number of the layer."""
    reading: TokenMeans
    """Gate and attention on the group's tokens."""


class Group(Documented):
    """One group of documents."""

    all_layers: Weightings
    """Selections of all layers taken together."""
    layers: tuple[GroupLayer, ...]
    """Each layer."""


class Counted(Documented):
    """The numbers of a whole recording, which ``census.json`` and ``metrics.json`` of a report share."""

    loss: float | None
    """Mean loss on the recorded text, nats per token; null where predictions were not recorded."""
    folds: int
    """Folds that standard errors and intervals are made from."""
    interval_unit: str
    """The text that makes up a fold, such as ``documents``."""
    critical: float | None
    """Standard errors from the centre of a 95% interval to either end; null with fewer than two folds."""
    equal_documents: float
    """Units of equal length that would tell as much; far fewer than there are where some are much longer."""
    longest_document: float
    """Share of the text that the longest document holds."""
    all_layers: Weightings
    """Selections of all layers taken together."""
    overlap: Overlap
    """How alike layers use the bank."""
    layers: tuple[LayerMetrics, ...]
    """Each layer, in the order of the recording's layers."""
    groups: dict[str, Group]
    """By group of documents; empty where the corpus has no groups."""


class Census(Counted):
    """Everything that was counted in a recording."""

    tokens: int
    """Tokens recorded."""

    def __repr__(self) -> str:
        return (
            f"Census({self.tokens:,} tokens, {len(self.layers)} layers; fields: {', '.join(type(self).model_fields)})"
        )

    __str__ = __repr__


_LEADING: dict[type[BaseModel], tuple[str, ...]] = {
    LayerMetrics: ("layer",),
    GroupLayer: ("layer",),
    Profiles: ("information",),
    ClassProfile: ("label", "low", "high", "tokens", "coverage", "divergence", "even_divergence"),
    Census: ("tokens", "loss", "interval_unit"),
}
"""Fields that stand first in ``census.json``, in this order; the others follow in the order of their class."""


def read_census(recording: Path, info: RecordingInfo) -> Census:
    """Read ``census.json``.

    Raises:
        InputError: it is missing or damaged, a number is missing or of another kind, or it is of other layers.
    """
    path = recording / CENSUS
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a census; record again")
    try:
        census = Census.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        trouble = "is not there" if first["type"] == "missing" else f"has a wrong value ({first['msg']})"
        raise InputError(f"{path}: '{name}' {trouble}; record again") from error
    if [layer.layer for layer in census.layers] != list(info.layers):
        raise InputError(f"{path}: is not about the layers that {INFO} names; record again")
    return census


def write_census(recording: Path, census: Census) -> None:
    """Write ``census.json``, atomically."""
    write_json(recording / CENSUS, plain(census))


def plain(value: Any) -> Any:
    """JSON values of a census or a part of it; a field that was never set is left out."""
    if isinstance(value, BaseModel):
        leading = _LEADING.get(type(value), ())
        names = [*leading, *(name for name in type(value).model_fields if name not in leading)]
        return {name: plain(getattr(value, name)) for name in names if name in value.model_fields_set}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, tuple) else value
