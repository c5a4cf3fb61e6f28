"""Keys that configs had once. The config of an old run still loads if they changed nothing in it.

``docs/log/removed-options.md`` says what each did, what was measured, and why it went.
"""

from typing import Any

from memscope.base.errors import InputError

REMOVED: dict[str, Any] = {
    "model.rope_theta": 1e6,
    "model.norm_eps": 1e-5,
    "memory.gate_hidden": 0,
    "memory.query_norm": "none",
    "memory.shared_keys": False,
    "memory.score_noise": 0.0,
    "memory.score_dropout": 0.0,
    "memory.balance_loss": 0.0,
    "memory.z_loss": 0.0,
    "memory.slot_use": "whole",
    "memory.residual_scale": 0.0,
    "memory.absorbed": True,
    "memory.bank_ema": 0.0,
    "memory.frozen_share": 0.0,
    "memory.database_choice": "random",
    "memory.embedding_init_path": None,
    "train.min_lr_ratio": 0.1,
    "train.weight_decay": 0.01,
    "train.beta2": 0.95,
    "train.freeze_bank_steps": 0,
    "train.sample_interval": 0,
}
"""Removed keys and the defaults they had, which is what every model does now."""
REMOVED_VALUES = {"memory.read_fn": ("none",)}
"""Removed values of keys that are still there."""
READS_THEM = "memscope 0.1.0 before 2026-12 (git checkout 1ac43cb)"
"""The last version that reads them."""


def without_removed(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """A config, as nested dicts, without removed keys.

    Raises:
        InputError: a removed key has another value than its default, or a key has a removed value.
    """
    kept: dict[str, Any] = {}
    for section, values in raw.items():
        if not isinstance(values, dict):  # wrong, which the sections themselves say
            kept[section] = values
            continue
        kept[section] = {}
        for key, value in values.items():
            name = f"{section}.{key}"
            is_used = name in REMOVED and not _equal(value, REMOVED[name])
            if is_used or value in REMOVED_VALUES.get(name, ()):
                raise InputError(
                    f"{source}: {name}={value} was removed; {READS_THEM} reads it, "
                    "docs/log/removed-options.md says what it did"
                )
            if name not in REMOVED:
                kept[section][key] = value
    return kept


def _equal(value: object, default: object) -> bool:
    if isinstance(value, str) and isinstance(default, float):  # YAML reads 1e-5 as text
        try:
            return float(value) == default
        except ValueError:
            return False
    return value == default
