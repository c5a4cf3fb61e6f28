"""Shared fixtures: a small corpus, a run trained on it and a recording of it, made once per test session."""

import json
import random
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from memscope.checkpoint import LoadedRun, load_run
from memscope.config import Config, validate_config
from memscope.query import Recording
from memscope.record import record
from memscope.train import train

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

HOSTILE = (
    "The <script>window.hacked = true</script> tag and <img src=x onerror='window.hacked = true'> are text here. "
    "So are **bold**, `code`, $x^2$, [a link](javascript:alert(1)) and =HYPERLINK(1). "
)
"""Text that must never be interpreted: in a document, a sentence and a title."""

_PEOPLE = ["Ada Holm", "Bo Lind", "Cora Wells", "Dan Frost", "Eva Stone", "Finn Hale"]
_TOWNS = ["Aston", "Berrow", "Calder", "Dunmore", "Elham", "Farley"]
_WORK = ["a painter", "an engineer", "a physician", "a composer", "a farmer", "a printer"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no shared data at {SHARED}"))


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps its settings in a singleton; every test starts without one."""
    AcceleratorState._reset_state(True)


def make_sentences(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    patterns = ["{p} was born in {t} .", "{p} works as {w} in {t} .", "The town of {t} is known for {p} , {w} ."]
    return [
        chance.choice(patterns).format(p=chance.choice(_PEOPLE), t=chance.choice(_TOWNS), w=chance.choice(_WORK))
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl (40 documents), valid.jsonl (6, the first with hostile text) and sentences.json (T-REx shape)."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, documents, seed in (("train", 40, 1), ("valid", 6, 2)):
        lines = []
        for number in range(documents):
            text = " ".join(make_sentences(12, seed * 1000 + number))
            title = f"Article {number}"
            if number == 0:
                text, title = HOSTILE + text, "<b>Hostile</b>"
            lines.append(json.dumps({"text": text, "title": title}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    rows = [
        {"sentence": text, "uuid": f"u{n}", "subject": "Ada Holm", "predicate": "place of birth", "object": "Aston"}
        for n, text in enumerate([HOSTILE.strip(), *dict.fromkeys(make_sentences(60, 3))])
    ]
    (folder / "sentences.json").write_text(json.dumps([{"target": [row]} for row in rows]))
    return folder


def tiny_config(corpus_dir: Path, **sections: dict[str, object]) -> Config:
    """A config that trains in seconds; keyword arguments override values by section."""
    raw: dict[str, dict[str, object]] = {
        "model": {
            "vocab_size": 320,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "max_seq_len": 64,
        },
        "memory": {
            "knowledge_num": 64,
            "knowledge_dim": 16,
            "num_selected": 4,
            "gate": "product",
            "database_init_path": str(corpus_dir / "sentences.json"),
        },
        "data": {
            "train_path": str(corpus_dir / "train.jsonl"),
            "valid_path": str(corpus_dir / "valid.jsonl"),
            "cache_dir": str(corpus_dir / "cache"),
        },
        "train": {
            "steps": 20,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "dtype": "float32",
            "eval_interval": 10,
            "save_interval": 10,
            "log_interval": 5,
            "eval_tokens": 1024,
            "tracker": "none",
        },
    }
    for section, values in sections.items():
        raw[section] |= values
    return validate_config(raw, source="tiny_config")


@pytest.fixture(scope="session")
def tiny_run_path(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_config(corpus_dir), run, device="cpu")
    return run


@pytest.fixture(scope="session")
def tiny_run(tiny_run_path: Path) -> LoadedRun:
    return load_run(tiny_run_path)


@pytest.fixture(scope="session")
def tiny_recording_path(tiny_run: LoadedRun, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "tiny"
    record(tiny_run, corpus_dir / "valid.jsonl", path, part_tokens=500)
    return path


@pytest.fixture(scope="session")
def tiny_recording(tiny_recording_path: Path) -> Recording:
    return Recording(tiny_recording_path)
