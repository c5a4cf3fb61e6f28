"""Check that a run folder can be used or continued, without loading the model or torch.

check_run(Path("runs/demo"))                           # a trained run, or an InputError at once
check_run_folder(config, Path("runs/demo"), resume=True)
"""

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memscope.base.errors import InputError
from memscope.base.files import expect_file, read_json, sha256_file, write_json
from memscope.base.seals import check_listed
from memscope.config.load import Config, load_config
from memscope.recording.info import INFO, read_info
from memscope.text.special_tokens import ROLES_FILE

CONFIG, MODEL, START = "config.yaml", "model.safetensors", "start.json"
SENTENCES = "text_bank.parquet"
CLOZES = "clozes.json"
"""What a run may be asked whose statements are made of its own sentences (``train/lessons/clozes.py``)."""
SETTINGS = (CONFIG, "tokenizer.json", ROLES_FILE)
ORIGIN = ("bank_init.parquet", "bank_init.safetensors", "bank_spare.parquet", SENTENCES)
"""Files with a run's settings, and with the starts of its entries."""
MAY_CHANGE = frozenset(
    {"data.cache_dir", "train.steps", "train.epochs", "train.tracker", "train.keep_checkpoints"}
    | {f"train.{kind}_interval" for kind in ("log", "eval", "save", "profile")}
    | {"train.compile", "train.gradient_checkpointing"}
)
"""Keys that a run may go on with other values of: how long and how it is trained and watched, not what it learns."""
_CORPORA = {"data.train_path", "data.valid_path"}
_STARTS = {"data.tokenizer_path", "memory.database_init_path", "text.sentences_path", "text.facts_path"}
"""Files that a run starts from; they are not read again once it has a checkpoint."""
_BATCH = {"train.batch_size", "train.accumulation_steps"}


def fingerprint(run: Path, weights: str) -> str:
    """What tells a model from others: the SHA-256 of its weights, and of its sentences where it reads some.

    Args:
        run: its folder.
        weights: SHA-256 of the model file.
    """
    if not (run / SENTENCES).is_file():
        return weights
    return hashlib.sha256((weights + sha256_file(run / SENTENCES)).encode()).hexdigest()


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder holds a model of the transformers library and no run."""
    return (folder / "config.json").is_file() and not (folder / CONFIG).is_file()


def check_run(run: Path, checkpoint: Path | None = None) -> Config:
    """Check that a folder is a trained run, before torch is loaded; returns its config.

    Raises:
        InputError: the folder is not a run, has no model yet, or its config cannot be read.
    """
    if not run.is_dir():
        problem = "this is a file; a run is a folder" if run.exists() else "no such folder"
        raise InputError(f"{run}: {problem}; train a run with 'memscope train'")
    if (run / INFO).is_file():
        raise InputError(f"{run}: this is a recording; give the run that it was made of, {read_info(run).run}")
    if not (run / CONFIG).is_file():
        raise InputError(f"{run}: not a run folder (no {CONFIG}); train one with 'memscope train'")
    weights = (checkpoint or run) / MODEL
    if not weights.is_file():
        raise InputError(f"{weights.parent}: no {MODEL}; no finished checkpoint yet; go on with --resume")
    return load_config(run / CONFIG)


def check_no_run(folder: Path) -> None:
    """Refuse to write a recording into a run's folder.

    Raises:
        InputError: the folder is a run.
    """
    if (folder / CONFIG).is_file() and not (folder / INFO).is_file():
        raise InputError(f"{folder}: this is a run; choose another --out for its recording")


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def check_run_folder(config: Config, run: Path, resume: bool) -> None:
    """Refuse to overwrite a run, or to continue it under another config or on other data.

    Raises:
        InputError: either would happen, a file is missing, or the tracker is not installed.
    """
    if (run / INFO).is_file():
        raise InputError(f"{run}: this is a recording; choose another --out for the run")
    started = (run / CONFIG).is_file()
    if started and not resume:
        raise InputError(f"{run}: holds a run already; add --resume to go on with it, or choose another --out")
    for key in sorted(_CORPORA):
        if not (value := _value(config, key)):
            raise InputError(f"{key} is empty; set it to a corpus ('memscope corpus' writes one)")
        expect_file(Path(value), f"corpus file ({key}); 'memscope corpus' writes the default one")
    if started:
        check_listed(run, (*SETTINGS, *ORIGIN), "restore it")
        _check_same(load_config(run / CONFIG), config, run)
    if not list_checkpoints(run):
        _check_starts(config, run)
    tracker = config.train.tracker
    if tracker != "none" and find_spec(tracker) is None:
        raise InputError(f"train.tracker={tracker} is not installed: pip install {tracker}, or set it to none")


def write_start(config: Config, run: Path, samples: int) -> None:
    """Note in ``start.json`` what a run was started with, unless it stands there: hashes of its files, by key, and
    the sequences of one optimiser step over all processes.
    """
    if not (run / START).is_file():
        hashes = {key: _hash(config, key) for key in sorted(_CORPORA | _STARTS) if _readable(config, key)}
        write_json(run / START, {"sha256": hashes, "sequences_per_step": samples})


def check_steps(run: Path, done: int, wanted: int) -> None:
    """Refuse fewer steps than a run has done.

    Raises:
        InputError: fewer steps are asked for.
    """
    if wanted < done:
        raise InputError(f"{run}: has done {done} steps, and train.steps or train.epochs ask for {wanted}; give more")


def _check_same(old: Config, new: Config, run: Path) -> None:
    """Refuse a config that is not the run's, but for what may change."""
    start: dict[str, Any] = read_json(run / START) if (run / START).is_file() else {}
    known = start.get("sha256", {})
    for key in sorted(_CORPORA | (_STARTS if not list_checkpoints(run) else set())):
        if key in known and _readable(new, key) and _hash(new, key) != known[key]:
            was = f"was {_value(old, key)!r}, " if _value(old, key) != _value(new, key) else ""
            raise InputError(
                f"{run}: {key} {was}is {_value(new, key)!r}, which holds other bytes than the run was started with"
            )
    changed = [
        f"{section}.{key}"
        for section, values in old.model_dump().items()
        for key in values
        if _value(old, f"{section}.{key}") != _value(new, f"{section}.{key}")
    ]
    may_change = MAY_CHANGE | {"train.dtype"} if new.train.dtype == "auto" else MAY_CHANGE  # it takes the run's
    refused = [key for key in changed if key not in may_change and not _is_moved(old, new, key, known)]
    if set(refused) <= _BATCH and _sequences(new) == start.get("sequences_per_step"):
        refused = []  # on another number of processes
    if refused:
        changes = "; ".join(f"{key} was {_value(old, key)!r}, is {_value(new, key)!r}" for key in refused[:3])
        more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
        where = "docs/reference/training.md, Going on"
        raise InputError(f"{run}: was started with another config ({changes}{more}); see {where}")
    if (was := start.get("sequences_per_step", _sequences(new))) != _sequences(new):
        raise InputError(
            f"{run}: a step had {was} sequences, and batch_size x accumulation_steps x processes are "
            f"{_sequences(new)} now; set train.batch_size or train.accumulation_steps so that they are the same"
        )


def _is_moved(old: Config, new: Config, key: str, known: dict[str, str]) -> bool:
    """Whether a file of the run has moved and has the same bytes."""
    if key not in _CORPORA | _STARTS or not (_readable(new, key)):
        return False
    was = known.get(key) or (_hash(old, key) if _readable(old, key) else None)
    return _hash(new, key) == was


def _check_starts(config: Config, run: Path) -> None:
    """Refuse a new run whose starting files are missing."""
    for key in sorted(_STARTS):
        value = _value(config, key)
        if not value or (key == "data.tokenizer_path" and (run / "tokenizer.json").is_file()):
            continue
        section = key.split(".")[0]
        if section == "memory" and not config.model.memory_layers:
            continue
        if section == "text" and not config.model.text_layers:
            continue
        expect_file(Path(value), f"file ({key})")


def _sequences(config: Config) -> int:
    """Sequences of one optimiser step over all processes, whose number the launcher sets."""
    return config.train.batch_size * config.train.accumulation_steps * int(os.environ.get("WORLD_SIZE", "1"))


def _value(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _readable(config: Config, key: str) -> bool:
    return bool(_value(config, key)) and Path(_value(config, key)).is_file()


def _hash(config: Config, key: str) -> str:
    return sha256_file(Path(_value(config, key)))
