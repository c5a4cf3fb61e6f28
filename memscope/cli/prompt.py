"""Commands that ask a model about a text: ``generate`` and ``trace``."""

from typing import Annotated, Any

import typer

from memscope.base.errors import InputError
from memscope.base.printable import one_line
from memscope.base.words import visible
from memscope.cli.options import (
    DeviceOption,
    JsonOption,
    ModelArgument,
    RunArgument,
    SeedOption,
    check,
    check_model,
    load,
    open_model,
    print_json,
    show,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(generate)
    app.command()(trace)


def generate(
    run: RunArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to continue.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to generate at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token.")] = 0.8,
    seed: SeedOption = 0,
    watch: Annotated[
        bool, typer.Option("--watch", help="Also print the entries that fired for every new token, as trace does.")
    ] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="With --watch: entries per token and layer.")] = 3,
    device: DeviceOption = "auto",
) -> None:
    """Continue a text."""
    if watch:
        check_model(run)
        _watch(open_model(run, device), text, (tokens, temperature, seed), top)
        return
    from memscope.text.tokenizer import Tokenizer

    config, tokenizer = check(run), Tokenizer.load(run / "tokenizer.json")
    prompt = tokenizer.prompt(text)
    config.model.expect_room(len(prompt), tokens)

    from memscope.base.runtime import autocast
    from memscope.run.generate import generate as sample

    loaded = load(run, device)
    model = loaded.model
    with autocast(model.embed.weight.device, loaded.config.train.dtype):
        new = sample(model, prompt, tokens, eos=tokenizer.eos, temperature=temperature, seed=seed)
    show(text + tokenizer.decode(new[:-1] if new[-1] == tokenizer.eos else new, after=prompt))


def trace(
    run: ModelArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text to read.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Entries per token and layer, most read first.")] = 3,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Print, per token and layer, the entries that fired, with gate score, read weight and init sentence."""
    check_model(run)
    if not text:
        raise InputError("the text is empty; give at least one word")

    from memscope.record.trace import describe_trace, trace_text

    subject = open_model(run, device)
    rows = describe_trace(subject, trace_text(subject, text))
    if as_json:
        print_json(rows)
        return
    _show_trace(rows, top)


def _watch(subject: Any, text: str, sampling: tuple[int, float, int], top: int) -> None:
    """Print a continued text, and the entries that fired from the last token of the text on."""
    from memscope.record.continuation import continue_text
    from memscope.record.trace import describe_trace
    from memscope.record.traced import Sampling

    continued = continue_text(subject, text, Sampling(*sampling))
    new = continued.traced.trace.tokens[continued.prompt :]
    show(text + "".join(new.loc[~new["control"], "text"]))
    _show_trace(describe_trace(subject, continued.traced)[continued.prompt - 1 :], top)


def _show_trace(rows: list[dict[str, Any]], top: int) -> None:
    """Print tokens as ``record.trace.describe_trace`` describes them, with ``top`` entries of every layer."""
    for token in rows:
        said = f"{token['label']} = {token['bytes']}" if "bytes" in token else repr(token["text"])
        loss = "" if token["loss"] is None else f"  loss {token['loss']:.2f}"
        likely = ", ".join(f"{visible(one['text'])} {one['probability']:.1%}" for one in token["next"][:3])
        show(f"{token['pos']:>4}  {said}{loss}  next: {likely}")
        for layer in token["layers"]:
            for fired in layer["entries"][:top]:
                weights = "".join(f"  {name} {fired[name]:+z.4f}" for name in ("gate", "read") if name in fired)
                sentence = one_line(fired["sentence"] or "(started random)")[:90] if "sentence" in fired else ""
                label = fired["label"] if "layer" in fired["label"] else f"layer {layer['layer']}  {fired['label']}"
                show(f"      {label}{weights}  {sentence}".rstrip())
