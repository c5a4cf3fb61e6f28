"""The headline of an entry, against loops over every selection, and entries whose pattern is planted."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from memscope.census.aggregate import write_usage
from memscope.census.firing.fires_on import COVERAGE, ERROR, NONE, SHOWN, START, TIMES
from memscope.census.firing.firing import write_firing
from memscope.census.strata import divide_recording
from memscope.recording.parts import TokenRows
from tests.synthetic import SPECIAL, make_rows, write_recording

LENGTHS = [60, 25, 60, 33, 150, 120]
WINDOW = 16
TEXT = [*SPECIAL, " of", " the", ",", " New", " York", " river", *(f" w{number}" for number in range(9, 60))]
OF, THE, COMMA, NEW, YORK, RIVER = range(3, 9)


def written(folder: Path, rows: TokenRows, **settings: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``firing.parquet`` of rows by layer and entry, ``titles.parquet`` by entry."""
    info = write_recording(folder, rows, **settings)
    write_usage(folder, info, divide_recording(folder, info))
    write_firing(folder, info)
    firing, titles = (pd.read_parquet(folder / f"{name}.parquet") for name in ("firing", "titles"))
    return firing.set_index(["layer", "entry"]), titles.set_index("entry")


def in_one_layer(folder: Path, rows: TokenRows, **settings: Any) -> pd.DataFrame:
    """What entries fire on in the only layer, by entry, with their titles."""
    firing, titles = written(folder, rows, **settings)
    return firing.droplevel("layer").join(titles[["title", "words"]])


def tokens_before(rows: TokenRows) -> np.ndarray:
    return np.where(rows.pos % WINDOW == 0, START, np.roll(rows.token, 1).astype(int))


def firings_of(rows: TokenRows, axis: int) -> dict[int, list[tuple[int, int]]]:
    """Token and token before of every firing in a layer: a token counts once, however many heads select."""
    before, found = tokens_before(rows), {}
    for row in range(len(rows.token)):
        for entry in set(rows.indices[row, axis].tolist()):
            found.setdefault(entry, []).append((int(rows.token[row]), int(before[row])))
    return found


def most(labels: list[int]) -> list[tuple[int, int]]:
    """Most frequent labels with their counts; the start of a window comes after all tokens."""
    return sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0] == START, item[0]))[:SHOWN]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("axis", [0, 1])
def test_tokens_and_shares_are_those_of_a_loop(
    heads: int, axis: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(LENGTHS, seed=2, heads=heads)
    if heads == 2:  # both heads select one entry
        rows.indices[::3, :, 2] = rows.indices[::3, :, 0]
    monkeypatch.setattr("memscope.census.firing.firing.BLOCK", 300)
    table = written(tmp_path, rows)[0].loc[2 * axis]
    token, before = rows.token.astype(int), tokens_before(rows)
    firings = firings_of(rows, axis)
    assert table.index.tolist() == sorted(firings)
    for entry, row in table.iterrows():
        n = len(firings[entry])
        assert row["firings"] == n
        best = {}
        for reading, side, of_row in (("token", 0, token), ("before", 1, before)):
            best[reading] = most([firing[side] for firing in firings[entry]])
            kinds = len(np.unique(of_row))
            tested = [
                (count, np.mean(of_row == label))
                for label, count in best[reading]
                if binom.sf(count - 1, n, np.mean(of_row == label)) * kinds <= ERROR
            ]
            coverage, expected = sum(count for count, _ in tested) / n, sum(share for _, share in tested)
            if coverage >= COVERAGE and coverage >= TIMES * expected:
                break
        else:
            reading = "none"
        assert row["pattern_by"] == reading
        shown = best["before" if reading == "before" else "token"]
        assert [label for label in row["top_token"] if label != NONE] == [label for label, _ in shown]
        np.testing.assert_allclose(row["top_share"][: len(shown)], [count / n for _, count in shown], rtol=1e-6)
        if reading != "none":
            assert row["pattern_share"] == pytest.approx(coverage)
        for label, pair, share in zip(row["top_token"], row["top_pair"], row["top_pair_share"], strict=True):
            if pair != NONE:
                assert share == pytest.approx(sum(firing == (label, pair) for firing in firings[entry]) / n)


def planted(seed: int = 0) -> TokenRows:
    """Text of 60 tokens where some are common, and one entry a row in one layer."""
    rows = make_rows([160] * 60, seed=seed, entries=16, selected=1, layers=1, vocab=60)
    chance = np.random.default_rng(seed)
    rows.token[:] = chance.choice(np.arange(9, 60), len(rows.token))
    for common, share in ((THE, 0.06), (COMMA, 0.05), (OF, 0.03), (YORK, 0.04), (NEW, 0.03)):
        rows.token[chance.random(len(rows.token)) < share] = common
    after_new = np.flatnonzero(rows.token == NEW)[:-1] + 1
    rows.token[after_new[chance.random(len(after_new)) < 0.3]] = YORK
    rows.indices[:, 0, 0] = chance.integers(8, 16, len(rows.token))  # these fire anywhere
    return rows


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenRows, pd.DataFrame]:
    rows = planted()
    token, before, entry = rows.token.astype(int), tokens_before(rows), rows.indices[:, 0, 0]
    entry[token == COMMA] = 0  # punctuation can be named
    entry[(token == YORK) & (before == NEW)] = 1  # a pair, where the token often has another before it
    entry[(before == OF) & (token != COMMA)] = 2  # the token before, whatever the token
    entry[(before == START) & (token > NEW)] = 3  # the start of a window
    entry[np.flatnonzero(token >= 58)[:1]] = 4  # a single firing
    entry[np.flatnonzero(token == THE)[:2]] = 5  # two firings on a common token
    entry[np.flatnonzero(token == THE)[2:6]] = 6  # four, which chance does not make
    settings = {"texts": TEXT, "knowledge_num": 16, "window": WINDOW}
    return rows, in_one_layer(tmp_path_factory.mktemp("planted") / "recording", rows, **settings)


def test_punctuation_is_named(found: tuple[TokenRows, pd.DataFrame]) -> None:
    row = found[1].loc[0]
    assert row["title"].startswith("“,” ") and row["pattern_by"] == "token"
    assert "," not in str(row["words"])  # words cannot say it
    assert row["top_share"][0] > 0.9 and row["pattern_share"] > 0.9


def test_the_token_before_is_named_where_it_says_more(found: tuple[TokenRows, pd.DataFrame]) -> None:
    row = found[1].loc[1]
    assert row["title"] == "“␣York” 100% (100% after “␣New”)"
    assert (row["top_token"][0], row["top_pair"][0], row["top_pair_share"][0]) == (YORK, NEW, 1)
    assert found[1].loc[0, "top_pair"].tolist() == [NONE] * 3  # nothing in particular comes before the comma


def test_a_pair_that_the_text_always_has_says_nothing_of_an_entry(tmp_path: Path) -> None:
    rows = planted(seed=1)
    first = rows.token == YORK
    rows.token[first] = 9
    rows.token[1:][rows.token[:-1] == NEW] = YORK  # always after New
    rows.indices[rows.token == YORK, 0, 0] = 1
    table = in_one_layer(tmp_path, rows, texts=TEXT, knowledge_num=16, window=WINDOW)
    assert table.loc[1, "title"] == "“␣York” 100%"


def test_entries_that_fire_after_a_token_or_at_the_start_say_so(found: tuple[TokenRows, pd.DataFrame]) -> None:
    after, start = found[1].loc[2], found[1].loc[3]
    assert after["pattern_by"] == "before" and after["title"] == "after “␣of” 100%"
    assert start["pattern_by"] == "before" and start["title"] == "at the start of a window 100%"
    assert start["top_token"].tolist() == [START, NONE, NONE]


def test_entries_that_fire_anywhere_have_no_clear_pattern(found: tuple[TokenRows, pd.DataFrame]) -> None:
    anywhere = found[1].loc[8:]
    assert len(anywhere) == 8 and (anywhere["pattern_by"] == "none").all()
    assert anywhere["title"].str.startswith("no clear pattern (“").all()


def test_few_firings_make_no_pattern_of_a_common_token(found: tuple[TokenRows, pd.DataFrame]) -> None:
    once = found[1].loc[4, "title"]
    assert once.startswith("no clear pattern (“") and once.endswith("of 1 firing)")
    assert found[1].loc[5, "title"] == "no clear pattern (“␣the” 100% of 2 firings)"
    assert found[1].loc[6, "title"] == "“␣the” 100% of 4 firings"


def test_entries_that_fire_at_random_get_a_pattern_no_more_often_than_stated(tmp_path: Path) -> None:
    # 400 entries with 1 to 200 firings each on text of Zipf's law.
    chance = np.random.default_rng(0)
    rows = make_rows([512] * 60, entries=400, selected=1, layers=1, vocab=60)
    rows.token[:] = 3 + chance.choice(57, len(rows.token), p=(law := 1 / np.arange(1, 58)) / law.sum())
    rows.indices[:, 0, 0] = chance.choice(400, len(rows.token), p=(law := np.arange(1, 401.0)) / law.sum())
    table = in_one_layer(tmp_path, rows, knowledge_num=400, window=64)
    assert (table["pattern_by"] == "none").mean() >= 1 - 2 * ERROR  # once by the token, once by the one before


def test_the_headline_of_an_entry_is_that_of_the_layer_where_it_fires_most(tmp_path: Path) -> None:
    rows = make_rows([160] * 10, entries=4, selected=1, layers=2, vocab=60)
    rows.indices[:] = 3
    rows.indices[:, 0, 0][rows.token == 9] = 0
    rows.indices[:, 1, 0][(rows.token == 9) | (rows.token == 10)] = 0
    rows.indices[:, 1, 0][rows.token == 11] = 1
    firing, titles = written(tmp_path, rows, knowledge_num=4)
    in_both = firing["firings"].xs(0, level="entry")
    share = f"{in_both[2] / in_both.sum():.0%}"
    assert titles["title"][0] == f"{firing['fires_on'][2, 0]} (layer 2, {share} of its firings)"
    assert firing["fires_on"][0, 0].startswith("“␣w9” 100%")
    assert titles["title"][1] == firing["fires_on"][2, 1]
    assert titles["firings"][0] == in_both.sum()
