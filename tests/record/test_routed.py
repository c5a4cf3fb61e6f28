"""Experts that an inference server returned become a recording, whatever form its rows have."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memscope.base.errors import InputError
from memscope.record.routed import import_routed
from memscope.recording.info import read_info
from memscope.recording.part_reader import read_part
from memscope.testing.recordings import word_texts, write_tokenizer
from memscope.text.special_tokens import ROLES_FILE

VOCAB, LAYERS, K, N = 30, 4, 3, 10
DENSE = 0
"""A layer without experts: its numbers are 0."""
CHANCE = np.random.default_rng(0)
LENGTHS = (9, 4, 7)


def npy(experts: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, experts)
    return base64.b64encode(file.getvalue()).decode()


def sequence(length: int) -> tuple[list[int], np.ndarray]:
    """Tokens, and experts of all but the last."""
    experts = np.stack([CHANCE.permutation(N)[:K] for _ in range((length - 1) * LAYERS)]).reshape(-1, LAYERS, K)
    experts[:, DENSE] = 0
    return CHANCE.integers(3, VOCAB, length).tolist(), experts.astype(np.uint8)


SEQUENCES = [sequence(length) for length in LENGTHS]


def completion(tokens: list[int], experts: np.ndarray) -> dict[str, Any]:
    choice = {"prompt_token_ids": tokens[:2], "token_ids": tokens[2:], "routed_experts": npy(experts)}
    return {"id": "cmpl-1", "object": "text_completion", "choices": [choice]}


def chat(tokens: list[int], experts: np.ndarray) -> dict[str, Any]:
    choice = {"token_ids": tokens[3:], "routed_experts": npy(experts.astype(np.int32))}
    return {"id": "chat-1", "prompt_token_ids": tokens[:3], "choices": [choice]}


def plain(tokens: list[int], experts: np.ndarray) -> dict[str, Any]:
    return {"token_ids": tokens, "routed_experts": experts.tolist()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder: tokenizer and config."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer.json", word_texts(VOCAB))
    (folder / ROLES_FILE).write_text('{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}')
    (folder / "config.json").write_text(json.dumps({"num_local_experts": N}))
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("form", [completion, chat, plain])
def test_a_recording_holds_the_experts_of_every_token(
    folder: Path, tmp_path: Path, form: Callable[..., dict[str, Any]]
) -> None:
    file = write_lines(tmp_path / "routed.jsonl", [form(*one) for one in SEQUENCES])
    check(import_routed([file], folder, tmp_path / "rec"), tmp_path / "rec")


def test_parquet_and_several_files_and_several_choices_are_read(folder: Path, tmp_path: Path) -> None:
    first = {name: [plain(*SEQUENCES[0])[name]] for name in ("token_ids", "routed_experts")}
    pq.write_table(pa.table(first), tmp_path / "first.parquet")
    both = completion(*SEQUENCES[1])
    both["choices"] += completion(*SEQUENCES[2])["choices"]
    second = write_lines(tmp_path / "second.jsonl", [both])
    check(import_routed([tmp_path / "first.parquet", second], folder, tmp_path / "rec"), tmp_path / "rec")


def check(made: object, path: Path) -> None:
    info = read_info(path)
    assert info == made
    assert info.layers == (1, 2, 3)
    assert [(site.entries, site.selected, site.has) for site in info.sites] == [(N, K, ())] * 3
    assert info.knowledge_num == 3 * N and not info.predictions and info.complete
    [part] = info.parts
    rows = read_part(path, part, info)
    tokens = np.concatenate([tokens[:-1] for tokens, _ in SEQUENCES])
    experts = np.concatenate([experts for _, experts in SEQUENCES])[:, 1:].astype(int)
    np.testing.assert_array_equal(rows.token, tokens)
    np.testing.assert_array_equal(rows.indices, experts + np.arange(3)[:, None] * N)
    np.testing.assert_array_equal(rows.doc, np.repeat(np.arange(3), np.array(LENGTHS) - 1))
    np.testing.assert_array_equal(rows.pos, np.concatenate([np.arange(length - 1) for length in LENGTHS]))
    assert rows.gate is None and (rows.predicted == -1).all() and np.isnan(rows.loss).all()
    assert pq.read_table(path / "documents.parquet")["rows"].to_pylist() == [8, 3, 6]


def test_long_input_makes_several_parts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memscope.record.routed._PART_TOKENS", 8)
    file = write_lines(tmp_path / "routed.jsonl", [plain(*one) for one in SEQUENCES])
    info = import_routed([file], folder, tmp_path / "rec")
    assert [part.rows for part in info.parts] == [8, 9]
    rows = read_part(tmp_path / "rec", info.parts[1], info)
    np.testing.assert_array_equal(rows.doc, [1] * 3 + [2] * 6)


def odd(**values: Any) -> dict[str, Any]:
    return plain(*SEQUENCES[0]) | values


TOKENS, EXPERTS = SEQUENCES[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"token_ids": TOKENS}, r"1: has no routed_experts; start the server with --enable-return-routed-experts"),
        ({"routed_experts": EXPERTS.tolist()}, r"1: has no token_ids; ask the server with return_token_ids"),
        (odd(token_ids=TOKENS[:5]), r"1: has 5 tokens and experts of 8; all tokens of a sequence"),
        (odd(routed_experts="no base64"), r"1: routed_experts is no \.npy file in base64"),
        (odd(routed_experts=npy(np.array([object()], object))), r"1: routed_experts is no \.npy file in base64"),
        (odd(routed_experts=[[1, 2], [3]]), r"1: routed_experts is no \[token, layer, K\] table"),
        (odd(routed_experts=EXPERTS.astype(float).tolist()), r"1: routed_experts is no \[token, layer, K\] table"),
        (odd(token_ids=[VOCAB, *TOKENS[1:]]), r"1: has token 30, the tokenizer has 30"),
        (odd(routed_experts=(EXPERTS + N * (EXPERTS > 0)).tolist()), r"names expert 19, the model has 10"),
        (odd(routed_experts=np.where(EXPERTS.max() == EXPERTS, 1, EXPERTS * 0 + 1).tolist()), r"expert twice in layer"),
        (odd(routed_experts=(EXPERTS * 0).tolist()), r"holds no token with experts"),
        ([1], r"expected an object with token_ids"),
    ],
)
def test_unusable_rows_are_refused_where_they_stand(folder: Path, tmp_path: Path, row: Any, message: str) -> None:
    file = write_lines(tmp_path / "routed.jsonl", [row])
    with pytest.raises(InputError, match=message):
        import_routed([file], folder, tmp_path / "rec")
    assert not (tmp_path / "rec" / "recording.json").exists()


def test_the_number_of_experts_must_be_known(folder: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "routed.jsonl", [plain(*one) for one in SEQUENCES])
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json that says how many experts a layer has; give --experts"):
        import_routed([file], folder, tmp_path / "rec")
    assert import_routed([file], folder, tmp_path / "rec", experts=12).knowledge_num == 36


def test_the_command_makes_a_recording_and_refuses_what_is_not_there(cli, folder: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "routed.jsonl", [plain(*one) for one in SEQUENCES])
    done = cli("import", "vllm", file, "--tokenizer", folder, "--out", tmp_path / "rec")
    assert json.loads(done.out) == {
        "recording": str(tmp_path / "rec"), "documents": 3, "tokens": 17, "layers": [1, 2, 3]
    }  # fmt: skip
    again = cli("import", "vllm", file, "--tokenizer", folder, "--out", tmp_path / "rec")
    assert again.code == 2 and "holds a recording already" in again.err
    missing = cli("import", "vllm", tmp_path / "none.jsonl", "--tokenizer", folder, "--out", tmp_path / "other")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
