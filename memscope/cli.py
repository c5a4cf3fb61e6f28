"""The command line: every command parses, calls one function and prints its result.

Results go to standard output, progress and messages to standard error. Exit status 0, or 2 with one line for bad
input. Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from memscope.errors import InputError

app = typer.Typer(
    help="See inside a language model's memory: train, record, measure and browse trainable memory banks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a trained model.")]
RecordingArgument = Annotated[Path, typer.Argument(metavar="REC", help="Folder of a recording.")]
CorpusOption = Annotated[
    Path, typer.Option("--corpus", metavar="FILE", help='JSON lines with "text": plain, .gz or .zst.')
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...")]
TokensOption = Annotated[int | None, typer.Option("--tokens", min=1, help="Stop after so many tokens.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random in this command.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def _print_version(wanted: bool | None) -> None:
    if wanted:
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
def corpus(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")] = Path("data/wiki"),
) -> None:
    """Write the default corpus: Wikipedia articles from the gensim package, and their sentences."""
    from memscope.wiki import write_wiki

    for path in write_wiki(out):
        print(path)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML config; presets are in configs/.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a config value; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Run folder; default runs/<name of the config>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in RUN.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Same as --set seed=N.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a memory model or its FFN baseline. Prints the summary of the run as JSON."""
    from memscope.config import load_config

    overrides = [*(set_ or []), *([f"seed={seed}"] if seed is not None else [])]
    settings = load_config(config, overrides)

    from memscope.runtime import keep_freed_memory
    from memscope.train import train as run_training

    keep_freed_memory()
    run = out or Path("runs") / config.stem
    summary = run_training(settings, run, resume=resume, device=device)
    if os.environ.get("RANK", "0") != "0":  # under torchrun the main process speaks for all
        return
    _print_json(summary)
    _hint(f"next: memscope record {run} --corpus {settings.data.valid_path} --out recordings/{run.name}")


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
    from memscope.corpus import pack_corpus
    from memscope.evaluate import check_generation
    from memscope.evaluate import evaluate as evaluate_loss

    loaded = _load(run, device)
    data, train_config = loaded.config.data, loaded.config.train
    packed = pack_corpus(corpus, loaded.tokenizer, Path(data.cache_dir))
    result, _ = evaluate_loss(loaded.model, packed, loaded.tokenizer, tokens, train_config.dtype)
    report: dict[str, Any] = result.as_dict()
    if generation:
        check, texts = check_generation(loaded.model, packed, loaded.tokenizer, train_config.dtype, seed=seed)
        report["generation"] = check.as_dict()
        report["samples"] = [{"prompt": prompt, "text": text} for prompt, text in texts]
    _print_json(report)


@app.command()
def generate(
    run: RunArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to continue.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to generate at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token.")] = 0.8,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Continue a text."""
    from memscope.generate import generate as sample
    from memscope.runtime import autocast

    loaded = _load(run, device)
    tokenizer, model = loaded.tokenizer, loaded.model
    prompt = [tokenizer.bos, *tokenizer.encode(text)]
    with autocast(model.embed.weight.device, loaded.config.train.dtype):
        new = sample(model, prompt, tokens, eos=tokenizer.eos, temperature=temperature, seed=seed)
    print(text + tokenizer.decode(new[:-1] if new[-1] == tokenizer.eos else new))


@app.command()
def record(
    run: RunArgument,
    corpus: CorpusOption,
    out: Annotated[Path, typer.Option("--out", metavar="REC", help="Folder of the recording; resumed if unfinished.")],
    tokens: TokensOption = None,
    part_tokens: Annotated[int, typer.Option(min=1, help="Tokens per Parquet part.")] = 32768,
    device: DeviceOption = "auto",
) -> None:
    """Record which entries every token of a corpus selects and reads; resumes by itself. Prints a summary as JSON."""
    from memscope.record import record as run_recording
    from memscope.runtime import keep_freed_memory, peak_rss_bytes

    keep_freed_memory()
    info = run_recording(_load(run, device), corpus, out, max_tokens=tokens, part_tokens=part_tokens)
    size = sum((out / "tokens" / part.name).stat().st_size for part in info.parts)
    _print_json(
        {
            "recording": str(out),
            "tokens": info.rows,
            "selections": info.rows * len(info.layers) * info.selected,
            "tokens_per_second": info.rows / info.seconds,
            "bytes_per_token": size / info.rows,
            "peak_rss_bytes": peak_rss_bytes(),
        }
    )
    _hint(f"next: memscope report {out} --out reports/{out.name}   or   memscope app {out}")


@app.command()
def trace(
    run: RunArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to read.")],
    top: Annotated[
        int, typer.Option("--top", min=1, help="Entries to print per token and layer, most read first.")
    ] = 3,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Print, per token and layer, the entries that fired, with gate score, read weight and init sentence."""
    from memscope.trace import describe_trace, trace_text

    loaded = _load(run, device)
    rows = describe_trace(loaded, trace_text(loaded, text))
    if as_json:
        _print_json(rows)
        return
    for token in rows:
        loss = "" if token["loss"] is None else f"  loss {token['loss']:.2f}"
        print(f"{token['pos']:>4}  {token['text']!r}{loss}  next: {token['next'][0]['text']!r}")
        for layer in token["layers"]:
            for fired in layer["entries"][:top]:
                sentence = fired["sentence"] or "(started random)"
                print(
                    f"      layer {layer['layer']}  entry {fired['entry']:>7}  gate {fired['gate']:.3f}  "
                    f"read {fired['read']:+.4f}  {sentence[:90]}"
                )


@app.command()
def report(
    recording: RecordingArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
) -> None:
    """Write the gate-bias report: gate_bias.html, usage.csv, entries.csv and metrics.json."""
    from memscope.query import Recording
    from memscope.report import write_report

    for path in write_report(Recording(recording), out):
        print(path)


@app.command("app")
def run_app(
    recording: Annotated[
        Path | None, typer.Argument(metavar="[REC]", help="Recording to open; default: all under recordings/.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8501,
    host: Annotated[str, typer.Option(help="Address to listen on; anyone who reaches it can read the recording.")] = (
        "127.0.0.1"
    ),
) -> None:
    """Browse recordings in a web page on this machine."""
    from memscope.serve import serve_app

    if host != "127.0.0.1":
        print(f"memscope: listening on {host}: other machines may reach this page", file=sys.stderr)
    serve_app(recording, host, port)


def main() -> None:
    """Entry point of the ``memscope`` command."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        _fail(str(error))
    except OSError as error:  # a full disk, a file without permission, an address in use
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("memscope: stopped", file=sys.stderr)
        sys.exit(130)


def _load(run: Path, device: str) -> Any:
    from memscope.checkpoint import load_run
    from memscope.runtime import pick_device

    return load_run(run, pick_device(device))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _hint(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def _fail(message: str) -> None:
    print(f"memscope: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
