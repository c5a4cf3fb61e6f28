"""Write a run whose text layers read other sentences; its weights are the same and nothing is trained."""

import shutil
from pathlib import Path

from memscope.base.errors import InputError
from memscope.base.files import atomic_path, disk_errors
from memscope.run.checkpoint import list_files
from memscope.run.folder import MODEL, ORIGIN, SETTINGS, START
from memscope.text.sentences import read_sentences
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.bank import FILE, SentenceBank

_KEPT = (*SETTINGS, *ORIGIN, MODEL, START, "run.json", "metrics.jsonl")


def read_bank(path: Path, tokenizer: Tokenizer) -> SentenceBank:
    """All sentences of a file as a bank, in the order of the file.

    Raises:
        InputError: the file has none, or one has no tokens.
    """
    sentences = read_sentences(path)
    encoded = tokenizer.encode_batch([sentence.text for sentence in sentences])
    if empty := [sentence.text for sentence, ids in zip(sentences, encoded, strict=True) if not ids]:
        raise InputError(f"{path}: the sentence {empty[0][:40]!r} has no tokens")
    return SentenceBank.of(sentences, encoded)


def write_run(run: Path, bank: SentenceBank, out: Path) -> None:
    """Copy a run with another bank of sentences.

    Raises:
        InputError: ``out`` is there already.
    """
    if out.exists():
        raise InputError(f"{out}: is there already; choose another --out")
    with atomic_path(out) as temporary, disk_errors(out):
        temporary.mkdir(parents=True)
        for name in _KEPT:
            if name != FILE and (run / name).is_file():
                shutil.copyfile(run / name, temporary / name)
        bank.save(temporary / FILE)
        list_files(temporary)
