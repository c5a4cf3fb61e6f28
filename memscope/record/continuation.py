"""Let a model go on from a text, and see the entries that fire for every token that it writes.

    sampling = Sampling(new_tokens=20, temperature=0.8, seed=1)
    for token in continue_ids(subject, prompt, sampling): ...     # one token at a time
    continued = continue_text(subject, "Ayn Rand was", sampling)  # all of them, and the trace of the whole text

Open an intervention around either, and it holds while the model writes.
"""

from collections.abc import Iterator, Sequence

import torch

from memscope.base.errors import InputError
from memscope.record.trace import text_ids, trace_ids
from memscope.record.traced import Continued, Sampling
from memscope.run.generate import sample
from memscope.run.subject import Subject, evaluating


def continue_ids(subject: Subject, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
    """Token ids that continue a prompt, one at a time, each from a pass over all before it.

    Raises:
        InputError: prompt and continuation do not fit into the model's window, or the temperature is below 0.
    """
    check_sampling(subject, prompt, sampling)
    device = next(subject.model.parameters()).device

    def logits(tokens: list[int]) -> torch.Tensor:
        ids = torch.tensor([tokens], device=device)
        with evaluating(subject.model):
            return subject.logits(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]

    return sample(logits, prompt, sampling.new_tokens, subject.tokenizer.eos, sampling.temperature, sampling.seed)


def check_sampling(subject: Subject, prompt: Sequence[int], sampling: Sampling) -> None:
    """Check that a prompt can be continued; raises as ``continue_ids``."""
    if sampling.temperature < 0:
        raise InputError(f"a temperature of {sampling.temperature:g}; give 0 or more")
    if len(prompt) + sampling.new_tokens > subject.window:
        asked = f"{len(prompt)} prompt + {sampling.new_tokens} new tokens"
        raise InputError(f"{asked} exceed the {subject.window} that the model reads at once; ask for fewer")


def continue_text(subject: Subject, text: str, sampling: Sampling) -> Continued:
    """Continue a text and trace all of it; raises as ``continue_ids``."""
    prompt = text_ids(subject.tokenizer, text)
    return Continued(trace_ids(subject, [*prompt, *continue_ids(subject, prompt, sampling)]), len(prompt))
