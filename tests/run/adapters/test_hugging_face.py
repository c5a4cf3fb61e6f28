"""Folders of save_pretrained, single models and TransformerLens bridges are opened; what cannot be is one line."""

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memscope.base.errors import InputError
from memscope.record.trace import trace_text
from memscope.run.adapters.experts import HuggingFaceExperts
from memscope.run.adapters.load import open_subject
from memscope.run.adapters.module_site import hash_weights, layer_numbers
from memscope.run.subject import run_windows
from memscope.text.corpus import document_windows, pack_corpus
from tests.run.adapters.families import EXPERTS, TOP, VOCAB, WIDTH, WINDOW, make_model, make_tokenizer

pytestmark = pytest.mark.slow

TEXT = " ".join(f"w{n}" for n in range(3, 43))
TOKENS = torch.arange(3, 43).view(2, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "olmoe"
    make_model("olmoe").save_pretrained(path)  # type: ignore[operator]
    make_tokenizer().save_pretrained(path)
    return path


def selected(subject: HuggingFaceExperts, tokens: Tensor = TOKENS) -> dict[int, tuple[Tensor, Tensor | None]]:
    with subject.capture() as captured:
        subject.logits(tokens)
    return {layer: (one.indices, one.gate_scores) for layer, one in captured.items()}


def test_a_folder_is_opened_as_the_model_in_it(folder: Path, tmp_path: Path) -> None:
    subject = open_subject(folder)
    assert isinstance(subject, HuggingFaceExperts)
    assert (subject.name, subject.dtype, subject.window) == (str(folder), "float32", WINDOW)
    loaded = HuggingFaceExperts(make_model("olmoe"), make_tokenizer())
    found, expected = selected(subject), selected(loaded)
    assert found.keys() == expected.keys() == {0, 1}
    assert all(torch.equal(a, b) for layer in found for a, b in zip(found[layer], expected[layer], strict=True))
    assert subject.sites == loaded.sites
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": TEXT + " " + TEXT}) + "\n")
    corpus = pack_corpus(tmp_path / "corpus.jsonl", subject.tokenizer, tmp_path / "cache")
    assert corpus.tokens.tolist() == [1, *range(3, 43), *range(3, 43)]  # as its tokenizer opens a text
    done = list(run_windows(subject, corpus, document_windows(corpus, subject.window), subject.tokenizer.pad))
    assert [one.batch.tokens.shape for one in done] == [(2, WINDOW)]
    trace = trace_text(subject, TEXT)
    assert trace.trace.tokens["token"].tolist() == [1, *range(3, 43)]


def test_the_fingerprint_is_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert open_subject(copy).fingerprint == open_subject(folder).fingerprint
    make_model("olmoe", rms_norm_eps=0.1).save_pretrained(copy, max_shard_size="40KB")  # type: ignore[operator]
    (copy / "model.safetensors").unlink()
    sharded = open_subject(copy).fingerprint
    assert sharded != open_subject(folder).fingerprint
    model = make_model("olmoe")
    before = hash_weights(model)
    assert before == hash_weights(make_model("olmoe")) == HuggingFaceExperts(model, make_tokenizer()).fingerprint
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[0] += 1e-3
    assert hash_weights(model) != before


def test_windows_are_as_asked(folder: Path) -> None:
    assert open_subject(folder, window=16).window == 16
    with pytest.raises(InputError, match=f"window of 4096 tokens was asked for, the model takes {WINDOW}"):
        open_subject(folder, window=4096)
    long = make_model("olmoe", max_position_embeddings=8192)
    assert HuggingFaceExperts(long, make_tokenizer()).window == 1024


def test_precision_and_mode_of_a_loaded_model_stay() -> None:
    model = make_model("olmoe").to(torch.bfloat16)
    model.train()
    subject = HuggingFaceExperts(model, make_tokenizer())
    assert (
        subject.dtype == "bfloat16" and model.training and all(site.has == ("scores", "lens") for site in subject.sites)
    )
    for indices, weights in selected(subject).values():
        assert weights is not None and weights.dtype == torch.float32
        assert torch.equal(weights, weights.bfloat16().float())
        assert (weights[..., :-1] >= weights[..., 1:]).all() and indices.max() < 2 * EXPERTS


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def change(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def unreadable(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def headless(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle": (pickled, "no model.safetensors; its weights are pickled"),
    "no weights": (without("model.safetensors"), "no model.safetensors; copy the model again"),
    "damaged weights": (truncated, "its model cannot be loaded"),
    "a weight less": (headless, "1 weights of the model are missing, model.norm.weight first"),
    "unknown": (change("config.json", model_type="unheard_of"), "cannot be loaded .*unheard_of"),
    "own code": (
        change(
            "config.json",
            model_type="unheard_of",
            auto_map={"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.C"},
        ),
        "its model cannot be loaded .it needs code of its own, which is not run",
    ),
    "no tokenizer": (without("tokenizer.json"), "its tokenizer cannot be loaded"),
    "no JSON": (unreadable, "its model cannot be loaded"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_what_cannot_be_loaded_is_one_line(damage: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    act, message = BROKEN[damage]
    act(copy)
    with pytest.raises(InputError, match=message) as caught:
        open_subject(copy)
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


@pytest.mark.parametrize("there", ["", "4.57.1"])
def test_transformers_must_be_there_and_new(there: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if not there:
            raise metadata.PackageNotFoundError(name)
        return there

    monkeypatch.setattr("memscope.run.adapters.hugging_face.version", version)
    found = f"transformers {there} is" if there else "none is"
    with pytest.raises(InputError, match=f"needs transformers 5 or newer, {found} installed; pip install"):
        open_subject(folder)


def test_models_without_experts_are_refused_by_what_they_have() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=VOCAB)).eval()
    with pytest.raises(InputError, match=r"LlamaForCausalLM: no experts found; .* among .*LlamaAttention.*LlamaMLP"):
        HuggingFaceExperts(llama, make_tokenizer())
    with pytest.raises(InputError, match="Linear: not a model of the transformers library"):
        HuggingFaceExperts(nn.Linear(1, 1), make_tokenizer())


@pytest.mark.parametrize("kind", ["jetmoe", "doge"])
def test_models_whose_tokens_have_no_selection_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match=f"{kind} cannot be recorded: its "):
        HuggingFaceExperts(make_model(kind), make_tokenizer())


def test_layers_have_the_numbers_of_their_blocks() -> None:
    assert layer_numbers(["model.layers.1.mlp.experts", "model.layers.5.mlp.experts"]) == [1, 5]
    assert layer_numbers(["layers.0.a.experts", "layers.0.b.experts", "layers.1.experts"]) == [0, 1, 2]
    assert layer_numbers(["first.experts", "second.experts"]) == [0, 1]


def test_a_transformer_lens_bridge_is_recorded_as_the_plain_model(folder: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    bridged = HuggingFaceExperts(bridge, make_tokenizer())
    plain = HuggingFaceExperts(make_model("olmoe"), make_tokenizer())
    shape = [(site.layer, site.entries, site.selected, site.has) for site in plain.sites]
    assert [(site.layer, site.entries, site.selected, site.has) for site in bridged.sites] == shape
    found, expected = selected(bridged), selected(plain)
    for layer, (indices, weights) in expected.items():
        assert torch.equal(found[layer][0], indices)
        torch.testing.assert_close(found[layer][1], weights)


BRIDGED = (
    *("afmoe", "deepseek_v2", "deepseek_v3", "deepseek_v4", "ernie4_5_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite"),
    *("gpt_oss", "granitemoe", "jamba", "laguna", "lfm2_moe", "llama4_text", "minimax_m2", "mixtral", "nemotron_h"),
    *("qwen2_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next"),
)
"""Families beside OLMoE that TransformerLens 4.3 bridges and whose tiny models can be made here."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", BRIDGED)
def test_every_family_that_is_bridged_selects_the_same(kind: str, tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    model: Any = make_model(kind)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu", dtype=torch.float32)
    bridged, plain = HuggingFaceExperts(bridge, make_tokenizer()), HuggingFaceExperts(model, make_tokenizer())
    assert [(site.layer, site.entries, site.has) for site in bridged.sites] == [
        (site.layer, site.entries, site.has) for site in plain.sites
    ]
    found, expected = selected(bridged), selected(plain)
    assert found.keys() == expected.keys()
    for layer, (indices, weights) in expected.items():
        assert torch.equal(found[layer][0].sort(-1).values, indices.sort(-1).values)
        torch.testing.assert_close(found[layer][1], weights, atol=1e-6, rtol=1e-4)


def test_limited_groups_and_a_correction_bias_are_in_what_is_recorded() -> None:
    """DeepSeek-V3 (arXiv 2412.19437), computed here anew: the router's logits alone would say something else."""
    groups, kept, scale = 4, 2, 2.5
    model = make_model("deepseek_v3", n_group=groups, topk_group=kept, routed_scaling_factor=scale, norm_topk_prob=True)
    subject = HuggingFaceExperts(model, make_tokenizer())
    [path, *_] = [name for name, _ in model.named_modules() if name.endswith("0.mlp.gate")]
    gate = model.get_submodule(path)
    gate.e_score_correction_bias.normal_(std=0.3, generator=torch.Generator().manual_seed(5))  # type: ignore[operator, union-attr]
    inputs: list[Tensor] = []
    handle = gate.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    found, weights = selected(subject)[0]
    handle.remove()
    assert weights is not None
    bias = np.asarray(gate.e_score_correction_bias)
    scores = 1 / (1 + np.exp(-inputs[0].reshape(-1, WIDTH).double().numpy() @ gate.weight.detach().double().numpy().T))  # type: ignore[operator, union-attr]
    differ = 0
    for token, own in enumerate(scores):
        by_group = (own + bias).reshape(groups, -1)
        best = np.argsort(-np.sort(by_group)[:, -2:].sum(1))[:kept]
        allowed = np.flatnonzero(np.isin(np.arange(EXPERTS) // (EXPERTS // groups), best))
        chosen = allowed[np.argsort(-(own + bias)[allowed])[:TOP]]
        chosen = chosen[np.argsort(-own[chosen])]
        assert found.flatten(0, 1)[token].tolist() == chosen.tolist()
        np.testing.assert_allclose(weights.flatten(0, 1)[token], scale * own[chosen] / own[chosen].sum(), rtol=1e-4)
        differ += set(chosen) != set(np.argsort(-own)[:TOP])
    assert differ > len(scores) / 10
