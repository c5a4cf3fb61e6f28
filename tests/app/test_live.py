"""Text that a reader types, read by the recorded models of other programs."""

import json
from pathlib import Path

import pytest

from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.load import open_subject
from tests.app.test_pages import open_page
from tests.run.adapters.families import make_model, make_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording "tiny" of the experts of a Hugging Face folder."""
    root = tmp_path_factory.mktemp("live")
    make_model("olmoe").save_pretrained(root / "olmoe")  # type: ignore[operator]
    make_tokenizer().save_pretrained(root / "olmoe")
    lines = [json.dumps({"text": " ".join(f"w{3 + (7 * i + doc) % 300}" for i in range(60))}) for doc in range(12)]
    (root / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    record(open_subject(root / "olmoe"), root / "corpus.jsonl", root / "recordings" / "tiny", RecordOptions())
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


def test_a_model_that_is_gone_is_named(folder: Path) -> None:
    weights = folder / "olmoe" / "model.safetensors"
    weights.rename(weights.with_suffix(".away"))
    try:
        page = open_page("prompts", source="your text", text="w5 w6 w9", token=2)
    finally:
        weights.with_suffix(".away").rename(weights)
    assert not page.exception
    assert "the recorded run is missing" in page.code[0].value
