"""Sampling text."""

import json
from pathlib import Path

import pytest
import torch

from memscope.base.errors import InputError
from memscope.causal.intervene import scale
from memscope.model.transformer import MemoryTransformer
from memscope.record.continuation import continue_ids, continue_text
from memscope.record.trace import text_ids
from memscope.record.traced import Sampling
from memscope.run import generate as generate_module
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.run.generate import generate
from tests.processes import FRESH, wait_for

PROMPT = [1, 50, 60, 70]
NEVER = -1


@pytest.fixture(params=["tiny_run", "ffn_run"])
def model(request: pytest.FixtureRequest) -> MemoryTransformer:
    return request.getfixturevalue(request.param).model


@torch.no_grad()
def test_temperature_zero_takes_the_most_likely_token(model: MemoryTransformer) -> None:
    tokens = list(PROMPT)
    for _ in range(10):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert generate(model, PROMPT, 10, eos=NEVER, temperature=0.0) == tokens[4:]


def test_a_sample_is_a_function_of_its_seed(model: MemoryTransformer) -> None:
    one, again, other = (generate(model, PROMPT, 20, eos=NEVER, seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert one != other
    assert len(one) == 20
    assert all(0 <= token < 320 for token in one)


def test_a_subject_continues_as_its_model_does_and_a_change_holds_while_it_writes(tiny_run: LoadedRun) -> None:
    subject, sampling = OwnRun(tiny_run, "float32"), Sampling(12, 0.8, seed=3)
    prompt = text_ids(subject.tokenizer, "Ada Holm was")
    expected = generate(tiny_run.model, prompt, 12, eos=subject.tokenizer.eos, seed=3)
    assert list(continue_ids(subject, prompt, sampling)) == expected
    continued = continue_text(subject, "Ada Holm was", sampling)
    assert continued.prompt == len(prompt)
    assert continued.traced.trace.tokens["token"].tolist() == [*prompt, *expected]
    with scale(tiny_run.model, 50.0):
        assert list(continue_ids(subject, prompt, sampling)) != expected
    with pytest.raises(InputError, match="12 new tokens exceed"):
        continue_text(subject, "Ada " * 60, sampling)
    with pytest.raises(InputError, match="temperature of -1"):
        continue_text(subject, "Ada", Sampling(temperature=-1))


def test_sampling_leaves_the_global_generator_alone(model: MemoryTransformer) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    generate(model, PROMPT, 5, eos=NEVER)
    assert torch.equal(torch.rand(1), expected)


def test_a_baseline_generates_the_same_with_and_without_its_cache(
    ffn_run: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    watch = ffn_run.model.embed.register_forward_pre_hook(lambda module, args: passes.append(args[0].shape[1]))
    with_cache = generate(ffn_run.model, PROMPT, 12, eos=NEVER)
    assert passes == [4] + [1] * 11  # the prompt, then one token at a time
    monkeypatch.setattr(generate_module, "KVCache", lambda *_: None)
    assert generate(ffn_run.model, PROMPT, 12, eos=NEVER) == with_cache
    assert passes[-1] == 15
    watch.remove()


def test_low_temperature_approaches_the_most_likely_and_high_temperature_does_not(model: MemoryTransformer) -> None:
    greedy = generate(model, PROMPT, 10, eos=NEVER, temperature=0.0)
    assert generate(model, PROMPT, 10, eos=NEVER, temperature=1e-4) == greedy
    assert generate(model, PROMPT, 10, eos=NEVER, temperature=100.0) != greedy


def test_the_end_token_is_the_last(model: MemoryTransformer) -> None:
    greedy = generate(model, PROMPT, 10, eos=NEVER, temperature=0.0)
    until = greedy.index(greedy[3]) + 1
    assert generate(model, PROMPT, 10, eos=greedy[3], temperature=0.0) == greedy[:until]


def test_prompt_and_continuation_may_fill_the_window_and_not_more(model: MemoryTransformer) -> None:
    assert len(generate(model, [5] * 60, 4, eos=NEVER)) == 4
    with pytest.raises(InputError, match="60 prompt \\+ 5 new tokens exceed max_seq_len=64; ask for fewer"):
        generate(model, [5] * 60, 5, eos=NEVER)
    with pytest.raises(InputError, match="the prompt is empty"):
        generate(model, [], 5, eos=NEVER)


def _continue_in_a_group(rank: int, folder: str, run: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = load_run(run).model
    # As if this machine rounded differently: other most likely tokens.
    model.norm.weight.data[:] = torch.randn(len(model.norm.weight), generator=torch.Generator().manual_seed(rank))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(generate(model, PROMPT, 8, eos=NEVER, temperature=0)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_that_differ_continue_alike(tiny_run_path: Path, tmp_path: Path) -> None:
    group = [FRESH.Process(target=_continue_in_a_group, args=(rank, str(tmp_path), tiny_run_path)) for rank in range(2)]
    for process in group:
        process.start()
    assert wait_for(group) == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
