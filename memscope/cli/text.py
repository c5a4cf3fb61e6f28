"""Commands for text layers: ``bank`` changes their sentences; ``facts`` of a run that has them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memscope.base.errors import InputError
from memscope.base.lock import one_maker, one_writer
from memscope.cli.options import RunArgument, hint, load, print_json, show

if TYPE_CHECKING:
    from memscope.text_bank.bank import SentenceBank


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(bank)


def bank(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder to write.")],
    replace: Annotated[
        Path | None, typer.Option("--replace", metavar="FILE", help="Sentences that take the place of all others.")
    ] = None,
    add: Annotated[
        Path | None, typer.Option("--add", metavar="FILE", help="Sentences to put behind the others.")
    ] = None,
    remove: Annotated[
        str | None,
        typer.Option("--remove", metavar="LIST", help="Sentences to take out: numbers from 0, or uuids of triples."),
    ] = None,
) -> None:
    """Write a run whose text layers read other sentences, without training. Prints a summary as JSON."""
    if replace is None and add is None and remove is None:
        raise InputError("bank: say what changes, by --replace FILE, --add FILE or --remove LIST")
    from memscope.base.files import expect_file
    from memscope.run.folder import check_run

    config = check_run(run)
    for file in (replace, add):
        if file is not None:
            expect_file(file, "file of sentences")
    if not config.model.text_layers:
        raise InputError(f"{run}: no layer of this run reads sentences; train one with block: text")

    from memscope.run.replace_bank import read_bank, write_run
    from memscope.run.text_bank import run_bank
    from memscope.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(run / "tokenizer.json")
    before = run_bank(run)
    after = before if replace is None else read_bank(replace, tokenizer)
    if remove is not None:
        after = after.without(_chosen(after, remove))
    if add is not None:
        after = after.with_more(read_bank(add, tokenizer))
    with one_maker(out):
        write_run(run, after, out)
    longest = int(after.lengths.max())
    print_json({"run": str(out), "sentences": len(after.lengths), "before": len(before.lengths), "longest": longest})
    if longest > config.text.sentence_length:
        hint(f"note: training saw sentences of at most {config.text.sentence_length} tokens")


def ask_sentences(
    run: Path, facts: Path, folder: Path, limit: int | None, as_json: bool, seed: int, device: str
) -> None:
    """Ask the facts of a file of a run with a text layer, print the answers and write them into a folder."""
    from memscope.causal.sentences.facts import ask_facts, plain_summary, summarise_groups, write_answers
    from memscope.text.fact_files import read_facts

    known, loaded = read_facts(facts), load(run, device)
    with one_writer(folder):
        table = ask_facts(loaded, known, limit, seed)
        groups = summarise_groups(table, seed=seed)
        written = write_answers(table, groups, folder)
    if as_json:
        print_json(plain_summary(groups))
        return
    for name, summary in groups.items():
        show(f"{name}\n{summary.to_string(float_format=lambda value: f'{value:.4g}', na_rep='-')}\n")
    show(*written)


def _chosen(bank: "SentenceBank", text: str) -> set[int]:
    """Entries by number, or by the uuid of a triple that they state."""
    by_uuid: dict[str, set[int]] = {}
    for entry, sentence in enumerate(bank.sentences):
        for triple in sentence.triples:
            by_uuid.setdefault(triple.uuid, set()).add(entry)
    found: set[int] = set()
    for part in (part.strip() for part in text.split(",")):
        if part.isdigit() and int(part) < len(bank.sentences):
            found.add(int(part))
        elif part and part in by_uuid:
            found |= by_uuid[part]
        else:
            raise InputError(f"--remove {part[:60]}: no uuid of a triple, and no number below {len(bank.sentences):,}")
    return found
