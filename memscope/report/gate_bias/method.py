"""The method of the gate-bias report in words: how each number is defined and how far to trust it."""

from memscope.base.words import span
from memscope.query.recording import Recording
from memscope.report.anomalies import ERROR_RATE

_ANOMALIES = (
    "Anomalies need an effect worth naming and a chance that survives correction for everything looked at: in a "
    f"recording without any effect, the chance of a single row is {ERROR_RATE:.0%} at most. Tokens count, however "
    "often one selects an entry. Selections come in bursts, so chance is taken at looks only: one token of an entry in "
    "each stretch of text, twice as long as selection repeats itself, against what is usual in the same document. "
    "Kinds that no chance makes have p = 0. docs/reference/metrics.md defines each kind."
)


def method(recording: Recording) -> list[str]:
    """How every number of the report was made, a paragraph a subject."""
    info, census = recording.info, recording.census
    return [
        "Every token of the corpus passed through the model once, in windows that never cross a document; hooks noted "
        "the selected entries, their gate scores and their read weights (mean over read heads, sum over slots) without "
        f"changing the output. The precision of the forward pass was {info.dtype}. D is the number of selections that "
        f"a number is over: {info.rows:,} tokens times {span([site.selected for site in info.sites], ',')} selections "
        "in each layer.",
        "z is the share of each entry among a layer's D selections. Coverage = share of entries with z > 0. KL to "
        "uniform = ln N + Σ z ln z. Relative perplexity = exp(entropy of z) / N. Gini = 1 − 2 mean(cumsum(sort z)) + "
        "1/N. Top 50/90/99% = number of most used entries that hold that share. MaxVio = (largest load − mean) / mean. "
        "Dead = never selected; hot = more than ten times the even share. A finite D makes even selection look uneven: "
        "compare each value with its “even” twin (every gate head takes its entries for a token at random), not with 0 "
        "or 1. N is "
        f"the number of entries that a layer can select, {span([site.entries for site in info.sites], ',')}.",
        f"Standard errors leave out one of {census.folds} folds of {census.interval_unit} after the other "
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
        _ANOMALIES,
    ]
