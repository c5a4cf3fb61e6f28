"""What a process loads at its first use, loaded once for those that are forked: numba, and how PyTorch finds loops."""

import numpy as np
import torch.utils.cpp_extension  # noqa: F401

from memscope.census.kernels import tally
from tests import compiled  # noqa: F401

_one, _weight = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32)
tally(_one, _weight, _weight, _one[0], _one, np.zeros((1, 1), np.int32), np.zeros((1, 1, 3)))
