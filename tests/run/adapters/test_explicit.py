"""A layer whose entries are token ids, as those of ExplicitLM (arXiv 2511.01581), is recorded with its texts.

Two stages: product keys give some candidates a token, and the one whose mean embedding is nearest to the token by
cosine is read, with Gumbel noise in evaluation too. What the model uses as weights of the candidates is 1 and 0.
"""

import json
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memscope.query.recording import Recording
from memscope.record.decode import no_starts
from memscope.record.loop import RecordOptions, describe, plan_parts, record, record_parts
from memscope.record.trace import describe_trace, trace_text
from memscope.recording.part_reader import read_part
from memscope.run.adapters.module_site import Call, Choice, ModuleSite
from memscope.run.adapters.modules import ModuleSubject
from tests.run.adapters.small import DIM, VOCAB, WINDOW, Small, seeded, small_corpus, small_tokenizer

SIDE, LENGTH, CANDIDATES = 5, 4, 6
TOKENS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


class ProductGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.keys = nn.Linear(DIM, DIM), nn.Parameter(torch.randn(2, SIDE, DIM // 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        halves = self.query(x).unflatten(-1, (2, DIM // 2))
        rows, columns = torch.einsum("btpd,pnd->pbtn", halves, self.keys)
        best = (rows[..., :, None] + columns[..., None, :]).flatten(-2).topk(CANDIDATES)
        return best.indices, best.values


class Nearest(nn.Module):
    def forward(self, x: Tensor, candidates: Tensor) -> Tensor:
        near = F.cosine_similarity(x[..., None, :], candidates, dim=-1)
        return F.gumbel_softmax(near, tau=1.0, hard=True)


class ExplicitLayer(nn.Module):
    def __init__(self, embed: nn.Embedding):
        super().__init__()
        self.register_buffer("bank", torch.randint(3, VOCAB, (SIDE**2, LENGTH)))
        self.gate, self.choose, self.embed = ProductGate(), Nearest(), [embed]
        self.up, self.down = nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        indices, _ = self.gate(x)
        candidates = self.embed[0](self.bank[indices]).mean(-2)
        read = (self.choose(x, candidates)[..., None] * candidates).sum(-2)
        a, b = self.up(x + read).chunk(2, -1)
        out: Tensor = self.down(F.silu(a) * b)
        return out


def explicit_site(model: nn.Module, module: str) -> ModuleSite:
    bank = model.get_buffer(f"{module}.bank")

    def reads(layer: Call, gate: Call, choose: Call) -> Choice:
        return Choice(gate.output[0], choose.output)

    return ModuleSite(module, len(bank), CANDIDATES, reads, ("gate", "choose"), bank=bank, texts=bank)


def add_layers(model: Small) -> Small:
    model.layers.extend([ExplicitLayer(model.embed), ExplicitLayer(model.embed)])
    return model


@pytest.fixture
def subject(tmp_path: Path) -> ModuleSubject:
    model = seeded(lambda: add_layers(Small()))
    sites = [explicit_site(model, f"layers.{layer}") for layer in (0, 1)]
    return ModuleSubject(model, small_tokenizer(tmp_path), sites, WINDOW)


def test_the_one_candidate_that_is_read_has_the_weight(subject: ModuleSubject) -> None:
    layer = subject.model.layers[1]
    chosen: list[Tensor] = []
    layer.choose.register_forward_hook(
        lambda module, args, output: chosen.append((output[..., None] * args[1]).sum(-2))
    )
    with subject.capture() as captured:
        subject.logits(TOKENS)
    seen, site = captured[1], subject.sites[1]
    assert site.has == ("scores", "starts") and site.first_entry == SIDE**2
    assert (seen.gate_scores.sort(-1).values == torch.tensor([0.0] * (CANDIDATES - 1) + [1.0])).all()
    local = seen.indices - SIDE**2
    values = subject.model.embed(layer.bank[local]).mean(-2)
    assert torch.equal((seen.gate_scores[..., None] * values).sum(-2), chosen[0])


def test_entries_have_the_text_of_their_tokens(subject: ModuleSubject) -> None:
    starts = subject.starts()
    assert starts is not None
    assert starts.schema == no_starts(1).schema
    banks = torch.cat([subject.model.get_buffer(f"layers.{layer}.bank") for layer in (0, 1)])
    assert starts["token_ids"].to_pylist() == banks.tolist()
    words = subject.tokenizer.decode(banks[30].tolist())
    assert starts["sentence"][30].as_py() == words and words.count("w") == LENGTH


def test_a_recording_and_a_trace_show_weights_and_texts(subject: ModuleSubject, tmp_path: Path) -> None:
    corpus, windows = small_corpus()
    info = describe(subject, corpus, windows, RecordOptions(score_bits=10))
    [part] = record_parts(subject, subject.tokenizer.pad, corpus, tmp_path, info, plan_parts(windows, 1000))
    rows = read_part(tmp_path, part, info.model_copy(update={"parts": (part,)}))
    assert rows.read is None and (rows.gate.sum(-1) == 1).all()
    [*_, last] = describe_trace(subject, trace_text(subject, " w5 w9 w4"))
    first = last["layers"][0]["entries"][0]
    assert first["gate"] == 1.0 and "read" not in first
    assert first["sentence"] == subject.starts()["sentence"][first["entry"]].as_py()


def test_a_finished_recording_knows_texts_and_counts(subject: ModuleSubject, tmp_path: Path) -> None:
    corpus, _ = small_corpus()
    words = (subject.tokenizer.decode(corpus.tokens[a:b].tolist()) for a, b in pairwise(corpus.starts))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    subject.cache_dir = tmp_path / "cache"
    record(subject, tmp_path / "corpus.jsonl", tmp_path / "rec")
    usage = pq.read_table(tmp_path / "rec" / "usage.parquet")
    tokens = len(corpus.tokens) + 2 * 3  # bos and eos
    assert sum(usage["gate_sum"].to_pylist()) == 2 * tokens  # one candidate of each layer is read
    assert sum(usage["count"].to_pylist()) == 2 * tokens * CANDIDATES
    entries = Recording(tmp_path / "rec").entries()
    said = subject.starts()["sentence"].to_pylist()
    assert [said[entry] for entry in entries["entry"]] == entries["sentence"].tolist()
