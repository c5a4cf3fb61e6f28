"""The census of a recording against sorts and loops over everything."""

import numpy as np
import pytest
from scipy.stats import entropy, spearmanr

from memscope.aggregate import N_CONTEXTS, UNREAD_SHARE, Census, ReadingStatistics, TopContexts
from memscope.store import RecordingInfo, TokenRows

# float16 scores of few distinct values: ties everywhere
SCORES = np.array([0.0, 0.25, 0.5, 0.75], np.float16)


def make_selections(seed: int, n: int = 4000, entries: int = 50) -> tuple[np.ndarray, ...]:
    chance = np.random.default_rng(seed)
    entry = (chance.random(n) ** 3 * entries).astype(np.uint32)  # some entries often, some never
    gate = chance.choice(SCORES, n) if seed % 2 else chance.random(n).astype(np.float16)
    return entry, np.arange(n) // 4, gate, chance.standard_normal(n).astype(np.float16)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("chunks", [1, 2, 9])
def test_top_contexts_equal_a_sort_over_everything(seed: int, chunks: int) -> None:
    entry, row, gate, read = make_selections(seed)
    contexts = TopContexts(n_entries=50)
    for piece in np.array_split(np.arange(len(entry)), chunks):
        contexts.update(entry[piece], row[piece], gate[piece], read[piece])
    columns = contexts.columns()
    everything = sorted(zip(entry.tolist(), -gate.astype(float), row.tolist(), strict=True))
    expected = [
        (e, rank, r, -g)
        for e in range(50)
        for rank, (_, g, r) in enumerate([item for item in everything if item[0] == e][:N_CONTEXTS])
    ]
    found = zip(*(columns[name].tolist() for name in ("entry", "rank", "row", "gate")), strict=True)
    assert list(found) == expected


def test_top_contexts_keep_the_read_weight_of_their_row() -> None:
    contexts = TopContexts(n_entries=3, keep=2)
    for entry, row, gate, read in [(1, 0, 0.5, 7), (1, 1, 0.9, 8), (2, 1, 0.1, 9), (1, 2, 0.7, 6)]:
        contexts.update(
            np.array([entry], np.uint32), np.array([row]), np.array([gate], np.float16), np.array([read], np.float16)
        )
    columns = contexts.columns()
    assert columns["entry"].tolist() == [1, 1, 2]
    assert columns["row"].tolist() == [1, 2, 1]  # 0.9 and 0.7 of entry 1, then the only one of entry 2
    assert columns["read"].tolist() == [8, 6, 9]
    assert columns["rank"].tolist() == [0, 1, 0]


def test_no_selections_give_no_contexts() -> None:
    assert all(len(column) == 0 for column in TopContexts(5).columns().values())


def make_weights(seed: int = 0, tokens: int = 200, k: int = 6) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    gate = chance.random((tokens, k)).astype(np.float16) * (chance.random((tokens, k)) < 0.7)
    read = (gate * chance.standard_normal((tokens, k))).astype(np.float16)
    gate[:3], read[:3] = 0, 0  # tokens that read nothing
    gate[3], read[3] = [0.5] * k, [0.25] * k  # one without any preference
    return gate.astype(np.float16), read


def test_reading_statistics_equal_a_loop_over_tokens() -> None:
    gate, read = make_weights()
    statistics = ReadingStatistics()
    for piece in (slice(0, 90), slice(90, None)):
        statistics.update(gate[piece], read[piece])
    found = statistics.as_dict()

    values: dict[str, list[float]] = {}
    unread, shares, silent = 0, [], 0
    for g, r in zip(gate.astype(float), np.abs(read.astype(float)), strict=True):
        share = r / r.sum() if r.sum() else np.zeros(len(r))
        unread += sum(s < UNREAD_SHARE for s in share)
        shares += list(share)
        if not r.sum():
            silent += 1
            continue
        attention = [b / a if a else 0 for a, b in zip(g, r, strict=True)]
        constant = len(set(g)) == 1 or len(set(r)) == 1 or len(set(attention)) == 1
        one = {
            "gate_entropy": entropy(g),
            "gate_top_share": g.max() / g.sum(),
            "read_entropy": entropy(r),
            "effective_entries_read": np.exp(entropy(r)),
            "read_top_share": share.max(),
            "gate_read_rank_correlation": 0 if constant else spearmanr(g, r).statistic,
            "gate_attention_rank_correlation": 0 if constant else spearmanr(g, attention).statistic,
        }
        for name, value in one.items():
            values.setdefault(name, []).append(float(value))
    for name, each in values.items():
        assert found[name] == pytest.approx(np.mean(each)), name
    assert found["unread_share"] == pytest.approx(unread / gate.size)
    assert found["silent_tokens"] == pytest.approx(silent / len(gate)) and silent >= 3
    assert found["read_share_histogram"] == np.histogram(shares, np.linspace(0, 1, 51))[0].tolist()


def test_reading_everything_from_one_entry_is_effectively_one_entry() -> None:
    statistics = ReadingStatistics()
    statistics.update(np.array([[0.7, 0.3]], np.float16), np.array([[0.0, -2.0]], np.float16))
    found = statistics.as_dict()
    assert (found["effective_entries_read"], found["read_top_share"], found["unread_share"]) == (1.0, 1.0, 0.5)
    assert found["gate_read_rank_correlation"] == pytest.approx(-1)  # what the gate likes less is read


def test_nothing_seen_is_zero_everywhere() -> None:
    found = ReadingStatistics().as_dict()
    assert (found["unread_share"], found["silent_tokens"], sum(found["read_share_histogram"])) == (0, 0, 0)


def test_census_numbers_rows_through_all_parts_and_means_the_loss() -> None:
    info = RecordingInfo.model_validate(
        {"format_version": 1, "layers": (1,), "knowledge_num": 4, "knowledge_length": 1, "selected": 2}
        | {"run": "r", "fingerprint": "f", "corpus": "c", "corpus_sha256": "s", "dtype": "float32"}
        | {"part_tokens": 2, "total_tokens": 4, "complete": False, "seconds": 0.0}
        | {"parts": [{"name": "a", "rows": 2, "sha256": ""}, {"name": "b", "rows": 2, "sha256": ""}]}
    )

    def part(indices: list[list[int]], loss: list[float]) -> TokenRows:
        zeros = np.zeros(2, np.uint32)
        ones = np.ones((2, 1, 2), np.float16)
        entries = np.array(indices, np.uint32)[:, None]
        return TokenRows(zeros, zeros, zeros, np.array(loss, np.float32), entries, ones, ones)

    census = Census(info)
    census.update(part([[0, 1], [0, 2]], [1.0, 2.0]), first_row=0)
    census.update(part([[0, 1], [0, 1]], [3.0, np.nan]), first_row=2)
    summary = census.summary()
    assert (summary["loss"], summary["tokens"]) == (2.0, 4)
    assert summary["layers"][0]["layer"] == 1
    assert summary["layers"][0]["by_count"]["dead"] == summary["all_layers"]["dead"] == 1  # entry 3
    assert census.contexts[0].columns()["row"].tolist() == [0, 1, 2, 3, 0, 2, 3, 1]  # of entry 0, then 1, then 2
