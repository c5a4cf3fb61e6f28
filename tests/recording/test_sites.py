"""A recording of layers that select in different ways: what each has comes back, and nothing else."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from memscope.base.errors import InputError
from memscope.base.files import sha256_file
from memscope.base.parquet import fixed_lists, matrix, read_parquet
from memscope.recording.info import RecordingInfo, read_info, write_info
from memscope.recording.part_reader import SelectionReader, read_part, read_rows
from memscope.recording.parts import selections_path, token_schema, tokens_path
from memscope.recording.sites import Site, entry_label, is_private, read_entries
from memscope.recording.token_rows import TokenRows
from memscope.recording.token_table import make_trace
from memscope.text.tokenizer import Tokenizer
from tests.synthetic import MIXED, all_rows, make_info, make_mixed_rows, write_recording

ENTRIES = 24 + 8 + 40 + 12


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return make_mixed_rows([30, 20, 25])


@pytest.fixture
def recording(rows: TokenRows, tmp_path: Path) -> Path:
    write_recording(tmp_path, rows, sites=MIXED)
    return tmp_path


def put(recording: Path, column: str, value: int, kind: pa.DataType | None = None) -> RecordingInfo:
    """Change the first number of a column of entries in the first part, and list it with its new hash."""
    info = read_info(recording)
    path = tokens_path(recording, info.parts[0])
    table = read_parquet(path)
    values = matrix(table[column]).astype(np.int64)
    values[0, 0] = value
    place, own = table.schema.get_field_index(column), table.schema.field(column).type.value_type
    changed = fixed_lists(values.astype(own.to_pandas_dtype()) if kind is None else values, kind or own)
    pq.write_table(table.set_column(place, column, changed), path)
    part = info.parts[0].model_copy(update={"tokens_sha256": sha256_file(path)})
    info = info.model_copy(update={"parts": (part, *info.parts[1:])})
    write_info(recording, info)
    return info


# --- the description --------------------------------------------------------------------------------------------------


def test_a_description_counts_the_entries_of_all_banks_and_the_most_selections() -> None:
    info = make_info(sites=MIXED)
    assert (info.knowledge_num, info.selected, info.per_token) == (ENTRIES, 6, 4 + 2 + 6 + 3 + 2)
    assert info.layers == (0, 1, 2, 4, 5)
    assert [[site.layer for site in bank] for bank in info.banks] == [[0, 5], [1], [2], [4]]
    assert info.entries_of(2) == slice(32, 72)
    assert [site.distinct for site in MIXED] == [2, 2, 1, 3, 2]  # of a number that varies, none are known to differ
    assert [info.has("reads"), info.has("reads", everywhere=True), info.has("lens")] == [True, False, False]
    assert [info.columns_of(site) for site in MIXED] == [
        ("gate", "read", "margin"),
        ("gate", "margin"),
        ("gate", "margin"),
        (),
        ("gate", "read", "margin"),
    ]
    assert (info.word(2), make_info().word(), make_info(kind="experts").word(2)) == ("entries", "entry", "experts")


@pytest.mark.parametrize(
    ("entry", "label"),
    [
        (0, "entry 0"),
        (23, "entry 23"),
        (24, "layer 1, expert 0"),
        (30, "layer 1, expert 6"),
        (31, "layer 1, expert 7"),
        (37, "layer 2, feature 5"),
        (71, "layer 2, feature 39"),
        (83, "layer 4, entry 11"),
    ],
)
def test_an_entry_is_named_by_its_layer_where_the_layer_alone_has_it(entry: int, label: str) -> None:
    assert entry_label(MIXED, entry) == make_info(sites=MIXED).label(entry) == label


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("", []),
        ("3, 17 30", [3, 17, 30]),
        ("layer 1, expert 6", [30]),
        ("Layer 1, expert 6, layer 2 feature 5; 9", [30, 37, 9]),
        ("layer 0, entry 23 entry 3", [23, 3]),
        ("layer 4: 11", [83]),
    ],
)
def test_entries_are_read_as_they_are_written(text: str, entries: list[int]) -> None:
    assert read_entries(MIXED, text) == entries


@pytest.mark.parametrize("entry", range(ENTRIES))
def test_every_label_is_read_as_its_entry(entry: int) -> None:
    assert read_entries(MIXED, entry_label(MIXED, entry)) == [entry]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one", "'one' names no entry; write 83, or layer 4, entry 11"),
        ("3x", "'3x' names no entry"),
        ("-1", "'-1' names no entry"),
        ("layer 1, expert 8", "layer 1 has no expert 8; its last one is layer 1, expert 7"),
        ("layer 9, expert 0", "layer 9 selects nothing; layers that select are 0, 1, 2, 4, 5"),
    ],
)
def test_what_names_no_entry_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_entries(MIXED, text)


def test_experts_that_layers_share_are_counted_through() -> None:
    both = [Site(layer=layer, module="", kind="experts", entries=8, selected=2, has=()) for layer in (1, 3)]
    assert not is_private(both, both[0])
    assert (entry_label(both, 6), entry_label(both[:1], 6)) == ("expert 6", "layer 1, expert 6")
    memories = make_info(layers=(0, 1), knowledge_num=64, bank_groups=2)
    assert memories.label(40) == "entry 40"  # those of a memory are, whoever selects them


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        (1, {"first_entry": 25}, "banks must follow one another"),
        (5, {"entries": 23}, "banks must follow one another"),
        (0, {"selected": 5}, "multiple of gate_heads"),
        (1, {"selected": 9}, "each can select what a layer has"),
        (1, {"has": ("votes",)}, "has"),
        (4, {"layer": 2}, "layers must be there and rise"),
    ],
)
def test_sites_that_contradict_one_another_are_refused(layer: int, change: dict[str, object], message: str) -> None:
    sites = [site.model_dump() | (change if site.layer == layer else {}) for site in MIXED]
    with pytest.raises(ValidationError, match=message):
        make_info(sites=sites)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_of_unlike_layers_come_back_with_nothing_where_a_layer_has_nothing(
    rows: TokenRows, recording: Path
) -> None:
    info = read_info(recording)
    for found, first, last in ((all_rows(recording, info), 0, 75), (read_rows(recording, info, 20, 15), 20, 35)):
        for name in (field.name for field in fields(TokenRows)):
            expected = getattr(rows, name)
            if expected is None:
                assert getattr(found, name) is None
            else:
                assert getattr(found, name).dtype == expected.dtype
                np.testing.assert_array_equal(getattr(found, name), expected[first:last], err_msg=name)


def test_a_part_has_only_the_columns_that_a_layer_has(recording: Path) -> None:
    info = read_info(recording)
    schema = read_parquet(tokens_path(recording, info.parts[0])).schema
    assert schema.equals(token_schema(info))
    assert [name for name in schema.names if name.startswith("l4_")] == ["l4_indices"]
    assert {"l0_read", "l5_read"} == {name for name in schema.names if name.endswith("_read")}
    types = [str(schema.field(f"l{layer}_indices").type) for layer in info.layers]
    kinds = [("uint16", 4), ("uint16", 2), ("int32", 6), ("uint16", 3), ("uint16", 2)]
    assert [(one.partition(": ")[2].split(">")[0].split(" ")[0], int(one.split("[")[1][:-1])) for one in types] == kinds


def test_entry_major_rows_hold_every_selection_and_no_other(rows: TokenRows, recording: Path) -> None:
    info = read_info(recording)
    reader = SelectionReader(recording, info)
    assert rows.gate is not None
    for axis, site in enumerate(MIXED):
        entry, row, gate = reader.read(site.layer, 0, ENTRIES - 1)
        expected = [
            (int(e), t, float(g))
            for t in range(75)
            for e, g in zip(rows.indices[t, axis], rows.gate[t, axis], strict=True)
            if e >= 0
        ]
        assert len(entry) == len(expected) == (rows.indices[:, axis] >= 0).sum()
        assert site.varies == (len(entry) < 75 * site.selected)
        if "scores" in site.has:
            assert sorted(zip(entry.tolist(), row.tolist(), gate.tolist(), strict=True)) == sorted(expected)
        else:
            assert np.isnan(gate).all()
            found = sorted(zip(entry.tolist(), row.tolist(), strict=True))
            assert found == sorted((e, t) for e, t, _ in expected)
    nulls = [read_parquet(selections_path(recording, part))["gate"].null_count for part in info.parts]
    assert sum(nulls) == 75 * 3  # of layer 4


@pytest.mark.parametrize(
    ("column", "value", "kind", "message"),
    [
        ("l1_indices", -1, None, "l1_indices has entries 24 to 65535, the layer's are 24 to 31"),
        ("l1_indices", -1, pa.int32(), "column l1_indices is of type"),
        ("l1_indices", 23, None, "l1_indices has entries 23 to 31, the layer's are 24 to 31"),
        ("l2_indices", -2, None, r"l2_indices has entries -2 to \d+, the layer's are 32 to 71"),
        ("l2_indices", 72, None, "to 72, the layer's are 32 to 71"),
        ("l2_indices", 31, None, "has entries 31 to"),
    ],
)
def test_no_selection_is_refused_where_every_token_selects_k(
    recording: Path, column: str, value: int, kind: pa.DataType | None, message: str
) -> None:
    info = put(recording, column, value, kind)
    with pytest.raises(InputError, match=message):
        read_part(recording, info.parts[0], info)


def test_a_token_may_select_nothing_where_the_number_varies(rows: TokenRows, recording: Path) -> None:
    assert (rows.indices[:, 2] < 0).all(1).any()  # so that the tests above have one
    info = put(recording, "l2_indices", -1)
    assert read_part(recording, info.parts[0], info).indices[0, 2, 0] == -1


def test_predictions_may_be_unknown(rows: TokenRows, tmp_path: Path) -> None:
    n = len(rows.doc)
    without = {field.name: getattr(rows, field.name) for field in fields(TokenRows)}
    without |= {"predicted": np.full(n, -1), "loss": np.full(n, np.nan, np.float32)}
    info = write_recording(tmp_path, TokenRows(**without), sites=MIXED, predictions=False)
    assert (all_rows(tmp_path, info).predicted == -1).all()
    with pytest.raises(InputError, match="predicted has empty rows"):
        read_part(tmp_path, info.parts[0], info.model_copy(update={"predictions": True}))
    assert write_recording(tmp_path / "other", rows, sites=MIXED).predictions
    claimed = read_info(tmp_path / "other").model_copy(update={"predictions": False})
    with pytest.raises(InputError, match=r"predicted has values, recording\.json says that there are none"):
        read_part(tmp_path / "other", claimed.parts[0], claimed)


# --- as tables --------------------------------------------------------------------------------------------------------


def test_a_trace_has_a_row_per_selection_and_numbers_where_the_layer_has_them(rows: TokenRows, recording: Path) -> None:
    trace = make_trace(rows, MIXED, Tokenizer.load(recording / "tokenizer.json"))
    assert rows.gate is not None and rows.read is not None
    assert len(trace.selections) == (rows.indices >= 0).sum()
    for axis, site in enumerate(MIXED):
        here = trace.selections[trace.selections["layer"] == site.layer]
        assert len(here) == (rows.indices[:, axis] >= 0).sum()
        assert here["gate"].isna().all() == ("scores" not in site.has)
        assert here["gate"].notna().all() == ("scores" in site.has)
        assert here["read"].notna().all() == ("reads" in site.has)
        assert here["read"].isna().all() == ("reads" not in site.has)
        assert here["entry"].between(site.own.start, site.own.stop - 1).all()
        weight = here["read" if "reads" in site.has else "gate"].abs()
        if "scores" in site.has:
            first = here["rank"] == 0
            runs = first.cumsum()
            assert (weight.groupby(runs).diff().dropna() <= 0).all()  # most read or highest score first
    silent = np.stack([np.nan_to_num(rows.read[:, axis].astype(float)).sum(-1) == 0 for axis in (0, 4)], 1).sum(1)
    assert trace.tokens["silent_layers"].tolist() == silent.tolist()  # of layers that read
