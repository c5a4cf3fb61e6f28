"""All kernels under one name, as ``torch.ops.memscope`` has the loops of the CPU; ``native_for`` returns this module.

What PyTorch does well on a GPU by itself is not here: callers ask for it by ``hasattr``.
"""

from memscope.model.ops.gpu.adam_rows import adam_rows
from memscope.model.ops.gpu.gather import gather_dot, gather_sum
from memscope.model.ops.gpu.gelu_read import gelu_read, gelu_read_backward
from memscope.model.ops.gpu.product_keys import product_scores, product_scores_backward, product_top
from memscope.model.ops.gpu.rms_norm import rms_norm, rms_norm_backward
from memscope.model.ops.gpu.scatter import scatter_sum, take_rows

__all__ = [
    "adam_rows",
    "gather_dot",
    "gather_sum",
    "gelu_read",
    "gelu_read_backward",
    "product_scores",
    "product_scores_backward",
    "product_top",
    "rms_norm",
    "rms_norm_backward",
    "scatter_sum",
    "take_rows",
]
