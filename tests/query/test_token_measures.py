"""Measures of tokens, against sums over one token's selections."""

import numpy as np
import pytest

from memscope.query.recording import Recording
from memscope.query.token_measures import MEASURES, layer_measure, over_layers
from memscope.recording.token_table import Trace

DRIFT = np.arange(64, dtype=np.float64)
POS, LAYER = 3, 1


@pytest.fixture(scope="module")
def trace(tiny_recording: Recording) -> Trace:
    return tiny_recording.trace(1, 0, 32)


def test_measures_are_what_their_names_say(tiny_recording: Recording, trace: Trace) -> None:
    layers = tiny_recording.info.layers
    fired = trace.selections[(trace.selections["pos"] == POS) & (trace.selections["layer"] == layers[LAYER])]
    gate, read = (fired[name].to_numpy(np.float64) for name in ("gate", "read"))
    gate_shares, read_shares = gate / gate.sum(), np.abs(read) / np.abs(read).sum()
    expected = {
        "gate entropy": -sum(share * np.log(share) for share in gate_shares if share > 0),
        "top gate score": gate.max(),
        "top gate share": gate_shares.max(),
        "effective entries": np.exp(-sum(share * np.log(share) for share in read_shares if share > 0)),
        "drift of the read entry": fired["entry"].iloc[np.abs(read).argmax()],
    }
    assert set(expected) == set(MEASURES) - {"loss", "one entry"}
    for measure, value in expected.items():
        values = layer_measure(trace, layers, measure, DRIFT)
        assert values.shape == (len(layers), 32)
        assert values[LAYER, POS] == pytest.approx(value, rel=1e-5), measure
    entropy = layer_measure(trace, layers, "gate entropy")
    np.testing.assert_allclose(over_layers(entropy, "gate entropy"), trace.tokens["gate_entropy"], rtol=1e-4)


def test_one_entry_lights_up_where_it_fires(tiny_recording: Recording, trace: Trace) -> None:
    layers = tiny_recording.info.layers
    entry = int(trace.selections["entry"].iloc[0])
    values = layer_measure(trace, layers, "one entry", entry=entry)
    fires = trace.selections[trace.selections["entry"] == entry]
    expected = {(layers.index(row.layer), row.pos): row.gate for row in fires.itertuples()}
    assert {tuple(cell) for cell in np.argwhere(~np.isnan(values)).tolist()} == set(expected)
    assert all(values[cell] == pytest.approx(gate) for cell, gate in expected.items())
    tokens = over_layers(values, "one entry")
    assert {pos for _, pos in expected} == set(np.flatnonzero(~np.isnan(tokens)).tolist())


def test_an_unknown_measure_is_refused(tiny_recording: Recording, trace: Trace) -> None:
    with pytest.raises(ValueError, match="'los'"):
        layer_measure(trace, tiny_recording.info.layers, "los")


def test_means_leave_out_layers_without_a_value() -> None:
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]])
    np.testing.assert_array_equal(over_layers(values, "gate entropy"), [2, 4, np.nan])
    np.testing.assert_array_equal(over_layers(values, "one entry"), [3, 4, np.nan])
