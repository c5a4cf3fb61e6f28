"""Anyone's torch modules as a subject.

site = ModuleSite("layers.3.memory", ...)                        # run/adapters/module_site.py
subject = ModuleSubject(model, tokenizer, [site], window=512)
record(subject, Path("corpus.jsonl"), Path("recordings/mine"))
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memscope.base.errors import InputError
from memscope.recording.sites import Site, describe_sites
from memscope.run.adapters.module_site import (
    Call,
    Choice,
    ModuleSite,
    Written,
    best_first,
    find_module,
    hash_weights,
    number_sites,
)
from memscope.run.subject import Batches, Drifted, Edit, Selected, Subject
from memscope.text.sentences import Triple
from memscope.text.tokenizer import Tokenizer


@dataclass(repr=False)
class ModuleSubject:
    """A model of any program.

    Raises:
        InputError: a path names no module of the model, or sites of one bank differ in their number of entries.

    Example:
        >>> site = ModuleSite("memory", entries=16, selected=2, reads=lambda call: Choice(*call.output[1:]))
        >>> subject = ModuleSubject(own_model, own_tokenizer, [site], window=64)
        >>> with subject.capture() as captured:
        ...     subject.logits(torch.tensor([[5, 6, 7]]))
    """

    model: nn.Module
    tokenizer: Tokenizer
    modules: Sequence[ModuleSite]
    """What selects, first layer first. Layers have the first number in the path of their module if these rise, and are
    counted from 0 otherwise."""
    window: int
    """Most tokens that the model reads at once."""
    run: Callable[[Tensor, Tensor], Tensor] | None = None
    """``run(tokens, mask)`` gives logits ``[batch, pos, vocab]``; by default ``model(tokens)``."""
    unembedding: Callable[[Tensor], Tensor] | None = None
    """Final norm and unembedding of residual-stream vectors, for the logit lens."""
    name: str = "model"
    step: int | None = None
    weights_sha256: str | None = None
    """Hash of the weights, if it is known; by default it is computed."""
    dtype: str = "float32"
    cache_dir: Path = Path("data/cache")
    copies: Mapping[str, Path] = field(default_factory=dict)
    sites: tuple[Site, ...] = field(init=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}: {describe_sites(self.sites)})"

    def __post_init__(self) -> None:
        for site in self.modules:
            for path in site.paths:
                find_module(self.model, path)
        self.sites = number_sites(self.modules, self.unembedding is not None)
        self._seen: dict[int, Selected] = {}
        self._now: dict[int, list[Written]] = {site.layer: [] for site in self.sites}
        self._shape: tuple[int, int] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, types, shapes and bytes of all parameters and buffers."""
        return self.weights_sha256 or hash_weights(self.model)

    def logits(
        self, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """Next-token logits; captures and changes of selections hold for passes through this method.

        Raises:
            InputError: a module selected other numbers of entries than its site says, or ran more than once.
        """
        self._shape = (tokens.shape[0], tokens.shape[1])
        self._seen.clear()
        for written in self._now.values():
            written.clear()
        known = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        logits: Tensor = self.model(tokens) if self.run is None else self.run(tokens, known)
        return logits

    @contextmanager
    def capture(self, keep_pattern: bool = False, detail: bool = False) -> Iterator[Mapping[int, Selected]]:
        """Capture every site; ``detail`` also keeps the size of read weights that have signs."""
        handles: list[RemovableHandle] = []
        self._seen = {}
        try:
            for spec, site in zip(self.modules, self.sites, strict=True):
                handles += self._watch(spec, site, detail)
            with torch.no_grad():
                yield self._seen
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, spec: ModuleSite, site: Site, detail: bool) -> Iterator[RemovableHandle]:
        latest: dict[str, Call] = {}
        *inner, outer = spec.paths

        def note(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                latest[path] = Call(args, kwargs, output)

            return hook

        def finish(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if missing := [path for path in inner if path not in latest]:
                raise InputError(f"{missing[0]}: did not run inside {spec.module}; name the module that selects")
            written = self._now[site.layer]
            call = Call(args, kwargs, output, written[0] if written else None)
            choice = spec.reads(call, *(latest.pop(path) for path in inner))
            if site.layer in self._seen:
                raise InputError(f"{spec.module}: ran more than once in a forward pass; a site is one run of a module")
            self._seen[site.layer] = self._selected(choice, site, detail)

        for path in inner:
            yield find_module(self.model, path).register_forward_hook(note(path), with_kwargs=True)
        yield find_module(self.model, outer).register_forward_hook(finish, with_kwargs=True)

    def _selected(self, choice: Choice, site: Site, detail: bool) -> Selected:
        """A choice in the numbers of the recording, best score first within every gate head."""
        local = self._by_token(choice.indices.detach(), site).long()
        scores, reads = (
            self._by_token(values.detach().float(), site) if values is not None and what in site.has else None
            for what, values in (("scores", choice.scores), ("reads", choice.reads))
        )
        low, high = int(local.min()), int(local.max())
        if low < -int(site.varies) or high >= site.entries:
            raise InputError(f"{site.module}: selected {low} to {high}, its entries are 0 to {site.entries - 1}")
        if ("scores" in site.has and scores is None) or ("reads" in site.has and reads is None):
            raise InputError(f"{site.module}: gives no weights; leave them out of 'has' of its site")
        if scores is not None and bool((scores < 0).any()):
            raise InputError(f"{site.module}: has scores below 0; give their size as scores, or give them as reads")
        order = best_first(local, scores, site.gate_heads)
        local = local.gather(-1, order)
        scores, reads = (None if values is None else values.gather(-1, order) for values in (scores, reads))
        kept = Selected(torch.where(local < 0, -1, local + site.first_entry), scores)
        if reads is not None:
            kept.slot_weights, kept.pattern = reads[..., None], reads[:, :, None]
            kept.read_norms = reads.abs() if detail else None
        return kept

    def _by_token(self, values: Tensor, site: Site) -> Tensor:
        assert self._shape is not None, "selections are captured in passes through logits()"
        if values.numel() != self._shape[0] * self._shape[1] * site.selected:
            raise InputError(
                f"{site.module}: selected {tuple(values.shape)} for {self._shape[0]} x {self._shape[1]} tokens, its "
                f"site says {site.selected} a token"
            )
        return values.reshape(*self._shape, site.selected)

    @contextmanager
    def rewrite(self, edit: Edit) -> Iterator[None]:
        """Change what every site selects while a block runs.

        Raises:
            InputError: a site has neither ``write`` nor ``writer``; or, during a pass, one without scores shall select
                none.
        """
        handles: list[RemovableHandle] = []
        try:
            for spec, site in zip(self.modules, self.sites, strict=True):
                handles += self._changed(spec, site, edit)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _changed(self, spec: ModuleSite, site: Site, edit: Edit) -> Iterator[RemovableHandle]:
        write, running = spec.write, [not spec.inside]
        if write is None and spec.writer is None:
            raise InputError(f"{spec.module}: its site says nothing on how to change what it selects")

        def choose(indices: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor | None]:
            local = self._by_token(indices.long(), site)
            weights = None if scores is None else self._by_token(scores, site)
            order = best_first(local, weights, site.gate_heads)
            local, weights = local.gather(-1, order), None if weights is None else weights.gather(-1, order)
            new, given = edit(site.layer, torch.where(local < 0, -1, local + site.first_entry), weights)
            weights, none = weights if given is None else given, new < 0
            if weights is None and not site.varies and bool(none.any()):
                raise InputError(f"{spec.module}: has no scores, so it cannot select none; select another entry")
            new = torch.where(none, -1 if site.varies else 0, new - site.first_entry)
            if int(new.min()) < -1 or int(new.max()) >= site.entries:
                raise InputError(
                    f"layer {site.layer} has the entries {site.own.start} to {site.own.stop - 1} and no other"
                )
            # In the module's own order: sums over entries are then rounded as before.
            new = torch.empty_like(new).scatter_(-1, order, new).reshape(indices.shape).to(indices)
            if scores is None or weights is None:
                return new, None
            weights = weights.masked_fill(none, 0.0)
            return new, torch.empty_like(weights).scatter_(-1, order, weights).reshape(scores.shape).to(scores)

        if spec.writer is not None:
            yield from spec.writer(find_module(self.model, spec.module), choose, self._now[site.layer])
        if write is None:
            return

        def act(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
            return write(args, kwargs, choose) if running[0] else None

        def turn(on: bool) -> Callable[..., None]:
            return lambda *call: running.__setitem__(0, on)

        if spec.inside:  # which may be shared with other sites
            yield find_module(self.model, spec.module).register_forward_pre_hook(turn(True))
            yield find_module(self.model, spec.module).register_forward_hook(turn(False))
        target = find_module(self.model, spec.paths[0])
        yield target.register_forward_pre_hook(act, with_kwargs=True)

    def starts(self) -> pa.Table | None:
        """Sentences and token ids of entries that are text."""
        texts = {site.first_entry: spec.texts for spec, site in self._pairs() if spec.texts is not None}
        if not texts:
            return None
        n = max(site.own.stop for site in self.sites)
        ids: list[list[int] | None] = [None] * n
        for first, text in texts.items():
            ids[first : first + len(text)] = text.tolist()
        control = self.tokenizer.control
        said = [None if row is None else self.tokenizer.decode([i for i in row if i not in control]) for row in ids]
        columns = {
            "entry": pa.array(range(n), pa.uint32()),
            "sentence": pa.array(said, pa.string()),
            "token_ids": pa.array(ids, pa.list_(pa.uint32())),
        }
        return pa.table(columns | {name: pa.nulls(n, pa.list_(pa.string())) for name in Triple._fields})

    def drifted(self) -> Drifted | None:
        """None: nothing is known of entries before training."""
        return None

    def values(self, layer: int, entries: Int[Tensor, " row"], sample: Batches = ()) -> Float[Tensor, "row dim"]:
        """``values`` of the layer's site."""
        [(spec, site)] = [(spec, site) for spec, site in self._pairs() if site.layer == layer]
        assert spec.values is not None, f"{spec.module} has no values"
        values = spec.values.detach()[entries - site.first_entry].float()
        return values if spec.scale is None else values * spec.scale

    def unembed(self, resid: Float[Tensor, "row dim"]) -> Float[Tensor, "row vocab"]:
        """``unembedding``."""
        assert self.unembedding is not None, "no unembedding was given"
        return self.unembedding(resid)

    def _pairs(self) -> Iterator[tuple[ModuleSite, Site]]:
        yield from zip(self.modules, self.sites, strict=True)


def beside(base: Subject, modules: Sequence[ModuleSite], lens: bool = True) -> ModuleSubject:
    """Other sites of a model that is a subject already: its neurons, or features of a sparse autoencoder.

    Args:
        base: the subject.
        modules: what to record of it.
        lens: whether the model's ``unembed`` can be used.
    """
    return ModuleSubject(
        model=base.model,
        tokenizer=base.tokenizer,
        modules=modules,
        window=base.window,
        run=base.logits,
        unembedding=base.unembed if lens else None,
        name=base.name,
        step=base.step,
        weights_sha256=base.fingerprint,
        dtype=base.dtype,
        cache_dir=base.cache_dir,
        copies=base.copies,
    )
