"""Entries that start again: when, from what, and what is said of it ever after."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from memscope.base.errors import InputError
from memscope.config.load import Config, validate_config
from memscope.model.transformer import next_token_loss
from memscope.record.checkpoints import record_checkpoints
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.own import OwnRun, capture_memory
from memscope.run.bank_init import FreshStarts, encode_sentences, init_bank, load_bank_init
from memscope.run.checkpoint import LoadedRun, list_checkpoints, load_run
from memscope.run.metrics_log import read_metrics
from memscope.run.provenance import start_entries, start_table
from memscope.text.sentences import Sentence
from memscope.train.loop import train
from memscope.train.optimizer import make_optimizer
from memscope.train.prepare import prepare_run
from memscope.train.revive import Reviver
from tests.conftest import make_sentences, tiny_config
from tests.train.test_resume import STEPS, assert_same_run, finish, kill_in, make_config, results

pytestmark = pytest.mark.slow

AFTER = 3
SETTINGS = {"steps": STEPS, "learning_rate": 1e-2, "log_interval": 1, "eval_tokens": 256, "eval_interval": 5}


@pytest.fixture(scope="module")
def sentences_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 90 sentences, for 64 entries."""
    path = tmp_path_factory.mktemp("sentences") / "sentences.json"
    rows = [
        {"sentence": text, "uuid": f"u{n}", "subject": f"s{n}", "predicate": "p", "object": "o"}
        for n, text in enumerate(list(dict.fromkeys(make_sentences(400, 5)))[:90])
    ]
    path.write_text(json.dumps([{"target": [row]} for row in rows]))
    return path


@pytest.fixture
def reviving(corpus_dir: Path, sentences_path: Path) -> Callable[..., Config]:
    """A config whose entries start again after 3 unselected steps: ``reviving({memory values}, train values)``."""

    def config(memory: dict[str, object] | None = None, **values: object) -> Config:
        few = {"num_selected": 2, "score_fn": "relu", "database_init_path": str(sentences_path)}
        settings = {"revive_after": AFTER, **SETTINGS, **values}
        return tiny_config(corpus_dir, model={"max_seq_len": 32}, memory=few | (memory or {}), train=settings)

    return config


def checkpoints(run: Path) -> Iterator[tuple[int, LoadedRun]]:
    """Every checkpoint that a run kept, loaded, with its step."""
    for folder in list_checkpoints(run):
        loaded = load_run(run, checkpoint=folder)
        yield int(loaded.step or 0), loaded


# --- when -------------------------------------------------------------------------------------------------------------


class Loop:
    """A few steps of training, with what every step selected."""

    def __init__(self, config: Config, run: Path):
        prepared = prepare_run(config, run, write=True)
        self.model, self.tokenizer, self.run = prepared.model.train(), prepared.tokenizer, run
        self.optimizer = make_optimizer(self.model, config.train)
        fresh = FreshStarts(run, self.tokenizer.pad, config.train.seed, config.memory.entry_cosine)
        self.reviver = Reviver(self.model, self.optimizer, fresh)
        self.batches = torch.randint(3, 320, (20, 2, 17), generator=torch.Generator().manual_seed(0))
        self.done = 0

    def step(self, revive: bool = True) -> set[int]:
        tokens = self.batches[self.done]
        self.model.eval()(torch.randint(3, 320, (8, 32)))  # what evaluation selects does not count
        self.model.train()
        with capture_memory(self.model, keep_pattern=False) as captured:  # without gradients
            self.model(tokens[:, :-1])
        loss = next_token_loss(self.model(tokens[:, :-1]), tokens[:, 1:]).mean()
        selected = {entry for layer in captured.values() for entry in layer.indices.flatten().tolist()}
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-2
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        if revive:
            self.reviver.step(self.done)
        return selected


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "memory",
    [
        pytest.param({}, id="product"),
        pytest.param({"gate": "full"}, id="full"),
        pytest.param({"knowledge_num": 128, "bank_groups": 2}, id="groups"),
        pytest.param({"knowledge_length": 4}, id="slots"),
    ],
)
def test_entries_start_again_after_so_many_unselected_steps_and_no_others(
    reviving: Callable[..., Config], tmp_path: Path, memory: dict[str, object], checkpointing: bool
) -> None:
    loop = Loop(reviving(memory, gradient_checkpointing=checkpointing), tmp_path)
    bank, n = loop.model.bank, loop.model.cfg.memory.knowledge_num
    size = n // loop.model.cfg.memory.bank_groups
    waiting, used, total = [0] * n, 0, 0
    spare = pd.read_parquet(tmp_path / "bank_spare.parquet")
    table = load_bank_init(tmp_path).table
    for _ in range(9):
        before = bank.entries.detach().clone()
        selected = loop.step()
        waiting = [0 if entry in selected else steps + 1 for entry, steps in enumerate(waiting)]
        due = [entry for entry in range(n) if waiting[entry] >= AFTER]
        due.sort(key=lambda entry: entry % size)  # groups in turn
        for place, entry in enumerate(due):
            waiting[entry] = 0
            number = used + place
            if number < len(spare):
                ids = [spare["token_ids"][number].tolist()]
                blank = np.zeros((1, *before.shape[1:]), np.float32)
                [made] = init_bank(blank, ids, table, pad=loop.tokenizer.pad, seed=1337).entries
            else:
                chance = np.random.default_rng([1337, loop.done, entry])
                made = chance.standard_normal(before.shape[1:], np.float32) * before.shape[2] ** -0.5
            np.testing.assert_allclose(bank.entries[entry].detach().numpy(), made, atol=1e-6)
            assert int(bank.starts.step[entry]) == loop.done
            assert int(bank.starts.sentence[entry]) == (number if number < len(spare) else -1)
        used, total = min(len(spare), used + len(due)), total + len(due)
        assert (int(bank.starts.used), int(bank.starts.revived)) == (used, total)
        assert bank.starts.idle.tolist() == waiting
    assert total > len(spare)  # sentences ran out on the way


def test_sentences_are_used_once_and_initialised_nothing(reviving: Callable[..., Config], tmp_path: Path) -> None:
    prepare_run(reviving(), tmp_path, write=True)
    spare = pd.read_parquet(tmp_path / "bank_spare.parquet")["sentence"].tolist()
    first = pd.read_parquet(tmp_path / "bank_init.parquet")["sentence"].tolist()
    assert len(set(spare)) == len(spare) == 90 - 64
    assert not set(spare) & set(first)
    prepare_run(reviving(seed=3), tmp_path / "other", write=True)
    again = pd.read_parquet(tmp_path / "other" / "bank_spare.parquet")["sentence"].tolist()
    assert again != spare and again != sorted(again)


def test_without_sentences_entries_start_from_chance_that_step_and_entry_decide(
    reviving: Callable[..., Config], tmp_path: Path
) -> None:
    prepare_run(reviving({"database_init_path": None}), tmp_path, write=True)
    fresh = FreshStarts(tmp_path, pad=0, seed=1, cosine=0.25)
    assert fresh.n_sentences == 0
    entries, none = np.arange(2000) % 1000, np.full(2000, -1)
    slots = fresh.slots(entries, np.repeat([3, 4], 1000), none)
    np.testing.assert_array_equal(fresh.slots(entries[1500:], np.full(500, 4), none[1500:]), slots[1500:])
    assert len(np.unique(slots[:, 0, 0])) == 2000
    assert np.linalg.norm(slots, axis=-1).mean() == pytest.approx(1, abs=0.05)
    unit = slots[:, 0] / np.linalg.norm(slots[:, 0], axis=-1, keepdims=True)
    assert (unit @ unit.T)[np.triu_indices(2000, 1)].mean() == pytest.approx(0.25, abs=0.02)  # as at initialisation


# --- what starts anew -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "settings"),
    [
        ({}, {}),
        ({}, {"lazy_bank": True}),
        ({"entry_dtype": "bfloat16"}, {"lazy_bank": True}),
        ({"gate": "full"}, {}),
    ],
)
def test_moments_start_from_zero(
    reviving: Callable[..., Config], tmp_path: Path, memory: dict[str, object], settings: dict[str, object]
) -> None:
    loop = Loop(reviving(memory, **settings), tmp_path)
    for _ in range(AFTER - 1):
        loop.step()
    loop.step(revive=False)
    parameters = [loop.model.bank.entries]
    if memory.get("gate") == "full":
        parameters += [loop.model.memory_layer(layer).gate.keys.transpose(0, 1) for layer in (0, 1)]
    keys = [loop.model.bank.entries, *(loop.model.memory_layer(layer).gate.keys for layer in (0, 1))]
    states = [loop.optimizer.state[parameter] for parameter in keys[: len(parameters)]]
    for state in states:  # as if all had moved once
        for name in ("exp_avg", "exp_avg_sq"):
            state[name].fill_(1.0)
    loop.reviver.step(loop.done)
    revived = loop.model.bank.starts.step > 0
    assert revived.any() and not revived.all()
    for number, state in enumerate(states):
        for name in ("exp_avg", "exp_avg_sq"):
            by_entry = state[name] if number == 0 else state[name].transpose(0, 1)
            assert by_entry[revived].eq(0).all() and by_entry[~revived].eq(1).all()


@pytest.mark.parametrize(
    "memory",
    [
        {"gate_heads": 2},
        {"gate_heads": 2, "balance_bias": 0.01},
        {"knowledge_num": 128, "bank_groups": 2},
    ],
)
def test_keys_of_the_full_gate_point_where_a_query_of_the_last_batch_did(
    reviving: Callable[..., Config], tmp_path: Path, memory: dict[str, object]
) -> None:
    loop = Loop(reviving({"gate": "full", "num_selected": 1, **memory}), tmp_path)
    loop.reviver.after = 1  # whatever one step leaves out
    for balance in loop.model.balances:
        if balance.bias is not None:
            balance.bias.normal_(std=0.01)
    queries: dict[int, torch.Tensor] = {}
    first: dict[int, torch.Tensor] = {}
    for layer in (0, 1):
        point = loop.model.memory_layer(layer)
        heads, start = point.gate.heads, loop.model.cfg.entries_of(layer).start
        point.hook_query.register_forward_hook(
            lambda *call, layer=layer: queries.update({layer: call[2].detach().flatten(0, 1)})
        )
        point.hook_indices.register_forward_hook(
            lambda *call, layer=layer, heads=heads, start=start: first.update(
                {layer: call[2].unflatten(-1, (heads, -1))[..., 0].flatten(0, 1) - start}
            )
        )
    loop.step(revive=False)
    keys_before = [loop.model.memory_layer(layer).gate.keys.detach().clone() for layer in (0, 1)]
    loop.reviver.step(loop.done)
    revived = (loop.model.bank.starts.step > 0).nonzero().flatten().tolist()
    assert 3 < len(revived) < loop.model.cfg.memory.knowledge_num
    token_of: dict[int, set[int]] = {entry: set() for entry in revived}
    for layer in (0, 1):
        gate, own = loop.model.memory_layer(layer).gate, loop.model.cfg.entries_of(layer)
        for entry in revived:
            if not own.start <= entry < own.stop:
                continue
            key = gate.keys[:, entry - own.start].detach()  # [head, query]
            alike = torch.cosine_similarity(key[None], queries[layer], dim=-1).mean(1)  # [token]
            token = int(alike.argmax())
            assert alike[token] == pytest.approx(1, abs=1e-5)
            liked = [keys_before[layer][head, first[layer][token, head]] for head in range(gate.heads)]
            torch.testing.assert_close(key.norm(dim=-1), torch.stack(liked).norm(dim=-1))
            if gate.balance.bias is not None:
                at = [gate.balance.bias[head, first[layer][token, head]] for head in range(gate.heads)]
                assert torch.equal(gate.balance.bias[:, entry - own.start], torch.stack(at))
            token_of[entry].add(token)
        others = torch.ones(len(gate.keys[0]), dtype=torch.bool)
        others[[entry - own.start for entry in revived if own.start <= entry < own.stop]] = False
        assert torch.equal(gate.keys[:, others], keys_before[layer][:, others])
    assert all(len(tokens) == 1 for tokens in token_of.values())  # one token in all layers
    assert len(set.union(*token_of.values())) > 1


def test_product_keys_stay(reviving: Callable[..., Config], tmp_path: Path) -> None:
    loop = Loop(reviving(), tmp_path)
    for _ in range(AFTER - 1):
        loop.step()
    loop.step(revive=False)
    before = loop.model.memory_layer(0).gate.keys.detach().clone()
    loop.reviver.step(loop.done)
    assert loop.model.bank.starts.revived > 0
    assert torch.equal(loop.model.memory_layer(0).gate.keys, before)


# --- provenance -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def revived_run(corpus_dir: Path, sentences_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept its checkpoint of every step."""
    run = tmp_path_factory.mktemp("revive") / "run"
    few = {"num_selected": 2, "score_fn": "relu", "gate": "full", "database_init_path": str(sentences_path)}
    settings = {**SETTINGS, "revive_after": AFTER, "save_interval": 1, "keep_checkpoints": STEPS}
    train(tiny_config(corpus_dir, model={"max_seq_len": 32}, memory=few, train=settings), run, device="cpu")
    return run


def assert_starts_are_true(run: LoadedRun, step: int) -> int:
    """Entries that started at this very step still are what they are said to be; returns how many these are."""
    told = start_table(run).to_pandas()
    entries, now = start_entries(run), run.model.bank.entries.detach().numpy()
    fresh = (told["start_step"] == step).to_numpy()
    np.testing.assert_array_equal(entries[fresh], now[fresh])
    table = load_bank_init(run.path).table
    said = told["sentence"].notna().to_numpy()
    ids = encode_sentences([Sentence(text, ()) for text in told["sentence"][said]], run.tokenizer, 1)
    assert [list(own) for own in told["token_ids"][said]] == ids
    made = init_bank(np.zeros_like(entries[said]), ids, table, pad=run.tokenizer.pad, seed=1337).entries
    np.testing.assert_array_equal(entries[said], made)
    return int(fresh.sum())


def test_every_checkpoint_tells_what_its_entries_started_from(revived_run: Path) -> None:
    first = pd.read_parquet(revived_run / "bank_init.parquet")
    count, starts = 0, {}
    for step, run in checkpoints(revived_run):
        told, entries = start_table(run).to_pandas(), start_entries(run)
        count += assert_starts_are_true(run, step)
        assert int(run.model.bank.starts.revived) == count  # every one was seen at the step at which it started
        assert told["entry"].tolist() == list(range(64))
        never = (told["start_step"] == 0).to_numpy()
        pd.testing.assert_frame_equal(told[never].drop(columns="start_step"), first[never])
        for entry, since in enumerate(told["start_step"]):
            starts.setdefault((entry, since), entries[entry])
            np.testing.assert_array_equal(entries[entry], starts[entry, since])
    assert count > 26
    assert told["sentence"].isna().any() and (told["start_step"][told["sentence"].notna()] > 0).any()
    np.testing.assert_array_equal(start_entries(load_run(revived_run)), entries)


def test_parts_of_the_table_are_those_of_the_whole(revived_run: Path) -> None:
    run = load_run(revived_run)
    whole = start_table(run)
    columns = ["entry", "uuid", "subject"]
    assert start_table(run, columns).select(columns).equals(whole.select(columns))
    assert start_table(run, ["sentence"])["sentence"].equals(whole["sentence"])
    assert whole.column_names == [*pd.read_parquet(revived_run / "bank_init.parquet").columns, "start_step"]


def test_recordings_of_checkpoints_have_the_starts_of_their_own_model(
    revived_run: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    record_checkpoints(revived_run, corpus_dir / "valid.jsonl", tmp_path, RecordOptions(max_tokens=64), "cpu")
    drift = {}
    for step, run in checkpoints(revived_run):
        recording = tmp_path / f"step-{step:08d}"
        saved = pd.read_parquet(recording / "bank_init.parquet")
        pd.testing.assert_frame_equal(saved, start_table(run).to_pandas())
        now, start = run.model.bank.entries.detach()[:, 0], torch.from_numpy(start_entries(run))[:, 0]
        drift[step] = pd.read_parquet(recording / "decodings.parquet")["drift"].to_numpy()
        np.testing.assert_allclose(drift[step], 1 - torch.cosine_similarity(now, start), atol=1e-6)
        fresh = (saved["start_step"] == step).to_numpy()
        assert np.allclose(drift[step][fresh], 0, atol=1e-6)
    assert len(drift) == STEPS


def test_damaged_spare_sentences_are_named(revived_run: Path, corpus_dir: Path, tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    for name in ("config.yaml", "tokenizer.json", "model.safetensors", "bank_init.parquet", "bank_init.safetensors"):
        (run / name).write_bytes((revived_run / name).read_bytes())
    with pytest.raises(InputError, match=r"bank_spare\.parquet: missing"):
        record(OwnRun(load_run(run)), corpus_dir / "valid.jsonl", tmp_path / "rec", RecordOptions(max_tokens=64))


# --- resuming, several processes, and nothing at all ------------------------------------------------------------------


@pytest.fixture(scope="module", params=[{"gate": "full"}, {"gate": "product"}], ids=["full", "product"])
def killable(request: pytest.FixtureRequest, corpus_dir: Path, sentences_path: Path) -> Config:
    values = make_config(corpus_dir).model_dump()
    memory = {"num_selected": 2, "score_fn": "relu", "database_init_path": str(sentences_path), **request.param}
    values["memory"] |= memory
    values["train"] |= {"revive_after": 2}
    return validate_config(values, "test")


@pytest.fixture(scope="module")
def uninterrupted(killable: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("revive") / "reference"
    finish(killable, run)
    assert [line["revived"] for line in results(run) if line["kind"] == "eval"][-1] > 30
    return run


@pytest.mark.parametrize(
    ("module", "function", "call"),
    [
        pytest.param("memscope.run.checkpoint", "save_file", 6, id="inside the third checkpoint"),
        pytest.param("os", "link", 3, id="before the third is published"),
        pytest.param("memscope.run.bank_init", "save_file", 1, id="before the starts are saved"),
        pytest.param("memscope.train.revive", "distributed", 0, id="twice, one step later"),
    ],
)
def test_a_killed_run_revives_what_an_uninterrupted_one_does(
    killable: Config, uninterrupted: Path, tmp_path: Path, module: str, function: str, call: int
) -> None:
    run = tmp_path / "run"
    if call:
        kill_in(killable, run, module, function, call)
    else:
        kill_in(killable, run, "memscope.train.loop", "learning_rate_factor", 8)
        kill_in(killable, run, "memscope.train.loop", "learning_rate_factor", 2)
    for step, loaded in checkpoints(run):
        assert_starts_are_true(loaded, step)
    if list_checkpoints(run):
        published = load_run(run)
        [step] = [s for s, loaded in checkpoints(run) if loaded.fingerprint == published.fingerprint]
        assert_starts_are_true(published, step)
    finish(killable, run)
    assert_same_run(run, uninterrupted)
    for name in ("bank_init.parquet", "bank_init.safetensors", "bank_spare.parquet"):
        assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_sentences_that_changed_since_do_not_change_what_a_run_says(
    killable: Config, uninterrupted: Path, tmp_path: Path
) -> None:
    run, path = tmp_path / "run", tmp_path / "sentences.json"
    path.write_bytes(Path(str(killable.memory.database_init_path)).read_bytes())
    values = killable.model_dump()
    values["memory"]["database_init_path"] = str(path)
    config = validate_config(values, "test")
    kill_in(config, run, "memscope.run.checkpoint", "save_file", 6)
    path.write_text(json.dumps(json.loads(path.read_text())[::-1][:80]))
    finish(config, run)
    assert_same_run(run, uninterrupted)


@pytest.mark.parametrize("memory", [{}, {"gate": "full", "num_selected": 1}], ids=["product", "full"])
def test_two_processes_revive_what_one_does(
    reviving: Callable[..., Config], group: Callable[..., Any], tmp_path: Path, memory: dict[str, object]
) -> None:
    train(reviving(memory, batch_size=4, learning_rate=1e-3, steps=8, revive_after=1), tmp_path / "one", device="cpu")
    done = group(reviving(memory, batch_size=2, learning_rate=1e-3, steps=8, revive_after=1), tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        if name.startswith("bank.starts"):
            assert torch.equal(two[name], tensor), name
        elif name.startswith("bank") or name.endswith("keys"):
            torch.testing.assert_close(two[name], tensor, atol=1e-3, rtol=1e-2)
    assert one["bank.starts.revived"] > 20
    assert (one["bank.starts.step"] > 0).sum() > 5
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    for key in ("loss", "revived"):
        values = [[line[key] for line in part if line["kind"] != "sample"] for part in lines]
        assert values[1] == pytest.approx(values[0], abs=1e-3)


def test_the_number_of_revived_entries_is_logged_and_said(
    reviving: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(reviving(), tmp_path, device="cpu")
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] != "sample"]
    revived = [line["revived"] for line in lines]
    assert revived[0] == 0 and revived == sorted(revived) and revived[-1] > 0
    assert revived[-1] == int(load_file(tmp_path / "model.safetensors")["bank.starts.revived"])
    assert f"{revived[-1]:,} entries revived\n" in capsys.readouterr().err


def test_nothing_is_kept_where_nothing_starts_again(reviving: Callable[..., Config], tmp_path: Path) -> None:
    train(reviving(revive_after=0, steps=2), tmp_path, device="cpu")
    assert not (tmp_path / "bank_spare.parquet").exists()
    run = load_run(tmp_path)
    assert not [name for name in run.model.state_dict() if "starts" in name]
    assert not [line for line in read_metrics(tmp_path / "metrics.jsonl") if "revived" in line]
    np.testing.assert_array_equal(start_entries(run), load_bank_init(tmp_path).entries)
    assert start_table(run).to_pandas().equals(pd.read_parquet(tmp_path / "bank_init.parquet"))


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_entries_are_refused(
    reviving: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(variable, "true")
    with pytest.raises(InputError, match=r"and revive_after: .* set revive_after=0"):
        train(reviving(), tmp_path / "run", device="cpu")
    assert not list(tmp_path.iterdir())
