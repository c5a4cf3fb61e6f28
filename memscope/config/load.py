"""One configuration for a whole run: a YAML file with the sections ``model``, ``memory``, ``text``, ``data`` and
``train``.

    config = load_config("demo", overrides=["knowledge_num=1024"])      # a preset, or the path of a file

Keys keep the names of the founding experiment (``dim``, ``knowledge_num``, ``num_selected`` ...). They are unique
over the sections, so ``--set dim=256`` and ``--set model.dim=256`` say the same. Every model is frozen; what can be
derived is a property, not a key.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from memscope.base.errors import InputError
from memscope.base.words import did_you_mean
from memscope.config.data import DataConfig
from memscope.config.memory import MemoryConfig, reachable_entries
from memscope.config.model import ModelConfig
from memscope.config.presets import find_config
from memscope.config.removed import REMOVED, without_removed
from memscope.config.section import Section
from memscope.config.text import TextConfig
from memscope.config.training import TrainConfig


class Config(Section):
    """Everything that defines a run; saved as ``config.yaml`` in the run folder."""

    model: ModelConfig = ModelConfig()
    memory: MemoryConfig = MemoryConfig()
    text: TextConfig = TextConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.memory.slot_proj and self.model.dim % self.read_heads:
            raise ValueError(f"dim={self.model.dim} is not a multiple of read_heads={self.read_heads}")
        if self.model.text_layers and self.model.dim % self.text.text_heads:
            raise ValueError(f"dim={self.model.dim} is not a multiple of text_heads={self.text.text_heads}")
        if self.model.text_layers and self.train.save_interval % self.text.refresh_interval:
            raise ValueError(
                f"save_interval={self.train.save_interval} is not a multiple of refresh_interval="
                f"{self.text.refresh_interval}: a run that goes on from a checkpoint would train otherwise"
            )
        if self.model.text_layers and not self.text.sentences_path:
            raise ValueError("block=text reads sentences: set text.sentences_path")
        if self.text.facts_path and not self.text.sentences_path:
            raise ValueError("statements are made of facts that sentences state: set text.sentences_path")
        if self.read_heads % self.memory.read_slices:
            raise ValueError(f"read_slices={self.memory.read_slices} must divide read_heads={self.read_heads}")
        if self.memory.entry_dtype == "bfloat16" and not self.train.lazy_bank:
            raise ValueError(
                "entry_dtype=bfloat16 needs train.lazy_bank=true: updates of all entries are rounded to the nearest, "
                "which loses small ones"
            )
        if len(self.model.memory_layers) % self.memory.bank_groups:
            raise ValueError(
                f"bank_groups={self.memory.bank_groups} does not divide the {len(self.model.memory_layers)} memory "
                "layers; lower it or change n_layers or block"
            )
        if self.model.ngram_layers:
            self._check_ngrams()
        return self

    def _check_ngrams(self) -> None:
        memory = self.memory
        if len(memory.ngram_orders) != memory.gate_heads:
            raise ValueError(
                f"ngram_orders={list(memory.ngram_orders)} has {len(memory.ngram_orders)} orders for "
                f"gate_heads={memory.gate_heads}: a head looks up n-grams of one order"
            )
        if memory.group_size < memory.selected:
            raise ValueError(f"{memory.selected} hashes need as many entries; a group has {memory.group_size}")
        if self.train.revive_after:
            raise ValueError("revive_after is for gates that learn what they select; block=ngram looks entries up")

    def entries_of(self, layer: int) -> slice:
        """The entries that a memory layer can select; all of them unless ``bank_groups`` says otherwise."""
        return reachable_entries(layer, self.model.memory_layers, self.memory.knowledge_num, self.memory.bank_groups)

    @property
    def first_sentence(self) -> int:
        """Number of the first sentence among all entries: those of a memory come before."""
        return self.memory.knowledge_num if self.model.memory_layers else 0

    @property
    def read_heads(self) -> int:
        """Heads of the cross-attention after derivation."""
        return self.memory.read_heads or self.model.n_heads


SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "memory": MemoryConfig,
    "text": TextConfig,
    "data": DataConfig,
    "train": TrainConfig,
}


def load_config(config: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML config, the file at a path or the preset of a name, and apply ``key=value`` overrides.

    Raises:
        InputError: the file is missing or not YAML, a key is unknown or was removed, or values are wrong or clash.

    Example:
        >>> config = load_config("memory_small", ["train.steps=100", "memory.knowledge_num=4096"])
        >>> config.memory.selected  # entries that a token selects
    """
    path = find_config(config)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a text file; a YAML config was expected") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict) or any(not isinstance(value, dict) for value in raw.values()):
        raise InputError(f"{path}: a config has the sections {', '.join(SECTIONS)}, each with key: value lines")
    for section, values in raw.items():
        if section not in SECTIONS:
            raise InputError(f"{path}: unknown section '{section}'{did_you_mean(section, SECTIONS)}")
        for key in values:
            if key not in SECTIONS[section].model_fields and f"{section}.{key}" not in REMOVED:
                raise InputError(
                    f"{path}: unknown key '{section}.{key}'{did_you_mean(key, SECTIONS[section].model_fields)}"
                )
    for override in overrides:
        section, key, value = _parse_override(override)
        raw.setdefault(section, {})[key] = value
    return validate_config(raw, source=str(path))


def validate_config(raw: dict[str, Any], source: str) -> Config:
    """Build a ``Config`` from nested dicts; every problem becomes one ``InputError`` that names its key."""
    try:
        return Config.model_validate(without_removed(raw, source))
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"][:2])
            message = problem["msg"].removeprefix("Value error, ")
            shown = f", got {problem['input']!r}" if problem["type"] != "value_error" else ""
            problems.append(f"{key}: {message}{shown}")
        raise InputError(f"{source}: {'; '.join(dict.fromkeys(problems))}") from error


def dump_config(config: Config) -> str:
    """The config as YAML, every key written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _parse_override(override: str) -> tuple[str, str, Any]:
    name, separator, text = override.partition("=")
    if not separator:
        raise InputError(f"--set {override}: expected key=value")
    known = _by_name(f"{section}.{key}" for section, cls in SECTIONS.items() for key in cls.model_fields)
    readable = known | _by_name(REMOVED)  # of those, only defaults pass
    if name not in readable:
        raise InputError(f"--set {override}: unknown key '{name}'{did_you_mean(name, known)}")
    section, _, key = readable[name].partition(".")
    try:
        return section, key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is not valid YAML") from error


def _by_name(keys: Iterable[str]) -> dict[str, str]:
    """Keys ``section.key`` by that name and by the short one."""
    return {name: full for full in keys for name in (full, full.partition(".")[2])}
