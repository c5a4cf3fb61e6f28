"""Neurons of feed-forward layers as entries: what a memory is compared with.

    subject = run_neurons(load_run(Path("runs/ffn")), 32)
    subject = folder_neurons(Path("models/SmolLM2-135M"), 32)

A feed-forward layer is a key-value memory (Geva et al. 2021, arXiv 2012.14913): a neuron has a key, its row of the
input matrix, and a value, its column of the output matrix, and the layer adds each value times its activation. The K
neurons of the largest absolute activation are recorded, with this size as their score. The sign is not recorded: an
entry's lens shows what a positive activation adds.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memscope.base.errors import InputError
from memscope.run.adapters.expert_sites import find_tail, probe
from memscope.run.adapters.experts import adopt_tokenizer, window_of
from memscope.run.adapters.hugging_face import load_hugging_face
from memscope.run.adapters.module_site import Call, Choice, Choose, ModuleSite, find_module, stream_scales
from memscope.run.adapters.modules import ModuleSubject, beside
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from memscope.run.subject import evaluating

TOP = 32
"""Neurons recorded of a layer, unless another number is asked for."""
_ATTENTION = ("attn", "attention")


def run_neurons(run: LoadedRun, top: int = TOP) -> ModuleSubject:
    """The neurons of a run's feed-forward layers, those beside a memory too.

    Raises:
        InputError: the run has no feed-forward layer, or fewer neurons than are asked for.

    Example:
        >>> subject = run_neurons(load_run("runs/ffn"), top=8)
    """
    kinds = run.config.model.blocks
    sites = [
        neuron_site(run.model, f"blocks.{n}.ffn.w2", top)
        for n, kind in enumerate(kinds)
        if kind not in ("memory", "text")
    ]
    if not sites:
        raise InputError(f"{run.path}: has no feed-forward layer, so no neurons to record")
    return beside(OwnRun(run), sites)


def folder_neurons(
    folder: Path, top: int = TOP, device: torch.device | None = None, window: int | None = None
) -> ModuleSubject:
    """The neurons of a model in a Hugging Face folder; raises as ``load_hugging_face`` and ``model_neurons``.

    Example:
        >>> subject = folder_neurons(Path("models/dense"), top=8)
    """
    model, tokenizer, fingerprint = load_hugging_face(folder, device)
    return model_neurons(model, tokenizer, top, str(folder.resolve()), fingerprint, window)


def model_neurons(
    model: Any, tokenizer: Any, top: int = TOP, name: str = "", fingerprint: str = "", window: int | None = None
) -> ModuleSubject:
    """The neurons of a model of the transformers library.

    Args:
        model: a causal language model.
        tokenizer: its fast tokenizer, as ``AutoTokenizer`` loads it, or one of memscope.
        top: neurons to record of a layer.
        name: where it came from.
        fingerprint: SHA-256 of its weights; by default made of the weights in memory.
        window: most tokens read at once; by default what the model takes, at most 1,024.

    Raises:
        InputError: it has no feed-forward layer or fewer neurons than are asked for, the tokenizer is not the model's,
            or the window is longer than it takes.

    Example:
        >>> subject = model_neurons(dense, tokenizer, top=8, name="my-model")
    """
    config = model.config.get_text_config()
    name = name or config.name_or_path or type(model).__name__
    sites = neuron_sites(model, config.hidden_size, top)

    def run(tokens: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits
        return logits

    with evaluating(model):
        tail = find_tail(model, run)
        scales = stream_scales(model, [site.module for site in sites], lambda: probe(model, run))
    sites = [
        replace(site, scale=scales.get(site.module), values=site.values if site.module in scales else None)
        for site in sites
    ]
    return ModuleSubject(
        model=model,
        tokenizer=adopt_tokenizer(tokenizer, config.vocab_size, name),
        modules=sites,
        window=window_of(config, window, name),
        run=run,
        unembedding=None if tail is None else tail.__call__,
        name=name,
        weights_sha256=fingerprint or None,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )


def neuron_sites(model: nn.Module, dim: int, top: int = TOP) -> list[ModuleSite]:
    """The feed-forward layers of any model, found by their shape.

    Args:
        model: the model.
        dim: width of the residual stream.
        top: neurons to record of a layer.

    Raises:
        InputError: there is none, or one with fewer neurons than are asked for.

    Example:
        >>> sites = neuron_sites(dense, dim=32, top=8)
    """
    paths = find_outputs(model, dim)
    if not paths:
        linear = [name for name, module in model.named_modules() if _shape(module)]
        raise InputError(
            f"{type(model).__name__}: no feed-forward layer found; none of its linear modules reads a wider layer and "
            f"writes {dim} numbers: {', '.join(linear[:20])}{' ...' if len(linear) > 20 else ''}"
        )
    return [neuron_site(model, path, top) for path in paths]


def find_outputs(model: nn.Module, dim: int) -> list[str]:
    """Paths of the output matrices of feed-forward layers.

    A module that is one holds two or three linear modules and no more: one from a wider layer to the residual stream,
    the others from the residual stream to that layer, or to twice its width where it is gated. Attention can have this
    shape too; it is known by its name.
    """
    found = []
    for path, module in model.named_modules():
        shapes = {name: shape for name, child in module.named_children() if (shape := _shape(child))}
        outputs = [name for name, (width, out) in shapes.items() if out == dim < width]
        if len(outputs) != 1 or not 2 <= len(shapes) <= 3 or _is_attention(path, module):
            continue
        width = shapes[outputs[0]][0]
        inputs = [shape for name, shape in shapes.items() if name != outputs[0]]
        if all(given == dim and out in (width, 2 * width) for given, out in inputs):
            found.append(f"{path}.{outputs[0]}" if path else outputs[0])
    return found


def neuron_site(model: nn.Module, output: str, top: int = TOP) -> ModuleSite:
    """The neurons that an output matrix reads.

    Args:
        model: the model.
        output: path of the output matrix, a linear module or a ``Conv1D`` of transformers.
        top: neurons to record.

    Raises:
        InputError: there are fewer.
    """
    module = find_module(model, output)
    shape = _shape(module)
    if shape is None or not 0 < top <= shape[0]:
        raise InputError(f"{output}: has {shape[0] if shape else 'no'} neurons, {top} are asked for")
    weight = module.get_parameter("weight")

    def largest(call: Call) -> Choice:
        best = call.args[0].abs().topk(top)
        return Choice(best.indices, best.values)

    def write(args: tuple[Any, ...], kwargs: dict[str, Any], choose: Choose) -> tuple[tuple[Any, ...], dict[str, Any]]:
        best = args[0].abs().topk(top)
        new, sizes = choose(best.indices, best.values)
        assert sizes is not None
        set_anew = torch.zeros_like(args[0]).scatter_add(-1, new, (sizes > 0).to(args[0])) > 0
        rest = args[0].scatter(-1, best.indices, 0.0).masked_fill(set_anew, 0.0)
        signed = sizes.copysign(args[0].gather(-1, new))
        return (rest.scatter_add(-1, new, signed), *args[1:]), kwargs  # adding 0 for none changes no neuron

    return ModuleSite(
        module=output,
        entries=shape[0],
        selected=top,
        reads=largest,
        write=write,
        kind="neurons",
        values=_columns(module, weight),
    )


def _columns(module: nn.Module, weight: Tensor) -> Tensor:
    """What each neuron adds, ``[N, dim]``."""
    return weight.T if isinstance(module, nn.Linear) else weight


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """Width of input and output of a linear module; none of another. GPT-2's is transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and isinstance(weight := getattr(module, "weight", None), Tensor):
        return weight.shape[0], weight.shape[1]
    return None


def _is_attention(path: str, module: nn.Module) -> bool:
    name = f"{path.rpartition('.')[2]} {type(module).__name__}".lower()
    return any(word in name for word in _ATTENTION)
