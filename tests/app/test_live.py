"""Text that a reader types, read by the recorded models of other programs."""

import json
from pathlib import Path

import pytest

from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.load import open_subject
from memscope.run.adapters.neurons import run_neurons
from tests.app import test_kinds
from tests.app.open_page import open_page
from tests.app.test_causal import compared
from tests.app.test_kinds import said, spoken
from tests.conftest import tiny_config, untrained_run
from tests.kinds import FORBIDDEN
from tests.run.adapters.families import make_model, make_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings "tiny" of the experts of a Hugging Face folder, and "neurons" of an FFN baseline."""
    root = tmp_path_factory.mktemp("live")
    make_model("olmoe").save_pretrained(root / "olmoe")  # type: ignore[operator]
    make_tokenizer().save_pretrained(root / "olmoe")
    lines = [json.dumps({"text": " ".join(f"w{3 + (7 * i + doc) % 300}" for i in range(60))}) for doc in range(12)]
    (root / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    record(open_subject(root / "olmoe"), root / "corpus.jsonl", root / "recordings" / "tiny", RecordOptions())
    run = untrained_run(tiny_config(corpus_dir, model={"block": "ffn"}), root / "ffn")
    record(run_neurons(run, 4), corpus_dir / "valid.jsonl", root / "recordings" / "neurons", RecordOptions())
    return root


@pytest.fixture(autouse=True)
def _open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSCOPE_RECORDINGS", str(folder / "recordings"))


def test_a_typed_text_is_read_by_a_hugging_face_model() -> None:
    page = open_page("prompts", source="your text", text="w5 w6 w7", token=2)
    assert not page.exception
    assert not page.warning, [warning.value for warning in page.warning]
    assert list(page.dataframe[0].value) == ["next token", "probability"]
    assert len(page.dataframe[0].value) == 5


TEXTS = {"tiny": " ".join(f"w{3 + 7 * i % 300}" for i in range(40)), "neurons": "Ada Holm was born in Aston ."}


@pytest.mark.parametrize(
    ("recording", "change", "entries", "more"),
    [
        ("tiny", "ablate", "layer 0, expert 1, layer 1, expert 2", {}),
        ("tiny", "zero", "9", {}),
        ("tiny", "force", "layer 1, expert 3", {"amount": "0.75"}),
        ("tiny", "swap", "layer 1, expert 3; layer 1, expert 4", {}),
        ("tiny", "scale", "", {"amount": "0", "layers": "1"}),
        ("neurons", "ablate", "{e}", {}),
        ("neurons", "force", "{e}", {"amount": "3"}),
        ("neurons", "swap", "{e} {f}", {}),
        ("neurons", "scale", "", {"amount": "0"}),
    ],
)
def test_every_change_of_experts_and_neurons_is_shown(
    folder: Path, recording: str, change: str, entries: str, more: dict[str, str]
) -> None:
    best = Recording(folder / "recordings" / recording).entries(sort="count", limit=1)["entry"].iloc[0]
    named = {"entries": entries.format(e=best, f=best + 1 if best % 2 == 0 else best - 1)} if entries else {}
    test = test_kinds.open_page("what_if", recording, change=change, text=TEXTS[recording], **named, **more)
    assert not test.exception
    assert not test.warning, [code.value for code in test.code]
    assert compared(test)["kl"].max() > 0
    assert not spoken(said(test), tuple(set(FORBIDDEN) - {"nan"}))


def test_recorded_text_that_changes_is_listed(folder: Path) -> None:
    test = test_kinds.open_page("what_if", "tiny", entries="layer 1, expert 2", text=TEXTS["tiny"])
    test.toggle(key="what_if.contexts").set_value(True).run()
    assert not test.exception
    assert test.dataframe[-1].value["kl"].iloc[0] > 0
    assert not spoken(said(test), tuple(set(FORBIDDEN) - {"nan"}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"entries": "layer 1, expert 99"}, "layer 1 has no expert 99"),
        ({"entries": "9999"}, "there is no expert 9999"),
        ({"entries": "0 9", "change": "swap"}, "choose experts of one layer"),
        ({"entries": "0", "layers": "1"}, "layer 1 cannot select layer 0, expert 0"),
    ],
)
def test_a_change_that_cannot_be_made_is_said_in_the_words_of_experts(values: dict[str, str], message: str) -> None:
    test = test_kinds.open_page("what_if", "tiny", text=TEXTS["tiny"], **values)
    assert not test.exception
    assert message in test.code[0].value


def test_a_model_that_is_gone_is_named(folder: Path) -> None:
    weights = folder / "olmoe" / "model.safetensors"
    weights.rename(weights.with_suffix(".away"))
    try:
        page = open_page("prompts", source="your text", text="w5 w6 w9", token=2)
    finally:
        weights.with_suffix(".away").rename(weights)
    assert not page.exception
    assert "the recorded model is missing" in page.code[0].value
