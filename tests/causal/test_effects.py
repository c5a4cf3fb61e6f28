"""Effects on a corpus against passes made by hand, controls against their promise, intervals against theirs."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from memscope.base.errors import InputError
from memscope.causal.effects import (
    Trial,
    compare_change,
    entry_usage,
    interval_unit,
    mean_change,
    measure_effects,
    most_changed,
    random_entries,
    top_entries,
    usage_matched,
)
from memscope.causal.intervene import ablate, scale
from memscope.query.recording import Recording
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from memscope.stats.jackknife import ratio_interval
from memscope.text.corpus import PackedCorpus, document_windows


def made_up(changes: list[list[float]]) -> pd.DataFrame:
    """Effects of one document per list, with these changes of loss and as much KL."""
    doc = np.repeat(np.arange(len(changes)), [len(values) for values in changes])
    pos = np.concatenate([np.arange(len(values)) for values in changes])
    after = np.concatenate(changes)
    columns = {"doc": doc, "pos": pos, "loss_before": np.zeros(len(after)), "loss_after": after, "kl": after}
    return pd.DataFrame(columns)


def test_effects_are_those_of_two_passes_over_each_window(tiny_run: LoadedRun, tiny_corpus: PackedCorpus) -> None:
    model = tiny_run.model
    windows = document_windows(tiny_corpus, 64, 900)
    off = Trial(partial(scale, model, 0.0))
    effects = measure_effects(OwnRun(tiny_run), tiny_corpus, windows, {"off": off}, batch_size=3)["off"]
    assert len(effects) == sum(min(w.end + 1, tiny_corpus.starts[w.doc + 1]) - w.start - 1 for w in windows)
    row = 0
    for window in windows:
        end = min(window.end + 1, tiny_corpus.starts[window.doc + 1])
        ids = torch.from_numpy(tiny_corpus.tokens[window.start : end].astype(np.int64))[None]
        with torch.no_grad():
            before = model(ids[:, :-1])[0].log_softmax(-1)
            with scale(model, 0.0):
                after = model(ids[:, :-1])[0].log_softmax(-1)
        part = effects.iloc[row : row + len(before)]
        row += len(before)
        assert (part["doc"] == window.doc).all() and (part["pos"] == window.pos + np.arange(len(part))).all()
        assert (part["target"] == ids[0, 1:].numpy()).all() and (part["token"] == ids[0, :-1].numpy()).all()
        at = torch.arange(len(before)), ids[0, 1:]
        np.testing.assert_allclose(part["loss_before"], -before[at], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(part["loss_after"], -after[at], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(part["kl"], (before.exp() * (before - after)).sum(-1), rtol=1e-3, atol=1e-5)
    assert effects["kl"].max() > 1e-3


def test_windows_that_select_no_ablated_entry_are_rightly_left_out(
    tiny_run: LoadedRun, tiny_corpus: PackedCorpus, tiny_recording: Recording
) -> None:
    model, windows = tiny_run.model, document_windows(tiny_corpus, 16, 600)
    usage = tiny_recording.usage_table().groupby("entry")["count"].sum()
    rare = [int(usage.idxmin())]
    runs = []

    def counted():
        runs.append(1)
        return ablate(model, rare)

    full = measure_effects(OwnRun(tiny_run), tiny_corpus, windows, {"all": Trial(counted)}, batch_size=2)["all"]
    every = len(runs)
    short = measure_effects(OwnRun(tiny_run), tiny_corpus, windows, {"rare": Trial(counted, rare)}, batch_size=2)[
        "rare"
    ]
    assert len(runs) - every < every
    pd.testing.assert_frame_equal(full.drop(columns="reached"), short.drop(columns="reached"), rtol=1e-4, atol=1e-5)
    early = ~short["reached"]
    assert full["reached"].all() and 0 < early.sum() < len(short)
    assert (short["kl"][early] == 0).all() and short["loss_after"][early].equals(short["loss_before"][early])
    # A second pass says the same but for rounding: neither attention nor padding nor the batch carries anything back.
    assert full["kl"][early].max() < 1e-6 < short["kl"].max()


def test_trials_share_one_baseline(tiny_run: LoadedRun, tiny_corpus: PackedCorpus) -> None:
    windows = document_windows(tiny_corpus, 64, 300)
    off, nothing = partial(scale, tiny_run.model, 0.0), partial(scale, tiny_run.model, 1.0)
    effects = measure_effects(OwnRun(tiny_run), tiny_corpus, windows, {"off": Trial(off), "nothing": Trial(nothing)})
    assert effects["off"]["loss_before"].equals(effects["nothing"]["loss_before"])
    assert (effects["nothing"]["loss_after"] == effects["nothing"]["loss_before"]).all()
    assert mean_change(effects["off"]).estimate != 0


def test_usage_is_that_of_the_recording(tiny_recording_path: Path, tiny_recording: Recording) -> None:
    assert (entry_usage(tiny_recording_path) == tiny_recording.usage().sum(0)).all()
    assert (entry_usage(tiny_recording_path, [1]) == tiny_recording.usage()[1]).all()


def test_top_entries_are_the_most_used_share() -> None:
    usage = np.array([0, 5, 9, 1, 7, 0, 0, 0, 0, 0])
    assert top_entries(usage, 0.25).tolist() == [2, 4, 1]
    with pytest.raises(InputError, match="share of 0"):
        top_entries(usage, 0.0)


def test_random_entries_are_used_distinct_and_not_excluded() -> None:
    usage = np.array([0, 5, 9, 1, 7, 0])
    assert sorted(random_entries(usage, 3, seed=0, exclude=[2])) == [1, 3, 4]
    assert len(set(random_entries(usage, 5, seed=0, used_only=False, exclude=[2]))) == 5
    with pytest.raises(InputError, match="only 3 are left"):
        random_entries(usage, 4, seed=0, exclude=[2])


def test_controls_of_equal_usage_are_used_about_as_often() -> None:
    usage = np.concatenate([np.arange(1000, 0, -1), np.zeros(1000, np.int64)])
    entries = np.array([10, 500, 900, 1500])
    control = usage_matched(usage, entries, seed=0, pool=10)
    assert len(set(control) | set(entries)) == 8
    assert (np.abs(usage[control] - usage[entries]) <= 10).all()
    assert usage[control[3]] == 0 and (usage[control[:3]] > 0).all()
    assert (usage_matched(usage, entries, seed=1, pool=10) != control).any()
    with pytest.raises(InputError, match="no entry is left"):
        usage_matched(usage[:2], [0, 1], seed=0)


def test_the_mean_weighs_tokens_and_its_interval_is_over_documents() -> None:
    effects = made_up([[1.0, 1.0, 1.0], [4.0]] * 20)
    change = mean_change(effects)
    assert change.estimate == pytest.approx(7 / 4)
    assert interval_unit(effects) == "documents"
    # residuals of 3 x -0.75 and 1 x 2.25 over 80 tokens, 20 times each
    error = np.sqrt(40 * 2.25**2) / 80
    assert (change.low, change.high) == pytest.approx((7 / 4 - 2.05 * error, 7 / 4 + 2.05 * error), abs=0.02)
    assert mean_change(effects, "kl") == mean_change(effects)


def test_of_few_documents_blocks_take_their_place() -> None:
    effects = made_up([[1.0] * 256 + [2.0] * 256, [3.0] * 100])
    assert interval_unit(effects) == "blocks of 256 tokens"
    change = mean_change(effects)
    assert change == ratio_interval(np.array([256.0, 512.0, 300.0]), np.array([256.0, 256.0, 100.0]))
    assert change.low < 1.4 and change.high > 2  # three blocks say little


def test_one_block_has_no_interval() -> None:
    change = mean_change(made_up([[1.0, 2.0]]))
    assert change.estimate == 1.5 and np.isnan([change.low, change.high]).all()


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    lengths = (2, 3, 5, 8, 12, 12, 15, 20, 30, 60, 90)
    covered = 0
    for _ in range(400):
        change = mean_change(made_up([list(0.3 + rng.normal(0, 1) + rng.normal(0, 1, n)) for n in lengths]))
        covered += change.low <= 0.3 <= change.high
    assert 0.93 <= covered / 400 <= 0.97


def test_a_contrast_covers_other_draws_of_controls() -> None:
    """Three controls of a spread of 1 leave the mean of controls uncertain, however alike documents are."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        shifts = rng.normal(0, 1, 3)
        change = compare_change(made_up([[0.0] * 4] * 12), [made_up([[shift] * 4] * 12) for shift in shifts])
        covered += change.low <= 0 <= change.high
    assert 0.92 <= covered / 300 <= 0.98


def test_a_contrast_is_paired_by_document_and_averages_controls() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(0, 5, 30)  # documents differ much more than the contrast
    effects = made_up([[value + 1.0] * 4 for value in level])
    controls = [made_up([[value + shift] * 4 for value in level]) for shift in (-0.1, 0.1) * 4]
    contrast = compare_change(effects, controls)
    assert contrast.estimate == pytest.approx(1.0)
    assert 0.85 < contrast.low < contrast.high < 1.15
    assert mean_change(effects).high - mean_change(effects).low > 1


def test_contexts_most_changed_come_with_their_text(tiny_run: LoadedRun, tiny_corpus: PackedCorpus) -> None:
    windows = document_windows(tiny_corpus, 64, 300)
    off = Trial(partial(scale, tiny_run.model, 0.0))
    effects = measure_effects(OwnRun(tiny_run), tiny_corpus, windows, {"off": off})["off"]
    shown = most_changed(effects, tiny_corpus, windows, tiny_run.tokenizer, limit=5, before=100)
    assert shown["kl"].tolist() == sorted(effects["kl"], reverse=True)[:5]
    for row in shown.itertuples():
        at = tiny_corpus.starts[row.doc] + row.pos
        assert tiny_run.tokenizer.token_texts[tiny_corpus.tokens[at]] == row.token_text
        assert tiny_run.tokenizer.token_texts[tiny_corpus.tokens[at + 1]] == row.target_text
        window = tiny_corpus.starts[row.doc] + row.pos // 64 * 64  # what the model saw
        text = tiny_run.tokenizer.decode(tiny_corpus.tokens[max(window, at - 100) : at].tolist())
        assert row.before == text
