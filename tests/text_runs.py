"""A small world of people, the sentences of a bank that state its facts, and configs of models that read them.

write_world(folder)                                   # sentences.json and facts.json
config = text_config(corpus_dir, folder)              # two layers: a memory, then sentences
"""

import json
from collections.abc import Sequence
from pathlib import Path

from memscope.config.load import Config
from memscope.model.transformer import MemoryTransformer
from memscope.run.text_bank import fill_text_bank
from memscope.text.fact_files import Fact
from memscope.text.sentences import Sentence, Triple
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.bank import SentenceBank
from tests.conftest import tiny_config

FIRST = ("Ada", "Bo", "Cora", "Dan", "Eva", "Finn", "Gwen", "Hugo")
LAST = ("Holm", "Lind", "Wells", "Frost")
TOWNS = ("Aston", "Berrow", "Calder", "Dunmore", "Elham", "Farley")
WORK = ("painter", "engineer", "physician", "composer", "farmer", "printer")
WORDINGS = {
    "place of birth": ("[X] came from the town of [Y] , far away .", "[X] was born in [Y] ."),
    "occupation": ("People knew [X] as a [Y] of the old school .", "[X] works as a [Y] ."),
}
"""By predicate: how a sentence of the bank states it, and the template that asks for it."""


def world(families: Sequence[str] = LAST) -> list[Fact]:
    """Two facts about each of the people of some families; by default 32 people."""
    facts = []
    for number, person in enumerate(f"{first} {last}" for last in families for first in FIRST):
        for place, (predicate, (_, template)) in enumerate(WORDINGS.items()):
            value = (TOWNS, WORK)[place][(number * 5 + number // 6 + place) % 6]
            facts.append(Fact(f"f{number}-{place}", person, predicate, value, template))
    return facts


def sentence_of(fact: Fact) -> Sentence:
    """How the bank states a fact."""
    text = WORDINGS[fact.predicate][0].replace("[X]", fact.subject).replace("[Y]", fact.object)
    return Sentence(text, (Triple(fact.uuid, fact.subject, fact.predicate, fact.object),))


def world_tokenizer(size: int = 320) -> Tokenizer:
    """A tokenizer of the bank's sentences."""
    return Tokenizer.train((sentence_of(fact).text for fact in world() * 3), size)


def world_bank(tokenizer: Tokenizer) -> SentenceBank:
    """The bank of all facts."""
    sentences = [sentence_of(fact) for fact in world()]
    return SentenceBank.of(sentences, tokenizer.encode_batch([sentence.text for sentence in sentences]))


def write_world(folder: Path, families: Sequence[str] = LAST) -> None:
    """Write ``sentences.json``, as T-REx has them, and ``facts.json``."""
    rows = [{"target": [{"sentence": sentence_of(fact).text, **fact._asdict()}]} for fact in world(families)]
    (folder / "sentences.json").write_text(json.dumps(rows))
    (folder / "facts.json").write_text(json.dumps([fact._asdict() for fact in world(families)]))


def text_config(corpus_dir: Path, folder: Path, **sections: dict[str, object]) -> Config:
    """``tiny_config`` with a memory and then a text layer, of the world in a folder."""
    model: dict[str, object] = {"block": ["memory", "text"]}
    text: dict[str, object] = {
        "sentences_path": str(folder / "sentences.json"),
        "facts_path": str(folder / "facts.json"),
        "sentence_num": 64,
        "sentence_length": 40,
        "candidates": 8,
        "slot_dim": 16,
        "text_heads": 4,
        "text_key_dim": 8,
        "refresh_interval": 5,
    }
    sections["model"] = model | sections.get("model", {})
    sections["text"] = text | sections.get("text", {})
    return tiny_config(corpus_dir, **sections)


def filled_model(config: Config, tokenizer: Tokenizer, seed: int = 0) -> MemoryTransformer:
    """An untrained model that holds the world's sentences."""
    model = MemoryTransformer(config, seed)
    fill_text_bank(model, world_bank(tokenizer), tokenizer)
    return model
