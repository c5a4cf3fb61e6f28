"""Loss, bits per byte and the generation check against loops."""

import math

import numpy as np
import pytest
import torch

from memscope.base.errors import InputError
from memscope.run.checkpoint import LoadedRun
from memscope.text.corpus import PackedCorpus
from memscope.train.evaluate import _distinct, check_generation, evaluate


def naive_losses(run: LoadedRun, corpus: PackedCorpus, max_tokens: int) -> list[tuple[int, float]]:
    """(target, loss) of every predicted token of the first ``max_tokens``, one prefix of a window at a time."""
    found = []
    for start, stop in zip(corpus.starts[:-1], corpus.starts[1:], strict=True):
        for at in range(start, min(stop - 1, max_tokens)):
            window = start + (at - start) // 64 * 64
            prefix = torch.from_numpy(corpus.tokens[window : at + 1].astype(np.int64))[None]
            with torch.no_grad():
                log_probabilities = run.model(prefix)[0, -1].log_softmax(-1)
            target = int(corpus.tokens[at + 1])
            found.append((target, -float(log_probabilities[target])))
    return found


@pytest.mark.slow
def test_loss_and_bits_per_byte_equal_a_loop_over_tokens(tiny_run: LoadedRun, tiny_corpus: PackedCorpus) -> None:
    max_tokens = int(tiny_corpus.starts[1]) + 70  # a whole document, and two windows of the next
    result, usage = evaluate(tiny_run.model, tiny_corpus, tiny_run.tokenizer, max_tokens, "float32")
    losses = naive_losses(tiny_run, tiny_corpus, max_tokens)
    mean = sum(loss for _, loss in losses) / len(losses)
    n_bytes = sum(len(tiny_run.tokenizer.decode([target]).encode()) for target, _ in losses if target > 2)
    assert result.tokens == len(losses)
    assert result.loss == pytest.approx(mean, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(mean), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(mean * len(losses) / math.log(2) / n_bytes, rel=1e-5)
    assert usage.count.sum(1).tolist() == [max_tokens * 4] * 2  # k = 4 selections a token in each layer


def test_a_model_that_knows_nothing_has_the_loss_of_the_vocabulary(
    tiny_run: LoadedRun, tiny_corpus: PackedCorpus
) -> None:
    class Even(type(tiny_run.model)):
        def unembed(self, resid: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*resid.shape[:-1], 320)

    result, _ = evaluate(Even(tiny_run.config), tiny_corpus, tiny_run.tokenizer, None, "float32")
    assert result.perplexity == pytest.approx(320, rel=1e-5)
    n_bytes = tiny_run.tokenizer.token_bytes[tiny_corpus.tokens].sum()
    assert result.bits_per_byte == pytest.approx(result.tokens * math.log2(320) / n_bytes)


def test_a_baseline_is_evaluated_without_usage(ffn_run: LoadedRun, tiny_corpus: PackedCorpus) -> None:
    result, usage = evaluate(ffn_run.model, tiny_corpus, ffn_run.tokenizer, 200, "float32")
    assert usage is None
    assert 0 < result.loss < 7


def test_a_corpus_with_nothing_to_predict_is_refused(tiny_run: LoadedRun) -> None:
    corpus = PackedCorpus(np.array([1, 2], np.uint16), np.array([0, 1, 2]), ["", ""], "corpus.jsonl", "")
    with pytest.raises(InputError, match="nothing to predict"):
        evaluate(tiny_run.model, corpus, tiny_run.tokenizer, None, "float32")


def test_generation_check_reports_the_loss_of_the_true_continuation(
    tiny_run: LoadedRun, tiny_corpus: PackedCorpus
) -> None:
    check, texts = check_generation(
        tiny_run.model, tiny_corpus, tiny_run.tokenizer, "float32", samples=2, prompt_tokens=10, new_tokens=20
    )
    losses = []
    for start in tiny_corpus.starts[:2]:
        tokens = torch.from_numpy(tiny_corpus.tokens[start : start + 30].astype(np.int64))
        log_probabilities = tiny_run.model(tokens[None])[0].log_softmax(-1).detach()
        losses += [-float(log_probabilities[at - 1, tokens[at]]) for at in range(10, 30)]
    assert check.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert check.samples == len(texts) == 2
    for (prompt, _), start in zip(texts, tiny_corpus.starts, strict=False):
        assert prompt == tiny_run.tokenizer.decode(tiny_corpus.tokens[start + 1 : start + 10].tolist())


def test_generation_check_is_reproducible_and_its_shares_lie_between_0_and_1(
    tiny_run: LoadedRun, tiny_corpus: PackedCorpus
) -> None:
    def check(seed: int) -> tuple[dict[str, float], list[tuple[str, str]]]:
        sizes = {"samples": 3, "prompt_tokens": 8, "new_tokens": 12, "seed": seed}
        result, texts = check_generation(tiny_run.model, tiny_corpus, tiny_run.tokenizer, "float32", **sizes)
        return result.as_dict(), texts

    values, texts = check(0)
    assert (values, texts) == check(0)
    assert texts != check(1)[1]
    assert values["completion_rate"] == 1  # every sample ends itself or has the asked length
    assert 0 < values["mean_length"] <= 12
    for name in ("eos_rate", "distinct_1", "distinct_2", "repetition"):
        assert 0 <= values[name] <= 1


def test_documents_too_short_for_the_check_are_refused(tiny_run: LoadedRun) -> None:
    corpus = PackedCorpus(np.ones(40, np.uint16), np.array([0, 20, 40]), ["", ""], "corpus.jsonl", "")
    with pytest.raises(InputError, match="no document has 30 tokens"):
        check_generation(tiny_run.model, corpus, tiny_run.tokenizer, "float32", prompt_tokens=10, new_tokens=20)


def test_the_check_is_cut_to_a_short_window(tiny_run: LoadedRun, tiny_corpus: PackedCorpus) -> None:
    # max_seq_len is 64, the experiment's check has 100 tokens in and 100 out
    check, [(prompt, _), *_] = check_generation(tiny_run.model, tiny_corpus, tiny_run.tokenizer, "float32", samples=1)
    assert prompt == tiny_run.tokenizer.decode(tiny_corpus.tokens[1:32].tolist())
    assert check.mean_length <= 32


@pytest.mark.parametrize(
    ("bodies", "n", "expected"),
    [
        ([[1, 2, 3, 4]], 1, 1.0),
        ([[1, 1, 1, 1]], 1, 0.25),
        ([[1, 2, 1, 2]], 2, 2 / 3),  # 12 21 12
        ([[1, 2], [1, 2]], 2, 0.5),  # over all samples together
        ([[1, 2, 3], [4]], 2, 1.0),  # 12 23, and none in the second
        ([[7]], 4, 1.0),
        ([[]], 1, 1.0),
    ],
)
def test_distinct_n_on_hand_made_samples(bodies: list[list[int]], n: int, expected: float) -> None:
    assert _distinct(bodies, n) == pytest.approx(expected)
