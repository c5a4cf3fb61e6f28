"""Reading a ``tokenizer.json``: whatever the library behind it does with a bad one, the answer is one line."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import tokenizers

from memscope.base.errors import InputError


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        InputError: no such file, or one that the library cannot read or use, whether it raises, panics or aborts.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such tokenizer file; leave tokenizer_path empty to train one")
    _check_merges(path)
    with rust_errors(f"{path}: not a tokenizer.json"), silent_panics():
        backend = tokenizers.Tokenizer.from_file(str(path))
        with suppress(Exception):  # some files panic only when they are used, which is no Exception
            backend.decode(backend.encode("A word, 1.", add_special_tokens=False).ids)
    return backend


def _check_merges(path: Path) -> None:
    """Refuse merges whose second token is cut inside a character: the library aborts the interpreter over them."""
    try:
        model = json.loads(path.read_bytes())["model"]
        cut = len(model["continuing_subword_prefix"].encode())
        seconds = [merge.split(" ")[-1] if isinstance(merge, str) else merge[1] for merge in model["merges"]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # no such prefix, or a file that the library refuses by itself
    for token in seconds:
        if isinstance(token, str) and any(
            byte & 0xC0 == 0x80 for byte in token.encode("utf-8", "replace")[cut : cut + 1]
        ):
            raise InputError(f"{path}: not a tokenizer.json (continuing_subword_prefix cuts a character of {token!r})")


@contextmanager
def rust_errors(message: str) -> Iterator[None]:
    """Turn errors of the Rust side into ``InputError``: Exception for any bad input, BaseException for a panic."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise InputError(f"{message} ({error})") from error
        raise


@contextmanager
def silent_panics() -> Iterator[None]:
    """Keep the output of a panic off the standard error of this process; for short calls."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
