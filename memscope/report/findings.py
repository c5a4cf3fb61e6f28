"""Questions about a recording and their answers in words, each with its numbers: the report and the app open with them.

    for finding in find(Recording("recordings/demo")):
        print(finding.question, finding.short, finding.answer)

A word like "yes" stands only where the numbers show it: even selection lies outside of the 95% interval, or a discovery
after correction for all tests.
"""

from collections.abc import Callable
from typing import NamedTuple

from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import Has
from memscope.report.bank_findings import certainty, drift, layers, reading
from memscope.report.gate_findings import choice, dependence, evenness, preferences
from memscope.report.words import Reply


class Question(NamedTuple):
    """A standing question about what selects."""

    text: str
    """With ``{selector}``, ``{words}`` and ``{reader}`` for what selects, what it selects and what reads that."""
    reply: Callable[[Recording], Reply]
    needs: Has | None = None
    """What a recording must have for it to be asked."""
    elsewhere: str = ""
    """The question where it is another one than that of a memory."""

    def asked(self, info: RecordingInfo) -> str:
        """The question in the words of what selects."""
        text = self.text if info.kind == "memory" else self.elsewhere or self.text
        return text.format(selector=info.selector, words=info.word(2), reader=info.reader)


QUESTIONS = (
    Question("Is the {selector} biased?", evenness),
    Question("How much of the choice is the {selector}'s?", choice, "margin"),
    Question("Toward what is it biased?", preferences, "starts"),
    Question("What does the choice of {words} go by?", dependence),
    Question("How sure are these numbers?", certainty),
    Question("Does each layer use the bank differently?", layers, elsewhere="Do layers use different {words}?"),
    Question(
        "Does the attention read what the gate selects?",
        reading,
        "reads",
        elsewhere="Does the {reader} follow what the {selector} weighs?",
    ),
    Question("How far have entries drifted from their sentences?", drift, "drift"),
)
"""The standing questions, most important first."""


class Finding(NamedTuple):
    """A question with its answer."""

    question: str
    short: str
    """The answer in one sentence."""
    answer: str
    """The numbers behind it, with the number of selections D that they are over."""
    found: bool = True
    """Whether there is anything to tell; a page folds what stands behind an answer that found nothing."""

    def in_words(self) -> dict[str, str]:
        """Question and answers alone, as files for machines have them."""
        return {"question": self.question, "short": self.short, "answer": self.answer}


def find(recording: Recording) -> list[Finding]:
    """Answers to the standing questions that a recording can answer."""
    asked = [question for question in QUESTIONS if question.needs is None or recording.info.has(question.needs)]
    return [Finding(question.asked(recording.info), *question.reply(recording)) for question in asked]
