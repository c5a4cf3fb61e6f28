"""The training loop: it learns, keeps its schedule and says what it does."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from memscope.base.errors import InputError
from memscope.config.load import Config
from memscope.config.training import TrainConfig
from memscope.model.transformer import MemoryTransformer
from memscope.run import folder as run_folder
from memscope.run.checkpoint import load_run
from memscope.run.metrics_log import read_metrics
from memscope.train import parallel
from memscope.train.loop import learning_rate_factor, train
from memscope.train.optimizer import make_optimizer
from tests.conftest import tiny_config

pytestmark = pytest.mark.slow


def losses(run: Path, kind: str = "train") -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == kind]


def short(corpus_dir: Path, **train_values: object) -> Config:
    values = {"steps": 3, "log_interval": 1, "eval_interval": 100, "eval_tokens": 128, **train_values}
    return tiny_config(corpus_dir, model={"max_seq_len": 32}, train=values)


def test_training_lowers_training_and_validation_loss(tiny_run_path: Path) -> None:
    train_losses, valid_losses = losses(tiny_run_path), losses(tiny_run_path, "eval")
    assert train_losses[-1] < train_losses[0] - 0.5
    assert valid_losses[0] > valid_losses[1] > valid_losses[2]
    assert valid_losses[0] == pytest.approx(math.log(320), abs=0.1)  # before training all tokens are as likely


def test_metrics_have_their_fields(tiny_run_path: Path) -> None:
    lines = read_metrics(tiny_run_path / "metrics.jsonl")
    logged = {"kind", "step", "loss", "grad_norm", "learning_rate", "tokens_per_second", "peak_rss_bytes"}
    logged |= {"of_steps", "left_seconds"}
    clocks = {"data_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds"}
    by_step = {line["step"]: line for line in lines if line["kind"] == "train"}
    assert sorted(by_step) == [1, 5, 10, 11, 15, 20]  # every 5, and those whose time is measured
    assert set(by_step[11]) == logged | clocks
    assert set(by_step[20]) == logged
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in evaluations] == [0, 10, 20]
    for line in evaluations:
        assert {"loss", "perplexity", "bits_per_byte", "layer_0/coverage", "layer_1/kl_to_uniform"} <= set(line)
    samples = [line for line in lines if line["kind"] == "sample"]
    assert [set(line) for line in samples] == [{"kind", "step", "prompt", "text"}] * 4
    assert [line["step"] for line in samples] == [10, 20, 20, 20]
    assert by_step[20]["of_steps"] == 20 and by_step[20]["left_seconds"] == 0 < by_step[10]["left_seconds"]


def test_the_summary_is_that_of_the_run(tiny_run_path: Path) -> None:
    summary = json.loads((tiny_run_path / "run.json").read_text())
    valid_losses = losses(tiny_run_path, "eval")
    assert (summary["untrained_valid_loss"], summary["valid_loss"]) == (valid_losses[0], valid_losses[-1])
    assert (summary["steps"], summary["tokens"]) == (20, 20 * 4 * 64)
    assert summary["processes"] == 1
    model = load_file(tiny_run_path / "model.safetensors")
    assert summary["parameters"] == sum(tensor.numel() for tensor in model.values())


def test_a_run_holds_checkpoints_and_no_pickle(tiny_run_path: Path) -> None:
    names = {path.name for path in tiny_run_path.rglob("*") if path.is_file()}
    tensors = {"model.safetensors", "optimizer.safetensors", "bank_init.safetensors", "bank_init.parquet"}
    texts = {"config.yaml", "tokenizer.json", "tokenizer_config.json", "metrics.jsonl", "run.json"}
    assert names == tensors | texts | {"state.json", "files.json", "start.json"}
    kept = sorted(folder.name for folder in (tiny_run_path / "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000020"]


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_newest_checkpoints_are_kept(corpus_dir: Path, tmp_path: Path, keep: int) -> None:
    train(short(corpus_dir, steps=5, save_interval=1, keep_checkpoints=keep), tmp_path / "run", device="cpu")
    names = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in range(1, 6)][-keep:]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(corpus_dir: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        train(short(corpus_dir, seed=seed), tmp_path / name, device="cpu")
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    assert losses(one) == losses(two) != losses(other)
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_two_accumulated_batches_make_the_step_of_one_twice_as_large(corpus_dir: Path, tmp_path: Path) -> None:
    for name, size, parts in (("whole", 4, 1), ("parts", 2, 2)):
        settings = {"batch_size": size, "accumulation_steps": parts, "steps": 2}
        train(short(corpus_dir, **settings), tmp_path / name, device="cpu")
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("block", ["memory", "ffn", ["ffn", "memory"]])
def test_every_kind_of_model_trains_in_both_precisions(
    corpus_dir: Path, tmp_path: Path, dtype: str, block: object
) -> None:
    config = short(corpus_dir, dtype=dtype)
    config = tiny_config(corpus_dir, model={"block": block, "max_seq_len": 32}, train=config.train.model_dump())
    summary = train(config, tmp_path / "run", device="cpu")
    assert summary["valid_loss"] < summary["untrained_valid_loss"]
    assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "run" / "model.safetensors").values())


def watch_learning_rates(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The learning rate of every group at every optimiser step, filled while training."""
    rates: list[list[float]] = []

    def watched(model: MemoryTransformer, config: TrainConfig) -> torch.optim.AdamW:
        optimizer = make_optimizer(model, config)
        optimizer.register_step_post_hook(lambda o, *_: rates.append([group["lr"] for group in o.param_groups]))
        return optimizer

    monkeypatch.setattr(parallel, "make_optimizer", watched)
    return rates


def test_bank_and_keys_keep_their_own_rate_through_warm_up_and_decay(
    corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = watch_learning_rates(monkeypatch)
    settings = {"learning_rate": 1e-3, "memory_lr_scale": 5.0, "warmup_iters": 3}
    train(short(corpus_dir, steps=9, **settings), tmp_path / "run", device="cpu")
    base = [1e-3 * share for share in (1 / 3, 2 / 3, 1)]
    base += [1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * done / 6)) / 2) for done in range(6)]
    assert rates == [pytest.approx([rate, rate, 5 * rate]) for rate in base]
    logged = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["learning_rate"] for line in logged] == pytest.approx(base)


def test_the_schedule_ends_at_its_smallest_share() -> None:
    settings = TrainConfig(warmup_iters=10)
    shares = [learning_rate_factor(step, 100, settings) for step in range(101)]
    assert shares[9] == shares[10] == 1
    assert shares[100] == pytest.approx(0.1)
    assert all(earlier >= later for earlier, later in pairwise(shares[10:]))


def test_the_selection_bias_follows_the_schedule(corpus_dir: Path, tmp_path: Path) -> None:
    config = short(corpus_dir, steps=1, warmup_iters=4)
    memory = config.memory.model_copy(update={"balance_bias": 0.2})
    train(config.model_copy(update={"memory": memory}), tmp_path, device="cpu")
    for balance in load_run(tmp_path).model.balances:
        assert float(balance.bias.max()) == -float(balance.bias.min()) == pytest.approx(0.2 / 4)


def test_every_parameter_is_in_one_group_and_only_matrices_decay() -> None:
    model = MemoryTransformer(tiny_config(Path("unused"), memory={"read_norm": "rms", "output_gate": True}))
    groups = make_optimizer(model, TrainConfig()).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    matrices, rest, memory = ({names[parameter] for parameter in group["params"]} for group in groups)
    assert matrices | rest | memory == set(names.values())
    assert len(matrices) + len(rest) + len(memory) == len(names)
    assert memory == {"bank.entries", "blocks.0.memory.gate.keys", "blocks.1.memory.gate.keys"}
    assert "embed.weight" in rest and all("norm" in name or name == "embed.weight" for name in rest)
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0, 0.0]


def test_the_tracker_gets_the_numbers_of_metrics(corpus_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(short(corpus_dir, tracker="tensorboard"), run, device="cpu")
    folder = next(run.rglob("events.out.tfevents.*")).parent
    events = EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses(run))
    assert [event.step for event in events.Scalars("eval/loss")] == [0, 3]


def test_epochs_give_the_number_of_steps(corpus_dir: Path, tmp_path: Path) -> None:
    settings = {"steps": 0, "epochs": 2, "batch_size": 50, "eval_interval": 1000}
    summary = train(short(corpus_dir, **settings), tmp_path / "run", device="cpu")
    windows = summary["tokens"] // summary["steps"] // 32 // 50
    assert windows == 1  # 50 windows of 32 tokens a step
    assert summary["steps"] == 2 * 285 // 50  # 9,146 tokens are 285 windows


def test_an_existing_run_is_not_overwritten_and_not_resumed_under_another_config(
    corpus_dir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(short(corpus_dir), run, device="cpu")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"holds a run already; add --resume"):
        train(short(corpus_dir), run, device="cpu")
    with pytest.raises(InputError, match=r"another config \(train\.seed was 1337, is 4\)"):
        train(short(corpus_dir, seed=4), run, resume=True, device="cpu")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_that_diverges_stops_and_says_so(corpus_dir: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e30, "grad_clip": 1e30, "steps": 20}
    with pytest.raises(InputError, match=r"loss is (nan|inf) at step \d+: training diverged; lower learning_rate"):
        train(short(corpus_dir, **settings), tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"train_path": ""}}, "data.train_path is empty"),
        ({"data": {"valid_path": "nowhere.jsonl"}}, r"nowhere.jsonl: no such corpus file \(data.valid_path\)"),
        ({"data": {"tokenizer_path": "nowhere.json"}}, r"nowhere.json: no such file \(data.tokenizer_path\)"),
        ({"model": {"vocab_size": 5000}}, "too small for a vocabulary of 5000"),
        ({"model": {"max_seq_len": 20_000}}, "do not fill one window of 20000"),
        ({"memory": {"database_init_path": "nowhere.json"}}, r"no such file \(memory.database_init_path\)"),
        ({"train": {"tracker": "swanlab"}}, "train.tracker=swanlab is not installed: pip install swanlab"),
    ],
)
def test_unusable_inputs_are_refused(
    corpus_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, dict[str, object]],
    message: str,
) -> None:
    monkeypatch.setattr(run_folder, "find_spec", lambda name: None)  # no tracker is installed
    with pytest.raises(InputError, match=message):
        train(tiny_config(corpus_dir, **change), tmp_path / "run", device="cpu")


def test_compiling_without_a_compiler_is_refused(
    corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memscope.train.setup.native", lambda: None)
    with pytest.raises(InputError, match="compile=true needs a C"):
        train(tiny_config(corpus_dir, train={"compile": True}), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
