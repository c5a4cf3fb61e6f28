"""Every config key has a use: a preset sets it, or a page of the docs shows what it is good for."""

import re
from pathlib import Path

import pytest
import yaml

from memscope.config.load import SECTIONS

ROOT = Path(__file__).parents[2]
KEPT = {
    "model.bigram_rows": "docs/log/bigram-table.md#does-a-table-of-hashed-bigrams-do-as-well-as-the-memory",
    "memory.entry_dtype": "docs/log/entries-in-bfloat16.md#can-entries-be-kept-in-bfloat16",
    "memory.bank_groups": "docs/reference/bank.md#groups",
    "data.tokenizer_path": "docs/log/sentence-initialisation.md#does-it-help-to-start-entries-from-sentences",
    "data.bos_token": "docs/reference/files.md#a-run-memscope-train",
    "data.eos_token": "docs/reference/files.md#a-run-memscope-train",
    "data.pad_token": "docs/reference/files.md#a-run-memscope-train",
    "data.cache_dir": "docs/reference/training.md#going-on",
    "train.gradient_checkpointing": "docs/reference/training.md#less-memory-more-time",
    "train.compile": "docs/log/compiled-training.md#does-torchcompile-make-a-step-faster",
    "train.revive_after": "docs/log/new-starts.md#do-entries-that-follow-their-readers-or-that-start-again-help",
    "train.seed": "docs/log/sentence-initialisation.md#does-it-help-to-start-entries-from-sentences",
}
"""Keys that no preset sets, and the section of the docs that shows what they are worth or needed for."""

KEYS = {f"{section}.{key}" for section, cls in SECTIONS.items() for key in cls.model_fields}
PRESETS = {
    f"{section}.{key}"
    for path in (ROOT / "memscope" / "presets").glob("*.yaml")
    for section, values in yaml.safe_load(path.read_text()).items()
    for key in values
}


def section_of(page: str, anchor: str) -> str:
    """The text under the heading of this anchor, up to the next heading of its level or above."""
    text: list[str] = []
    level = 0
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        heading = re.match(r"(#+) (.*)", line)
        if heading and level and len(heading[1]) <= level:
            break
        if heading and re.sub(r"[^\w\- ]", "", heading[2]).lower().replace(" ", "-") == anchor:
            level = len(heading[1])
        if level:
            text.append(line)
    return "\n".join(text)


def test_every_key_is_set_by_a_preset_or_kept_for_a_reason() -> None:
    assert len(PRESETS) > 30
    assert KEPT.keys() == KEYS - PRESETS


@pytest.mark.parametrize(("key", "place"), KEPT.items())
def test_the_docs_show_what_a_kept_key_is_good_for(key: str, place: str) -> None:
    page, _, anchor = place.partition("#")
    text = section_of(page, anchor)
    assert text, f"{page} has no heading #{anchor}"
    assert re.search(rf"\b{key.partition('.')[2]}\b", text), f"{place} does not name {key}"
