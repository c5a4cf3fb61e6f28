"""Sites for published memories, found by the modules that they are made of.

``bag_site``   product-key memories whose values are an ``EmbeddingBag``: product-key-memory's PKM, HashingMemory of XLM
               (arXiv 1907.05242) and of Meta's memory layers (arXiv 2412.09764)
``peer_site``  PEER (arXiv 2407.04153) as PEER-pytorch 0.2 builds it
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memscope.run.adapters.module_site import Call, Choice, Choose, ModuleSite, Written, find_module


def bag_site(
    model: nn.Module, module: str, gate_heads: int, selected: int, values: str = "values", is_output: bool = False
) -> ModuleSite:
    """A memory that sums rows of a table: indices and weights are the arguments of the table's call.

    Layers that share the table by reference select from one bank. A table that is called without weights, as
    product-key-memory's with ``concat_values_and_combine=True``, gives a site without scores.

    Args:
        model: the model.
        module: path of the memory.
        gate_heads: heads of the memory (H).
        selected: entries that all heads together select for a token (K).
        values: path in the memory of its table.
        is_output: the weighted sum of rows is what the memory adds to the residual stream; then rows have a logit lens.

    Example:
        >>> site = bag_site(pkm_model, "memory", gate_heads=2, selected=4)
    """
    table = find_module(model, f"{module}.{values}")
    weight = table.get_parameter("weight")
    weighted = not isinstance(table, nn.Embedding)
    return ModuleSite(
        module=module,
        entries=weight.shape[0],
        selected=selected,
        reads=lambda memory, bag: Choice(bag.args[0], _weights(bag.args, bag.kwargs)),
        inside=(values,),
        write=_write_bag,
        kind="product_keys",
        has=("scores",) if weighted else (),
        gate_heads=gate_heads,
        bank=weight,
        values=weight if is_output else None,
    )


def peer_site(model: nn.Module, module: str) -> ModuleSite:
    """A PEER layer: scores are gate scores, reads are gate score times the activation of the expert's hidden neuron.

    Its selections can be changed. The layer runs twice then, by its own code: once to know what it selects, and once
    more to use what is put in its place.

    An expert adds its read weight times its row of ``weight_up_embed``, the value of the logit lens. With
    ``separate_embed_per_head`` every head has experts of its own, N times H altogether.

    Example:
        >>> site = peer_site(peer_model, "memory")
    """
    peer: Any = find_module(model, module)
    return ModuleSite(
        module=module,
        entries=peer.weight_down_embed.num_embeddings,
        selected=peer.heads * peer.num_experts_per_head_topk,
        reads=_read_peer,
        inside=("weight_down_embed", "activation", "score_activation"),
        writer=_write_peer,
        kind="peer",
        has=("scores", "reads"),
        gate_heads=peer.heads,
        signed_reads=True,
        bank=peer.weight_up_embed.weight,
        values=peer.weight_up_embed.weight,
    )


def _read_peer(peer: Call, down: Call, hidden: Call, score: Call) -> Choice:
    return Choice(down.args[0], score.output, hidden.output * score.output)


def _write_peer(peer: Any, choose: Choose, now: list[Written]) -> Iterator[RemovableHandle]:
    """Put indices before both tables, and scores behind their activation."""

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now[:] = [choose(*(now[0] if now else _search_peer(peer, args, kwargs)))]

    def put_indices(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (now[0][0], *args[1:]) if now else None

    def put_scores(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return now[0][1] if now else None

    yield peer.register_forward_pre_hook(ask, with_kwargs=True)
    yield peer.register_forward_hook(lambda *call: now.clear(), always_call=True)  # other layers may share its tables
    for table in (peer.weight_down_embed, peer.weight_up_embed):
        yield table.register_forward_pre_hook(put_indices)
    yield peer.score_activation.register_forward_hook(put_scores, prepend=True)  # before what captures them


def _search_peer(peer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What it selects, by running it; what runs has no say in that."""
    found: dict[str, Tensor] = {}
    handles = [
        peer.weight_down_embed.register_forward_pre_hook(lambda module, args: found.update(indices=args[0])),
        peer.score_activation.register_forward_hook(lambda module, args, output: found.update(scores=output)),
    ]
    try:
        peer.forward(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found["indices"], found["scores"]


def _weights(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Weights of a table's call: the last positional argument where they have no name, as in Meta's own bag."""
    return kwargs.get("per_sample_weights", args[-1] if len(args) > 1 else None)


def _write_bag(args: tuple[Any, ...], kwargs: dict[str, Any], choose: Choose) -> tuple[tuple[Any, ...], dict[str, Any]]:
    indices, weights = choose(args[0], _weights(args, kwargs))
    if "per_sample_weights" in kwargs:
        return (indices, *args[1:]), kwargs | {"per_sample_weights": weights}
    return (indices, *args[1:-1], weights) if len(args) > 1 else (indices,), kwargs
