"""Commands that need nothing at hand: ``demo``, ``corpus`` and ``presets``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from memscope.base.lock import one_writer
from memscope.cli.options import PortOption, complete_preset, show
from memscope.config.presets import preset_names, preset_text


class Stage(NamedTuple):
    """One command of the demo."""

    command: str
    done: Callable[[], bool]
    """Whether it was finished before; a stage that was broken off goes on where it was."""


STAGES = (
    Stage("corpus --out data/wiki", lambda: Path("data/wiki/train.jsonl").is_file()),
    Stage("train demo --out runs/demo --resume", lambda: Path("runs/demo/run.json").is_file()),
    Stage(
        "record runs/demo --corpus data/wiki/valid.jsonl --out recordings/demo",
        lambda: _is_complete(Path("recordings/demo")),
    ),
    Stage(
        "record runs/demo --corpus data/wiki/valid.jsonl --out recordings/demo-steps --tokens 4096 --checkpoints all",
        lambda: Path("recordings/demo-steps/history.parquet").is_file(),
    ),
    Stage(
        "facts runs/demo runs/demo/clozes.json --recording recordings/demo",
        lambda: Path("recordings/demo/sentence_facts.json").is_file(),
    ),
    Stage("report recordings/demo --out reports/demo", lambda: Path("reports/demo/gate_bias.html").is_file()),
    Stage("map runs/demo recordings/demo", lambda: Path("recordings/demo/map.parquet").is_file()),
)
"""What the demo does before it opens the app, in folders of the current one."""


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""

    @app.command()
    def demo(port: PortOption = 8501) -> None:
        """Train a memory model here, record it, write report and map, open the app; goes on where it stopped."""
        for stage in STAGES:
            if not stage.done():
                print(f"$ memscope {stage.command}", file=sys.stderr, flush=True)
                if code := app(stage.command.split(), standalone_mode=False):  # stopped
                    raise typer.Exit(code)
        print("report: reports/demo/gate_bias.html", file=sys.stderr, flush=True)
        app(["app", "recordings", "--port", str(port)], standalone_mode=False)

    app.command()(corpus)
    app.command()(presets)


def corpus(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")] = Path("data/wiki"),
) -> None:
    """Write the default corpus: Wikipedia articles from the gensim package, and their sentences."""
    from memscope.text.wiki import write_wiki

    with one_writer(out):
        show(*write_wiki(out))


def presets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Preset to print; default: list them.", autocompletion=complete_preset),
    ] = None,
) -> None:
    """List the presets, or print one, to be changed: memscope presets demo > mine.yaml."""
    if name is not None:
        print(preset_text(name), end="")
        return
    for preset in preset_names():
        first = preset_text(preset).partition("\n")[0]
        show(f"{preset:<18}{first.removeprefix('# ')}")


def _is_complete(recording: Path) -> bool:
    from memscope.recording.info import INFO, read_info

    return (recording / INFO).is_file() and read_info(recording).complete
