"""Arguments, options and output that several commands share."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a trained model.")]
RecordingArgument = Annotated[Path, typer.Argument(metavar="REC", help="Folder of a recording.")]
CorpusOption = Annotated[
    Path, typer.Option("--corpus", metavar="FILE", help='JSON lines with "text": plain, .gz or .zst.')
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...")]
TokensOption = Annotated[int | None, typer.Option("--tokens", min=1, help="Stop after so many tokens.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random in this command.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def load(run: Path, device: str) -> Any:
    """The model of a run, on a device."""
    from memscope.checkpoint import load_run
    from memscope.runtime import pick_device

    return load_run(run, pick_device(device))


def print_json(value: Any) -> None:
    """A result, for people and machines."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def hint(text: str) -> None:
    """What to do next, for a person at a terminal."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
