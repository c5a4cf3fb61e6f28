"""Configs of old runs: a removed key passes at the default it had, and is refused with the version that reads it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from memscope.base.errors import InputError
from memscope.config.load import SECTIONS, Config, dump_config, load_config, validate_config
from memscope.config.removed import REMOVED, REMOVED_VALUES

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "memscope" / "presets" / "demo.yaml"
LOG = ROOT / "docs" / "log" / "removed-options.md"
CHANGED = {
    "model.rope_theta": 1e4,
    "model.norm_eps": 1e-6,
    "memory.gate_hidden": 64,
    "memory.query_norm": "rms",
    "memory.shared_keys": True,
    "memory.slot_use": "halves",
    "memory.absorbed": False,
    "memory.database_choice": "kmeans",
    "memory.embedding_init_path": "runs/other",
    "train.min_lr_ratio": 0.0,
    "train.beta2": 0.999,
    "train.freeze_bank_steps": 10,
    "train.sample_interval": 5,
}
"""Another value of each removed key; 0.5 where none stands here."""
READ_BY = r"memscope 0\.1\.0 before 2026-12 \(git checkout 1ac43cb\) reads it"


def old_config(tmp_path: Path, **changes: Any) -> Path:
    """The demo's config as a run wrote it when all removed keys were there, with some of them changed."""
    raw = yaml.safe_load(dump_config(load_config(DEMO)))
    for name, value in (REMOVED | changes).items():
        section, key = name.split(".")
        raw[section][key] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_an_old_run_that_left_removed_keys_alone_loads_as_ever(tmp_path: Path) -> None:
    assert load_config(old_config(tmp_path)) == load_config(DEMO)


@pytest.mark.parametrize("name", REMOVED)
def test_an_old_run_that_used_a_removed_key_says_which_version_reads_it(tmp_path: Path, name: str) -> None:
    value = CHANGED.get(name, 0.5)
    path = old_config(tmp_path, **{name: value})
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {name}={value}')} was removed; {READ_BY}"):
        load_config(path)


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_key_that_is_set_passes_at_its_default_only(name: str, short: bool) -> None:
    shown = name.partition(".")[2] if short else name
    default = yaml.safe_dump(REMOVED[name]).splitlines()[0]
    assert load_config(DEMO, [f"{shown}={default}"]) == load_config(DEMO)
    with pytest.raises(InputError, match=f"{re.escape(name)}=.* was removed; {READ_BY}"):
        load_config(DEMO, [f"{shown}={yaml.safe_dump(CHANGED.get(name, 0.5)).splitlines()[0]}"])


def test_an_override_can_put_a_removed_key_back_to_its_default(tmp_path: Path) -> None:
    path = old_config(tmp_path, **{"memory.z_loss": 0.5})
    assert load_config(path, ["z_loss=0"]) == load_config(DEMO)


@pytest.mark.parametrize(("text", "passes"), [("1e-5", True), ("0.00001", True), ("1e-6", False), ("small", False)])
def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path, text: str, passes: bool) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"model: {{norm_eps: {text}}}")
    if passes:
        assert load_config(path) == Config()
    else:
        with pytest.raises(InputError, match=READ_BY):
            load_config(path)


@pytest.mark.parametrize(("name", "values"), REMOVED_VALUES.items())
def test_a_removed_value_is_refused_in_files_and_overrides(tmp_path: Path, name: str, values: tuple[object]) -> None:
    for value in values:
        with pytest.raises(InputError, match=f"{re.escape(name)}={value} was removed; {READ_BY}"):
            load_config(old_config(tmp_path, **{name: value}))
        with pytest.raises(InputError, match=f"{re.escape(name)}={value} was removed; {READ_BY}"):
            load_config(DEMO, [f"{name}={value}"])


def test_what_is_no_section_is_still_refused_as_such() -> None:
    with pytest.raises(InputError, match=r"memory: .*valid dictionary"):
        validate_config({"memory": 5}, "test")


def test_the_log_has_an_entry_for_every_removed_key_and_no_key_is_both() -> None:
    assert not REMOVED.keys() & {f"{section}.{key}" for section, cls in SECTIONS.items() for key in cls.model_fields}
    headings = "\n".join(line for line in LOG.read_text().splitlines() if line.startswith("### "))
    assert not [name for name in [*REMOVED, *REMOVED_VALUES] if f"`{name.partition('.')[2]}" not in headings]
