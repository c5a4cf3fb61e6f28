"""Token-major rows as tables, the same for recorded text (``query/recording.py``) and for text that is traced live
(``record/trace.py``)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from memscope.base.printable import one_line
from memscope.base.words import visible
from memscope.notebook import markup
from memscope.recording.sites import Site
from memscope.recording.token_rows import TokenRows
from memscope.text.tokenizer import Tokenizer

TOKEN_TEXTS = ("text", "whole", "part", "parts", "bytes", "control")
"""Columns of ``token_columns``."""
_TIPPED = 3
"""Entries of a layer that a token's tip names."""


class Trace(NamedTuple):
    """Tokens and selections on a stretch of text."""

    tokens: pd.DataFrame
    """One row per token: ``pos token loss gate_entropy top_share silent_layers`` and those of ``token_columns``.
    ``loss`` is that of predicting the next token (nats); ``gate_entropy`` (nats) and ``top_share`` are means over
    layers of the entropy and the largest of the token's gate shares; ``silent_layers`` counts layers in which nothing
    was read."""
    selections: pd.DataFrame
    """One row per (token, layer, selected entry): ``pos layer rank k entry gate read``; rank 0 = most read, or of the
    highest score where nothing reads apart from the gate; ``k`` = index along the recorded K axis."""

    def stretch(self, first: int, count: int) -> "Trace":
        """The tokens from position ``first`` on, at most ``count``, and their selections."""
        return Trace(*(table[table["pos"].between(first, first + count - 1)].reset_index(drop=True) for table in self))

    def __repr__(self) -> str:
        text = one_line("".join(self.tokens["text"]))[:40]
        return f"Trace({text!r} ...: {len(self.tokens):,} tokens, {len(self.selections):,} selections)"

    def _repr_html_(self) -> str:
        return markup.card("Trace", self.html())

    def html(self, more: Mapping[int, str] | None = None) -> str:
        """The text with its tokens coloured by loss; a token's tip has its entries, and ``more`` of its position."""
        first = self.selections[self.selections["rank"] < _TIPPED]
        fired = {
            key: ", ".join(map(_fired, rows.itertuples())) for key, rows in first.groupby(["pos", "layer"], sort=False)
        }
        said: dict[int, list[str]] = {}
        for (pos, layer), entries in fired.items():
            said.setdefault(pos, []).append(f"layer {layer}: {entries}")
        tips = []
        for token in self.tokens.itertuples():
            loss = "" if np.isnan(token.loss) else f", loss {token.loss:.2f}"
            label = token_label(visible(token.whole), token.part, token.parts)
            spelled = f" = {token.bytes}" if token.bytes else ""
            lines = [f"token {token.pos} {label}{spelled}{loss}", *said.get(token.pos, [])]
            tips.append("\n".join([*lines, *([more[token.pos]] if more else [])]))
        loss = self.tokens["loss"].to_numpy(np.float64)
        return markup.tokens(self.tokens["text"].tolist(), loss, tips, "loss of the next token, nats")


def token_columns(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
    """How the tokens of a text are shown, one value per token.

    A character that several tokens spell is drawn across them. ``text`` has it at the first of them and nothing at the
    others, so that all together are the text; ``whole`` has it at each, ``part`` of ``parts``. ``bytes`` are those of
    tokens that hold a part of a character, hexadecimal. ``control`` marks tokens that are no text, such as bos.
    """
    columns: dict[str, list[Any]] = {name: [] for name in TOKEN_TEXTS}
    for unit in tokenizer.units(ids):
        for part in range(unit.tokens):
            token = int(ids[unit.first + part])
            cut = unit.tokens > 1 or token in tokenizer.partial
            values = (unit.text if part == 0 else "", unit.text, part, unit.tokens)
            hexadecimal = tokenizer.pieces[token].hex(" ") if cut else ""
            for name, value in zip(TOKEN_TEXTS, (*values, hexadecimal, token in tokenizer.control), strict=True):
                columns[name].append(value)
    return columns


def token_label(whole: str, part: int, parts: int) -> str:
    """A token of a text in one line: its text, and which part of a character it is."""
    return whole if parts == 1 else f"{whole} {part + 1}/{parts}"


def text_around(tokenizer: Tokenizer, ids: Sequence[int], at: int, after: Sequence[int] = ()) -> tuple[str, str, str]:
    """Text before, of and behind the token ``ids[at]``; of a character of several tokens, the whole character.

    Characters that the stretch cuts at its ends are left out. ``after`` are the ids before it, as in ``decode``.
    """
    edges = (0, at, at + 1, len(ids))
    if not tokenizer.partial.isdisjoint(ids):  # seldom, and exports ask millions of times
        edges = _whole_edges(tokenizer, ids, at)
    before, token, behind = (tokenizer.decode(ids[a:b], after=ids[:a][-1:] or after) for a, b in pairwise(edges))
    return before, token, behind


def _whole_edges(tokenizer: Tokenizer, ids: Sequence[int], at: int) -> tuple[int, int, int, int]:
    """Where the text before, of and behind a token begins, and where the last one ends, so that no character is cut."""
    units = tokenizer.units(ids)
    chosen = next(n for n, unit in enumerate(units) if unit.first <= at < unit.first + unit.tokens)
    cut = [unit.tokens == 1 and int(ids[unit.first]) in tokenizer.partial for unit in units]
    first = next(n for n in range(chosen + 1) if not cut[n] or n == chosen)
    last = next(n for n in range(len(units) - 1, chosen - 1, -1) if not cut[n] or n == chosen)
    ends = [units[n].first + units[n].tokens for n in (chosen, last)]
    return units[first].first, units[chosen].first, ends[0], ends[1]


def make_trace(
    rows: TokenRows, sites: Sequence[Site], tokenizer: Tokenizer, texts: dict[str, list[Any]] | None = None
) -> Trace:
    """Recorded rows of one text as the two tables of a ``Trace``.

    ``texts`` are the ``token_columns`` of the rows, for a stretch whose ends may cut a character.
    Where a layer has no scores or nothing reads apart from the gate, the numbers of it are NaN.
    """
    n, n_layers, k = rows.indices.shape
    blank = np.full(rows.indices.shape, np.nan, np.float16)
    gates, reads = (blank if values is None else values for values in (rows.gate, rows.read))
    gate = np.nan_to_num(gates.astype(np.float64))
    total = gate.sum(-1, keepdims=True)
    share = np.divide(gate, total, out=np.full_like(gate, np.nan), where=total > 0)
    entropy = -(np.nan_to_num(share) * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(-1) + 0.0  # no -0
    silent = np.nan_to_num(np.abs(reads)).sum(-1) == 0  # [token, layer]
    reading = [axis for axis, site in enumerate(sites) if "reads" in site.has]
    tokens = pd.DataFrame(
        {
            "pos": rows.pos.astype(np.int64),
            "token": rows.token,
            **(token_columns(tokenizer, rows.token) if texts is None else texts),
            "loss": rows.loss,
            "gate_entropy": entropy.mean(-1),
            "top_share": np.nan_to_num(share).max(-1).mean(-1),
            "silent_layers": silent[:, reading].sum(-1),
        }
    )
    if not any("scores" in site.has for site in sites):
        tokens[["gate_entropy", "top_share"]] = np.nan
    weight = np.where(np.isnan(reads), np.nan_to_num(gates.astype(np.float32)), reads)
    order = np.argsort(np.where(rows.indices < 0, np.inf, -np.abs(weight.astype(np.float32))), axis=-1, kind="stable")
    indices, gates, reads = (np.take_along_axis(values, order, -1) for values in (rows.indices, gates, reads))
    selections = pd.DataFrame(
        {
            "pos": np.repeat(rows.pos.astype(np.int64), n_layers * k),
            "layer": np.tile(np.repeat([site.layer for site in sites], k), n),
            "rank": np.tile(np.arange(k), n * n_layers),
            "k": order.ravel(),
            "entry": indices.ravel().astype(np.int64),
            "gate": gates.ravel().astype(np.float32),
            "read": reads.ravel().astype(np.float32),
        }
    )
    return Trace(tokens, selections[selections["entry"] >= 0].reset_index(drop=True))


def _fired(selection: Any) -> str:
    """An entry as a tip names it, with its read weight, or its score where nothing reads."""
    weight = selection.gate if np.isnan(selection.read) else selection.read
    return f"entry {selection.entry}" + ("" if np.isnan(weight) else f" {weight:+z.3f}")
