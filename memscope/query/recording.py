"""Questions about a recording, answered as DataFrames from its Parquet files; no torch, no streamlit.

    recording = Recording(Path("recordings/demo"))
    recording.entries(search="philosopher", sort="count")
    recording.contexts(entry=4711)

The command line, the app and the report ask here and nowhere else.
"""

import glob
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from memscope.base.errors import InputError
from memscope.base.parquet import matrix, read_parquet
from memscope.base.seals import read_sealed, read_vouching
from memscope.base.words import did_you_mean
from memscope.config.load import load_config
from memscope.notebook import markup
from memscope.query import entry_cards as entry_pages
from memscope.query import ngrams as ngram_tables
from memscope.query.entry_cards import EntryCard
from memscope.query.needs import is_known, known_columns, known_numbers
from memscope.query.tables import RecordingTables
from memscope.recording.part_reader import SelectionReader, read_rows
from memscope.recording.parts import whole_tokens
from memscope.recording.sites import describe_sites
from memscope.recording.token_table import Trace, make_trace, token_columns
from memscope.run.metrics_log import read_metrics

_SHOWN = ("layer", "selections", "coverage", "even_coverage", "kl_to_uniform", "top50")
"""Columns of ``layer_metrics`` that a notebook shows."""
SORT_COLUMNS = ("entry", "count", "gate_sum", "read_sum", "drift", "kept", "readability", "layers_used")
_AROUND = 8
"""Tokens around a stretch that are looked at for the rest of a character that it cuts."""
_WEIGHTS = {"by_count": "count", "by_gate_score": "gate_sum", "by_read_weight": "read_sum"}


class Recording(RecordingTables):
    """A finished recording, read-only.

    Raises:
        InputError: not a recording, or one that is not finished.

    Example:
        >>> recording = Recording("recordings/demo")
        >>> recording.layer_metrics()[["layer", "coverage", "kl_to_uniform"]]
        >>> recording.entries(search="the", sort="count", limit=5)
        >>> entry = int(recording.most_used(layer=0)["entry"][0])
        >>> recording.entry(entry)  # a card in a notebook
        >>> recording.contexts(entry, layer=0)
        >>> recording.trace(doc=0, count=32)  # coloured tokens in a notebook
    """

    def __repr__(self) -> str:
        return f"Recording({str(self.path)!r}): {repr(self.info).partition('(')[2][:-1]}"

    def _repr_html_(self) -> str:
        info, metrics = self.info, self.layer_metrics()
        shown = [name for name in _SHOWN if name in metrics]
        return markup.card(
            f"Recording {self.path}",
            markup.facts(
                {
                    "model": f"{info.run_name}, {describe_sites(info.sites)}",
                    "text": f"{info.corpus_name}, {len(self.documents):,} documents, {info.rows:,} tokens",
                }
            ),
            markup.table(shown, metrics[shown].astype(object).to_numpy().tolist()),
        )

    @cached_property
    def run_summary(self) -> dict[str, Any]:
        """``run.json`` of the run: parameters, losses, speed; empty if training had not finished."""
        path = self.path / "run.json"
        summary: dict[str, Any] = read_sealed(path, "record again", required=False) if path.is_file() else {}
        return summary

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.yaml`` of the run."""
        return load_config(self.path / "config.yaml").model_dump(mode="json")

    def training_curve(self) -> pd.DataFrame:
        """Lines of the run's ``metrics.jsonl``: ``kind step`` and numbers."""
        return pd.DataFrame(read_metrics(self.path / "metrics.jsonl"))

    @property
    def weightings(self) -> tuple[str, ...]:
        """Weightings of usage that any layer has, of ``by_count``, ``by_gate_score`` and ``by_read_weight``."""
        return tuple(name for name, column in _WEIGHTS.items() if is_known(self.info, column))

    def layer_metrics(self, weighting: str = "by_count") -> pd.DataFrame:
        """Evenness of selection, one row per layer that has the weighting.

        Args:
            weighting: one of ``weightings``.
        """
        rows = [(layer.layer, getattr(layer, weighting)) for layer in self.census.layers]
        known = [(number, evenness) for number, evenness in rows if evenness is not None]
        return pd.DataFrame([{"layer": number, **row.model_dump(exclude_unset=True)} for number, row in known])

    def evenness(self, weighting: str = "by_count") -> pd.DataFrame:
        """``layer_metrics`` and ``by_score_share``: how many selections raw scores alone would have made."""
        shares = self.reading_metrics().filter(regex="^(layer|by_score_share.*)$")
        return self.layer_metrics(weighting).merge(shares, on="layer")

    def reading_metrics(self) -> pd.DataFrame:
        """How tokens weigh what they selected, one row per layer; NaN where a layer lacks what another has."""
        rows = [(layer.layer, layer.reading) for layer in self.census.layers]
        table = pd.DataFrame([{"layer": number, **reading.model_dump(exclude_unset=True)} for number, reading in rows])
        table = known_columns(self.info, table)
        numbers = [column for column in table if not str(column).endswith("_histogram")]
        return table.assign(**{column: pd.to_numeric(table[column]) for column in numbers})

    def usage(self, weighting: str = "by_count") -> np.ndarray:
        """Usage of every entry under a weighting of ``layer_metrics``, ``[layer, N]``: int64 counts or float64 sums.

        Layers stand in the order of ``info.layers``.
        """
        frame = self.sql(f"SELECT layer, entry, coalesce({_WEIGHTS[weighting]}, 0) AS weight FROM usage")
        axis = {layer: number for number, layer in enumerate(self.info.layers)}
        usage = np.zeros((len(self.info.layers), self.info.knowledge_num), frame["weight"].to_numpy().dtype)
        usage[frame["layer"].map(axis).to_numpy(), frame["entry"].to_numpy()] = frame["weight"].to_numpy()
        return usage

    def reachable_usage(self, weighting: str = "by_count") -> list[np.ndarray]:
        """``usage`` of the entries that each layer can select, ``[entry]`` for every layer."""
        rows = zip(self.info.layers, self.usage(weighting), strict=True)
        return [usage[self.info.entries_of(layer)] for layer, usage in rows]

    def most_used(self, layer: int, weighting: str = "by_count", limit: int = 20) -> pd.DataFrame:
        """Entries with the largest share of a layer's usage: ``entry count gate_sum read_sum share sentence``."""
        weight = _WEIGHTS[weighting]
        most = self.sql(
            f"""SELECT entry, count, gate_sum, read_sum, share, sentence
                FROM (SELECT *, {weight} / sum({weight}) OVER () AS share FROM usage WHERE layer = ?)
                JOIN bank USING (entry) ORDER BY {weight} DESC, entry LIMIT ?""",
            [layer, limit],
        )
        return known_columns(self.info, most)

    def usage_table(self) -> pd.DataFrame:
        """Selections of every entry in use: ``layer entry count gate_sum read_sum read_signed_sum``."""
        columns = "layer, entry, count, gate_sum, read_sum, read_signed_sum"
        return known_columns(self.info, self.sql(f"SELECT {columns} FROM usage ORDER BY layer, entry"))

    def drift(self) -> np.ndarray:
        """Drift of every entry, float32 ``[N]``."""
        table = read_parquet(self.path / "decodings.parquet", ["drift"])
        return np.asarray(table["drift"].to_numpy())

    def drift_summary(self) -> dict[str, float]:
        """Drift of used and unused entries, and the share of nearest tokens from the init sentence; NaN if none."""
        frame = self.sql(
            """SELECT median(drift) FILTER (used) AS median_used, quantile_cont(drift, 0.9) FILTER (used) AS p90_used,
                      median(drift) FILTER (NOT used) AS median_unused, avg(kept) FILTER (used) AS kept,
                      avg(kept_at_init) FILTER (used) AS kept_at_init
               FROM (SELECT *, entry IN (SELECT entry FROM usage) AS used FROM decodings)"""
        )
        return {name: float("nan") if pd.isna(value) else float(value) for name, value in frame.iloc[0].items()}

    def entries(
        self, search: str = "", sort: str = "count", descending: bool = True, limit: int = 50, offset: int = 0
    ) -> pd.DataFrame:
        """A page of the table of entries: their numbers and texts, as far as the recording has them.

        Args:
            search: an entry number, or words that must all occur in sentence, subject, predicate, object, what it
                fires on or the words that set it apart.
            sort: one of ``SORT_COLUMNS``.
            descending: largest first.
            limit: rows of the page.
            offset: rows before it.

        Raises:
            InputError: an unknown sort column.
        """
        known = [column for column in SORT_COLUMNS if is_known(self.info, column)]
        if sort not in known:
            raise InputError(f"cannot sort by '{sort}'{did_you_mean(sort, known)}")
        where, values = entry_pages.search_condition(search, self.info)
        order = f"{sort} {'DESC' if descending else 'ASC'} NULLS LAST, entry"
        page = self.sql(f"{_ENTRY_NUMBERS} WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?", [*values, limit, offset])
        bank = self.rows_of("bank", page["entry"].tolist(), ["entry", "sentence", "subject", "predicate", "object"])
        titles = self.rows_of("titles", page["entry"].tolist())
        texts = bank.merge(titles, on="entry", how="left")[["entry", "title", "words", *bank.columns[1:]]]
        return known_numbers(self.info, page[["entry"]].merge(texts, on="entry").merge(page, on="entry"))

    def sentences(self, entries: Iterable[int]) -> dict[int, str | None]:
        """Init sentences of some entries."""
        frame = self.rows_of("bank", entries, ["entry", "sentence"])
        return {int(e): s if isinstance(s, str) else None for e, s in zip(frame.entry, frame.sentence, strict=True)}

    def entry(self, entry: int) -> EntryCard:
        """Everything known of one entry.

        Raises:
            InputError: no such entry.
        """
        return next(self.cards([entry]))

    def cards(self, entries: Iterable[int]) -> Iterator[EntryCard]:
        """Cards of many entries, in the order asked.

        Raises:
            InputError: no such entry.
        """
        return entry_pages.cards(self, entries)

    def contexts(self, entry: int, layer: int | None = None, before: int = 16, after: int = 8) -> pd.DataFrame:
        """Tokens on which an entry fires: ``contexts_of`` for one entry, of one layer if given."""
        found = entry_pages.contexts(self, [entry], before, after)
        return found if layer is None else found[found["layer"] == layer].reset_index(drop=True)

    def contexts_of(self, entries: Iterable[int], before: int = 16, after: int = 8) -> pd.DataFrame:
        """Contexts of entries: their top ones and samples from every fifth of their gate scores.

        Returns ``entry layer kind rank row gate read doc title pos before token after``, without scores and read
        weights that the recording has not, by entry, kind (``top`` first) and falling gate score; ``before`` is the
        text before the token in the window that the model saw, ``after`` what follows in its document.
        """
        return entry_pages.contexts(self, entries, before, after)

    def most_read(self, entry: int, layer: int | None = None, limit: int = 20) -> pd.DataFrame:
        """The selections of an entry in which it is read most, whatever the sign; of one layer if given.

        Returns the columns of ``contexts_of`` without ``kind`` and ``rank``. Looks at all selections, which takes some
        tenths of a second per million tokens and layer.
        """
        able = [
            site.layer
            for site in self.info.sites
            if "reads" in site.has and site.own.start <= entry < site.own.stop and layer in (None, site.layer)
        ]
        return entry_pages.most_read(self, entry, able, limit)

    def firing_of(self, entries: Iterable[int]) -> pd.DataFrame:
        """The tokens that entries fire on, in each layer that uses them.

        Returns ``entry layer count firings fires_on docs position_mean gate_deciles``, what the headline is made of
        and, for ``input``, ``previous``, ``predicted`` and ``next`` tokens, ``{kind}_tokens``, ``{kind}_lift`` and
        ``{kind}_count``: lists of texts and numbers, most typical first.
        """
        return entry_pages.firing(self, entries)

    def lens_of(self, entries: Iterable[int]) -> pd.DataFrame:
        """The logit lens of entries: the tokens that they make more (``top``) and less (``bottom``) likely in a layer.

        Returns ``entry layer end rank token logit``, rank 0 first; a layer that never selected an entry has no rows.
        """
        return entry_pages.lens(self, entries)

    def neighbours_of(self, entries: Iterable[int]) -> pd.DataFrame:
        """Entries that are selected together with some entries.

        Returns ``entry layer rank other together npmi sentence title``, by entry, layer and falling NPMI; without
        sentences where entries started from none.
        """
        return entry_pages.neighbours(self, entries)

    def selections(self, entry: int, layer: int) -> pd.DataFrame:
        """Every selection of an entry in a layer: ``row gate``, in the order of rows."""
        _, rows, gates = self._selections.read(layer, entry, entry)
        return pd.DataFrame({"row": rows.astype(np.int64), "gate": gates.astype(np.float32)})

    def ngrams(self, entry: int, layer: int, order: int = 2, limit: int = 20) -> pd.DataFrame:
        """The n-grams that an entry fires on in a layer, most frequent first; columns in ``query/ngrams.py``."""
        return ngram_tables.ngrams(self, self.selections(entry, layer)["row"].to_numpy(), order, limit)

    def preferences(self) -> pd.DataFrame:
        """Lift of selection by what an entry's init sentence is, per layer; columns in docs/reference/metrics.md."""
        return self.sql("SELECT * FROM bias")

    def map(self) -> pd.DataFrame | None:
        """Places of entries on the map, ``entry x y cluster``; none before ``memscope map``.

        On a map that is not trusted all entries are in cluster -1.
        """
        return read_parquet(self.path / "map.parquet").to_pandas() if self.map_info else None

    @cached_property
    def map_info(self) -> dict[str, Any]:
        """How the map was made, how far to trust it, and its clusters (``map.json``).

        Empty before ``memscope map``, and for a map that an earlier memscope made without asking if it can be trusted.
        """
        path = self.path / "map.json"
        info: dict[str, Any] = read_vouching(path, "map again") if path.is_file() else {}
        return info if "trusted" in info else {}

    def document_losses(self) -> pd.DataFrame:
        """Mean loss of documents in nats, over tokens that have a successor: ``doc title group tokens loss``."""
        parts = [str(whole_tokens(self.path, part)) for part in self.info.parts]
        return self.sql(
            """SELECT doc, title, "group", count(loss) AS tokens, avg(loss) AS loss
               FROM read_parquet(?) JOIN docs USING (doc) GROUP BY ALL ORDER BY doc""",
            [[glob.escape(part) for part in parts]],
        )

    def usage_folds(self) -> np.ndarray:
        """Selections per fold of documents, uint32 ``[fold, layer, N]``: how far usage repeats itself."""
        table = read_parquet(self.path / "usage.parquet", ["layer", "entry", "folds"])
        counts = matrix(table["folds"])
        folds = np.zeros((counts.shape[1], len(self.info.layers), self.info.knowledge_num), np.uint32)
        axis = np.searchsorted(self.info.layers, table["layer"].to_numpy())
        folds[:, axis, table["entry"].to_numpy()] = counts.T
        return folds

    def trace(self, doc: int, first: int = 0, count: int = 256) -> Trace:
        """A stretch of a recorded document, token by token.

        Raises:
            InputError: no such document, or nothing recorded at that position.
        """
        if not 0 <= doc < len(self.documents):
            raise InputError(f"document {doc} does not exist; the recording has {len(self.documents)}")
        place = self.documents.iloc[doc]
        if not 0 <= first < place["rows"]:
            raise InputError(f"document {doc} has {place['rows']} recorded tokens, none at position {first}")
        start, length = int(place["first_row"]), int(place["rows"])
        count = min(count, length - first)
        begin, end = max(0, first - _AROUND), min(length, first + count + _AROUND)
        shown = token_columns(self.tokenizer, self.token_ids[start + begin : start + end])
        texts = {name: values[first - begin :][:count] for name, values in shown.items()}
        rows = read_rows(self.path, self.info, start + first, count)
        return make_trace(rows, self.info.sites, self.tokenizer, texts)

    @cached_property
    def _selections(self) -> SelectionReader:
        return SelectionReader(self.path, self.info)


_ENTRY_NUMBERS = """
    SELECT entry, drift, kept, coalesce(count, 0)::BIGINT AS count, if(count IS NULL, 0, gate_sum) AS gate_sum,
           if(count IS NULL, 0, read_sum) AS read_sum, if(count IS NULL, 0, signed) AS read_signed_sum,
           coalesce(layers_used, 0)::BIGINT AS layers_used, readability
    FROM decodings LEFT JOIN (
        SELECT entry, arg_max(readability, row(tokens, -layer)) AS readability FROM readability GROUP BY entry)
    USING (entry)
    LEFT JOIN (
        SELECT entry, sum(count) AS count, sum(gate_sum) AS gate_sum, sum(read_sum) AS read_sum,
               sum(read_signed_sum) AS signed, count(*) AS layers_used
        FROM usage GROUP BY entry) USING (entry)"""
