"""Ask a model with a text layer about facts that sentences of its bank state.

    table = ask_facts(run, facts)            # one row per fact
    summarise(table)                         # shares with intervals over facts
    summarise_groups(table)                  # the same of facts that training taught, and of those held out

A fact is asked as in ``causal/facts.py``: its template up to the object; the answer is the object's first token. Every
number is of the asked position, the last token of the question:

``taught``         training made statements of the sentences that state it, or of its subject with a file of facts
``selected``       a sentence that states the fact is among those selected, in any text layer
``searched``       one is among as many that share most words with the question: no gate should fall below this
``rank logprob``   of the answer over the vocabulary, from 1 and in nats
``on_object``      share of all that is read of words that falls on words of the object, in stating sentences
``logit_without``  the answer's logit after the stating sentences were taken out of the selection
``logit_control``  the same for as many other selected sentences, those of highest score
``rank_silent``    the answer's rank where no sentence is selected at all: what the model says without reading
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from memscope.base.errors import InputError
from memscope.base.files import write_json
from memscope.base.parquet import write_table
from memscope.base.work import watched
from memscope.causal.facts import Asked, answerable, ask, pad_rows, tokenize_facts
from memscope.run.adapters.own import OwnRun, capture_memory
from memscope.run.checkpoint import LoadedRun
from memscope.run.subject import evaluating
from memscope.text.fact_files import Fact
from memscope.text_bank.bank import SentenceBank
from memscope.text_bank.stating import asks_nothing, is_held_out, stating_entries

_BATCH = 64


def ask_facts(run: LoadedRun, facts: Sequence[Fact], limit: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Ask facts that some sentence of the bank states; the others are left out.

    Args:
        run: a run with a text layer.
        facts: the facts.
        limit: ask at most this many of those that are stated, drawn at random.
        seed: of the draw.

    Raises:
        InputError: the model has no text layer, or no sentence states any of the facts.
    """
    if run.model.text_bank is None:
        raise InputError(f"{run.path}: no layer reads sentences; train with block: text")
    bank = run.model.text_bank.sentences
    facts = answerable(facts, run.tokenizer)
    stating = stating_entries(facts, bank)
    chosen = [(fact, entries) for fact, entries in zip(facts, stating, strict=True) if len(entries)]
    if not chosen:
        raise InputError(f"{run.path}: no sentence of the bank states one of these facts")
    if limit is not None and limit < len(chosen):
        drawn = np.sort(np.random.default_rng(seed).choice(len(chosen), limit, replace=False))
        chosen = [chosen[number] for number in drawn]
    facts, stating = [fact for fact, _ in chosen], [entries for _, entries in chosen]
    asked = tokenize_facts(facts, run.tokenizer)
    order = sorted(range(len(facts)), key=lambda row: len(asked.questions[row]))
    batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    found = [_ask(run, asked, batch, facts, stating) for batch in watched(batches, "asking", "questions", size=len)]
    table = pd.DataFrame(facts, index=pd.RangeIndex(len(facts))).drop(columns="evidence")
    table["taught"] = [_is_taught(run, bank, fact, entries) for fact, entries in chosen]
    return table.join(pd.concat(found).sort_index())


def _is_taught(run: LoadedRun, bank: SentenceBank, fact: Fact, entries: np.ndarray) -> bool:
    text = run.config.text
    if not text.statement_share:
        return False
    if text.facts_path:
        return not is_held_out(fact.subject, text.held_out)
    return not all(asks_nothing(bank.sentences[entry], text.held_out) for entry in entries)


def summarise(table: pd.DataFrame, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Means over facts with 95% intervals by a bootstrap over subjects.

    Columns ``mean low high facts``; rows ``selected searched answered silent logprob on_object fall control`` (the
    falls are of the answer's logit). ``on_object`` is over answered facts whose sentence was selected, falls are over
    those whose sentence was selected.
    """
    answered = table["rank"] == 1
    values = {
        "selected": table["selected"].astype(float),
        "searched": table["searched"].astype(float),
        "answered": answered.astype(float),
        "silent": (table["rank_silent"] == 1).astype(float),
        "logprob": table["logprob"],
        "on_object": table["on_object"][answered & table["selected"]],
        "fall": (table["logit"] - table["logit_without"])[table["selected"]],
        "control": (table["logit"] - table["logit_control"])[table["selected"]].dropna(),
    }
    return pd.DataFrame(
        {name: _interval(one, table["subject"].loc[one.index], draws, seed) for name, one in values.items()},
        index=["mean", "low", "high", "facts"],
    ).T


def summarise_groups(table: pd.DataFrame, draws: int = 2000, seed: int = 0) -> dict[str, pd.DataFrame]:
    """``summarise`` of the facts that were ``taught``, and of those ``held out``; none of a group without facts."""
    groups = {"taught": table[table["taught"]], "held out": table[~table["taught"]]}
    return {name: summarise(rows, draws, seed) for name, rows in groups.items() if len(rows)}


def plain_summary(groups: dict[str, pd.DataFrame]) -> dict[str, dict[str, dict[str, float | None]]]:
    """``summarise_groups`` as plain values; none where no fact tells, as when none was answered."""
    return {name: one.astype(object).where(one.notna(), None).to_dict("index") for name, one in groups.items()}


def write_answers(table: pd.DataFrame, groups: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write ``sentence_facts.parquet`` and ``sentence_facts.json``."""
    written = [folder / "sentence_facts.parquet", folder / "sentence_facts.json"]
    write_table(written[0], pa.Table.from_pandas(table, preserve_index=False))
    write_json(written[1], plain_summary(groups))
    return written


def _interval(values: pd.Series, subjects: pd.Series, draws: int, seed: int) -> tuple[float, float, float, int]:
    if values.empty:
        return (np.nan, np.nan, np.nan, 0)
    by_subject = values.groupby(subjects).agg(["sum", "size"]).to_numpy()
    chance = np.random.default_rng(seed).multinomial(
        len(by_subject), np.full(len(by_subject), 1 / len(by_subject)), draws
    )
    sums = chance @ by_subject
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return float(values.mean()), float(low), float(high), len(values)


def _ask(
    run: LoadedRun, asked: Asked, rows: list[int], facts: Sequence[Fact], stating: Sequence[np.ndarray]
) -> pd.DataFrame:
    model, layers = run.model, run.config.model.text_layers
    first, device = run.config.first_sentence, run.model.embed.weight.device
    tokens = pad_rows([asked.questions[row] for row in rows], run.tokenizer.pad).to(device)
    last = torch.tensor([len(asked.questions[row]) - 1 for row in rows], device=device)
    answer = torch.from_numpy(asked.answers[rows]).to(device)
    here = torch.arange(len(rows), device=device)
    own = pad_rows([(stating[row] + first).tolist() for row in rows], -2).to(device)
    with evaluating(model), capture_memory(model, keep_pattern=False) as captured:
        logits = ask(model, tokens, last)
    selected = []
    on_object, read = torch.zeros(2, len(rows), device=device)
    taken: dict[int, Tensor] = {}
    for layer in layers:
        entries, slots = captured[layer].indices[here, last], captured[layer].slot_weights
        assert slots is not None
        stated = (entries[..., None] == own[:, None]).any(-1)
        selected.append(stated.any(-1))
        words = _object_slots(run, entries - first, [facts[row].object for row in rows], slots.shape[-1])
        on_object = on_object + (slots[here, last] * (words & stated[..., None])).sum((-1, -2))
        read = read + slots[here, last].sum((-1, -2))
        taken[layer] = entries
    assert model.text_bank is not None
    found = model.text_bank.find(tokens).entries[here, last, : run.config.text.sentences_selected] + first
    logit = logits[here, answer]
    columns: dict[str, Tensor] = {
        "selected": torch.stack(selected).any(0),
        "searched": (found[..., None] == own[:, None]).any((-1, -2)),
        "logit": logit,
        "logprob": logit - logits.logsumexp(-1),
        "rank": 1 + (logits > logit[:, None]).sum(-1),
        "on_object": on_object / read.clamp(min=1e-9),
    }
    for name, ablated in (("without", own), ("control", _controls(taken, own))):
        with evaluating(model), OwnRun(run).rewrite(partial(_edit, layers, ablated)):
            columns[f"logit_{name}"] = ask(model, tokens, last)[here, answer]
    with evaluating(model), OwnRun(run).rewrite(partial(_edit, layers, None)):
        silent = ask(model, tokens, last)
    columns["rank_silent"] = 1 + (silent > silent[here, answer][:, None]).sum(-1)
    columns["logit_control"] = columns["logit_control"].masked_fill((_controls(taken, own) < 0).all(-1), torch.nan)
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()}, index=rows)


def _edit(
    layers: tuple[int, ...], gone: Tensor | None, layer: int, indices: Tensor, scores: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Selections of text layers without some entries of each row of the batch; with none at all if none are given."""
    if layer not in layers:
        return indices, scores
    if gone is None:
        return torch.full_like(indices, -1), scores
    return indices.masked_fill((indices[..., None] == gone[:, None, None]).any(-1), -1), scores


def _controls(taken: dict[int, Tensor], own: Tensor) -> Tensor:
    """As many selected sentences as state the fact, of those that do not, best first; -2 where there is none."""
    entries = torch.cat(list(taken.values()), -1)
    stated = (entries[..., None] == own[:, None]).any(-1)
    other = torch.where(stated | (entries < 0), -2, entries)
    order = (other < 0).int().argsort(dim=-1, stable=True)
    other = other.gather(-1, order)
    many = torch.arange(other.shape[-1], device=other.device) < stated.sum(-1, keepdim=True)
    return torch.where(many, other, -2)


def _object_slots(run: LoadedRun, entries: Tensor, objects: list[str], length: int) -> Tensor:
    """Where the tokens of the objects stand in selected sentences, bool ``[fact, K, L]``."""
    bank = run.model.text_bank
    assert bank is not None
    found = torch.zeros(*entries.shape, length, dtype=torch.bool)
    for row, object_ in enumerate(objects):
        ways = [run.tokenizer.encode(text) for text in (object_, f" {object_}")]
        for k, entry in enumerate(entries[row].tolist()):
            ids = bank.sentences.token_ids(entry) if entry >= 0 else []
            for way in ways:
                for at in range(len(ids) - len(way) + 1):
                    if ids[at : at + len(way)] == way:
                        found[row, k, at : at + len(way)] = True
    return found.to(entries.device)
