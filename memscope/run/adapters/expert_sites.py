"""Find where a Hugging Face mixture of experts selects, and how its residual stream becomes logits, by one pass.

transformers 5 calls the experts of a block as ``experts(hidden [T, d], top_k_index [T, K], top_k_weights [T, K])``.
These arguments are what the model really uses: after limits to groups, correction bias, renormalisation and scaling,
none of which ``router_logits`` knows. So a module is a site if it is called like that, whatever its name.

Llama 4 is the exception: its experts get a tensor that is multiplied already, so its router is the site.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memscope.base.errors import InputError
from memscope.recording.sites import Site
from memscope.run.adapters.module_site import layer_numbers, observed, stream_scales

Act = Callable[["Selector", Tensor, Tensor], tuple[Tensor, Tensor] | None]
"""``act(selector, indices, weights)``, ``[T, K]`` each, sees a selection and may return another in its place."""
Add = Callable[["Selector", Tensor, Tensor], None]
"""``add(selector, experts, outputs)``: one expert ``[T]`` of every token, and its output ``[T, d]``."""
_NOT_RECORDED = {
    "jetmoe": "its experts see tokens sorted by expert, and no module is called with the selection of a token",
    "doge": "its router mixes the scores of different tokens, so that a token has no selection of its own",
}
_COUNTS = ("num_experts", "num_local_experts", "total_experts")
"""Attributes with the number of experts; identity experts count in some of them."""
_PROBE = (2, 5)
"""Batch and length of the text of a probe pass."""
_LISTED = 12
"""Most kinds of modules that an error names."""


@dataclass(frozen=True)
class Selector:
    """A site and the module that selects there."""

    site: Site
    module: nn.Module
    experts: nn.Module
    """The experts; the same module unless a router is hooked."""
    top: int | None = None
    """Experts that a router selects for a token; none for a call of experts."""
    scale: Tensor | None = None
    """What the block multiplies the sum of its experts by, ``[d]``; none where it does more than that."""

    def hook(self, act: Act) -> RemovableHandle:
        """Have every later call of the module pass through ``act``; entries are counted from 0 in it."""
        if self.top is None:
            return self.module.register_forward_pre_hook(self._call_hook(act), with_kwargs=True)
        return self.module.register_forward_hook(self._router_hook(act, self.top))

    def hook_outputs(self, add: Add) -> list[RemovableHandle]:
        """Tell ``add`` the output of every selected expert, as if its weight were 1."""
        return self._outputs_of_router(add) if self.top else self._outputs_of_call(add)

    def _outputs_of_call(self, add: Add) -> list[RemovableHandle]:
        inside = False

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal inside
            if inside:
                return
            inside = True
            call = Call(args, kwargs)
            _, indices, weights = call.tensors[:3]
            alone = torch.ones_like(weights[:, :1]) * weights.new_tensor([1.0, 0.0])
            for expert in indices.unbind(-1):  # twice, once with weight 0: some experts cannot be called with K = 1
                new_args, new_kwargs = call.replaced(torch.stack([expert, expert], -1), alone)
                add(self, expert, module(*new_args, **new_kwargs))
            inside = False

        return [self.module.register_forward_pre_hook(before, with_kwargs=True)]

    def _outputs_of_router(self, add: Add) -> list[RemovableHandle]:
        """Those of experts that get multiplied input: their output as it is."""
        chosen: list[Tensor] = []

        def note(selector: "Selector", indices: Tensor, weights: Tensor) -> None:
            chosen[:] = [indices]

        def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            by_expert = output.view(self.site.entries, -1, output.shape[-1])
            tokens = torch.arange(by_expert.shape[1], device=output.device)
            for indices in chosen[0].unbind(-1):
                add(self, indices, by_expert[indices, tokens])

        return [self.hook(note), self.experts.register_forward_hook(after)]

    def _call_hook(self, act: Act) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = Call(args, kwargs)
            _, indices, weights = call.tensors[:3]
            changed = act(self, indices, weights)
            return None if changed is None else call.replaced(*changed)

        return before

    def _router_hook(self, act: Act, top: int) -> Callable[..., Any]:
        def after(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> Any:
            scores, logits = output
            indices = scores.topk(top, dim=-1).indices  # 0 but for the selected; an outer hook may have changed them
            changed = act(self, indices, scores.gather(-1, indices))
            if changed is None:
                return None
            new, weights = changed
            dense = torch.zeros_like(scores).scatter_reduce_(-1, new, weights.to(scores), "amax")
            return dense, logits

        return after


class Call:
    """The tensors among the arguments of a module's call, in their order."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.args, self.kwargs = args, kwargs
        places: list[int | str] = [*range(len(args)), *kwargs]
        self.places = [place for place in places if isinstance(self._at(place), Tensor)]
        self.tensors: list[Tensor] = [self._at(place) for place in self.places]

    def selects(self, tokens: int) -> bool:
        """Whether it is ``experts(hidden [T, d], indices [T, K], weights [T, K])`` for so many tokens."""
        if len(self.tensors) < 3:
            return False
        hidden, indices, weights = self.tensors[:3]
        return (
            hidden.is_floating_point()
            and weights.is_floating_point()
            and indices.dtype in (torch.int64, torch.int32)
            and indices.shape == weights.shape
            and hidden.shape[:-1] == indices.shape[:-1]
            and indices.shape[:-1].numel() == tokens
        )

    def replaced(self, indices: Tensor, weights: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with another selection."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for place, old, new in zip(self.places[1:3], self.tensors[1:3], (indices, weights), strict=True):
            if isinstance(place, int):
                args[place] = new.to(old)
            else:
                kwargs[place] = new.to(old)
        return tuple(args), kwargs

    def _at(self, place: int | str) -> Any:
        return self.args[place] if isinstance(place, int) else self.kwargs[place]


class Tail(NamedTuple):
    """What makes logits of the residual stream: ``scale * head(norm(resid))``, squeezed by a ``tanh`` to ``cap``."""

    norm: nn.Module
    head: nn.Module
    scale: float
    cap: float | None

    @property
    def width(self) -> int:
        """Numbers of a vector of the residual stream."""
        return next(self.norm.parameters()).shape[-1]

    def __call__(self, resid: Tensor) -> Tensor:
        """Logits ``[row, vocab]`` of vectors ``[row, dim]``."""
        weight = next(self.norm.parameters())
        logits: Tensor = self.head(self.norm(resid.to(weight))) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class Found(NamedTuple):
    """What a probe pass finds."""

    selectors: tuple[Selector, ...]
    tail: Tail | None
    """None where the final norm is not known; then no site has a ``lens``."""


@dataclass
class _Seen:
    """A module that selected in the probe pass."""

    module: nn.Module
    path: str
    entries: int
    selected: int
    width: int
    calls: int = 1


@torch.no_grad()
def find_sites(model: nn.Module, run: Callable[[Tensor, Tensor], Tensor]) -> Found:
    """Run a model once over a few tokens and see what selects.

    Args:
        model: the model, in evaluation mode.
        run: ``run(tokens, mask)`` gives its logits ``[batch, pos, vocab]``.

    Raises:
        InputError: nothing is called as experts are, or in a way that has no selection of single tokens.
    """
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if kind in _NOT_RECORDED:
        raise InputError(f"{kind} cannot be recorded: {_NOT_RECORDED[kind]}")
    names = {module: name for name, module in model.named_modules()}
    seen: dict[nn.Module, _Seen] = {}
    passed: list[tuple[nn.Module, Tensor, Tensor]] = []
    head = _head(model)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(args, kwargs)
        if call.selects(_PROBE[0] * _PROBE[1]):
            if module in seen:
                seen[module].calls += 1
            else:
                width, selected = call.tensors[0].shape[-1], call.tensors[1].shape[-1]
                seen[module] = _Seen(module, names[module], count_experts(module), selected, width)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if type(module).__name__ == "Llama4Router":
            width = args[0].shape[-1]
            seen[module] = _Seen(module, names[module], output[0].shape[-1], int(getattr(module, "top_k", 1)), width)
        if isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
            passed.append((module, args[0], output))  # also keeps tensors alive, so that no address is used twice

    with observed(model, before, after):
        logits = probe(model, run)
    within = {one: set(one.modules()) for one in seen}
    inner = [one for one in seen.values() if not (within[one.module] - {one.module}) & seen.keys()]
    if not inner:
        kinds = Counter(type(module).__name__ for module in model.modules())
        listed = ", ".join(list(kinds)[:_LISTED])
        raise InputError(
            f"{type(model).__name__}: no experts found; no module is called with hidden states, the indices of the "
            f"selected experts and their weights, among {listed}{' ...' if len(kinds) > _LISTED else ''}"
        )
    if often := [one.path for one in inner if one.calls > 1]:
        raise InputError(f"{often[0]} selects several times in one pass; a layer that selects once was expected")
    tail = _find_tail(model, head, passed, logits)
    modules = dict(model.named_modules())
    scales = stream_scales(model, [_experts_path(modules, one) for one in inner], lambda: probe(model, run))
    return Found(tuple(_selectors(modules, inner, scales, tail)), tail)


@torch.no_grad()
def find_tail(model: nn.Module, run: Callable[[Tensor, Tensor], Tensor]) -> Tail | None:
    """What makes logits of the residual stream, by a pass over a few tokens; none where it is not known."""
    passed: list[tuple[nn.Module, Tensor, Tensor]] = []

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
            passed.append((module, args[0], output))

    with observed(model, lambda *call: None, after):
        logits = probe(model, run)
    return _find_tail(model, _head(model), passed, logits)


def probe(model: nn.Module, run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Logits of a few tokens."""
    tokens = torch.arange(_PROBE[0] * _PROBE[1], device=next(model.parameters()).device).view(_PROBE)
    return run(tokens, torch.ones_like(tokens, dtype=torch.bool))


def count_experts(module: nn.Module) -> int:
    """Experts of a module, identity experts included: by its attributes and the first axis of its weights."""
    counts = [value for name in _COUNTS if isinstance(value := getattr(module, name, None), int)]
    counts += [len(weight) for weight in module.parameters(recurse=False) if weight.ndim == 3]
    counts += [len(child) for child in module.children() if isinstance(child, nn.ModuleList)]
    if not counts:
        raise InputError(f"{type(module).__name__}: its number of experts is not known; it has no num_experts")
    return max(counts)


def _experts_path(modules: dict[str, nn.Module], one: _Seen) -> str:
    """Where the experts are: what was called, or beside a router, which a bridge may have wrapped."""
    parent = one.path
    while type(one.module).__name__ == "Llama4Router" and (parent := parent.rpartition(".")[0]):
        if f"{parent}.experts" in modules:
            return f"{parent}.experts"
    return one.path


def _selectors(
    modules: dict[str, nn.Module], seen: list[_Seen], scales: dict[str, Tensor], tail: Tail | None
) -> Iterator[Selector]:
    first = 0
    for one, layer in zip(seen, layer_numbers([one.path for one in seen]), strict=True):
        path = _experts_path(modules, one)
        lens = tail is not None and one.width == tail.width and path in scales
        site = Site(
            layer=layer,
            module=one.path,
            kind="experts",
            first_entry=first,
            entries=one.entries,
            selected=one.selected,
            has=("scores", "lens") if lens else ("scores",),
            always=_shared(modules, one.path.rpartition(".")[0]),
        )
        yield Selector(site, one.module, modules[path], one.selected if path != one.path else None, scales.get(path))
        first += one.entries


def _shared(modules: dict[str, nn.Module], block: str) -> str:
    """Path of the experts that every token passes: beside the router or, in some models, beside its block."""
    for parent in (block, block.rpartition(".")[0]):
        for name, _ in modules[parent].named_children():
            if "shared" in name and "gate" not in name:
                return f"{parent}.{name}"
    return ""


def _head(model: nn.Module) -> nn.Module | None:
    """The unembedding, by the model's own account."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) else None


def _find_tail(
    model: nn.Module, head: nn.Module | None, passed: list[tuple[nn.Module, Tensor, Tensor]], logits: Tensor
) -> Tail | None:
    """The module whose output the unembedding got, checked by making the logits of the probe again."""
    given = next((hidden for module, hidden, _ in passed if module is head), None)
    if head is None or given is None:
        return None
    config: Any = getattr(model, "config", None)
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    want = logits.flatten(0, 1).float()
    for module, resid, output in reversed(passed):
        widths = [weight.shape for weight in module.parameters()][:1]
        if module is head or output.data_ptr() != given.data_ptr() or widths != [output.shape[-1:]]:
            continue
        own = Tail(module, head, 1.0, None)(resid.flatten(0, 1)).float()
        flat = want if cap is None else cap * torch.atanh((want / cap).clamp(-1 + 1e-6, 1 - 1e-6))
        scale = float((own * flat).sum() / (own * own).sum())
        tail = Tail(module, head, 1.0 if abs(scale - 1) < 1e-3 else scale, cap)
        off = (tail(resid.flatten(0, 1)).float() - want).abs().max()
        if off <= 0.02 * want.abs().max():  # as near as bfloat16 is
            return tail
    return None
