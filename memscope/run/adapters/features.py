"""Features of sparse autoencoders as entries, on the output of any module of any subject's model.

    subject = record_features(open_subject(folder), {"model.layers.3.mlp": sae}, top=64)

An autoencoder is any object with ``encode(x)``, for ``x [token, d]``. Two kinds of answers are understood: a tuple that
begins with activations and indices, ``[token, k]`` each (``SparseCoder.encode`` of sparsify 1.3: top_acts, top_indices,
pre_acts); or activations of all features, ``[token, N]``, dense or sparse (``SAE.encode`` of SAELens 6.54: TopK,
JumpReLU, BatchTopK and others). Only features with an activation above 0 are selected, at most ``top`` a token.

A change of features is spliced into the module's output: the decoded change is added to it, and what the autoencoder
does not reconstruct stays.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memscope.base.errors import InputError
from memscope.run.adapters.module_site import Call, Choice, Choose, ModuleSite, Written, hash_weights
from memscope.run.adapters.modules import ModuleSubject, beside
from memscope.run.subject import Subject

_BY_TOKEN = ("constant_norm_rescale", "layer_norm")
"""SAELens' ways to scale what is read and decoded by the size of the token's vector."""


def record_features(base: Subject, encoders: Mapping[str, Any], top: int, lens: bool = True) -> ModuleSubject:
    """A subject whose sites are sparse autoencoders; the model runs as without them unless features are changed.

    Args:
        base: the model.
        encoders: autoencoders by the path of the module whose output they read, first layer first.
        top: features recorded of a token at most; weaker ones are left out.
        lens: whether what they read is the residual stream or is added to it, and the model's ``unembed`` can be used.

    Raises:
        InputError: a path names no module, or the number of an autoencoder's features is not known.

    Example:
        >>> subject = record_features(own_subject, {"body": autoencoder}, top=4, lens=False)
    """
    subject = beside(base, [feature_site(path, encoder, top) for path, encoder in encoders.items()], lens)
    digest = hashlib.sha256(base.fingerprint.encode())
    for path, encoder in encoders.items():
        digest.update(f"{path} {_hash_encoder(encoder)}".encode())
    subject.weights_sha256 = digest.hexdigest()
    return subject


def feature_site(module: str, encoder: Any, top: int, decoder: Float[Tensor, "N d"] | None = None) -> ModuleSite:
    """The features of one autoencoder that reads a module's output.

    Args:
        module: path of the module; of an output that is a tuple the first tensor is read.
        encoder: the autoencoder.
        top: features recorded of a token at most.
        decoder: what each feature with activation 1 adds; by default ``encoder.W_dec``, ``[N, d]``.

    Raises:
        InputError: there is no decoder, which says how many features there are, or there are fewer than ``top``.

    Example:
        >>> site = feature_site("body", autoencoder, top=4)
    """
    rows = getattr(encoder, "W_dec", None) if decoder is None else decoder
    if not isinstance(rows, Tensor):
        raise InputError(f"{module}: its autoencoder has no W_dec; give its decoder, one row a feature")
    if not 0 < top <= len(rows):
        raise InputError(f"{module}: its autoencoder has {len(rows)} features, {top} are asked for")

    def active(call: Call) -> Choice:
        return Choice(*call.written) if call.written else strongest(call.output)

    def strongest(output: Any) -> Choice:
        return _strongest(encoder.encode(_first(output).flatten(0, -2).to(rows)), top)

    def write(hooked: nn.Module, choose: Choose, now: list[Written]) -> list[RemovableHandle]:
        if (how := getattr(getattr(encoder, "cfg", None), "normalize_activations", "none")) in _BY_TOKEN:
            raise InputError(
                f"{module}: its autoencoder scales every token by its size ({how}), so that a feature adds no one "
                "vector; its features cannot be changed"
            )

        def splice(hooked: nn.Module, args: Any, output: Any) -> Any:
            old = now[0] if now else strongest(output)[:2]
            new = choose(*old)
            now[:] = [new]
            resid = _first(output)
            spliced = resid + (_decode(rows, *new) - _decode(rows, *old)).view_as(resid).to(resid)
            return (spliced, *output[1:]) if isinstance(output, tuple) else spliced

        return [hooked.register_forward_hook(splice)]

    return ModuleSite(
        module=module,
        entries=len(rows),
        selected=top,
        reads=active,
        writer=write,
        kind="features",
        varies=True,
        values=rows,
    )


def _first(output: Any) -> Tensor:
    """A module's output; of a tuple the first."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def _decode(rows: Tensor, indices: Tensor, acts: Tensor | None) -> Float[Tensor, "token d"]:
    """Sum of activation times row over the features of every token; -1 is none."""
    assert acts is not None
    return torch.nn.functional.embedding_bag(
        indices.clamp(min=0), rows, mode="sum", per_sample_weights=acts.to(rows).masked_fill(indices < 0, 0.0)
    )


def _strongest(encoded: Any, top: int) -> Choice:
    """The features of largest activation ``[token, top]``, and -1 where fewer are active."""
    if isinstance(encoded, Tensor):
        best = (encoded.to_dense() if encoded.is_sparse else encoded).topk(top)
        acts, indices = best.values, best.indices
    else:
        acts, order = encoded[0].topk(min(top, encoded[0].shape[-1]))
        indices = encoded[1].gather(-1, order)
        missing = top - acts.shape[-1]
        acts, indices = (torch.nn.functional.pad(one, (0, missing)) for one in (acts, indices))
    none = acts <= 0
    return Choice(indices.masked_fill(none, -1), acts.masked_fill(none, 0.0))


def _hash_encoder(encoder: Any) -> str:
    """A hash of an autoencoder's weights; of one that is no module, of its decoder."""
    if isinstance(encoder, nn.Module):
        return hash_weights(encoder)
    decoder = nn.ParameterDict({"W_dec": nn.Parameter(encoder.W_dec, requires_grad=False)})
    return hash_weights(decoder)
