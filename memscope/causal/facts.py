"""The fact audit: are facts that entries started from selected, read and needed when the facts are asked?

    facts = read_facts(Path("facts.jsonl"))              # fact_files.py
    audit = audit_facts(run, facts, usage=entry_usage(Path("recordings/demo")))
    write_audit(audit, Path("recordings/demo"))          # facts.parquet and facts.json, fact_tables.py

A fact has a cloze template in the manner of LAMA (Petroni et al., arXiv 1909.01066): ``[X] was born in [Y] .`` It is
asked as the text before ``[Y]`` with the subject in place; its last token is the **asked** position. The answer is the
object's first token. An entry states the fact if its init sentence carries the same triple. If such an entry is
selected in the question, it is ablated in all layers and positions, and so is a **control**: another entry of the same
question that was selected at about as many of its positions and is used about as often elsewhere. A control drawn from
the whole bank would hardly ever be selected, so every entry would beat it.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from memscope.base.errors import InputError
from memscope.base.work import watched
from memscope.causal.fact_tables import FactAudit, Questions, summarise
from memscope.causal.intervene import ablate
from memscope.model.transformer import MemoryTransformer
from memscope.run.adapters.own import capture_memory
from memscope.run.checkpoint import LoadedRun
from memscope.run.provenance import start_table
from memscope.run.subject import Selected
from memscope.text.fact_files import Fact
from memscope.text.sentences import Triple
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.stating import match_triples

_BATCH_TOKENS = 4096


class Asked(NamedTuple):
    """Questions as token ids, each with the id of its answer; -1 where the tokenizer has no token for the answer."""

    questions: list[list[int]]
    answers: np.ndarray


class _Answer(NamedTuple):
    """The answers of a batch of questions."""

    rows: np.ndarray
    """Numbers of the questions, in the order of the batch."""
    logits: Float[Tensor, "row vocab"]
    """At the asked position."""
    lengths: np.ndarray
    captured: dict[int, Selected]


def match_entries(facts: Sequence[Fact], run: LoadedRun) -> list[np.ndarray]:
    """For every fact the entries whose init sentence states it: the same uuid, or the same triple if one has none."""
    bank = start_table(run, list(Triple._fields))
    parts = zip(*(bank[name].to_pylist() for name in Triple._fields), strict=True)
    return match_triples(
        facts, ([Triple(*one) for one in zip(*(part or () for part in row), strict=True)] for row in parts)
    )


def tokenize_facts(facts: Sequence[Fact], tokenizer: Tokenizer) -> Asked:
    """Questions as documents begin (``Tokenizer.prompt``), and the first token of every object as their continuation.

    The two are encoded together (``encode_pairs``), as the model read such text in training.
    """
    pairs = tokenizer.encode_pairs([(fact.question, fact.answer) for fact in facts])
    answers = [ids[0] if ids and ids[0] != tokenizer.unk else -1 for _, ids in pairs]
    return Asked([[*tokenizer.opening, *ids] for ids, _ in pairs], np.array(answers, np.int64))


def answerable(facts: Sequence[Fact], tokenizer: Tokenizer) -> list[Fact]:
    """The facts whose object begins with a token of the tokenizer; prints the number of others on standard error.

    Raises:
        InputError: no fact is left.
    """
    known = tokenize_facts(facts, tokenizer).answers >= 0
    left = [fact for fact, is_known in zip(facts, known, strict=True) if is_known]
    if missing := [fact.object for fact, is_known in zip(facts, known, strict=True) if not is_known]:
        problem = f"the tokenizer has no token for the object of {len(missing)} of {len(facts)} facts"
        if not left:
            raise InputError(f"{problem}, for instance {missing[0][:40]!r}")
        print(f"{problem}, for instance {missing[0][:40]!r}; these facts are left out", file=sys.stderr)
    return left


def audit_facts(
    run: LoadedRun, facts: Sequence[Fact], usage: np.ndarray | None = None, limit: int | None = None, seed: int = 0
) -> FactAudit:
    """Ask every fact, and ablate the entries that state it where they are selected.

    Args:
        run: the run, with the starts of its entries.
        facts: the facts to ask.
        usage: selections of every entry in a recording, ``[N]``, to match controls by; none counts those in the
            questions.
        limit: ask at most this many facts, drawn at random.
        seed: of the draw and the shuffles.

    Raises:
        InputError: the model is an FFN baseline, no entry states any of the facts, a question is too long for the
            model, or no fact is ``answerable``.
    """
    if not run.config.model.memory_layers:
        raise InputError(f"{run.path}: an FFN baseline has no entries to audit; choose a run with a memory")
    if limit is not None and limit < len(facts):
        chosen = np.sort(np.random.default_rng(seed).choice(len(facts), limit, replace=False))
        facts = [facts[number] for number in chosen]
    facts = answerable(facts, run.tokenizer)
    entries = match_entries(facts, run)
    if not any(len(own) for own in entries):
        raise InputError(f"{run.path}: no entry started from one of these facts; are they of the same collection?")
    tokenized = tokenize_facts(facts, run.tokenizer)
    _check_length(run, facts, tokenized)

    table = pd.DataFrame(facts).drop(columns="evidence").assign(entries=entries, n_entries=[len(e) for e in entries])
    questions, answers = _ask_all(run, tokenized, entries)
    table = table.assign(**answers)
    usage = questions.usage() if usage is None else usage
    own = [np.intersect1d(stating, questions.selected(row)) for row, stating in enumerate(entries)]
    rows = np.array([row for row, found in enumerate(own) if len(found)], np.int64)
    control = {int(row): _control(questions, int(row), own[row], usage) for row in rows}
    for name, taken in (("own", own), ("control", control)):
        columns = _ablate_all(run, tokenized, [int(row) for row in rows if len(taken[row])], taken)
        for column, values in columns.items():
            table[f"{column}_{name}"] = values
    table["ablated"] = [own[row].tolist() for row in range(len(facts))]
    table["control"] = [control.get(row, own[row]).tolist() for row in range(len(facts))]
    return summarise(table, questions, seed)


class _LastLayer(Exception):
    """Ends a forward pass before the unembedding."""

    def __init__(self, resid: Tensor):
        self.resid = resid


@torch.no_grad()
def ask(
    model: MemoryTransformer, tokens: Int[Tensor, "batch pos"], asked: Int[Tensor, " batch"]
) -> Float[Tensor, "batch vocab"]:
    """Logits at one position of every row; no other position is unembedded, which saves a quarter of a pass."""

    def leave(resid: Tensor, hook: object) -> None:
        raise _LastLayer(resid)

    try:
        with model.hooks(fwd_hooks=[(f"blocks.{model.cfg.model.n_layers - 1}.hook_resid_post", leave)]):
            model(tokens)
    except _LastLayer as end:
        rows = torch.arange(len(tokens), device=tokens.device)
        return model.unembed(end.resid[rows, asked]).float()
    raise AssertionError("the last hook did not fire")


def _check_length(run: LoadedRun, facts: Sequence[Fact], tokenized: Asked) -> None:
    longest = max(range(len(facts)), key=lambda row: len(tokenized.questions[row]))
    tokens, limit = len(tokenized.questions[longest]), run.config.model.max_seq_len
    if tokens > limit:
        raise InputError(f"the question {facts[longest].question[:60]!r} has {tokens} tokens, the model reads {limit}")


def _answers(
    run: LoadedRun,
    tokenized: Asked,
    rows: Sequence[int],
    entries: dict[int, np.ndarray] | list[np.ndarray] | None = None,
) -> Iterator[_Answer]:
    """Ask questions, shortest first; with ``entries``, each question without its entries."""
    device = run.model.embed.weight.device
    order = sorted(rows, key=lambda row: len(tokenized.questions[row]))
    while order:
        longest = len(tokenized.questions[order[min(len(order), _BATCH_TOKENS // 8) - 1]])
        batch, order = order[: max(1, _BATCH_TOKENS // longest)], order[max(1, _BATCH_TOKENS // longest) :]
        lengths = np.array([len(tokenized.questions[row]) for row in batch])
        tokens = pad_rows([tokenized.questions[row] for row in batch], run.tokenizer.pad)
        without: AbstractContextManager[None] = nullcontext()
        if entries is not None:
            without = ablate(run.model, pad_rows([entries[row].tolist() for row in batch], -1).to(device))
        with without, capture_memory(run.model, keep_pattern=False) as captured:
            logits = ask(run.model, tokens.to(device), torch.from_numpy(lengths - 1).to(device))
        yield _Answer(np.array(batch), logits, lengths, captured)


def _ask_all(run: LoadedRun, tokenized: Asked, entries: list[np.ndarray]) -> tuple[Questions, dict[str, Any]]:
    """Selections in every question; and per question the answer's logit, log-probability (nats) and rank from 1."""
    layers = run.config.model.memory_layers
    memory = run.config.memory
    questions = Questions(layers, len(tokenized.questions), memory.knowledge_num, entries, memory.bank_groups)
    columns = {name: np.zeros(len(tokenized.questions)) for name in ("logit", "logprob", "rank")}
    rows = range(len(tokenized.questions))
    for answer in watched(_answers(run, tokenized, rows), "asking", "questions", len(rows), _size):
        for name, values in _judge(answer, tokenized).items():
            columns[name][answer.rows] = values
        for layer in layers:
            captured = answer.captured[layer]
            indices, read = captured.indices.cpu().numpy(), captured.read_weights.cpu().numpy()
            questions.add(layer, answer.rows, answer.lengths, indices, read)
    return questions.finish(), {"answer": tokenized.answers, **columns, "rank": columns["rank"].astype(np.int64)}


def _ablate_all(
    run: LoadedRun, tokenized: Asked, rows: list[int], entries: dict[int, np.ndarray] | list[np.ndarray]
) -> dict[str, np.ndarray]:
    """The answer's logit and log-probability without the entries; NaN for questions that were not asked again."""
    columns = {name: np.full(len(tokenized.questions), np.nan) for name in ("logit", "logprob")}
    for answer in watched(_answers(run, tokenized, rows, entries), "ablating", "questions", len(rows), _size):
        judged = _judge(answer, tokenized)
        for name, values in columns.items():
            values[answer.rows] = judged[name]
    return columns


def _size(answer: _Answer) -> int:
    return len(answer.rows)


def _judge(answer: _Answer, tokenized: Asked) -> dict[str, np.ndarray]:
    target = torch.from_numpy(tokenized.answers[answer.rows]).to(answer.logits.device)[:, None]
    logit = answer.logits.gather(-1, target)
    logprob = (logit - answer.logits.logsumexp(-1, keepdim=True))[:, 0]
    rank = 1 + (answer.logits > logit).sum(-1)
    values = {"logit": logit[:, 0], "logprob": logprob, "rank": rank}
    return {name: value.cpu().numpy().astype(np.float64) for name, value in values.items()}


def _control(questions: Questions, row: int, own: np.ndarray, usage: np.ndarray) -> np.ndarray:
    """As many control entries: of the same question, not stating the fact, nearest in selections there, then in usage.

    Each is of the same group of entries, so the same layers read it.
    """
    entries, counts = questions.selected_with_counts(row)
    free, group = ~np.isin(entries, questions.entries[row]), entries // questions.group_size
    chosen: list[int] = []
    for entry in own:
        usage_here = counts[entries == entry][0]
        order = np.lexsort(
            (np.abs(np.log1p(usage[entries]) - np.log1p(usage[entry])), np.abs(np.log2(counts / usage_here)))
        )
        best = next((at for at in order if free[at] and group[at] == entry // questions.group_size), None)
        if best is None:
            break
        free[best] = False
        chosen.append(int(entries[best]))
    return np.array(chosen, np.int64)


def pad_rows(rows: list[list[int]], fill: int) -> Tensor:
    """Rows of unequal length as one tensor, padded on the right."""
    out = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return torch.from_numpy(out)
