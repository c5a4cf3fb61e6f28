"""Measurements of a training run beside its loss: validation with the bank's usage, samples, memory, summary."""

import time
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from memscope.base.errors import InputError
from memscope.base.runtime import autocast, peak_rss_bytes
from memscope.model.transformer import MemoryTransformer
from memscope.run.generate import generate
from memscope.run.metrics_log import read_metrics
from memscope.stats.usage import usage_metrics
from memscope.train.evaluate import evaluate
from memscope.train.parallel import strategy
from memscope.train.setup import Training

_PROMPT_TOKENS, _NEW_TOKENS = 24, 48


def validation_values(training: Training) -> dict[str, Any]:
    """Validation loss, and per layer that selects how evenly its entries are selected."""
    config = training.config
    result, usage = evaluate(
        training.net, training.valid_corpus, training.tokenizer, config.train.eval_tokens, config.train.dtype
    )
    values: dict[str, Any] = result.as_dict()
    if usage is not None:
        for row, layer in enumerate(config.model.selecting_layers):
            reads_text = layer in config.model.text_layers
            entries = slice(config.first_sentence, None) if reads_text else config.entries_of(layer)
            distinct = config.text.sentences_selected if reads_text else config.memory.num_selected
            count = usage.count[row, entries]
            metrics = usage_metrics(count, int(count.sum()), distinct)
            values |= {f"layer_{layer}/{name}": value for name, value in metrics}
    return values | _revived(training.net)


def validation_line(step: int, values: dict[str, Any]) -> str:
    """``validation_values`` in one line for the terminal."""
    coverage = [value for name, value in values.items() if name.endswith("/coverage")]
    used = f", entries used per layer {', '.join(f'{value:.0%}' for value in coverage)}" if coverage else ""
    revived = f", {values['revived']:,} entries revived" if "revived" in values else ""
    return (
        f"step {step}: validation loss {values['loss']:.4f}, {values['bits_per_byte']:.4f} bits per byte{used}{revived}"
    )


def samples(training: Training, count: int) -> list[dict[str, str]]:
    """Continuations of the first ``count`` validation documents."""
    net, corpus, tokenizer, config = training.net, training.valid_corpus, training.tokenizer, training.config
    texts = []
    net.eval()
    new_tokens = min(_NEW_TOKENS, config.model.max_seq_len - _PROMPT_TOKENS)
    for start, stop in list(zip(corpus.starts[:-1], corpus.starts[1:], strict=True))[:count]:
        prompt = corpus.tokens[start : min(start + _PROMPT_TOKENS, stop - 1)].tolist()
        with autocast(net.embed.weight.device, config.train.dtype):
            new = generate(net, prompt, new_tokens, eos=tokenizer.eos, seed=config.train.seed)
        texts.append({"prompt": tokenizer.decode(prompt[1:]), "text": tokenizer.decode(new, after=prompt)})
    net.train()
    return texts


def step_values(
    training: Training, step: int, loss_sum: Tensor, grad_norm: Tensor, clock_seconds: dict[str, float]
) -> dict[str, Any]:
    """The line that is logged for the last step; all processes call it.

    Args:
        training: the run.
        step: steps that were made.
        loss_sum: of this process, over its micro-batches.
        grad_norm: before it was clipped.
        clock_seconds: what its parts took, if that was measured.
    """
    loss = float(training.accelerator.reduce(loss_sum, "mean"))  # waits for a GPU, so before the clock is read
    speed = training.speed.recent()
    left = (training.n_steps - step) * training.speed.tokens_per_step
    return {
        "loss": loss,
        "grad_norm": float(grad_norm),
        "learning_rate": training.parallel.optimizer.param_groups[0]["lr"],
        "tokens_per_second": speed,
        "of_steps": training.n_steps,
        **({"left_seconds": left / speed} if speed else {}),
        **_revived(training.net),
        **_peak_memory(training.accelerator.device),
        **clock_seconds,
    }


def check_finite(name: str, loss: float, step: int) -> None:
    """Stop a run whose loss is no number.

    Raises:
        InputError: for it, naming the step.
    """
    if not isfinite(loss):
        raise InputError(f"the {name} is {loss} at step {step}: training diverged; lower learning_rate or grad_clip")


def summary(training: Training, last_validation: dict[str, Any]) -> dict[str, Any]:
    """The content of ``run.json`` for a finished run."""
    device = training.accelerator.device
    logged = read_metrics(training.run / "metrics.jsonl")
    return {
        "parameters": training.net.count_parameters(),
        "steps": training.n_steps,
        "tokens": training.n_steps * training.speed.tokens_per_step,
        "untrained_valid_loss": float(next(line["loss"] for line in logged if line["kind"] == "eval")),
        "valid_loss": last_validation["loss"],
        "valid_bits_per_byte": last_validation["bits_per_byte"],
        "tokens_per_second": training.speed.overall(),
        "seconds": time.perf_counter() - training.started,
        "processes": training.accelerator.num_processes,
        "strategy": strategy(),
        "device": str(device),
        "torch": torch.__version__,
        **_peak_memory(device),
    }


def _revived(net: MemoryTransformer) -> dict[str, int]:
    """How many entries started again so far, as ``revived``; empty if none may."""
    return {} if net.bank is None or net.bank.starts is None else {"revived": int(net.bank.starts.revived)}


def _peak_memory(device: torch.device) -> dict[str, int]:
    """The largest memory that this process had so far, in bytes, and on a GPU that of its tensors."""
    peak = {"peak_rss_bytes": peak_rss_bytes()}
    if device.type == "cuda":
        peak["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak
