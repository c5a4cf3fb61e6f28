"""The commands and the lines of Python of the tutorial on recording one's own model do what it says."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from product_key_memory import PKM
from torch import nn

from memscope.query.recording import Recording
from memscope.recording.info import read_info
from memscope.text.tokenizer import Tokenizer
from tests.conftest import CliResult
from tests.processes import run_here
from tests.run.adapters.families import FAMILIES, TOP, make_model, make_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rough_figures")]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "record-your-own-model.md"
TEXT = PAGE.read_text()


def section(heading: str, language: str) -> str:
    [body] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL)
    return "".join(re.findall(rf"^```{language}\n(.*?)^```", body, flags=re.MULTILINE | re.DOTALL))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model and the corpus that the page names."""
    folder = tmp_path / "models" / "OLMoE-1B-7B-0924"
    make_model("olmoe").save_pretrained(folder)  # type: ignore[operator]
    make_tokenizer().save_pretrained(folder)
    lines = [json.dumps({"text": " ".join(f"w{3 + (7 * i + doc) % 300}" for i in range(90))}) for doc in range(12)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_commands_record_a_folder_and_open_it(here: Path, cli: Callable[..., CliResult]) -> None:
    recorded, opened, traced = map(shlex.split, section("A folder", "sh").splitlines())
    done = cli(*recorded[1:])
    assert done.code == 0, done.err
    assert json.loads(done.out)["selections"] == 12 * 91 * 2 * TOP
    info = read_info(here / opened[2])
    assert info.complete and opened[:2] == ["memscope", "app"]
    assert [info.label(entry) for entry in (0, 14)] == ["layer 0, expert 0", "layer 1, expert 6"]
    done = cli("report", opened[2], "--out", "reports/olmoe")
    assert done.code == 0, done.err
    assert not (here / "reports" / "olmoe" / "figures" / "margins.png").exists()  # nothing of it is recorded
    done = cli(*traced[1:-1], "w5 w6")
    assert done.code == 0 and "layer 1, expert " in done.out


def test_a_loaded_model_is_recorded_in_three_lines(here: Path) -> None:
    block = section("A model in memory", "python")
    exec(block, {"model": make_model("olmoe"), "tokenizer": make_tokenizer()})
    info = read_info(here / "recordings" / "mine")
    assert (info.complete, info.run, info.rows) == (True, "mine", 12 * 91)


def test_the_example_trains_a_model_that_is_recorded(
    here: Path,
    corpus_dir: Path,
    cli: Callable[..., CliResult],
    tiny_run_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, command, recorded, _ = map(shlex.split, section("Without a model at hand", "sh").splitlines())
    sizes: dict[str, Any] = json.loads((ROOT / command[2]).read_text())
    small = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    (here / "config.json").write_text(json.dumps(sizes | small | {"num_key_value_heads": 2}))
    values = {"--corpus": str(corpus_dir / "train.jsonl"), "--tokenizer": str(tiny_run_path / "tokenizer.json")}
    words = [str(here / "config.json"), *(word for pair in values.items() for word in pair)]
    done = run_here(ROOT / command[1], [*words, "--out", "runs/olmoe", "--steps", "2", "--batch", "1"], capsys)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^step 2  loss \d+\.\d+  balance \d+\.\d+", done.stdout, flags=re.MULTILINE)
    found = cli("record", recorded[2], "--corpus", corpus_dir / "valid.jsonl", "--out", "recordings/olmoe")
    assert found.code == 0, found.err
    info = read_info(here / "recordings" / "olmoe")
    assert (info.sites[0].entries, info.sites[0].selected) == (sizes["num_experts"], sizes["num_experts_per_tok"])


def test_the_page_says_how_many_families_are_tried() -> None:
    [said] = re.findall(r"of (\d+) families that the tests try", " ".join(TEXT.split()))
    assert int(said) == len(FAMILIES) >= 25


class WithMemory(nn.Module):
    """A language model whose one layer is a product-key memory of another package."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(320, 16)
        self.memory = PKM(16, heads=2, topk=4, num_keys=8, dim_head=8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        resid = self.embed(tokens)
        return (resid + self.memory(resid)) @ self.embed.weight.T


def test_a_module_of_another_package_is_recorded(here: Path) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(make_tokenizer().backend_tokenizer)
    exec(section("A module of yours", "python"), {"model": WithMemory(), "tokenizer": tokenizer})
    info = read_info(here / "recordings" / "pkm")
    [site] = info.sites
    assert info.complete and (site.kind, site.entries, site.selected, site.gate_heads) == ("product_keys", 64, 8, 2)
    assert Recording(here / "recordings" / "pkm").total_selections() == info.rows * 8


def test_neurons_of_a_folder_are_recorded(here: Path, cli: Callable[..., CliResult]) -> None:
    make_model("llama", intermediate_size=96).save_pretrained(here / "models" / "llama")  # type: ignore[operator]
    make_tokenizer().save_pretrained(here / "models" / "llama")
    done = cli(*shlex.split(section("Neurons", "sh"))[1:])
    assert done.code == 0, done.err
    info = read_info(here / "recordings" / "neurons")
    assert [(site.kind, site.selected) for site in info.sites] == [("neurons", 8)] * 2
