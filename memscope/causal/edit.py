"""Edit a fact by rewriting one entry, and measure efficacy, generalisation and specificity.

    result = edit_facts(run, facts, count=100, method="row")
    result.summary           # before and after, with 95% intervals over facts

The measures are those of CounterFact (Meng et al. 2022, arXiv 2202.05262): the edited model should say a **new**
object where it said, or should have said, the **true** one.

``efficacy``        share of edits with P(new) > P(true) when the fact is asked
``generalisation``  the same on paraphrases: the sentences that state the fact, up to the object
``specificity``     share with P(true) > P(new) on neighbours: other subjects whose true object is the same
``score``           harmonic mean of the three

``*_margin`` is the difference of the two probabilities. Objects are judged by their first token, in prompts where both
begin at the same position. The edited entry raises the true object's logit at the asked position most
(``locate_entry``). ``sentence`` replaces it by the initialisation of the new fact's sentence, without training. ``row``
takes some Adam steps on the row alone, from its current value toward the new object. Gate keys stay, so every token
that reads the entry reads the change: with uneven usage an edit can hardly be specific.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from memscope.base.errors import InputError
from memscope.base.files import write_json
from memscope.base.parquet import write_table
from memscope.base.printable import brief
from memscope.base.work import watched
from memscope.causal.attribution import gradient_attribution
from memscope.causal.facts import answerable, ask, pad_rows, tokenize_facts
from memscope.causal.intervene import rewrite
from memscope.model.transformer import MemoryTransformer
from memscope.run import bank_init
from memscope.run.checkpoint import LoadedRun
from memscope.text.fact_files import Fact
from memscope.text.sentences import Sentence

Method = Literal["sentence", "row"]
KINDS = {"question": "efficacy", "paraphrase": "generalisation", "neighbour": "specificity"}
_PARAPHRASES, _NEIGHBOURS = 2, 5
_N_BOOT = 2000


class Edit(NamedTuple):
    """A fact, its new object, and the prompts that judge the edit."""

    fact: Fact
    new_object: str
    true_token: int
    new_token: int
    prompts: list[tuple[str, list[int]]]
    """Kind and token ids of every prompt; the question comes first."""


@dataclass(frozen=True, repr=False)
class EditResult:
    """The result of editing facts, one at a time."""

    __repr__ = brief

    rows: pd.DataFrame
    """One row per prompt: ``edit subject predicate object new_object entry kind prompt``, and the probabilities
    ``true_before new_before true_after new_after``."""
    summary: dict[str, Any]
    """Per measure ``before`` and ``after`` as [estimate, low, high]."""


def edit_facts(
    run: LoadedRun,
    facts: Sequence[Fact],
    count: int = 100,
    method: Method = "row",
    steps: int = 20,
    rate: float = 0.05,
    seed: int = 0,
) -> EditResult:
    """Edit ``count`` facts drawn at random, each alone and undone before the next.

    Args:
        run: the run.
        facts: source of facts, new objects and neighbours.
        count: number of edits.
        method: ``sentence`` or ``row``, see above.
        steps: Adam steps of ``row``.
        rate: their learning rate.
        seed: of the draw.

    Raises:
        InputError: no layer has vectors as entries, or no fact's predicate has a second object.
    """
    if not run.config.model.memory_layers:
        other = "its entries are sentences: use method text" if run.config.model.text_layers else "choose another run"
        raise InputError(f"{run.path}: no layer has a memory of vectors to edit; {other}")
    frames = []
    for number, edit in enumerate(watched(plan_edits(run, facts, count, seed), "editing", "facts")):
        question = torch.tensor([edit.prompts[0][1]], device=run.model.embed.weight.device)
        entry = locate_entry(run.model, question, edit.true_token)
        if method == "sentence":
            stated = edit.fact._replace(object=edit.new_object)
            slots = encode_sentence(run, stated.statement)
        else:
            slots = fit_row(run.model, entry, question, edit.new_token, steps, rate)
        before = probabilities(run, edit)
        with rewrite(run.model, entry, slots):
            after = probabilities(run, edit)
        frames.append(edit_rows(run, edit, before, after).assign(edit=number, entry=entry))
    rows = pd.concat(frames, ignore_index=True)
    return EditResult(rows, {"method": method, "edits": len(frames), **summarise(rows, seed)})


def edit_rows(run: LoadedRun, edit: Edit, before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """The prompts of an edit as rows of ``EditResult``, but for ``edit`` and ``entry``.

    Args:
        run: the run.
        edit: the edit.
        before: of ``probabilities``.
        after: the same while the edit holds.
    """
    values = np.concatenate([before, after], 1)  # [prompt, 4]
    return pd.DataFrame(values, columns=["true_before", "new_before", "true_after", "new_after"]).assign(
        subject=edit.fact.subject,
        predicate=edit.fact.predicate,
        object=edit.fact.object,
        new_object=edit.new_object,
        kind=[kind for kind, _ in edit.prompts],
        prompt=[run.tokenizer.decode(ids[1:]) for _, ids in edit.prompts],
    )


def plan_edits(run: LoadedRun, facts: Sequence[Fact], count: int, seed: int) -> list[Edit]:
    """Draw facts, and for each a new object of another fact of its predicate, paraphrases and neighbours."""
    rng = np.random.default_rng(seed)
    facts = answerable(facts, run.tokenizer)
    tokenized = tokenize_facts(facts, run.tokenizer)
    table = pd.DataFrame({"predicate": [f.predicate for f in facts], "object": [f.object for f in facts]})
    of_predicate = {key: rows.to_numpy() for key, rows in table.groupby("predicate").groups.items()}
    of_object = {key: rows.to_numpy() for key, rows in table.groupby(["predicate", "object"]).groups.items()}
    limit = run.config.model.max_seq_len
    edits: list[Edit] = []
    for row in rng.permutation(len(facts)):
        fact, true = facts[row], int(tokenized.answers[row])
        rivals = of_predicate[fact.predicate]
        rivals = rivals[tokenized.answers[rivals] != true]
        if not len(rivals) or len(tokenized.questions[row]) > limit:
            continue
        new_object = facts[int(rng.choice(rivals))].object
        [ids], [new] = tokenize_facts([fact._replace(object=new_object)], run.tokenizer)
        near = of_object[fact.predicate, fact.object]
        near = near[
            [facts[neighbour].subject != fact.subject for neighbour in near] & (tokenized.answers[near] == true)
        ]
        near = rng.permutation(near)[:_NEIGHBOURS]
        if ids != tokenized.questions[row] or new in (true, -1):
            continue  # the two objects do not begin at the same position
        prompts = [("question", tokenized.questions[row])]
        prompts += [("paraphrase", ids) for ids in _paraphrases(run, fact, true)]
        prompts += [("neighbour", ids) for ids in (tokenized.questions[n] for n in near) if len(ids) <= limit]
        edits.append(Edit(fact, new_object, true, int(new), prompts))
        if len(edits) == count:
            return edits
    if not edits:
        raise InputError("no fact can be edited: no predicate has two facts with different objects")
    return edits


def locate_entry(model: MemoryTransformer, question: Int[Tensor, "1 pos"], token: int) -> int:
    """The entry that raises a token's logit after a question most: the largest effect by attribution patching.

    Effects are summed over the layers and positions that select the entry; a negative one lowers the logit.
    """
    targets = torch.full_like(question, -100)
    targets[0, -1] = token
    indices, effect = gradient_attribution(model, question, targets)
    every = torch.cat([values.flatten() for values in indices.values()])
    effects = torch.cat([values.flatten() for values in effect.values()])
    entries, position = every.unique(return_inverse=True)
    total = torch.zeros(len(entries), device=effects.device).index_add(0, position, effects.float())
    return int(entries[total.argmax()])


def encode_sentences(run: LoadedRun, sentences: Sequence[str]) -> Float[Tensor, "row slot width"]:
    """Slots that initialisation would make of sentences, by the table and projection that are saved with the run.

    Raises:
        InputError: the run has no saved start of its bank, or a sentence has no tokens.
    """
    memory = run.config.memory
    ids = bank_init.encode_sentences([Sentence(text, ()) for text in sentences], run.tokenizer, memory.knowledge_length)
    blank = np.zeros((len(sentences), memory.knowledge_length, memory.knowledge_dim), np.float32)
    table = bank_init.load_bank_init(run.path).table
    start = bank_init.init_bank(blank, ids, table, pad=run.tokenizer.pad, seed=run.config.train.seed)
    return torch.from_numpy(start.entries).to(run.model.embed.weight.device)


def encode_sentence(run: LoadedRun, sentence: str) -> Float[Tensor, "slot width"]:
    """``encode_sentences`` of one sentence.

    Example:
        >>> slots = encode_sentence(run, "Apollo was the god of music .")
    """
    return encode_sentences(run, [sentence])[0]


def fit_row(
    model: MemoryTransformer, entry: int, question: Int[Tensor, "1 pos"], token: int, steps: int, rate: float
) -> Float[Tensor, "slot width"]:
    """Slots for an entry that make a token likelier after a question, by Adam on that row alone."""
    assert model.bank is not None
    slots = model.bank.entries.detach()[entry].float().clone().requires_grad_()
    optimizer = torch.optim.Adam([slots], lr=rate)
    target = torch.tensor([token], device=slots.device)
    with torch.enable_grad(), rewrite(model, entry, slots):
        for _ in range(steps):
            loss = F.cross_entropy(model(question)[:, -1].float(), target)
            [slots.grad] = torch.autograd.grad(loss, [slots])
            optimizer.step()
    return slots.detach()


def summarise(rows: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """The measures before and after; every edit has the same weight, and intervals resample edits."""
    summary: dict[str, Any] = {}
    draws: dict[str, dict[str, np.ndarray]] = {"before": {}, "after": {}}
    rng = np.random.default_rng(seed)
    edits = np.sort(rows["edit"].unique())
    weights = rng.multinomial(len(edits), np.full(len(edits), 1 / len(edits)), size=_N_BOOT)
    for kind, name in KINDS.items():
        part = rows[rows["kind"] == kind]
        sign = -1 if kind == "neighbour" else 1
        values: dict[str, dict[str, Any]] = {name: {}, f"{name}_margin": {}}
        for when in ("before", "after"):
            margin = sign * (part[f"new_{when}"] - part[f"true_{when}"])
            for measure, result in ((name, (margin > 0).astype(float)), (f"{name}_margin", margin)):
                per_edit = result.groupby(part["edit"]).mean().reindex(edits).to_numpy()
                has = ~np.isnan(per_edit)
                filled = np.where(has, per_edit, 0.0)
                with np.errstate(invalid="ignore"):
                    drawn = (weights @ filled) / (weights @ has)
                values[measure][when] = _interval(filled.sum() / has.sum(), drawn) if has.any() else None
                if measure == name and has.any():
                    draws[when][name] = drawn
        summary |= values
    summary["score"] = {
        when: _harmonic([summary[name][when] for name in KINDS.values()], list(drawn.values()))
        for when, drawn in draws.items()
    }
    return summary


def write_edits(result: EditResult, folder: Path) -> list[Path]:
    """Write ``edits.parquet`` and ``edits.json``."""
    write_table(folder / "edits.parquet", pa.Table.from_pandas(result.rows, preserve_index=False))
    write_json(folder / "edits.json", result.summary)
    return [folder / "edits.parquet", folder / "edits.json"]


def _paraphrases(run: LoadedRun, fact: Fact, true: int) -> list[list[int]]:
    """Sentences of the evidence up to the object, if the subject is before it; the last tokens of long ones.

    Only sentences in which the object begins with the same token as in the question.
    """
    starts = dict.fromkeys(text.partition("[MASK]")[0] for text in fact.evidence if "[MASK]" in text)
    texts = [text for text in starts if fact.subject in text]
    pairs = run.tokenizer.encode_pairs([(t.rstrip(), t[len(t.rstrip()) :] + fact.object) for t in texts])
    opening = run.tokenizer.opening
    room = run.config.model.max_seq_len - len(opening)
    prompts = [[*opening, *ids[-room:]] for ids, answer in pairs if answer[:1] == [true]]
    return prompts[:_PARAPHRASES]


def probabilities(run: LoadedRun, edit: Edit) -> np.ndarray:
    """P(true) and P(new) after every prompt, ``[prompt, 2]``."""
    device = run.model.embed.weight.device
    ids = [ids for _, ids in edit.prompts]
    last = torch.tensor([len(prompt) - 1 for prompt in ids], device=device)
    chance = ask(run.model, pad_rows(ids, run.tokenizer.pad).to(device), last).softmax(-1)
    return chance[:, [edit.true_token, edit.new_token]].double().cpu().numpy()


def _harmonic(measures: list[list[float] | None], draws: list[np.ndarray]) -> list[float] | None:
    """Harmonic mean of the measures with its interval; none where one is missing, 0 where one is 0."""
    known = [measure[0] for measure in measures if measure is not None]
    if len(known) < len(measures):
        return None

    def mean(values: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.asarray(len(values) / (1 / values).sum(0))

    return _interval(float(mean(np.array(known)[:, None])[0]), mean(np.stack(draws)))


def _interval(estimate: float, drawn: np.ndarray) -> list[float]:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return [float(estimate), float(low), float(high)]
