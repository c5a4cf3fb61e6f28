"""The Triton kernels against the plain PyTorch that stands in for them: on a GPU, or by Triton's interpreter.

``tests/conftest.py`` asks for the interpreter where there is no GPU, before anything imports Triton.
"""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memscope.config.load import Config, load_config
from memscope.model.ops import native as native_module
from memscope.model.ops.adam_rows import AdamRates, AdamTables, adam_rows
from memscope.model.ops.fused import RMSNorm
from memscope.model.ops.native import kernels, native_for
from memscope.model.ops.product_keys import score_product, search_product
from memscope.model.ops.sparse_read import GatheredSlots, OpenTable, Slots, SparseSum, TableSlots
from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.train.optimizer import clip_gradients, make_optimizer

pytest.importorskip("triton", reason="no Triton: pip install -e '.[triton]'")

ROOT = Path(__file__).parents[3]
PRESETS = ROOT / "memscope" / "presets"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ASK_FOR_LOOPS = ("fused", "product_keys", "adam_rows", "sparse_read")
Use = Callable[[bool], None]


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> Use:
    """A switch: kernels, or plain PyTorch."""

    def use(on: bool) -> None:
        chosen = (lambda _: kernels()) if on else (lambda _: None)
        for module in (
            *(f"ops.{name}" for name in ASK_FOR_LOOPS),
            "bank",
            "text.slots",
            "text.selected",
            "ops.softmax_read",
        ):
            monkeypatch.setattr(f"memscope.model.{module}.native_for", chosen)

    return use


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def some(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(n, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal but for rounding, as a share of the largest number."""
    scale = float(expected.detach().abs().max()) or 1.0
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance * scale, rtol=tolerance)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("width", "heads", "slices", "slots", "column", "dtype"),
    [
        (128, 2, 1, 8, 0, torch.float32),  # every head sees all of a pooled entry
        (16, 24, 6, 16, 0, torch.bfloat16),  # heads see slices
        (12, 8, 4, 19, 3, torch.float32),  # nothing is a power of two
        (600, 1, 1, 9, 0, torch.bfloat16),  # the slots of a token fill several tiles
    ],
)
def test_reads_equal_gathered_ones(
    width: int, heads: int, slices: int, slots: int, column: int, dtype: torch.dtype, fused: bool, by_kernels: Use
) -> None:
    entries = random(12, 1, column + slices * width + 3, seed=1).requires_grad_()
    rows, query = some(9, 1, 2, slots), (random(1, 2, heads, width) * width**-0.5).to(dtype).requires_grad_()
    scores = random(1, 2, slots, seed=2).requires_grad_()

    def read(from_slots: Slots, vectors: Tensor) -> Tensor:
        if fused and column == 0:
            return from_slots.gelu_read(vectors, scores, 3, slices)
        return from_slots.sum(from_slots.dot(vectors, column, slices).softmax(-1), column, width, slices)

    by_kernels(False)
    gathered = GatheredSlots(torch.nn.functional.embedding(rows, entries.flatten(0, 1)))
    results = []
    for from_slots, vectors in ((gathered, query.float()), (TableSlots(OpenTable(entries), rows), query)):
        out = read(from_slots, vectors)
        wanted = (entries, query, scores) if fused and column == 0 else (entries, query)
        results.append((out, *torch.autograd.grad(out.square().sum(), wanted)))
        by_kernels(True)
    for plain, found in zip(*results, strict=True):
        assert_near(found, plain, 1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_readers_of_one_table_share_one_gradient(sparse: bool, by_kernels: Use) -> None:
    entries = random(11, 2, 8).requires_grad_()  # two slots an entry
    rows, query = some(12, 1, 3, 4), random(1, 3, 2, 3, seed=1).requires_grad_()

    def loss(make: Callable[[], Slots]) -> Tensor:
        first, second = make(), make()
        weights = first.dot(query, 1).softmax(-1)
        return first.sum(weights, 1, 3).square().sum() + second.sum(second.dot(query, 5).sigmoid(), 0, 4).sum()

    by_kernels(False)
    flat = torch.nn.functional.embedding(rows, entries.flatten(0, 1))
    expected = torch.autograd.grad(loss(lambda: GatheredSlots(flat)), (entries, query))
    by_kernels(True)
    summed = SparseSum(entries) if sparse else None
    table = OpenTable(entries, summed)
    found = torch.autograd.grad(loss(lambda: TableSlots(table, rows)), (entries, query))
    assert_near(found[0].to_dense(), expected[0])
    assert_near(found[1], expected[1])
    if summed is not None:
        assert found[0]._indices()[0].tolist() == sorted(set((rows // 2).flatten().tolist()))
        assert not summed.rows.any() and not summed.touched.any()


@pytest.mark.parametrize(("side", "selected"), [(100, 8), (3, 8), (3, 9), (9, 9)])
@pytest.mark.parametrize(("dtype", "biased"), [(torch.float32, False), (torch.bfloat16, True)])
def test_the_product_search_finds_the_best_of_all_sums(
    side: int, selected: int, dtype: torch.dtype, biased: bool, by_kernels: Use
) -> None:
    scores = random(1, 2, 2, 2, side, seed=side, dtype=dtype).transpose(1, 2).contiguous().transpose(1, 2)
    bias = random(2, 2, side, seed=1) if biased else None
    by_kernels(True)
    indices, margin = search_product(scores, bias, selected)
    halves = scores.float() + (0 if bias is None else bias)
    sums = (halves[..., 0, :, None] + halves[..., 1, None, :]).flatten(-2)
    best = sums.topk(min(selected + 1, side * side)).values
    assert torch.equal(sums.gather(-1, indices), best[..., :selected])
    assert all(len(set(token)) == selected for token in indices.flatten(0, 2).tolist())
    if selected < side * side:
        assert torch.equal(margin, best[..., selected - 1] - best[..., selected])
    else:
        assert margin.isnan().all()


@pytest.mark.filterwarnings("ignore:invalid value")  # what is NaN stays so
def test_ties_go_to_the_lower_number_and_nan_names_entries_that_exist() -> None:
    indices, margin = kernels().product_top(torch.zeros(1, 1, 2, 40, device=DEVICE), None, 3)
    assert indices.flatten().tolist() == [0, 1, 2]
    assert float(margin) == 0
    indices, _ = kernels().product_top(torch.full((2, 1, 2, 40), torch.nan, device=DEVICE), None, 5)
    assert ((indices >= 0) & (indices < 1600)).all()


@pytest.mark.parametrize(("heads", "side", "width", "selected"), [(2, 8, 32, 8), (3, 5, 7, 4), (1, 2, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chosen_half_keys_score_as_in_pytorch(
    heads: int, side: int, width: int, selected: int, dtype: torch.dtype, by_kernels: Use
) -> None:
    halves = random(1, 3, heads, 2, width).to(dtype).requires_grad_()
    keys = random(heads, 2, side, width, seed=1).requires_grad_()
    indices, weight = some(side**2, 1, 3, heads, selected), random(1, 3, heads, selected, seed=2)
    results = []
    for on, queries in ((False, halves.float()), (True, halves)):
        by_kernels(on)
        scores = score_product(queries, keys, indices)
        results.append((scores, *torch.autograd.grad((scores * weight).sum(), (halves, keys))))
    for plain, found in zip(*results, strict=True):
        assert_near(found, plain, 1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 64), (130, 12), (1, 1100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_that_of_pytorch(shape: tuple[int, ...], dtype: torch.dtype, by_kernels: Use) -> None:
    norm = RMSNorm(shape[-1], eps=1e-5).to(DEVICE)
    with torch.no_grad():
        norm.weight.copy_(random(shape[-1], seed=1))
    x, weight = random(*shape, dtype=dtype).requires_grad_(), random(*shape, seed=2)
    results = []
    for on in (False, True):
        by_kernels(on)
        out = norm(x)
        results.append((out, *torch.autograd.grad((out * weight).sum(), (x, norm.weight))))
    for plain, found in zip(*results, strict=True):
        assert_near(found, plain, 1e-2 if found.dtype == torch.bfloat16 else 1e-5)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_updated_and_rounded_as_in_pytorch(dtype: torch.dtype, by_kernels: Use) -> None:
    rows = torch.tensor([0, 3, 8], device=DEVICE)
    results = []
    for on in (False, True):
        by_kernels(on)
        tables = [random(9, 20), random(9, 20, seed=1) * 1e-2, random(9, 20, seed=2).square() * 1e-4]
        tables = [table.to(dtype) for table in tables]
        for step in (1, 2, 16):
            adam_rows(AdamTables(*tables), rows, random(3, 20, seed=step), AdamRates(step, 0.9, 0.95, 1e-2, 1e-8))
        results.append(tables)
    for start, plain, found in zip((random(9, 20), None, None), *results, strict=True):
        if dtype == torch.bfloat16:  # the same bits but where rounding of float32 crosses a bfloat16
            assert float((found != plain).float().mean()) < 0.02
        assert_near(found, plain, 1e-2 if dtype == torch.bfloat16 else 1e-5)
        untouched = torch.ones(9, dtype=torch.bool, device=DEVICE).index_fill(0, rows, False)
        assert start is None or torch.equal(found[untouched], start.to(dtype)[untouched])


SIZES = ["vocab_size=97", "dim=32", "n_layers=2", "n_heads=4", "n_kv_heads=2", "knowledge_num=64", "max_seq_len=8"]
SIZES += ["knowledge_dim=16", "dtype=float32"]
OF_PRESETS = {
    "memory": ["read_heads=8", "read_slices=4", "query_dim=8", "num_selected=3"],
    "experiment_1_4_2": ["database_init_path=null", "num_selected=6", "knowledge_length=3"],
}


def trained(config: Config) -> MemoryTransformer:
    """A model after a step on fixed tokens."""
    model, tokens = MemoryTransformer(config).to(DEVICE), some(97, 1, 5)
    optimizer = make_optimizer(model, config.train)
    next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).mean().backward()
    clip_gradients(model.parameters(), 1.0)
    optimizer.step()
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("memory", ["entry_dtype=bfloat16", "bank_groups=2", "knowledge_num=128", "knowledge_length=2"]),
        ("experiment_1_4_2", []),
    ],
)
def test_training_by_kernels_gives_the_model_of_plain_pytorch(preset: str, changes: list[str], by_kernels: Use) -> None:
    config = load_config(PRESETS / f"{preset}.yaml", [*SIZES, *OF_PRESETS[preset], *changes])
    models = []
    for on in (True, False):
        by_kernels(on)
        models.append(trained(config))
    start = MemoryTransformer(config).to(DEVICE)
    for (name, ours), reference, first in zip(
        models[0].named_parameters(), models[1].parameters(), start.parameters(), strict=True
    ):
        # Adam's first steps have the size of the rate whatever the gradient: compare with how far parameters moved.
        moved = float((reference - first).abs().max().detach())
        assert moved > 0, name
        assert float((ours - reference).abs().mean().detach()) < 0.05 * moved, name


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu() -> None:
    command = [sys.executable, "-m", "tests.model.ops.compile_kernels"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = ROOT / "memscope" / "model" / "ops" / "gpu"
    started = {
        name for path in folder.glob("*.py") for name in re.findall(r"^    start\(\s*(\w+)", path.read_text(), re.M)
    }
    assert set(done.stdout.split()) == started


def test_kernels_are_for_gpus_and_loops_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_module, "native", lambda: "loops")
    assert native_for(torch.empty(1)) == "loops"
    assert native_for(torch.empty(1, device="meta")) is None
    assert kernels() is not None
    monkeypatch.setenv(native_module.OFF, "1")
    kernels.cache_clear()
    assert kernels() is None
    kernels.cache_clear()


def test_kernels_have_names_and_arguments_of_the_loops_and_name_their_reference() -> None:
    folder = ROOT / "memscope" / "model" / "ops"
    declared = {}
    for path in (folder / "cpu").glob("*.cpp"):
        text = re.sub(r'"\s*"', "", path.read_text())
        for name, arguments in re.findall(r'library\.def\(\s*"(\w+)\((.*?)\) ->', text, re.DOTALL):
            declared[name] = re.findall(r"(\w+)(?:,|$)", arguments)
    for name in kernels().__all__:
        assert [*inspect.signature(getattr(kernels(), name)).parameters] == declared.pop(name), name
    assert {name.removesuffix("_backward") for name in declared} == {"gated_gelu", "softmax_read"}
    for path in (folder / "gpu").glob("[!_]*.py"):
        if path.stem not in ("loops", "tiles"):
            [docstring] = path.read_text().split('"""')[1:2]
            references = re.findall(r"memscope/[\w/]+\.py", docstring)
            assert references and all(path.name in (ROOT / name).read_text() for name in references), path.name
