"""Several processes train like one, whatever each holds of the model, and go on from one another's checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file

from memscope.checkpoint import list_checkpoints
from memscope.config import Config, dump_config
from memscope.errors import InputError
from memscope.metrics_log import read_metrics
from memscope.train import train

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What ``accelerate launch`` says to the processes that it starts with configs/accelerate/fsdp2.yaml."""
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}

Launch = Callable[..., Any]


def losses(run: Path, kind: str = "train") -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == kind]


def short(corpus_dir: Path, memory: dict[str, object] | None = None, **train_values: object) -> Config:
    often = {"log_interval": 1, "eval_interval": 2, "save_interval": 2, "eval_tokens": 128}
    values = {"steps": 4, "dtype": "float32", **often, **train_values}
    return tiny_config(corpus_dir, model={"max_seq_len": 32}, memory=memory or {}, train=values)


def assert_same_losses(run: Path, reference: Path) -> None:
    for kind in ("train", "eval"):
        assert losses(run, kind) == pytest.approx(losses(reference, kind), abs=1e-4)


def assert_same_weights(run: Path, reference: Path) -> None:
    """The last step's, and the moments of the optimiser: apart by far less than training moved them."""
    folder, expected_folder = (list_checkpoints(path)[-1] for path in (run, reference))
    assert folder.name == expected_folder.name
    for file in ("model.safetensors", "optimizer.safetensors"):
        found, expected = load_file(folder / file), load_file(expected_folder / file)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("lazy", [False, True])
def test_two_copies_train_like_one_process_at_the_same_global_batch(
    corpus_dir: Path, tmp_path: Path, torchrun: Launch, lazy: bool
) -> None:
    train(short(corpus_dir, batch_size=4, lazy_bank=lazy), tmp_path / "one", device="cpu")
    done = torchrun(short(corpus_dir, batch_size=2, lazy_bank=lazy), tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert_same_losses(tmp_path / "two", tmp_path / "one")
    assert len(losses(tmp_path / "two")) == 4  # one process writes
    summary = json.loads((tmp_path / "two" / "run.json").read_text())
    assert json.loads(done.stdout) == summary  # and one process prints
    assert (summary["processes"], summary["tokens"]) == (2, 4 * 4 * 32)


@pytest.mark.parametrize(
    ("memory", "settings"),
    [
        pytest.param({"knowledge_length": 3, "query_norm": "layer"}, {"gradient_checkpointing": True}, id="full gate"),
        pytest.param(
            {"gate": "product", "gate_heads": 2, "read_fn": "gelu", "score_fn": "relu", "slot_proj": False}
            | {"read_norm": "rms", "output_gate": True, "residual_scale": 0.5, "balance_bias": 0.01},
            {"accumulation_steps": 2, "freeze_bank_steps": 1, "memory_lr_scale": 4.0},
            id="product gate",
        ),
        pytest.param({"shared_keys": True, "frozen_share": 0.5, "z_loss": 0.01}, {}, id="shared keys"),
    ],
)
def test_two_shards_train_like_one_process_at_the_same_global_batch(
    corpus_dir: Path, tmp_path: Path, torchrun: Launch, memory: dict[str, object], settings: dict[str, object]
) -> None:
    train(short(corpus_dir, memory, batch_size=4, **settings), tmp_path / "one", device="cpu")
    done = torchrun(short(corpus_dir, memory, batch_size=2, **settings), tmp_path / "two", **FSDP2)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["processes"], summary["strategy"]) == (2, "fsdp2")
    assert_same_losses(tmp_path / "two", tmp_path / "one")
    assert_same_weights(tmp_path / "two", tmp_path / "one")


def rewound(run: Path, copy: Path, config: Config) -> Path:
    """The run as it was after step 2, as if it had had another batch size a process."""
    shutil.copytree(run, copy)
    shutil.rmtree(list_checkpoints(copy)[-1])
    (copy / "config.yaml").write_text(dump_config(config))
    return copy


@pytest.mark.parametrize("frozen_steps", [0, 3])
def test_shards_go_on_from_one_process_and_one_process_from_shards(
    corpus_dir: Path, tmp_path: Path, torchrun: Launch, frozen_steps: int
) -> None:
    whole, part = (short(corpus_dir, batch_size=size, freeze_bank_steps=frozen_steps) for size in (4, 2))
    train(whole, one := tmp_path / "one", device="cpu")
    done = torchrun(part, two := tmp_path / "two", **FSDP2)
    assert done.returncode == 0, done.stderr
    done = torchrun(part, sharded := rewound(one, tmp_path / "sharded", part), "--resume", **FSDP2)
    assert done.returncode == 0, done.stderr
    train(whole, gathered := rewound(two, tmp_path / "gathered", whole), resume=True, device="cpu")
    for run in (sharded, gathered):
        assert_same_losses(run, one)
        assert_same_weights(run, one)


@pytest.mark.parametrize(
    ("variables", "memory", "settings", "message"),
    [
        (FSDP2, {}, {"lazy_bank": True}, "fsdp2 and lazy_bank=true: .* add --set lazy_bank=false"),
        (FSDP2, {"query_norm": "batch"}, {}, "fsdp2 and query_norm=batch"),
        (FSDP2 | {"FSDP_VERSION": "1"}, {}, {}, "fsdp2 and FSDP version 1: set fsdp_version: 2"),
        (FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, {}, {}, "fsdp_offload_params: set it to false"),
        (FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, {}, "add --set gradient_checkpointing=true"),
        (ZERO, {}, {"lazy_bank": True}, "deepspeed and lazy_bank=true"),
        (ZERO, {}, {"freeze_bank_steps": 1}, "deepspeed and freeze_bank_steps"),
    ],
)
def test_what_shards_cannot_do_is_refused_before_anything_is_written(
    corpus_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    memory: dict[str, object],
    settings: dict[str, object],
    message: str,
) -> None:
    config = short(corpus_dir, memory, **settings)
    for name, value in {"LOCAL_RANK": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        train(config, tmp_path / "run", device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_process_that_no_launcher_started_trains_alone(
    corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    assert train(short(corpus_dir, lazy_bank=True), tmp_path / "run", device="cpu")["strategy"] == "ddp"
