"""Find the tokens that open, close and pad documents: named by the config, by a file beside the tokenizer, or known.

    find_roles(backend, "llama/tokenizer.json", Path("llama"))   # Roles(bos="<s>", eos="</s>", pad=None, unk="<unk>")

Hugging Face keeps them in ``tokenizer_config.json`` (older: ``special_tokens_map.json``), as ``bos_token`` and so on; a
null there means that the tokenizer has no such token. Runs and recordings keep these names in the same file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from memscope.base.errors import InputError
from memscope.base.files import read_json

ROLES_FILE = "tokenizer_config.json"
_FILES = (ROLES_FILE, "special_tokens_map.json")
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""pad, bos, eos of MiniMind and of tokenizers trained here: ids 0, 1 and 2. In other tokenizers the last two mark turns
of a chat, not documents."""


class Roles(NamedTuple):
    """Names of special tokens; none where a tokenizer has no such token."""

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None


KNOWN = {
    "bos": (
        *("<s>", "<bos>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<|startoftext|>", "<BOS_TOKEN>", "[BOS]"),
        "[CLS]",
    ),
    "eos": (
        *(
            "</s>",
            "<eos>",
            "<|end_of_text|>",
            "<｜end▁of▁sentence｜>",
            "<|endoftext|>",
            "<EOS_TOKEN>",
            "[EOS]",
            "[SEP]",
        ),
        *("<EOT>", "<|im_end|>"),
    ),
    "pad": ("<pad>", "<|pad|>", "<|padding|>", "<｜▁pad▁｜>", "<|finetune_right_pad_id|>", "<PAD>", "[PAD]"),
}
"""Names by role, the most telling first: SentencePiece, Gemma, Llama 3 and Granite, DeepSeek, GPT-2, Cohere, BERT."""
EARLIER = {
    "bos": ("<|im_start|>", "<s>", "[CLS]", "<|endoftext|>"),
    "eos": ("<|im_end|>", "</s>", "[SEP]", "<|endoftext|>"),
    "pad": ("<|endoftext|>", "<pad>", "[PAD]", "<unk>"),
}
"""The names that runs without a file of roles were trained with."""
_KEYS = {"bos": ("bos_token", "cls_token"), "eos": ("eos_token", "sep_token"), "pad": ("pad_token",)}


def find_roles(
    backend: tokenizers.Tokenizer,
    source: str,
    folder: Path | None = None,
    asked: Roles | None = None,
    known: Mapping[str, tuple[str, ...]] = KNOWN,
) -> Roles:
    """The special tokens of a tokenizer; the unknown token is its model's own.

    Args:
        backend: the tokenizer.
        source: its file, for messages.
        folder: where files that name special tokens may be.
        asked: names that override those of files; an empty one means that there is no such token.
        known: names to look for where neither ``asked`` nor a file names one.

    Raises:
        InputError: a file cannot be read, or a named token is not in the vocabulary.
    """
    files = [folder / name for name in _FILES if folder and (folder / name).is_file()]
    named = [(file, _read_names(file)) for file in files]
    roles: dict[str, str | None] = {}
    for role, keys in _KEYS.items():
        asks: str | None = getattr(asked or Roles(), role)
        candidates = [(names[key], f"{key} of {file}") for file, names in named for key in keys if names.get(key)]
        if asks is not None:
            name, where = asks or None, f"{keys[0]} of the config"
        elif candidates:
            name, where = candidates[0]
        else:
            silent = any(keys[0] in names for _, names in named)
            name, where = None if silent else _first(backend, role, known), ""
        if name and backend.token_to_id(name) is None:
            raise InputError(f"{source}: has no token {name!r}, the {where}; name another one with {keys[0]}")
        roles[role] = name
    return Roles(**roles, unk=find_unknown(backend))


def described(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """The content of ``tokenizer.json``, parsed."""
    values: dict[str, Any] = json.loads(backend.to_str())
    return values


def _read_names(file: Path) -> dict[str, str | None]:
    """Names by key; a token may be an object with its name as ``content``."""
    names: dict[str, str | None] = {}
    read = read_json(file)
    if not isinstance(read, dict):
        raise InputError(f"{file}: an object with bos_token, eos_token and so on was expected")
    for key in sum(_KEYS.values(), ()):
        if key in read:
            value = read[key]
            names[key] = name = value.get("content") if isinstance(value, dict) else value
            if name is not None and not isinstance(name, str):
                raise InputError(f"{file}: {key} is no name of a token")
    return names


def _first(backend: tokenizers.Tokenizer, role: str, known: Mapping[str, tuple[str, ...]]) -> str | None:
    if [backend.id_to_token(i) for i in range(3)] == list(SPECIAL_TOKENS):
        return dict(zip(("pad", "bos", "eos"), SPECIAL_TOKENS, strict=True))[role]
    return next((name for name in known[role] if backend.token_to_id(name) is not None), None)


def find_unknown(backend: tokenizers.Tokenizer) -> str | None:
    """Name of the unknown token of a tokenizer's model; none if it has no such token."""
    model = described(backend)["model"]
    name = model.get("unk_token")
    if name is None and model.get("unk_id") is not None:
        name = model["vocab"][model["unk_id"]][0]
    return name if name and backend.token_to_id(name) is not None else None
