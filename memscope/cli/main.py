"""The command line: every command parses, calls one function and prints its result.

Results go to standard output, progress and messages to standard error. Exit status 0, or 2 with one line for bad
input, or 130 and 143 when stopped (``base/stop.py``). Heavy imports happen inside the commands, so that ``--help``
answers at once.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from memscope.base.errors import InputError
from memscope.base.lock import one_writer
from memscope.base.words import command_line
from memscope.base.work import ALONE, SPINS, yield_to_neighbours
from memscope.cli import causal as cli_causal
from memscope.cli import demo as cli_demo
from memscope.cli import doctor as cli_doctor
from memscope.cli import imports as cli_imports
from memscope.cli import prompt as cli_prompt
from memscope.cli import share as cli_share
from memscope.cli import text as cli_text
from memscope.cli.options import (
    CorpusOption,
    DeviceOption,
    ModelArgument,
    RecordingArgument,
    RunArgument,
    SeedOption,
    TokensOption,
    check,
    check_model,
    check_streams,
    complete_key,
    complete_preset,
    fail,
    fail_without_memory,
    hint,
    load,
    open_model,
    print_json,
    show,
)


class _Commands(typer.core.TyperGroup):
    """The commands. A value that an option does not take is bad input like any other: one line, exit status 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if type(error) is not typer.BadParameter:  # an option that is missing: typer shows how to use the command
                raise
            raise InputError(error.format_message().replace("Value error, ", "")) from error


app = typer.Typer(
    cls=_Commands,
    help="See inside a language model's memory: train, record, measure and browse trainable memory banks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool | None) -> None:
    if asked:
        from importlib.metadata import version

        print(f"memscope {version('memscope')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = None,
) -> None:
    pass


@app.command()
def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="A preset, as 'memscope presets' lists them, or a YAML file.",
            autocompletion=complete_preset,
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a config value; may be repeated.",
            autocompletion=complete_key,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Run folder; default runs/<name of the config>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in RUN.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Same as --set seed=N.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a memory model or its FFN baseline. Prints the summary of the run as JSON."""
    from memscope.config.load import load_config

    overrides = [*(set_ or []), *([f"seed={seed}"] if seed is not None else [])]
    settings = load_config(config, overrides)

    from memscope.run.folder import check_run_folder

    run = out or Path("runs") / config.stem
    if not run.exists():  # a refusal leaves no folder behind
        check_run_folder(settings, run, resume)
    with one_writer(run):
        check_run_folder(settings, run, resume)
        if used := yield_to_neighbours():
            cores = os.cpu_count()
            hint(
                f"others use {used:.1f} of {cores} cores: threads that wait sleep sooner ({SPINS}={os.environ[SPINS]})"
            )

        from memscope.base.runtime import keep_freed_memory
        from memscope.train.loop import train as run_training

        keep_freed_memory()
        summary = run_training(settings, run, resume=resume, device=device)
    if os.environ.get("RANK", "0") != "0":  # under torchrun the main process prints for all
        return
    print_json(summary)
    recorded = f"recordings/{run.name}"
    hint("next: " + command_line("memscope", "record", run, "--corpus", settings.data.valid_path, "--out", recorded))


@app.command("eval")
def evaluate(
    run: RunArgument,
    corpus: CorpusOption,
    tokens: TokensOption = None,
    generation: Annotated[
        bool, typer.Option(help="Also continue 10 documents, 100 tokens in and 100 out, as the experiment did.")
    ] = True,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Loss, perplexity and bits per byte on a corpus, and the experiment's generation check, as JSON."""
    check(run, corpus=corpus)

    from memscope.text.corpus import pack_corpus
    from memscope.train.evaluate import check_generation
    from memscope.train.evaluate import evaluate as evaluate_loss

    loaded = load(run, device)
    data, train_config = loaded.config.data, loaded.config.train
    packed = pack_corpus(corpus, loaded.tokenizer, Path(data.cache_dir))
    result, _ = evaluate_loss(loaded.model, packed, loaded.tokenizer, tokens, train_config.dtype)
    report: dict[str, Any] = result.as_dict()
    if generation:
        continued, texts = check_generation(loaded.model, packed, loaded.tokenizer, train_config.dtype, seed=seed)
        report["generation"] = continued.as_dict()
        report["samples"] = [{"prompt": prompt, "text": text} for prompt, text in texts]
    print_json(report)


@app.command()
def record(
    run: ModelArgument,
    corpus: CorpusOption,
    out: Annotated[Path, typer.Option("--out", metavar="REC", help="Folder of the recording; resumed if unfinished.")],
    tokens: TokensOption = None,
    checkpoints: Annotated[
        Literal["newest", "all"],
        typer.Option(help="all: one recording per checkpoint, in folders of REC, and their history."),
    ] = "newest",
    part_tokens: Annotated[int, typer.Option(min=1, help="Tokens per Parquet part.")] = 32768,
    score_bits: Annotated[
        int, typer.Option(min=1, max=10, help="Mantissa bits kept of scores: 6 is exact to 0.8%, 10 is float16.")
    ] = 6,
    per_head: Annotated[bool, typer.Option("--per-head", help="Also record read weights per read head.")] = False,
    per_slot: Annotated[bool, typer.Option("--per-slot", help="Also record read weights per slot.")] = False,
    window: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most tokens read at once by a Hugging Face model; default what it takes, up to 1,024."
        ),
    ] = None,
    neurons: Annotated[
        int | None,
        typer.Option("--neurons", min=1, help="Record the K largest neurons of every feed-forward layer instead."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Record which entries every token of a corpus selects and reads; resumes by itself. Prints a summary as JSON.

    Under torchrun every process records its own parts.
    """
    from memscope.run.folder import check_no_run

    of_memscope = check_model(run, corpus, neurons)
    if checkpoints == "all" and (neurons or not of_memscope):
        raise InputError(f"{run}: only memories of a run are recorded at all checkpoints; leave --checkpoints out")
    check_no_run(out)
    with one_writer(out):
        from memscope.base.runtime import keep_freed_memory, peak_rss_bytes, processes
        from memscope.record.loop import RecordOptions
        from memscope.record.loop import record as run_recording
        from memscope.recording.parts import part_bytes

        keep_freed_memory()
        options = RecordOptions(tokens, part_tokens, score_bits, per_head, per_slot)
        if checkpoints == "all":
            from memscope.record.checkpoints import record_checkpoints

            recorded = record_checkpoints(run, corpus, out, options, device)
            if processes().is_main:
                from memscope.query.recording import Recording
                from memscope.report.compare.history import write_history

                print_json({"history": str(write_history([Recording(path) for path in recorded], out))})
            return
        info = run_recording(open_model(run, device, window, neurons), corpus, out, options)
    if info is None:  # under torchrun the main process speaks for all
        return
    print_json(
        {
            "recording": str(out),
            "tokens": info.rows,
            "selections": info.rows * info.per_token,
            "tokens_per_second": info.rows / info.seconds if info.seconds else None,
            "bytes_per_token": part_bytes(out, info) / info.rows,
            "peak_rss_bytes": peak_rss_bytes(),
        }
    )
    report = command_line("memscope", "report", out, "--out", f"reports/{out.name}")
    hint(f"next: {report}   or   {command_line('memscope', 'app', out)}")


@app.command()
def census(recording: RecordingArgument) -> None:
    """Count the parts of a recording again: usage, evenness, preferences, contexts, neighbours.

    Under torchrun processes share the layers.
    """
    from memscope.recording.info import read_info

    info = read_info(recording)
    if not info.parts:
        raise InputError(f"{recording}: holds no finished part; record first")

    from memscope.census.aggregate import write_aggregates

    group = ALONE
    if "WORLD_SIZE" in os.environ:  # else nothing here needs torch, which this import brings
        from memscope.base.runtime import processes

        group = processes()
    with one_writer(recording):
        write_aggregates(recording, info, group)
    if group.is_main:
        show(recording / "census.json")


@app.command("map")
def map_entries(
    run: RunArgument,
    recording: RecordingArgument,
    feature: Annotated[
        Literal["best", "values", "usage", "read", "contexts", "coselection", "keys"],
        typer.Option(help="Compare entries by values, usage, read, contexts, coselection or keys; best tries all."),
    ] = "best",
    layer: Annotated[int | None, typer.Option(help="Use this memory layer alone; not for values.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Map the bank by UMAP, with clusters; minutes for large banks. Prints how far to trust it as JSON."""
    from memscope.recording.info import read_info

    info = read_info(recording)
    if layer is not None:
        info.expect_layers([layer])
    if layer is not None and feature == "values":
        raise InputError("the values of entries belong to no layer: leave --layer out, or map another feature")
    of_memory = all(site.kind == "memory" for site in info.sites)
    if of_memory:  # of other models usage alone is compared, which the recording has
        check(run, recording=recording)
    with one_writer(recording):
        from memscope.bank_map.build import write_map

        loaded = load(run, "cpu") if of_memory else None
        print_json(write_map(loaded, recording, feature, seed, layer=layer))


cli_demo.register(app)
cli_doctor.register(app)
cli_share.register(app)
cli_imports.register(app)
cli_prompt.register(app)
cli_causal.register(app)
cli_text.register(app)


def main() -> None:
    """Entry point of the ``memscope`` command."""
    try:
        check_streams()
        app(standalone_mode=True)
    except InputError as error:
        fail(str(error))
    except OSError as error:  # a full disk, a file without permission, an address in use
        fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    except (MemoryError, RuntimeError) as error:
        fail_without_memory(error)
