"""Sampling text from a model: with a KV cache where the model has one, on the whole sequence where it has not."""

import torch

from memscope.base.errors import InputError
from memscope.base.runtime import agreed
from memscope.model.transformer import KVCache, MemoryTransformer


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
    generator = torch.Generator().manual_seed(seed)
    cache = None if model.cfg.model.selecting_layers else KVCache(model.cfg.model, 1, device)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + new_tokens:
        unseen = tokens[cache.length :] if cache is not None else tokens
        logits = model(torch.tensor([unseen], device=device), cache)[0, -1].float().cpu()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
        token = agreed(token, device)  # a model in shards needs all processes for the next one
        tokens.append(token)
        if token == eos:
            break
    return tokens[len(prompt) :]
