"""The method of the gate-bias report in words: how each number is defined and how far to trust it."""

from memscope.base.words import span
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.report.anomalies import ERROR_RATE
from memscope.report.words import a_word, listed, reworded

_ANOMALIES = (
    "Anomalies need an effect worth naming and a chance that survives correction for everything looked at: in a "
    f"recording without any effect, the chance of a single row is {ERROR_RATE:.0%} at most. Tokens count, however "
    "often one selects {a_word}. Selections come in bursts, so chance is taken at looks only: one token of {a_word} in "
    "each stretch of text, twice as long as selection repeats itself, against what is usual in the same document. "
    "Kinds that no chance makes have p = 0. docs/reference/metrics.md defines each kind."
)


def method(recording: Recording) -> list[str]:
    """How every number of the report was made, a paragraph a subject; what the recording lacks is left out."""
    info, census = recording.info, recording.census
    word, words, each = info.word(), info.word(2), span([site.selected for site in info.sites], ",")
    varies = " or fewer" if any(site.varies for site in info.sites) else ""
    noted = [f"the selected {words}", *[f"their {info.score}s"] * info.has("scores")]
    noted += ["their read weights (mean over read heads, sum over slots)"] * info.has("reads")
    paragraphs = [
        "Every token of the corpus passed through the model once, in windows that never cross a document; hooks noted "
        f"{listed(noted)} without changing the output. The precision of the forward pass was {info.dtype}. D is the "
        f"number of selections that a number is over: {info.rows:,} tokens times {each}{varies} selections in each "
        "layer.",
        f"z is the share of each {word} among a layer's D selections. Coverage = share of {words} with z > 0. KL to "
        "uniform = ln N + Σ z ln z. Relative perplexity = exp(entropy of z) / N. Gini = 1 − 2 mean(cumsum(sort z)) + "
        f"1/N. Top 50/90/99% = number of most used {words} that hold that share. MaxVio = (largest load − mean) / "
        "mean. Dead = never selected; hot = more than ten times the even share. A finite D makes even selection look "
        f"uneven: compare each value with its “even” twin (every {info.selector} head takes its {words} for a token at "
        f"random), not with 0 or 1. N is the number of {words} that a layer can select, "
        f"{span([site.entries for site in info.sites], ',')}.",
        f"Standard errors leave out one of {census.folds} folds of {census.interval_unit} after the other "
        "(delete-a-group jackknife): text inside a document is correlated, so tokens are not the unit. They say how "
        "far other text of this kind would move a number, not another model.",
    ]
    if info.has("starts"):
        paragraphs.append(_LIFT)
    by_class = (
        f"Choice by class: KL of the {words} chosen for a class of tokens from those of the layer, beside as many "
        "tokens at random."
    )
    if max(map(len, info.banks)) > 1:
        by_class += (
            f" Overlap of layers: Jaccard index = {words} used by both / by either, chance = independent sets of these "
            "sizes; Jensen-Shannon divergence of usage, natural logarithm."
        )
    paragraphs += [by_class, *_weighing(info), _ANOMALIES.format(a_word=a_word(info))]
    return paragraphs


_LIFT = (
    "Lift = share of selections / share of entries of a label, both among the entries that have the attribute. "
    "Its 95% interval holds the entries fixed and varies documents (jackknife of the log odds, Student's t). p "
    "shuffles labels over entries and holds the counts fixed: it asks whether usage and label go together more "
    "than which entries happen to be hot; rank p asks the same of ranks of counts, where hot entries weigh no more "
    "than others. q adjusts both for all tests together (Benjamini-Hochberg, 5%). A small q does not say that the "
    "label is the cause: labels overlap with one another and with the words of a sentence."
)


def _weighing(info: RecordingInfo) -> list[str]:
    """How scores, reads, margins and drift are summed up."""
    said = []
    if info.has("reads"):
        weighed = (
            "A token's gate shares and read shares are its gate scores and absolute read weights divided by their "
            "sums. Effective entries = exp(entropy of read shares). Unread = less than 1% of the token's read; by "
            "norm: of the mean over read heads of absolute weights, in which heads that add and heads that subtract "
            "do not cancel. The rank correlation of gate and attention takes the attention alone (read weight / gate "
            "score), since the read weight contains the gate score."
        )
        said.append(reworded(info, weighed))
    elif info.has("scores"):
        as_used = " A router weight is the weight as the model uses it." if info.kind == "experts" else ""
        said.append(
            f"The entropy of {info.score}s is that of a token's {info.score}s divided by their sum; the largest share "
            f"is that of its best {info.word()}.{as_used}"
        )
    if info.has("margin"):
        said.append(
            "Selection margin = raw score, plus the selection bias where there is one, of the weakest selected "
            f"{info.word()} minus that of the best rejected one; in raw scores = lowest raw score of the selected "
            f"minus highest of the rejected {info.word(2)}. By scores alone = share of selections that are among their "
            f"{info.selector} head's best by raw score."
        )
    if info.has("drift"):
        said.append("Drift = 1 − cosine between an entry at initialisation and now.")
    return [" ".join(said)] * bool(said)
