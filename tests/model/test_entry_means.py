"""Entries that follow their readers, against the paper's recursion written out token by token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from memscope.base.errors import InputError
from memscope.config.load import Config, validate_config
from memscope.model.entry_means import EntryMeans
from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.run.capture import capture_memory
from memscope.run.metrics_log import read_metrics
from memscope.train.loop import train
from memscope.train.optimizer import make_optimizer
from tests.conftest import tiny_config
from tests.train.test_resume import assert_same_run, finish, kill_in, make_config

DECAY = 0.9
READ: dict[str, object] = {
    **{"bank_ema": DECAY, "score_fn": "relu", "read_fn": "gelu", "slot_proj": False, "read_norm": "rms"},
    **{"read_slices": 2, "gate_heads": 2},
}
TOKENS = torch.randint(3, 320, (4, 33), generator=torch.Generator().manual_seed(0))


def followed(corpus_dir: Path = Path("unused"), train: dict[str, object] | None = None, **memory: object) -> Config:
    return tiny_config(corpus_dir, memory={**READ, **memory}, train=train or {})


def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("memory", "gate", "optimizer", "fused", "entry_means"):
        monkeypatch.setattr(f"memscope.{module}.native_for", lambda _: None)


def backward(model: MemoryTransformer, tokens: Tensor = TOKENS) -> None:
    next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).mean().backward()


def what_was_read(model: MemoryTransformer, tokens: Tensor = TOKENS) -> list[tuple[int, float, Tensor]]:
    """Every selection in training: its entry, its gate score and the query that stands for a whole entry."""
    queries: list[Tensor] = []
    reads = [model.memory_layer(layer).read for layer in model.cfg.model.memory_layers]
    hooks = [read.q_norm.register_forward_hook(lambda *call: queries.append(call[2].detach())) for read in reads]
    with torch.no_grad(), capture_memory(model, keep_pattern=False) as captured:
        model(tokens[:, :-1])
    for hook in hooks:
        hook.remove()
    slices, width = model.cfg.memory.read_slices, model.cfg.memory.knowledge_dim
    found = []
    for layer, query in zip(captured.values(), queries, strict=True):
        for b, pos in torch.cartesian_prod(torch.arange(tokens.shape[0]), torch.arange(tokens.shape[1] - 1)).tolist():
            heads = query[b, pos]
            each = len(heads) // slices  # heads of one slice stand side by side
            whole = torch.cat([heads[s * each : (s + 1) * each].mean(0) for s in range(slices)]) / width**0.5
            for entry, score in zip(layer.indices[b, pos].tolist(), layer.gate_scores[b, pos].tolist(), strict=True):
                found.append((entry, score, whole))
    return found


class Paper:
    """VQ-VAE, appendix A.1: N and m decay and take in; an entry is m / N, here with its first norm."""

    def __init__(self, entries: Tensor):
        self.start = entries.detach()[:, 0].clone().double()
        self.n, self.m = torch.ones(len(entries)).double(), self.start.clone()

    def step(self, read: list[tuple[int, float, Tensor]]) -> None:
        n, m = torch.zeros_like(self.n), torch.zeros_like(self.m)
        for entry, score, query in read:
            n[entry] += score
            m[entry] += score * query.double()
        self.n, self.m = DECAY * self.n + (1 - DECAY) * n, DECAY * self.m + (1 - DECAY) * m

    @property
    def entries(self) -> Tensor:
        mean = self.m / self.n[:, None]
        return (self.start.norm(dim=1, keepdim=True) * mean / mean.norm(dim=1, keepdim=True))[:, None].float()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("read_fn", ["gelu", "softmax"])
@pytest.mark.parametrize("gate", ["product", "full"])
def test_entries_follow_the_paper_over_several_steps(
    monkeypatch: pytest.MonkeyPatch, gate: str, read_fn: str, native: bool
) -> None:
    if not native:
        without_native(monkeypatch)
    model = MemoryTransformer(followed(gate=gate, read_fn=read_fn)).train()
    optimizer = make_optimizer(model, model.cfg.train)
    paper, start = Paper(model.bank.entries), model.bank.entries.detach().clone()
    for number in range(3):
        tokens = TOKENS.roll(number, 1)
        read = what_was_read(model, tokens)
        backward(model, tokens)
        optimizer.step()
        optimizer.zero_grad()
        model.bank.follow_readers(frozen=False)
        paper.step(read)
        torch.testing.assert_close(model.bank.entries.detach(), paper.entries, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.bank.means.weight.double(), paper.n, atol=1e-4, rtol=1e-4)
    moved = (model.bank.entries - start).flatten(1).norm(dim=1)
    assert moved.max() > 0.1
    torch.testing.assert_close(model.bank.entries.norm(dim=-1), start.norm(dim=-1))


def test_a_mean_worked_by_hand() -> None:
    entries = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])
    means = EntryMeans(entries, decay=0.5)
    # two tokens with one query in each of two slices; each selects entry 0, by 1 and by 3
    query = torch.tensor([[[[0.0], [2.0]], [[0.0], [2.0]]]]) * 2**0.5
    scores, indices = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[0], [0]]])
    means.add(query, scores, indices, slices=2)
    means.step(entries, movable=torch.tensor([True, True]))
    # N = 0.5 * 1 + 0.5 * 4 = 2.5; m = 0.5 * (2, 0) + 0.5 * 4 * (0, 2) = (1, 4); the norm stays 2
    torch.testing.assert_close(means.weight, torch.tensor([2.5, 0.5]))
    torch.testing.assert_close(means.mean[0], torch.tensor([0.4, 1.6]))
    torch.testing.assert_close(entries[0, 0], 2 * torch.tensor([1.0, 4.0]) / 17**0.5)
    assert torch.equal(entries[1, 0], torch.tensor([0.0, 1.0]))


def test_entries_take_no_gradient_and_no_optimiser() -> None:
    model = MemoryTransformer(followed(train={"lazy_bank": True})).train()
    backward(model)
    assert model.bank.entries.grad is None
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name != "bank.entries")
    optimizer = make_optimizer(model, model.cfg.train)
    assert not any(p is model.bank.entries for group in optimizer.param_groups for p in group["params"])


def test_checkpointed_blocks_are_counted_once() -> None:
    weights = []
    for checkpointing in (False, True):
        model = MemoryTransformer(followed(train={"gradient_checkpointing": checkpointing})).train()
        backward(model)
        model.bank.follow_readers(frozen=False)
        weights.append((model.bank.means.weight, model.bank.entries.detach()))
    for one, two in zip(*weights, strict=True):
        torch.testing.assert_close(one, two)


def test_nothing_is_counted_outside_training() -> None:
    model = MemoryTransformer(followed()).eval()
    backward(model)
    model.bank.follow_readers(frozen=False)
    assert torch.equal(model.bank.means.weight, torch.full((64,), DECAY))


def test_batches_of_a_step_add_up() -> None:
    results = []
    for parts in (1, 2, 4):
        model = MemoryTransformer(followed()).train()
        for tokens in TOKENS.chunk(parts):
            backward(model, tokens)
        model.bank.follow_readers(frozen=False)
        results.append(model.bank.entries.detach())
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_compiled_loops_and_plain_pytorch_train_alike(
    corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = followed(corpus_dir, train={"steps": 5})
    for name in ("compiled", "plain"):
        train(config, tmp_path / name, device="cpu")
        without_native(monkeypatch)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("compiled", "plain"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3)


def test_frozen_entries_stay_and_groups_follow_their_own_layers() -> None:
    model = MemoryTransformer(followed(knowledge_num=128, bank_groups=2, frozen_share=0.5)).train()
    start = model.bank.entries.detach().clone()
    read = what_was_read(model)
    backward(model)
    model.bank.follow_readers(frozen=False)
    moved = (model.bank.entries - start).flatten(1).abs().sum(1) > 1e-6
    selected = {entry for entry, score, _ in read if score > 0 and entry % 64 >= 32}
    assert set(moved.nonzero().flatten().tolist()) == selected
    assert min(selected) < 64 <= max(selected)


def test_no_entry_moves_in_frozen_steps(corpus_dir: Path, tmp_path: Path) -> None:
    config = followed(corpus_dir, train={"steps": 4, "save_interval": 1, "keep_checkpoints": 9, "freeze_bank_steps": 2})
    train(config, tmp_path, device="cpu")
    models = [load_file(folder / "model.safetensors") for folder in sorted((tmp_path / "checkpoints").iterdir())]
    start = load_file(tmp_path / "bank_init.safetensors")["entries"]
    assert [torch.equal(model["bank.entries"], start) for model in models] == [True, True, False, False]
    assert torch.equal(models[1]["bank.means.weight"], torch.ones(64))


def test_entries_in_bfloat16_follow_their_float32_means(corpus_dir: Path, tmp_path: Path) -> None:
    config = followed(corpus_dir, train={"steps": 6, "lazy_bank": True}, entry_dtype="bfloat16")
    train(config, tmp_path, device="cpu")
    model = load_file(tmp_path / "model.safetensors")
    mean = torch.nn.functional.normalize(model["bank.means.mean"], dim=1)
    norm = model["bank.means.norm"][:, None]
    assert model["bank.entries"].dtype == torch.bfloat16
    assert torch.equal(model["bank.entries"][:, 0], (norm * mean).bfloat16())


def test_a_killed_run_goes_on_to_the_same_entries(corpus_dir: Path, tmp_path: Path) -> None:
    values = make_config(corpus_dir).model_dump()
    config = validate_config({**values, "memory": {**values["memory"], **READ}}, "test")
    finish(config, tmp_path / "reference")
    kill_in(config, tmp_path / "run", "memscope.run.checkpoint", "save_file", 6)
    finish(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "reference")


@pytest.mark.parametrize("settings", [{}, {"accumulation_steps": 2}], ids=["", "accumulated"])
def test_two_processes_have_the_entries_of_one(
    corpus_dir: Path, tmp_path: Path, torchrun: Callable[..., Any], settings: dict[str, object]
) -> None:
    often = {"steps": 4, "log_interval": 1, "eval_interval": 2, "eval_tokens": 128, **settings}
    for size, name in ((4, "one"), (2, "two")):
        config = followed(corpus_dir, train={**often, "batch_size": size})
        if name == "one":
            train(config, tmp_path / name, device="cpu")
        else:
            done = torchrun(config, tmp_path / name)
            assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for key in ("bank.entries", "bank.means.weight", "bank.means.mean"):
        torch.testing.assert_close(two[key], one[key], atol=1e-4, rtol=1e-3)
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    losses = [[line["loss"] for line in part if line["kind"] != "sample"] for part in lines]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slot_proj": True, "read_slices": 1}, "set slot_proj=false$"),
        ({"knowledge_length": 2}, "set knowledge_length=1$"),
        ({"slot_use": "halves"}, "set slot_use=whole$"),
        ({"read_norm": "none"}, "set read_norm=rms$"),
        ({"read_fn": "none"}, "set read_fn=gelu or softmax$"),
        ({"knowledge_length": 2, "read_norm": "none"}, "set knowledge_length=1, read_norm=rms$"),
        ({"bank_ema": 1.0}, "bank_ema: .* less than 1"),
    ],
)
def test_entries_that_queries_cannot_stand_for_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        followed(**change)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_entries_are_refused(
    corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(variable, "true")
    with pytest.raises(InputError, match=r"and bank_ema: .* set bank_ema=0"):
        train(followed(corpus_dir), tmp_path / "run", device="cpu")
    assert not list(tmp_path.iterdir())
