"""Models whose answer is known by construction: recording, decoding, attribution and interventions must find it."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from memscope.bank_map.spaces import entry_values, read_outputs
from memscope.causal.attribution import ablation_effects, attribute
from memscope.causal.edit import encode_sentence, locate_entry
from memscope.causal.effects import Trial, compare_change, entry_usage, mean_change, measure_effects, usage_matched
from memscope.causal.facts import audit_facts
from memscope.causal.intervene import ablate, force, rewrite, scale, swap
from memscope.query.recording import Recording
from memscope.record.loop import record
from memscope.report.anomalies import find_anomalies
from memscope.run.adapters.own import OwnRun, capture_memory
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.testing.models import PlantedRun, plant_run
from memscope.testing.recordings import FACTOR, PLANTED_LAYER
from memscope.text.corpus import DocumentWindow, PackedCorpus, document_windows, pack_corpus
from memscope.text.fact_files import Fact
from tests.testing.test_recordings import expected, found

pytestmark = pytest.mark.slow

CLEAN_SEEDS = range(5)
SOFTMAX, SIGMOID = {"score_fn": "softmax", "read_fn": "softmax"}, {"score_fn": "sigmoid"}


class World(NamedTuple):
    """A planted run with everything that is made of it."""

    plan: PlantedRun
    run: LoadedRun
    recording: Recording
    corpus: PackedCorpus
    windows: list[DocumentWindow]

    @property
    def detector(self) -> tuple[int, int]:
        """The entry that pushes ``plan.pushed``, and the token it is selected at."""
        return next(iter(self.plan.truth.detectors.items()))

    def tokens(self, documents: int = 4) -> Tensor:
        """The first documents, ``[document, pos]``."""
        rows = [self.corpus.tokens[w.start : w.end].astype(np.int64) for w in self.windows[:documents]]
        return torch.from_numpy(np.stack(rows))


def make_world(folder: Path, seed: int, **settings: object) -> World:
    plan = plant_run(folder, seed, **settings)
    run = load_run(plan.run)
    record(OwnRun(run), plan.corpus, folder / "recording")
    corpus = pack_corpus(plan.corpus, run.tokenizer, Path(run.config.data.cache_dir))
    windows = document_windows(corpus, run.config.model.max_seq_len)
    return World(plan, run, Recording(folder / "recording"), corpus, windows)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), seed=0)


@pytest.mark.parametrize(("seed", "memory"), [(301, {}), (302, {}), (303, SOFTMAX), (304, SIGMOID)])
def test_all_effects_are_found_in_a_model(seed: int, memory: dict[str, object], tmp_path: Path) -> None:
    world = make_world(tmp_path, seed, **memory)
    elsewhere = {("unread", 0, entry, -1, "") for entry in world.plan.truth.decoys}  # a decoy is one in every layer
    apart = {row for row in found(world.recording) if row[0] == "exclusive"}  # where keys happen to point away
    assert found(world.recording) - elsewhere - apart == expected(world.plan.truth)
    for _, layer, entry, other, _ in apart:
        keys = world.run.model.memory_layer(layer).gate.get_parameter("keys")[0]
        assert torch.cosine_similarity(keys[entry], keys[other], dim=0) < -0.1


def test_clean_models_raise_no_alarm(tmp_path: Path) -> None:
    recordings = [make_world(tmp_path / str(seed), seed, effects=()).recording for seed in CLEAN_SEEDS]
    error_rate = 0.05 / len(CLEAN_SEEDS)  # of all together: fewer of them find a wrong rate as often
    assert [found(recording, error_rate) for recording in recordings] == [set()] * len(CLEAN_SEEDS)


def test_wired_entries_fire_exactly_at_their_token(world: World) -> None:
    for entry, token in world.plan.truth.detectors.items():
        rows = world.recording.selections(entry, PLANTED_LAYER)["row"]
        assert np.array_equal(rows, np.flatnonzero(world.recording.token_ids == token))


def test_firing_names_what_goes_in_what_is_predicted_and_what_follows(world: World) -> None:
    entry, token = world.detector
    firing = world.recording.firing_of([entry]).set_index("layer").loc[PLANTED_LAYER]
    assert firing["input_tokens"][0] == f" w{token}"
    assert firing["predicted_tokens"][0] == firing["next_tokens"][0] == f" w{world.plan.pushed}"
    assert set(world.recording.contexts(entry, PLANTED_LAYER)["token"]) == {f" w{token}"}


def test_decodings_say_the_sentence_and_what_it_pushes(world: World) -> None:
    entry, token = world.detector
    card = world.recording.entry(entry)
    assert card.nearest["token"].head(2).tolist() == [f" w{world.plan.pushed}", f" w{token}"]
    assert card.nearest["in_sentence"].tolist() == [True, True] + [False] * (len(card.nearest) - 2)
    assert card.lens.set_index("layer")["top"][PLANTED_LAYER][0] == f" w{world.plan.pushed}"
    assert card.drift == pytest.approx(0, abs=1e-6)
    first, second = (world.recording.entry(entry) for entry in world.plan.truth.duplicates)
    pd.testing.assert_frame_equal(first.nearest, second.nearest)
    assert first.lens["top"].iloc[-1] == second.lens["top"].iloc[-1]


def test_duplicates_fall_on_one_place_of_every_map_feature(world: World) -> None:
    first, second = world.plan.truth.duplicates
    for feature in (entry_values(world.run), read_outputs(world.run, [PLANTED_LAYER])):
        np.testing.assert_allclose(feature[first], feature[second], rtol=1e-5, atol=1e-6)
        unit = feature / np.linalg.norm(feature, axis=1, keepdims=True)
        nearness = unit @ unit[first]
        assert set(np.argsort(-nearness)[:2]) == {first, second}
        assert np.sort(nearness)[-3] < 0.999


def test_every_lens_names_the_words_of_the_sentence(world: World) -> None:
    """Sentences are all that values hold, so the strongest tokens of an ordinary entry are its sentence's."""
    used = world.recording.sql("SELECT DISTINCT entry FROM usage WHERE layer = ?", [PLANTED_LAYER])["entry"].tolist()
    special = {*world.plan.truth.detectors}
    for card in world.recording.cards(set(used) - special):
        words = {f" {word}" for word in (card.sentence or "").split()}
        assert set(card.lens.set_index("layer")["top"][PLANTED_LAYER][: len(words)]) == words


def test_only_the_decoy_has_drifted_and_by_what_was_done_to_it(world: World) -> None:
    drift = world.recording.drift()
    [decoy] = world.plan.truth.decoys
    assert np.delete(drift, decoy).max() < 1e-6
    now, before = (
        world.run.model.bank.entries[decoy, 0].detach(),
        encode_sentence(world.run, world.recording.entry(decoy).sentence or ""),
    )
    assert drift[decoy] == pytest.approx(1 - float(torch.cosine_similarity(now, before[0], dim=0)), abs=1e-5)
    assert drift[decoy] > 0.5


def test_the_preferred_relation_is_selected_about_as_often_as_planted(world: World) -> None:
    truth = world.plan.truth
    counts = world.recording.usage()[PLANTED_LAYER].astype(float)
    liked = np.array(truth.predicates) == truth.preferred
    ordinary = np.ones(len(counts), bool)
    ordinary[[*truth.detectors, *truth.dead]] = False
    # Keys are random directions and contexts not quite: single entries scatter, their mean by less.
    ratio = counts[liked & ordinary].mean() / counts[~liked & ordinary].mean()
    assert ratio == pytest.approx(FACTOR, rel=0.25)


def test_direct_attribution_names_the_detector_and_agrees_with_ablation(world: World) -> None:
    entry, token = world.detector
    tokens = world.tokens()
    targets = torch.where(tokens == token, world.plan.pushed, -100)
    found = attribute(world.run.model, tokens, targets, sample=64)
    direct, here = found.direct[PLANTED_LAYER], found.indices[PLANTED_LAYER] == entry
    assert torch.equal(here.any(-1), tokens == token)
    others = direct[(tokens == token)[..., None] & ~here]
    assert direct[here].min() > 4 * others.abs().max()
    assert (direct[(tokens != token)] == 0).all()
    true, _ = ablation_effects(world.run.model, tokens, targets, PLANTED_LAYER, here.nonzero())
    torch.testing.assert_close(direct[here], true, rtol=1e-4, atol=1e-4)
    agreement = found.agreement.set_index(["layer", "method"])["spearman"]
    assert agreement[PLANTED_LAYER, "direct"] > 0.999 and agreement[PLANTED_LAYER, "gradient"] > 0.9


def test_frozen_attribution_is_the_value_on_the_axis_of_the_token(world: World) -> None:
    entry, token = world.detector
    tokens, model = world.tokens(), world.run.model
    targets = torch.where(tokens == token, world.plan.pushed, -100)
    attribution = attribute(model, tokens, targets, sample=1)
    indices, frozen = attribution.indices, attribution.frozen
    with capture_memory(model) as captured, torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=f"blocks.{PLANTED_LAYER}.hook_resid_post")
        length = cache[f"blocks.{PLANTED_LAYER}.hook_resid_post"].square().mean(-1).sqrt()
        pushes = (model.memory_layer(PLANTED_LAYER).read.write_matrix @ model.bank.entries[entry, 0])[world.plan.pushed]
    here = indices[PLANTED_LAYER] == entry
    by_hand = captured[PLANTED_LAYER].read_weights * (pushes / length)[..., None]
    torch.testing.assert_close(frozen[PLANTED_LAYER][here], by_hand[here], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["renormalise", "zero"])
def test_ablating_the_detector_hurts_its_token_and_nothing_else(world: World, mode: str) -> None:
    entry, token = world.detector
    take_out = partial(ablate, world.run.model, [entry], mode, layers=[PLANTED_LAYER])
    usage = entry_usage(world.recording.path, [PLANTED_LAYER])
    matched = [usage_matched(usage, [entry], seed) for seed in range(2)]
    trials = {"detector": Trial(take_out)} | {
        f"control {number}": Trial(partial(ablate, world.run.model, control, mode, layers=[PLANTED_LAYER]))
        for number, control in enumerate(matched)
    }
    measured = measure_effects(OwnRun(world.run), world.corpus, world.windows, trials)
    effects = measured.pop("detector")
    at, asked = effects["token"] == token, effects["target"] == world.plan.pushed
    change = effects["logit_after"] - effects["logit_before"]
    assert (change[at & asked] < -0.5).all() and change[at & asked].mean() < -2
    assert (effects["kl"][~at] < 1e-6).all() and (effects["kl"][at] > 0.01).all() and effects["kl"][at].median() > 1
    whole = mean_change(effects[at & asked])
    assert whole.low > 1
    assert compare_change(effects, list(measured.values())).low > 0


def test_ablating_a_decoy_or_a_dead_entry_changes_nothing(world: World) -> None:
    for entries in (world.plan.truth.decoys, world.plan.truth.dead):
        take_out = partial(ablate, world.run.model, list(entries), layers=[PLANTED_LAYER])
        effects = measure_effects(OwnRun(world.run), world.corpus, world.windows, {"out": Trial(take_out)})["out"]
        assert effects["kl"].max() < 1e-4
        assert (effects["loss_after"] - effects["loss_before"]).abs().max() < 0.02


def test_one_of_two_duplicates_can_stand_in_for_the_other(world: World) -> None:
    first, second = world.plan.truth.duplicates
    with torch.no_grad():
        tokens = world.tokens()
        plain = world.run.model(tokens)
        with swap(world.run.model, first, second, layers=[PLANTED_LAYER]):
            assert torch.allclose(world.run.model(tokens), plain, atol=1e-5)
        alone = []
        for entry in (first, second):
            with ablate(world.run.model, [entry], layers=[PLANTED_LAYER]):
                alone.append(world.run.model(tokens))
    torch.testing.assert_close(alone[0], alone[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone[0], plain, atol=1e-2)


def test_forcing_the_detector_makes_any_token_predict_what_it_pushes(world: World) -> None:
    entry, _ = world.detector
    tokens = world.tokens()
    with torch.no_grad(), force(world.run.model, entry, 20.0, layers=[PLANTED_LAYER]):
        predicted = world.run.model(tokens).argmax(-1)
    words = tokens > max(world.plan.truth.detectors.values())  # beside triggers, which other wired entries go with
    assert (predicted[words] == world.plan.pushed).float().mean() > 0.95
    assert (world.run.model(tokens).argmax(-1)[words] == world.plan.pushed).float().mean() < 0.2


def test_swapping_or_rewriting_the_detector_moves_what_is_pushed(world: World) -> None:
    entry, token = world.detector
    tokens = world.tokens()
    at = tokens == token
    other = (world.plan.pushed - 6 + 5) % 42 + 6
    slots = encode_sentence(world.run, f" w{token} w{other} w{other}")
    with torch.no_grad():
        with rewrite(world.run.model, entry, slots, layers=[PLANTED_LAYER]):
            rewritten = world.run.model(tokens)
        with swap(world.run.model, entry, world.plan.truth.dead[0], layers=[PLANTED_LAYER]):
            swapped = world.run.model(tokens)
        plain = world.run.model(tokens)
    for logits, token_of in ((plain, world.plan.pushed), (rewritten, other)):
        assert (logits.argmax(-1)[at] == token_of).float().mean() > 0.8
    assert (swapped.argmax(-1)[at] == world.plan.pushed).float().mean() < 0.2
    torch.testing.assert_close(rewritten[~at], plain[~at], rtol=1e-4, atol=1e-4)


def test_the_fact_that_the_detector_states_is_the_one_that_is_found_and_needed(world: World) -> None:
    detector, token = world.detector
    sentences = world.recording.sql("SELECT entry, subject[1] AS subject, object[1] AS object FROM bank ORDER BY entry")
    others = [entry for entry in range(60) if entry not in world.plan.truth.detectors]
    facts = [
        Fact(f"u{entry}", row.subject, world.plan.truth.predicates[entry], row.object, " [X] [Y]")
        for entry, row in zip([detector, *others], sentences.loc[[detector, *others]].itertuples(), strict=True)
    ]
    table = audit_facts(world.run, facts).facts.set_index("uuid")
    own = table.loc[f"u{detector}"]
    assert (own["subject"], own["object"]) == (f"w{token}", f"w{world.plan.pushed}")
    assert own[f"l{PLANTED_LAYER}_asked"] and own["rank"] == 1
    assert own["logit"] - own["logit_own"] > 2 > own["logit"] - own["logit_control"]
    assert table[f"l{PLANTED_LAYER}_asked"].mean() < 0.1  # keys know nothing of the other sentences
    question = torch.tensor([[world.run.tokenizer.bos, token]])
    assert locate_entry(world.run.model, question, world.plan.pushed) == detector


def test_switching_the_memory_off_leaves_the_token_itself(world: World) -> None:
    tokens = world.tokens()
    with torch.no_grad(), scale(world.run.model, 0.0):
        assert torch.equal(world.run.model(tokens).argmax(-1), tokens)  # the embedding is all that is left


def test_anomalies_of_a_model_come_with_their_size(world: World) -> None:
    table = find_anomalies(world.recording).set_index("kind")
    assert table.loc["duplicate", "effect"] == 1
    assert table.loc["token", "effect"].tolist() == pytest.approx([1] * 4)
    assert table.loc["preference", "effect"] > 1.5
