"""A run on disk: model, optimiser and position as safetensors and JSON; no pickle is written or read.

    run/config.yaml  tokenizer.json  model.safetensors  bank_init.*  metrics.jsonl  run.json  files.json
    run/checkpoints/step-00000100/model.safetensors  optimizer.safetensors  state.json

A checkpoint folder is renamed into place when it is complete; ``run/model.safetensors`` is the newest checkpoint's
model. The hashes of a checkpoint's files are in its ``state.json``, those of the run's in ``files.json``
(``base/seals.py``); runs of earlier versions, which have none, load unchecked.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memscope.base.errors import DamageError, InputError
from memscope.base.files import atomic_path, disk_errors, sha256_file
from memscope.base.seals import LIST, check_file, check_listed, hashes, listed, read_sealed, write_sealed
from memscope.config.load import Config
from memscope.model.transformer import MemoryTransformer
from memscope.run.folder import MODEL, ORIGIN, SETTINGS, check_run, fingerprint, list_checkpoints
from memscope.run.text_bank import fill_text_bank, run_bank
from memscope.text.tokenizer import Tokenizer

__all__ = ["MODEL", "SETTINGS", "list_checkpoints"]
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"
_ADVICE = "restore it, or go on from an older checkpoint with 'memscope train --resume'"


@dataclass(frozen=True, repr=False)
class LoadedRun:
    """A trained model with its config and tokenizer."""

    path: Path
    config: Config
    tokenizer: Tokenizer
    model: MemoryTransformer
    fingerprint: str
    """SHA-256 of the model file, and of the sentences that it reads (``folder.fingerprint``)."""
    step: int | None = None
    """Training step of the model, where it was read from a checkpoint."""

    def __repr__(self) -> str:
        model, step = self.config.model, "" if self.step is None else f", step {self.step}"
        blocks = ", ".join(dict.fromkeys(model.blocks))
        parameters = f"{self.model.count_parameters():,} parameters"
        return f"LoadedRun({str(self.path)!r}: {parameters}, {model.n_layers} layers of {blocks}{step})"

    def tokens(self, text: str) -> Int[Tensor, "1 pos"]:
        """The tokens of a text as the model reads it, bos before it, on the model's device.

            logits, cache = run.model.run_with_cache(run.tokens("Apollo was the god of the sun"))

        Raises:
            InputError: the tokenizer cannot encode it.
        """
        return torch.tensor([self.tokenizer.prompt(text)], device=self.model.embed.weight.device)


def load_run(run: Path | str, device: torch.device | None = None, checkpoint: Path | None = None) -> LoadedRun:
    """Load a run's model in float32, in eval mode: the newest, or that of one of ``list_checkpoints(run)``.

    Raises:
        InputError: the folder is not a run, a file is corrupted, or weights do not have the shape of the config.
        DamageError: a file is not as training wrote it.

    Example:
        >>> run = load_run("runs/demo")
        >>> logits = run.model(run.tokens("Apollo was the god of"))
    """
    run = Path(run)
    before = _known_hashes(run, checkpoint)
    config, weights = check_run(run, checkpoint), (checkpoint or run) / MODEL
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    if tokenizer.vocab_size != config.model.vocab_size:
        raise InputError(
            f"{run / 'tokenizer.json'}: needs a vocab_size of {tokenizer.vocab_size}, config.yaml says "
            f"{config.model.vocab_size}; "
            "restore the tokenizer this model was trained with"
        )
    model = MemoryTransformer(config)
    load_weights(model, weights)
    if model.text_bank is not None:
        fill_text_bank(model, run_bank(run), tokenizer)
    model.float().to(device or torch.device("cpu")).eval()  # entries may have been kept in bfloat16
    check_listed(run, SETTINGS, "restore it")
    written = sha256_file(weights)
    # Training may have published another model meanwhile: the file is whole if either list has its hash.
    if all(known.get(MODEL, written) != written for known in (before, _known_hashes(run, checkpoint))):
        raise DamageError(f"{weights}: damaged (its bytes are not those that were written); {_ADVICE}")
    step = int(read_sealed(checkpoint / _STATE, _ADVICE, required=False)["step"]) if checkpoint else None
    return LoadedRun(run, config, tokenizer, model, fingerprint(run, written), step)


def load_weights(model: MemoryTransformer, path: Path) -> None:
    """Fill ``model`` from a safetensors file, strictly."""
    tensors = read_tensors(path)
    expected = model.state_dict()
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())[0]
        raise InputError(f"{path}: holds another model than config.yaml describes (tensor '{odd}')")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{path}: '{name}' has shape {tuple(tensor.shape)}, config.yaml gives {tuple(expected[name].shape)}"
            )
    model.load_state_dict(tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a missing or damaged one is an ``InputError``."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except SafetensorError as error:
        raise InputError(f"{path}: corrupted ({error}); restore it or resume from an older checkpoint") from error


class TrainingState(NamedTuple):
    """The tensors of a checkpoint, whole, for any number of processes."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """Named as the parameter, a slash and the optimiser's own key."""


def save_checkpoint(run: Path, step: int, state: TrainingState, keep: int) -> None:
    """Write ``checkpoints/step-*``, point ``run/model.safetensors`` at it and drop all but the newest ``keep``."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    if not folder.is_dir():
        with atomic_path(folder) as temporary, disk_errors(folder):
            temporary.mkdir()
            for file, tensors in ((MODEL, state.model), (_OPTIMIZER, state.optimizer)):
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / file)
            write_sealed(temporary / _STATE, {"step": step, "files": hashes(temporary, (MODEL, _OPTIMIZER))})
    publish_newest(run, keep)


def publish_newest(run: Path, keep: int) -> None:
    """Make ``run/model.safetensors`` the newest checkpoint's model and drop all but the newest ``keep`` checkpoints.

    The model is a hard link where the file system has them.
    """
    checkpoints = list_checkpoints(run)
    files = listed(run, _ADVICE)
    (run / LIST).unlink(missing_ok=True)  # whoever is killed before the new one leaves a run that nothing vouches for
    with atomic_path(run / MODEL) as temporary:
        try:
            os.link(checkpoints[-1] / MODEL, temporary)
        except OSError:
            shutil.copyfile(checkpoints[-1] / MODEL, temporary)
    published = _known_hashes(run, checkpoints[-1]).get(MODEL) or sha256_file(run / MODEL)
    files = files or hashes(run, (*SETTINGS, *ORIGIN))
    write_sealed(run / LIST, {"files": files | {MODEL: published}})
    for folder in checkpoints[:-keep]:
        shutil.rmtree(folder)


def list_files(run: Path) -> None:
    """Write ``files.json`` of a run whose settings and bank were just laid down."""
    write_sealed(run / LIST, {"files": hashes(run, (*SETTINGS, *ORIGIN, MODEL))})


def set_aside_damaged(run: Path) -> None:
    """Rename checkpoints that are newer than the newest whole one, with a message, so that training continues from it.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    folders = list_checkpoints(run)[::-1]
    for folder in folders:
        try:
            state = read_sealed(folder / _STATE, "restore it", required=False)
            for name in (MODEL, _OPTIMIZER):
                if sha256 := state.get("files", {}).get(name):
                    check_file(folder / name, sha256, "restore it")
            return
        except DamageError as error:
            if folder == folders[-1]:
                raise InputError(f"{run}: no checkpoint is whole ({error}); train again in another folder") from error
            aside = folder.with_name(f"damaged-{folder.name}")
            if aside.exists():
                shutil.rmtree(aside)
            folder.rename(aside)
            print(f"{error}: kept as {aside.name}, going on from an older checkpoint", file=sys.stderr)


def _known_hashes(run: Path, checkpoint: Path | None) -> dict[str, str]:
    if checkpoint is None:
        return listed(run, _ADVICE)
    if not (checkpoint / _STATE).is_file():
        return {}
    known: dict[str, str] = read_sealed(checkpoint / _STATE, _ADVICE, required=False).get("files", {})
    return known


def read_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """Steps done, and the optimiser's state; ``load_weights`` reads the model's weights."""
    return int(read_sealed(folder / _STATE, _ADVICE, required=False)["step"]), read_tensors(folder / _OPTIMIZER)
