"""Exports to delphi and Neuronpedia against naive loops over the token-major parts."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from memscope.base.errors import InputError
from memscope.base.printable import printable
from memscope.export import delphi as delphi_module
from memscope.export import interchange as interchange_module
from memscope.export import neuronpedia as neuronpedia_module
from memscope.export.delphi import export_delphi
from memscope.export.neuronpedia import export_neuronpedia
from memscope.export.neuronpedia_rows import activation_bin
from memscope.query.recording import Recording
from memscope.record.loop import record
from memscope.recording.part_reader import read_part
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun

pytestmark = pytest.mark.slow

NEURON_COLUMNS = """
    modelId layer index creatorId sourceSetName maxActApprox hasVector vector topkCosSimIndices topkCosSimValues
    neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices
    correlated_neurons_pearson correlated_neurons_l1 correlated_features_indices correlated_features_pearson
    correlated_features_l1 neg_str neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights
    freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values decoder_weights_dist
"""
ACTIVATION_COLUMNS = """
    modelId layer index id creatorId tokens values maxValue maxValueTokenIndex minValue qualifyingTokenIndex
    binMin binMax binContains
"""


class Truth(NamedTuple):
    """What was recorded, read slowly."""

    tokens: np.ndarray
    """``[row]``."""
    gate: np.ndarray
    """Gate score of every entry, summed over gate heads, 0 where not selected, ``[row, layer, N]``."""
    selected: np.ndarray
    """How often it was selected, likewise."""


def read_truth(recording: Recording) -> Truth:
    tokens, gates, counts = [], [], []
    for part in recording.info.parts:
        rows = read_part(recording.path, part, recording.info)
        for token, indices, scores in zip(rows.token, rows.indices, rows.gate, strict=True):
            gate = np.zeros((len(recording.info.layers), recording.info.knowledge_num), np.float32)
            count = np.zeros(gate.shape, int)
            for layer in range(len(gate)):
                for entry, score in zip(indices[layer], scores[layer], strict=True):
                    gate[layer, entry] += score
                    count[layer, entry] += 1
            tokens.append(int(token))
            gates.append(gate.astype(np.float16))
            counts.append(count)
    return Truth(np.array(tokens), np.array(gates), np.array(counts))


@pytest.fixture(scope="module")
def truth(tiny_recording: Recording) -> Truth:
    return read_truth(tiny_recording)


@pytest.fixture(scope="module")
def two_heads(slot_run: LoadedRun, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A recording in which two gate heads often select the same entry for a token."""
    path = tmp_path_factory.mktemp("recordings") / "two-heads"
    record(OwnRun(slot_run), corpus_dir / "valid.jsonl", path)
    return Recording(path)


def pieces(recording: Recording, length: int) -> list[range]:
    """Rows of every sequence: documents cut every ``length`` tokens."""
    found = []
    for document in recording.documents.itertuples():
        past = document.first_row + document.rows
        found += [range(start, min(start + length, past)) for start in range(document.first_row, past, length)]
    return found


def dense_gate(module: Path, n_entries: int) -> np.ndarray:
    """All shards of a layer as ``[sequence, position, entry]``; every location occurs once."""
    shards = {path: load_file(path) for path in module.glob("*.safetensors")}
    shape = next(iter(shards.values()))["tokens"].shape
    dense = np.zeros((*shape, n_entries), np.float16)
    for path, shard in shards.items():
        first = int(path.stem.split("_")[0])
        sequence, position, entry = shard["locations"].astype(int).T
        assert (dense[sequence, position, entry + first] == 0).all()
        assert len(np.unique(shard["locations"], axis=0)) == len(sequence)
        dense[sequence, position, entry + first] = shard["activations"]
    return dense


def lines(folder: Path) -> list[dict[str, Any]]:
    """All lines of the batches in a folder."""
    texts = [gzip.decompress(path.read_bytes()).decode() for path in sorted(folder.glob("*.gz"))]
    return [json.loads(line) for text in texts for line in text.split("\n") if line]


@pytest.mark.parametrize("sequence_tokens", [None, 32, 20])
def test_delphi_shards_hold_every_gate_score(
    tiny_recording: Recording, truth: Truth, tmp_path: Path, sequence_tokens: int | None
):
    info = tiny_recording.info
    result = export_delphi(tiny_recording, tmp_path / "out", width_splits=3, sequence_tokens=sequence_tokens)
    sequences = pieces(tiny_recording, sequence_tokens or info.window)
    assert result.sequences == len(sequences)
    found = 0
    for axis, layer in enumerate(info.layers):
        dense = dense_gate(result.latents / f"blocks.{layer}.memory", info.knowledge_num)
        assert dense.shape == (len(sequences), result.length, info.knowledge_num)
        for sequence, rows in zip(dense, sequences, strict=True):
            assert (sequence[: len(rows)] == truth.gate[rows.start : rows.stop, axis]).all()
            assert not sequence[len(rows) :].any()
        found += np.count_nonzero(dense)
    assert found == result.activations == np.count_nonzero(truth.gate)


def test_delphi_sequences_are_padded_documents(tiny_recording: Recording, truth: Truth, tmp_path: Path):
    result = export_delphi(tiny_recording, tmp_path / "out", sequence_tokens=50)
    assert result.length == 64  # whole examples of 32
    sequences = pieces(tiny_recording, 50)
    for path in result.latents.rglob("*.safetensors"):
        tokens = load_file(path)["tokens"]
        for sequence, rows in zip(tokens, sequences, strict=True):
            assert sequence[: len(rows)].tolist() == truth.tokens[rows.start : rows.stop].tolist()
            assert (sequence[len(rows) :] == tiny_recording.tokenizer.pad).all()
    assert result.padding == pytest.approx(1 - len(truth.tokens) / (64 * len(sequences)))


def test_delphi_shards_split_the_entries_without_gaps(tiny_recording: Recording, tmp_path: Path):
    n = tiny_recording.info.knowledge_num
    result = export_delphi(tiny_recording, tmp_path / "out", width_splits=5)
    modules = sorted(path.name for path in result.latents.iterdir())
    assert modules == [f"blocks.{layer}.memory" for layer in tiny_recording.info.layers]  # delphi lists this folder
    for module in modules:
        ranges = sorted(
            tuple(map(int, path.stem.split("_"))) for path in (result.latents / module).glob("*.safetensors")
        )
        assert [first for first, _ in ranges] == [0, *(last + 1 for _, last in ranges[:-1])]
        assert (len(ranges), ranges[-1][1]) == (5, n - 1)
        config = json.loads((result.latents / module / "config.json").read_text())
        assert (config["cache_ctx_len"], config["n_splits"], config["model_name"]) == (result.length, 5, "tiny")
        assert config["n_tokens"] == tiny_recording.info.rows


def test_delphi_locations_are_as_narrow_as_they_can_be(
    tiny_recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    narrow = export_delphi(tiny_recording, tmp_path / "narrow").latents
    monkeypatch.setattr(delphi_module, "_NARROW", 8)
    wide = export_delphi(tiny_recording, tmp_path / "wide").latents
    for path in narrow.rglob("*.safetensors"):
        of_16, of_32 = load_file(path), load_file(wide / path.relative_to(narrow))
        assert (of_16["locations"].dtype, of_32["locations"].dtype) == (np.uint16, np.uint32)
        assert (of_16["locations"] == of_32["locations"]).all()
        assert of_16["activations"].dtype == np.float16


def test_delphi_shards_are_filled_run_by_run(
    tiny_recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = export_delphi(tiny_recording, tmp_path / "whole").latents
    monkeypatch.setattr(interchange_module, "MOST_SELECTIONS", 100)
    in_runs = export_delphi(tiny_recording, tmp_path / "runs").latents
    for path in whole.rglob("*.safetensors"):
        assert (in_runs / path.relative_to(whole)).read_bytes() == path.read_bytes()
        locations = load_file(path)["locations"][:, [2, 0, 1]].tolist()
        assert locations == sorted(locations)  # by entry, then token: delphi needs the tokens of an entry to rise


def test_gate_heads_that_share_an_entry_are_summed(two_heads: Recording, tmp_path: Path):
    truth = read_truth(two_heads)
    assert truth.selected.max() == 2
    result = export_delphi(two_heads, tmp_path / "delphi")
    for axis, layer in enumerate(two_heads.info.layers):
        dense = dense_gate(result.latents / f"blocks.{layer}.memory", two_heads.info.knowledge_num)
        flat = np.concatenate(
            [s[: len(rows)] for s, rows in zip(dense, pieces(two_heads, two_heads.info.window), strict=True)]
        )
        assert (flat == truth.gate[:, axis]).all()
    for source in export_neuronpedia(two_heads, tmp_path / "neuronpedia").folder.iterdir():
        for feature in lines(source / "features"):
            gate = truth.gate[:, two_heads.info.layers.index(int(source.name[0])), int(feature["index"])]
            assert feature["maxActApprox"] == pytest.approx(gate.max(), rel=1e-4)
            assert sum(feature["freq_hist_data_bar_heights"]) == np.count_nonzero(gate)


def test_neuronpedia_features_count_what_was_recorded(tiny_recording: Recording, truth: Truth, tmp_path: Path):
    info = tiny_recording.info
    result = export_neuronpedia(tiny_recording, tmp_path / "out", limit=None)
    texts, seen = [printable(text) for text in tiny_recording.tokenizer.token_texts], set()
    for axis, layer in enumerate(info.layers):
        for feature in lines(result.folder / f"{layer}-memory" / "features"):
            assert sorted(feature) == sorted(NEURON_COLUMNS.split())
            entry = int(feature["index"])
            seen.add((axis, entry))
            gate = truth.gate[:, axis, entry]
            active = gate[gate > 0].astype(float)
            assert feature["layer"] == f"{layer}-memory"
            assert feature["maxActApprox"] == pytest.approx(gate.max(), rel=1e-4)
            assert feature["frac_nonzero"] == pytest.approx(len(active) / len(gate), rel=1e-4)
            heights, centres = feature["freq_hist_data_bar_heights"], feature["freq_hist_data_bar_values"]
            assert sum(heights) == len(active)
            if len(set(active)) > 1:
                width = (active.max() - active.min()) / 50
                assert centres == pytest.approx([active.min() + (bar + 0.5) * width for bar in range(50)], rel=1e-4)
                assert (heights[0], heights[-1]) == (
                    (active < active.min() + width).sum(),
                    (active >= active.max() - width).sum(),
                )
            ids = tiny_recording.sql("SELECT * FROM decodings WHERE entry = ?", [entry]).iloc[0]
            assert feature["pos_str"] == [texts[i] for i in ids[f"l{layer}_top"]]
            assert feature["neg_str"] == [texts[i] for i in ids[f"l{layer}_bottom"]]
            for name, end in (("pos", "top"), ("neg", "bottom")):  # Neuronpedia's mark where no logit was recorded
                logits = ids.get(f"l{layer}_{end}_logits", [-10000.0] * len(feature[f"{name}_str"]))
                assert feature[f"{name}_values"] == pytest.approx(list(logits), rel=1e-4)
    assert seen == set(zip(*np.nonzero(truth.selected.sum(0)), strict=True))
    assert result.features == len(seen)


def test_neuronpedia_activations_are_the_recorded_contexts(tiny_recording: Recording, truth: Truth, tmp_path: Path):
    info = tiny_recording.info
    result = export_neuronpedia(tiny_recording, tmp_path / "out", limit=5)
    windows = pieces(tiny_recording, info.window)
    texts, identities, found = [printable(text) for text in tiny_recording.tokenizer.token_texts], [], 0
    for axis, layer in enumerate(info.layers):
        activations = lines(result.folder / f"{layer}-memory" / "activations")
        contexts = tiny_recording.sql("SELECT * FROM contexts WHERE layer = ? ORDER BY entry, kind DESC, rank", [layer])
        contexts = contexts[contexts["entry"].isin({int(a["index"]) for a in activations})]
        for activation, context in zip(activations, contexts.itertuples(), strict=True):
            assert sorted(activation) == sorted(ACTIVATION_COLUMNS.split())
            assert activation["index"] == str(context.entry)
            start = context.row - activation["qualifyingTokenIndex"]
            rows = range(start, start + len(activation["tokens"]))
            window = next(window for window in windows if context.row in window)
            assert window.start <= rows.start and rows.stop <= window.stop
            assert len(rows) == min(128, len(window))
            assert activation["tokens"] == [texts[i] for i in truth.tokens[rows.start : rows.stop]]
            gate = truth.gate[rows.start : rows.stop, axis, context.entry].astype(float)
            assert activation["values"] == pytest.approx(gate.tolist(), rel=1e-4)
            assert activation["maxValueTokenIndex"] == int(gate.argmax())
            assert (activation["maxValue"], activation["minValue"]) == pytest.approx((gate.max(), gate.min()), rel=1e-4)
            own = activation["values"][activation["qualifyingTokenIndex"]]
            assert own == pytest.approx(context.gate, rel=1e-3)
            if context.kind == "top":
                assert (activation["binMin"], activation["binContains"]) == (-1, None)
            else:
                assert activation["binMin"] <= own <= activation["binMax"]
        identities += [activation["id"] for activation in activations]
        found += len(activations)
    assert result.activations == found == len(set(identities))


def test_activation_bins_are_fifths_of_the_activations():
    scores = np.array([10.0, 9, 8, 7, 6, 5, 4, 3, 2, 1])
    assert activation_bin(scores, 10.0, 100) == {"binMin": 9, "binMax": 10, "binContains": 0.02}
    assert activation_bin(scores, 7.0, 100) == {"binMin": 7, "binMax": 8, "binContains": 0.02}
    assert activation_bin(scores, 1.0, 100) == {"binMin": 1, "binMax": 2, "binContains": 0.02}
    assert activation_bin(np.array([3.0]), 3.0, 4) == {"binMin": 3, "binMax": 3, "binContains": 0.25}


def test_neuronpedia_takes_the_most_used_entries(tiny_recording: Recording, truth: Truth, tmp_path: Path):
    counts = truth.selected.sum((0, 1))
    result = export_neuronpedia(tiny_recording, tmp_path / "out", limit=3)
    found = {int(f["index"]) for source in result.folder.iterdir() for f in lines(source / "features")}
    assert sorted(counts[list(found)]) == sorted(counts)[-3:]
    chosen = export_neuronpedia(tiny_recording, tmp_path / "chosen", entries=sorted(found)[:2], limit=1).folder
    assert {f["index"] for s in chosen.iterdir() for f in lines(s / "features")} == set(map(str, sorted(found)[:2]))


def test_neuronpedia_explains_with_init_sentence_and_what_it_fires_on(tiny_recording: Recording, tmp_path: Path):
    result = export_neuronpedia(tiny_recording, tmp_path / "out", limit=None)
    words = tiny_recording.sql("SELECT entry, words FROM titles").set_index("entry")["words"].dropna()
    for source in result.folder.iterdir():
        entries = [int(feature["index"]) for feature in lines(source / "features")]
        sentences = tiny_recording.sentences(entries)
        expected = Counter(f"Init sentence: {s}" for s in sentences.values() if s is not None)
        expected += Counter(f"Words that set it apart: {words[entry]}" for entry in entries if entry in words.index)
        firing = tiny_recording.firing_of(entries)
        layer = int(source.name.split("-")[0])
        expected += Counter(f"Fires on: {text}" for text in firing[firing["layer"] == layer]["fires_on"])
        assert Counter(line["description"] for line in lines(source / "explanations")) == expected


def test_neuronpedia_text_is_data(tiny_recording: Recording, tmp_path: Path):
    row = tiny_recording.sql("SELECT entry, count(*) AS n FROM contexts WHERE row < 60 GROUP BY ALL ORDER BY n DESC")
    result = export_neuronpedia(tiny_recording, tmp_path / "out", entries=row["entry"].tolist())
    shown = ["".join(a["tokens"]) for source in result.folder.iterdir() for a in lines(source / "activations")]
    assert any("<script>window.hacked = true</script>" in text for text in shown)  # as it was, in JSON strings


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [(neuronpedia_module, "BATCH_ENTRIES", 7), (interchange_module, "MOST_SELECTIONS", 300)],
)
def test_neuronpedia_batches_hold_together_what_one_file_does(
    tiny_recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: int
):
    scattered = range(0, tiny_recording.info.knowledge_num, 2)
    whole = export_neuronpedia(tiny_recording, tmp_path / "whole", scattered).folder
    monkeypatch.setattr(module, name, value)
    cut = export_neuronpedia(tiny_recording, tmp_path / "cut", scattered).folder
    for table in ("features", "activations", "explanations"):
        for source in whole.iterdir():
            assert len(list((source / table).iterdir())) == 1
            in_order = sorted((cut / source.name / table).iterdir(), key=lambda path: int(path.name[6:].split(".")[0]))
            assert len(in_order) > 1
            text = b"".join(gzip.decompress(path.read_bytes()) for path in in_order)
            assert text == gzip.decompress((source / table / "batch-0.jsonl.gz").read_bytes())


def test_neuronpedia_metadata_names_what_features_belong_to(tiny_recording: Recording, tmp_path: Path):
    for source in export_neuronpedia(tiny_recording, tmp_path / "out").folder.iterdir():
        model, source_set, one = (
            json.loads((source / f"{name}.jsonl").read_text()) for name in ("model", "sourceset", "source")
        )
        assert (model["id"], model["layers"], model["dimension"]) == ("tiny", 2, 32)
        assert (source_set["modelId"], source_set["name"]) == ("tiny", "memory")
        assert (one["modelId"], one["id"], one["setName"]) == ("tiny", source.name, "memory")


@pytest.mark.parametrize("export", [export_delphi, export_neuronpedia])
def test_the_same_export_is_the_same_bytes(tiny_recording: Recording, tmp_path: Path, export: Any):
    first, second = tmp_path / "first", tmp_path / "second"
    export(tiny_recording, first)
    export(tiny_recording, second)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in files)


@pytest.mark.parametrize("export", [export_delphi, export_neuronpedia])
def test_exports_never_replace_a_folder(tiny_recording: Recording, tmp_path: Path, export: Any):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        export(tiny_recording, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("module", "broken", "export"),
    [(delphi_module, "save_file", export_delphi), (neuronpedia_module, "entry_rows", export_neuronpedia)],
)
def test_an_export_that_fails_leaves_nothing(
    tiny_recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, broken: str, export: Any
):
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, broken, full)
    with pytest.raises(OSError, match="no space"):
        export(tiny_recording, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_bad_numbers_are_refused(tiny_recording: Recording, tmp_path: Path):
    out, n = tmp_path / "out", tiny_recording.info.knowledge_num
    with pytest.raises(InputError, match=f"cannot split {n} entries into {n + 1} shards"):
        export_delphi(tiny_recording, out, width_splits=n + 1)
    with pytest.raises(InputError, match="sequence_tokens is 0"):
        export_delphi(tiny_recording, out, sequence_tokens=0)
    with pytest.raises(InputError, match=f"entry {n} does not exist"):
        export_neuronpedia(tiny_recording, out, entries=[0, n])
    with pytest.raises(InputError, match="limit is 0"):
        export_neuronpedia(tiny_recording, out, limit=0)
    with pytest.raises(InputError, match="none of these entries was selected"):
        export_neuronpedia(tiny_recording, out, entries=[])


def test_the_released_delphi_reads_what_was_recorded(tiny_recording: Recording, truth: Truth, tmp_path: Path):
    """Skips where ``eai-delphi`` is not installed: it wants vllm, bitsandbytes and faiss."""
    latents = pytest.importorskip("delphi.latents", exc_type=ImportError)
    config = pytest.importorskip("delphi.config")
    transformers = pytest.importorskip("transformers")
    result = export_delphi(tiny_recording, tmp_path / "out")
    dataset = latents.LatentDataset(
        result.latents,
        config.SamplerConfig(n_examples_train=2, n_examples_test=2, n_quantiles=1),
        config.ConstructorConfig(min_examples=1, n_non_activating=1),
        tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "out" / "tokenizer.json")),
    )
    sequences = pieces(tiny_recording, tiny_recording.info.window)
    assert dataset.tokens.shape == (len(sequences), result.length)
    seen = 0
    for buffer in dataset.buffers:
        axis = tiny_recording.info.layers.index(int(buffer.module_path.split(".")[1]))
        for data in buffer:
            dense = np.zeros(dataset.tokens.shape, np.float16)
            sequence, position, entry = data.activation_data.locations.numpy().T
            dense[sequence, position] = data.activation_data.activations.numpy()
            assert set(entry) == {data.latent.latent_index}
            flat = np.concatenate([s[: len(rows)] for s, rows in zip(dense, sequences, strict=True)])
            assert (flat == truth.gate[:, axis, data.latent.latent_index]).all()
            seen += 1
    assert seen == np.count_nonzero((truth.gate > 0).any(0))
    records = list(dataset)
    assert {(r.latent.module_name, r.latent.latent_index) for r in records}
    for record_ in records:
        axis = tiny_recording.info.layers.index(int(record_.latent.module_name.split(".")[1]))
        best = truth.gate[:, axis, record_.latent.latent_index].max()
        assert record_.max_activation == pytest.approx(float(best), rel=1e-3)
