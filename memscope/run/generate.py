"""Sampling text from a model: with a KV cache where the model has one, on the whole sequence where it has not."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from memscope.base.errors import InputError
from memscope.base.runtime import agreed
from memscope.model.transformer import KVCache, MemoryTransformer

NextLogits = Callable[[list[int]], Float[Tensor, " vocab"]]
"""Logits of the token after some ids, which grow by one from call to call."""


@torch.no_grad()
def generate(
    model: MemoryTransformer, prompt: list[int], new_tokens: int, eos: int, temperature: float = 0.8, seed: int = 0
) -> list[int]:
    """Continue ``prompt`` by at most ``new_tokens`` ids; the end token, when reached, is the last of them.

    ``temperature`` 0 takes the most likely token; above, the sample is a function of ``seed``.

    Raises:
        InputError: an empty prompt, or prompt and continuation exceed ``max_seq_len``.
    """
    if not prompt:
        raise InputError("the prompt is empty; give at least one token")
    model.cfg.model.expect_room(len(prompt), new_tokens)
    device = model.embed.weight.device
    cache = None if model.cfg.model.selecting_layers else KVCache(model.cfg.model, 1, device)

    def logits(tokens: list[int]) -> Tensor:
        unseen = tokens[cache.length :] if cache is not None else tokens
        last: Tensor = model(torch.tensor([unseen], device=device), cache)[0, -1]
        return last

    return list(sample(logits, prompt, new_tokens, eos, temperature, seed))


def sample(
    logits: NextLogits, prompt: Sequence[int], new_tokens: int, eos: int, temperature: float, seed: int
) -> Iterator[int]:
    """The tokens that continue a prompt, one after the other; the end token is the last."""
    generator, tokens = torch.Generator().manual_seed(seed), list(prompt)
    for _ in range(new_tokens):
        last = logits(tokens)
        values = last.float().cpu()
        if temperature == 0:
            token = int(values.argmax())
        else:
            token = int(torch.multinomial((values / temperature).softmax(-1), 1, generator=generator))
        token = agreed(token, last.device)  # a model in shards needs all processes for the next one
        tokens.append(token)
        yield token
        if token == eos:
            return
