"""Where entries start, and what is kept of it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from memscope.base.errors import InputError
from memscope.record.decode import kept_share, nearest_tokens
from memscope.run.bank_init import (
    encode_sentences,
    init_bank,
    load_bank_init,
    orthogonal_projection,
    save_bank_init,
)
from memscope.run.checkpoint import LoadedRun
from memscope.text.sentences import Sentence, Triple, choose_sentences, read_sentences

TABLE = np.random.default_rng(0).standard_normal((40, 12)).astype(np.float32)  # [vocab, dim]
IDS = [[5, 6, 7], [8], [9, 9, 3, 11, 2]]


def random_entries(n: int, slots: int, width: int = 8) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, slots, width)).astype(np.float32)


@pytest.mark.parametrize(("dim", "width"), [(12, 8), (8, 12), (8, 8)])
def test_projection_is_orthonormal_along_its_shorter_axis_and_seeded(dim: int, width: int) -> None:
    projection = orthogonal_projection(dim, width, seed=0)
    assert projection.shape == (dim, width)
    gram = projection.T @ projection if dim >= width else projection @ projection.T
    np.testing.assert_allclose(gram, np.eye(min(dim, width)), atol=1e-6)
    np.testing.assert_array_equal(projection, orthogonal_projection(dim, width, seed=0))
    assert not np.allclose(projection, orthogonal_projection(dim, width, seed=1))


def test_a_pooled_entry_is_the_normalised_mean_of_its_projected_tokens() -> None:
    init = init_bank(random_entries(6, 1), IDS, TABLE, pad=0, seed=0)
    for entry, ids in enumerate(IDS):
        mean = np.mean([TABLE[i] @ init.projection for i in ids], axis=0)
        np.testing.assert_allclose(init.entries[entry, 0], mean / np.linalg.norm(mean), atol=1e-6)


def test_a_slot_is_the_normalised_projection_of_its_token_and_pad_after_the_end() -> None:
    init = init_bank(random_entries(6, 4), IDS, TABLE, pad=0, seed=0)
    space = TABLE @ init.projection
    for entry, ids in enumerate([[5, 6, 7, 0], [8, 0, 0, 0], [9, 9, 3, 11]]):  # the third sentence is cut
        expected = space[ids] / np.linalg.norm(space[ids], axis=1, keepdims=True)
        np.testing.assert_allclose(init.entries[entry], expected, atol=1e-6)


@pytest.mark.parametrize("slots", [1, 4])
def test_entries_without_a_sentence_stay_random(slots: int) -> None:
    random = random_entries(6, slots)
    kept = random.copy()
    init = init_bank(random, IDS, TABLE, pad=0, seed=0)
    np.testing.assert_array_equal(init.entries[3:], kept[3:])
    np.testing.assert_array_equal(random, kept)  # the argument is not written to
    assert not np.allclose(init.entries[:3], kept[:3])


@pytest.mark.parametrize("width", [8, 20])  # narrower and wider than the embeddings
def test_slots_decode_to_the_tokens_of_their_sentence(width: int) -> None:
    init = init_bank(random_entries(3, 5, width), IDS, TABLE, pad=0, seed=0)
    space = torch.from_numpy(init.table @ init.projection)
    nearest = nearest_tokens(torch.from_numpy(init.entries).flatten(0, 1), space, 1).tokens.reshape(3, 5).tolist()
    assert nearest == [[5, 6, 7, 0, 0], [8, 0, 0, 0, 0], [9, 9, 3, 11, 2]]
    assert kept_share(nearest, IDS, 5) == [1, 1, 1]


def test_slots_of_a_run_decode_to_all_tokens_of_all_its_sentences(slot_run: LoadedRun, corpus_dir: Path) -> None:
    init = load_bank_init(slot_run.path)
    ids = pq.read_table(slot_run.path / "bank_init.parquet")["token_ids"].to_pylist()
    space = torch.from_numpy(init.table @ init.projection)
    nearest = nearest_tokens(torch.from_numpy(init.entries).flatten(0, 1), space, 1).tokens.reshape(64, 32)
    shares = kept_share(nearest.tolist(), ids, 32)
    sentences = choose_sentences(read_sentences(corpus_dir / "sentences.json"), 64, slot_run.config.train.seed)
    assert shares[: len(sentences)] == [1.0] * len(sentences)
    assert shares[len(sentences) :] == [None] * (64 - len(sentences))
    for sentence, own, found in zip(sentences, ids, nearest.tolist(), strict=False):
        text = slot_run.tokenizer.decode(found[: len(own)])
        assert sentence.text.startswith(text)
        assert len(own) == 32 or text == sentence.text


def test_the_model_of_a_run_holds_the_saved_entries(slot_run: LoadedRun) -> None:
    np.testing.assert_array_equal(slot_run.model.bank.entries.detach().numpy(), load_bank_init(slot_run.path).entries)


def test_provenance_of_every_entry_is_saved(tmp_path: Path) -> None:
    triples = (Triple("u1", "Ada", "born in", "Aston"), Triple("u2", "Ada", "died in", "Elham"))
    sentences = [Sentence("Ada .", triples), Sentence("Bo .", ())]
    init = init_bank(random_entries(4, 1), IDS[:2], TABLE, pad=0, seed=0)
    save_bank_init(tmp_path, init, sentences, IDS[:2])
    rows = pq.read_table(tmp_path / "bank_init.parquet").to_pylist()
    assert rows[0] == {
        "entry": 0,
        "sentence": "Ada .",
        "token_ids": [5, 6, 7],
        "uuid": ["u1", "u2"],
        "subject": ["Ada", "Ada"],
        "predicate": ["born in", "died in"],
        "object": ["Aston", "Elham"],
    }
    assert (rows[1]["sentence"], rows[1]["uuid"]) == ("Bo .", [])
    assert rows[3] == {"entry": 3, **dict.fromkeys(list(rows[0])[1:])}
    for saved, given in zip(load_bank_init(tmp_path), init, strict=True):
        np.testing.assert_array_equal(saved, given)


def test_sentences_are_cut_to_the_slots_only_when_slot_wise(tiny_run: LoadedRun) -> None:
    sentences = [Sentence("Ada Holm was born in Aston .", ())]
    [whole] = encode_sentences(sentences, tiny_run.tokenizer, knowledge_length=1)
    [cut] = encode_sentences(sentences, tiny_run.tokenizer, knowledge_length=3)
    assert tiny_run.tokenizer.decode(whole) == sentences[0].text
    assert cut == whole[:3]


def test_a_run_with_more_sentences_than_entries_takes_a_seeded_sample(tiny_run: LoadedRun, corpus_dir: Path) -> None:
    found = read_sentences(corpus_dir / "sentences.json")
    expected = [sentence.text for sentence in choose_sentences(found, 64, tiny_run.config.train.seed)]
    saved = pq.read_table(tiny_run.path / "bank_init.parquet")["sentence"].to_pylist()
    assert saved[: len(expected)] == expected
    assert saved[len(expected) :] == [None] * (64 - len(expected))


@pytest.mark.parametrize("content", [None, b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", b"x" * 100])
def test_missing_or_corrupted_tensors_are_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "bank_init.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"bank_init\.safetensors: (missing|corrupted)"):
        load_bank_init(tmp_path)
