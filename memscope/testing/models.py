"""Build a model by hand whose memory is known: where each entry fires, what it says and what it changes.

    planted = plant_run(Path("planted"), seed=0)
    run = load_run(planted.run)                                # record, trace, decode, ablate it like any run
    record(run, planted.corpus, Path("recording"))

The residual stream has an axis for every token, one that always holds the same constant, and a few for the context:

    embedding of token t  =  e_t + 0.5 constant + a random context vector r_t
    attention             writes a random mix of earlier context vectors into the context axes, nothing else
    gate                  ordinary keys look at the context only, so their selections say little about the token; a
                          wired key looks at one trigger token: 16 (e_t - constant) is positive only at this token
    read                  the constant axes of token and entry decide q.k, so all entries but a decoy are read alike
    values                an entry adds its token axes, without trigger tokens, to the residual stream
    final norm            lets token axes through: the logits are their values

Entries start from sentences, as ``bank_init`` makes them, and all but a decoy keep this start: the value of an entry
raises the tokens of its sentence, except trigger tokens.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import beta

from memscope.base.files import make_folder, write_text
from memscope.base.printable import brief
from memscope.config.load import Config, dump_config, validate_config
from memscope.model.transformer import Attention, MemoryTransformer
from memscope.run.bank_init import init_bank, orthogonal_projection, save_bank_init
from memscope.run.checkpoint import MODEL
from memscope.testing.recordings import (
    EFFECTS,
    FACTOR,
    PLANTED_LAYER,
    PREDICATES,
    SPECIAL,
    Effect,
    Planted,
    draw_roles,
    word_texts,
    write_tokenizer,
)
from memscope.text.sentences import Sentence, Triple

_N, _K, _DEAD = 256, 4, 40
_VOCAB, _CONTEXT, _DIM, _HEADS = 48, 15, 64, 4
_CONSTANT = _VOCAB
"""Axis of the constant; token axes come before it, context axes after it."""
_TOKEN_AXES, _CONTEXT_AXES = slice(0, _VOCAB), slice(_CONSTANT + 1, _DIM)
_TRIGGERS = tuple(range(len(SPECIAL), len(SPECIAL) + 3))
"""Tokens that detector, duplicates and decoy are wired to; no value raises them."""
_LEVEL = 0.5
"""Value of every embedding on the constant axis."""
_WIRED, _PUSH, _ATTENTION = 16.0, 0.3, 4.0
"""Scale of wired keys (ordinary ones have length 1), of values, and of q.k."""
_WORDS = 3
"""Number of tokens of a sentence."""


class PlantedRun(NamedTuple):
    """A run folder with its corpus, and the planted truth."""

    def __repr__(self) -> str:
        return brief(self)

    run: Path
    corpus: Path
    truth: Planted
    pushed: int
    """Token that follows the detector's token, and whose logit the detector raises."""


def plant_run(path: Path, seed: int, effects: Collection[Effect] = EFFECTS, **memory: Any) -> PlantedRun:
    """Write a run of 2 memory layers and 256 entries whose last layer holds ``effects``, and a corpus for it.

    ``detector``: one entry is selected exactly at trigger token 3 and raises the token that follows it in nine of ten
    cases. ``duplicates``: two entries of one sentence, both selected exactly at trigger 4. ``decoy``: an entry is
    selected exactly at trigger 5, and read with a weight near 0. ``dead``: 40 keys that no token can reach.
    ``preference``: the keys of one predicate are longer, so that they win ``FACTOR`` times as often as others.

    Args:
        path: folder to write; the run is in ``run``, the text in ``corpus.jsonl``.
        seed: of everything random.
        effects: the effects to plant; entries of the other effects are ordinary ones.
        memory: values of the config's ``memory`` section, such as another score or read function; the gate is a full
            one of one head, and the read projects its slots.

    Example:
        >>> planted = plant_run(Path("planted"), seed=0, effects=["dead"])
        >>> planted.run  # a run like any other
    """
    chance = np.random.default_rng(seed)
    roles = draw_roles(_N, _DEAD, chance)
    words = np.arange(_TRIGGERS[-1] + 1, _VOCAB)
    pushed = int(chance.choice(words))
    sentences = np.stack([chance.choice(words, _WORDS, replace=False) for _ in range(_N)])
    predicates = tuple(PREDICATES[code] for code in chance.permutation(np.arange(_N) % len(PREDICATES)))
    if "detector" in effects:
        sentences[roles.detector] = [_TRIGGERS[0], pushed, pushed]
    if "duplicates" in effects:
        sentences[roles.duplicates[1]] = sentences[roles.duplicates[0]]
    wired: tuple[tuple[int, Effect, int], ...] = (
        (_TRIGGERS[0], "detector", roles.detector),
        *((_TRIGGERS[1], "duplicates", entry) for entry in roles.duplicates),
        (_TRIGGERS[2], "decoy", roles.decoy),
    )
    truth = Planted(
        path=path / "run",
        detectors={entry: token for token, effect, entry in wired if effect in effects},
        duplicates=roles.duplicates if "duplicates" in effects else (),
        dead=roles.dead if "dead" in effects else (),
        decoys=(roles.decoy,) if "decoy" in effects else (),
        preferred=PREDICATES[0] if "preference" in effects else None,
        predicates=predicates,
    )
    make_folder(path / "run")
    write_tokenizer(path / "run" / "tokenizer.json", word_texts(_VOCAB))
    _write_corpus(path / "corpus.jsonl", words, pushed, chance)
    config = _config(path, memory)
    write_text(path / "run" / "config.yaml", dump_config(config))
    model = _build_model(config, truth, sentences, chance)
    save_file(model.state_dict(), path / "run" / MODEL)
    return PlantedRun(path / "run", path / "corpus.jsonl", truth, pushed)


def _config(path: Path, memory: dict[str, Any]) -> Config:
    raw = {
        "model": {
            "vocab_size": _VOCAB,
            "dim": _DIM,
            "n_layers": 2,
            "n_heads": _HEADS,
            "n_kv_heads": _HEADS,
            "max_seq_len": 128,
        },
        "memory": {
            "knowledge_num": _N,
            "knowledge_dim": _DIM,
            "num_selected": _K,
            "gate": "full",
            "score_fn": "relu",
            "read_fn": "gelu",
            **memory,
        },
        "data": {"cache_dir": str(path / "cache")},
        "train": {"dtype": "float32"},
    }
    return validate_config(raw, source="planted run")


def _write_corpus(path: Path, words: np.ndarray, pushed: int, chance: np.random.Generator) -> None:
    """Write 60 documents of 100 words: random, except for triggers (a fifth) and the token after the first trigger."""
    lines = []
    for _ in range(60):
        ids = np.where(chance.random(100) < 0.2, chance.choice(_TRIGGERS, 100), chance.choice(words, 100))
        follows = np.flatnonzero((ids[:-1] == _TRIGGERS[0]) & (chance.random(99) < 0.9)) + 1
        ids[follows] = pushed
        lines.append("".join(f" w{number}" for number in ids))
    write_text(path, "".join(f'{{"text": "{line}"}}\n' for line in lines))


def _build_model(
    config: Config, truth: Planted, sentences: np.ndarray, chance: np.random.Generator
) -> MemoryTransformer:
    """Set every weight, and save the bank's origin."""
    model = MemoryTransformer(config, seed=0)
    with torch.no_grad():
        table = torch.zeros(_VOCAB, _DIM)
        table[:, :_VOCAB] = torch.eye(_VOCAB)
        table[:, _CONSTANT] = _LEVEL
        words = _gaussian(chance, _VOCAB, _CONTEXT) * 0.5 / _CONTEXT**0.5
        table[:, _CONTEXT_AXES] = words - words.mean(
            0
        )  # otherwise all contexts would look alike and select the same entries
        model.embed.weight.copy_(table)
        model.norm.weight[_CONSTANT:] = 0
        _fill_bank(model, truth, sentences, table.numpy())
        for layer in config.model.memory_layers:
            _set_attention(model.get_submodule(f"blocks.{layer}.attn"), chance)
            _set_read(model, layer)
            gate = model.memory_layer(layer).gate
            gate.get_parameter("proj.weight").copy_(torch.eye(_DIM))
            gate.get_parameter("keys")[0].copy_(_keys(truth if layer == PLANTED_LAYER else None, chance))
    return model


def _fill_bank(model: MemoryTransformer, truth: Planted, sentences: np.ndarray, table: np.ndarray) -> None:
    """Make entries from their sentences; a decoy's constant changes its sign, so that its q.k is far below zero."""
    assert model.bank is not None
    ids = sentences.tolist()
    init = init_bank(model.bank.entries.detach().numpy(), ids, table, pad=0, seed=model.cfg.train.seed)
    texts = ["".join(f" w{number}" for number in sentence) for sentence in ids]
    provenance = [
        Sentence(text, (Triple(f"u{entry}", f"w{sentence[0]}", truth.predicates[entry], f"w{sentence[-1]}"),))
        for entry, (text, sentence) in enumerate(zip(texts, ids, strict=True))
    ]
    save_bank_init(truth.path, init, provenance, ids)
    model.bank.entries.copy_(torch.from_numpy(init.entries))
    constant = torch.from_numpy(init.projection[_CONSTANT])
    for decoy in truth.decoys:
        entry = model.bank.entries[decoy, 0]
        entry -= 9 * (entry @ constant) * constant


def _set_attention(attention: torch.nn.Module, chance: np.random.Generator) -> None:
    """Look back at random tokens, a few at a time, and write a random mix of their context vectors."""
    assert isinstance(attention, Attention)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        projection.weight.zero_()
    attention.q_proj.weight[:, _TOKEN_AXES] = _gaussian(chance, _DIM, _VOCAB)
    attention.k_proj.weight[:, _TOKEN_AXES] = _gaussian(chance, _DIM, _VOCAB)
    attention.v_proj.weight[:, _CONTEXT_AXES] = _gaussian(chance, _DIM, _CONTEXT) / _DIM**0.5
    attention.o_proj.weight[_CONTEXT_AXES] = _gaussian(chance, _CONTEXT, _DIM) * 0.5 / _DIM**0.5


def _set_read(model: MemoryTransformer, layer: int) -> None:
    """q.k from the constants of token and entry, the same in every head; values from token axes without triggers."""
    read = model.memory_layer(layer).read
    assert read.q_proj is not None and read.k_proj is not None and read.v_proj is not None
    back = torch.from_numpy(
        orthogonal_projection(_DIM, _DIM, seed=model.cfg.train.seed)
    )  # entry space -> residual stream
    heads = range(0, _DIM, _DIM // _HEADS)  # first axis of every read head
    read.q_proj.weight.zero_()
    read.k_proj.weight.zero_()
    for axis in heads:
        read.q_proj.weight[axis, _CONSTANT] = _ATTENTION
        read.k_proj.weight[axis] = back[_CONSTANT]
    spoken = torch.zeros(_DIM)
    spoken[_TRIGGERS[-1] + 1 : _VOCAB] = _PUSH
    read.v_proj.weight.copy_(spoken[:, None] * back)
    read.o_proj.weight.copy_(torch.eye(_DIM))


def _keys(truth: Planted | None, chance: np.random.Generator) -> torch.Tensor:
    """Keys ``[N, dim]`` of a layer: unit vectors of the context axes, and the planted keys; None plants none."""
    keys = torch.zeros(_N, _DIM)
    keys[:, _CONTEXT_AXES] = torch.nn.functional.normalize(_gaussian(chance, _N, _CONTEXT), dim=-1)
    if truth is None:
        return keys
    if truth.preferred:
        liked = torch.tensor([predicate == truth.preferred for predicate in truth.predicates])
        keys[liked] *= _length_of_preferred(liked.float().mean().item())
    for entry, token in truth.detectors.items():
        keys[entry] = 0
        keys[entry, [token, _CONSTANT]] = torch.tensor([_WIRED, -_WIRED])
    keys[list(truth.dead)] = 0
    keys[list(truth.dead), _CONSTANT] = -10 * _WIRED
    return keys


def _length_of_preferred(share: float) -> float:
    """Length at which keys are among the best K ``FACTOR`` times as often as keys of length 1.

    The cosine c of a key with any context is distributed like (1 + c) / 2 ~ Beta((d - 1) / 2, (d - 1) / 2) in d
    dimensions, and the best K of N lie above a threshold that longer keys reach at a smaller cosine.
    """
    cosine = beta((_CONTEXT - 1) / 2, (_CONTEXT - 1) / 2, loc=-1, scale=2)
    chance = _K / _N / (1 + (FACTOR - 1) * share)  # of an ordinary entry
    return float(cosine.isf(chance) / cosine.isf(FACTOR * chance))


def _gaussian(chance: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(chance.standard_normal(shape, np.float32))
