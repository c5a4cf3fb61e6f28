"""The compiled loops against the plain PyTorch that stands in for them where there is no compiler."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from memscope.base.runtime import in_huge_pages
from memscope.config.load import Config, load_config
from memscope.model.gate import MemoryGate
from memscope.model.ops import native as native_module
from memscope.model.ops.fused import RMSNorm, gated_gelu
from memscope.model.ops.native import OFF, SOURCES, native
from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.train.optimizer import make_optimizer

pytestmark = pytest.mark.compiler

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "memscope" / "presets" / "memory_small.yaml"
SIZES = ["dim=64", "n_layers=2", "n_heads=4", "n_kv_heads=2", "knowledge_num=1024", "knowledge_dim=48"]


def without_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a machine that has no compiler."""
    for module in (
        "memscope.model.ops.fused",
        "memscope.model.ops.product_keys",
        "memscope.model.ops.adam_rows",
        "memscope.model.bank",
    ):
        monkeypatch.setattr(f"{module}.native_for", lambda _: None)


def steps(config: Config, n: int = 3) -> MemoryTransformer:
    """A model after ``n`` steps on fixed tokens."""
    model = MemoryTransformer(config)
    optimizer = make_optimizer(model, config.train)
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        tokens = torch.randint(3, 6400, (2, 33), generator=generator)
        next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("lazy", ["true", "false"])
@pytest.mark.parametrize(
    "changes",
    [[], ["read_slices=4", "read_heads=8"], ["slot_proj=true", "read_slices=1", "read_heads=4"]],
)
def test_training_without_a_compiler_gives_the_same_model(
    changes: list[str], lazy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(CONFIG, [*SIZES, f"lazy_bank={lazy}", *changes])
    compiled = steps(config)
    without_loops(monkeypatch)
    plain = steps(config)
    start = MemoryTransformer(config)
    for (name, ours), reference, first in zip(
        compiled.named_parameters(), plain.parameters(), start.parameters(), strict=True
    ):
        # Adam's first steps have the size of the rate whatever the gradient: compare with how far parameters moved.
        moved = float((reference - first).abs().max().detach())
        difference = (ours - reference).abs().detach()
        assert float(difference.mean()) < 0.05 * moved, name


@pytest.mark.parametrize("shape", [(2, 3, 64), (700, 12), (1, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_that_of_pytorch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    norm = RMSNorm(shape[-1], eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(shape[-1], generator=generator))
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(shape, generator=generator)
    plain = torch.nn.functional.rms_norm(x.float(), shape[-1:], norm.weight, 1e-5)
    expected = torch.autograd.grad((plain * weight).sum(), (x, norm.weight))
    found = norm(x)
    gradients = torch.autograd.grad((found * weight).sum(), (x, norm.weight))
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0], expected[0], atol=1e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)
    torch.testing.assert_close(gradients[1], expected[1], atol=1e-3, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16


@pytest.mark.parametrize("slots", [1, 16, 19, 40])
def test_the_gated_gelu_is_that_of_pytorch(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(2, 5, 3, slots, generator=generator)).requires_grad_()
    scores = torch.randn(2, 5, slots, generator=generator, requires_grad=True)
    weight = torch.randn(2, 5, 3, slots, generator=generator)
    found = gated_gelu(logits, scores)
    gradients = torch.autograd.grad((found * weight).sum(), (logits, scores))
    without_loops(monkeypatch)
    plain = gated_gelu(logits, scores)
    torch.testing.assert_close(found, plain, atol=5e-6, rtol=1e-5)  # erf of far negative numbers cancels
    expected = torch.autograd.grad((plain * weight).sum(), (logits, scores))
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_gated_gelu_is_right_far_from_zero() -> None:
    logits = torch.tensor([-1e30, -100.0, -13.2, -13.0, -5.0, -0.0, 0.0, 1e-30, 5.0, 13.0, 100.0, 1e30, torch.nan])
    exact = torch.nn.functional.gelu(logits.double().requires_grad_())
    x = logits.clone().requires_grad_()
    found = gated_gelu(x.view(1, 1, 1, -1), torch.ones(1, 1, len(logits))).flatten()
    torch.testing.assert_close(found.double(), exact, atol=5e-6, rtol=1e-6, equal_nan=True)
    slope = torch.autograd.grad(found.sum(), x)[0]
    wide = logits.double().requires_grad_()
    expected = torch.autograd.grad(torch.nn.functional.gelu(wide).sum(), wide)[0]
    torch.testing.assert_close(slope.double(), expected, atol=5e-6, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("heads", "side", "width", "selected"), [(4, 8, 32, 8), (3, 5, 7, 4), (1, 2, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
def test_chosen_half_keys_score_as_in_pytorch(
    heads: int, side: int, width: int, selected: int, dtype: torch.dtype, threads: int
) -> None:
    generator = torch.Generator().manual_seed(4)
    halves = torch.randn(70, heads, 2, width, generator=generator).to(dtype).requires_grad_()
    keys = torch.randn(heads, 2, side, width, generator=generator, requires_grad=True)
    indices = torch.randint(side**2, (70, heads, selected), generator=generator)
    weight = torch.randn(70, heads, selected, generator=generator)
    chosen = torch.stack([indices // side, indices % side], 2)  # [token, head, half, k]
    head, half = torch.arange(heads)[:, None, None], torch.arange(2)[:, None]
    plain = torch.einsum("thpq,thpkq->thk", halves.float(), keys[head, half, chosen])
    expected = torch.autograd.grad((plain * weight).sum(), (halves, keys))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = native().product_scores(halves.detach(), keys.detach(), indices)
        gradients = native().product_scores_backward(weight, halves.detach(), keys.detach(), indices)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-5)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-2 if ours.dtype == torch.bfloat16 else 1e-4, rtol=1e-2)


def test_a_tensor_in_huge_pages_is_the_same_tensor() -> None:
    for shape in [(0,), (3,), (1 << 20,)]:
        tensor = torch.empty(shape)
        assert in_huge_pages(tensor) is tensor
        assert float(tensor.fill_(2).sum()) == 2 * tensor.numel()


@pytest.mark.parametrize("selected", [1, 8, 32])
def test_the_product_search_is_that_of_pytorch(selected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = load_config(CONFIG, ["knowledge_num=4096", f"num_selected={selected}"])
    gate = MemoryGate(256, config.memory)
    x = torch.randn(2, 50, 256, generator=torch.Generator().manual_seed(2))
    ours = gate.select(gate.query(x))
    without_loops(monkeypatch)
    plain = gate.select(gate.query(x))
    torch.testing.assert_close(ours.scores, plain.scores)
    assert float((ours.indices != plain.indices).float().mean()) < 0.01  # equal sums may stand in another order
    torch.testing.assert_close(ours.margin, plain.margin)


def test_a_failing_build_warns_once_and_leaves_pytorch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    native.cache_clear()
    (tmp_path / "library.cpp").write_text("#error no such machine\n")
    monkeypatch.setattr(native_module, "SOURCES", tmp_path)
    try:
        with pytest.warns(UserWarning, match="without compiled loops"):
            assert native() is None
        assert native() is None
    finally:
        native.cache_clear()


def test_the_library_has_every_file_of_loops_and_every_file_names_its_reference() -> None:
    loops = {path.name: path.read_text() for path in SOURCES.glob("*.cpp")}
    library = loops.pop("library.cpp")
    assert {f'#include "{name}"' for name in loops} == {line for line in library.splitlines() if line[:1] == "#"}
    for name, text in loops.items():
        head = text.partition("#include")[0]
        references = re.findall(r"memscope/[\w/]+\.py", head)
        assert references
        assert all(name in (ROOT / reference).read_text() for reference in references), name


def test_a_library_that_was_built_here_is_not_loaded_from_a_second_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PyTorch aborts a process that registers an operator twice; another build may have replaced the kept file."""
    loaded = []

    def build_and_load(name: str, sources: list[str], *, build_directory: str, **options: object) -> None:
        (Path(build_directory) / f"{name}.so").touch()
        loaded.append("its own")

    monkeypatch.setattr("torch.utils.cpp_extension.get_default_build_root", lambda: str(tmp_path))
    monkeypatch.setattr("torch.utils.cpp_extension.load", build_and_load)
    monkeypatch.setattr(torch.ops, "load_library", lambda _: loaded.append("the kept one"))
    native_module._load()
    assert loaded == ["its own"]
    native_module._load()
    assert loaded == ["its own", "the kept one"]
    assert [path.name for path in tmp_path.rglob("*.so")] == [f"{native_module._name()}.so"]


@pytest.mark.parametrize("name", ["lanes.h", "gather.cpp"])
def test_a_change_of_any_source_makes_another_library(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(SOURCES, tmp_path / "cpu")
    monkeypatch.setattr(native_module, "SOURCES", tmp_path / "cpu")
    before = native_module._name()
    assert before == native_module._name()
    (tmp_path / "cpu" / name).write_text((SOURCES / name).read_text() + "\n")
    assert native_module._name() != before


def test_an_environment_variable_switches_the_loops_off(monkeypatch: pytest.MonkeyPatch) -> None:
    first_call = native.__wrapped__
    assert first_call() is not None
    monkeypatch.setenv(OFF, "1")
    assert first_call() is None
