"""LazyAdamW against PyTorch's AdamW and SparseAdam; clipping over dense and sparse gradients."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from memscope.config.load import load_config, validate_config
from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.train.optimizer import LazyAdamW, clip_gradients, make_optimizer

N = 40


def sparse(entries: list[int], values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([entries]), values, (N, *values.shape[1:]), check_invariants=True)


def gradients(steps: int) -> list[Tensor]:
    """Gradients of a few entries each, some of them twice, unsorted."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(steps):
        entries = torch.randint(N, (9,), generator=generator).tolist()
        made.append(sparse(entries, torch.randn(9, 2, 8, generator=generator)))
    return made


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_move_as_under_sparse_adam(threads: int) -> None:
    start = torch.randn(N, 2, 8)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    lazy = LazyAdamW([ours], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    reference = torch.optim.SparseAdam([theirs], lr=0.01, betas=(0.9, 0.95))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for gradient in gradients(12):
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            lazy.step()
            reference.step()
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    finally:
        torch.set_num_threads(before)
    never = sorted(set(range(N)) - {int(e) for g in gradients(12) for e in g.coalesce().indices()[0]})
    assert never
    assert torch.equal(ours[never], start[never])


def test_rows_that_always_have_a_gradient_move_as_under_adamw_and_dense_parameters_are_left_to_it() -> None:
    start = torch.randn(N, 1, 8)
    made = [[nn.Parameter(start.clone()), nn.Parameter(torch.ones(3, 3))] for _ in range(2)]
    optimizers = [
        cls([{"params": p[:1], "weight_decay": 0.0}, {"params": p[1:], "weight_decay": 0.1}], lr=0.01)
        for cls, p in zip((LazyAdamW, torch.optim.AdamW), made, strict=True)
    ]
    for _ in range(5):
        gradient, other = torch.randn(N, 1, 8), torch.randn(3, 3)
        made[0][0].grad, made[1][0].grad = sparse(list(range(N)), gradient), gradient
        for (_, dense), optimizer in zip(made, optimizers, strict=True):
            dense.grad = other.clone()
            optimizer.step()
    for ours, theirs in zip(*made, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_counts_sparse_gradients_once_summed(max_norm: float) -> None:
    def build() -> list[nn.Parameter]:
        return [nn.Parameter(torch.zeros(N, 2, 8)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]

    [gradient] = gradients(1)
    ours, theirs = build(), build()
    ours[0].grad, theirs[0].grad = gradient, gradient.to_dense()
    for parameters in (ours, theirs):
        parameters[1].grad = torch.arange(4.0)
    norm = clip_gradients(ours, max_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, max_norm))
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad.to_dense(), b.grad)


def test_a_lazy_bank_takes_the_same_first_step_and_leaves_unread_entries_alone(demo_sized: list[str]) -> None:
    steps = []
    for lazy in ("false", "true"):
        config = load_config(
            Path(__file__).parents[2] / "memscope" / "presets" / "demo.yaml", [*demo_sized, f"lazy_bank={lazy}"]
        )
        model = MemoryTransformer(config, seed=0)
        assert model.bank is not None
        before = model.bank.entries.detach().clone()
        optimizer = make_optimizer(model, config.train)
        tokens = torch.randint(3, config.model.vocab_size, (2, 33), generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).mean().backward()
            assert model.bank.entries.grad is not None
            assert model.bank.entries.grad.is_sparse == (lazy == "true")
            clip_gradients(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        steps.append((before, model.bank.entries.detach()))
    moved = [(after != before).flatten(1).any(1) for before, after in steps]
    assert torch.equal(*moved)
    assert not moved[0].all()
    torch.testing.assert_close(steps[0][1][moved[0]], steps[1][1][moved[0]], atol=2e-3, rtol=0)


def test_a_bigram_table_learns_at_the_rate_of_the_bank_and_does_not_decay() -> None:
    shape = {"vocab_size": 64, "dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1}
    config = validate_config(
        {"model": {**shape, "block": "ffn", "bigram_rows": 50}, "train": {"memory_lr_scale": 4.0}}, "test"
    )
    model = MemoryTransformer(config)
    [group] = [
        group
        for group in make_optimizer(model, config.train).param_groups
        if any(parameter is model.bigrams.weight for parameter in group["params"])
    ]
    assert group["peak_lr"] == 4 * config.train.learning_rate and group["weight_decay"] == 0


@pytest.fixture
def demo_sized() -> list[str]:
    small = {"dim": 32, "n_layers": 2, "n_heads": 4, "knowledge_num": 4096, "knowledge_dim": 24, "max_seq_len": 32}
    return ["block=memory", *(f"{key}={value}" for key, value in small.items()), "database_init_path=null"]
