"""The training loop, readable top to bottom: evaluate -> save -> one step -> log, and samples at the end.

    memscope train demo --out runs/demo

Everything a step needs is a function of the config and the step number (data order, learning rates), so a run that
was killed resumes from its newest checkpoint to the same losses. Runs on one process or many
(``train/parallel.py``; start it with torchrun or accelerate launch). ``train/setup.py`` makes what the loop works with.
"""

from math import cos, pi
from pathlib import Path
from typing import Any

import torch

from memscope.base.lock import one_writer
from memscope.base.runtime import autocast
from memscope.base.seals import write_sealed
from memscope.config.load import Config
from memscope.config.training import TrainConfig
from memscope.model.transformer import next_token_loss
from memscope.run.checkpoint import save_checkpoint
from memscope.run.folder import check_run_folder
from memscope.train.lessons.batches import taught_loss, teaching
from memscope.train.measures import check_finite, samples, step_values, summary, validation_line, validation_values
from memscope.train.setup import check_set_up, set_up, settle_dtype
from memscope.train.timing import StepClock

_FINAL_RATE = 0.1
"""Final learning rate as a share of the peak."""
_SAMPLES = 3
"""Documents that are continued at the end."""


def train(config: Config, run: Path, resume: bool = False, device: str = "auto") -> dict[str, Any]:
    """Train a model into the folder ``run`` and return its summary (also in ``run/run.json``).

    Raises:
        InputError: bad paths or data; a run folder that exists without ``resume``, has another config with it, or is
            written by another process.

    Example:
        >>> summary = train(config, Path("runs/new"))
        >>> summary["valid_loss"]
    """
    check_set_up(config, device)
    config = settle_dtype(config, run, device)
    with one_writer(run):
        check_run_folder(config, run, resume)
        training = set_up(config, run, device)
        net, parallel, accelerator = training.net, training.parallel, training.accelerator
        settings, log, speed, progress = config.train, training.log, training.speed, training.progress
        net.train()
        for step in range(training.first_step, training.n_steps + 1):
            last = step == training.n_steps

            # once in a while: validate, with the usage of the bank
            if last or step % settings.eval_interval == 0:
                with speed.paused():
                    validation = validation_values(training)
                check_finite("validation loss", validation["loss"], step)
                log.write("eval", step, validation)
                progress.say(validation_line(step, validation))
                # continue the first validation document, at the end some more
                with speed.paused():
                    for sample in samples(training, _SAMPLES if last else 1) if step else ():
                        log.write("sample", step, sample)

            # once in a while: save; a checkpoint is the state before this step
            if step > training.first_step and (last or step % settings.save_interval == 0):
                with speed.paused():
                    state = parallel.state()
                    if accelerator.is_main_process:
                        save_checkpoint(run, step, state, settings.keep_checkpoints)
                    accelerator.wait_for_everyone()
            if last:
                break

            # one training step
            clock = StepClock(accelerator.device, on=step % settings.profile_interval == 0)
            schedule = learning_rate_factor(step, training.n_steps, settings)
            for group in parallel.optimizer.param_groups:
                group["lr"] = group["peak_lr"] * schedule
            loss_sum = torch.zeros((), device=accelerator.device)
            for micro in range(settings.accumulation_steps):
                tokens, lesson = training.batches.batch(step, micro)
                clock.lap("data")
                with parallel.accumulating(micro + 1 < settings.accumulation_steps):
                    with autocast(accelerator.device, settings.dtype), teaching(net, lesson):
                        logits = parallel.model(tokens[:, :-1])
                    loss = next_token_loss(logits, tokens[:, 1:]).mean() / settings.accumulation_steps
                    clock.lap("forward")
                    parallel.backward(loss + taught_loss(lesson) / settings.accumulation_steps)
                    clock.lap("backward")
                loss_sum += loss.detach()
            grad_norm = parallel.step(settings.grad_clip)
            if training.reviver is not None:
                training.reviver.step(step + 1)
            for balance in net.balances:
                balance.step(schedule)
            clock.lap("optimizer")
            speed.step()

            # once in a while: log the step that was just made
            if clock.on or (step + 1) % settings.log_interval == 0:
                values = step_values(training, step + 1, loss_sum, grad_norm, clock.seconds)
                check_finite("training loss", values["loss"], step + 1)
                log.write("train", step + 1, values)
                progress.show_loss(values["loss"])
            progress.step()

        progress.close()
        result = summary(training, validation)
        if accelerator.is_main_process:
            write_sealed(run / "run.json", result)
        parallel.close()
        accelerator.end_training()
        return result


def learning_rate_factor(step: int, n_steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at ``step``: linear warm-up, then a cosine down to a tenth."""
    if step < config.warmup_iters:
        return (step + 1) / config.warmup_iters
    done = (step - config.warmup_iters) / max(1, n_steps - config.warmup_iters)
    return _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + cos(pi * done))
