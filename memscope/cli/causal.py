"""Commands that intervene: ``ablate``, ``facts`` and ``edit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from memscope.base.errors import InputError
from memscope.base.lock import one_writer
from memscope.cli.options import (
    DeviceOption,
    JsonOption,
    RecordingArgument,
    RunArgument,
    SeedOption,
    check,
    load,
    print_json,
    show,
)

if TYPE_CHECKING:
    from memscope.causal.ablation import AblationStudy

FactsArgument = Annotated[
    Path,
    typer.Argument(metavar="FACTS", help="Facts of memscope, LAMA, CounterFact or PopQA."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (ablate, facts, edit):
        app.command()(command)


def ablate(
    run: RunArgument,
    recording: RecordingArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    entries: Annotated[str | None, typer.Option("--entries", metavar="1,2,3", help="Entries to ablate.")] = None,
    top_usage: Annotated[
        str | None, typer.Option("--top-usage", metavar="1%", help="Ablate this share of the bank, most used first.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="6,7", help="In these memory layers; default all.")
    ] = None,
    mode: Annotated[
        Literal["renormalise", "zero"],
        typer.Option(help="renormalise: the other selections share the weight; zero: the entry's value is zero."),
    ] = "renormalise",
    control: Annotated[
        Literal["usage", "random"],
        typer.Option(help="Entries to compare with. usage: used about as often; random: any that are used."),
    ] = "usage",
    controls: Annotated[int, typer.Option(min=0, help="Draws of control entries.")] = 3,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", metavar="FILE", help="Text to read; default the recorded text.")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, help="Read about this many tokens, from all parts of the text.")
    ] = 16384,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Run a text with and without some entries, and without controls; prints the change of loss, logit and KL."""
    if (entries is None) == (top_usage is None):
        raise InputError("ablate: give the entries, either by --entries 1,2,3 or by --top-usage 1%")
    chosen_layers = None if layers is None else _numbers("--layers", layers)

    check(run, corpus=corpus, recording=recording)

    from memscope.causal.ablation import recorded_corpus, study_ablation, write_study
    from memscope.causal.effects import entry_usage, top_entries
    from memscope.query.recording import Recording
    from memscope.text.corpus import pack_corpus

    loaded, usage = load(run, device), entry_usage(recording, chosen_layers)
    if corpus is None:
        text = recorded_corpus(Recording(recording))
    else:
        text = pack_corpus(corpus, loaded.tokenizer, Path(loaded.config.data.cache_dir))
    ablated = _numbers("--entries", entries) if entries is not None else top_entries(usage, _share(str(top_usage)))
    with one_writer(out):
        study = study_ablation(loaded, text, ablated, usage, mode, chosen_layers, tokens, controls, control, seed)
        write_study(study, out)
    if as_json:
        print_json(study.summary)
    else:
        _show_study(study, out)


def facts(
    run: RunArgument,
    facts: FactsArgument,
    recording: Annotated[
        Path | None,
        typer.Option("--recording", metavar="REC", help="Match controls by its usage, and write the audit into it."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write; default the recording.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask at most this many facts, drawn at random; default all.")
    ] = None,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Audit facts: are entries that started from a fact selected when it is asked, and does the answer need them?"""
    folder = out or recording
    if folder is None:
        raise InputError("facts: give the folder to write, by --recording REC or by --out DIR")

    check(run, facts=facts, recording=recording)

    from memscope.causal.effects import entry_usage
    from memscope.causal.fact_tables import write_audit
    from memscope.causal.facts import audit_facts
    from memscope.text.fact_files import read_facts

    known, loaded = read_facts(facts), load(run, device)
    usage = None if recording is None else entry_usage(recording)
    with one_writer(folder):
        audit = audit_facts(loaded, known, usage, limit, seed)
        written = write_audit(audit, folder)
    if as_json:
        print_json(audit.summary)
        return
    show(_table(audit.recall))
    show(f"\n{_table(audit.predicates)}\n")
    for name, value in audit.summary.items():
        show(f"{name:<26}{_short(value)}")
    show(*written)


def edit(
    run: RunArgument,
    facts: FactsArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Facts to edit, each alone.")] = 100,
    method: Annotated[
        Literal["sentence", "row"],
        typer.Option(help="sentence: the entry gets the new sentence; row: the entry alone is trained."),
    ] = "row",
    steps: Annotated[int, typer.Option(min=1, help="row: Adam steps.")] = 20,
    rate: Annotated[float, typer.Option(min=0, help="row: learning rate.")] = 0.05,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Edit facts by rewriting one entry; prints efficacy, generalisation and specificity as JSON."""
    check(run, facts=facts)

    from memscope.causal.edit import edit_facts, write_edits
    from memscope.text.fact_files import read_facts

    known, loaded = read_facts(facts), load(run, device)
    with one_writer(out):
        result = edit_facts(loaded, known, count, method, steps, rate, seed)
        write_edits(result, out)
    print_json(result.summary)


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text}: expected numbers with commas between them, such as 1,2,3") from error


def _share(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise InputError(f"--top-usage {text}: expected a share such as 1% or 0.01") from error


def _show_study(study: "AblationStudy", out: Path) -> None:
    summary = study.summary
    show(_table(study.table))
    show(f"\nmeans per token over {summary['tokens']:,} tokens of {summary['documents']:,} documents, whose loss was")
    show(f"{summary['loss_before']:.4f} nats; 95% intervals over {summary['interval_unit']}; details in {out}")


def _table(frame: Any) -> str:
    return str(frame.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-"))


def _short(value: Any) -> str:
    if isinstance(value, list):
        estimate, low, high = value
        return f"{estimate:.4g} [{low:.4g}, {high:.4g}]"
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
