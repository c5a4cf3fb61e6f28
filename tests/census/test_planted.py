"""Recordings whose truth is known by construction: every number of the census must find it within its own error."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chisquare, entropy, expon

from memscope.census.aggregate import write_aggregates
from memscope.census.kernels import MARGIN_BINS
from memscope.record.rows import round_scores
from memscope.recording.census_file import Census, read_census
from memscope.recording.info import read_info
from memscope.recording.token_rows import TokenRows
from memscope.stats.usage import usage_metrics
from tests.synthetic import SPECIAL, write_recording

N, K, WINDOW = 256, 4, 16
DOCUMENTS, LENGTH = 40, 160
TOKENS = DOCUMENTS * LENGTH
VOCAB = 50
ZIPF, UNIFORM, DETECTOR, POSITION, GROUP = range(5)
"""Layers: entries by Zipf's law, evenly, by the token, by the position in the window, by the document's group."""
DETECTED = {7: 200, 11: 201, 13: 202}
"""Token -> entry that fires on it, first of its K, in layer DETECTOR and on nothing else."""
GATE_SHARES = np.array([0.5, 0.25, 0.125, 0.125])
READ_SHARES = np.array([0.7, 0.2, 0.095, 0.005])
"""The last is below 1%: unread."""
MARGIN = 0.1
SMOOTH = ("kl_to_uniform", "relative_perplexity", "gini")


class Planted(NamedTuple):
    path: Path
    rows: TokenRows
    census: Census

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.path / f"{name}.parquet")


def zipf() -> np.ndarray:
    shares = 1 / np.arange(1, N + 1)
    return shares / shares.sum()


def word(token: int) -> str:
    return f"word{'abcde'[token // 10]}{'abcdefghij'[token % 10]}"


def plant(seed: int) -> TokenRows:
    chance = np.random.default_rng(seed)
    token = chance.integers(3, VOCAB, TOKENS)
    doc, pos = np.repeat(np.arange(DOCUMENTS), LENGTH), np.tile(np.arange(LENGTH), DOCUMENTS)
    indices = np.empty((TOKENS, 5, K), np.uint32)
    indices[:, ZIPF] = chance.choice(N, (TOKENS, K), p=zipf())
    indices[:, UNIFORM] = chance.integers(0, N, (TOKENS, K))
    indices[:, DETECTOR] = chance.integers(0, 100, (TOKENS, K))
    for of_token, entry in DETECTED.items():
        indices[token == of_token, DETECTOR, 0] = entry
    octave = np.log2(pos % WINDOW + 1).astype(int)
    indices[:, POSITION] = octave[:, None] * 10 + np.arange(K)
    indices[:, GROUP] = chance.integers(0, 128, (TOKENS, K)) + 128 * (doc % 2)[:, None]
    scale = chance.uniform(0.5, 2, (TOKENS, 5, 1))  # shares are what counts, not how large scores are
    loss = chance.exponential(3, TOKENS)
    loss[LENGTH - 1 :: LENGTH] = np.nan
    return TokenRows(
        doc=doc.astype(np.uint32),
        pos=pos.astype(np.uint32),
        token=token.astype(np.uint32),
        predicted=np.roll(token, 3).astype(np.uint32),
        loss=loss.astype(np.float32),
        indices=indices,
        gate=round_scores((GATE_SHARES * scale).astype(np.float32), 6),
        read=round_scores((READ_SHARES * scale * chance.choice([-1, 1], (TOKENS, 5, K))).astype(np.float32), 6),
        margin=round_scores(chance.exponential(MARGIN, (TOKENS, 5, 1)).astype(np.float32), 6),
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    path, rows = tmp_path_factory.mktemp("planted") / "recording", plant(20)
    texts = [*SPECIAL, *(f" {word(number)}" for number in range(3, VOCAB))]
    groups = ["even" if number % 2 == 0 else "odd" for number in range(DOCUMENTS)]
    settings = {"layers": tuple(range(5)), "knowledge_num": N, "window": WINDOW}
    write_aggregates(path, write_recording(path, rows, groups=groups, texts=texts, **settings))
    return Planted(path, rows, read_census(path, read_info(path)))


@pytest.mark.parametrize(("layer", "shares"), [(ZIPF, zipf()), (UNIFORM, np.full(N, 1 / N))])
def test_evenness_is_that_of_the_law_that_entries_were_drawn_from(
    planted: Planted, layer: int, shares: np.ndarray
) -> None:
    chance = np.random.default_rng(1)
    drawn = [dict(usage_metrics(chance.multinomial(TOKENS * K, shares), TOKENS * K)) for _ in range(100)]
    found = dict(planted.census.layers[layer].by_count)
    for name in ("coverage", "kl_to_uniform", "relative_perplexity", "gini", "top50", "top90", "max_violation", "hot"):
        values = np.array([one[name] for one in drawn])
        # 5 standard deviations, and one entry more or less where all draws are equal
        assert abs(found[name] - values.mean()) <= 5 * values.std() + 1 / N, name
    for name in SMOOTH:  # tokens are independent here, so documents tell the same error as tokens
        spread = np.std([one[name] for one in drawn])
        assert 0.5 < found[f"{name}_se"] / spread < (1.8 if layer == ZIPF else 2.5), name
    assert (found["entries"], found["selections"]) == (N, TOKENS * K)


def test_even_selection_meets_its_expectation_and_zipf_does_not(planted: Planted) -> None:
    even, uneven = (dict(planted.census.layers[layer].by_count) for layer in (UNIFORM, ZIPF))
    for name in ("coverage", "kl_to_uniform", "gini"):
        assert even[name] == pytest.approx(even[f"even_{name}"], rel=0.25), name
    assert uneven["kl_to_uniform"] == pytest.approx(math.log(N) - entropy(zipf()), rel=0.02)
    assert uneven["kl_to_uniform"] > 100 * uneven["even_kl_to_uniform"]


@pytest.mark.parametrize("layer", range(5))
def test_shares_margins_and_losses_are_those_planted(planted: Planted, layer: int) -> None:
    found = dict(planted.census.layers[layer].reading)
    # Scores are kept to 0.8%, and so are shares; entropies move by less than that.
    assert found["gate_entropy"] == pytest.approx(entropy(GATE_SHARES), rel=0.008)
    assert found["gate_top_share"] == pytest.approx(0.5, rel=0.008)
    assert found["read_entropy"] == pytest.approx(entropy(READ_SHARES), rel=0.008)
    assert found["effective_entries_read"] == pytest.approx(math.exp(entropy(READ_SHARES)), rel=0.008)
    assert found["read_top_share"] == pytest.approx(0.7, rel=0.008)
    assert (found["unread_share"], found["silent_tokens"]) == (0.25, 0)
    assert found["gate_read_rank_correlation"] == pytest.approx(0.9487, abs=1e-3)  # 1 2 3.5 3.5 against 1 2 3 4
    for name, truth, n in (("margin", MARGIN, TOKENS), ("loss", 3.0, TOKENS - DOCUMENTS)):
        assert abs(found[name] - truth) < 5 * found[f"{name}_se"], name
        assert found[f"{name}_se"] == pytest.approx(truth / math.sqrt(n), rel=0.6)  # exponential: sd = mean
    shares = np.repeat([0.005, 0.095, 0.2, 0.7], TOKENS)
    histogram = np.histogram(shares, np.linspace(0, 1, 51))[0]
    near = [sum(found["read_share_histogram"][max(at - 1, 0) : at + 2]) for at in np.flatnonzero(histogram)]
    assert near[0] + near[1] + near[2] + near[3] >= TOKENS * K  # each within a bin of where it was planted
    middle = entropy(GATE_SHARES) / math.log(K) * 50
    assert sum(found["gate_entropy_histogram"][int(middle) - 1 : int(middle) + 2]) == TOKENS


def test_margins_follow_the_law_that_they_were_drawn_from(planted: Planted) -> None:
    found = np.array(planted.census.layers[0].reading.margin_histogram)
    edges = 2.0 ** (-16 + np.arange(MARGIN_BINS + 1) / 2)
    edges[0], edges[-1] = 0, np.inf
    expected = TOKENS * np.diff(expon(scale=MARGIN).cdf(edges))
    large = expected > 20
    # Rounding to 0.8% moves some across an edge: 2% of a half octave, so the bar is not the usual 5%.
    statistic = chisquare(found[large], expected[large] * found[large].sum() / expected[large].sum())
    assert statistic.pvalue > 1e-4
    assert large.sum() > 10


def test_detectors_are_found_with_their_tokens(planted: Planted) -> None:
    firing = planted.table("firing").set_index(["layer", "entry"])
    words = planted.table("titles").set_index("entry")["words"]
    share = np.bincount(planted.rows.token, minlength=VOCAB) / TOKENS
    for token, entry in DETECTED.items():
        row = firing.loc[DETECTOR, entry]
        assert row["count"] == (planted.rows.token == token).sum()
        assert row["input_token"][0] == token
        assert (row["input_token"][1:] == -1).all()  # and on nothing else
        assert row["input_lift"][0] == pytest.approx(1 / share[token])
        assert row["input_count"][0] == row["count"]
        assert row["docs"] == len(set(planted.rows.doc[planted.rows.token == token].tolist()))
        others = row["next_lift"][row["next_token"] >= 0]
        assert (others < 4).all()  # what follows is chance
        spread = math.sqrt((WINDOW**2 - 1) / 12 / row["count"])
        assert abs(row["position_mean"] - (WINDOW - 1) / 2) < 5 * spread
        assert row["fires_on"] == f"“␣{word(token)}” 100%"
        assert words[entry].split(" · ")[0] == word(token)


def test_detectors_are_the_only_layer_with_information_about_tokens(planted: Planted) -> None:
    layers = [layer.profiles.information for layer in planted.census.layers]
    share = np.bincount(planted.rows.token, minlength=VOCAB) / TOKENS
    # Of the K selections of a token one tells which it is, where it is a detected one.
    told = sum(share[token] / K * math.log(1 / share[token]) for token in DETECTED)
    excess = layers[DETECTOR].token - layers[DETECTOR].even_token
    assert excess == pytest.approx(told, rel=0.1)
    for layer in (ZIPF, UNIFORM, POSITION, GROUP):
        assert layers[layer].token == pytest.approx(layers[layer].even_token, rel=0.25)


def test_entries_of_a_position_are_found_in_its_profile(planted: Planted) -> None:
    profiles = planted.census.layers[POSITION].profiles
    tokens = np.array([row.tokens for row in profiles.position])
    assert [row.label for row in profiles.position] == ["0", "1-2", "3-6", "7-14", "15"]
    assert profiles.information.position == pytest.approx(entropy(tokens))  # entries tell the octave
    assert profiles.information.even_position < 0.01
    for row in profiles.position:
        assert row.coverage == K / N
        assert row.divergence == pytest.approx(math.log(TOKENS / row.tokens))
        assert row.even_divergence < 0.05
    for layer in (ZIPF, UNIFORM, DETECTOR, GROUP):
        other = planted.census.layers[layer].profiles
        for row in other.position:
            assert row.divergence == pytest.approx(row.even_divergence, rel=0.3)
        assert other.information.position == pytest.approx(other.information.even_position, rel=0.15)


def test_groups_of_documents_show_their_own_entries(planted: Planted) -> None:
    groups = planted.census.groups
    assert set(groups) == {"even", "odd"}
    for name in groups:
        own = groups[name].layers[GROUP].by_count
        assert own.coverage == 0.5
        assert own.kl_to_uniform == pytest.approx(math.log(2), abs=0.02)
        assert own.selections == TOKENS * K / 2
        other = groups[name].layers[UNIFORM].by_count
        assert other.coverage == 1
        assert groups[name].layers[0].reading.margin == pytest.approx(MARGIN, rel=0.1)
    assert planted.census.layers[GROUP].by_count.coverage == 1


def test_layers_overlap_as_planted(planted: Planted) -> None:
    overlap = {name: np.array(values) for name, values in planted.census.overlap}
    assert overlap["jaccard"][UNIFORM, GROUP] == 1  # both use all
    assert overlap["jensen_shannon"][UNIFORM, GROUP] < 0.02
    used = [set(planted.rows.indices[:, layer].ravel().tolist()) for layer in (DETECTOR, POSITION)]
    assert overlap["jaccard"][DETECTOR, POSITION] == pytest.approx(len(used[0] & used[1]) / len(used[0] | used[1]))
    assert abs(overlap["rank_correlation"][ZIPF, UNIFORM]) < 5 / math.sqrt(N)


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Entries 3 and 9 always together; 20 brings 21 along in 80% of cases; the rest is independent."""
    path, chance = tmp_path_factory.mktemp("pairs") / "recording", np.random.default_rng(0)
    rows = plant(30)
    indices = chance.permuted(np.tile(np.arange(30, 250), (TOKENS, 1)), axis=1)[:, :K].astype(np.uint32)
    always, often = chance.random(TOKENS) < 0.05, chance.random(TOKENS) < 0.1
    indices[always, :2] = [3, 9]
    indices[often, 2] = 20
    indices[often & (chance.random(TOKENS) < 0.8), 3] = 21
    rows.indices[:, 0] = indices
    write_aggregates(path, write_recording(path, rows, knowledge_num=N, window=WINDOW))
    return Planted(path, rows, read_census(path, read_info(path)))


def test_planted_pairs_are_the_best_neighbours(paired: Planted) -> None:
    table = paired.table("neighbours")
    table = table[table["layer"] == 0]
    best = table[table["rank"] == 0].set_index("entry")
    for one, other in ((3, 9), (9, 3)):
        assert (best["other"][one], best["npmi"][one]) == (other, 1)
    # p(20) = 0.1, p(21) = p(20, 21) = 0.08: ln(1 / 0.1) / -ln 0.08
    together = best["together"][20] / TOKENS
    assert together == pytest.approx(0.08, abs=5 * math.sqrt(0.08 * 0.92 / TOKENS))
    for one, other in ((20, 21), (21, 20)):
        assert best["other"][one] == other
        assert best["npmi"][one] == pytest.approx(math.log(10) / -math.log(0.08), abs=0.03)
    rest = table[(table["entry"] >= 30) & (table["other"] >= 30)]
    assert rest["npmi"].max() < 0.5 < best["npmi"][20]  # what chance brings together
    assert (rest["together"] >= 5).all()
