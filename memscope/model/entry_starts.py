"""The record, in every checkpoint, of entries that started again during training."""

import torch
from torch import Tensor, nn


class EntryStarts(nn.Module):
    """When and from what each of N entries started, for ``train/revive.py``, which fills it.

    In the model's own file, which is replaced as a whole: entries and what is said of their origin are never of
    different steps, whatever a process was killed in.
    """

    idle: Tensor
    """Optimiser steps since an entry was last selected in training, or started."""
    step: Tensor
    """Optimiser steps done when an entry started; 0 = at initialisation."""
    sentence: Tensor
    """Row of ``bank_spare.parquet`` that a revived entry started from; -1 = none, or not revived."""
    used: Tensor
    """Rows of ``bank_spare.parquet`` that were used, the first ones."""
    revived: Tensor
    """Entries revived so far, each as often as it was."""

    def __init__(self, knowledge_num: int):
        super().__init__()
        self.register_buffer("idle", torch.zeros(knowledge_num, dtype=torch.int32))
        self.register_buffer("step", torch.zeros(knowledge_num, dtype=torch.int32))
        self.register_buffer("sentence", torch.full((knowledge_num,), -1, dtype=torch.int32))
        self.register_buffer("used", torch.zeros((), dtype=torch.int64))
        self.register_buffer("revived", torch.zeros((), dtype=torch.int64))
