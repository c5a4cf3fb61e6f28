"""A checkpoint of the founding experiment becomes a run with the same logits, or is refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memscope.base.errors import InputError
from memscope.config.load import Config, dump_config, validate_config
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import load_run
from memscope.run.minimind import import_minimind
from memscope.testing.recordings import word_texts, write_tokenizer

VOCAB, DIM, LAYERS, HEADS, KV, N, WIDTH, K = 40, 32, 2, 4, 2, 64, 16, 5


def config(**memory: Any) -> Config:
    shape = {"vocab_size": VOCAB, "dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV}
    bank = {"knowledge_num": N, "knowledge_dim": WIDTH, "num_selected": K, "query_dim": 12} | memory
    sections = {"model": shape | {"max_seq_len": 24}, "memory": bank, "train": {"dtype": "float32"}}
    return validate_config(sections, source="test")


def state_dict(seed: int = 0) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance) * (1 if len(shape) == 1 else shape[-1] ** -0.5)

    kv, head = KV * DIM // HEADS, 12
    weights = {"tok_embeddings.weight": draw(VOCAB, DIM), "norm.weight": 1 + 0.1 * draw(DIM)}
    weights["memory_bank"] = draw(N, WIDTH)
    for layer in range(LAYERS):
        block = {
            "attention.wq.weight": draw(DIM, DIM),
            "attention.wk.weight": draw(kv, DIM),
            "attention.wv.weight": draw(kv, DIM),
            "attention.wo.weight": draw(DIM, DIM),
            "attention_norm.weight": 1 + 0.1 * draw(DIM),
            "memory_norm.weight": 1 + 0.1 * draw(DIM),
            "memory_gate.gate_proj.weight": 3 * draw(head, DIM),
            "memory_gate.memory_keys": draw(N, head),
            "cross_attention_memory.q_proj.weight": 3 * draw(DIM, DIM),
            "cross_attention_memory.k_proj.weight": 3 * draw(DIM, WIDTH),
            "cross_attention_memory.v_proj.weight": 3 * draw(DIM, WIDTH),
            "cross_attention_memory.o_proj.weight": draw(DIM, DIM),
        }
        weights |= {f"layers.{layer}.{name}": tensor for name, tensor in block.items()}
    return weights | {"output.weight": weights["tok_embeddings.weight"]}


def founding_logits(weights: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The founding model as its record describes it, one token and one head after the other, in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = w["tok_embeddings.weight"][tokens]
    size, selected = DIM // HEADS, []

    def norm(values: Tensor, weight: Tensor) -> Tensor:
        return values / (values.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def rotate(values: Tensor, pos: int) -> Tensor:
        turned = values.clone()
        for pair in range(size // 2):
            angle = pos * 1e6 ** (-2 * pair / size)
            a, b = values[2 * pair], values[2 * pair + 1]
            turned[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            turned[2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
        return turned

    for layer in range(LAYERS):
        p = {name.removeprefix(f"layers.{layer}."): t for name, t in w.items() if name.startswith(f"layers.{layer}.")}
        h = norm(x, p["attention_norm.weight"])
        q, k, v = (h @ p[f"attention.w{one}.weight"].T for one in "qkv")
        mixed = torch.zeros_like(x)
        for pos in range(len(tokens)):
            for head in range(HEADS):
                mine, group = slice(head * size, (head + 1) * size), head // (HEADS // KV)
                theirs = slice(group * size, (group + 1) * size)
                query = rotate(q[pos, mine], pos)
                scores = torch.stack([query @ rotate(k[at, theirs], at) for at in range(pos + 1)]) / size**0.5
                mixed[pos, mine] = scores.softmax(0) @ v[: pos + 1, theirs]
        x = x + mixed @ p["attention.wo.weight"].T
        h = norm(x, p["memory_norm.weight"])
        chosen = (h @ p["memory_gate.gate_proj.weight"].T @ p["memory_gate.memory_keys"].T).topk(K)
        selected.append(chosen.indices)
        gate = chosen.values.softmax(-1)
        read = torch.zeros_like(x)
        for pos in range(len(tokens)):
            slots = w["memory_bank"][chosen.indices[pos]]
            query, keys, values = (
                side @ p[f"cross_attention_memory.{one}_proj.weight"].T
                for side, one in ((h[pos], "q"), (slots, "k"), (slots, "v"))
            )
            for head in range(HEADS):
                mine = slice(head * size, (head + 1) * size)
                attention = (keys[:, mine] @ query[mine] / size**0.5).softmax(0)
                read[pos, mine] = (attention * gate[pos]) @ values[:, mine]
        x = x + read @ p["cross_attention_memory.o_proj.weight"].T
    return norm(x, w["norm.weight"]) @ w["output.weight"].T, selected


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    write_tokenizer(tmp_path / "tokenizer.json", word_texts(VOCAB))
    (tmp_path / "config.yaml").write_text(dump_config(config()))
    torch.save(state_dict(), tmp_path / "pretrain.pth")
    names = {"checkpoint": "pretrain.pth", "tokenizer": "tokenizer.json", "config": "config.yaml", "run": "run"}
    return {key: tmp_path / name for key, name in names.items()}


def test_an_imported_run_has_the_logits_and_selections_of_the_founding_model(files: dict[str, Path]) -> None:
    import_minimind(files["checkpoint"], config(), files["tokenizer"], files["run"])
    run = load_run(files["run"])
    tokens = torch.randint(VOCAB, (2, 20), generator=torch.Generator().manual_seed(5))
    subject = OwnRun(run)
    with subject.capture() as captured:
        logits = subject.logits(tokens)
    for row in range(2):
        expected, selected = founding_logits(state_dict(), tokens[row])
        torch.testing.assert_close(logits[row].double(), expected, atol=1e-4, rtol=0)
        for layer in range(LAYERS):
            assert torch.equal(captured[layer].indices[row], selected[layer])


def test_half_precision_is_read_and_nothing_is_said_of_starts(files: dict[str, Path]) -> None:
    torch.save({name: tensor.half() for name, tensor in state_dict().items()}, files["checkpoint"])
    import_minimind(files["checkpoint"], config(), files["tokenizer"], files["run"])
    subject = OwnRun(load_run(files["run"]))
    assert subject.sites[0].has == ("scores", "reads", "margin", "lens")
    assert subject.starts() is None and subject.drifted() is None
    assert torch.equal(subject.model.norm.weight, state_dict()["norm.weight"].half().float())
    assert subject.values(0, torch.tensor([3, 4])).shape == (2, DIM)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.0.feed_forward.w1.weight": torch.ones(3)}, r"'layers\.0\.feed_forward\.w1\.weight' is no parameter"),
        ({"layers.2.attention.wq.weight": torch.ones(3)}, r"'layers\.2\.attention\.wq\.weight' is no parameter"),
        ({"memory_bank": torch.ones(N, WIDTH + 1)}, r"'memory_bank' has shape \(64, 17\), .* gives \(64, 1, 16\)"),
        ({"norm.weight": None}, r"has no parameter for 'norm\.weight'"),
        ({"output.weight": torch.ones(VOCAB, DIM)}, r"'output\.weight' is not tok_embeddings\.weight"),
        ({"epoch": 3}, r"'epoch' is no tensor; give a state dict alone"),
    ],
)
def test_other_checkpoints_are_refused_by_name(files: dict[str, Path], change: dict[str, Any], message: str) -> None:
    weights = {name: tensor for name, tensor in (state_dict() | change).items() if tensor is not None}
    torch.save(weights, files["checkpoint"])
    with pytest.raises(InputError, match=message):
        import_minimind(files["checkpoint"], config(), files["tokenizer"], files["run"])
    assert not files["run"].exists()


class Harmful:
    """What a pickle may hold: a call of any function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("a pickle was run",)


@pytest.mark.parametrize("content", [b"", b"text", Harmful()])
def test_files_that_are_no_tensors_are_refused_and_not_run(
    files: dict[str, Path], content: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(content, bytes):
        files["checkpoint"].write_bytes(content)
    else:
        torch.save({"norm.weight": content}, files["checkpoint"])
    with pytest.raises(InputError, match=r"pretrain\.pth: no checkpoint of tensors alone"):
        import_minimind(files["checkpoint"], config(), files["tokenizer"], files["run"])
    assert "a pickle was run" not in capsys.readouterr().out


def test_a_config_of_another_form_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"memory\.read_fn is 'gelu', the founding model's is 'softmax'"):
        import_minimind(files["checkpoint"], config(read_fn="gelu"), files["tokenizer"], files["run"])


def test_the_command_asks_how_gate_scores_are_used(cli, files: dict[str, Path]) -> None:
    words = ["import", "minimind", files["checkpoint"], "--config", files["config"], "--tokenizer", files["tokenizer"]]
    words += ["--out", files["run"]]
    assert cli(*words).code == 2
    other = cli(*words, "--read-scores", "add")
    assert other.code == 2 and "'multiply'" in other.err
    done = cli(*words, "--read-scores", "multiply")
    assert json.loads(done.out)["read_scores"] == "multiply"
    again = cli(*words, "--read-scores", "multiply")
    assert (again.code, again.err.count("\n")) == (2, 1) and "holds a run already" in again.err
