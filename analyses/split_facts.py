"""Deal facts and sentences to training, to held-out subjects and to those that are kept aside.

    python analyses/split_facts.py facts.jsonl sentences.json --out data/facts

Subjects are dealt by a hash of their name. Sentences and facts of a tenth of them are kept aside: no training sees
them. Of the others a fifth is held out, as ``text.held_out`` of a config does it by itself: the bank has their
sentences, no statement is made of their facts. Writes ``facts_train.jsonl``, ``facts_held.jsonl``,
``facts_aside.jsonl``, ``sentences.jsonl`` and ``sentences_aside.jsonl``.
"""

import json
from pathlib import Path

from study import command_line, run_script

from memscope.base.files import make_folder
from memscope.text.fact_files import read_facts
from memscope.text.sentences import read_sentences
from memscope.text_bank.stating import is_held_out

ASIDE, HELD_OUT = 0.1, 0.2
"""Shares of subjects; the second is ``text.held_out`` of a config."""


def is_aside(subject: str) -> bool:
    """Whether a subject is kept aside, by another hash than the one that holds subjects out."""
    return is_held_out(f"aside {subject}", ASIDE)


def split(facts: Path, sentences: Path, out: Path) -> dict[str, int]:
    """Write the files; returns their rows."""
    names = ("facts_train", "facts_held", "facts_aside", "sentences", "sentences_aside")
    parts: dict[str, list[str]] = {name: [] for name in names}
    for fact in read_facts(facts):
        part = "aside" if is_aside(fact.subject) else "held" if is_held_out(fact.subject, HELD_OUT) else "train"
        parts[f"facts_{part}"].append(json.dumps(fact._asdict()))
    for sentence in read_sentences(sentences):
        aside = any(is_aside(triple.subject) for triple in sentence.triples)
        rows = [{"sentence": sentence.text, **triple._asdict()} for triple in sentence.triples]
        parts["sentences_aside" if aside else "sentences"].append(
            json.dumps({"target": rows} if rows else {"sentence": sentence.text})
        )
    make_folder(out)
    for name, lines in parts.items():
        (out / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {name: len(lines) for name, lines in parts.items()}


def main() -> None:
    """Parse, split, print."""
    arguments = command_line(__doc__, "facts", "sentences").parse_args()
    print(split(arguments.facts, arguments.sentences, arguments.out))


if __name__ == "__main__":
    run_script(main)
