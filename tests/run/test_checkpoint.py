"""Runs on disk load strictly."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from memscope.base.errors import InputError
from memscope.base.files import sha256_file
from memscope.config.training import TrainConfig
from memscope.model.transformer import MemoryTransformer
from memscope.run.checkpoint import (
    MODEL,
    list_checkpoints,
    load_run,
    load_weights,
    publish_newest,
    read_checkpoint,
    read_tensors,
    save_checkpoint,
)
from memscope.train.optimizer import make_optimizer
from memscope.train.parallel import restore_optimizer, training_state
from tests.conftest import tiny_config

TOKENS = torch.arange(24).reshape(2, 12)


def make_model(seed: int = 0) -> tuple[MemoryTransformer, torch.optim.AdamW]:
    model = MemoryTransformer(tiny_config(Path("unused")), seed=seed)
    return model, make_optimizer(model, TrainConfig())


def step(model: MemoryTransformer, optimizer: torch.optim.AdamW) -> None:
    model(TOKENS).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_restored_checkpoint_continues_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = make_model()
    step(model, optimizer)
    save_checkpoint(tmp_path, 1, training_state(model, optimizer), keep=2)
    other, other_optimizer = make_model(seed=9)
    [folder] = list_checkpoints(tmp_path)
    load_weights(other, folder / MODEL)
    steps, state = read_checkpoint(folder)
    restore_optimizer(other, other_optimizer, state)
    assert steps == 1
    for pair in ((model, optimizer), (other, other_optimizer)):
        step(*pair)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_newest_model_is_published_and_old_checkpoints_go(tmp_path: Path) -> None:
    model, optimizer = make_model()
    for number in (1, 2, 10):
        step(model, optimizer)
        save_checkpoint(tmp_path, number, training_state(model, optimizer), keep=2)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_publishing_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")

    def no_links(*_: object) -> None:
        raise OSError("this file system has no hard links")

    monkeypatch.setattr("os.link", no_links)
    publish_newest(tmp_path, keep=1)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


def test_a_temporary_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step-00000005.12345678.unfinished").mkdir(parents=True)
    assert list_checkpoints(tmp_path) == []


def test_a_loaded_run_is_what_was_trained_in_eval_mode(tiny_run_path: Path) -> None:
    run = load_run(tiny_run_path)
    assert run.path == tiny_run_path
    assert run.fingerprint == sha256_file(tiny_run_path / "model.safetensors")
    assert not run.model.training
    saved = load_file(tiny_run_path / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in run.model.state_dict().items())
    assert saved.keys() == run.model.state_dict().keys()


def test_another_model_than_the_config_says_is_refused_by_tensor(tmp_path: Path) -> None:
    model, _ = make_model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "model.safetensors"
    save_file({name: tensor for name, tensor in weights.items() if name != "bank.entries"}, path)
    with pytest.raises(InputError, match=r"another model than config.yaml describes \(tensor 'bank.entries'\)"):
        load_weights(model, path)
    save_file({**weights, "extra": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"tensor 'extra'"):
        load_weights(model, path)
    save_file({**weights, "bank.entries": torch.zeros(64, 1, 17)}, path)
    with pytest.raises(InputError, match=r"'bank.entries' has shape \(64, 1, 17\), config.yaml gives \(64, 1, 16\)"):
        load_weights(model, path)
    save_file(weights, path)
    load_weights(model, path)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "header"])
def test_damaged_tensors_are_refused(tiny_run_path: Path, tmp_path: Path, damage: str) -> None:
    content = (tiny_run_path / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(
        {"empty": b"", "truncated": content[:-10], "text": b"not tensors at all", "header": b"\xff" * 64}[damage]
    )
    with pytest.raises(InputError, match=r"model\.safetensors: corrupted .* resume from an older checkpoint"):
        read_tensors(path)


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", None, r"not a run folder \(no config.yaml\); train one with 'memscope train'"),
        ("config.yaml", "model: {vocab_size: 320, dim: 64}", "model.safetensors: '.*' has shape|another model than"),
        ("config.yaml", "model: [", "not valid YAML"),
        ("model.safetensors", None, "no model.safetensors; no finished checkpoint yet"),
        ("tokenizer.json", None, r"tokenizer\.json: no such tokenizer file"),
        ("tokenizer.json", "{}", "not a tokenizer.json"),
    ],
)
def test_an_incomplete_run_is_refused(
    tiny_run_path: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    run = shutil.copytree(tiny_run_path, tmp_path / "run")
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load_run(run)


def test_a_tokenizer_of_another_size_is_refused(tiny_run_path: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run_path, tmp_path / "run")
    tokenizer = json.loads((run / "tokenizer.json").read_text())
    last = max(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    del tokenizer["model"]["vocab"][last]
    tokenizer["model"]["merges"] = [pair for pair in tokenizer["model"]["merges"] if "".join(pair) != last]
    (run / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"tokenizer.*319.*320"):
        load_run(run)
