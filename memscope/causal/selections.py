"""Change what any subject selects while a ``with`` block runs: experts, entries, whatever its sites select.

    with ablate(subject, [70]):                          # as if expert 6 of layer 1 had not been selected
        logits = subject.logits(tokens, mask)
    with subject.capture() as captured:
        subject.logits(tokens, mask)
    with replay(subject, captured):                      # the experts of that pass, whatever the routers say
        logits = subject.logits(tokens, mask)

Entries are numbered as in a recording (``info.site(1).first_entry + 6`` is expert 6 of layer 1), ``layers`` are those
of ``subject.sites``, ``positions`` are as in ``causal/intervene.py``. Blocks nest, an inner one sees the selections of
the outer one, and no weight of the model changes.

Memories of memscope have a read apart from their gate scores, which scores alone cannot express. For them ``ablate``,
``force``, ``swap`` and ``scale`` are those of ``causal/intervene.py``, which also has what only a memory can do. The
read of a text layer weighs words by the gate scores of their sentences, so there scores say it all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor

from memscope.base.errors import InputError
from memscope.causal import intervene
from memscope.causal.intervene import Entries, Mode, Positions, mark_positions
from memscope.config.load import Config
from memscope.recording.sites import Kind, Site, entry_label
from memscope.run.adapters.own import OwnModel
from memscope.run.subject import Selected, Subject

_ALONE: frozenset[Kind] = frozenset(("neurons", "features", "peer"))
"""Kinds whose scores do not share a sum: each is an activation of its own."""
_Change = Callable[[Site, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps a site, its indices and its scores, ``[batch, pos, K]`` each, to others."""


def ablate(
    subject: Subject,
    entries: Entries,
    mode: Mode = "renormalise",
    *,
    layers: Sequence[int] | None = None,
    positions: Positions = None,
) -> AbstractContextManager[None]:
    """Take entries out of what tokens select; nothing takes their place.

    Args:
        subject: the model.
        entries: entry numbers.
        mode: ``renormalise`` has a token's other weights take over, in proportion, so that the sum of its weights (of
            a gate head, where there are several) is as it was; a token that loses all it selects keeps none.
            ``zero`` makes the weight 0 and leaves the others. Activations of neurons, of features of a sparse
            autoencoder and of PEER's experts do not share a sum: there the two are the same.
        layers: layers that select; default all.
        positions: where.

    Raises:
        InputError: no such layer can select an entry, it has no scores, or its selection cannot be changed.

    Example:
        >>> with ablate(subject, [3], layers=[0]):
        ...     logits = subject.logits(run.tokens("Apollo was the god of"))
    """
    if isinstance(subject, OwnModel) and not _has_sentence(subject, entries):
        return intervene.ablate(subject.model, entries, mode, layers=layers, positions=positions)
    wanted = torch.as_tensor(entries).long().flatten()
    if isinstance(subject, OwnModel) and not bool((wanted >= subject.model.cfg.first_sentence).all()):
        return _ablate_both(subject, subject.model.cfg, wanted, mode, layers, positions)
    owners = {site.layer for entry in wanted.tolist() for site in _owners(subject, layers, entry)}
    wanted = wanted.to(next(subject.model.parameters()).device)  # once, not at every call

    def change(site: Site, indices: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        gone = torch.isin(indices, wanted.to(indices.device)) & mark_positions(indices, positions)[..., None]
        kept = scores.masked_fill(gone, 0.0)
        if mode == "zero" or site.kind in _ALONE:
            return indices, kept
        before, after = (values.unflatten(-1, (site.gate_heads, -1)).sum(-1, keepdim=True) for values in (scores, kept))
        share = torch.where(after == before, 1.0, before / torch.where(after == 0, 1.0, after))
        return indices, (kept.unflatten(-1, (site.gate_heads, -1)) * share).flatten(-2)

    return _changed(subject, owners, change)


def force(
    subject: Subject, entry: int, score: float, *, layers: Sequence[int] | None = None, positions: Positions = None
) -> AbstractContextManager[None]:
    """Have tokens select an entry with this score.

    Where it is selected anyway its score is set. Elsewhere it takes the place of the token's selection of lowest score,
    of equal ones the last. The other scores stay.

    Args:
        subject: the model.
        entry: entry number.
        score: its score, as the model uses it: for experts, the weight of the output.
        layers: layers that can all select it; default those that can.
        positions: where.

    Raises:
        InputError: a layer cannot select the entry, has no scores, or its selection cannot be changed.

    Example:
        >>> with force(subject, entry=3, score=1.0, layers=[0]):
        ...     logits = subject.logits(run.tokens("Apollo was the god of"))
    """
    if isinstance(subject, OwnModel) and not _has_sentence(subject, [entry]):
        return intervene.force(subject.model, entry, score, layers=layers, positions=positions)

    def change(site: Site, indices: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        at = mark_positions(indices, positions)[..., None]
        weakest = indices.shape[-1] - 1 - scores.flip(-1).argmin(-1, keepdim=True)
        missing = at & ~(indices == entry).any(-1, keepdim=True)
        indices = torch.where(missing, indices.scatter(-1, weakest, entry), indices)
        return indices, scores.masked_fill((indices == entry) & at, score)

    return _changed(subject, _all_owners(subject, layers, entry), change)


def swap(
    subject: Subject, first: int, second: int, *, layers: Sequence[int] | None = None, positions: Positions = None
) -> AbstractContextManager[None]:
    """Use entry ``second`` wherever ``first`` is selected, with its score, and the other way round.

    Raises:
        InputError: a layer cannot select both, has no scores, or its selection cannot be changed.

    Example:
        >>> with swap(subject, first=3, second=5):
        ...     logits = subject.logits(run.tokens("Apollo was the god of"))
    """
    if isinstance(subject, OwnModel) and not _has_sentence(subject, [first, second]):
        return intervene.swap(subject.model, first, second, layers=layers, positions=positions)

    def change(site: Site, indices: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        exchanged = torch.where(indices == first, second, torch.where(indices == second, first, indices))
        return torch.where(mark_positions(indices, positions)[..., None], exchanged, indices), scores

    return _changed(subject, _all_owners(subject, layers, first, second), change)


def scale(
    subject: Subject, factor: float, *, layers: Sequence[int] | None = None, positions: Positions = None
) -> AbstractContextManager[None]:
    """Multiply the weights of all that whole layers select; 0 leaves what every token passes (``Site.always``).

    Raises:
        InputError: a layer does not select, has no scores, or its selection cannot be changed.

    Example:
        >>> with scale(subject, 0.5, layers=[0]):
        ...     logits = subject.logits(run.tokens("Apollo was the god of"))
    """
    if isinstance(subject, OwnModel):
        return _scale_own(subject, factor, layers, positions)

    def change(site: Site, indices: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return indices, torch.where(mark_positions(indices, positions)[..., None], factor * scores, scores)

    return _changed(subject, {site.layer for site in _sites(subject, layers)}, change)


@contextmanager
def replay(
    subject: Subject, captured: Mapping[int, Selected], *, layers: Sequence[int] | None = None
) -> Iterator[None]:
    """Select what an earlier pass over a batch of the same shape selected, with its scores.

    On the same batch logits are the same bit for bit; a memory's read weights follow from entries, scores and its
    queries, which are those of the new pass.

    Args:
        subject: the model.
        captured: what ``subject.capture()`` yields, filled by a pass that is over.
        layers: layers to replay; default all that were captured.

    Raises:
        InputError: a layer does not select or was not captured, its selection cannot be changed, or, during a pass,
            the batch has another shape.

    Example:
        >>> tokens = run.tokens("Apollo was the god of")
        >>> with subject.capture() as captured:
        ...     before = subject.logits(tokens)
        >>> with replay(subject, captured):
        ...     assert torch.equal(subject.logits(tokens), before)
    """
    chosen = {site.layer for site in _sites(subject, list(captured) if layers is None else layers)}
    if lacking := sorted(chosen - captured.keys()):
        raise InputError(f"layer {lacking[0]} was not captured; run the model inside subject.capture() first")
    earlier = {layer: captured[layer] for layer in chosen}  # later passes replace what is in ``captured``

    def edit(layer: int, indices: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if layer not in earlier:
            return indices, scores
        was = earlier[layer]
        if was.indices.shape != indices.shape:
            raise InputError(
                f"the selections to replay are of a batch of shape {tuple(was.indices.shape[:2])}, "
                f"this one is {tuple(indices.shape[:2])}"
            )
        return was.indices, was.gate_scores

    with subject.rewrite(edit):
        yield


def _has_sentence(subject: OwnModel, entries: Entries) -> bool:
    """Whether some of the entries are sentences of a text layer."""
    bank, first = subject.model.text_bank, subject.model.cfg.first_sentence
    return bank is not None and bool((torch.as_tensor(entries) >= first).any())


@contextmanager
def _ablate_both(
    subject: Subject,
    config: Config,
    wanted: Tensor,
    mode: Mode,
    layers: Sequence[int] | None,
    positions: Positions,
) -> Iterator[None]:
    """Ablate entries of the memory and sentences, each in layers of their own."""
    model, of_text = config.model, wanted >= config.first_sentence
    with ExitStack() as stack:
        for entries, own in ((wanted[~of_text], model.memory_layers), (wanted[of_text], model.text_layers)):
            chosen = None if layers is None else [layer for layer in layers if layer in own]
            stack.enter_context(ablate(subject, entries, mode, layers=chosen, positions=positions))
        yield


@contextmanager
def _scale_own(subject: OwnModel, factor: float, layers: Sequence[int] | None, positions: Positions) -> Iterator[None]:
    """Multiply what whole memory and text layers add to the residual stream."""
    model = subject.model.cfg.model
    texts = [layer for layer in model.text_layers if layers is None or layer in layers]
    others = [layer for layer in (model.memory_layers if layers is None else layers) if layer not in texts]

    def multiply(added: Tensor, hook: object) -> Tensor:
        return torch.where(mark_positions(added, positions)[..., None], factor * added, added)

    with ExitStack() as stack:
        if others or not texts:
            stack.enter_context(intervene.scale(subject.model, factor, layers=others or None, positions=positions))
        stack.enter_context(subject.model.hooks([(f"blocks.{layer}.hook_text_out", multiply) for layer in texts]))
        yield


@contextmanager
def _changed(subject: Subject, layers: set[int], change: _Change) -> Iterator[None]:
    sites = {site.layer: site for site in subject.sites if site.layer in layers}
    if lacking := [site for site in sites.values() if "scores" not in site.has]:
        raise InputError(
            f"layer {lacking[0].layer} ({lacking[0].module}) has no scores, so no selection of it can be changed"
        )

    def edit(layer: int, indices: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if layer not in sites or scores is None:
            return indices, scores
        return change(sites[layer], indices, scores)

    with subject.rewrite(edit):
        yield


def _sites(subject: Subject, layers: Sequence[int] | None) -> list[Site]:
    known = [site.layer for site in subject.sites]
    if layers is not None and (odd := sorted(set(layers) - set(known))):
        raise InputError(f"layer {odd[0]} selects nothing; layers that select are {', '.join(map(str, known))}")
    return [site for site in subject.sites if layers is None or site.layer in layers]


def _owners(subject: Subject, layers: Sequence[int] | None, entry: int) -> list[Site]:
    """The chosen layers that can select an entry, at least one."""
    sites = _sites(subject, layers)
    if able := [site for site in sites if site.own.start <= entry < site.own.stop]:
        return able
    end = max(site.own.stop for site in subject.sites)
    if not 0 <= entry < end:
        one, many = sites[0].word(), sites[0].word(2)
        raise InputError(f"there is no {one} {entry}; the {end:,} {many} of all layers count from 0")
    name = entry_label(subject.sites, entry)
    if len(sites) == 1:
        [site] = sites
        raise InputError(f"layer {site.layer} cannot select {name}; it has {site.own.start} to {site.own.stop - 1}")
    raise InputError(f"none of the layers {', '.join(str(site.layer) for site in sites)} can select {name}")


def _all_owners(subject: Subject, layers: Sequence[int] | None, *entries: int) -> set[int]:
    """The chosen layers, each of which must be able to select all entries; by default all such layers."""
    able = [{site.layer for site in _owners(subject, layers, entry)} for entry in entries]
    both = set.intersection(*able)
    if not both or (layers is not None and both != set(layers)):
        who = "no layer" if layers is None else "not every layer named"
        names = " and ".join(entry_label(subject.sites, entry) for entry in entries)
        raise InputError(f"{who} can select {names}; choose {subject.sites[0].word(2)} of one layer")
    return both
