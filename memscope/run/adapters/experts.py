"""Mixtures of experts of the transformers library, as subjects: every layer that routes tokens to experts is a site.

    subject = HuggingFaceExperts(model, tokenizer)      # both as from_pretrained loads them
    with subject.capture() as captured:
        subject.logits(tokens, mask)
    captured[layer].indices                             # [batch, pos, K], best weight first

Weights are recorded as the model uses them, never normalised. A model in a TransformerLens bridge is recorded alike.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memscope.base.errors import InputError
from memscope.recording.sites import Site, describe_sites
from memscope.run.adapters.expert_sites import Act, Selector, find_sites
from memscope.run.adapters.module_site import hash_weights
from memscope.run.subject import Batches, Edit, Selected, evaluating
from memscope.text.special_tokens import Roles
from memscope.text.tokenizer import Tokenizer

WINDOW = 1024
"""Most tokens read at once unless more are asked for; some models take millions."""


class HuggingFaceExperts:
    """A loaded mixture of experts as a subject; its device, precision and mode stay as they are.

    Args:
        model: a causal language model of transformers 5, or a TransformerLens bridge of one.
        tokenizer: its fast tokenizer, as ``AutoTokenizer`` loads it, or one of memscope.
        name: where it came from; by default the name that it was loaded by.
        fingerprint: SHA-256 of its weights; by default made of the weights in memory.
        window: most tokens read at once; by default what the model takes, at most 1,024.
        cache_dir: where packed corpora go.

    Raises:
        InputError: no experts are found, the tokenizer is not the model's, or the window is longer than it takes.

    Example:
        >>> subject = HuggingFaceExperts(model, tokenizer, name="my-mixture")
        >>> with subject.capture() as captured:
        ...     subject.logits(torch.tensor([[5, 6, 7]]))
        >>> captured[0].gate_scores.shape  # [batch, pos, k]
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}: {describe_sites(self.sites)})"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        name: str = "",
        fingerprint: str = "",
        window: int | None = None,
        cache_dir: Path = Path("data/cache"),
    ):
        self.model: nn.Module = getattr(model, "original_model", model)  # a bridge puts its modules inside the model
        self.cache_dir, self.step = cache_dir, None
        config: Any = getattr(self.model, "config", None)
        if not hasattr(config, "get_text_config"):
            raise InputError(f"{type(model).__name__}: not a model of the transformers library (it has no config)")
        text = config.get_text_config()
        self.name = name or config.name_or_path or type(self.model).__name__
        self.window = window_of(text, window, self.name)
        self.tokenizer = adopt_tokenizer(tokenizer, text.vocab_size, self.name)
        self._mask: Tensor | None = None
        self._means: tuple[str, dict[int, Tensor]] | None = None
        with evaluating(self.model):
            self._selectors, self._tail = find_sites(self.model, self.logits)
        self.fingerprint = fingerprint or hash_weights(self.model)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The layers that route."""
        return tuple(selector.site for selector in self._selectors)

    @property
    def dtype(self) -> str:
        """Precision of the weights."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @property
    def copies(self) -> Mapping[str, Path]:
        """Nothing: the tokenizer is written as memscope uses it."""
        return {}

    def starts(self) -> None:
        """Experts start from random numbers."""

    def drifted(self) -> None:
        """Nor is their start known."""

    def logits(
        self, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """Next-token logits; ``mask`` goes to the model as its attention mask."""
        self._mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        logits: Tensor = self.model(input_ids=tokens, attention_mask=self._mask.long(), use_cache=False).logits
        return logits

    @contextmanager
    def capture(self, keep_pattern: bool = False, detail: bool = False) -> Iterator[Mapping[int, Selected]]:
        """Capture every site; experts have no reads and nothing more to tell in detail."""
        captured: dict[int, Selected] = {}

        def note(selector: Selector, indices: Tensor, weights: Tensor) -> None:
            indices, weights, _ = self._ordered(selector, indices.detach(), weights.detach())
            captured[selector.site.layer] = Selected(indices, weights.float())

        with torch.no_grad(), self._hooked(note):
            yield captured

    @contextmanager
    def rewrite(self, edit: Edit) -> Iterator[None]:
        """Change which experts every site uses, and by which weight; -1 becomes an expert of weight 0."""

        def change(selector: Selector, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            chosen, scores, order = self._ordered(selector, indices, weights)
            new, by = edit(selector.site.layer, chosen, scores)
            by = (scores if by is None else by).to(weights).masked_fill(new.to(weights.device) < 0, 0.0)
            own = selector.site.own
            local = new.to(indices).masked_fill(new.to(indices.device) < 0, own.start) - own.start
            if local.numel() and not 0 <= int(local.min()) <= int(local.max()) < selector.site.entries:
                raise InputError(
                    f"layer {selector.site.layer} has the entries {own.start} to {own.stop - 1} and no other"
                )
            local, by = local.flatten(0, 1), by.flatten(0, 1)
            if local.shape != indices.shape:
                return local, by
            # In the model's own order: sums over experts are then rounded as before.
            return torch.empty_like(indices).scatter_(-1, order, local), torch.empty_like(weights).scatter_(
                -1, order, by
            )

        with self._hooked(change):
            yield

    def values(self, layer: int, entries: Int[Tensor, " row"], sample: Batches = ()) -> Float[Tensor, "row dim"]:
        """Mean output of experts over the tokens of the sample that select them, each with weight 1; NaN without any.

        An expert is not linear, so it has no value of its own. The sample passes the model once for all layers and
        entries; without one, that of the last call stands.
        """
        batches = list(sample)
        content = hashlib.sha256(b"".join(tokens.cpu().numpy().tobytes() for tokens, _ in batches)).hexdigest()
        if batches and (self._means is None or self._means[0] != content):
            self._means = (content, self._mean_outputs(batches))
        assert self._tail is not None, "only sites with a lens have values"
        [site] = [site for site in self.sites if site.layer == layer]
        means = self._means[1].get(layer) if self._means else None
        if means is None:
            return torch.full((len(entries), self._tail.width), torch.nan, device=entries.device)
        return means[entries.to(means.device) - site.first_entry]

    def unembed(self, resid: Float[Tensor, "row dim"]) -> Float[Tensor, "row vocab"]:
        """Final norm and unembedding, with the scale or cap that the model puts on its logits."""
        assert self._tail is not None, "only sites with a lens are unembedded"
        return self._tail(resid)

    def _ordered(self, selector: Selector, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A selection ``[T, K]`` as ``[batch, pos, K]``, numbered as recorded, best weight first; and its order."""
        assert self._mask is not None, "run the model by ``logits``"
        order = weights.argsort(dim=-1, descending=True, stable=True)
        shape = (*self._mask.shape, indices.shape[-1])
        chosen, sizes = indices.gather(-1, order) + selector.site.first_entry, weights.gather(-1, order)
        return chosen.view(shape).to(self._mask.device), sizes.view(shape).to(self._mask.device), order

    @contextmanager
    def _hooked(self, act: Act) -> Iterator[None]:
        handles = []
        try:
            for selector in self._selectors:
                handles.append(selector.hook(act))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _mean_outputs(self, batches: list[tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
        """Mean output of every expert, float32 ``[entries, dim]`` by layer."""
        sums: dict[int, Tensor] = {}
        counts: dict[int, Tensor] = {}

        def add(selector: Selector, expert: Tensor, output: Tensor) -> None:
            assert self._mask is not None
            layer, shape = selector.site.layer, (selector.site.entries, output.shape[-1])
            real = self._mask.flatten().to(expert.device)
            total = sums.setdefault(layer, torch.zeros(shape, device=output.device))
            seen = counts.setdefault(layer, torch.zeros(shape[0], device=output.device))
            total.index_add_(0, expert[real], output[real].float())
            seen.index_add_(0, expert[real], torch.ones_like(expert[real], dtype=seen.dtype))

        handles = [handle for selector in self._selectors for handle in selector.hook_outputs(add)]
        try:
            with evaluating(self.model):
                for tokens, mask in batches:
                    self.logits(tokens, mask)
        finally:
            for handle in handles:
                handle.remove()
        scales = {selector.site.layer: selector.scale for selector in self._selectors}
        means = {layer: total / counts[layer][:, None] for layer, total in sums.items()}
        return {layer: mean if (by := scales[layer]) is None else mean * by for layer, mean in means.items()}


def adopt_tokenizer(tokenizer: Any, ids: int, source: str) -> Tokenizer:
    """The tokenizer of a model, with the same ids for every text that names no control token.

    Args:
        tokenizer: a fast tokenizer of transformers, or one of memscope.
        ids: token ids that the model knows.
        source: the model, for messages.

    Raises:
        InputError: it is no fast tokenizer, or has tokens that the model does not know.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"{source}: {type(tokenizer).__name__} is not a fast tokenizer; one with a tokenizer.json is needed"
        )
    roles = Roles(*(getattr(tokenizer, f"{role}_token", None) for role in Roles._fields))
    adopted = Tokenizer.of_model(backend, roles, source, ids)
    if (known := max(backend.get_vocab(with_added_tokens=False).values())) >= ids:
        raise InputError(
            f"{source}: its tokenizer has token {known}, the model knows {ids}; give the model's tokenizer"
        )
    return adopted


def window_of(config: Any, asked: int | None, name: str) -> int:
    """Most tokens that a model reads at once: as many as are asked for, or what it takes, at most ``WINDOW``.

    Raises:
        InputError: more are asked for than it takes.
    """
    most = getattr(config, "max_position_embeddings", None)
    if asked is not None and most is not None and asked > most:
        raise InputError(f"{name}: a window of {asked} tokens was asked for, the model takes {most}")
    return asked or min(most or WINDOW, WINDOW)
