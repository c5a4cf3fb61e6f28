"""The training loop, readable top to bottom: evaluate -> sample -> save -> one step -> log.

    memscope train configs/demo.yaml --out runs/demo

Everything a step needs is a function of the config and the step number (data order, learning rates), so a run that
was killed resumes from its newest checkpoint to the same losses. Runs on one process or many
(``train/parallel.py``; start it with torchrun or accelerate launch).
"""

import sys
import time
from functools import partial
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from memscope.base.errors import InputError
from memscope.base.files import write_text
from memscope.base.lock import one_writer
from memscope.base.runtime import autocast, peak_rss_bytes, pick_device
from memscope.base.seals import LIST, write_sealed
from memscope.config.load import Config, dump_config
from memscope.config.training import TrainConfig
from memscope.model.ops.native import native
from memscope.model.transformer import MemoryTransformer, next_token_loss
from memscope.run.bank_init import FreshStarts
from memscope.run.checkpoint import (
    MODEL,
    list_checkpoints,
    list_files,
    load_weights,
    publish_newest,
    read_checkpoint,
    save_checkpoint,
    set_aside_damaged,
)
from memscope.run.folder import check_run_folder, check_steps, write_start
from memscope.run.generate import generate
from memscope.run.metrics_log import MetricsLog, read_metrics
from memscope.stats.usage import usage_metrics
from memscope.text.corpus import PackedCorpus, TrainingOrder
from memscope.text.tokenizer import Tokenizer
from memscope.train.evaluate import evaluate
from memscope.train.parallel import Parallel, TorchParallel, check_strategy, make_accelerator, strategy
from memscope.train.prepare import prepare_run
from memscope.train.revive import Reviver
from memscope.train.timing import StepClock, Throughput

_SAMPLES, _PROMPT_TOKENS, _NEW_TOKENS = 3, 24, 48


def train(config: Config, run: Path, resume: bool = False, device: str = "auto") -> dict[str, Any]:
    """Train a model into the folder ``run`` and return its summary (also in ``run/run.json``).

    Raises:
        InputError: bad paths or data; a run folder that exists without ``resume``, has another config with it, or is
            written by another process.
    """
    check_strategy(config)
    if config.train.compile and pick_device(device).type == "cpu" and native() is None:
        raise InputError("train.compile=true needs a C++ compiler: install g++, or set compile=false")
    with one_writer(run):
        check_run_folder(config, run, resume)
        return _train(config, run, device)


def _train(config: Config, run: Path, device: str) -> dict[str, Any]:
    started = time.perf_counter()
    settings = config.train
    accelerator = make_accelerator(settings, run, device)
    with accelerator.main_process_first():  # the main process fills the caches, the others read them
        if accelerator.is_main_process:
            set_aside_damaged(run)
            (run / LIST).unlink(missing_ok=True)
        tokenizer, train_corpus, valid_corpus, net = prepare_run(config, run, write=accelerator.is_main_process)
    checkpoints, first_step = list_checkpoints(run), 0
    if checkpoints:
        load_weights(net, checkpoints[-1] / MODEL)
    net.to(accelerator.device)
    if settings.compile:
        net.compile_layers()
    parallel = _parallel(net, settings, accelerator)
    if checkpoints:
        first_step, optimizer_state = read_checkpoint(checkpoints[-1])
        parallel.restore(optimizer_state)
        if accelerator.is_main_process:
            publish_newest(run, settings.keep_checkpoints)  # a run may have been killed between saving and publishing

    reviver = None
    if net.bank is not None and net.bank.starts is not None:
        fresh = FreshStarts(run, tokenizer.pad, settings.seed, config.memory.entry_cosine)
        reviver = Reviver(net, parallel.optimizer, fresh)
    order = TrainingOrder(train_corpus, config.model.max_seq_len, settings.seed)
    micro_samples = settings.batch_size * accelerator.num_processes
    step_samples = micro_samples * settings.accumulation_steps
    n_steps = settings.steps or max(1, settings.epochs * order.n_windows // step_samples)
    check_steps(run, first_step, n_steps)
    if accelerator.is_main_process:
        write_start(config, run, step_samples)
        (run / LIST).unlink(missing_ok=True)
        write_text(run / "config.yaml", dump_config(config))
        list_files(run)
    speed = Throughput(step_samples * config.model.max_seq_len)
    log = MetricsLog(run / "metrics.jsonl", first_step, accelerator)
    progress = _progress_bar(first_step, n_steps, accelerator)
    say = partial(progress.write, file=sys.stderr) if accelerator.is_main_process else _say_nothing
    say(
        f"{net.count_parameters():,} parameters, {len(train_corpus.tokens):,} training tokens, "
        f"{n_steps} steps of {speed.tokens_per_step:,} tokens on {accelerator.device}"
    )
    net.train()
    for step in range(first_step, n_steps + 1):
        last = step == n_steps

        # once in a while: validate, with the usage of the bank
        if last or step % settings.eval_interval == 0:
            with speed.paused():
                evaluation = _evaluate(net, valid_corpus, tokenizer, config)
            _check_finite("validation loss", evaluation["loss"], step)
            log.write("eval", step, evaluation)
            say(_eval_line(step, evaluation))

        # once in a while: continue the first validation documents
        if last or (settings.sample_interval and step and step % settings.sample_interval == 0):
            with speed.paused():
                for sample in _samples(net, valid_corpus, tokenizer, config):
                    log.write("sample", step, sample)

        # once in a while: save; a checkpoint is the state before this step
        if step > first_step and (last or step % settings.save_interval == 0):
            with speed.paused():
                state = parallel.state()
                if accelerator.is_main_process:
                    save_checkpoint(run, step, state, settings.keep_checkpoints)
                accelerator.wait_for_everyone()
        if last:
            break

        # one training step
        clock = StepClock(accelerator.device, on=step % settings.profile_interval == 0)
        schedule = learning_rate_factor(step, n_steps, settings)
        for group in parallel.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule
        loss_sum = torch.zeros((), device=accelerator.device)
        for micro in range(settings.accumulation_steps):
            sample = step * step_samples + micro * micro_samples + accelerator.process_index * settings.batch_size
            tokens = torch.from_numpy(order.batch(sample, settings.batch_size)).to(accelerator.device)
            clock.lap("data")
            with parallel.accumulating(micro + 1 < settings.accumulation_steps):
                with autocast(accelerator.device, settings.dtype):
                    logits = parallel.model(tokens[:, :-1])
                loss = next_token_loss(logits, tokens[:, 1:]).mean() / settings.accumulation_steps
                clock.lap("forward")
                parallel.backward(loss + net.penalty() / settings.accumulation_steps)
                clock.lap("backward")
            loss_sum += loss.detach()
        frozen = step < settings.freeze_bank_steps
        if net.bank is not None and frozen:
            net.bank.entries.grad = None
        grad_norm = parallel.step(settings.grad_clip)
        if net.bank is not None:
            net.bank.follow_readers(frozen)
        if reviver is not None:
            reviver.step(step + 1)
        for balance in net.balances:
            balance.step(schedule)
        clock.lap("optimizer")
        speed.step()

        # once in a while: log the step that was just made
        if clock.on or (step + 1) % settings.log_interval == 0:
            record = {
                "loss": float(accelerator.reduce(loss_sum, "mean")),
                "grad_norm": float(grad_norm),
                "learning_rate": parallel.optimizer.param_groups[0]["lr"],
                "tokens_per_second": speed.recent(),
                **_revived(net),
                **_peak_memory(accelerator.device),
                **clock.seconds,
            }
            _check_finite("training loss", record["loss"], step + 1)
            log.write("train", step + 1, record)
            progress.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
        progress.update()

    progress.close()
    summary = {
        "parameters": net.count_parameters(),
        "steps": n_steps,
        "tokens": n_steps * speed.tokens_per_step,
        "untrained_valid_loss": _first_valid_loss(run),
        "valid_loss": evaluation["loss"],
        "valid_bits_per_byte": evaluation["bits_per_byte"],
        "tokens_per_second": speed.overall(),
        "seconds": time.perf_counter() - started,
        "processes": accelerator.num_processes,
        "strategy": strategy(),
        "device": str(accelerator.device),
        "torch": torch.__version__,
        **_peak_memory(accelerator.device),
    }
    if accelerator.is_main_process:
        write_sealed(run / "run.json", summary)
    parallel.close()
    accelerator.end_training()
    return summary


def learning_rate_factor(step: int, n_steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at ``step``: linear warm-up, then a cosine down to ``min_lr_ratio``."""
    if step < config.warmup_iters:
        return (step + 1) / config.warmup_iters
    done = (step - config.warmup_iters) / max(1, n_steps - config.warmup_iters)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + cos(pi * done))


def _check_finite(name: str, loss: float, step: int) -> None:
    if not isfinite(loss):
        raise InputError(f"the {name} is {loss} at step {step}: training diverged; lower learning_rate or grad_clip")


def _parallel(net: MemoryTransformer, settings: TrainConfig, accelerator: Accelerator) -> Parallel:
    """Spread ``net``, whose weights are the same in all processes, and make its optimiser."""
    if strategy() == "deepspeed":
        from memscope.train.zero import ZeroParallel

        return ZeroParallel(net, settings, accelerator)
    return TorchParallel(net, settings, accelerator)


def _say_nothing(_: str) -> None:
    """In all processes but one."""


def _progress_bar(first_step: int, n_steps: int, accelerator: Accelerator) -> Any:
    quiet = not accelerator.is_main_process or not sys.stderr.isatty()
    return tqdm(total=n_steps, initial=first_step, unit="step", file=sys.stderr, disable=quiet)


def _evaluate(net: MemoryTransformer, corpus: PackedCorpus, tokenizer: Tokenizer, config: Config) -> dict[str, Any]:
    """Validation loss, and per memory layer the evenness of its selections."""
    result, usage = evaluate(net, corpus, tokenizer, config.train.eval_tokens, config.train.dtype)
    values: dict[str, Any] = result.as_dict()
    if usage is not None:
        for row, layer in enumerate(config.model.memory_layers):
            count = usage.count[row, config.entries_of(layer)]
            metrics = usage_metrics(count, int(count.sum()), config.memory.num_selected)
            values |= {f"layer_{layer}/{name}": value for name, value in metrics.as_dict().items()}
    return values | _revived(net)


def _revived(net: MemoryTransformer) -> dict[str, int]:
    """How many entries started again so far, if any may."""
    return {} if net.bank is None or net.bank.starts is None else {"revived": int(net.bank.starts.revived)}


def _eval_line(step: int, evaluation: dict[str, Any]) -> str:
    coverage = [value for name, value in evaluation.items() if name.endswith("/coverage")]
    used = f", entries used per layer {', '.join(f'{value:.0%}' for value in coverage)}" if coverage else ""
    revived = f", {evaluation['revived']:,} entries revived" if "revived" in evaluation else ""
    loss, bits = evaluation["loss"], evaluation["bits_per_byte"]
    return f"step {step}: validation loss {loss:.4f}, {bits:.4f} bits per byte{used}{revived}"


def _samples(
    net: MemoryTransformer, corpus: PackedCorpus, tokenizer: Tokenizer, config: Config
) -> list[dict[str, str]]:
    """Continuations of the first validation documents."""
    samples = []
    net.eval()
    new_tokens = min(_NEW_TOKENS, config.model.max_seq_len - _PROMPT_TOKENS)
    for start, stop in list(zip(corpus.starts[:-1], corpus.starts[1:], strict=True))[:_SAMPLES]:
        prompt = corpus.tokens[start : min(start + _PROMPT_TOKENS, stop - 1)].tolist()
        with autocast(net.embed.weight.device, config.train.dtype):
            new = generate(net, prompt, new_tokens, eos=tokenizer.eos, seed=config.train.seed)
        samples.append({"prompt": tokenizer.decode(prompt[1:]), "text": tokenizer.decode(new, after=prompt)})
    net.train()
    return samples


def _peak_memory(device: torch.device) -> dict[str, int]:
    peak = {"peak_rss_bytes": peak_rss_bytes()}
    if device.type == "cuda":
        peak["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak


def _first_valid_loss(run: Path) -> float:
    return float(next(line["loss"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "eval"))
