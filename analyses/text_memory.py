"""Does a text layer find, read and need the sentences that state a fact?

    python analyses/split_facts.py facts.jsonl sentences.json --out data/facts
    python analyses/text_memory.py runs/text data/facts --ffn runs/ffn --out reports/text

The run is trained with ``text.sentences_path`` and ``text.facts_path`` set to ``sentences.jsonl`` and
``facts_train.jsonl`` of the second folder. The facts of every part are asked, held-out ones apart by whether a sentence
has the subject's full name. Then the run is given a bank of sentences that training never saw, with those kept aside,
and these are asked, and with ``--larger`` one of more sentences. Held-out facts are edited by typing. Every number has
a 95% interval over subjects, of edits over edits.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from study import command_line, run_script, save
from torch import Tensor

from memscope.base.errors import InputError
from memscope.base.files import write_json
from memscope.causal.facts import answerable, ask, pad_rows, tokenize_facts
from memscope.causal.sentences.edit import edit_sentences
from memscope.causal.sentences.facts import ask_facts, summarise
from memscope.model.text.bank import Lesson
from memscope.model.transformer import next_token_loss
from memscope.report.plots.style import ORANGE, blue, legend, panels
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun, load_run
from memscope.run.subject import evaluating
from memscope.run.text_bank import fill_text_bank
from memscope.text.corpus import document_windows, pack_corpus, window_batch
from memscope.text.fact_files import Fact, read_facts
from memscope.text.sentences import read_sentences
from memscope.text_bank.bank import SentenceBank, choose_bank
from memscope.text_bank.overlap import Overlaps
from memscope.text_bank.stating import stating_entries
from memscope.text_bank.words import WordReader
from memscope.train.lessons.batches import teaching

PARTS = ("train", "held", "aside")
_BATCH = 64


def unseen_bank(run: LoadedRun, data: Path) -> SentenceBank:
    """As many sentences as the run's bank has, none of them in it: those kept aside, filled up with others."""
    assert run.model.text_bank is not None
    now, seed = run.model.text_bank.sentences, run.config.train.seed
    held = {sentence.text for sentence in now.sentences}
    aside = read_sentences(data / "sentences_aside.jsonl")
    others = [one for one in read_sentences(data / "sentences.jsonl") if one.text not in held]
    limit, size = run.config.text.sentence_length, len(now.sentences)
    first = choose_bank(aside, run.tokenizer, size, limit, seed)
    if not others or len(first.sentences) == size:
        return first
    return first.with_more(choose_bank(others, run.tokenizer, size - len(first.sentences), limit, seed))


def named_in_full(facts: Sequence[Fact], bank: SentenceBank) -> np.ndarray:
    """Whether a sentence that states the fact has the subject's name as the question has it."""
    found = [
        any(fact.subject in bank.sentences[entry].text for entry in own)
        for fact, own in zip(facts, stating_entries(facts, bank), strict=True)
    ]
    return np.array(found, bool)


def is_stated(facts: Sequence[Fact], bank: SentenceBank) -> bool:
    """Whether a sentence states any of the facts."""
    return any(len(own) for own in stating_entries(facts, bank))


def larger_bank(run: LoadedRun, data: Path, size: int) -> SentenceBank:
    """``size`` sentences of the collection, or all, those of up to twice the length that the run's bank allows too."""
    limit = 2 * run.config.text.sentence_length
    every = read_sentences(data / "sentences.jsonl")
    return choose_bank(every, run.tokenizer, size, limit, run.config.train.seed)


def measure(run: LoadedRun, data: Path, edits: int, larger: int) -> tuple[pd.DataFrame, dict[str, object]]:
    """A row per part and measure: ``part measure mean low high facts``; and the summary of the edits."""
    assert run.model.text_bank is not None
    bank, index = run.model.text_bank.sentences, run.model.text_bank.index
    assert index is not None
    facts = {part: read_facts(data / f"facts_{part}.jsonl") for part in PARTS}
    in_full = named_in_full(facts["held"], bank)
    asked = {
        "held out": [fact for fact, full in zip(facts["held"], in_full, strict=True) if full],
        "held out, part of the name": [fact for fact, full in zip(facts["held"], in_full, strict=True) if not full],
        "seen in training": facts["train"],
    }
    tables = {part: summarise(ask_facts(run, some)) for part, some in asked.items() if is_stated(some, bank)}
    edited = edit_sentences(run, facts["held"], edits).summary
    others = {"bank swapped": (unseen_bank(run, data), "aside")}
    if larger:
        others["bank enlarged"] = (larger_bank(run, data, larger), "held")
    for part, (other, of) in others.items():
        fill_text_bank(run.model, other, run.tokenizer)
        full = named_in_full(facts[of], other)
        some = [fact for fact, one in zip(facts[of], full, strict=True) if one]
        if is_stated(some, other):
            tables[part] = summarise(ask_facts(run, some))
    run.model.text_bank.fill(bank, index)
    parts = [table.rename_axis("measure").reset_index().assign(part=part) for part, table in tables.items()]
    return pd.concat(parts, ignore_index=True)[["part", "measure", "mean", "low", "high", "facts"]], edited


@torch.no_grad()
def leakage(run: LoadedRun, corpus: Path, tokens: int) -> pd.DataFrame:
    """Loss over a corpus, as it is, without the sentences that a window contains, and with no sentence selected.

    Columns ``name loss tokens``, in nats per token; a window contains a sentence if ``leak_ngram`` words in a row stand
    in both.
    """
    bank, tokenizer, config = run.model.text_bank, run.tokenizer, run.config
    assert bank is not None
    sentences = bank.sentences
    overlaps = Overlaps(sentences.ids, sentences.lengths, WordReader(tokenizer), config.text.leak_ngram)
    packed = pack_corpus(corpus, tokenizer, Path(config.data.cache_dir))
    windows = sorted(document_windows(packed, config.model.max_seq_len, tokens), key=lambda one: one.end - one.start)
    sums, counted = dict.fromkeys(("as it is", "without what the text contains", "nothing selected"), 0.0), 0
    for start in range(0, len(windows), 16):
        batch = window_batch(packed, windows[start : start + 16], tokenizer.pad)
        inputs, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
        counted += int((targets >= 0).sum())
        none = torch.empty(0, dtype=torch.int64)
        blocked = [overlaps.find(row[mask]) for row, mask in zip(batch.tokens, batch.mask, strict=True)]
        lesson = Lesson(step=0, rows=none, positions=none, answers=none, stating=[], swapped={}, blocked=blocked)
        silent = OwnRun(run).rewrite(lambda layer, i, s: _silence(run, layer, i, s))
        with evaluating(run.model):
            for name, change in (("as it is", nullcontext()), ("nothing selected", silent)):
                with change:
                    sums[name] += float(next_token_loss(run.model(inputs), targets).sum())
            with teaching(run.model, lesson):
                sums["without what the text contains"] += float(next_token_loss(run.model(inputs), targets).sum())
    return pd.DataFrame({"name": list(sums), "loss": [value / counted for value in sums.values()], "tokens": counted})


def _silence(run: LoadedRun, layer: int, indices: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Select nothing in text layers, and what is selected elsewhere."""
    return (torch.full_like(indices, -1) if layer in run.config.model.text_layers else indices), scores


@torch.no_grad()
def answered(run: LoadedRun, facts: Sequence[Fact]) -> tuple[float, int]:
    """Share of facts whose object's first token a model without sentences predicts, and how many were asked."""
    asked = tokenize_facts(answerable(facts, run.tokenizer), run.tokenizer)
    right = 0
    for start in range(0, len(asked.questions), _BATCH):
        questions = asked.questions[start : start + _BATCH]
        last = torch.tensor([len(ids) - 1 for ids in questions])
        with evaluating(run.model):
            logits = ask(run.model, pad_rows(questions, run.tokenizer.pad), last)
        right += int((logits.argmax(-1).numpy() == asked.answers[start : start + _BATCH]).sum())
    return right / len(asked.questions), len(asked.questions)


def draw(table: pd.DataFrame) -> Figure:
    """Shares of facts that are found, answered, and answered without reading, by part."""
    figure, [axis] = panels(1)
    parts = list(dict.fromkeys(table["part"]))
    for place, (measure_, colour) in enumerate((("selected", blue(False)), ("answered", ORANGE), ("silent", "grey"))):
        rows = table[table["measure"] == measure_].set_index("part").loc[parts]
        at = np.arange(len(parts)) + (place - 1) * 0.25
        errors = np.abs(rows[["low", "high"]].to_numpy().T - rows["mean"].to_numpy())
        axis.barh(at, rows["mean"], 0.22, xerr=errors, color=colour, label=_LABELS[measure_])
    axis.set(yticks=range(len(parts)), yticklabels=parts, xlabel="share of facts", xlim=(0, 1))
    axis.invert_yaxis()
    legend(axis)
    return figure


_LABELS = {"selected": "sentence selected", "answered": "answered", "silent": "answered with nothing selected"}


def main() -> None:
    """Parse, compute, print, save."""
    parser = command_line(__doc__, "run", "data")
    parser.add_argument("--ffn", type=Path, help="a run without a text layer, trained on the same statements")
    parser.add_argument(
        "--corpus", type=Path, help="text to measure the loss on, with and without sentences of its own"
    )
    parser.add_argument("--tokens", type=int, default=65536, help="tokens of it")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--larger", type=int, default=0, help="sentences of a larger bank that is asked too; 0 = none")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    if run.model.text_bank is None:
        raise InputError(f"{arguments.run}: no layer reads sentences; train with block: text")
    table, edited = measure(run, arguments.data, arguments.edits, arguments.larger)
    headline = table[table["part"] == "held out"].set_index("measure")
    print(
        f"of {int(headline.loc['answered', 'facts']):,} facts that training never stated, "
        f"{headline.loc['answered', 'mean']:.1%} are answered "
        f"({headline.loc['answered', 'low']:.1%} to {headline.loc['answered', 'high']:.1%}), "
        f"{headline.loc['silent', 'mean']:.1%} with nothing selected; a sentence that states the fact is selected for "
        f"{headline.loc['selected', 'mean']:.1%}"
    )
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(json.dumps(edited))
    if arguments.ffn is not None:
        share, n = answered(load_run(arguments.ffn), read_facts(arguments.data / "facts_held.jsonl"))
        print(f"{arguments.ffn}: {share:.1%} of {n:,} held-out facts answered")
    if arguments.corpus is not None:
        print(leakage(run, arguments.corpus, arguments.tokens).to_string(index=False))
    save(arguments.out, "text_memory", table, draw(table))
    write_json(arguments.out / "edits.json", edited)


if __name__ == "__main__":
    run_script(main)
