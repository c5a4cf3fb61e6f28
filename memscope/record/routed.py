"""Recordings of experts that an inference server returned: models that do not fit here, without scores and losses.

    memscope import vllm routed.jsonl --tokenizer models/Qwen3-30B-A3B --out recordings/qwen3

vLLM returns the experts of every token (``--enable-return-routed-experts``, and ``return_token_ids`` in the request).
A row of a file is a response of ``/v1/completions`` or ``/v1/chat/completions``, or an object of the same fields:

    token_ids         ids of the answer, or of all tokens
    prompt_token_ids  ids before them; may be missing
    routed_experts    [token, layer, K] numbers from 0 on, as lists or as the base64 text of a ``.npy`` file

The last token of an answer has not been read by the model, so it has no experts, and it is left out. Layers without
experts have zeros alone; they are left out too.
"""

import base64
import binascii
import hashlib
import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from memscope.base.errors import InputError
from memscope.base.files import read_json, sha256_file
from memscope.record.loop import finish, write_copies, write_documents
from memscope.recording.info import INFO, RecordingInfo, read_info, write_info
from memscope.recording.parts import write_part
from memscope.recording.sites import Site
from memscope.recording.token_rows import NONE, TokenRows
from memscope.run.adapters.modules import ModuleSubject
from memscope.text.corpus import DocumentWindow, PackedCorpus
from memscope.text.inputs import read_rows
from memscope.text.tokenizer import Tokenizer

_PART_TOKENS = 32768
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Keys of a model's ``config.json`` with its number of experts."""


class _Answer(NamedTuple):
    """One sequence of tokens with their experts."""

    title: str
    tokens: np.ndarray
    """Ids, uint32 ``[token]``."""
    experts: np.ndarray
    """Integers ``[token, layer, K]``."""
    where: str


class _Scanned(NamedTuple):
    """What a first look at all files tells."""

    titles: list[str]
    lengths: list[int]
    layers: np.ndarray
    """Layers with experts."""
    selected: int
    largest: int
    """Largest expert number."""


def import_routed(files: Sequence[Path], tokenizer: Path, recording: Path, experts: int | None = None) -> RecordingInfo:
    """Make a recording of the experts that a server returned; one file is read after the other, twice.

    Args:
        files: JSON lines or Parquet.
        tokenizer: folder of the model, with its ``tokenizer.json``.
        recording: folder to write.
        experts: experts of a layer (N); by default what ``config.json`` beside the tokenizer says.

    Raises:
        InputError: a file or row is not of the expected form, the number of experts is not known, or the folder holds
            a recording.
    """
    if (recording / INFO).is_file():
        raise InputError(f"{recording}: holds a recording already; choose another --out or remove it")
    spoken = Tokenizer.adopt(tokenizer / "tokenizer.json")
    count = experts or _experts_of(tokenizer)
    scanned = _scan(files, spoken.vocab_size)
    if scanned.largest >= count:
        raise InputError(f"{files[0]}: names expert {scanned.largest}, the model has {count} (--experts)")
    sha256 = hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()
    info = RecordingInfo(
        run=str(tokenizer.resolve()),
        fingerprint=sha256,
        corpus=str(files[0]),
        corpus_sha256=sha256,
        documents=len(scanned.lengths),
        vocab_size=spoken.vocab_size,
        sites=_sites(scanned, count),
        window=max(scanned.lengths),
        dtype="unknown",
        score_bits=10,
        predictions=False,
        part_tokens=_PART_TOKENS,
        total_tokens=sum(scanned.lengths),
    )
    parts = [
        write_part(recording, number, first, rows, info)
        for number, (first, rows) in enumerate(_parts(files, scanned, count))
    ]
    write_info(recording, info.model_copy(update={"parts": tuple(parts)}))
    starts = np.concatenate([[0], np.cumsum(scanned.lengths)])
    corpus = PackedCorpus(np.empty(0, np.uint32), starts, scanned.titles, info.corpus, sha256)
    windows = [DocumentWindow(doc, 0, int(a), int(b)) for doc, (a, b) in enumerate(pairwise(starts))]
    absent = ModuleSubject(nn.Identity(), spoken, [], info.window)
    write_documents(recording, corpus, windows)
    write_copies(absent, recording, info)
    finish(absent, recording, tuple)
    return read_info(recording)


def _sites(scanned: _Scanned, experts: int) -> tuple[Site, ...]:
    return tuple(
        Site(
            layer=int(layer),
            module=f"layers.{layer}",
            kind="experts",
            first_entry=axis * experts,
            entries=experts,
            selected=scanned.selected,
            has=(),
        )
        for axis, layer in enumerate(scanned.layers)
    )


def _experts_of(folder: Path) -> int:
    path = folder / "config.json"
    read = read_json(path) if path.is_file() else {}
    config: dict[str, Any] = read if isinstance(read, dict) else {}
    inner = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    counts = [part[key] for part in inner for key in _COUNTS if isinstance(part.get(key), int)]
    if not counts:
        raise InputError(f"{folder}: no config.json that says how many experts a layer has; give --experts")
    return counts[0]


def _scan(files: Sequence[Path], vocab_size: int) -> _Scanned:
    titles, lengths = [], []
    shape: tuple[int, ...] = ()
    routes = repeats = np.zeros(0, bool)
    repeated, largest = "", 0
    for answer in _answers(files):
        if not shape:
            shape = answer.experts.shape[1:]
            routes, repeats = np.zeros((2, shape[0]), bool)
        if answer.experts.shape[1:] != shape:
            raise InputError(f"{answer.where}: has experts of {answer.experts.shape[1:]} layers and K, others {shape}")
        if len(answer.tokens) and int(answer.tokens.max()) >= vocab_size:
            raise InputError(f"{answer.where}: has token {answer.tokens.max()}, the tokenizer has {vocab_size}")
        largest = max(largest, int(answer.experts.max()))
        twice = (np.diff(np.sort(answer.experts, -1), axis=-1) == 0).any((0, 2))
        routes, repeats = routes | answer.experts.any((0, 2)), repeats | twice
        repeated = repeated or (answer.where if (routes & twice).any() else "")
        titles.append(answer.title)
        lengths.append(len(answer.tokens))
    if not lengths or not routes.any():
        raise InputError(f"{files[0]}: holds no token with experts")
    if (routes & repeats).any():
        raise InputError(
            f"{repeated or files[0]}: a token has one expert twice in layer {int((routes & repeats).argmax())}; tokens "
            "that a cache answered have no experts: ask again without prefix caching"
        )
    return _Scanned(titles, lengths, routes.nonzero()[0], shape[1], largest)


def _parts(files: Sequence[Path], scanned: _Scanned, experts: int) -> Iterator[tuple[int, TokenRows]]:
    """Number of the first row, and the rows, of every part."""
    first = held = 0
    waiting: list[tuple[int, _Answer]] = []
    for doc, answer in enumerate(_answers(files)):
        waiting.append((doc, answer))
        held += len(answer.tokens)
        if held >= _PART_TOKENS or doc == len(scanned.lengths) - 1:
            yield first, _rows(waiting, scanned.layers, experts)
            first, held, waiting = first + held, 0, []


def _rows(answers: Sequence[tuple[int, _Answer]], layers: np.ndarray, experts: int) -> TokenRows:
    lengths = [len(answer.tokens) for _, answer in answers]
    local = np.concatenate([answer.experts[:, layers] for _, answer in answers]).astype(np.int64)
    return TokenRows(
        doc=np.repeat(np.array([doc for doc, _ in answers], np.uint32), lengths),
        pos=np.concatenate([np.arange(length, dtype=np.uint32) for length in lengths]),
        token=np.concatenate([answer.tokens for _, answer in answers]),
        predicted=np.full(len(local), NONE, np.int64),
        loss=np.full(len(local), np.nan, np.float32),
        indices=local + np.arange(len(layers))[:, None] * experts,
    )


def _answers(files: Sequence[Path]) -> Iterator[_Answer]:
    for file in files:
        for answers in read_rows(file, "routed experts", _parse):
            yield from answers


def _parse(value: Any, where: str) -> list[_Answer]:
    """The sequences of a row."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object with token_ids and routed_experts")
    choices = value.get("choices", [value])
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise InputError(f"{where}: choices is no list of objects")
    return [_answer(choice, value, where) for choice in choices]


def _answer(choice: dict[str, Any], response: dict[str, Any], where: str) -> _Answer:
    prompt = choice.get("prompt_token_ids") or response.get("prompt_token_ids") or []
    if choice.get("token_ids") is None:
        raise InputError(f"{where}: has no token_ids; ask the server with return_token_ids")
    if choice.get("routed_experts") is None:
        raise InputError(f"{where}: has no routed_experts; start the server with --enable-return-routed-experts")
    tokens, experts = _integers([*prompt, *choice["token_ids"]], 1, where), _decoded(choice["routed_experts"], where)
    if len(tokens) - len(experts) not in (0, 1) or not len(experts):
        raise InputError(
            f"{where}: has {len(tokens)} tokens and experts of {len(experts)}; all tokens of a sequence were expected, "
            "prompt_token_ids and token_ids, and experts of all or all but the last"
        )
    return _Answer(str(response.get("id") or ""), tokens[: len(experts)].astype(np.uint32), experts, where)


def _decoded(experts: Any, where: str) -> np.ndarray:
    """Experts from lists, or from the text or bytes of a ``.npy`` file."""
    if isinstance(experts, str | bytes):
        try:
            raw = base64.b64decode(experts, validate=True) if isinstance(experts, str) else experts
            experts = np.lib.format.read_array(io.BytesIO(raw))  # reads no pickle
        except (binascii.Error, ValueError, EOFError, MemoryError) as error:
            raise InputError(f"{where}: routed_experts is no .npy file in base64 ({error})") from error
    return _integers(experts, 3, where)


def _integers(values: Any, axes: int, where: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:  # lists of unequal length
        array = np.empty(0)
    whole = array.ndim == axes and array.dtype.kind in "iu" and array.size
    if not whole or array.min() < 0 or array.max() >= 2**31:
        what = "routed_experts is no [token, layer, K] table of numbers" if axes == 3 else "token_ids are no ids"
        raise InputError(f"{where}: {what}")
    return array
