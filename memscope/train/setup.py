"""Set up a training run before its first step, alone or as one of several processes.

``set_up`` makes all that the loop (``train/loop.py``) works with. A run that has checkpoints goes on from the newest.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from memscope.base.errors import InputError
from memscope.base.files import write_json, write_text
from memscope.base.runtime import pick_device, pick_dtype
from memscope.base.seals import LIST
from memscope.config.load import Config, dump_config, load_config
from memscope.config.training import TrainConfig
from memscope.model.ops.native import native
from memscope.model.transformer import MemoryTransformer
from memscope.run.bank_init import FreshStarts
from memscope.run.checkpoint import (
    MODEL,
    list_checkpoints,
    list_files,
    load_weights,
    publish_newest,
    read_checkpoint,
    set_aside_damaged,
)
from memscope.run.folder import CLOZES, CONFIG, check_steps, write_start
from memscope.run.metrics_log import MetricsLog
from memscope.run.text_bank import run_bank
from memscope.text.corpus import PackedCorpus, TrainingOrder
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.bank import SentenceBank
from memscope.train.lessons.batches import Batches, Teacher
from memscope.train.lessons.clozes import asked_facts
from memscope.train.parallel import Parallel, TorchParallel, check_strategy, make_accelerator, strategy
from memscope.train.prepare import prepare_run
from memscope.train.revive import Reviver
from memscope.train.timing import Progress, Throughput

_ASKED = 400
"""Facts that are written for ``memscope facts``."""


@dataclass(frozen=True)
class Training:
    """A run that is ready for its next step, as one process sees it."""

    config: Config
    run: Path
    accelerator: Accelerator
    tokenizer: Tokenizer
    valid_corpus: PackedCorpus
    net: MemoryTransformer
    parallel: Parallel
    reviver: Reviver | None
    """None if no entry may start again."""
    batches: Batches
    first_step: int
    """Steps that were made before."""
    n_steps: int
    log: MetricsLog
    speed: Throughput
    progress: Progress
    started: float
    """``time.perf_counter()`` before the set-up."""


def check_set_up(config: Config, device: str) -> None:
    """Refuse what cannot train here, before anything is written.

    Raises:
        InputError: the config does not fit the launcher, or asks for a compiler that is missing.
    """
    check_strategy(config)
    if config.train.compile and pick_device(device).type == "cpu" and native() is None:
        raise InputError("train.compile=true needs a C++ compiler: install g++, or set compile=false")


def settle_dtype(config: Config, run: Path, device: str) -> Config:
    """The config with ``dtype: auto`` settled: what the run was started with, else what is faster on this device."""
    if config.train.dtype != "auto":
        return config
    started = (run / CONFIG).is_file()
    dtype = load_config(run / CONFIG).train.dtype if started else pick_dtype("auto", pick_device(device))
    return config.model_copy(update={"train": config.train.model_copy(update={"dtype": dtype})})


def set_up(config: Config, run: Path, device: str) -> Training:
    """Make everything that the loop works with, and note in the run's folder what the run started with.

    Raises:
        InputError: unusable input files, or a run that has made more steps than the config asks for.
    """
    started = time.perf_counter()
    settings = config.train
    accelerator = make_accelerator(settings, run, device)
    with accelerator.main_process_first():  # the main process fills the caches, the others read them
        if accelerator.is_main_process:
            set_aside_damaged(run)
            (run / LIST).unlink(missing_ok=True)
        tokenizer, train_corpus, valid_corpus, net = prepare_run(config, run, write=accelerator.is_main_process)
    parallel, first_step = _spread(net, settings, run, accelerator)
    reviver = None
    if net.bank is not None and net.bank.starts is not None:
        fresh = FreshStarts(run, tokenizer.pad, settings.seed, config.memory.entry_cosine)
        reviver = Reviver(net, parallel.optimizer, fresh)
    order = TrainingOrder(train_corpus, config.model.max_seq_len, settings.seed)
    teacher = None
    if net.text_bank is not None or config.text.facts_path:
        bank = run_bank(run)
        teacher = Teacher(config, bank, tokenizer)
        if accelerator.is_main_process:
            _write_clozes(config, bank, run)
    batches = Batches(order, config, accelerator, teacher)
    n_steps = settings.steps or max(1, settings.epochs * order.n_windows // batches.step_windows)
    check_steps(run, first_step, n_steps)
    if accelerator.is_main_process:
        write_start(config, run, batches.step_samples)
        (run / LIST).unlink(missing_ok=True)
        write_text(run / CONFIG, dump_config(config))
        list_files(run)
    speed = Throughput(batches.step_samples * config.model.max_seq_len)
    log = MetricsLog(run / "metrics.jsonl", first_step, accelerator)
    progress = Progress(first_step, n_steps, accelerator.is_main_process)
    progress.say(
        f"{net.count_parameters():,} parameters, {len(train_corpus.tokens):,} training tokens, "
        f"{n_steps} steps of {speed.tokens_per_step:,} tokens on {accelerator.device} in {settings.dtype}"
    )
    return Training(
        config=config,
        run=run,
        accelerator=accelerator,
        tokenizer=tokenizer,
        valid_corpus=valid_corpus,
        net=net,
        parallel=parallel,
        reviver=reviver,
        batches=batches,
        first_step=first_step,
        n_steps=n_steps,
        log=log,
        speed=speed,
        progress=progress,
        started=started,
    )


def _write_clozes(config: Config, bank: SentenceBank, run: Path) -> None:
    """Write what a run may be asked whose statements are made of its own sentences."""
    text, path = config.text, run / CLOZES
    if text.facts_path or not text.statement_share or path.is_file():
        return
    if facts := asked_facts(bank, text.held_out, config.train.seed, _ASKED):
        write_json(path, [fact._asdict() for fact in facts])


def _spread(net: MemoryTransformer, settings: TrainConfig, run: Path, accelerator: Accelerator) -> tuple[Parallel, int]:
    """Spread the model and its optimiser over the processes, as the newest checkpoint has them, and give its step."""
    checkpoints = list_checkpoints(run)
    if checkpoints:
        load_weights(net, checkpoints[-1] / MODEL)
    net.to(accelerator.device)
    if settings.compile:
        net.compile_layers()
    parallel = _make_parallel(net, settings, accelerator)
    if not checkpoints:
        return parallel, 0
    first_step, optimizer_state = read_checkpoint(checkpoints[-1])
    parallel.restore(optimizer_state)
    if accelerator.is_main_process:
        publish_newest(run, settings.keep_checkpoints)  # a run may have been killed between saving and publishing
    return parallel, first_step


def _make_parallel(net: MemoryTransformer, settings: TrainConfig, accelerator: Accelerator) -> Parallel:
    """Spread ``net``, whose weights are the same in all processes, and make its optimiser."""
    if strategy() == "deepspeed":
        from memscope.train.zero import ZeroParallel

        return ZeroParallel(net, settings, accelerator)
    return TorchParallel(net, settings, accelerator)
