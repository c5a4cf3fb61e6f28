"""Several processes train like one, whatever each holds of the model, and go on from one another's checkpoints."""

import gc
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from memscope.base.errors import InputError
from memscope.base.seals import read_sealed
from memscope.config.load import Config, dump_config
from memscope.run.checkpoint import list_checkpoints, load_run
from memscope.run.metrics_log import read_metrics
from memscope.train.loop import train
from tests.conftest import tiny_config

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "memscope" / "presets" / "accelerate"
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}
"""What ``accelerate launch`` says to the processes that it starts with the files of that folder."""

HAS_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="no DeepSpeed here")
Launch = Callable[..., dict[str, Any]]


def losses(run: Path, kind: str = "train") -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == kind]


def short(corpus_dir: Path, memory: dict[str, object] | None = None, **train_values: object) -> Config:
    often = {"log_interval": 1, "eval_interval": 2, "save_interval": 2, "eval_tokens": 128}
    values = {"steps": 4, "dtype": "float32", **often, **train_values}
    return tiny_config(corpus_dir, model={"max_seq_len": 32}, memory=memory or {}, train=values)


def launch_variables(how: str) -> dict[str, str]:
    """What ``accelerate launch`` says to its processes with a file of ``presets/accelerate``."""
    words = ["--config_file", str(FOLDER / f"{how}.yaml"), "-m", "memscope"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    return dict(prepare_multi_gpu_env(arguments))


@pytest.fixture
def launch(tmp_path: Path, group: Launch) -> Launch:
    """Train with two processes as a file of ``presets/accelerate`` says; returns the summary."""

    def call(how: str, config: Config, run: Path, *words: str) -> dict[str, Any]:
        done: Any
        if how == "deepspeed":
            (tmp_path / "config.yaml").write_text(dump_config(config))
            launcher = ["accelerate.commands.launch", "--config_file", FOLDER / f"{how}.yaml", "--main_process_port", 0]
            train = ["-m", "memscope", "train", tmp_path / "config.yaml", "--out", run, "--device", "cpu", *words]
            command = [sys.executable, "-m", *map(str, [*launcher, *train])]
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        else:
            done = group(config, run, *words, **launch_variables(how))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("step 4: validation loss") == 1  # one process speaks
        summary: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])  # DeepSpeed prints before it
        return summary

    return call


def assert_same_losses(run: Path, reference: Path, within: float = 1e-4) -> None:
    for kind in ("train", "eval"):
        assert losses(run, kind) == pytest.approx(losses(reference, kind), abs=within)


def assert_same_weights(run: Path, reference: Path) -> None:
    """The last step's, and the moments of the optimiser: apart by far less than training moved them."""
    folder, expected_folder = (list_checkpoints(path)[-1] for path in (run, reference))
    assert folder.name == expected_folder.name
    for file in ("model.safetensors", "optimizer.safetensors"):
        found, expected = load_file(folder / file), load_file(expected_folder / file)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-3)


def say_what_is_traced() -> None:
    torch._logging.set_logs(dynamo=logging.INFO)


@pytest.mark.compiler
def test_compiled_layers_train_the_same_model(corpus_dir: Path, tmp_path: Path, group: Callable[..., Any]) -> None:
    # First, in one process: what the compiler made serves the copies below, whose shapes are the same.
    settings = {"steps": 3, "batch_size": 2, "dtype": "float32", "log_interval": 1, "eval_interval": 2}
    losses = []
    for compiled in (False, True):
        run = tmp_path / f"compiled-{compiled}"
        model = {"block": "both", "max_seq_len": 32}
        config = tiny_config(corpus_dir, model=model, train={**settings, "compile": compiled})
        if compiled:  # in another process, which dynamo leaves as it is
            done = group(config, run, processes=1, before=say_what_is_traced)
            assert done.returncode == 0, done.stderr
            assert "start tracing forward" in done.stderr
        else:
            train(config, run, device="cpu")
        lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
        assert sum("layer_0/coverage" in line for line in lines) == 3  # evaluation still sees its hooks
        losses.append([line["loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    files = [load_file(tmp_path / f"compiled-{compiled}" / "model.safetensors") for compiled in (False, True)]
    assert files[0].keys() == files[1].keys()


@pytest.mark.parametrize(
    ("lazy", "compiled"), [(False, False), (True, False), pytest.param(True, True, marks=pytest.mark.compiler)]
)
def test_two_copies_train_like_one_process_at_the_same_global_batch(
    corpus_dir: Path, tmp_path: Path, launch: Launch, lazy: bool, compiled: bool
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(short(corpus_dir, batch_size=4, lazy_bank=lazy), one, device="cpu")
    config = short(corpus_dir, batch_size=2, lazy_bank=lazy, compile=compiled)
    summary = launch("ddp", config, two)  # that file is really launched in base/test_stop.py
    assert summary == read_sealed(two / "run.json", "train again")
    assert (summary["processes"], summary["strategy"], summary["tokens"]) == (2, "ddp", 4 * 4 * 32)
    assert_same_losses(two, one)
    assert len(losses(two)) == 4  # one process writes


def count_copies() -> None:
    """Have a process say how many copies of a model it holds when it leaves its group."""
    end_training = Accelerator.end_training

    def spied(self: Accelerator) -> None:
        copies = sum(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects())
        print("copies:", copies, file=sys.stderr, flush=True)
        end_training(self)

    Accelerator.end_training = spied  # type: ignore[method-assign]


def test_no_copy_outlives_the_group_of_the_processes(corpus_dir: Path, tmp_path: Path, group: Launch) -> None:
    # Its reducer would end the group under Python's lock, for which gloo's thread waits now and then: for ever.
    done: Any = group(short(corpus_dir, batch_size=2), tmp_path / "run", before=count_copies)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("copies: 0") == 2


@pytest.mark.parametrize("how", ["fsdp2", pytest.param("deepspeed", marks=HAS_DEEPSPEED)])
@pytest.mark.parametrize(
    ("memory", "settings"),
    [
        pytest.param({"knowledge_length": 3}, {"gradient_checkpointing": True}, id="full gate"),
        pytest.param(
            {"gate": "product", "gate_heads": 2, "read_fn": "gelu", "score_fn": "relu", "slot_proj": False}
            | {"read_norm": "rms", "output_gate": True, "balance_bias": 0.01},
            {"accumulation_steps": 2, "memory_lr_scale": 4.0, "warmup_iters": 2},
            id="product gate",
        ),
        pytest.param({}, {"dtype": "bfloat16"}, id="bfloat16"),
    ],
)
def test_two_parts_train_like_one_process_at_the_same_global_batch(
    corpus_dir: Path,
    tmp_path: Path,
    launch: Launch,
    how: str,
    memory: dict[str, object],
    settings: dict[str, object],
) -> None:
    train(short(corpus_dir, memory, batch_size=4, **settings), tmp_path / "one", device="cpu")
    config = short(corpus_dir, memory, batch_size=2, **settings)
    summary = launch(how, config, tmp_path / "two")
    assert (summary["processes"], summary["strategy"]) == (2, how)
    exact = "dtype" not in settings  # bfloat16 gradients depend on how a batch is cut
    assert_same_losses(tmp_path / "two", tmp_path / "one", within=1e-4 if exact else 1e-3)
    if exact:
        assert_same_weights(tmp_path / "two", tmp_path / "one")
    assert load_run(tmp_path / "two").model.count_parameters() == summary["parameters"]


def rewound(run: Path, copy: Path, config: Config) -> Path:
    """The run as it was after step 2, as if it had had another batch size a process."""
    shutil.copytree(run, copy)
    shutil.rmtree(list_checkpoints(copy)[-1])
    (copy / "config.yaml").write_text(dump_config(config))
    (copy / "files.json").unlink()  # that of the config as it was
    return copy


@pytest.mark.parametrize("how", ["fsdp2", pytest.param("deepspeed", marks=HAS_DEEPSPEED)])
def test_parts_go_on_from_one_process_and_one_process_from_parts(
    corpus_dir: Path, tmp_path: Path, launch: Launch, how: str
) -> None:
    whole, part = (short(corpus_dir, batch_size=size) for size in (4, 2))
    train(whole, one := tmp_path / "one", device="cpu")
    launch(how, part, two := tmp_path / "two")
    launch(how, part, spread := rewound(one, tmp_path / "spread", part), "--resume")
    train(whole, gathered := rewound(two, tmp_path / "gathered", whole), resume=True, device="cpu")
    for run in (spread, gathered):
        assert_same_losses(run, one)
        assert_same_weights(run, one)


@pytest.mark.parametrize(
    ("variables", "memory", "settings", "message"),
    [
        (FSDP2, {}, {"lazy_bank": True}, "fsdp2 and lazy_bank=true: .* add --set lazy_bank=false"),
        (FSDP2 | {"FSDP_VERSION": "1"}, {}, {}, "fsdp2 and FSDP version 1: set fsdp_version: 2"),
        (FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, {}, {}, "fsdp_offload_params: set it to false"),
        (FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, {}, "add --set gradient_checkpointing=true"),
        (ZERO, {}, {"lazy_bank": True}, "deepspeed and lazy_bank=true"),
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
