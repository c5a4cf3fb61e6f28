"""Prepare a run for training: tokenizer, packed corpora, model and its bank."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

from memscope.base.errors import InputError
from memscope.config.load import Config
from memscope.model.transformer import MemoryTransformer
from memscope.run import bank_init
from memscope.run.folder import list_checkpoints
from memscope.run.text_bank import fill_text_bank, run_bank
from memscope.text.corpus import PackedCorpus, pack_corpus, read_documents
from memscope.text.sentences import choose_sentences, read_sentences
from memscope.text.special_tokens import Roles
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.bank import FILE, SentenceBank, choose_bank


class Prepared(NamedTuple):
    """A run before its first step."""

    tokenizer: Tokenizer
    train_corpus: PackedCorpus
    valid_corpus: PackedCorpus
    model: MemoryTransformer


def prepare_run(config: Config, run: Path, write: bool) -> Prepared:
    """Tokenizer, packed corpora and the model as it is before training.

    Args:
        config: the run's config.
        run: its folder.
        write: whether this process writes ``tokenizer.json``, ``bank_init.*`` and ``bank_spare.parquet`` (the main one
            does).

    Raises:
        InputError: any of the input files is unusable.
    """
    tokenizer = _tokenizer(config, run)
    if write:
        tokenizer.save(run / "tokenizer.json")
        if config.data.tokenizer_path:
            opens, ends, fills = map(tokenizer.name, (tokenizer.bos, tokenizer.eos, tokenizer.pad))
            print(f"documents open with {opens} and end with {ends}; {fills} fills up", file=sys.stderr)
    cache = Path(config.data.cache_dir)
    train_corpus = pack_corpus(Path(config.data.train_path), tokenizer, cache)
    valid_corpus = pack_corpus(Path(config.data.valid_path), tokenizer, cache)
    model = MemoryTransformer(config, seed=config.train.seed)
    if model.text_bank is not None or config.text.facts_path:
        bank = _sentences(config, run, tokenizer, write)
        if model.text_bank is not None:
            fill_text_bank(model, bank, tokenizer)
    if model.bank is not None and not list_checkpoints(run):  # a checkpoint has its entries, the run their starts
        _fill_bank(model, config, run, tokenizer, write)
    return Prepared(tokenizer, train_corpus, valid_corpus, model)


def _sentences(config: Config, run: Path, tokenizer: Tokenizer, write: bool) -> SentenceBank:
    """The sentences of the run, chosen at its start."""
    if (run / FILE).is_file():
        return run_bank(run)
    text = config.text
    found = read_sentences(Path(str(text.sentences_path)))
    bank = choose_bank(found, tokenizer, text.sentence_num, text.sentence_length, config.train.seed)
    if write:
        print(f"the text bank holds {len(bank.lengths):,} of {len(found):,} sentences", file=sys.stderr)
        bank.save(run / FILE)
    return bank


def _tokenizer(config: Config, run: Path) -> Tokenizer:
    size = config.model.vocab_size
    if (run / "tokenizer.json").is_file():
        tokenizer = Tokenizer.load(run / "tokenizer.json")
    elif config.data.tokenizer_path:
        asked = Roles(config.data.bos_token, config.data.eos_token, config.data.pad_token)
        tokenizer = Tokenizer.adopt(Path(config.data.tokenizer_path), asked)
    else:
        texts = (document.text for document in read_documents(Path(config.data.train_path)))
        tokenizer = Tokenizer.train(texts, size)
    if tokenizer.vocab_size != size:
        raise InputError(
            f"{tokenizer.source}: its largest id is {tokenizer.vocab_size - 1}, model.vocab_size is {size}; "
            f"set vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


@torch.no_grad()
def _fill_bank(model: MemoryTransformer, config: Config, run: Path, tokenizer: Tokenizer, write: bool) -> None:
    """Initialise the entries from sentences where the config names some, and save where each came from."""
    assert model.bank is not None
    memory = config.memory
    sentences, spare = [], []
    if memory.database_init_path:
        found = read_sentences(Path(memory.database_init_path))
        sentences = choose_sentences(found, memory.knowledge_num, config.train.seed)
        if config.train.revive_after:
            used = {sentence.text for sentence in sentences}
            left = [sentence for sentence in found if sentence.text not in used]
            spare = choose_sentences(left, len(left), config.train.seed)
        if write:
            print(
                f"{len(sentences):,} of {len(found):,} sentences initialise entries; "
                f"{memory.knowledge_num - len(sentences):,} entries start random",
                file=sys.stderr,
            )
    ids = bank_init.encode_sentences(sentences, tokenizer, memory.knowledge_length)
    token_ids = bank_init.deal(ids, memory.knowledge_num, memory.bank_groups)
    random_entries, table = model.bank.entries.float().numpy(), model.embed.weight.numpy()
    init = bank_init.init_bank(random_entries, token_ids, table, pad=tokenizer.pad, seed=config.train.seed)
    model.bank.start(torch.arange(memory.knowledge_num), torch.from_numpy(init.entries))
    init = init._replace(entries=model.bank.entries.float().numpy())  # as they are kept, which may be rounded
    if write:
        started = bank_init.deal(sentences, memory.knowledge_num, memory.bank_groups)
        bank_init.save_bank_init(run, init, started, token_ids)
        if config.train.revive_after:
            spare_ids = bank_init.encode_sentences(spare, tokenizer, memory.knowledge_length)
            bank_init.save_spare(run, spare, spare_ids)
