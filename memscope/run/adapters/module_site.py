"""Where a module of any model selects: a few lines that say which module, and where its indices and weights are.

    ModuleSite("layers.3.memory", entries=65536, selected=128, kind="product_keys", gate_heads=4, inside=("values",),
               reads=lambda memory, values: Choice(values.args[0], values.kwargs["per_sample_weights"]))

``run/adapters/modules.py`` makes a subject of a model and its sites; ``run/adapters/memories.py`` has sites for
published memories.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memscope.base.errors import InputError
from memscope.base.words import did_you_mean
from memscope.recording.sites import Has, Kind, Site


class Call(NamedTuple):
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    written: "Written | None" = None
    """What a ``writer`` has put in the place of the module's own selection in this pass; none if nothing."""


class Choice(NamedTuple):
    """What a module selected, for all tokens in order: ``[batch, pos, K]``, or any shape with as many numbers."""

    indices: Tensor
    """Entries in the module's own numbers, from 0 on; -1 for none. The K / H of one gate head stand side by side."""
    scores: Tensor | None = None
    """Their weights as the model uses them, not negative."""
    reads: Tensor | None = None
    """Weights of a read apart from the scores."""


Written = tuple[Tensor, Tensor | None]
"""Indices and scores, in the module's own numbers and shape."""
Choose = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""Gives what to select in the place of indices and scores, in the shape of both."""
Write = Callable[[tuple[Any, ...], dict[str, Any], Choose], tuple[tuple[Any, ...], dict[str, Any]]]
"""Changes the arguments of a call: ``write(args, kwargs, choose)`` returns both."""
Writer = Callable[[nn.Module, Choose, list[Written]], Iterable[RemovableHandle]]
"""``writer(module, choose, now)`` puts hooks on a module that hand its selection to ``choose`` and use what comes back.
``now`` is empty at the start of a pass and shared by nested blocks. The writer keeps there, as its only element,
what the module selects now, and an inner block starts from that."""


@dataclass(frozen=True)
class ModuleSite:
    """A module that selects."""

    module: str
    """Path of the module, as in ``model.named_modules()``; it must run once a forward pass."""
    entries: int
    """Entries that it can select (N)."""
    selected: int
    """Entries that it selects for a token (K), or the most."""
    reads: Callable[..., Choice]
    """``reads(call, *calls of inside)``: what it selected."""
    inside: tuple[str, ...] = ()
    """Further modules whose calls ``reads`` needs, by their path in the module; of several calls it gets the latest."""
    write: Write | None = None
    """Changes the arguments of the first module of ``inside``, or of the module itself."""
    writer: Writer | None = None
    """Changes what the arguments of no module hold; in place of ``write``."""
    kind: Kind = "selection"
    has: tuple[Has, ...] = ("scores",)
    """What ``reads`` gives: ``scores``, ``reads``."""
    gate_heads: int = 1
    varies: bool = False
    signed_reads: bool = False
    bank: object | None = None
    """What holds the entries; sites with the same object select from one bank. None: entries of its own."""
    values: Tensor | None = None
    """What selecting each entry with weight 1 adds to the residual stream, ``[N, dim]``; for the logit lens."""
    scale: Tensor | None = None
    """What the model multiplies ``values`` by before it adds them, ``[dim]``; none for 1."""
    texts: Int[Tensor, "entry slot"] | None = None
    """Token ids of entries that are text."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths in the model of the modules of ``inside``, and at last of the module itself."""
        return (*(f"{self.module}.{name}" for name in self.inside), self.module)


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module at a path.

    Raises:
        InputError: there is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        names = [name for name, _ in model.named_modules() if name]
        raise InputError(f"the model has no module {path!r}{did_you_mean(path, names)}") from error


def layer_numbers(paths: Sequence[str]) -> list[int]:
    """Numbers of layers: the first number in each path if these rise, and 0, 1, 2 ... otherwise."""
    found = [re.search(r"(?:^|\.)(\d+)(?:\.|$)", path) for path in paths]
    numbers = [int(match[1]) for match in found if match]
    rise = len(numbers) == len(paths) and numbers == sorted(set(numbers))
    return numbers if rise else list(range(len(paths)))


def number_sites(specs: Sequence[ModuleSite], lens: bool) -> tuple[Site, ...]:
    """Sites as a recording describes them: entries are numbered bank after bank.

    Args:
        specs: what selects, first layer first.
        lens: whether the model's unembedding is known.

    Raises:
        InputError: sites of one bank differ in their number of entries, or one has reads without scores.
    """
    banks: list[tuple[object, int, int]] = []  # what holds the entries, the first one, how many
    sites = []
    for layer, spec in zip(layer_numbers([spec.module for spec in specs]), specs, strict=True):
        holder = spec if spec.bank is None else spec.bank
        if "reads" in spec.has and "scores" not in spec.has:
            raise InputError(f"{spec.module}: has reads and no scores; give what it reads by as scores")
        known = next((bank for bank in banks if bank[0] is holder), None)
        if known is None:
            known = (holder, sum(entries for _, _, entries in banks), spec.entries)
            banks.append(known)
        if known[2] != spec.entries:
            raise InputError(f"{spec.module}: has {spec.entries} entries, another site of its bank {known[2]}")
        more: tuple[Has, ...] = ("starts",) if spec.texts is not None else ()
        more += ("lens",) if lens and spec.values is not None else ()
        site = Site(
            layer=layer,
            module=spec.module,
            kind=spec.kind,
            first_entry=known[1],
            entries=spec.entries,
            selected=spec.selected,
            varies=spec.varies,
            gate_heads=spec.gate_heads,
            has=(*spec.has, *more),
            signed_reads=spec.signed_reads,
        )
        sites.append(site)
    return tuple(sites)


def best_first(indices: Tensor, scores: Tensor | None, heads: int) -> Int[Tensor, "batch pos K"]:
    """Order of selections: best score first within a gate head; without scores as they are; none (-1) last."""
    keys = torch.zeros_like(indices, dtype=torch.float32) if scores is None else scores
    by_head = keys.masked_fill(indices < 0, -torch.inf).unflatten(-1, (heads, -1))
    order = torch.argsort(by_head, dim=-1, descending=True, stable=True)
    first = torch.arange(heads, device=order.device)[:, None] * order.shape[-1]
    return (order + first).flatten(-2)


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and bytes of all parameters and buffers.

    Raises:
        InputError: weights are not in memory.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.device.type == "meta":
            raise InputError(f"{name} is not in memory; give the fingerprint of the weights, 64 hexadecimal digits")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def observed(model: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> Iterator[None]:
    """See every call in a model: ``before(module, args, kwargs)`` and ``after(module, args, output)``."""
    handles: list[RemovableHandle] = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def stream_scales(model: nn.Module, paths: Sequence[str], run: Callable[[], object]) -> dict[str, Tensor]:
    """What becomes of a module's output on its way into the residual stream, by path: a scale, ``[d]`` float32.

    Each block, the module with the first number in the path, runs once more with noise added to the output, and its own
    output must change by the noise times one scale. A path is left out where it does not, because a norm or a gate
    follows, or where there is no block.

    Args:
        model: the model.
        paths: modules whose output ends in the stream; of more rows than tokens, as of experts one after the other, the
            first rows are those of all tokens.
        run: runs the model on a few tokens.
    """
    blocks: dict[str, list[str]] = {}
    for path in paths:
        if found := re.match(r"(?:.*?\.)??\d+(?=\.|$)", path):
            blocks.setdefault(found[0], []).append(path)
    shapes: dict[str, torch.Size] = {}
    scales: dict[str, Tensor] = {}

    def note(path: str) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, output: Any) -> None:
            shapes[path] = output.shape if isinstance(output, Tensor) else torch.Size()

        return after

    def measure(inside: list[str]) -> Callable[..., None]:
        def after(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            stream = _first(output)
            if not isinstance(stream, Tensor):
                return
            for path in inside:
                own = shapes.get(path, torch.Size())
                if own[-1:] == stream.shape[-1:] and stream.numel() <= own.numel():
                    noise = torch.randn(stream.shape, generator=torch.Generator().manual_seed(0)).to(stream)
                    noise *= stream.float().square().mean().sqrt().to(stream)
                    with _added(find_module(model, path), noise):
                        changed = _first(block.forward(*args, **kwargs))
                    if (scale := _common_scale(noise, changed, stream)) is not None:
                        scales[path] = scale

        return after

    handles = [find_module(model, path).register_forward_hook(note(path)) for path in paths]
    for name, inside in blocks.items():
        handles.append(find_module(model, name).register_forward_hook(measure(inside), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return scales


@contextmanager
def _added(module: nn.Module, noise: Tensor) -> Iterator[None]:
    """Add noise to the first rows of a module's output."""

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        rows = output.flatten(0, -2).clone()
        rows[: noise[..., 0].numel()] += noise.flatten(0, -2).to(rows)
        return rows.view_as(output)

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _common_scale(noise: Tensor, changed: Tensor, before: Tensor) -> Tensor | None:
    """The scale ``[d]`` by which noise changed all rows alike; none if there is no such scale, or it is 0."""
    near = 1e-4 if before.dtype == torch.float32 else 0.02  # what rounding leaves
    by, moved = noise.float().flatten(0, -2), (changed.float() - before.float()).flatten(0, -2)
    scale = (moved * by).sum(0) / by.square().sum(0)
    mean = scale.mean()
    if bool((scale - mean).abs().max() <= near * mean.abs()):
        scale = torch.full_like(scale, 1.0 if abs(float(mean) - 1) <= near else float(mean))
    alike = (moved - by * scale).norm() <= near * moved.norm()
    return scale if bool(alike) and bool(moved.any()) else None


def _first(output: Any) -> Any:
    """An output; of a tuple the first."""
    return output[0] if isinstance(output, tuple) else output
