"""What the tokenizer of another program's model puts around a text.

Documents of memscope's own runs are ``bos`` + text + ``eos``. Other models were trained with what their post-processor
says: Llama 3, DeepSeek and Gemma open a text with bos and close it with nothing, Granite and Qwen do neither.
Recordings keep this beside the roles of tokens, in ``tokenizer_config.json``.
"""

from pathlib import Path
from typing import NamedTuple

import tokenizers
from pydantic import BaseModel, Field, ValidationError

from memscope.base.errors import InputError
from memscope.base.files import read_json
from memscope.text.special_tokens import ROLES_FILE
from memscope.text.tokenizer_file import rust_errors

_WORDS = ("a", "1", "the", "A")


class Frame(NamedTuple):
    """Ids around every text."""

    opening: list[int]
    closing: list[int]
    ids: int
    """Token ids that the model knows, at least."""


class _Saved(BaseModel):
    opening: list[int] = Field(max_length=64)
    closing: list[int] = Field(max_length=64)
    ids: int = Field(ge=1, le=2**31)


def find_frame(backend: tokenizers.Tokenizer, source: str, ids: int) -> Frame:
    """What a tokenizer's post-processor puts around a word.

    Raises:
        InputError: it encodes no word, or changes it.
    """
    backend.no_truncation()
    backend.no_padding()
    with rust_errors(f"{source}: its tokenizer cannot encode a word"):
        for word in _WORDS:
            plain, full = (backend.encode(word, add_special_tokens=special).ids for special in (False, True))
            for at in range(len(full) - len(plain) + 1):
                if plain and full[at : at + len(plain)] == plain:
                    return Frame(full[:at], full[at + len(plain) :], ids)
    raise InputError(f"{source}: what its tokenizer puts around a text is not clear; {_WORDS[0]!r} has no tokens in it")


def read_frame(folder: Path) -> Frame | None:
    """The frame that was saved with a tokenizer; none where documents stand between bos and eos.

    Raises:
        InputError: the file cannot be read, or is not as it was written.
    """
    path = folder / ROLES_FILE
    saved = read_json(path) if path.is_file() else {}
    if not isinstance(saved, dict) or "opening" not in saved:
        return None
    try:
        return Frame(**_Saved.model_validate(saved).model_dump())
    except ValidationError as error:
        raise InputError(f"{path}: opening, closing and ids are not numbers of tokens; record again") from error
