"""RMSNorm and a gated GELU in one pass forward and one backward, where PyTorch takes many.

The loops are ``cpu/rms_norm.cpp`` and ``cpu/gelu_read.cpp``, the kernel is ``gpu/rms_norm.py``. They equal the plain
PyTorch here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from memscope.model.ops.native import native_for


def autocast_dtype(device: torch.device) -> torch.dtype:
    """The type that autocast gives to results on a device; float32 where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


class RMSNorm(nn.RMSNorm):
    """PyTorch's RMSNorm (arXiv 1910.07467) over the last axis: ``x / sqrt(mean(x^2) + eps) * weight``.

    Computed in float32, returned in the type of autocast if it is on: what follows a norm is a matrix product.
    """

    weight: nn.Parameter

    def __init__(self, width: int, eps: float | None = None):
        super().__init__(width, eps=torch.finfo(torch.float32).eps if eps is None else eps)

    def forward(self, x: Tensor) -> Tensor:
        """The normalised vectors, of the shape of ``x``."""
        compiled = native_for(x)
        if compiled is None or self.weight.dtype != torch.float32 or x.dtype not in (torch.float32, torch.bfloat16):
            return super().forward(x.to(self.weight.dtype))
        out: Tensor = _Norm.apply(x.contiguous(), self.weight, self.eps, compiled)  # type: ignore[no-untyped-call]
        return out


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, compiled: Any) -> Tensor:
        out, inverse = compiled.rms_norm(x, weight, epsilon, autocast_dtype(x.device))
        ctx.compiled = compiled
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_x, to_weight = ctx.compiled.rms_norm_backward(gradient.contiguous(), *ctx.saved_tensors)
        return to_x, to_weight, None, None


def gated_gelu(
    logits: Float[Tensor, "batch pos head slot"], scores: Float[Tensor, "batch pos slot"]
) -> Float[Tensor, "batch pos head slot"]:
    """``gelu(logits) * scores``, in float32; every head's slots have the same scores."""
    compiled, logits, scores = native_for(logits), logits.float(), scores.float()
    if not hasattr(compiled, "gated_gelu"):
        return F.gelu(logits) * scores.unsqueeze(2)
    flat = logits.flatten(0, 1).contiguous(), scores.flatten(0, 1).contiguous()
    out: Tensor = _GatedGelu.apply(*flat, compiled)  # type: ignore[no-untyped-call]
    return out.view_as(logits)


class _GatedGelu(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, scores: Tensor, compiled: Any) -> Tensor:
        ctx.compiled = compiled
        ctx.save_for_backward(logits, scores)
        return compiled.gated_gelu(logits, scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.compiled.gated_gelu_backward(gradient.contiguous(), *ctx.saved_tensors), None
