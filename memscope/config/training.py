"""The section ``train``: the optimisation, and what is measured on the way."""

from typing import Literal

from pydantic import Field

from memscope.config.section import Section


class TrainConfig(Section):
    """The optimisation, and what is measured on the way."""

    epochs: int = Field(1, gt=0)
    """Passes over the training corpus; ignored when ``steps`` is given."""
    steps: int = Field(0, ge=0)
    """Optimiser steps; 0 derives them from ``epochs``."""
    batch_size: int = Field(16, gt=0)
    """Sequences per forward pass and process."""
    accumulation_steps: int = Field(1, gt=0)
    """Forward passes per optimiser step."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    memory_lr_scale: float = Field(1.0, gt=0)
    """Multiplier on the learning rate of bank and gate keys, kept by the schedule (PKM practice: 4 to 10)."""
    lazy_bank: bool = False
    """Update only the entries that were selected in a step: others cost no time, but their momentum stands still
    too."""
    warmup_iters: int = Field(0, ge=0)
    """Steps of linear warm-up before the cosine."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of blocks and run them again in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile attention and feed-forward layers for training steps (``torch.compile``; on a CPU it needs a C++
    compiler). Hooks inside them are not called then."""
    revive_after: int = Field(0, ge=0)
    """Steps that an entry may go unselected in training before it starts again: from the next sentence of
    ``database_init_path`` that initialises none, or when none is left from a random vector; under the full gate its key
    moves to where a query is, product keys stay (``balance_bias`` makes them selected). 0 = never."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Autocast type of forward and backward; parameters stay float32, but for what ``entry_dtype`` says. ``auto`` =
    bfloat16 where the device has instructions for it, else float32; a run notes what it took and goes on with it."""
    seed: int = 1337
    """Seed of initialisation, sampling of sentences and data order."""
    log_interval: int = Field(10, gt=0)
    """Steps between lines of metrics."""
    eval_interval: int = Field(100, gt=0)
    """Steps between validations; the last step always validates."""
    eval_tokens: int = Field(65536, gt=0)
    """Validation tokens per evaluation while training."""
    save_interval: int = Field(100, gt=0)
    """Steps between checkpoints; the last step always saves."""
    keep_checkpoints: int = Field(2, gt=0)
    """Newest checkpoints to keep."""
    profile_interval: int = Field(10, gt=0)
    """Steps between measurements of data, forward, backward and optimiser time."""
    tracker: Literal["tensorboard", "wandb", "swanlab", "trackio", "none"] = "tensorboard"
    """Experiment tracker, through Accelerate; ``metrics.jsonl`` is always written."""
