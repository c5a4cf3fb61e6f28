"""What findings and captions call a recording's model, layers and selections."""

from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo


def selections(recording: Recording, all_layers: bool = False) -> str:
    """D: selections of one layer, or of all."""
    info = recording.info
    return f"{info.rows * info.selected * (len(info.layers) if all_layers else 1):,}"


def shared_by(info: RecordingInfo) -> str:
    """Which layers select among which entries."""
    if info.bank_groups == 1:
        return "shared by all layers"
    each = len(info.layers) // info.bank_groups
    owners = "one for each layer" if each == 1 else f"one for every {each} layers in order"
    return f"in {info.bank_groups} groups of {info.group_size:,}, {owners}"


def model_name(recording: Recording) -> str:
    """What a model is called: the run folder's name, and the training step where that is known."""
    info = recording.info
    return info.run_name if info.step is None else f"{info.run_name} at step {info.step:,}"
