"""A recording holds what the model selected, whoever recorded which part and however often it was interrupted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
import torch

from memscope.base.errors import InputError
from memscope.base.files import read_json
from memscope.base.runtime import processes
from memscope.base.work import ALONE
from memscope.census import aggregate as aggregate_module
from memscope.query.recording import Recording
from memscope.record import loop as record_module
from memscope.record.loop import RecordOptions, plan_parts, record
from memscope.recording.info import read_info
from memscope.recording.part_reader import SelectionReader
from memscope.recording.parts import finished_parts
from memscope.run.adapters.load import open_subject
from memscope.run.adapters.own import OwnRun, capture_memory
from memscope.run.checkpoint import LoadedRun, list_checkpoints, load_run
from memscope.text.corpus import DocumentWindow, PackedCorpus, document_windows
from memscope.train.evaluate import evaluate
from tests.conftest import tiny_config, untrained_run
from tests.processes import run_group
from tests.synthetic import all_rows, selections_of

pytestmark = pytest.mark.slow

PARTS = RecordOptions(part_tokens=200)
TABLES = ("usage", "contexts", "firing", "titles", "neighbours", "bias", "decodings", "documents")


def contents(recording: Path) -> dict[str, bytes]:
    """Every file of a recording but recording.json, which has a clock in it."""
    files = [path for path in recording.rglob("*") if path.is_file() and path.name != "recording.json"]
    return {str(path.relative_to(recording)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tiny_run: LoadedRun, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted recording in small parts, by one process."""
    recording = tmp_path_factory.mktemp("record") / "whole"
    record(OwnRun(tiny_run), corpus_dir / "valid.jsonl", recording, PARTS)
    return recording


def record_tiny(run: LoadedRun, corpus_dir: Path, recording: Path) -> None:
    record(OwnRun(run), corpus_dir / "valid.jsonl", recording, PARTS)


def assert_same_recording(recording: Path, whole: Path) -> None:
    found, expected = contents(recording), contents(whole)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert read_info(recording).parts == read_info(whole).parts
    assert read_info(recording).complete


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_every_token_of_the_corpus_is_recorded_once_and_in_order(whole: Path, tiny_corpus: PackedCorpus) -> None:
    info = read_info(whole)
    assert len(info.parts) > 4
    rows = all_rows(whole, info)
    np.testing.assert_array_equal(rows.token, tiny_corpus.tokens)
    lengths = np.diff(tiny_corpus.starts)
    np.testing.assert_array_equal(rows.doc, np.repeat(range(6), lengths))
    np.testing.assert_array_equal(rows.pos, np.concatenate([*map(range, lengths)]))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(rows.loss)), tiny_corpus.starts[1:] - 1)  # ends of documents


def test_recorded_rows_are_those_of_a_direct_capture(
    whole: Path, tiny_run: LoadedRun, tiny_corpus: PackedCorpus
) -> None:
    rows = all_rows(whole, read_info(whole))
    for window in document_windows(tiny_corpus, 64)[::5]:
        here = slice(window.start, window.end)
        with capture_memory(tiny_run.model) as captured:
            logits = tiny_run.model(torch.from_numpy(tiny_corpus.tokens[here].astype(np.int64))[None])
        np.testing.assert_array_equal(rows.predicted[here], logits[0].argmax(-1))
        for axis, layer in enumerate((0, 1)):
            seen = captured[layer]
            np.testing.assert_array_equal(rows.indices[here, axis], seen.indices[0])
            for name in ("gate_scores", "read_weights", "margin"):
                stored = getattr(rows, name.removesuffix("_scores").removesuffix("_weights"))[here, axis]
                np.testing.assert_allclose(stored.astype(float), getattr(seen, name)[0], rtol=2**-7, atol=3e-6)


def test_a_selection_bias_and_signs_of_reads_are_recorded(corpus_dir: Path, tmp_path: Path) -> None:
    memory = {"score_fn": "relu", "read_fn": "gelu", "gate_heads": 2, "num_selected": 3, "balance_bias": 0.1}
    run = untrained_run(tiny_config(corpus_dir, memory=memory), tmp_path / "run")
    for layer in (0, 1):
        bias = run.model.memory_layer(layer).gate.balance.bias
        assert bias is not None
        bias.normal_(std=0.3, generator=torch.Generator().manual_seed(layer))
    info = record(OwnRun(run), corpus_dir / "valid.jsonl", tmp_path / "recording", RecordOptions(max_tokens=256))
    assert info is not None and all(site.selection_bias and site.signed_reads for site in info.sites)
    rows, reading = all_rows(tmp_path / "recording", info), Recording(tmp_path / "recording").reading_metrics()
    assert rows.score_margin is not None and rows.by_score is not None and rows.read_norm is not None
    tokens = torch.from_numpy(rows.token[:64].astype(np.int64))[None]
    _, cache = run.model.run_with_cache(tokens)
    for axis in (0, 1):
        gate, block = run.model.memory_layer(axis).gate, f"blocks.{axis}.memory."
        halves = torch.einsum("thpq,hpnq->thpn", cache[f"{block}hook_query"][0].unflatten(-1, (2, -1)), gate.keys)
        raw = (halves[..., 0, :, None] + halves[..., 1, None, :]).flatten(-2)  # [token, head, N]
        chosen = torch.from_numpy(rows.indices[:64, axis].astype(np.int64)).unflatten(1, (2, 3))
        by_score = (chosen[..., :, None] == raw.topk(3).indices[..., None, :]).any(-1)
        np.testing.assert_array_equal(rows.by_score[:64, axis], by_score.flatten(1))
        mask = torch.zeros_like(raw, dtype=torch.bool).scatter(-1, chosen, True)
        margin = raw.masked_fill(~mask, torch.inf).amin(-1) - raw.masked_fill(mask, -torch.inf).amax(-1)
        np.testing.assert_allclose(rows.score_margin[:64, axis], margin.detach(), rtol=2**-7, atol=1e-4)
        norm = cache[f"{block}hook_pattern"][0].abs().mean(1)
        np.testing.assert_allclose(rows.read_norm[:64, axis], norm, rtol=2**-7, atol=1e-6)
        assert (np.abs(rows.read[:, axis]) <= rows.read_norm[:, axis] * 1.02).all()
        assert reading["by_score_share"][axis] == pytest.approx(rows.by_score[:, axis].mean())
        assert 0.05 < reading["by_score_share"][axis] < 0.95
        assert reading["score_margin"][axis] < 0 < reading["margin"][axis]


def test_both_orders_hold_the_same_selections(whole: Path) -> None:
    info = read_info(whole)
    rows, reader = all_rows(whole, info), SelectionReader(whole, info)
    for axis, layer in enumerate(info.layers):
        columns = reader.read(layer, 0, info.knowledge_num - 1)
        found = sorted(zip(*(column.tolist() for column in columns), strict=True))
        assert found == sorted((entry, row, gate) for row, _, entry, gate, _ in selections_of(rows, axis))


def test_duckdb_and_pandas_read_every_file(whole: Path) -> None:
    info = read_info(whole)
    rows = all_rows(whole, info)
    parts = duckdb.sql(f"SELECT * FROM read_parquet('{whole}/tokens/*.parquet') ORDER BY doc, pos").df()
    np.testing.assert_array_equal(np.stack(parts["l1_gate"]), rows.gate[:, 1].astype(np.float32))
    np.testing.assert_array_equal(np.stack(parts["l0_indices"]), rows.indices[:, 0])
    by_entry = duckdb.sql(
        f"SELECT entry, avg(gate) AS gate FROM '{whole}/selections/*.parquet' WHERE layer = 1 GROUP BY 1"
    )
    frame = by_entry.df().set_index("entry")["gate"].sort_index()
    usage = pd.read_parquet(whole / "usage.parquet").query("layer == 1").set_index("entry").sort_index()
    np.testing.assert_allclose(frame, usage["gate_sum"] / usage["count"], rtol=1e-5)
    for file in whole.rglob("*.parquet"):
        assert (
            len(pd.read_parquet(file)) == duckdb.sql(f"SELECT count(*) FROM (SELECT * FROM '{file}')").fetchall()[0][0]
        )


def test_recorded_loss_and_usage_are_those_of_evaluate(
    whole: Path, tiny_run: LoadedRun, tiny_corpus: PackedCorpus
) -> None:
    result, usage = evaluate(tiny_run.model, tiny_corpus, tiny_run.tokenizer, None, "float32")
    recording = Recording(whole)
    assert usage is not None
    assert recording.census.loss == pytest.approx(result.loss, rel=1e-6)
    assert recording.census.tokens == len(tiny_corpus.tokens)
    np.testing.assert_array_equal(recording.usage(), usage.count)
    np.testing.assert_allclose(recording.usage("by_gate_score"), usage.gate, rtol=5e-3)
    np.testing.assert_allclose(recording.usage("by_read_weight"), usage.read, rtol=5e-3)


def test_weights_per_head_and_slot_add_up_to_the_read_weight(
    slot_run: LoadedRun, corpus_dir: Path, tmp_path: Path
) -> None:
    options = RecordOptions(max_tokens=150, score_bits=10, head_weights=True, slot_weights=True)
    info = record(OwnRun(slot_run), corpus_dir / "valid.jsonl", tmp_path, options)
    assert info is not None
    assert (info.head_weights, info.slot_weights) == (True, True)
    assert [(site.read_heads, site.gate_heads, site.slots) for site in info.sites] == [(4, 2, 32)] * 2
    rows = all_rows(tmp_path, info)
    assert rows.head_read is not None and rows.slot_read is not None
    by_head = rows.head_read.astype(float).reshape(150, 2, 4, 8)  # [token, layer, A, K]
    by_slot = rows.slot_read.astype(float).reshape(150, 2, 8, 32)  # [token, layer, K, L]
    np.testing.assert_allclose(by_head.mean(2), rows.read.astype(float), atol=1e-4)
    np.testing.assert_allclose(by_slot.sum(3), rows.read.astype(float), atol=1e-4)
    plain = record(
        OwnRun(slot_run), corpus_dir / "valid.jsonl", tmp_path / "plain", options._replace(slot_weights=False)
    )
    assert plain is not None and all_rows(tmp_path / "plain", plain).slot_read is None


def test_a_checkpoint_can_be_recorded_and_names_its_step(tiny_run: LoadedRun, corpus_dir: Path, tmp_path: Path) -> None:
    checkpoints = list_checkpoints(tiny_run.path)
    infos = []
    for checkpoint in checkpoints:
        run = load_run(tiny_run.path, checkpoint=checkpoint)
        infos.append(
            record(OwnRun(run), corpus_dir / "valid.jsonl", tmp_path / checkpoint.name, RecordOptions(max_tokens=64))
        )
    assert [info.step for info in infos if info] == [10, 20]
    assert len({info.fingerprint for info in infos if info}) == 2
    assert read_info(tmp_path / checkpoints[-1].name).fingerprint == tiny_run.fingerprint
    assert tiny_run.step is None
    with pytest.raises(InputError, match="holds a recording with another"):
        run = load_run(tiny_run.path, checkpoint=checkpoints[0])
        record(OwnRun(run), corpus_dir / "valid.jsonl", tmp_path / checkpoints[1].name, RecordOptions(max_tokens=64))


def test_groups_of_documents_reach_the_census(tiny_run: LoadedRun, tmp_path: Path, corpus_dir: Path) -> None:
    lines = [json.loads(line) for line in (corpus_dir / "train.jsonl").read_text().splitlines()[:14]]
    corpus = tmp_path / "corpus.jsonl"
    kinds = ["book" if number % 3 == 0 else "wiki" for number in range(14)]

    def write(wanted: str | None) -> None:
        chosen = [
            line | {"group": kind} for line, kind in zip(lines, kinds, strict=True) if kind == wanted or not wanted
        ]
        corpus.write_text("".join(json.dumps(line) + "\n" for line in chosen))

    write(None)
    record(OwnRun(tiny_run), corpus, tmp_path / "both")
    groups = Recording(tmp_path / "both").census.groups
    assert pd.read_parquet(tmp_path / "both" / "documents.parquet")["group"].tolist() == kinds
    assert sorted(groups) == ["book", "wiki"]
    for name in ("book", "wiki"):
        write(name)
        record(OwnRun(tiny_run), corpus, tmp_path / name)
        alone = Recording(tmp_path / name).census
        assert alone.groups == {}
        for found, expected in zip(groups[name].layers, alone.layers, strict=True):
            for key, value in found.by_count:
                assert key.endswith(("_se", "_few")) or value == getattr(expected.by_count, key), key
            assert found.reading.loss == pytest.approx(expected.reading.loss, rel=1e-5)


def test_max_tokens_stops_a_recording(tiny_run: LoadedRun, corpus_dir: Path, tmp_path: Path) -> None:
    options = RecordOptions(max_tokens=100, part_tokens=50)
    info = record(OwnRun(tiny_run), corpus_dir / "valid.jsonl", tmp_path / "short", options)
    assert info is not None
    assert info.rows == info.total_tokens == 100
    assert Recording(tmp_path / "short").documents["rows"].tolist() == [100]


@pytest.mark.parametrize("part_tokens", [1, 7, 64, 65, 1000])
def test_the_plan_covers_all_windows_once_and_depends_on_nothing_else(part_tokens: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 30, 60).tolist()
    starts = np.cumsum([0, *sizes])
    windows = [DocumentWindow(n, 0, int(starts[n]), int(starts[n + 1])) for n in range(60)]
    plan = plan_parts(windows, part_tokens)
    assert [window for part in plan for window in part.windows] == windows
    assert [part.number for part in plan] == list(range(len(plan)))
    for part in plan:
        assert part.first_row == part.windows[0].start
        tokens = [window.end - window.start for window in part.windows]
        assert sum(tokens[:-1]) < part_tokens  # no window too many
        assert sum(tokens) >= part_tokens or part is plan[-1]
    assert plan_parts(windows, part_tokens) == plan


def test_parts_recorded_in_other_sizes_give_the_same_census(
    tiny_recording_path: Path, whole: Path, tiny_recording: Recording
) -> None:
    assert len(tiny_recording.info.parts) < len(read_info(whole).parts)
    for name in TABLES:
        frames = [pd.read_parquet(folder / f"{name}.parquet") for folder in (whole, tiny_recording_path)]
        pd.testing.assert_frame_equal(*frames)

    def comparable(value: Any) -> Any:
        """Without what is drawn at random part by part."""
        if isinstance(value, dict):
            drawn = ("even_position", "even_frequency", "even_divergence")
            return {key: comparable(item) for key, item in value.items() if key not in drawn}
        return [comparable(item) for item in value] if isinstance(value, list) else value

    one, other = (read_json(folder / "census.json") for folder in (whole, tiny_recording_path))
    assert comparable(one) == comparable(other)


def test_a_recording_can_be_read_without_its_run(corpus_dir: Path, tmp_path: Path) -> None:
    run = untrained_run(tiny_config(corpus_dir), tmp_path / "run")
    record(OwnRun(run), corpus_dir / "valid.jsonl", tmp_path / "recording", RecordOptions(max_tokens=64))
    shutil.rmtree(tmp_path / "run")
    moved = (tmp_path / "recording").rename(tmp_path / "elsewhere")
    recording = Recording(moved)
    assert recording.entry(0).sentence
    assert len(recording.trace(0).tokens) == 64


def test_a_planted_entry_is_found_in_the_recording(corpus_dir: Path, tmp_path: Path) -> None:
    # Layer 0 is wired so that one token, and no other, selects entry 9 with a high score: its embedding is the
    # gate's query, and key 9 points along it.
    config = tiny_config(corpus_dir, memory={"gate": "full", "knowledge_dim": 32, "score_fn": "sigmoid"})
    run = untrained_run(config, tmp_path / "run")
    token = run.tokenizer.encode(" born")[0]
    model = run.model
    with torch.no_grad():
        direction = torch.nn.functional.normalize(model.embed.weight[token], dim=0)
        model.embed.weight[token] = 5 * direction  # drowns what attention adds
        model.blocks[0].memory.gate.proj.weight.copy_(torch.eye(32))
        model.blocks[0].memory.gate.keys[0] *= 0.01
        model.blocks[0].memory.gate.keys[0, 9] = direction
    record(OwnRun(run), corpus_dir / "valid.jsonl", tmp_path / "recording")
    recording = Recording(tmp_path / "recording")
    best = recording.contexts(entry=9, layer=0)
    top = best[best["kind"] == "top"]
    times = int((recording.token_ids == token).sum())
    assert times > 8
    assert top["token"].tolist()[:times] == [" born"] * min(times, 20)


@pytest.mark.parametrize("what", ["keys", "entries"])
def test_a_model_that_diverged_is_refused(corpus_dir: Path, tmp_path: Path, what: str) -> None:
    run = untrained_run(tiny_config(corpus_dir, memory={"gate": "full"}), tmp_path / "run")
    with torch.no_grad():
        (run.model.blocks[1].memory.gate.keys if what == "keys" else run.model.bank.entries).fill_(torch.nan)
    with pytest.raises(InputError, match=r"valid\.jsonl: the model's (gate|read) scores are not finite"):
        record(OwnRun(run), corpus_dir / "valid.jsonl", tmp_path / "recording", RecordOptions(max_tokens=100))
    assert read_info(tmp_path / "recording").rows == 0


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [1, 4])
def test_an_interrupted_recording_is_completed_to_the_same_bytes(
    tiny_run: LoadedRun,
    corpus_dir: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
) -> None:
    recording = tmp_path / "recording"
    write_part = record_module.write_part

    def failing(folder: Path, number: int, *rest: Any) -> Any:
        if number == stop_after:
            (folder / "tokens" / ".part-000099.parquet.12345678.unfinished").write_bytes(b"half a part")
            raise KeyboardInterrupt
        return write_part(folder, number, *rest)

    monkeypatch.setattr(record_module, "write_part", failing)
    with pytest.raises(KeyboardInterrupt):
        record_tiny(tiny_run, corpus_dir, recording)
    assert len(finished_parts(recording)) == stop_after
    with pytest.raises(InputError, match="unfinished"):
        Recording(recording)

    made: list[int] = []
    monkeypatch.setattr(record_module, "write_part", lambda *a: made.append(a[1]) or write_part(*a))
    record_tiny(tiny_run, corpus_dir, recording)
    assert made == list(range(stop_after, len(read_info(whole).parts)))  # what was finished is not made again
    assert_same_recording(recording, whole)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (record_module, "write_documents"),
        (aggregate_module, "write_preferences"),
        (aggregate_module, "write_firing"),
        (aggregate_module, "write_neighbours"),
        (record_module, "write_decodings"),
    ],
)
def test_a_recording_interrupted_in_its_aggregates_is_completed(
    tiny_run: LoadedRun,
    corpus_dir: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
) -> None:
    def failing(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, function, failing)
        record_tiny(tiny_run, corpus_dir, tmp_path / "recording")
    assert not read_info(tmp_path / "recording").complete
    with monkeypatch.context() as patch:
        patch.setattr(record_module, "run_windows", None)  # no part is made again: calling it would fail
        record_tiny(tiny_run, corpus_dir, tmp_path / "recording")
    assert_same_recording(tmp_path / "recording", whole)


@pytest.mark.parametrize("order", ["tokens", "selections"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_part_is_made_again_and_only_that(
    tiny_run: LoadedRun,
    corpus_dir: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
    damage: str,
) -> None:
    recording = shutil.copytree(whole, tmp_path / "recording")
    part = recording / order / "part-000002.parquet"
    content = part.read_bytes()
    match damage:
        case "truncate":
            part.write_bytes(content[:-1])
        case "flip":
            part.write_bytes(content[:300] + bytes([content[300] ^ 4]) + content[301:])
        case "remove":
            part.unlink()
    write_part, made = record_module.write_part, []
    monkeypatch.setattr(record_module, "write_part", lambda *a: made.append(a[1]) or write_part(*a))
    record_tiny(tiny_run, corpus_dir, recording)
    assert made == [2]
    assert_same_recording(recording, whole)


def test_a_recording_whose_damage_is_being_mended_is_unfinished(
    tiny_run: LoadedRun, corpus_dir: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise KeyboardInterrupt

    recording = shutil.copytree(whole, tmp_path / "recording")
    (recording / "selections" / "part-000002.parquet").unlink()
    monkeypatch.setattr(record_module, "write_part", failing)
    with pytest.raises(KeyboardInterrupt):
        record_tiny(tiny_run, corpus_dir, recording)
    with pytest.raises(InputError, match="unfinished"):
        Recording(recording)


def test_a_complete_recording_is_returned_untouched(
    tiny_run: LoadedRun, corpus_dir: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    before.pop(whole / "recording.json", None)
    monkeypatch.setattr(record_module, "run_windows", None)  # calling it would fail
    info = record(OwnRun(tiny_run), corpus_dir / "valid.jsonl", whole, PARTS)
    assert info == read_info(whole)
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written


def test_a_recording_of_something_else_is_refused(
    tiny_run: LoadedRun, slot_run: LoadedRun, corpus_dir: Path, whole: Path
) -> None:
    valid = corpus_dir / "valid.jsonl"
    with pytest.raises(InputError, match="another corpus, total_tokens"):
        record(OwnRun(tiny_run), corpus_dir / "train.jsonl", whole, PARTS)
    with pytest.raises(InputError, match=r"holds a recording with another model.* choose another --out"):
        record(OwnRun(slot_run), valid, whole, PARTS)
    for changed, name in (
        (PARTS._replace(score_bits=10), "score_bits"),
        (PARTS._replace(slot_weights=True), "slot_weights"),
        (PARTS._replace(part_tokens=100), "part_tokens"),
        (PARTS._replace(max_tokens=1000), "total_tokens"),
    ):
        with pytest.raises(InputError, match=f"with another {name}; choose another --out"):
            record(OwnRun(tiny_run), valid, whole, changed)
    with pytest.raises(InputError, match="with another dtype; choose another --out"):
        record(OwnRun(tiny_run, "bfloat16"), valid, whole, PARTS)


def test_a_baseline_has_nothing_to_record(
    ffn_run: LoadedRun, corpus_dir: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    with pytest.raises(InputError, match="FFN baseline has no memory"):
        open_subject(ffn_run.path)
    assert OwnRun(ffn_run).sites == ()
    done = cli("record", ffn_run.path, "--corpus", corpus_dir / "valid.jsonl", "--out", tmp_path / "recording")
    assert (done.code, done.out) == (2, "") and "FFN baseline has no memory" in done.err
    assert not (tmp_path / "recording").exists()


# --- several processes ------------------------------------------------------------------------------------------------


class Killed(Exception):
    """The end of a process."""


def record_as(rank: int, count: int, patch: pytest.MonkeyPatch, call: Callable[[], None], limit: int = 99) -> list[int]:
    """Play one of several processes, killed after ``limit`` parts or where it would wait for all; returns its parts."""
    write_part, made, waits = record_module.write_part, [], []

    def wait() -> None:
        waits.append(1)
        if len(waits) == 2:  # the first is for the folder, the second for all parts
            raise Killed

    def write(recording: Path, number: int, *rest: Any) -> Any:
        if len(made) == limit:
            raise Killed
        made.append(number)
        return write_part(recording, number, *rest)

    with patch.context() as here, pytest.raises(Killed):
        here.setattr(record_module, "processes", lambda: ALONE._replace(rank=rank, world_size=count, wait=wait))
        here.setattr(record_module, "write_part", write)
        call()
    return made


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1), (3, 2), (2, 3)])
def test_other_numbers_of_processes_go_on_where_the_last_were_killed(
    tiny_run: LoadedRun,
    corpus_dir: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
    then: int,
) -> None:
    recording = tmp_path / "recording"

    def call() -> None:
        record_tiny(tiny_run, corpus_dir, recording)

    made = [number for rank in range(first) for number in record_as(rank, first, monkeypatch, call, limit=2)]
    assert len(finished_parts(recording)) == len(made) > 0
    for rank in range(then):
        made += record_as(rank, then, monkeypatch, call)
    assert sorted(made) == list(range(len(read_info(whole).parts)))  # every part once
    monkeypatch.setattr(record_module, "run_windows", None)  # all parts are there: calling it would fail
    call()
    assert_same_recording(recording, whole)


def test_each_process_records_and_lists_its_own_parts(
    tiny_run: LoadedRun, corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in range(3):
        made = record_as(rank, 3, monkeypatch, lambda: record_tiny(tiny_run, corpus_dir, tmp_path / "recording"))
        assert [number % 3 for number in made] == [rank] * len(made)
        listed = read_json(tmp_path / "recording" / f"progress-{rank:05d}.json")["parts"]
        assert [part["name"] for part in listed] == [f"part-{number:06d}.parquet" for number in made]


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = processes()
    alone.wait()  # for nobody
    assert (alone.rank, alone.world_size, alone.is_main) == (0, 1, True)
    assert not ALONE._replace(rank=1, world_size=2).is_main


def test_two_processes_record_the_same_bytes_as_one(
    tiny_run: LoadedRun, corpus_dir: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "recording"
    words = ["record", tiny_run.path, "--corpus", corpus_dir / "valid.jsonl", "--out", out]
    words += ["--part-tokens", "200", "--device", "cpu"]
    done = run_group([str(word) for word in words], tmp_path, 2, {})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == read_info(whole).rows  # one of them speaks
    assert_same_recording(out, whole)


def test_a_model_without_a_layer_that_selects_is_refused(ffn_run: LoadedRun, corpus_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layer of this model selects"):
        record(OwnRun(ffn_run), corpus_dir / "valid.jsonl", tmp_path / "recording")
    assert not (tmp_path / "recording").exists()
