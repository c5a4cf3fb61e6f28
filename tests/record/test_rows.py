"""Scores are rounded fairly, and rows stand in the order of the corpus with what the hooks saw."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from memscope.record.rows import EXACT_BITS, RowCollector, round_scores
from memscope.run.adapters.own import OwnModel, OwnRun, capture_memory
from memscope.run.checkpoint import LoadedRun
from memscope.run.subject import WindowPass, run_windows
from memscope.text.corpus import PackedCorpus, document_windows

LARGEST = 65504.0
"""Of float16."""
SMALLEST_NORMAL = 2.0**-14
BITS = range(1, EXACT_BITS + 1)


def naive_round(value: float, bits: int) -> float:
    """A normal float16 with ``bits`` mantissa bits, by Python's own rounding half to even."""
    mantissa, exponent = math.frexp(value)  # 0.5 <= mantissa < 1: one bit before the kept ones
    return math.ldexp(round(math.ldexp(mantissa, bits + 1)), exponent - bits - 1)


def some_floats(n: int = 3000, seed: int = 0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    return (chance.choice([-1, 1], n) * 2 ** chance.uniform(-13.9, 15.9, n)).astype(np.float32)


@pytest.mark.parametrize("bits", BITS)
def test_scores_are_rounded_to_the_nearest_half_to_even(bits: int) -> None:
    values = some_floats()
    ties = [(2**bits + step + 0.5) * 2.0 ** (e - bits) for step in range(2 ** min(bits, 6)) for e in (-5, 0, 3)]
    values = np.concatenate([values, np.array(ties, np.float32), -np.array(ties, np.float32)])
    expected = [max(-LARGEST, min(LARGEST, naive_round(float(value), bits))) for value in values]
    np.testing.assert_array_equal(round_scores(values, bits).astype(np.float64), expected)


@pytest.mark.parametrize("bits", BITS)
def test_scores_are_off_by_no_more_than_the_stated_share_and_keep_their_order(bits: int) -> None:
    values = np.sort(some_floats(seed=bits))
    rounded = round_scores(values, bits)
    assert rounded.dtype == np.float16
    error = np.abs(rounded.astype(np.float64) - values)
    assert (error <= 2.0 ** -(bits + 1) * np.abs(values)).all()
    assert error.max() > 0
    assert (np.diff(rounded) >= 0).all()
    np.testing.assert_array_equal(rounded, -round_scores(-values, bits))
    if bits < EXACT_BITS:  # what compresses: the bits not kept are zero
        inside = np.abs(values) < LARGEST * (1 - 2.0**-bits)
        assert not (rounded[inside].view(np.uint16) & np.uint16((1 << (EXACT_BITS - bits)) - 1)).any()


@pytest.mark.parametrize("bits", BITS)
def test_scores_too_small_for_float16_are_off_by_half_a_step_more(bits: int) -> None:
    values = np.concatenate([[0.0], np.geomspace(1e-10, SMALLEST_NORMAL, 5000)]).astype(np.float32)
    rounded = round_scores(values, bits).astype(np.float64)
    assert (np.abs(rounded - values) <= 2.0 ** -(bits + 1) * values + 2.0**-25).all()
    assert (np.diff(rounded) >= 0).all()
    assert rounded[0] == 0


def test_rounding_many_scores_leaves_their_sum_where_it_was() -> None:
    # 64.5, 65.5 ... 127.5 in 64ths lie halfway between two numbers of 6 bits: up and down must balance.
    halfway = ((np.arange(64, 128) + 0.5) / 64).astype(np.float32)
    assert round_scores(halfway, 6).astype(np.float64).sum() == halfway.astype(np.float64).sum()
    values = np.random.default_rng(0).random(200_000, np.float32)
    bias = round_scores(values, 6).astype(np.float64).sum() / values.astype(np.float64).sum() - 1
    assert abs(bias) < 5e-5  # one error in 200,000 is up to 8e-3, their mean about 1e-5


def test_ten_bits_are_float16() -> None:
    values = some_floats()
    np.testing.assert_array_equal(round_scores(values, EXACT_BITS), values.astype(np.float16))


@pytest.mark.parametrize("bits", BITS)
def test_what_is_no_number_or_too_large_is_kept_apart(bits: int) -> None:
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, 1e9, -1e9, 65519.0, LARGEST, 0.0, -0.0], np.float32)
    rounded = round_scores(odd, bits)
    assert np.isnan(rounded[:2]).all()
    assert rounded[2:].tolist() == [LARGEST, -LARGEST, LARGEST, -LARGEST, LARGEST, LARGEST, 0, 0]


@pytest.mark.parametrize("raw", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])  # 0x7fffffff is what CUDA answers
def test_any_pattern_of_bits_that_is_no_number_stays_none(raw: int) -> None:
    assert np.isnan(round_scores(np.array([raw], np.uint32).view(np.float32), 6)).all()


def test_rounding_leaves_its_input_as_it_was() -> None:
    values = np.array([[0.1, 0.2], [0.3, np.nan]], np.float32)
    before = values.copy()
    assert round_scores(values, 3).shape == (2, 2)
    np.testing.assert_array_equal(values, before)


@pytest.fixture(scope="module")
def slot_corpus(slot_run: LoadedRun, tiny_corpus: PackedCorpus) -> PackedCorpus:
    """``valid.jsonl``, which the slot run reads with the same tokens: both train one tokenizer on the same text."""
    assert slot_run.tokenizer.backend.to_str()
    return tiny_corpus


@pytest.mark.parametrize("bits", [6, 10])
def test_every_column_is_what_the_hooks_saw_within_the_stated_error(
    slot_run: LoadedRun, slot_corpus: PackedCorpus, bits: int
) -> None:
    windows = document_windows(slot_corpus, 64)[:9]
    pad = slot_run.tokenizer.pad
    passes = run_windows(OwnModel(slot_run.model), slot_corpus, windows, pad, 4, keep_pattern=True, detail=True)
    sites = OwnRun(slot_run).sites
    assert [site.columns for site in sites] == [("gate", "read", "margin")] * 2
    columns = (*sites[0].columns, "score_margin", "by_score", "read_norm", "head_read", "slot_read")
    collector = RowCollector(slot_corpus, sites, bits, [columns, columns])
    rows = collector.collect(windows, passes)
    assert len(rows.doc) == sum(window.end - window.start for window in windows)
    first = 0
    for window in windows:
        tokens = torch.from_numpy(slot_corpus.tokens[window.start : window.end].astype(np.int64))[None]
        with capture_memory(slot_run.model) as captured:
            logits = slot_run.model(tokens)
        here = slice(first, first + tokens.shape[1])
        assert set(rows.doc[here]) == {window.doc}
        np.testing.assert_array_equal(rows.pos[here], np.arange(window.pos, window.pos + tokens.shape[1]))
        np.testing.assert_array_equal(rows.token[here], tokens[0])
        np.testing.assert_array_equal(rows.predicted[here], logits[0].argmax(-1))
        for axis in (0, 1):
            seen = captured[axis]
            assert rows.head_read is not None and rows.slot_read is not None
            pattern = seen.pattern[0].unflatten(-1, (8, 32))  # [token, A, K, L]
            expected = {
                "gate": seen.gate_scores[0],
                "read": pattern.mean(1).sum(-1),
                "margin": seen.margin[0],
                "score_margin": seen.margin[0],
                "by_score": torch.ones_like(seen.indices[0]),
                "read_norm": pattern.abs().mean(1).sum(-1),
                "head_read": pattern.sum(-1).flatten(1),
                "slot_read": pattern.mean(1).flatten(1),
            }
            np.testing.assert_array_equal(rows.indices[here, axis], seen.indices[0])
            for name, values in expected.items():
                stored = getattr(rows, name)[here, axis].astype(np.float64)
                # padding and batching move a forward pass by about 1e-6
                bound = 2.0 ** -(bits + 1) * values.abs().numpy() + 2.0**-25 + 2e-6
                assert (np.abs(stored - values.numpy()) <= bound).all(), name
        first = here.stop
    assert rows.head_read.shape == (first, 2, 4 * 8)
    assert rows.slot_read.shape == (first, 2, 8 * 32)


def test_rows_stand_in_the_order_of_windows_whatever_the_order_of_passes(
    tiny_run: LoadedRun, tiny_corpus: PackedCorpus
) -> None:
    windows = document_windows(tiny_corpus, 64)[:7]

    def passes(order: int) -> Iterator[WindowPass]:
        for start in range(0, 7, 3)[::order]:
            three = windows[start : start + 3]
            yield from run_windows(OwnModel(tiny_run.model), tiny_corpus, three, tiny_run.tokenizer.pad)

    collector = RowCollector(tiny_corpus, OwnRun(tiny_run).sites)
    one, other = collector.collect(windows, passes(1)), collector.collect(windows, passes(-1))
    for name in ("doc", "pos", "token", "predicted", "loss", "indices", "gate", "read", "margin"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.head_read is one.slot_read is None
    losses = np.flatnonzero(np.isnan(one.loss))
    ends = [w.end - windows[0].start - 1 for w in windows if w.end == tiny_corpus.starts[w.doc + 1]]
    assert losses.tolist() == ends
