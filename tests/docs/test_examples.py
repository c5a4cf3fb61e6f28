"""What the docstrings of public names show as an example runs as it stands, in a folder with runs and recordings."""

import doctest
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PEER_pytorch import PEER
from product_key_memory import PKM
from torch import nn

from docs.generate import PUBLIC
from memscope.causal.ablation import recorded_corpus
from memscope.causal.edit import encode_sentence
from memscope.causal.group_effects import DomainEffects, domain_effects, write_domain_effects
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.module_site import Choice, ModuleSite
from memscope.run.adapters.modules import ModuleSubject
from memscope.run.adapters.own import OwnRun, capture_memory
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.text.corpus import document_windows
from tests.conftest import tiny_config
from tests.run.adapters.families import make_model, make_tokenizer
from tests.run.adapters.small import DIM, Small, seeded, small_tokenizer
from tests.run.adapters.test_features import TopTuple

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rough_figures")]

EXPLAINED = {
    *("EntryCard", "Census", "Counted", "LayerMetrics", "Weightings", "Evenness", "Reading", "Profiles", "Information"),
    *("Overlap", "Group", "Trace", "Subject", "Selected", "Site", "EntryPairs", "LayerMoves", "ModuleSite", "Choice"),
    *("RecordingTables", "LoadedRun", "Call", "Attribution", "Config", "RecordOptions", "PlantedRun", "Planted"),
}
"""Results and arguments: the example of the function that gives or takes them shows them."""
NAMES = [(module, name) for module, names in PUBLIC.items() for name in names if name not in EXPLAINED]


class Memory(nn.Module):
    """Selects two of 16 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(DIM, 16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        best = self.keys(x).softmax(-1).topk(2)
        return x, best.indices, best.values


class Remembering(Small):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.memory = nn.Tanh(), Memory()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.unembed(self.memory(self.body(self.embed(tokens)))[0])


@pytest.fixture(scope="module")
def home(
    corpus_dir: Path, tiny_run: LoadedRun, ffn_run: LoadedRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, DomainEffects]:
    """The folders and files that examples name, and the effects in one of them."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "runs").mkdir()
    (folder / "runs" / "demo").symlink_to(tiny_run.path)
    (folder / "runs" / "ffn").symlink_to(ffn_run.path)
    lines = (corpus_dir / "valid.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"group": "ab"[number % 2]} for number, line in enumerate(lines)]
    (folder / "corpus.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    record(OwnRun(tiny_run), folder / "corpus.jsonl", folder / "recordings" / "demo", RecordOptions(part_tokens=500))
    (folder / "recordings" / "early").symlink_to(folder / "recordings" / "demo")
    make_model("llama", intermediate_size=64).save_pretrained(folder / "models" / "dense")  # type: ignore[operator]
    make_tokenizer().save_pretrained(folder / "models" / "dense")
    recording = Recording(folder / "recordings" / "demo")
    effects = domain_effects(OwnRun(tiny_run), recording, layer=0, tokens=64)
    write_domain_effects(effects, folder / "effects" / "demo")
    return folder, effects


def code_of(text: str) -> str:
    """The code of a docstring's example: its ``>>>`` lines, or what stands between double backticks and begins so."""
    lines = [example.source for example in doctest.DocTestParser().get_examples(text)]
    return "".join(lines) or "\n".join(re.findall(r"``(with .+: .+)``", text))


def other_models(folder: Path) -> dict[str, Any]:
    """Models of other programs, by the names that examples have for them."""
    own_model = seeded(Remembering)
    own_tokenizer = small_tokenizer(folder)
    site = ModuleSite("memory", entries=16, selected=2, reads=lambda call: Choice(*call.output[1:]))
    return {
        "model": make_model("mixtral"),
        "dense": make_model("llama", intermediate_size=64),
        "tokenizer": make_tokenizer(),
        "own_model": own_model,
        "own_tokenizer": own_tokenizer,
        "own_subject": ModuleSubject(own_model, own_tokenizer, [site], window=64),
        "autoencoder": seeded(TopTuple),
        "pkm_model": seeded(lambda: nn.ModuleDict({"memory": PKM(DIM, heads=2, topk=2, num_keys=4, dim_head=8)})),
        "peer_model": seeded(lambda: nn.ModuleDict({"memory": PEER(DIM, num_experts=16, product_key_topk=2)})),
    }


@pytest.mark.parametrize("module", dict.fromkeys(module for module, _ in NAMES))
def test_the_examples_of_a_module_run(
    module: str, home: tuple[Path, DomainEffects], corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, effects = home
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    names = vars(importlib.import_module(f"memscope.{module}"))
    run = load_run("runs/demo")
    tokens = run.tokens("Apollo was the god of")
    with capture_memory(run.model) as captured:
        run.model(tokens)
    shown = {
        "run": run,
        "tokens": tokens,
        "captured": captured,
        "recording": Recording("recordings/demo"),
        "effects": effects,
    }
    shown |= {
        "subject": OwnRun(run),
        "ffn": load_run("runs/ffn"),
        "config": tiny_config(corpus_dir, train={"steps": 2}),
    }
    shown |= {one.__name__: one for one in (Path, Recording, load_run, domain_effects, document_windows)}
    shown |= {one.__name__: one for one in (recorded_corpus, encode_sentence, ModuleSite, Choice)} | {"torch": torch}
    if module.startswith("run.adapters"):
        shown |= other_models(tmp_path)
    for name in [name for of, name in NAMES if of == module]:
        code = code_of(inspect.getdoc(names[name]) or "")
        assert name in code
        exec(compile(code, f"example of {name}", "exec"), names | shown)
