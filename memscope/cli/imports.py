"""Commands that make a run or a recording of what other programs wrote: ``import vllm`` and ``import minimind``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from memscope.base.lock import one_writer
from memscope.base.words import command_line
from memscope.cli.options import hint, print_json

TokenizerOption = Annotated[
    Path, typer.Option("--tokenizer", metavar="FOLDER", help="Folder with the model's tokenizer.json.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Make a run or a recording of what another program wrote.")
    group.command("vllm")(import_vllm)
    group.command("minimind")(import_checkpoint)
    app.add_typer(group, name="import")


def import_vllm(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Responses as JSON lines or Parquet.")],
    tokenizer: TokenizerOption,
    out: Annotated[Path, typer.Option("--out", metavar="REC", help="Folder of the recording.")],
    experts: Annotated[
        int | None, typer.Option("--experts", min=1, help="Experts of a layer; default: as config.json in FOLDER says.")
    ] = None,
) -> None:
    """Make a recording of the experts that vLLM returned; it has no scores and no losses. Prints a summary as JSON."""
    from memscope.base.files import expect_file

    for file in files:
        expect_file(file, "file of routed experts")
    expect_file(tokenizer / "tokenizer.json", "tokenizer")
    with one_writer(out):
        from memscope.record.routed import import_routed

        info = import_routed(files, tokenizer, out, experts)
    print_json({"recording": str(out), "documents": info.documents, "tokens": info.rows, "layers": list(info.layers)})


def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="State dict of the founding model (.pth).")],
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="YAML config with the model's shape.")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", metavar="FILE", help="The model's tokenizer.json.")],
    read_scores: Annotated[
        Literal["multiply"],
        typer.Option("--read-scores", help="How its read uses gate scores: multiply the weights of the read by them."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder to write.")],
) -> None:
    """Make a run of a checkpoint of the founding experiment, 1.4.1. Prints a summary as JSON."""
    from memscope.base.files import expect_file
    from memscope.config.load import load_config

    expect_file(checkpoint, "checkpoint")
    expect_file(tokenizer, "tokenizer")
    settings = load_config(config)
    with one_writer(out):
        from memscope.run.minimind import import_minimind

        model = import_minimind(checkpoint, settings, tokenizer, out)
    print_json({"run": str(out), "parameters": model.count_parameters(), "read_scores": read_scores})
    to = f"recordings/{out.name}"
    hint("next: " + command_line("memscope", "record", out, "--corpus", "data/wiki/valid.jsonl", "--out", to))
