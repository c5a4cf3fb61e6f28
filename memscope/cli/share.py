"""Commands that show a recording: ``report``, ``export`` and ``app``."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from memscope.base.errors import InputError
from memscope.base.lock import one_writer
from memscope.cli.options import PortOption, RecordingArgument, hint, parse_entries, show


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(report)
    app.command()(export)
    app.command("app")(run_app)


def report(
    recording: RecordingArgument,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write.")] = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="REC", help="Compare with this recording instead.")
    ] = None,
    static: Annotated[
        Path | None, typer.Option("--static", metavar="DIR", help="Write pages of all used entries, for any browser.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="With --static: at most this many entries, most used first.")
    ] = None,
    entries: Annotated[
        str | None, typer.Option("--entries", metavar="1,2,3", help="With --static: these entries; 1:6 as in ablate.")
    ] = None,
) -> None:
    """Write the gate-bias report, a comparison of two recordings, or a site that needs no server."""
    if out is None and (static is None or against is not None):
        raise InputError("report: give the folder to write, by --out DIR, or by --static DIR for the site alone")
    from memscope.recording.info import read_info

    for folder in (recording, against):
        if folder is not None:
            read_info(folder)

    from memscope.query.recording import Recording

    opened = Recording(recording)
    if out is not None:
        second = None if against is None else Recording(against)
        with one_writer(out):
            if second is None:
                from memscope.report.gate_bias.write import write_report

                written = write_report(opened, out)
            else:
                from memscope.report.compare.comparison import write_comparison

                written = write_comparison(opened, second, out)
            for path in written:
                show(path)
    if static is not None:
        from memscope.export.site import write_static

        chosen = None if entries is None else parse_entries(opened.info, entries)
        site = write_static(opened, static, limit, chosen)
        hint(f"{site.entries:,} pages, {site.bytes / 1e6:,.1f} MB")
        show(site.home)


def export(
    recording: RecordingArgument,
    to: Annotated[
        Literal["delphi", "neuronpedia"],
        typer.Option("--to", help="delphi: sparse safetensors; neuronpedia: JSON lines."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to create.")],
    splits: Annotated[int, typer.Option(min=1, help="delphi: shards per layer.")] = 5,
    sequence_tokens: Annotated[int, typer.Option(min=1, help="delphi: tokens per sequence.")] = 32,
    limit: Annotated[int, typer.Option(min=1, help="neuronpedia: at most this many entries, most used first.")] = 1000,
) -> None:
    """Export a recording for other tools."""
    from memscope.recording.info import read_info

    read_info(recording)

    from memscope.query.recording import Recording

    match to:
        case "delphi":
            from memscope.export.delphi import export_delphi

            export_delphi(Recording(recording), out, splits, sequence_tokens)
        case "neuronpedia":
            from memscope.export.neuronpedia import export_neuronpedia

            export_neuronpedia(Recording(recording), out, limit=limit)
    show(out)


def run_app(
    recording: Annotated[
        Path | None, typer.Argument(metavar="[REC]", help="Recording to open; default: all under recordings/.")
    ] = None,
    port: PortOption = 8501,
    host: Annotated[str, typer.Option(help="Address to listen on; everyone who reaches it can read.")] = "127.0.0.1",
) -> None:
    """Browse recordings in a web page on this machine."""
    from memscope.cli.serve import serve_app

    if host != "127.0.0.1":
        print(f"memscope: listening on {host}: other machines may reach this page", file=sys.stderr)
    serve_app(recording, host, port)
