"""How good a model is on held-out text: loss, perplexity, bits per byte, and the experiment's generation check.

result = evaluate(model, corpus, tokenizer, max_tokens=65536)
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
import torch

from memscope.base.errors import InputError
from memscope.base.runtime import autocast, on_device, on_host
from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.run.adapters.own import OwnModel
from memscope.run.generate import generate
from memscope.run.subject import run_windows
from memscope.stats.usage import UsageCounts
from memscope.text.corpus import DocumentWindow, PackedCorpus, document_windows
from memscope.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class EvalResult:
    """Loss over a corpus, every predicted token weighing the same."""

    tokens: int
    """Predicted tokens."""
    loss: float
    """Mean cross-entropy in nats per token."""
    perplexity: float
    bits_per_byte: float
    """Loss per UTF-8 byte of the documents' text, in bits: comparable between tokenizers, also those that lose text."""

    def as_dict(self) -> dict[str, int | float]:
        """Plain numbers, for JSON and tables."""
        return asdict(self)


def evaluate(
    model: MemoryTransformer, corpus: PackedCorpus, tokenizer: Tokenizer, max_tokens: int | None, dtype: str
) -> tuple[EvalResult, UsageCounts | None]:
    """Loss over the first ``max_tokens`` of a corpus in document windows, and the usage of the entries on the way.

    Returns no usage for a model whose layers select nothing, else a row per layer that selects. Entries that a layer
    cannot select have none.
    """
    layers, n_entries = model.cfg.model.selecting_layers, model.cfg.first_sentence + len(model.text_bank or ())
    usage = UsageCounts(len(layers), n_entries) if layers else None
    windows = document_windows(corpus, model.cfg.model.max_seq_len, max_tokens)
    nats, n_tokens = torch.zeros(()), 0
    for done in run_windows(OwnModel(model, dtype), corpus, windows, tokenizer.pad):
        predicted = done.batch.targets >= 0
        nats = nats + done.losses.double().sum()
        n_tokens += int(predicted.sum())
        if usage is not None:
            places = on_device(np.flatnonzero(done.batch.mask), done.logits.device)
            picked = {
                (row, name): getattr(done.captured[layer], name).flatten(0, 1)[places]
                for row, layer in enumerate(layers)
                for name in ("indices", "gate_scores", "read_weights")
            }
            arrays = on_host(picked)
            for row in range(len(layers)):
                chosen = [arrays[row, name] for name in ("indices", "gate_scores", "read_weights")]
                is_any = chosen[0] >= 0  # a text layer may find less than it can take
                usage.update(row, *(values[is_any] for values in chosen))
    n_bytes = _bytes_predicted(corpus, windows[-1], tokenizer) if n_tokens else 0
    if not n_bytes:
        raise InputError(f"{corpus.path}: nothing to predict in this corpus")
    loss = float(nats) / n_tokens
    return EvalResult(n_tokens, loss, math.exp(loss), float(nats) / math.log(2) / n_bytes), usage


def _bytes_predicted(corpus: PackedCorpus, last: DocumentWindow, tokenizer: Tokenizer) -> float:
    """UTF-8 bytes of the text that is predicted up to the end of a window.

    Documents count by their own text, of which a tokenizer may lose some. One that the window cuts counts by the share
    of its tokens that were predicted, each as long as the text that it stands for.
    """
    assert corpus.text_bytes is not None
    start, stop = corpus.starts[last.doc : last.doc + 2]
    share = 1.0
    if last.end < stop and (of_all := tokenizer.text_size(corpus.tokens[start:stop])):
        share = tokenizer.text_size(corpus.tokens[start : last.end + 1]) / of_all
    return float(corpus.text_bytes[: last.doc].sum() + corpus.text_bytes[last.doc] * share)


@dataclass(frozen=True)
class GenerationCheck:
    """The founding experiment's check: documents are cut after a prompt and continued."""

    samples: int
    loss: float
    """Mean loss of the true continuation, nats per token."""
    completion_rate: float
    """Share that reached the end token or the asked length."""
    eos_rate: float
    """Share that reached the end token."""
    mean_length: float
    """Generated tokens, the end token not counted."""
    distinct_1: float
    """Distinct tokens / tokens over all samples (distinct-n, arXiv 1510.03055)."""
    distinct_2: float
    repetition: float
    """Share of generated 4-grams that occurred before in the same sample."""

    def as_dict(self) -> dict[str, int | float]:
        """Plain numbers, for JSON and tables."""
        return asdict(self)


def check_generation(
    model: MemoryTransformer,
    corpus: PackedCorpus,
    tokenizer: Tokenizer,
    dtype: str,
    samples: int = 10,
    prompt_tokens: int = 100,
    new_tokens: int = 100,
    temperature: float = 0.8,
    seed: int = 0,
) -> tuple[GenerationCheck, list[tuple[str, str]]]:
    """Continue the first documents that are long enough; also returns (prompt, continuation) texts.

    Prompt and continuation are cut to half the model's window each where it is too short for both.

    Raises:
        InputError: no document has ``prompt_tokens + new_tokens`` tokens.
    """
    half = model.cfg.model.max_seq_len // 2
    prompt_tokens, new_tokens = min(prompt_tokens, half), min(new_tokens, half)
    need = prompt_tokens + new_tokens
    starts = [int(s) for s, e in zip(corpus.starts[:-1], corpus.starts[1:], strict=True) if e - s >= need][:samples]
    if not starts:
        raise InputError(f"{corpus.path}: no document has {need} tokens, which the generation check needs")
    losses, generated, texts = [], [], []
    for number, start in enumerate(starts):
        tokens = torch.from_numpy(corpus.tokens[start : start + need].astype(np.int64)).to(model.embed.weight.device)
        with torch.no_grad(), autocast(tokens.device, dtype):
            losses.append(
                float(next_token_loss(model(tokens[None, :-1]), tokens[None, 1:])[0, prompt_tokens - 1 :].mean())
            )
            prompt = tokens[:prompt_tokens].tolist()
            new = generate(model, prompt, new_tokens, eos=tokenizer.eos, temperature=temperature, seed=seed + number)
        generated.append(new)
        texts.append((tokenizer.decode(prompt[1:]), tokenizer.decode(new, after=prompt)))  # documents open with bos
    ended = [bool(new) and new[-1] == tokenizer.eos for new in generated]
    bodies = [new[:-1] if end else new for new, end in zip(generated, ended, strict=True)]
    check = GenerationCheck(
        samples=len(starts),
        loss=float(np.mean(losses)),
        completion_rate=float(np.mean([e or len(b) == new_tokens for e, b in zip(ended, bodies, strict=True)])),
        eos_rate=float(np.mean(ended)),
        mean_length=float(np.mean([len(body) for body in bodies])),
        distinct_1=_distinct(bodies, 1),
        distinct_2=_distinct(bodies, 2),
        repetition=float(np.mean([1 - _distinct([body], 4) for body in bodies])),
    )
    return check, texts


def _distinct(bodies: list[list[int]], n: int) -> float:
    """Distinct n-grams / n-grams; 1 when there are none."""
    grams = Counter(tuple(body[i : i + n]) for body in bodies for i in range(len(body) - n + 1))
    return len(grams) / sum(grams.values()) if grams else 1.0
