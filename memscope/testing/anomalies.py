"""Recordings like those of text, in which every kind of anomaly is planted on request, or none.

    truth = plant_anomalies(Path("planted"), seed=0)              # kinds in layer 1, uniform reads in layer 2
    plant_anomalies(Path("clean"), seed=0, kinds=())              # nothing to find, but all that misleads

All of them hold what misleads a test of independence: tokens follow Zipf's law, and every document has its favourite
words; documents differ fifty times in length; entries are used unevenly; selections come in bursts that cross windows;
two gate heads may select one entry twice for a token; read weights are of both signs, and most are negative.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

from memscope.base.files import write_text
from memscope.census.aggregate import write_aggregates
from memscope.config.load import dump_config, validate_config
from memscope.recording.token_rows import TokenRows
from memscope.testing.recordings import SPECIAL, write_decodings, write_recording

KINDS = (
    *("dead", "unread", "duplicate", "everywhere", "document", "uniform", "negative", "exclusive"),
    *("token", "previous", "bigram", "start", "class"),
)
PLANTED_LAYER, UNIFORM_LAYER = 1, 2
BURST = 0.8
"""Correlation of the gate's state between neighbouring tokens: bursts of about ten tokens."""

_N, _HEADS, _K, _WINDOW = 256, 2, 12, 32
_LAYERS, _DOCUMENTS, _DEAD = 3, 30, 40
_OFTEN = 0.12
"""Share of tokens that select the duplicates, the exclusive pair, the unread and the negative entry."""
TEXTS = [
    *SPECIAL,
    *(f" w{number}" for number in range(240)),
    *(f" W{number}" for number in range(60)),
    *(f" {number}" for number in range(30)),
    *(f" {sign}" for sign in ".,;:!?()-/%&"),
]
"""Texts of the vocabulary."""

Row = tuple[str, int, int, int, str]
"""``kind layer entry other label`` of an anomaly."""


class PlantedText(NamedTuple):
    """A recording and what was planted."""

    path: Path
    rows: frozenset[Row]
    """The anomalies that ``find_anomalies`` should find, and no others."""


class _Text(NamedTuple):
    token: np.ndarray
    doc: np.ndarray
    position: np.ndarray
    """Position in the document."""

    @property
    def previous(self) -> np.ndarray:
        return np.where(self.position % _WINDOW == 0, -1, np.roll(self.token, 1))


class _Selected(NamedTuple):
    """An entry that is selected only where it is planted."""

    entry: int
    where: np.ndarray
    """Bool ``[token]``."""


def plant_anomalies(
    path: Path, seed: int, kinds: Collection[str] = KINDS, burst: float = BURST, tokens: int = 8_000
) -> PlantedText:
    """Write a finished recording of 3 layers, 256 entries and two gate heads of 6 selections.

    Args:
        path: folder of the recording.
        seed: of everything random.
        kinds: the kinds of ``KINDS`` to plant.
        burst: correlation of neighbouring tokens' selections.
        tokens: about this many tokens.
    """
    chance = np.random.default_rng(seed)
    text = _draw_text(chance, tokens)
    order = chance.permutation(_N)
    dead = order[:_DEAD].tolist() if "dead" in kinds else []
    planted, truth = _plant(kinds, text, iter(order[_DEAD:].tolist()), chance)
    truth |= {("dead", PLANTED_LAYER, -1, -1, "")} if dead else set()
    truth |= {("uniform", UNIFORM_LAYER, -1, -1, "read")} if "uniform" in kinds else set()
    special = np.array([anomaly.entry for anomaly in planted] + dead, int)
    never = [special if layer == PLANTED_LAYER else special[:0] for layer in range(_LAYERS)]
    indices = np.stack([_draw_entries(chance, len(text.token), burst, out) for out in never], axis=1)
    _put_in(indices[:, PLANTED_LAYER], planted)

    gate = -np.sort(-chance.uniform(0.5, 1.5, (*indices.shape[:2], _HEADS, _K // _HEADS))).reshape(indices.shape)
    attention = chance.lognormal(0, 0.5, indices.shape) * chance.choice([-1, -1, 1], indices.shape)
    for kind, _, entry, _, _ in truth:
        is_entry = (indices == entry) & (np.arange(_LAYERS) == PLANTED_LAYER)[:, None]
        if kind == "unread":
            attention[is_entry] *= 1e-3
        if kind == "negative":
            attention[is_entry] = -np.abs(attention[is_entry])
    if "uniform" in kinds:
        attention[:, UNIFORM_LAYER] = np.sign(attention[:, UNIFORM_LAYER]) / gate[:, UNIFORM_LAYER]
    loss = chance.exponential(3, len(text.token)).astype(np.float32)
    loss[np.append(np.diff(text.doc) > 0, True)] = np.nan
    rows = TokenRows(
        doc=text.doc.astype(np.uint32),
        pos=text.position.astype(np.uint32),
        token=text.token.astype(np.uint32),
        predicted=chance.permutation(text.token).astype(np.uint32),
        loss=loss,
        indices=indices,
        gate=gate.astype(np.float16),
        read=(gate * attention).astype(np.float16),
        read_norm=np.abs(gate * attention).astype(np.float16),
        margin=chance.exponential(0.1, (*indices.shape[:2], _HEADS)).astype(np.float16),
    )
    _write(path, rows, chance)
    return PlantedText(path, frozenset(truth))


def _draw_text(chance: np.random.Generator, tokens: int) -> _Text:
    """Documents of very unequal lengths, each with its favourite words."""
    lengths = chance.lognormal(0, 1, _DOCUMENTS)
    lengths = np.maximum(_WINDOW // 2, lengths / lengths.sum() * tokens).astype(int)
    n_words = len(TEXTS) - len(SPECIAL)
    zipf = 1 / (3 + chance.permutation(n_words))
    drawn = []
    for length in lengths:
        liked = zipf * chance.lognormal(0, 1, n_words)
        drawn.append(len(SPECIAL) + chance.choice(n_words, length, p=liked / liked.sum()))
    position = np.concatenate([np.arange(length) for length in lengths])
    return _Text(np.concatenate(drawn), np.repeat(np.arange(_DOCUMENTS), lengths), position)


def _plant(
    kinds: Collection[str], text: _Text, roles: Iterator[int], chance: np.random.Generator
) -> tuple[list[_Selected], set[Row]]:
    """The selections of single entries of the planted layer, and the anomalies that should be found."""
    counts = np.bincount(text.token, minlength=len(TEXTS))
    common = np.argsort(-counts)[5:30].tolist()  # tokens of the detectors
    planted, truth = [], set()

    def sometimes() -> np.ndarray:
        return np.asarray(chance.random(len(text.token)) < _OFTEN)

    def add(kind: str, where: np.ndarray, label: str = "", second: int = -1) -> int:
        planted.append(_Selected(next(roles), where))
        truth.add((kind, PLANTED_LAYER, planted[-1].entry, second, label))
        return planted[-1].entry

    for kind, of_row in (("token", text.token), ("previous", text.previous)):
        if kind in kinds:
            word = common.pop(int(chance.integers(len(common))))
            add(kind, of_row == word, TEXTS[word])
    if "bigram" in kinds:
        pairs = Counter(zip(text.previous[text.previous >= 0], text.token[text.previous >= 0], strict=True))
        before, word = pairs.most_common(1)[0][0]
        add("bigram", (text.previous == before) & (text.token == word), TEXTS[before] + TEXTS[word])
    if "start" in kinds:
        add("start", text.previous < 0)
    if "class" in kinds:
        bare = [text.strip() for text in TEXTS]
        digits, capitals = [text.isdigit() for text in bare], [text[0] == "W" for text in bare]
        signs = [len(text) == 1 and not text.isalnum() for text in bare]
        for label, members in (("digits", digits), ("capitals", capitals), ("punctuation", signs)):
            add("class", np.array(members)[text.token], label)
    if "everywhere" in kinds:
        add("everywhere", np.ones(len(text.token), bool))
    if "document" in kinds:
        doc = int(np.argsort(np.bincount(text.doc))[_DOCUMENTS * 2 // 3])
        add("document", (text.doc == doc) & (chance.random(len(text.doc)) < 0.6), f"Document {doc}")
    for kind in ("unread", "negative"):
        if kind in kinds:
            add(kind, sometimes())
    if "duplicate" in kinds:
        where, (first, second) = sometimes(), sorted((next(roles), next(roles)))
        planted += [_Selected(first, where), _Selected(second, where), _Selected(second, where)]  # by both heads
        truth.add(("duplicate", PLANTED_LAYER, first, second, ""))
    if "exclusive" in kinds:
        either, coin = sometimes() | sometimes(), chance.random(len(text.token)) < 0.5
        first, second = sorted((next(roles), next(roles)))
        planted += [_Selected(first, either & coin), _Selected(second, either & ~coin)]
        truth.add(("exclusive", PLANTED_LAYER, first, second, ""))
    return planted, truth


def _draw_entries(chance: np.random.Generator, n: int, burst: float, never: np.ndarray) -> np.ndarray:
    """Entries that the heads draw independently, unevenly and in bursts, uint32 ``[token, K]``."""
    liking = chance.normal(0, 0.8, _N)
    liking[never] = -np.inf
    heads = []
    for _ in range(_HEADS):
        noise = lfilter([(1 - burst**2) ** 0.5], [1, -burst], chance.standard_normal((n, _N), np.float32), axis=0)
        heads.append(np.argsort(-(liking + noise), axis=1)[:, : _K // _HEADS])
    return np.concatenate(heads, axis=1).astype(np.uint32)


def _put_in(indices: np.ndarray, planted: list[_Selected]) -> None:
    """Put planted entries into slots, from the first on; no token has more of them than slots."""
    filled = np.zeros(len(indices), int)
    for anomaly in planted:
        rows = np.flatnonzero(anomaly.where)
        indices[rows, filled[rows]] = anomaly.entry
        filled[rows] += 1


def _write(path: Path, rows: TokenRows, chance: np.random.Generator) -> None:
    layers = tuple(range(_LAYERS))
    info = write_recording(path, rows, layers=layers, knowledge_num=_N, window=_WINDOW, score_bits=10, texts=TEXTS)
    ids = [chance.integers(len(SPECIAL), len(TEXTS), 8).tolist() for _ in range(_N)]
    write_decodings(path / "decodings.parquet", ids, layers, chance)
    shape = {"vocab_size": len(TEXTS), "n_layers": _LAYERS, "max_seq_len": _WINDOW}
    memory = {"knowledge_num": _N, "num_selected": _K // _HEADS, "gate_heads": _HEADS}
    write_text(path / "config.yaml", dump_config(validate_config({"model": shape, "memory": memory}, source="planted")))
    write_aggregates(path, info)
