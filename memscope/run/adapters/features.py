"""Features of sparse autoencoders as entries, on the output of any module of any subject's model.

    subject = record_features(open_subject(folder), {"model.layers.3.mlp": sae}, top=64)

An autoencoder is any object with ``encode(x)``, for ``x [token, d]``. Two kinds of answers are understood: a tuple that
begins with activations and indices, ``[token, k]`` each (``SparseCoder.encode`` of sparsify 1.3: top_acts, top_indices,
pre_acts); or activations of all features, ``[token, N]``, dense or sparse (``SAE.encode`` of SAELens 6.54: TopK,
JumpReLU, BatchTopK and others). Only features with an activation above 0 are selected, at most ``top`` a token.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memscope.base.errors import InputError
from memscope.run.adapters.module_site import Call, Choice, ModuleSite, hash_weights
from memscope.run.adapters.modules import ModuleSubject, beside
from memscope.run.subject import Subject


def record_features(base: Subject, encoders: Mapping[str, Any], top: int, lens: bool = True) -> ModuleSubject:
    """A subject whose sites are sparse autoencoders; they only watch, the model runs as without them.

    Args:
        base: the model.
        encoders: autoencoders by the path of the module whose output they read, first layer first.
        top: features recorded of a token at most; weaker ones are left out.
        lens: whether what they read is the residual stream or is added to it, and the model's ``unembed`` can be used.

    Raises:
        InputError: a path names no module, or the number of an autoencoder's features is not known.
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
    """
    rows = getattr(encoder, "W_dec", None) if decoder is None else decoder
    if not isinstance(rows, Tensor):
        raise InputError(f"{module}: its autoencoder has no W_dec; give its decoder, one row a feature")
    if not 0 < top <= len(rows):
        raise InputError(f"{module}: its autoencoder has {len(rows)} features, {top} are asked for")

    def active(call: Call) -> Choice:
        output = call.output[0] if isinstance(call.output, tuple) else call.output
        return _strongest(encoder.encode(output.flatten(0, -2).to(rows)), top)

    return ModuleSite(
        module=module,
        entries=len(rows),
        selected=top,
        reads=active,
        kind="features",
        varies=True,
        values=rows,
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
