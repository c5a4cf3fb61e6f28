"""Effects by group on a mixture of experts that is built by hand, so that one expert matters for one group only."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from memscope.base.errors import DamageError, InputError
from memscope.causal.ablation import recorded_corpus
from memscope.causal.effects import Trial, mean_change, measure_effects
from memscope.causal.group_effects import DomainEffects, _compare, _Sums, domain_effects, write_domain_effects
from memscope.causal.selections import ablate
from memscope.query.recording import Recording
from memscope.record.loop import record
from memscope.routing.group_effects import read_group_effects
from memscope.run.adapters.hugging_face import open_hugging_face
from memscope.run.subject import Subject
from memscope.text.corpus import document_windows
from tests.conftest import CliResult
from tests.run.adapters.families import make_tokenizer

pytestmark = pytest.mark.slow

EXPERTS, KNOWING, LAYER = 6, 3, 1
CODE, PROSE, VOCAB, WIDTH = range(3, 13), range(13, 23), 320, 64
DOCUMENTS, LENGTH = 12, 30


class Known(NamedTuple):
    folder: Path
    recording: Recording
    subject: Subject


def build_model() -> nn.Module:
    """Two layers of experts, of which every token uses two: in layer 1, expert 3 and another that the token decides.

    A token lies on an axis of its own (0 to 19), and what is written on axes 20 to 39 are logits. Expert 3 of layer 1
    writes the next token of group "code", where tokens follow one another in a circle; all else writes small numbers.
    Attention writes nothing.
    """
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = OlmoeForCausalLM(config).eval()
    names = [*CODE, *PROSE]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.02)
            if "o_proj" in name or "lm_head" in name or "embed" in name:
                weight.zero_()
        for axis, token in enumerate(names):
            model.model.embed_tokens.weight[token, axis] = 1.0
            model.lm_head.weight[token, 20 + axis] = 1.0
        model.model.embed_tokens.weight[:, WIDTH - 1] = 1.0  # the same for all
        block = model.model.layers[LAYER].mlp
        block.gate.weight.normal_(std=0.5)
        block.gate.weight[KNOWING, WIDTH - 1] = 5.0
        experts = block.experts
        for axis in range(len(CODE)):
            experts.gate_up_proj[KNOWING, [axis, 16 + axis], :] = 0
            experts.gate_up_proj[KNOWING, [axis, 16 + axis], axis] = 1.0
            experts.down_proj[KNOWING, :, axis] = 0
            experts.down_proj[KNOWING, 20 + (axis + 1) % len(CODE), axis] = 2.0
    return model


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    path = tmp_path_factory.mktemp("known")
    build_model().save_pretrained(path / "model")  # type: ignore[operator]
    make_tokenizer().save_pretrained(path / "model")
    chance, lines = np.random.default_rng(0), []
    for number in range(2 * DOCUMENTS):
        start = int(chance.integers(len(CODE)))
        circle = [CODE[(start + step) % len(CODE)] for step in range(LENGTH)]
        tokens = chance.choice(PROSE, LENGTH) if number % 2 else circle
        text = " ".join(f"w{token}" for token in tokens)
        lines.append(json.dumps({"text": text, "title": str(number), "group": "prose" if number % 2 else "code"}))
    (path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    subject = open_hugging_face(path / "model")
    subject.cache_dir = path / "cache"
    record(subject, path / "corpus.jsonl", path / "recording")
    return Known(path / "model", Recording(path / "recording"), subject)


@pytest.fixture(scope="module")
def found(known: Known) -> DomainEffects:
    return domain_effects(known.subject, known.recording, LAYER, "zero", tokens=None)


def test_one_expert_matters_to_one_group_only(known: Known, found: DomainEffects) -> None:
    table = found.table.set_index(["group", "entry"])
    assert len(table) == 2 * EXPERTS and (table["documents"] == DOCUMENTS).all()
    assert (table["name"] == [f"layer 1, expert {e}" for e in range(EXPERTS)] * 2).all()
    entry = EXPERTS + KNOWING
    code, prose = table.loc["code", entry], table.loc["prose", entry]
    assert code["loss"] > 0.3 > 0.05 > abs(prose["loss"])
    assert code["contrast_low"] > 0.2 and code["contrast_q"] < 0.001 and code["difference_low"] > 0.2
    assert prose["contrast"] == pytest.approx(-code["contrast"])
    others = table.drop(index=[("code", entry), ("prose", entry)])
    assert others["loss"].abs().max() < 0.05
    # Every expert is among the others of every other one, so only this one's contrast is above 0.
    assert (others.loc["code", "contrast"] < 0).all()
    assert found.summary["discoveries"]["control_q"] == 0 < found.summary["discoveries"]["contrast_q"]


def test_means_are_those_of_single_ablations(known: Known, found: DomainEffects) -> None:
    corpus, groups = recorded_corpus(known.recording), known.recording.documents["group"]
    windows = document_windows(corpus, 64)
    entries = list(range(EXPERTS, 2 * EXPERTS))
    trials = {
        str(e): Trial(lambda e=e: ablate(known.subject, [e], "zero"))  # type: ignore[misc]
        for e in entries
    }
    effects = measure_effects(known.subject, corpus, windows, trials)
    for group in ("code", "prose"):
        mine = found.table[found.table["group"] == group].set_index("entry")
        part = {e: effects[str(e)][groups[effects[str(e)]["doc"]].to_numpy() == group] for e in entries}
        for e in entries:
            change = mean_change(part[e])
            assert (mine.loc[e, "tokens"], mine.loc[e, "kl"]) == pytest.approx(
                (len(part[e]), part[e]["kl"].mean()), abs=1e-6
            )
            row = mine.loc[e, ["loss", "loss_low", "loss_high"]].to_list()
            assert row == pytest.approx(list(change), abs=1e-6)
            others = np.mean([mean_change(part[other]).estimate for other in entries if other != e])
            assert mine.loc[e, ["others", "difference"]].to_list() == pytest.approx(
                [others, change.estimate - others], abs=1e-6
            )


def test_tokens_are_shared_among_groups(known: Known) -> None:
    table = domain_effects(known.subject, known.recording, LAYER, tokens=6 * (LENGTH + 1)).table
    read = table.groupby("group")[["documents", "tokens"]].first()
    assert (read["documents"] == 3).all() and (read["tokens"] == 3 * LENGTH).all()


def test_without_a_difference_few_contrasts_are_found() -> None:
    """Normal documents of very unequal lengths, all alike: of 1,000 tests about 5% have p < 0.05."""
    chance, p_values = np.random.default_rng(0), []
    for _ in range(25):
        tokens = chance.choice([20, 60, 200], 30).astype(float)
        noise = chance.normal(0, 1, (30, 40)) * tokens[:, None]
        table = _compare(["a", "b"] * 15, _Sums(tokens, noise, np.abs(noise), np.ones((30, 40), int)))
        p_values += table[table["group"] == "a"]["contrast_p"].tolist()
        assert (table["contrast_q"] < 0.01).sum() <= 2
    share = np.mean(np.array(p_values) < 0.05)
    assert 0.03 < share < 0.07


def test_what_is_written_is_read_again_and_damage_is_found(found: DomainEffects, tmp_path: Path) -> None:
    files = write_domain_effects(found, tmp_path)
    assert {file.name for file in files} == {file.name for file in tmp_path.iterdir()}
    again = read_group_effects(tmp_path)
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.summary["discoveries"] == found.summary["discoveries"] and again.summary["layer"] == LAYER
    code = read_group_effects(tmp_path, "code").table
    assert code["entry"][0] == EXPERTS + KNOWING and (code["group"] == "code").all()
    raw = bytearray(files[1].read_bytes())
    raw[len(raw) // 2] ^= 1
    files[1].write_bytes(raw)
    with pytest.raises(DamageError, match="by-group again"):
        read_group_effects(tmp_path)


def test_a_recording_of_one_group_is_refused(known: Known, tiny_run, tiny_recording: Recording) -> None:
    with pytest.raises(InputError, match="its documents are of one group"):
        domain_effects(known.subject, tiny_recording, 1)


def test_the_commands(cli, known: Known, tiny_run_path: Path, tmp_path: Path) -> None:
    where = (known.folder, known.recording.path, "--out", tmp_path / "out")
    done: CliResult = cli("ablate", *where, "--by-group", "--layer", 1, "--tokens", 500)
    assert done.code == 0 and "layer 1, expert 3" in done.out and "dealt to groups at random" in done.out
    assert read_group_effects(tmp_path / "out").summary["mode"] == "renormalise"
    done = cli("ablate", *where, "--entries", "1:3", "--mode", "zero", "--controls", 2, "--json")
    study = json.loads(done.out)
    assert study["entries"] == [EXPERTS + KNOWING] and study["layers"] == [0, 1]
    assert study["table"][0]["loss"] > 0.1 > study["table"][1]["loss"]
    for words, message in (
        (("--by-group",), "give the layer, by --layer 1"),
        (("--by-group", "--layer", "5"), "layer 5 selects nothing; layers that select are 0, 1"),
        (("--by-group", "--layer", "1", "--entries", "3"), "leave out --entries"),
        (("--layer", "1", "--entries", "3"), "--layer belongs to --by-group"),
        (("--entries", "1:6"), "layer 1 has 6 experts, counted from 0"),
        (("--entries", "2:0"), "layer 2 selects nothing; layers that select are 0, 1"),
        (("--entries", "1:x"), "expected numbers"),
        (("--entries", "12"), "there is no expert 12"),
    ):
        done = cli("ablate", *where, *words)
        assert done.code == 2 and message in done.err.splitlines()[-1], done.err
    facts = tmp_path / "facts.jsonl"
    facts.write_text("{}\n")
    for command in ("facts", "edit"):
        done = cli(command, known.folder, facts, "--out", tmp_path / command)
        assert done.code == 2 and f"{command}: {known.folder} is a mixture of experts" in done.err


def test_entries_of_a_shared_bank_have_no_layer(
    cli, tiny_run_path: Path, tiny_recording_path: Path, tmp_path: Path, known: Known
) -> None:
    done: CliResult = cli("ablate", tiny_run_path, tiny_recording_path, "--out", tmp_path, "--entries", "1:3")
    assert done.code == 2 and "layers share their entries; give 3 and --layers 1" in done.err
    done = cli("ablate", known.folder, tiny_recording_path, "--out", tmp_path, "--entries", "3")
    assert done.code == 2 and "recorded of another model" in done.err
