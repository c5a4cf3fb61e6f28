"""What an entry says: nearest tokens, drift, logit lens."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from memscope.model.ops.sparse_read import GatheredSlots
from memscope.record.decode import N_LENS, N_NEAREST, kept_share, logit_lens, nearest_tokens, write_decodings
from memscope.run.adapters.own import OwnRun
from memscope.run.bank_init import load_bank_init
from memscope.run.checkpoint import LoadedRun
from tests.synthetic import make_info


def decode(run: LoadedRun, path: Path, entries: list[int]) -> pd.DataFrame:
    subject = OwnRun(run)
    info = make_info(vocab_size=run.tokenizer.vocab_size).model_copy(update={"sites": subject.sites})
    write_decodings(subject, info, path, dict.fromkeys(info.layers, np.array(entries)), lambda: ())
    return pd.read_parquet(path)


def test_nearest_tokens_equal_a_loop_over_cosines() -> None:
    chance = torch.Generator().manual_seed(0)
    vectors, space = torch.randn(5, 8, generator=chance), torch.randn(30, 8, generator=chance)
    found = nearest_tokens(vectors, space, 4)
    for row, vector in enumerate(vectors):
        cosines = [float(vector @ token / vector.norm() / token.norm()) for token in space]
        best = sorted(range(30), key=lambda token: -cosines[token])[:4]
        assert found.tokens[row].tolist() == best
        np.testing.assert_allclose(found.cosine[row], [cosines[token] for token in best], atol=1e-6)


@pytest.mark.parametrize(
    ("nearest", "ids", "n_slots", "expected"),
    [
        ([[4, 5, 6, 7]], [[5, 7, 9]], 1, [0.5]),  # pooled: 5 and 7 of the four stand in the sentence
        ([[4, 5, 6, 7]], [[4, 9, 6]], 4, [2 / 3]),  # slot-wise: slots 0 and 2 of three; slot 3 was padding
        ([[4, 5], [4, 5]], [None, [4, 5]], 2, [None, 1.0]),
        ([[1, 2]], [[3, 4]], 2, [0.0]),
    ],
)
def test_kept_share_on_hand_made_entries(
    nearest: list[list[int]], ids: list[list[int] | None], n_slots: int, expected: list[float | None]
) -> None:
    assert kept_share(nearest, ids, n_slots) == expected


def test_before_training_nothing_drifted_and_every_slot_keeps_its_token(slot_run: LoadedRun, tmp_path: Path) -> None:
    frame = decode(slot_run, tmp_path / "decodings.parquet", [0, 1])
    np.testing.assert_allclose(frame["drift"], 0, atol=1e-6)
    np.testing.assert_allclose(np.stack(frame["slot_drift"]), 0, atol=1e-6)
    from_sentence = frame["kept"].notna()
    assert from_sentence.sum() > 40
    assert (frame["kept"][from_sentence] == 1).all()
    assert (frame["kept_at_init"][from_sentence] == 1).all()
    assert len(frame["nearest"][0]) == 32  # one per slot


def test_drift_is_one_minus_the_cosine_to_the_initial_entry(tiny_run: LoadedRun, tmp_path: Path) -> None:
    frame = decode(tiny_run, tmp_path / "decodings.parquet", [0])
    now, before = tiny_run.model.bank.entries.detach()[:, 0].numpy(), load_bank_init(tiny_run.path).entries[:, 0]
    expected = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(now, before, strict=True)]
    np.testing.assert_allclose(frame["drift"], expected, atol=1e-5)
    assert frame["drift"].max() > 1e-4  # training moved something
    assert len(frame["nearest"][0]) == N_NEAREST


def test_swapping_two_slots_shows_as_lost_tokens_and_drift(slot_run: LoadedRun, tmp_path: Path) -> None:
    entries = slot_run.model.bank.entries
    before = entries.detach().clone()
    with torch.no_grad():
        entries[0, [0, 1]] = entries[0, [1, 0]]
    frame = decode(slot_run, tmp_path / "decodings.parquet", [0])
    with torch.no_grad():
        entries.copy_(before)
    n_tokens = min(32, len(slot_run.tokenizer.encode(frame_sentence(slot_run, 0))))
    assert frame["kept"][0] == pytest.approx(1 - 2 / n_tokens)
    assert frame["kept_at_init"][0] == 1
    assert (frame["slot_drift"][0][:2] > 0.1).all()
    np.testing.assert_allclose(frame["slot_drift"][0][2:], 0, atol=1e-6)
    np.testing.assert_allclose(frame["drift"][1:], 0, atol=1e-6)


def frame_sentence(run: LoadedRun, entry: int) -> str:
    return str(pd.read_parquet(run.path / "bank_init.parquet")["sentence"][entry])


@pytest.mark.parametrize("name", ["tiny_run", "slot_run"])
def test_logit_lens_equals_reading_the_entry_by_hand(name: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(name)
    model = run.model
    for layer in (0, 1):
        lens = logit_lens(OwnRun(run), layer, torch.tensor([3, 60]))
        read = model.blocks[layer].memory.read
        for row, entry in enumerate((3, 60)):
            values = [read.o_proj(read.v_proj(slot)) for slot in model.bank.entries[entry]]
            mean = torch.stack(values).mean(0)
            expected = model.embed.weight @ model.norm(mean)
            torch.testing.assert_close(lens[row], expected, atol=1e-5, rtol=1e-4)


def test_lens_is_what_a_softmax_read_of_a_single_slot_adds(tiny_run: LoadedRun) -> None:
    # Every slot holds entry 5, every gate score is 1: whatever the attention prefers, it reads entry 5.
    model = tiny_run.model
    read = model.blocks[1].memory.read
    x, slots = torch.randn(1, 1, 32), GatheredSlots(model.bank.entries[5].expand(1, 1, 4, 16))
    weights = read.pattern(x, slots, torch.ones(1, 1, 4))
    added = read.output(x, slots, weights)[0, 0]
    lens = logit_lens(OwnRun(tiny_run), 1, torch.tensor([5]))[0]
    torch.testing.assert_close(model.unembed(added), lens, atol=1e-4, rtol=1e-4)


def test_lens_tokens_are_best_and_worst_first_and_null_for_unused_entries(tiny_run: LoadedRun, tmp_path: Path) -> None:
    used = [2, 5, 63]
    frame = decode(tiny_run, tmp_path / "decodings.parquet", used)
    assert frame["l0_top"].notna().to_numpy().nonzero()[0].tolist() == used
    logits = logit_lens(OwnRun(tiny_run), 0, torch.tensor(used))
    for row, entry in enumerate(used):
        order = logits[row].argsort(descending=True)
        np.testing.assert_allclose(logits[row][frame["l0_top"][entry].astype(int)], logits[row][order[:N_LENS]])
        np.testing.assert_allclose(
            logits[row][frame["l0_bottom"][entry].astype(int)], logits[row][order.flip(0)[:N_LENS]]
        )
