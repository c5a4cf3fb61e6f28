"""Arguments, options and output that several commands share."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from memscope.base.errors import InputError
from memscope.base.printable import one_line, printable, printable_json

_LONGEST = 2000
"""Characters of an error that are printed; a file may be quoted in it."""

if TYPE_CHECKING:
    from memscope.config.load import Config
    from memscope.recording.info import RecordingInfo


def _folders(parent: str, file: str) -> Callable[[str], list[str]]:
    """Completes a folder of ``parent`` that holds ``file``; any other path is completed by the shell."""

    def complete(incomplete: str) -> list[str]:
        return [str(path.parent) for path in sorted(Path(parent).glob(f"*/{file}")) if str(path).startswith(incomplete)]

    return complete


def complete_preset(incomplete: str) -> list[str]:
    """Names of presets that begin so."""
    from memscope.config.presets import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Config keys that begin so, with the sign that a value follows."""
    from memscope.config.load import SECTIONS

    return [f"{key}=" for section in SECTIONS.values() for key in section.model_fields if key.startswith(incomplete)]


_complete_run = _folders("runs", "config.yaml")
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder of a trained model.", autocompletion=_complete_run)
]
ModelArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Run folder, or folder of a Hugging Face mixture of experts.", autocompletion=_complete_run
    ),
]
RecordingArgument = Annotated[
    Path,
    typer.Argument(
        metavar="REC", help="Folder of a recording.", autocompletion=_folders("recordings", "recording.json")
    ),
]
CorpusOption = Annotated[
    Path,
    typer.Option("--corpus", metavar="FILE", help='JSON lines, a list or Parquet with "text".'),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...")]
TokensOption = Annotated[int | None, typer.Option("--tokens", min=1, help="Stop after this many tokens.")]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of everything random in this command.")
]
PortOption = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def check(
    run: Path, *, corpus: Path | None = None, facts: Path | None = None, recording: Path | None = None
) -> "Config":
    """The config of a run; checks first that the input of a command is there, because loading torch takes seconds.

    Raises:
        InputError: an input is missing, or the recording is of another model than the run holds now.
    """
    from memscope.base.files import expect_file, sha256_file
    from memscope.run.folder import MODEL, check_run, fingerprint

    config = check_run(run)
    if corpus is not None:
        expect_file(corpus, "corpus file")
    if facts is not None:
        expect_file(facts, "file of facts")
    if recording is not None:
        check_recorded(run, fingerprint(run, sha256_file(run / MODEL)), recording)
    return config


def check_recorded(model: Path, fingerprint: str, recording: Path) -> None:
    """Compare the SHA-256 of a model's weights with that of the recorded model.

    Raises:
        InputError: they differ.
    """
    from memscope.recording.info import read_info

    if read_info(recording).fingerprint != fingerprint:
        raise InputError(
            f"{recording}: was recorded of another model than {model} holds now; record again, or give the run it was "
            "recorded of"
        )


def check_model(
    folder: Path, corpus: Path | None = None, neurons: int | None = None, recording: Path | None = None
) -> bool:
    """Check that a folder has a model to record, before torch is loaded; returns whether it is a run of memscope.

    Args:
        folder: of the model.
        corpus: to record.
        neurons: of a feed-forward layer to record; then a baseline will do.
        recording: of the model.

    Raises:
        InputError: it holds no model, or a baseline without memory; there is no corpus; or the recording is none, or
            one of another run. ``check_recorded`` compares a recording with a model of another program.
    """
    from memscope.base.files import expect_file
    from memscope.recording.info import read_info
    from memscope.run.folder import is_hugging_face

    of_memscope = not is_hugging_face(folder)
    if not of_memscope and recording is not None:
        read_info(recording)
    if of_memscope and not check(folder, recording=recording).model.selecting_layers and not neurons:
        raise InputError(f"{folder}: an FFN baseline has no memory to record; --neurons 32 records its neurons")
    if corpus is not None:
        expect_file(corpus, "corpus file")
    return of_memscope


def load(run: Path, device: str) -> Any:
    """The model of a run, on a device."""
    from memscope.base.runtime import pick_device
    from memscope.run.checkpoint import load_run

    return load_run(run, pick_device(device))


def open_model(folder: Path, device: str, window: int | None = None, neurons: int | None = None) -> Any:
    """The model of a run or of a Hugging Face folder, on a device, as a subject."""
    from memscope.base.runtime import pick_device
    from memscope.run.adapters.load import open_subject

    return open_subject(folder, pick_device(device), window, neurons)


def show(*texts: object) -> None:
    """Print results on separate lines; characters that act on the terminal are written out."""
    print(*(printable(str(text)) for text in texts), sep="\n")


def print_json(value: Any) -> None:
    """Print a result as indented JSON, for people and machines."""
    print(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def check_streams() -> None:
    """Prepare for text from outside: arguments must be UTF-8, and characters that the terminal lacks are written out.

    Raises:
        InputError: an argument is not UTF-8 text.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for argument in sys.argv[1:]:
        if argument != argument.encode("utf-8", "replace").decode():
            raise InputError(f"this argument is not UTF-8 text: {argument[:200]}; files and texts are named in UTF-8")


def fail(message: str) -> NoReturn:
    """End with one line on standard error and exit status 2."""
    line = one_line(message)
    print(f"memscope: {line if len(line) <= _LONGEST else line[:_LONGEST] + '…'}", file=sys.stderr)
    sys.exit(2)


def fail_without_memory(error: Exception) -> None:
    """``fail`` if memory ran out, which torch raises as a ``RuntimeError``; raise any other error again."""
    if not isinstance(error, MemoryError) and not re.search(r"(?i)out of memory|can't allocate memory", str(error)):
        raise error
    fail(f"not enough memory ({str(error)[:200] or 'none left'}); take less at once, or a smaller model")


def hint(text: str) -> None:
    """Print a next step or a remark, if a person reads standard error at a terminal."""
    if sys.stderr.isatty():
        print(printable(text), file=sys.stderr)


def parse_numbers(option: str, text: str) -> list[int]:
    """The numbers of a list such as ``1,2,3``.

    Raises:
        InputError: it is no such list.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text}: expected numbers with commas between them, such as 1,2,3") from error


def parse_entries(info: "RecordingInfo", text: str) -> list[int]:
    """Entry numbers; ``LAYER:NUMBER`` counts from 0 in a layer whose entries are its own.

    Raises:
        InputError: the list cannot be read, or there is no such entry.
    """
    from memscope.recording.sites import is_private

    found = []
    for part in filter(None, text.split(",")):
        layer, colon, number = part.rpartition(":")
        if not colon:
            found += parse_numbers("--entries", part)
            info.expect_entries(found)
            continue
        [layer_number], [entry] = parse_numbers("--entries", layer), parse_numbers("--entries", number)
        site = info.site(layer_number)
        if not is_private(info.sites, site):
            raise InputError(f"--entries {part}: layers share their entries; give {number} and --layers {layer}")
        if not 0 <= entry < site.entries:
            known = f"{site.entries:,} {site.word(site.entries)}"
            raise InputError(f"--entries {part}: layer {layer} has {known}, counted from 0")
        found.append(site.first_entry + entry)
    return found
