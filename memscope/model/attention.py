"""Causal grouped-query attention of given queries, keys and values; on the CPU in blocks of plain matrix products."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BLOCK = 64
"""Queries at a time on the CPU: what lies above their diagonal is never multiplied."""


def causal_attention(
    q: Float[Tensor, "batch pos head head_dim"],
    k: Float[Tensor, "batch key_pos kv_head head_dim"],
    v: Float[Tensor, "batch key_pos kv_head head_dim"],
) -> Float[Tensor, "batch pos head head_dim"]:
    """``softmax(q k / sqrt(head_dim)) v`` over no later positions; the last query stands at the last key.

    On the CPU it is several products of a few hundred rows, each over all query heads that share keys, and PyTorch's
    own softmax: with its gradient three times as fast in bfloat16 as PyTorch's fused kernel, measured without AMX
    (docs/explanation/memory.md). What it keeps for the gradient grows with the square of ``pos``, and scores are
    rounded to the type of ``q`` before their softmax. On other devices it is PyTorch's fused kernel.
    """
    if q.device.type == "cpu" and q.shape[1] == k.shape[1]:
        return _in_blocks(q, k, v)
    return fused_attention(q, k, v)


def fused_attention(
    q: Float[Tensor, "batch pos head head_dim"],
    k: Float[Tensor, "batch key_pos kv_head head_dim"],
    v: Float[Tensor, "batch key_pos kv_head head_dim"],
) -> Float[Tensor, "batch pos head head_dim"]:
    """``causal_attention`` by PyTorch's kernel, on any device."""
    q, k, v = (t.transpose(1, 2) for t in (q, repeat_heads(k, q), repeat_heads(v, q)))
    if q.shape[2] == k.shape[2]:
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:  # continuing from a cache: the mask of the last rows only
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=_causal_mask(q, k))
    return z.transpose(1, 2)


def attention_pattern(
    q: Float[Tensor, "batch pos head head_dim"], k: Float[Tensor, "batch key_pos kv_head head_dim"]
) -> Float[Tensor, "batch head pos key_pos"]:
    """The weights that ``causal_attention`` gives to its values, in float32."""
    q, k = (t.float().transpose(1, 2) for t in (q, repeat_heads(k, q)))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~_causal_mask(q, k), -torch.inf).softmax(-1)


def repeat_heads(
    k: Float[Tensor, "batch key_pos kv_head head_dim"], q: Float[Tensor, "batch pos head head_dim"]
) -> Float[Tensor, "batch key_pos head head_dim"]:
    """Keys or values once for every query head that uses them."""
    return k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)


def _causal_mask(q: Tensor, k: Tensor) -> Tensor:
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])


def _in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    pos, head_dim, kv_heads = q.shape[1], q.shape[3], k.shape[2]
    q = (q * head_dim**-0.5).unflatten(2, (kv_heads, -1)).transpose(1, 2)  # [b, kv_head, pos, group, d]
    k, v = k.permute(0, 2, 3, 1), v.transpose(1, 2)  # [b, kv_head, d, pos] and [b, kv_head, pos, d]
    z = []
    for start in range(0, max(pos, 1), BLOCK):  # of no positions, an empty block
        end = min(start + BLOCK, pos)
        later = torch.full((end - start, end), -torch.inf, dtype=q.dtype).triu(start + 1)
        rows = q[:, :, start:end]
        scores = (rows.flatten(2, 3) @ k[..., :end]).view(*rows.shape[:4], end)
        pattern = (scores + later[:, None]).softmax(-1).flatten(2, 3)
        z.append((pattern @ v[:, :, :end]).view(rows.shape))
    return torch.cat(z, 2).transpose(1, 2).flatten(2, 3)
