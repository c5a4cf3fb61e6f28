"""A recording of two layers of experts whose routing is known: by domain, by token, in pairs, and along paths."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from memscope.base.parquet import write_table
from memscope.census.aggregate import write_aggregates
from memscope.query.recording import Recording
from memscope.record.decode import no_drift
from memscope.recording.aggregates import list_files
from memscope.recording.info import write_info
from memscope.recording.token_rows import TokenRows
from memscope.testing.recordings import write_recording

DOCUMENTS, LENGTH, N, K, VOCAB = 40, 100, 8, 2, 30


class Routed(NamedTuple):
    recording: Recording
    indices: np.ndarray
    """Entries counted from 0 in their layer, ``[token, layer, K]``."""
    token: np.ndarray
    groups: list[str]


def write_routed(folder: Path, indices: np.ndarray, token: np.ndarray, groups: list[str]) -> Recording:
    """A recording of experts in layers 0 and 2, from entries counted from 0 in each layer, ``[token, layer, K]``."""
    n, layers, k = indices.shape
    documents = len(groups)
    chance = np.random.default_rng(0)
    loss = chance.exponential(3, n).astype(np.float32)
    loss[n // documents - 1 :: n // documents] = np.nan
    shares = -np.sort(-chance.uniform(0.1, 1, (n, layers, k)))
    shift = np.arange(layers) * N
    rows = TokenRows(
        doc=np.repeat(np.arange(documents, dtype=np.uint32), n // documents),
        pos=np.tile(np.arange(n // documents, dtype=np.uint32), documents),
        token=token.astype(np.uint32),
        predicted=np.roll(token, 1).astype(np.int64),
        loss=loss,
        indices=indices + shift[None, :, None],
        gate=shares.astype(np.float16),
    )
    info = write_recording(
        folder,
        rows,
        groups=groups,
        kind="experts",
        has=("scores",),
        knowledge_num=layers * N,
        bank_groups=layers,
        window=LENGTH,
    )
    write_table(folder / "decodings.parquet", {"entry": np.arange(layers * N, dtype=np.uint32), **no_drift(layers * N)})
    write_aggregates(folder, info)
    write_info(folder, list_files(folder, info.model_copy(update={"complete": True})))
    return Recording(folder)


@pytest.fixture(scope="session")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Routed:
    """Layer 0: expert 0 is drawn four times as often in group "code", and the second choice is 1 after 0 and 6 after 5;
    layer 2: the first choice is the token id modulo 8, the second is drawn at random."""
    chance = np.random.default_rng(1)
    n = DOCUMENTS * LENGTH
    groups = ["code", "prose"] * (DOCUMENTS // 2)
    is_code = np.repeat([name == "code" for name in groups], LENGTH)
    token = chance.integers(3, VOCAB, n)
    weight = np.ones((n, N))
    weight[is_code, 0] = 4.0
    first = (weight.cumsum(1) > (chance.random(n) * weight.sum(1))[:, None]).argmax(1)
    second = (first + 2 + chance.integers(0, N - 3, n)) % N
    second = np.where(first == 0, 1, np.where(first == 5, 6, second))
    by_token = token % N
    other = (by_token + 1 + chance.integers(0, N - 1, n)) % N
    indices = np.stack([np.stack([first, second], 1), np.stack([by_token, other], 1)], 1)
    folder = tmp_path_factory.mktemp("routed") / "routed"
    recording = write_routed(folder, indices, token, groups)
    return Routed(recording, indices, token, groups)
