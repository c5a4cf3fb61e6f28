"""On what entries fire, against loops over every selection and scikit-learn on the same counts."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics import mutual_info_score

from memscope.census.aggregate import write_usage
from memscope.census.firing import firing
from memscope.census.firing.firing import N_QUANTILES, N_TOKENS, N_TOP, N_WORDS, words_apart, write_firing
from memscope.census.firing.kernels import sort_keys
from memscope.census.firing.row_words import words_of_rows
from memscope.census.strata import divide_recording
from memscope.recording.info import RecordingInfo
from memscope.recording.token_rows import TokenRows
from memscope.text.tokenizer import Tokenizer
from tests.synthetic import SPECIAL, make_rows, selections_of, write_recording

LENGTHS = [60, 25, 60, 33, 150, 120]
FILES = ("contexts.parquet", "firing.parquet", "titles.parquet")
Selections = dict[int, list[tuple[float, int, float]]]


def write_all(
    folder: Path, rows: TokenRows, **settings: Any
) -> tuple[RecordingInfo, list[dict[str, float]], dict[str, pd.DataFrame]]:
    """Write a recording and what it fires on; tables by name."""
    info = write_recording(folder, rows, **settings)
    write_usage(folder, info, divide_recording(folder, info))
    information = write_firing(folder, info)
    return info, information, {name: pd.read_parquet(folder / name) for name in FILES}


@pytest.fixture(scope="module", params=["ties", "no ties"])
def rows(request: pytest.FixtureRequest) -> TokenRows:
    """Some entries are selected by a single token, some by more than 200."""
    return make_rows(LENGTHS, seed=2, levels=4 if request.param == "ties" else 0)


@pytest.fixture(scope="module")
def written(rows: TokenRows, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_all(tmp_path_factory.mktemp("firing") / "recording", rows)


def by_entry(rows: TokenRows, axis: int) -> Selections:
    """Gate score, row and read weight of an entry's selections, highest gate score first, then earliest row."""
    found: Selections = {}
    for row, _, entry, gate, read in selections_of(rows, axis):
        found.setdefault(entry, []).append((gate, row, read))
    return {entry: sorted(some, key=lambda s: (-s[0], s[1])) for entry, some in sorted(found.items())}


def test_contexts_are_the_best_selections_and_the_middles_of_the_fifths(rows: TokenRows, written: Any) -> None:
    contexts = written[2]["contexts.parquet"]
    columns = ["layer", "entry", "kind", "rank", "row", "gate", "read"]
    assert list(contexts.columns) == columns
    expected = []
    for axis, layer in enumerate((0, 2)):
        for entry, some in by_entry(rows, axis).items():
            n = len(some)
            places = [("top", rank, rank) for rank in range(min(n, N_TOP))]
            middles = [(2 * fifth + 1) * n // (2 * N_QUANTILES) for fifth in range(N_QUANTILES)]
            places += [("quantile", fifth, place) for fifth, place in enumerate(middles) if place >= N_TOP]
            expected += [(layer, entry, kind, rank, some[p][1], some[p][0], some[p][2]) for kind, rank, p in places]
    assert list(contexts.astype({"gate": float, "read": float}).itertuples(index=False, name=None)) == expected
    assert contexts["kind"].value_counts()["quantile"] > 20
    assert contexts.groupby("kind", observed=True)["rank"].max().to_dict() == {"top": 19, "quantile": 4}


def test_an_entry_of_few_selections_has_top_contexts_only(rows: TokenRows, written: Any) -> None:
    contexts = written[2]["contexts.parquet"]
    sizes = [len(some) for axis in (0, 1) for some in by_entry(rows, axis).values()]
    assert min(sizes) <= N_TOP < 200 < max(sizes)
    for (_, _), here in contexts.groupby(["layer", "entry"]):
        top, quantile = (here[here["kind"] == kind]["row"] for kind in ("top", "quantile"))
        assert len(top) == N_TOP or len(quantile) == 0
        assert not set(top) & set(quantile)  # nothing is shown twice


def test_counts_documents_positions_and_deciles_equal_loops(rows: TokenRows, written: Any) -> None:
    table = written[2]["firing.parquet"].set_index(["layer", "entry"])
    for axis, layer in enumerate((0, 2)):
        for entry, some in by_entry(rows, axis).items():
            row = table.loc[layer, entry]
            at = [s[1] for s in some]
            assert row["count"] == len(some)
            assert row["docs"] == len({int(rows.doc[r]) for r in at})
            assert row["position_mean"] == pytest.approx(np.mean([int(rows.pos[r]) % 16 for r in at]), rel=1e-5)
            gates = sorted(s[0] for s in some)
            deciles = row["gate_deciles"].astype(float)
            assert (deciles[0], deciles[10]) == (gates[0], gates[-1])
            for tenth in range(11):  # the nearest selection; two are equally near at .5
                place = tenth / 10 * (len(gates) - 1)
                near = {gates[i] for i in range(len(gates)) if abs(i - place) <= 0.5 + 1e-9}
                assert deciles[tenth] in near
    assert len(table) == len(by_entry(rows, 0)) + len(by_entry(rows, 1))


def tokens_of(rows: TokenRows) -> dict[str, np.ndarray]:
    """Input, previous, predicted and next token of every row; -1 at a window's start and a document's end."""
    following = np.full(len(rows.token), -1)
    for row in range(len(following) - 1):
        if rows.doc[row] == rows.doc[row + 1]:
            following[row] = rows.token[row + 1]
    before = [-1 if pos % 16 == 0 else int(rows.token[row - 1]) for row, pos in enumerate(rows.pos)]
    of_row = {"input": rows.token, "previous": before, "predicted": rows.predicted, "next": following}
    return {kind: np.asarray(tokens).astype(int) for kind, tokens in of_row.items()}


def typical(labels: list[int], share: dict[int, float]) -> dict[int, tuple[float, float, int]]:
    """Score, lift and count of what occurs twice at least and more often than elsewhere."""
    known = [label for label in labels if label >= 0]
    found = {}
    for label, count in Counter(known).items():
        p = count / len(known)
        score = p * math.log(p / share[label])
        if count > 1 and score > 1e-12:
            found[label] = (score, p / share[label], count)
    return found


def shares(labels: np.ndarray) -> dict[int, float]:
    known = labels[labels >= 0].tolist()
    return {label: count / len(known) for label, count in Counter(known).items()}


@pytest.mark.parametrize("kind", ["input", "previous", "predicted", "next"])
def test_typical_tokens_add_most_to_the_divergence(rows: TokenRows, written: Any, kind: str) -> None:
    table = written[2]["firing.parquet"].set_index(["layer", "entry"])
    of_row = tokens_of(rows)[kind]
    share = shares(of_row)
    for axis, layer in enumerate((0, 2)):
        for entry, some in by_entry(rows, axis).items():
            expected = typical([int(of_row[s[1]]) for s in some], share)
            row = table.loc[layer, entry]
            found = [token for token in row[f"{kind}_token"] if token >= 0]
            n = len(found)
            assert n == min(N_TOKENS, len(expected))
            assert (row[f"{kind}_token"][n:] == -1).all()
            assert len(set(found)) == n
            scores = [expected[token][0] for token in found]
            assert scores == pytest.approx(sorted((s for s, _, _ in expected.values()), reverse=True)[:n])
            np.testing.assert_allclose(row[f"{kind}_lift"][:n], [expected[t][1] for t in found], rtol=1e-6)
            assert row[f"{kind}_count"][:n].tolist() == [expected[t][2] for t in found]


def test_tokens_that_say_equally_much_stand_in_their_order(tmp_path: Path) -> None:
    # Entry 0 fires twice on each of tokens 9, 4, 7, 5, 8, 6, 3; entry 1 on as many others.
    rows = make_rows([14, 14], entries=2, selected=1, layers=1, vocab=20)
    rows.token[:14] = [9, 4, 7, 5, 8, 6, 3] * 2
    rows.token[14:] = np.repeat(np.arange(10, 17), 2)
    rows.indices[:14], rows.indices[14:] = 0, 1
    table = write_all(tmp_path, rows, knowledge_num=2)[2]["firing.parquet"]
    assert table["input_token"][0].tolist() == [3, 4, 5, 6, 7]
    assert table["input_token"][1].tolist() == [10, 11, 12, 13, 14]
    assert table["input_lift"][0].tolist() == [2] * 5


def test_information_between_entry_and_token_is_that_of_scikit_learn(rows: TokenRows, written: Any) -> None:
    for axis, found in enumerate(written[1]):
        of_row = tokens_of(rows)
        for name, tokens in (("token", of_row["input"]), ("previous", of_row["previous"])):
            known = tokens >= 0
            entries = rows.indices[known, axis].ravel()
            assert found[name] == pytest.approx(mutual_info_score(entries, np.repeat(tokens[known], 4)))
            chance = np.random.default_rng(axis + 10)
            mixed = [mutual_info_score(entries, np.repeat(chance.permutation(tokens[known]), 4)) for _ in range(20)]
            assert abs(found[f"even_{name}"] - np.mean(mixed)) < 5 * np.std(mixed)


def test_an_entry_that_stands_for_the_token_before_is_known_by_it(tmp_path: Path) -> None:
    rows = make_rows([400, 400], entries=8, selected=1, layers=1, vocab=8)
    known = rows.pos % 16 > 0
    rows.indices[:, 0, 0] = np.where(known, np.roll(rows.token, 1), 0)
    _, information, tables = write_all(tmp_path, rows, knowledge_num=8)
    share = np.bincount(rows.indices[known, 0, 0]) / known.sum()
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    assert information[0]["previous"] == pytest.approx(entropy)
    assert information[0]["even_previous"] < 0.1
    assert information[0]["token"] < 0.1
    table = tables["firing.parquet"].set_index("entry")
    for entry, row in table.iterrows():
        assert row["previous_token"].tolist() == [entry, -1, -1, -1, -1]
        assert row["previous_count"][0] == (rows.indices[known, 0, 0] == entry).sum()
        assert row["previous_lift"][0] == pytest.approx(1 / share[entry])


def naive_words(rows: TokenRows, folder: Path) -> dict[int, list[str]]:
    starts = np.cumsum([0, *LENGTHS[:-1]])
    words = words_of_rows(rows.token.astype(np.int32), starts, Tokenizer.load(folder / "tokenizer.json"))
    share = shares(words.of_row)
    counts = np.zeros((64, len(words.texts)), int)
    for axis in (0, 1):
        for entry, some in by_entry(rows, axis).items():
            expected = typical([int(words.of_row[s[1]]) for s in some], share)
            best = sorted(expected, key=lambda word: (-round(expected[word][0], 10), word))[:N_WORDS]
            for word in best:
                counts[entry, word] += expected[word][2]
    used = np.flatnonzero(counts.sum(1))
    weight = TfidfTransformer(sublinear_tf=True).fit_transform(counts[used]).toarray()
    found = {}
    for entry, row in zip(used.tolist(), weight, strict=True):
        best = sorted(np.flatnonzero(row), key=lambda word: (-round(row[word], 10), word))[:3]
        found[entry] = [words.texts[word] for word in best]
    return found


def test_words_apart_are_those_of_highest_tf_idf(rows: TokenRows, written: Any, tmp_path: Path) -> None:
    info = write_recording(tmp_path, rows)
    table = written[2]["titles.parquet"].dropna(subset="words")
    found = {entry: words.split(" · ") for entry, words in zip(table["entry"], table["words"], strict=True)}
    assert found == naive_words(rows, tmp_path)
    assert 30 < len(found) <= info.knowledge_num


def test_words_apart_add_up_layers_and_keep_any_text() -> None:
    words = ["<b>bold</b>", "=HYPERLINK(1)", "a · b", "漢字", "plain"]
    counted = np.array(
        [[5, 0, 3], [5, 0, 4], [5, 1, 2], [2, 3, 9], [7, 4, 1], [7, 2, 6], [7, 1, 1], [7, 0, 1]], np.int32
    )
    table = words_apart(counted, words, np.array([0, 2, 5, 7]))
    # idf: words 0 and 1 stand in two of three entries, the others in one; tf is 1 + ln count
    weight = {2: 1 + math.log(6), 4: 1.0}
    rare, common = math.log(4 / 2) + 1, math.log(4 / 3) + 1
    assert weight[2] * rare > weight[4] * rare > common
    assert table.to_pylist() == [None, "漢字", "<b>bold</b> · =HYPERLINK(1)", "a · b · plain · <b>bold</b>"]


def test_without_words_nothing_is_set_apart() -> None:
    assert words_apart(np.zeros((0, 3), np.int32), [], np.arange(4)).to_pylist() == [None] * 4


def test_hostile_words_of_a_text_come_out_as_they_are(tmp_path: Path) -> None:
    texts = [*SPECIAL, " <script>alert(1)</script>", " =cmd|'/C", " o'clock", ' "quoted"', " {{7*7}}x", " größe"]
    rows = make_rows([40, 40], entries=6, selected=1, layers=1, vocab=6)
    rows.token[:] = rows.predicted[:] = 3 + np.arange(80) % 6
    rows.indices[:, 0, 0] = np.arange(80) % 6
    tables = write_all(tmp_path, rows, texts=texts, knowledge_num=6)[2]
    title = tables["titles.parquet"]["title"]
    assert title[0] == "“␣<script>alert(1)</script>” 100% of 14 firings"
    assert tables["titles.parquet"]["words"].tolist() == [
        "script>alert(1)</script",
        "cmd|'/C",
        "o'clock",
        "quoted",
        "7*7}}x",
        "größe",
    ]


@pytest.mark.parametrize("block", [1, 50, 300])
def test_entries_may_have_more_selections_than_a_block(
    rows: TokenRows, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    assert max(len(some) for some in by_entry(rows, 0).values()) > 200
    monkeypatch.setattr(firing, "BLOCK", block)
    _, information, tables = write_all(tmp_path, rows)
    for name in FILES:
        pd.testing.assert_frame_equal(tables[name], written[2][name])
    for found, expected in zip(information, written[1], strict=True):
        assert found == pytest.approx(expected)


def test_entries_of_a_large_bank_are_told_apart(tmp_path: Path) -> None:
    # Numbers that are equal in their last 16 bits, and far apart: a block spans less than 65,536 of them.
    numbers = np.array([5, 5 + 65536, 5 + 2 * 65536, 70_000, 199_999], np.uint32)
    rows = make_rows([50, 50], entries=5, selected=2, layers=1)
    rows.indices[:] = numbers[rows.indices]
    table = write_all(tmp_path, rows, knowledge_num=200_000)[2]["firing.parquet"]
    found = dict(zip(table["entry"], table["count"], strict=True))
    assert found == Counter(rows.indices.ravel().tolist())


def test_parts_of_any_size_give_the_same(rows: TokenRows, written: Any, tmp_path: Path) -> None:
    tables = write_all(tmp_path, rows, bounds=[0, 1, 17, 300, sum(LENGTHS)])[2]
    for name in FILES:
        pd.testing.assert_frame_equal(tables[name], written[2][name])


def test_two_heads_that_select_one_entry_keep_their_own_scores_and_read_weights(tmp_path: Path) -> None:
    # Both heads select entry 0 at every token: with scores 0.5 and 0.25, read by 3 and by 7.
    rows = make_rows([8, 8], entries=4, selected=2, layers=1, heads=2)
    rows.indices[:], rows.gate[:], rows.read[:] = 0, [0.5, 0.25], [3, 7]
    contexts = write_all(tmp_path, rows, knowledge_num=4)[2]["contexts.parquet"]
    assert set(zip(contexts["gate"], contexts["read"], strict=True)) == {(0.5, 3), (0.25, 7)}


def test_keys_sort_by_entry_falling_score_and_row() -> None:
    chance = np.random.default_rng(0)
    entry = chance.integers(0, 4, 500).astype(np.uint32) * 21845
    gate = chance.choice(np.array([-2, -1e-7, 0, 1e-7, 6e-5, 0.5, 1, 65504], np.float16), 500)
    row = chance.integers(0, 2**32 - 1, 500).astype(np.uint32)
    order = np.argsort(sort_keys(entry, gate, row))
    expected = sorted(range(500), key=lambda i: (entry[i], -float(gate[i]), row[i]))
    assert [(entry[i], gate[i], row[i]) for i in order] == [(entry[i], gate[i], row[i]) for i in expected]
