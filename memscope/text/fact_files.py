"""Read facts and the templates that ask for them: files of memscope, LAMA, CounterFact and PopQA.

Shapes of rows, in any of the files that ``text/inputs.py`` reads:

- ``{"uuid", "subject", "predicate", "object", "template", "evidence"}``, the format of memscope;
- LAMA (Petroni et al., arXiv 1909.01066): ``sub_label``, ``obj_label``, and ``template`` or a ``predicate_id`` whose
  template is in ``relations.jsonl`` beside the file or in the folder above;
- CounterFact (Meng et al., arXiv 2202.05262): ``requested_rewrite``, whose true target is the object; and its flat form
  with ``prompt``, ``subject``, ``target_true`` and ``target_false``;
- PopQA (Mallen et al., arXiv 2212.10511): ``subj``, ``prop``, ``obj``, ``question``, asked as ``Q: ... A:``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from memscope.base.errors import InputError
from memscope.text.corpus import clean_text
from memscope.text.inputs import read_rows

_FIELDS = ("uuid", "subject", "predicate", "object", "template")
_RELATIONS = "relations.jsonl"


class Fact(NamedTuple):
    """A statement and how to ask for its object."""

    uuid: str
    subject: str
    predicate: str
    object: str
    template: str
    """Holds ``[X]`` for the subject and, after it, ``[Y]`` for the object."""
    evidence: tuple[str, ...] = ()
    """Sentences that state it, the object replaced by ``[MASK]``."""

    @property
    def question(self) -> str:
        """The template up to the object, with the subject in it."""
        return self._before.rstrip()

    @property
    def answer(self) -> str:
        """The continuation of the question: the object, after the space that the template has before it."""
        return self._before[len(self.question) :] + self.object

    @property
    def statement(self) -> str:
        """The template with subject and object in it."""
        return self.template.replace("[X]", self.subject).replace("[Y]", self.object)

    @property
    def _before(self) -> str:
        return self.template.partition("[Y]")[0].replace("[X]", self.subject)


class _Relation(NamedTuple):
    """One predicate in LAMA's ``relations.jsonl``."""

    predicate: str
    label: str
    template: str


def read_facts(path: Path) -> list[Fact]:
    """Read a file of facts; rows that state the same fact become one (LAMA has one per piece of evidence).

    A row that is no fact, or whose template asks for the subject, is skipped (``inputs.read_rows``).

    Raises:
        InputError: see ``inputs.read_rows``; or no row is a fact.
    """
    relations = _read_relations(path)
    merged: dict[Fact, dict[str, None]] = {}
    for fact in read_rows(path, "facts", partial(_parse, relations=relations), any_share=True):
        merged.setdefault(fact._replace(evidence=()), {}).update(dict.fromkeys(fact.evidence))
    if not merged:
        raise InputError(f"{path}: holds no fact")
    return [fact._replace(evidence=tuple(evidence)) for fact, evidence in merged.items()]


def _read_relations(path: Path) -> dict[str, _Relation]:
    """LAMA's templates, if they are beside the file or in the folder above."""
    file = next((p for p in (path.parent / _RELATIONS, path.parent.parent / _RELATIONS) if p.is_file()), None)
    if file is None or file == path:
        return {}
    return {relation.predicate: relation for relation in read_rows(file, "relation", _relation, any_share=True)}


def _relation(raw: Any, where: str) -> _Relation:
    if not isinstance(raw, dict) or not raw.get("relation"):
        raise InputError(f"{where}: not a relation as LAMA has them")
    return _Relation(str(raw["relation"]), str(raw.get("label") or raw["relation"]), str(raw.get("template") or ""))


def _parse(raw: Any, where: str, relations: Mapping[str, _Relation]) -> Fact:
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected an object with subject, predicate, object and template")
    if "target" in raw or "triples" in raw:
        raise InputError(f"{where}: sentences of T-REx, not facts: there is no template to ask with")
    shape = next((shape for keys, shape in _SHAPES if keys <= raw.keys()), None)
    try:
        row = raw if shape is None else shape(raw, relations)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: looks like a fact of a known collection, but lacks {error!r}") from error
    if odd := [name for name in _FIELDS[1:] if not isinstance(row.get(name), str) or not row[name].strip()]:
        beside = f"; LAMA's templates are in {_RELATIONS}, put it beside the file" if "obj_label" in raw else ""
        raise InputError(f'{where}: a fact needs a text "{odd[0]}"{beside}')
    evidence = row.get("evidence") or []
    if not isinstance(evidence, list) or not all(isinstance(text, str) for text in evidence):
        raise InputError(f'{where}: "evidence" is a list of sentences')
    subject, object_ = row["template"].find("[X]"), row["template"].find("[Y]")
    if not 0 <= subject < object_:
        raise InputError(f'{where}: the template {row["template"][:80]!r} must hold "[X]" and, after it, "[Y]"')
    values = {name: clean_text(str(row.get(name) or "")) for name in _FIELDS}
    return Fact(**values, evidence=tuple(map(clean_text, evidence)))


def _of_lama(raw: dict[str, Any], relations: Mapping[str, _Relation]) -> dict[str, Any]:
    predicate = str(raw.get("predicate_id") or raw.get("pred") or "")
    known = relations.get(predicate, _Relation(predicate, predicate, ""))
    masked = [raw.get("masked_sentence"), *(raw.get("masked_sentences") or [])]
    masked += [evidence.get("masked_sentence") for evidence in raw.get("evidences") or []]
    return {
        "uuid": raw.get("uuid"),
        "subject": raw["sub_label"],
        "predicate": raw.get("label") or known.label,
        "object": raw["obj_label"],
        "template": raw.get("template") or known.template,
        "evidence": [text for text in masked if text],
    }


def _of_counterfact(raw: dict[str, Any], relations: Mapping[str, _Relation]) -> dict[str, Any]:
    rewrite = raw["requested_rewrite"]
    return {
        "uuid": f"counterfact-{raw.get('case_id')}",
        "subject": rewrite["subject"],
        "predicate": rewrite["relation_id"],
        "object": rewrite["target_true"]["str"],
        "template": f"{rewrite['prompt'].replace('{}', '[X]')} [Y]",
    }


def _of_counterfact_flat(raw: dict[str, Any], relations: Mapping[str, _Relation]) -> dict[str, Any]:
    return {
        "subject": raw["subject"],
        "predicate": raw.get("relation_id") or raw.get("relation"),
        "object": raw["target_true"].strip(),
        "template": f"{raw['prompt'].replace(raw['subject'], '[X]')} [Y]",
    }


def _of_popqa(raw: dict[str, Any], relations: Mapping[str, _Relation]) -> dict[str, Any]:
    return {
        "uuid": f"popqa-{raw.get('id')}",
        "subject": raw["subj"],
        "predicate": raw["prop"],
        "object": raw["obj"],
        "template": f"Q: {raw['question'].replace(raw['subj'], '[X]')} A: [Y]",
    }


_SHAPES: tuple[tuple[set[str], Callable[[dict[str, Any], Mapping[str, _Relation]], dict[str, Any]]], ...] = (
    ({"requested_rewrite"}, _of_counterfact),
    ({"prompt", "subject", "target_true", "target_false"}, _of_counterfact_flat),
    ({"subj", "prop", "obj", "question"}, _of_popqa),
    ({"sub_label", "obj_label"}, _of_lama),
)
"""Keys that identify the rows of a collection, and the function that turns such a row into one of memscope."""
