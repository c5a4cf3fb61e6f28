"""Open any folder with a model as a subject."""

from pathlib import Path

import torch

from memscope.base.errors import InputError
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import load_run
from memscope.run.folder import check_run
from memscope.run.subject import Subject


def open_subject(folder: Path, device: torch.device | None = None) -> Subject:
    """The model in a folder: a run of memscope.

    Raises:
        InputError: the folder holds no model, or one without a layer that selects.
    """
    if not check_run(folder).model.memory_layers:
        raise InputError(f"{folder}: an FFN baseline has no memory to record")
    return OwnRun(load_run(folder, device))
