"""Features of sparse autoencoders are recorded as they are active, whatever program made the autoencoder.

The autoencoders here answer as sparsify's ``SparseCoder.encode`` and SAELens' ``SAE.encode`` do.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memscope.base.errors import InputError
from memscope.causal.selections import ablate, force, replay, swap
from memscope.record.loop import RecordOptions, describe, plan_parts, record_parts
from memscope.record.rows import RowCollector
from memscope.recording.part_reader import SelectionReader, read_part
from memscope.run.adapters.features import feature_site, record_features
from memscope.run.adapters.modules import ModuleSubject
from memscope.run.subject import Selected, run_windows
from tests.run.adapters.small import DIM, VOCAB, WINDOW, Small, seeded, small_corpus, small_tokenizer

N, K = 48, 6
TOKENS = torch.randint(3, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


class Encoded(NamedTuple):
    top_acts: Tensor
    top_indices: Tensor
    pre_acts: Tensor


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(DIM, N)
        self.W_dec = nn.Parameter(torch.randn(N, DIM))

    def pre(self, x: Tensor) -> Tensor:
        assert x.ndim == 2
        acts: Tensor = self.encoder(x)
        return acts


class TopTuple(Autoencoder):
    def encode(self, x: Tensor) -> Encoded:
        pre = self.pre(x).relu()
        top = pre.topk(K, sorted=False)
        return Encoded(top.values, top.indices, pre)


class TopDense(Autoencoder):
    def encode(self, x: Tensor) -> Tensor:
        pre = self.pre(x)
        top = pre.topk(K, sorted=False)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())


class TopSparse(TopDense):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x).to_sparse()


class Jump(Autoencoder):
    def encode(self, x: Tensor) -> Tensor:
        pre = self.pre(x)
        return pre.relu() * (pre > 0.9)


class Tupled(nn.Module):
    """A layer whose output is a tuple, as those of some decoders."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x.tanh(), None


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Tupled()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)[0]
        return out


@pytest.fixture
def base(tmp_path: Path) -> ModuleSubject:
    model = seeded(lambda: Small(nn.Linear(DIM, DIM), First()))
    return ModuleSubject(model, small_tokenizer(tmp_path), [], WINDOW, unembedding=model.unembed)


@pytest.mark.parametrize("kind", [TopTuple, TopDense, TopSparse, Jump])
@pytest.mark.parametrize("path", ["layers.0", "layers.1.inner"])
def test_active_features_and_their_activations_are_recorded(
    base: ModuleSubject, kind: type[Autoencoder], path: str
) -> None:
    encoder = seeded(kind)
    subject = record_features(base, {path: encoder}, top=12)
    outputs: list[Tensor] = []
    base.model.get_submodule(path).register_forward_hook(lambda m, a, out: outputs.append(out))
    with subject.capture() as captured:
        watched = subject.logits(TOKENS)
    assert torch.equal(watched, base.model(TOKENS))
    output = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    pre = encoder.pre(output.flatten(0, 1)).view(2, 7, N)
    active = pre > 0.9 if kind is Jump else (pre >= pre.topk(K).values[..., -1:]) & (pre > 0)
    [site] = subject.sites
    [seen] = captured.values()
    for row in np.ndindex(2, 7):
        fired = seen.indices[row][seen.indices[row] >= 0]
        assert sorted(fired.tolist()) == active[row].nonzero()[:, 0].tolist()
        torch.testing.assert_close(seen.gate_scores[row][: len(fired)], pre[row][fired])
        assert (seen.gate_scores[row][len(fired) :] == 0).all()
    assert (site.kind, site.varies, site.has) == ("features", True, ("scores", "lens"))
    assert torch.equal(subject.values(site.layer, torch.tensor([5])), encoder.W_dec[[5]])
    if kind is Jump:
        counts = (seen.indices >= 0).sum(-1)
        assert counts.min() < counts.max() <= 12


def test_weaker_features_are_left_out(base: ModuleSubject) -> None:
    encoder = seeded(Jump)
    seen = []
    for top in (3, 12):
        subject = record_features(base, {"layers.0": encoder}, top)
        with subject.capture() as captured:
            subject.logits(TOKENS)
        seen.append(captured[0].indices)
    assert torch.equal(seen[0], seen[1][..., :3])


def test_a_recording_whose_tokens_select_different_numbers_reads_back(base: ModuleSubject, tmp_path: Path) -> None:
    subject = record_features(base, {"layers.0": seeded(Jump), "layers.1": seeded(Jump, 1)}, top=12)
    corpus, windows = small_corpus()
    info = describe(subject, corpus, windows, RecordOptions(score_bits=10))
    [part] = record_parts(subject, subject.tokenizer.pad, corpus, tmp_path, info, plan_parts(windows, 1000))
    info = info.model_copy(update={"parts": (part,)})
    rows = read_part(tmp_path, part, info)
    expected = RowCollector(corpus, subject.sites, 10).collect(windows, run_windows(subject, corpus, windows, pad=0))
    np.testing.assert_array_equal(rows.indices, expected.indices)
    np.testing.assert_array_equal(rows.gate, expected.gate)
    entry, row, gate = SelectionReader(tmp_path, info).read(1, N, 2 * N - 1)
    at = expected.indices[:, 1] >= 0
    assert len(entry) == at.sum() and 0 < at.mean() < 1
    for one, number, score in zip(entry[:20], row[:20], gate[:20], strict=True):
        k = expected.indices[number, 1].tolist().index(one)
        assert expected.gate[number, 1, k] == score > 0


def test_another_autoencoder_is_another_recording(base: ModuleSubject) -> None:
    def fingerprint(seed: int) -> str:
        return record_features(base, {"layers.0": seeded(Jump, seed)}, top=3).fingerprint

    assert base.fingerprint != fingerprint(0) == fingerprint(0) != fingerprint(1)


def test_any_object_that_encodes_will_do(base: ModuleSubject) -> None:
    class Plain:
        W_dec = torch.eye(DIM)

        def encode(self, x: Tensor) -> Tensor:
            return x

    subject = record_features(base, {"layers.0": Plain()}, top=DIM)
    with subject.capture() as captured:
        subject.logits(TOKENS)
    assert len(subject.fingerprint) == 64
    assert captured[0].gate_scores.max() > 0

    class Blind:
        def encode(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(InputError, match=r"layers\.0: its autoencoder has no W_dec"):
        feature_site("layers.0", Blind(), 3)
    with pytest.raises(InputError, match=r"has 48 features, 49 are asked for"):
        feature_site("layers.0", seeded(Jump), N + 1)


def features(base: ModuleSubject, kind: type[Autoencoder], top: int = N) -> ModuleSubject:
    return record_features(base, {"layers.0": seeded(kind), "layers.1.inner": seeded(kind, 1)}, top)


def both(subject: ModuleSubject) -> tuple[Tensor, dict[int, Selected]]:
    with subject.capture() as captured:
        return subject.logits(TOKENS), dict(captured)


@pytest.mark.parametrize("kind", [TopTuple, TopDense, TopSparse, Jump])
def test_features_that_are_not_changed_leave_every_bit(base: ModuleSubject, kind: type[Autoencoder]) -> None:
    subject = features(base, kind)
    plain, selected = both(subject)
    with subject.rewrite(lambda layer, indices, scores: (indices, scores)):
        same, again = both(subject)
    assert torch.equal(same, plain)
    assert all(torch.equal(again[layer].indices, one.indices) for layer, one in selected.items())
    with replay(subject, selected):
        assert torch.equal(both(subject)[0], plain)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", [TopTuple, Jump])
def test_an_ablated_feature_takes_its_part_and_nothing_else(
    base: ModuleSubject, kind: type[Autoencoder], layer: int
) -> None:
    subject = features(base, kind)
    plain, selected = both(subject)
    feature = int(selected[layer].indices.flatten()[selected[layer].indices.flatten() >= 0].mode().values)
    acts = (selected[layer].gate_scores * (selected[layer].indices == feature)).sum(-1, keepdim=True)
    part = acts * subject.values(layer, torch.tensor([feature]))
    with ablate(subject, [feature]):
        ablated, altered = both(subject)
    assert (altered[layer].gate_scores[altered[layer].indices == feature] == 0).all()

    def without(module: nn.Module, args: object, output: Tensor | tuple[Tensor, None]) -> object:
        return (output[0] - part, None) if isinstance(output, tuple) else output - part

    handle = base.model.get_submodule(("layers.0", "layers.1.inner")[layer]).register_forward_hook(without)
    torch.testing.assert_close(ablated, subject.logits(TOKENS), atol=1e-5, rtol=0)
    handle.remove()
    assert (ablated - plain).abs().max() > 1e-3
    with swap(subject, feature, (feature + 1) % N + layer * N), swap(subject, feature, (feature + 1) % N + layer * N):
        torch.testing.assert_close(both(subject)[0], plain, atol=1e-5, rtol=0)


def test_a_forced_feature_is_there_in_every_token(base: ModuleSubject) -> None:
    subject = features(base, Jump)
    plain, selected = both(subject)
    with force(subject, 5, 2.0):
        forced, altered = both(subject)
    assert ((altered[0].indices == 5).sum(-1) == 1).all()
    assert (altered[0].gate_scores[altered[0].indices == 5] == 2.0).all()
    gained = (altered[0].indices >= 0).sum(-1) - (selected[0].indices >= 0).sum(-1)
    assert torch.equal(gained, (~(selected[0].indices == 5).any(-1)).long())  # in a free place, so none is lost
    before = (selected[0].gate_scores * (selected[0].indices == 5)).sum(-1, keepdim=True)
    part = (2.0 - before) * subject.values(0, torch.tensor([5]))
    handle = base.model.get_submodule("layers.0").register_forward_hook(lambda module, args, output: output + part)
    torch.testing.assert_close(forced, subject.logits(TOKENS), atol=1e-5, rtol=0)
    handle.remove()
    assert (forced - plain).abs().max() > 1e-2


def test_an_autoencoder_that_scales_by_token_is_not_written(base: ModuleSubject) -> None:
    encoder = seeded(Jump)
    encoder.cfg = SimpleNamespace(normalize_activations="layer_norm")
    subject = record_features(base, {"layers.0": encoder}, top=3)
    with pytest.raises(InputError, match=r"layers\.0: its autoencoder scales every token"), ablate(subject, [1]):
        pass
