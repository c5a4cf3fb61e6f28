"""Neurons of feed-forward layers are found by shape and recorded by the size of their activation."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from memscope.base.errors import InputError
from memscope.record.rows import RowCollector
from memscope.recording.info import read_info
from memscope.run.adapters.modules import ModuleSubject
from memscope.run.adapters.neurons import find_outputs, folder_neurons, model_neurons, neuron_sites, run_neurons
from memscope.run.subject import Subject, evaluating, run_windows
from memscope.testing.recordings import word_texts, write_tokenizer
from memscope.text.corpus import document_windows, pack_corpus
from tests.conftest import tiny_config, untrained_run
from tests.run.adapters.small import DIM, VOCAB, WINDOW, Small, seeded, small_tokenizer

TOKENS = torch.randint(3, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.ones(2, 7, dtype=torch.bool)
SIZES = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def hugging_face(kind: str, **more: float) -> nn.Module:
    return seeded(lambda: AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **more)))


@pytest.fixture(scope="module")
def ffn(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    config = tiny_config(corpus_dir, model={"block": "ffn"})
    return untrained_run(config, tmp_path_factory.mktemp("runs") / "ffn")


def test_neurons_of_a_run_are_the_largest_of_its_swiglu_and_add_their_columns(ffn, corpus_dir: Path) -> None:
    width = ffn.config.model.ffn_dim
    subject = run_neurons(ffn, width)  # all of them: then score, sign and column give the output back
    assert isinstance(subject, Subject)
    assert [site.layer for site in subject.sites] == [0, 1]
    assert [site.first_entry for site in subject.sites] == [0, width]
    tokens = torch.randint(3, 320, (2, 9), generator=torch.Generator().manual_seed(0))
    with subject.capture() as captured:
        watched = subject.logits(tokens)
    assert torch.equal(watched, ffn.model(tokens))
    _, cache = ffn.model.run_with_cache(tokens, names_filter=lambda name: "resid_mid" in name or "mlp_out" in name)
    for layer, seen in captured.items():
        block = ffn.model.blocks[layer]
        normed = block.ffn_norm(cache[f"blocks.{layer}.hook_resid_mid"])
        hidden = F.silu(block.ffn.w1(normed)) * block.ffn.w3(normed)
        local = seen.indices - layer * width
        torch.testing.assert_close(seen.gate_scores, hidden.abs().sort(-1, descending=True).values)
        sign = hidden.gather(-1, local).sign()
        values = subject.values(layer, seen.indices.flatten()).unflatten(0, seen.indices.shape)
        output = ((seen.gate_scores * sign)[..., None] * values).sum(2)
        torch.testing.assert_close(output, cache[f"blocks.{layer}.hook_mlp_out"], atol=1e-6, rtol=1e-5)
    best = run_neurons(ffn, 3)
    with best.capture() as few:
        best.logits(tokens)
    assert torch.equal(few[1].indices, captured[1].indices[..., :3])


def test_neurons_beside_a_memory_are_recorded_too(corpus_dir: Path, tmp_path: Path) -> None:
    run = untrained_run(tiny_config(corpus_dir, model={"block": ["memory", "both"]}), tmp_path / "both")
    [site] = run_neurons(run, 3).sites
    assert (site.layer, site.module, site.kind) == (1, "blocks.1.ffn.w2", "neurons")


def test_rows_of_neurons_hold_sizes_and_no_reads(ffn, corpus_dir: Path) -> None:
    subject = run_neurons(ffn, 5)
    corpus = pack_corpus(corpus_dir / "valid.jsonl", ffn.tokenizer, corpus_dir / "cache")
    windows = document_windows(corpus, subject.window, 300)
    rows = RowCollector(corpus, subject.sites).collect(
        windows, run_windows(subject, corpus, windows, ffn.tokenizer.pad)
    )
    assert rows.indices.shape == (300, 2, 5)
    assert rows.read is None and rows.margin is None
    assert (rows.gate >= 0).all() and (rows.gate[..., :-1] >= rows.gate[..., 1:]).all()


def test_a_memory_without_feed_forward_layers_has_no_neurons(corpus_dir: Path, tmp_path: Path) -> None:
    run = untrained_run(tiny_config(corpus_dir), tmp_path / "memory")
    with pytest.raises(InputError, match="memory: has no feed-forward layer"):
        run_neurons(run)


@pytest.mark.parametrize(
    ("kind", "more", "path"),
    [
        ("llama", {}, "model.layers.{}.mlp.down_proj"),
        ("qwen3", {"head_dim": 64}, "model.layers.{}.mlp.down_proj"),  # its attention output reads 256 numbers
        ("phi3", {}, "model.layers.{}.mlp.down_proj"),  # gate and up are one matrix
        ("gpt2", {}, "transformer.h.{}.mlp.c_proj"),  # of Conv1D
        ("opt", {"ffn_dim": 128, "word_embed_proj_dim": 32}, "model.decoder.layers.{}.fc2"),
        ("gpt_neox", {}, "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    ],
)
def test_feed_forward_layers_of_transformers_are_found_and_give_their_output(
    kind: str, more: dict[str, int], path: str, tmp_path: Path
) -> None:
    model = hugging_face(kind, **more)
    assert find_outputs(model, 32) == [path.format(layer) for layer in (0, 1)]
    [width] = {site.entries for site in neuron_sites(model, 32, 1)}
    subject = ModuleSubject(
        model, small_tokenizer(tmp_path), neuron_sites(model, 32, width), WINDOW, lambda t, m: model(t).logits
    )
    last = model.get_submodule(path.format(1))
    calls: list[tuple[Tensor, Tensor]] = []
    last.register_forward_hook(lambda module, args, output: calls.append((args[0], output)))
    with subject.capture() as captured:
        watched = subject.logits(TOKENS, MASK)
    assert torch.equal(watched, model(TOKENS).logits)
    hidden, output = (one.reshape(2, 7, -1) for one in calls[0])
    local = captured[1].indices - width
    values = subject.values(1, captured[1].indices.flatten()).unflatten(0, local.shape)
    signed = captured[1].gate_scores * hidden.gather(-1, local).sign()
    bias = 0.0 if getattr(last, "bias", None) is None else last.bias
    torch.testing.assert_close((signed[..., None] * values).sum(2) + bias, output, atol=1e-5, rtol=1e-5)


def test_a_model_without_feed_forward_layers_is_refused_with_its_modules() -> None:
    model = hugging_face("mamba2", head_dim=16, num_heads=4)
    with pytest.raises(InputError, match=r"no feed-forward layer found; .* backbone\.layers\.0\.mixer\.in_proj"):
        neuron_sites(model, 32)
    with pytest.raises(InputError, match=r"down_proj: has 96 neurons, 97 are asked for"):
        neuron_sites(hugging_face("llama"), 32, 97)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, 24), nn.Linear(24, DIM)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(x).relu())
        return out


def test_rewriting_neurons_replays_ablates_and_forces(tmp_path: Path) -> None:
    model = seeded(lambda: Small(FeedForward()))
    subject = ModuleSubject(model, small_tokenizer(tmp_path), neuron_sites(model, DIM, 4), WINDOW)
    inputs: list[Tensor] = []
    model.layers[0].down.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    plain = subject.logits(TOKENS)
    with subject.rewrite(lambda layer, indices, sizes: (indices, sizes)):
        assert torch.equal(subject.logits(TOKENS), plain)
    with subject.rewrite(lambda layer, indices, sizes: (torch.full_like(indices, -1), None)):
        subject.logits(TOKENS)
    best = inputs[0].topk(4).indices
    assert torch.equal(inputs[2], inputs[0].scatter(-1, best, 0.0))
    with subject.rewrite(lambda layer, indices, sizes: (indices.where(indices != indices[..., :1], 5), sizes * 0 + 2)):
        subject.logits(TOKENS)
    new = best.where(best != best[..., :1], 5)
    changed = inputs[0].scatter(-1, best, 0.0).scatter(-1, new, 2.0)
    several = (new == 5).sum(-1) > 1  # neuron 5 was among the four already
    assert torch.equal(inputs[3][~several], changed[~several]) and not several.all()


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama and its tokenizer, as ``save_pretrained`` writes them."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    model = hugging_face("llama")
    model.save_pretrained(folder)
    write_tokenizer(folder / "words.json", word_texts(50))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "words.json"), **names).save_pretrained(folder)
    return folder


def test_neurons_of_a_hugging_face_folder_are_recorded_with_a_lens(llama_folder: Path) -> None:
    subject = folder_neurons(llama_folder, 5)
    assert isinstance(subject, Subject)
    assert [(site.layer, site.entries, site.has) for site in subject.sites] == [
        (layer, 96, ("scores", "lens")) for layer in (0, 1)
    ]
    model = subject.model
    hidden = model.model(input_ids=TOKENS).last_hidden_state
    logits = subject.logits(TOKENS)
    torch.testing.assert_close(model.lm_head(hidden), logits)
    resid = torch.randn(3, 32)
    torch.testing.assert_close(subject.unembed(resid), model.lm_head(model.model.norm(resid)))


def test_the_command_records_neurons_of_runs_and_of_hugging_face_folders(
    cli, ffn, llama_folder: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    corpus = corpus_dir / "valid.jsonl"
    words = tmp_path / "words.jsonl"
    words.write_text('{"text": " w3 w4 w9 w3 w12"}\n' * 20)
    refused = cli("record", ffn.path, "--corpus", corpus, "--out", tmp_path / "none")
    assert refused.code == 2 and "--neurons 32 records its neurons" in refused.err
    for model, text, name in ((ffn.path, corpus, "run"), (llama_folder, words, "llama")):
        done = cli("record", model, "--corpus", text, "--out", tmp_path / name, "--neurons", 6, "--tokens", 400)
        assert done.code == 0, done.err
        info = read_info(tmp_path / name)
        assert info.complete and {(site.kind, site.selected) for site in info.sites} == {("neurons", 6)}
        assert info.label(info.sites[1].first_entry + 7) == "layer 1, neuron 7"
        decoded = pq.read_table(tmp_path / name / "decodings.parquet")
        assert decoded["l0_top"].null_count < info.knowledge_num
    several = cli(
        "record", ffn.path, "--corpus", corpus, "--out", tmp_path / "all", "--neurons", 6, "--checkpoints", "all"
    )
    assert several.code == 2 and "leave --checkpoints out" in several.err


@pytest.mark.parametrize(
    ("kind", "more", "scale"),
    [
        ("llama", {}, 1.0),
        ("granite", {"residual_multiplier": 0.22}, 0.22),
        ("olmo2", {}, None),  # a norm follows
        ("gemma2", {"head_dim": 8}, None),
    ],
)
def test_neurons_behind_a_scale_are_scaled_and_those_behind_a_norm_have_no_lens(
    kind: str, more: dict[str, float], scale: float | None, tmp_path: Path
) -> None:
    model = hugging_face(kind, **more)
    subject = model_neurons(model, small_tokenizer(tmp_path), 4)
    assert all(("lens" in site.has) == (scale is not None) for site in subject.sites)
    if scale is None:
        return
    neuron, layer = 7, 1
    with evaluating(model):
        streams: list[Tensor] = []
        block = model.get_submodule(f"model.layers.{layer}")
        block.register_forward_hook(lambda module, args, output: streams.append(output))
        subject.logits(TOKENS)
        block.get_submodule("mlp.down_proj").register_forward_pre_hook(
            lambda module, args: (args[0].index_add(-1, torch.tensor([neuron]), torch.ones(2, 7, 1)),)
        )
        subject.logits(TOKENS)
    entry = subject.sites[layer].first_entry + neuron
    value = subject.values(layer, torch.tensor([entry]))[0]
    torch.testing.assert_close((streams[1] - streams[0])[0, 0], value, atol=1e-6, rtol=1e-4)
    column = model.get_submodule(f"model.layers.{layer}.mlp.down_proj").weight[:, neuron]
    torch.testing.assert_close(value, scale * column.detach(), atol=1e-6, rtol=1e-4)
