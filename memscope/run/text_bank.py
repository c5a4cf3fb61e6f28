"""Give a model with text layers the sentences of its run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from memscope.base.seals import check_listed
from memscope.model.transformer import MemoryTransformer
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.bank import FILE, SentenceBank, load_bank
from memscope.text_bank.lexical import LexicalIndex
from memscope.text_bank.words import WordReader


def fill_text_bank(model: MemoryTransformer, bank: SentenceBank, tokenizer: Tokenizer) -> None:
    """Put sentences into a model's bank in place of any before, and index their words."""
    assert model.text_bank is not None, "the model has no text layer"
    reader = WordReader(tokenizer)
    index = LexicalIndex.build(bank.ids, bank.lengths, reader, tokenizer.bos, model.cfg.text.query_words)
    model.text_bank.fill(bank, index)


@contextmanager
def typed_sentences(model: MemoryTransformer, tokenizer: Tokenizer, changes: Mapping[int, str]) -> Iterator[None]:
    """Let sentences of a model's bank, counted from 0, read otherwise while a block runs; words are indexed anew.

    Raises:
        InputError: the bank has no such sentence, or a text is empty.
    """
    bank = model.text_bank
    assert bank is not None and bank.index is not None, "the model has no text layer"
    before, index = bank.sentences, bank.index
    fill_text_bank(model, before.edited(changes, tokenizer), tokenizer)
    try:
        yield
    finally:
        bank.fill(before, index)


def run_bank(run: Path) -> SentenceBank:
    """The sentences of a run.

    Raises:
        InputError: the file is missing, corrupted or not as it was written.
    """
    bank = load_bank(run / FILE)
    check_listed(run, [FILE], "restore it or train again")
    return bank
