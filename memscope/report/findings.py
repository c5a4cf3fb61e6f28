"""Questions about a recording and their answers in words, each with its numbers: the report and the app open with them.

    for finding in find(Recording("recordings/demo")):
        print(finding.question, finding.short, finding.answer)

A word like "yes" stands only where the numbers show it: even selection lies outside of the 95% interval, or a discovery
after correction for all tests.
"""

from collections.abc import Callable
from typing import NamedTuple

from memscope.query.recording import Recording
from memscope.report.bank_findings import certainty, drift, layers, reading
from memscope.report.gate_findings import choice, dependence, evenness, preferences
from memscope.report.words import Reply

QUESTIONS: dict[str, Callable[[Recording], Reply]] = {
    "Is the gate biased?": evenness,
    "How much of the choice is the gate's?": choice,
    "Toward what is it biased?": preferences,
    "What does the choice of entries go by?": dependence,
    "How sure are these numbers?": certainty,
    "Does each layer use the bank differently?": layers,
    "Does the attention read what the gate selects?": reading,
    "How far have entries drifted from their sentences?": drift,
}
"""The standing questions about a memory, most important first."""


class Finding(NamedTuple):
    """A question with its answer."""

    question: str
    short: str
    """The answer in one sentence."""
    answer: str
    """The numbers behind it, with the number of selections D that they are over."""


def find(recording: Recording) -> list[Finding]:
    """Answers to the standing questions about a memory."""
    return [Finding(question, *reply(recording)) for question, reply in QUESTIONS.items()]
