"""Entries in bfloat16: read as their float32 values, updated without losing what is small, saved in half the size."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from memscope.base.errors import InputError
from memscope.config.load import Config, load_config
from memscope.config.memory import MemoryConfig
from memscope.model.bank import MemoryBank
from memscope.model.ops.adam_rows import round_stochastically, rounding_bits
from memscope.model.ops.sparse_read import GatheredSlots, OpenTable, Slots, SparseSum, TableSlots
from memscope.model.transformer import MemoryTransformer
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.own import OwnRun
from memscope.run.bank_init import load_bank_init
from memscope.run.checkpoint import list_checkpoints, load_run, load_weights
from memscope.run.metrics_log import read_metrics
from memscope.train.loop import train
from memscope.train.optimizer import LazyAdamW
from tests.conftest import tiny_config
from tests.model.ops.test_native import CONFIG, SIZES, steps, without_loops

COMPILED = pytest.mark.compiler
HALF = torch.bfloat16


@pytest.fixture(params=[pytest.param(True, marks=COMPILED, id="compiled"), pytest.param(False, id="plain")])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled loops and without."""
    if not request.param:
        without_loops(monkeypatch)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def tiny(corpus_dir: Path, memory: dict[str, object] | None = None, **values: object) -> Config:
    often = {"steps": 6, "log_interval": 1, "eval_interval": 3, "save_interval": 3, "eval_tokens": 256}
    return tiny_config(
        corpus_dir,
        model={"max_seq_len": 32},
        memory={"entry_dtype": "bfloat16", **(memory or {})},
        train={"lazy_bank": True, "batch_size": 2, **often, **values},
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def read_all(slots: Slots, table: Tensor, query: Tensor, scores: Tensor, column: int, slices: int) -> list[Tensor]:
    """All ways to read, and their gradients: of the table, queries and scores."""
    weights = torch.nn.functional.gelu(slots.dot(query, column, slices)) + 0.1
    out = slots.sum(weights, 0, query.shape[-1], slices)
    once = slots.gelu_read(query, scores, column, slices)
    return [out, once, *torch.autograd.grad(out.square().sum() + once.sin().sum(), [table, query, scores])]


@COMPILED
@pytest.mark.parametrize(
    ("width", "heads", "slices", "slots", "column"),
    [(128, 4, 1, 32, 0), (16, 32, 8, 32, 0), (16, 8, 4, 19, 64), (20, 24, 4, 37, 0), (5, 6, 2, 7, 10), (1, 1, 1, 1, 0)],
)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_loops_read_a_bfloat16_table_as_its_float32_values(
    width: int,
    heads: int,
    slices: int,
    slots: int,
    column: int,
    sparse: bool,
    n_threads: int,
    threads: Callable[[int], None],
) -> None:
    threads(n_threads)
    generator = torch.Generator().manual_seed(0)
    entries = torch.randn(50, 1, column + slices * width + 3, generator=generator).to(HALF)
    rows = torch.randint(40, (2, 75, slots), generator=generator)
    query = torch.randn(2, 75, heads, width, generator=generator, requires_grad=True)
    scores = torch.rand(2, 75, slots, generator=generator, requires_grad=True)
    half, full = nn.Parameter(entries), nn.Parameter(entries.float())
    half.grad_dtype = torch.float32
    results = []
    for table in (half, full):
        opened = OpenTable(table, SparseSum(table) if sparse else None)
        results.append(read_all(TableSlots(opened, rows), table, query, scores, column, slices))
    gathered = GatheredSlots(torch.nn.functional.embedding(rows, full.flatten(0, 1)))
    plain = read_all(gathered, full, query, scores, column, slices)
    for ours, same, reference in zip(*results, plain, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours.to_dense(), same.to_dense())
        scale = float(reference.detach().abs().max())
        torch.testing.assert_close(ours.to_dense(), reference, atol=3e-5 * scale, rtol=1e-4)


def test_a_bank_starts_from_the_same_numbers_rounded_and_gives_float32(way: None) -> None:
    banks = []
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        config = MemoryConfig(knowledge_num=64, knowledge_length=3, knowledge_dim=8, entry_dtype=dtype)
        banks.append(MemoryBank(config, sparse=True))
    full, half = banks
    assert torch.equal(half.entries, full.entries.to(HALF))
    indices = torch.randint(64, (2, 5, 4))
    found = half(indices).values
    assert found.dtype == torch.float32
    assert torch.equal(found, half.entries[indices].flatten(2, 3).float())
    (found * (1 + 2**-12)).sum().backward()
    assert half.entries.grad is not None
    assert half.entries.grad.is_sparse
    assert half.entries.grad.dtype == torch.float32
    assert float(half.entries.grad.to_dense().max()) % 1 > 0  # which bfloat16 would have rounded off


PROJECTED = ["slot_proj=true", "read_slices=1", "read_heads=4"]


@pytest.mark.slow
@COMPILED
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([], id="gelu, product gate"),
        pytest.param([*PROJECTED, "read_fn=softmax"], id="softmax, projected"),
        pytest.param(["read_slices=4", "score_fn=sigmoid"], id="sigmoid"),
        pytest.param(["output_gate=true", "gate=full", "read_fn=softmax"], id="softmax, full gate"),
        pytest.param(["knowledge_length=3"], id="slots"),
        pytest.param(["bank_groups=2", "knowledge_num=2048", "read_fn=softmax"], id="groups"),
        pytest.param(["gradient_checkpointing=true"], id="checkpointing"),
    ],
)
def test_training_with_and_without_loops_gives_the_same_entries(
    changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(CONFIG, [*SIZES, "entry_dtype=bfloat16", *changes])
    start = MemoryTransformer(config).bank
    compiled = steps(config).bank
    without_loops(monkeypatch)
    plain = steps(config).bank
    assert start is not None
    assert compiled is not None
    assert plain is not None
    first, ours, reference = (bank.entries.detach().float() for bank in (start, compiled, plain))
    assert compiled.entries.dtype == HALF
    moved = (first != reference).flatten(1).any(1)
    assert torch.equal(moved, (first != ours).flatten(1).any(1))
    assert moved.any()
    assert float((ours - reference).abs().mean()) < 0.05 * float((reference - first).abs().max())
    assert float((ours == reference).float().mean()) > 0.95  # the same chance


# --- updates ----------------------------------------------------------------------------------------------------------


def sparse(rows: Tensor, values: Tensor, n: int) -> Tensor:
    return torch.sparse_coo_tensor(rows[None], values, (n, *values.shape[1:]), check_invariants=True)


def parameter(values: Tensor) -> nn.Parameter:
    made = nn.Parameter(values.to(HALF))
    made.grad_dtype = torch.float32
    return made


def lazy(table: nn.Parameter, rate: float) -> LazyAdamW:
    return LazyAdamW([table], lr=rate, betas=(0.9, 0.95), weight_decay=0.0)


@pytest.mark.slow
def test_small_updates_survive_on_average(way: None) -> None:
    table, n = parameter(torch.ones(16, 1, 256)), 1000
    step = 2.0**-12  # of values around 1, half of whose last place is 2^-9: to the nearest nothing would move
    assert torch.equal(table.detach() - step, table.detach())
    optimizer = lazy(table, step)
    rows = torch.arange(0, 16, 2)
    gradient = torch.full((8, 1, 256), 0.01)
    for _ in range(n):
        table.grad = sparse(rows, gradient, 16)
        optimizer.step()
    moved = 1 - table.detach().float()
    assert not moved[1::2].any()
    torch.testing.assert_close(moved[::2].mean(), torch.tensor(n * step), rtol=0.02, atol=0)
    means = moved[::2].mean((1, 2))  # rows have different luck, but none stands still
    torch.testing.assert_close(means, torch.full_like(means, n * step), rtol=0.1, atol=0)
    state = optimizer.state[table]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == HALF
    torch.testing.assert_close(state["exp_avg"].float()[::2].mean(), torch.tensor(0.01), rtol=0.01, atol=0)
    torch.testing.assert_close(state["exp_avg_sq"].float()[::2].mean(), torch.tensor(1e-4), rtol=0.01, atol=0)


def updated(rows: Tensor, start: Tensor, gradients: Tensor) -> list[Tensor]:
    """Weights and moments after some steps."""
    table = parameter(start)
    optimizer = lazy(table, 0.01)
    for gradient in gradients:
        table.grad = sparse(rows, gradient, len(start))
        optimizer.step()
    state = optimizer.state[table]
    return [tensor.detach() for tensor in (table, state["exp_avg"], state["exp_avg_sq"])]


@COMPILED
def test_loops_round_as_plain_pytorch_does_with_any_number_of_threads(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5000, 2, 20, generator=generator)
    rows = torch.randperm(5000, generator=generator)[:300].sort().values
    gradients = torch.randn(1, 300, 2, 20, generator=generator)
    compiled = updated(rows, start, gradients)
    threads(3)
    for one, several in zip(compiled, updated(rows, start, gradients), strict=True):
        assert torch.equal(one, several)
    without_loops(monkeypatch)
    for ours, reference in zip(compiled, updated(rows, start, gradients), strict=True):
        differs = ours != reference  # where float32 sums in another order end on the other side of the chance
        assert float(differs.float().mean()) < 1e-3
        steps_apart = (ours.view(torch.int16).int() - reference.view(torch.int16).int()).abs()
        assert int(steps_apart.max()) <= 1


@pytest.mark.slow
def test_rounding_is_to_a_neighbour_and_right_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(1, 64, generator=generator)
    numbers[0, :4] = torch.tensor([0.0, 1.0, -2.5, torch.inf])  # what bfloat16 has stays
    numbers[0, 4] = torch.nan
    random_bits = (rounding_bits(step, torch.tensor([7]), 64)[0] for step in range(4000))
    rounded = torch.cat([round_stochastically(numbers, bits) for bits in random_bits])
    assert rounded.dtype == HALF
    assert torch.equal(rounded[:, :4].float(), numbers[:, :4].expand(4000, -1))
    assert rounded[:, 4].isnan().all()
    finite, found = numbers[:, 5:], rounded[:, 5:].float()
    last_place = 2.0 ** (finite.abs().log2().floor() - 7)
    assert ((found - finite).abs() < last_place).all()
    assert ((found.mean(0) - finite).abs() < 5 * 0.5 * last_place / 4000**0.5).all()


def test_random_bits_are_even_and_do_not_go_together() -> None:
    bits = torch.stack([torch.stack(rounding_bits(step, torch.arange(40), 128)) for step in range(1, 21)]).double()
    centred = (bits - 0x7FFF - 0.5) / (2**16 / 12**0.5)  # [step, stream, row, column], variance 1
    n = centred[:, 0].numel()
    assert int(bits.min()) >= 0
    assert int(bits.max()) <= 0xFFFF
    assert (centred.mean((0, 2, 3)).abs() < 5 / n**0.5).all()
    assert ((centred.square().mean((0, 2, 3)) - 1).abs() < 5 / n**0.5).all()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(float((centred[:, a] * centred[:, b]).mean())) < 5 / n**0.5
    for axis in (0, 2, 3):  # neighbours in steps, rows, columns
        size = centred.shape[axis] - 1
        together = centred.narrow(axis, 0, size) * centred.narrow(axis, 1, size)
        assert abs(float(together.mean())) < 5 / together.numel() ** 0.5


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_ends_as_one_that_was_not_stopped(corpus_dir: Path, tmp_path: Path, way: None) -> None:
    config = tiny(corpus_dir, accumulation_steps=2)
    train(config, one := tmp_path / "one", device="cpu")
    shutil.copytree(one, again := tmp_path / "again")
    shutil.rmtree(list_checkpoints(again)[-1])
    train(config, again, resume=True, device="cpu")
    for file in ("model.safetensors", "optimizer.safetensors"):
        folders = [list_checkpoints(run)[-1] for run in (one, again)]
        assert [folder.name for folder in folders] == ["step-00000006"] * 2
        first, second = (load_file(folder / file) for folder in folders)
        assert {name for name, value in first.items() if value.dtype == HALF} == {
            name for name in first if name.startswith("bank.entries") and not name.endswith("/step")
        }
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert float(load_file(list_checkpoints(one)[-1] / "optimizer.safetensors")["bank.entries/step"]) == 6


def test_a_run_is_loaded_in_float32_and_gives_what_it_gave_in_training(corpus_dir: Path, tmp_path: Path) -> None:
    config = tiny(corpus_dir)
    train(config, tmp_path, device="cpu")
    run = load_run(tmp_path)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    trained = MemoryTransformer(config).eval()
    load_weights(trained, tmp_path / "model.safetensors")
    assert trained.bank is not None
    assert trained.bank.entries.dtype == HALF
    tokens = torch.randint(3, 320, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(run.model(tokens), trained(tokens))


@pytest.mark.slow
@pytest.mark.parametrize("memory", [{}, {"knowledge_length": 3, "read_fn": "gelu"}])
def test_a_run_records_and_decodes(corpus_dir: Path, tmp_path: Path, memory: dict[str, object]) -> None:
    config = tiny(corpus_dir, memory)
    train(config, tmp_path / "run", device="cpu")
    run = load_run(tmp_path / "run")
    start = torch.from_numpy(load_bank_init(run.path).entries)
    assert torch.equal(start, start.to(HALF).float())  # what the bank held, not what was rounded to it
    record(OwnRun(run), corpus_dir / "valid.jsonl", tmp_path / "recording", RecordOptions(part_tokens=500))
    table = Recording(tmp_path / "recording").entries(limit=64).set_index("entry").sort_index()
    assert (table["drift"] > 1e-6).any()
    assert table["count"].sum() > 0


@pytest.mark.slow
def test_two_processes_train_like_one(corpus_dir: Path, tmp_path: Path, group: Callable[..., Any]) -> None:
    train(tiny(corpus_dir, batch_size=4), tmp_path / "one", device="cpu")
    done = group(tiny(corpus_dir, batch_size=2), tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["processes"] == 2
    for kind in ("train", "eval"):
        one, two = (
            [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if line["kind"] == kind]
            for name in ("one", "two")
        )
        assert two == pytest.approx(one, abs=1e-3)
    first, second = (load_file(tmp_path / name / "model.safetensors")["bank.entries"] for name in ("one", "two"))
    assert second.dtype == HALF
    assert float((first == second).float().mean()) > 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["lazy_bank=false"], r"entry_dtype=bfloat16 needs train\.lazy_bank=true"),
        (["entry_dtype=float16"], "Input should be 'float32' or 'bfloat16', got 'float16'"),
    ],
)
def test_what_would_lose_updates_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(CONFIG, ["entry_dtype=bfloat16", *changes])
