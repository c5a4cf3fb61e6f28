"""Open any folder with a model as a subject."""

from pathlib import Path

import torch

from memscope.base.errors import InputError
from memscope.run.adapters.hugging_face import open_hugging_face
from memscope.run.adapters.neurons import folder_neurons, run_neurons
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import load_run
from memscope.run.folder import check_run, is_hugging_face
from memscope.run.subject import Subject


def open_subject(
    folder: Path, device: torch.device | None = None, window: int | None = None, neurons: int | None = None
) -> Subject:
    """The model in a folder: a run of memscope, or a Hugging Face mixture of experts.

    Args:
        folder: known by its files: ``config.yaml`` of a run, ``config.json`` of ``save_pretrained``.
        device: where to run it; by default the CPU.
        window: most tokens that a Hugging Face model reads at once; by default what it takes, at most 1,024.
        neurons: record so many neurons of feed-forward layers in place of what selects; the Hugging Face model may then
            be any.

    Raises:
        InputError: the folder holds no model, or one without a layer that selects; or a run shall read other windows.

    Example:
        >>> subject = open_subject(Path("runs/demo"))
        >>> [site.layer for site in subject.sites]
    """
    if is_hugging_face(folder):
        return folder_neurons(folder, neurons, device, window) if neurons else open_hugging_face(folder, device, window)
    if not neurons and not check_run(folder).model.selecting_layers:
        raise InputError(f"{folder}: an FFN baseline has no memory to record")
    if window is not None:
        raise InputError(f"{folder}: a run reads windows of its max_seq_len; leave --window out")
    run = load_run(folder, device)
    return run_neurons(run, neurons) if neurons else OwnRun(run)
