"""Commands that intervene: ``ablate``, ``facts`` and ``edit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from memscope.base.errors import InputError
from memscope.base.lock import one_writer
from memscope.cli.options import (
    DeviceOption,
    JsonOption,
    ModelArgument,
    RecordingArgument,
    RunArgument,
    SeedOption,
    check,
    check_model,
    check_recorded,
    load,
    open_model,
    parse_entries,
    parse_numbers,
    print_json,
    show,
)
from memscope.cli.text import ask_sentences

if TYPE_CHECKING:
    from memscope.causal.ablation import AblationStudy
    from memscope.causal.group_effects import DomainEffects
    from memscope.recording.info import RecordingInfo

FactsArgument = Annotated[
    Path,
    typer.Argument(metavar="FACTS", help="Facts of memscope, LAMA, CounterFact or PopQA."),
]


_SHOWN = 5
"""Entries of every group that are printed."""


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (ablate, facts, edit):
        app.command()(command)


def ablate(
    run: ModelArgument,
    recording: RecordingArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    entries: Annotated[
        str | None,
        typer.Option("--entries", metavar="1,2,3", help="Entries to ablate; 1:6 is expert 6 of layer 1."),
    ] = None,
    top_usage: Annotated[
        str | None, typer.Option("--top-usage", metavar="1%", help="Ablate this share of the bank, most used first.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="6,7", help="In these layers; default all that select.")
    ] = None,
    by_group: Annotated[
        bool, typer.Option("--by-group", help="Ablate every entry of --layer in turn, and compare document groups.")
    ] = False,
    layer: Annotated[int | None, typer.Option(min=0, help="Layer of --by-group.")] = None,
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
    """Run a text with and without some entries, and without controls; prints the change of loss, logit and KL.

    With --by-group every entry of a layer is ablated in turn, and its effect on each group of documents is compared.
    """
    if by_group:
        given = {"--entries": entries, "--top-usage": top_usage, "--layers": layers, "--corpus": corpus}
        if layer is None:
            raise InputError("ablate --by-group: give the layer, by --layer 1")
        if odd := [name for name, value in given.items() if value is not None]:
            raise InputError(
                f"ablate --by-group: takes every entry of a layer over the recorded text; leave out {odd[0]}"
            )
        _ablate_by_group(run, recording, out, layer, mode, tokens, as_json, device)
        return
    if layer is not None:
        raise InputError("ablate: --layer belongs to --by-group; give --layers")
    if (entries is None) == (top_usage is None):
        raise InputError("ablate: give the entries, either by --entries 1,2,3 or by --top-usage 1%")
    chosen_layers = None if layers is None else parse_numbers("--layers", layers)
    share = None if top_usage is None else _share(top_usage)

    from memscope.recording.info import read_info

    info = read_info(recording)
    check_model(run, corpus, _neurons(info), recording)
    info.expect_layers(chosen_layers or [])
    named = parse_entries(info, entries or "")

    from memscope.causal.ablation import recorded_corpus, study_ablation, write_study
    from memscope.causal.effects import entry_usage, top_entries
    from memscope.query.recording import Recording
    from memscope.text.corpus import pack_corpus

    usage = entry_usage(recording, chosen_layers)
    subject = _open_recorded(run, recording, device)
    if corpus is None:
        text = recorded_corpus(Recording(recording))
    else:
        text = pack_corpus(corpus, subject.tokenizer, subject.cache_dir)
    ablated = named if share is None else top_entries(usage, share)
    with one_writer(out):
        study = study_ablation(subject, text, ablated, usage, mode, chosen_layers, tokens, controls, control, seed)
        write_study(study, out)
    if as_json:
        print_json(study.summary)
    else:
        _show_study(study, out)


def _ablate_by_group(
    run: Path,
    recording: Path,
    out: Path,
    layer: int,
    mode: Literal["renormalise", "zero"],
    tokens: int,
    as_json: bool,
    device: str,
) -> None:
    from memscope.recording.info import read_info

    info = read_info(recording)
    check_model(run, None, _neurons(info), recording)
    info.expect_layers([layer])

    from memscope.causal.group_effects import domain_effects, write_domain_effects
    from memscope.query.recording import Recording

    subject = _open_recorded(run, recording, device)
    with one_writer(out):
        found = domain_effects(subject, Recording(recording), layer, mode, tokens)
        write_domain_effects(found, out)
    if as_json:
        print_json(found.summary)
    else:
        _show_groups(found, out)


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
    """Audit facts: are entries that started from a fact selected when it is asked, and does the answer need them?

    Of a run with a text layer: are sentences that state it selected and read, and does the answer need them?
    """
    _expect_memory(run, "facts")
    folder = out or recording
    if folder is None:
        raise InputError("facts: give the folder to write, by --recording REC or by --out DIR")

    if check(run, facts=facts, recording=recording).model.text_layers:
        ask_sentences(run, facts, folder, limit, as_json, seed, device)
        return

    from memscope.text.fact_files import read_facts

    known = read_facts(facts)

    from memscope.causal.effects import entry_usage
    from memscope.causal.fact_tables import write_audit
    from memscope.causal.facts import audit_facts

    loaded = load(run, device)
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
        Literal["sentence", "row", "text"],
        typer.Option(
            help="sentence: the entry gets the new sentence; row: the entry alone is trained; text: the sentences that "
            "a text layer reads name the new object."
        ),
    ] = "row",
    steps: Annotated[int, typer.Option(min=1, help="row: Adam steps.")] = 20,
    rate: Annotated[float, typer.Option(min=0, help="row: learning rate.")] = 0.05,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Edit facts by rewriting one entry or its text; prints efficacy, generalisation and specificity as JSON."""
    _expect_memory(run, "edit")
    check(run, facts=facts)

    from memscope.text.fact_files import read_facts

    known = read_facts(facts)

    from memscope.causal.edit import edit_facts, write_edits
    from memscope.causal.sentences.edit import edit_sentences

    loaded = load(run, device)
    with one_writer(out):
        if method == "text":
            result = edit_sentences(loaded, known, count, seed)
        else:
            result = edit_facts(loaded, known, count, method, steps, rate, seed)
        write_edits(result, out)
    print_json(result.summary)


def _expect_memory(run: Path, command: str) -> None:
    from memscope.run.folder import is_hugging_face

    if is_hugging_face(run):
        raise InputError(
            f"{command}: {run} is a mixture of experts; facts are kept, attributed and rewritten in the entries of a "
            "memory, and an expert has neither a text nor a value of its own; use memscope ablate"
        )


def _neurons(info: "RecordingInfo") -> int | None:
    """Neurons of a layer that were recorded, where neurons were."""
    return info.sites[0].selected if info.sites[0].kind == "neurons" else None


def _open_recorded(model: Path, recording: Path, device: str) -> Any:
    """The model of a recording, as the subject that was recorded."""
    from memscope.recording.info import read_info

    info = read_info(recording)
    subject = open_model(model, device, neurons=_neurons(info))
    check_recorded(model, subject.fingerprint, recording)
    if subject.sites != info.sites:
        raise InputError(
            f"{recording}: other layers of {model} were recorded than memscope record finds; intervene in Python, on "
            "the subject that was recorded (memscope.causal.selections)"
        )
    return subject


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise InputError(f"--top-usage {text}: expected a share such as 1% or 0.01") from error
    if not 0 < share <= 1:
        raise InputError(f"--top-usage {text}: give a share above 0% and up to 100%")
    return share


def _show_study(study: "AblationStudy", out: Path) -> None:
    summary = study.summary
    show(_table(study.table))
    show(f"\nmeans per token over {summary['tokens']:,} tokens of {summary['documents']:,} documents, whose loss was")
    show(f"{summary['loss_before']:.4f} nats; 95% intervals over {summary['interval_unit']}; details in {out}")


def _show_groups(found: "DomainEffects", out: Path) -> None:
    columns = ["group", "name", "loss", "others", "difference", "contrast", "contrast_low", "contrast_high"]
    first = found.table.sort_values(["group", "contrast"], ascending=[True, False]).groupby("group").head(_SHOWN)
    summary, counts, rate = found.summary, found.summary["discoveries"], found.summary["false_discovery_rate"]
    show(_table(first[[*columns, "contrast_q"]]))
    show(f"\nnats per token over {summary['tokens']:,} tokens of {summary['documents']:,} documents. loss: its change")
    show("without the entry; others: the mean of the layer's other entries; contrast: the difference of the two, less")
    show(f"that in other groups, with 95% intervals over documents. {counts['contrast_q']:,} contrasts are not 0 at a")
    show(f"false discovery rate of {rate:.0%}; {counts['control_q']:,} where documents are dealt to groups at random.")
    show(f"These are the {_SHOWN} largest of every group; all are in {out}")


def _table(frame: Any) -> str:
    return str(frame.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-"))


def _short(value: Any) -> str:
    if isinstance(value, list):
        estimate, low, high = value
        return f"{estimate:.4g} [{low:.4g}, {high:.4g}]"
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
