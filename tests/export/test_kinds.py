"""Exports of recordings of every kind of layer."""

import gzip
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from memscope.base.errors import InputError
from memscope.export.delphi import export_delphi
from memscope.export.neuronpedia import export_neuronpedia
from memscope.export.site import write_static
from memscope.query.recording import Recording
from tests.export.pages import open_page, pages_of
from tests.kinds import KINDS, SCORES, absent

pytestmark = pytest.mark.slow

SCORED = [kind for kind in KINDS if kind != "selections"]


@pytest.fixture(scope="module")
def recordings(kinds_folder: Path) -> dict[str, Recording]:
    return {kind: Recording(kinds_folder / kind) for kind in KINDS}


@pytest.mark.parametrize("export", [export_delphi, export_neuronpedia])
def test_selections_without_scores_have_no_activations(
    export: type, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no scores, so there are no activations") as caught:
        export(recordings["selections"], tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", SCORED)
def test_delphi_gets_every_positive_score_by_module_and_number_in_the_layer(
    kind: str, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    recording = recordings[kind]
    done = export_delphi(recording, tmp_path / "out", width_splits=2)
    assert {path.name for path in done.latents.iterdir()} == {site.module for site in recording.info.sites}
    written = 0
    for site in recording.info.sites:
        _, _, gates = recording._selections.read(site.layer, site.own.start, site.own.stop - 1)
        shards = [load_file(path) for path in (done.latents / site.module).glob("*.safetensors")]
        found = np.sort(np.concatenate([shard["activations"] for shard in shards]))
        np.testing.assert_array_equal(found, np.sort(gates[gates > 1e-5]))
        written += len(found)
    assert done.activations == written
    last = recording.info.sites[-1]
    if kind != "mixed":
        assert (done.latents / last.module / f"{last.entries // 2}_{last.entries - 1}.safetensors").is_file()


@pytest.mark.parametrize("kind", SCORED)
def test_neuronpedia_gets_features_by_their_number_in_the_layer(
    kind: str, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    recording = recordings[kind]
    done = export_neuronpedia(recording, tmp_path / "out")
    site = recording.info.sites[-1]
    source = done.folder / f"{site.layer}-{site.kind}"
    model = json.loads((source / "model.jsonl").read_text())
    assert model["layers"] == site.layer + 1
    with gzip.open(source / "features" / "batch-0.jsonl.gz", "rt") as file:
        features = [json.loads(line) for line in file]
    assert {int(feature["index"]) for feature in features} <= set(range(site.entries))
    assert all(feature["maxActApprox"] >= 0 for feature in features)
    texts = [path.read_text() for path in source.glob("*.jsonl")]
    names = {"experts": "router weights", "mixed": "router weights", "text": "gate scores", "peer": "scores"}
    said = names.get(kind, "activations")
    assert any(f"Activations are {said}." in text for text in texts)


@pytest.mark.browser
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mixed"])
def test_a_site_speaks_only_of_what_the_recording_has(
    kind: str, recordings: dict[str, Recording], tmp_path: Path, browser
) -> None:
    recording, tab = recordings[kind], browser.new_page()
    site = write_static(recording, tmp_path / "site")
    first = recording.info.sites[0]
    shown = [site.home.read_text()]
    for entry in sorted(pages_of(site.home))[:2]:
        shown.append(open_page(tab, site.home, entry).inner_text())
    tab.close()
    for page in shown:
        text = html.unescape(re.sub(r"<[^>]+>", " ", page))
        words = absent(kind) + (SCORES if kind == "selections" else ())
        assert not {word for word in words if re.search(rf"\b{word}\b", text, re.IGNORECASE)}, page
    assert f"Layer {first.layer}, {first.word()} 0" in shown[1] and "undefined" not in shown[1]
    if kind == "experts":
        assert "mean output of the expert" in shown[1]
    rows = (tmp_path / "site" / "data" / "entries-000.js").read_text()
    assert f'"layer {first.layer}, {first.word()} 0",0]' in rows


@pytest.mark.browser
def test_a_mixed_site_names_each_page_by_its_layer(recordings: dict[str, Recording], tmp_path: Path, browser) -> None:
    site, tab = write_static(recordings["mixed"], tmp_path / "site"), browser.new_page()
    memory, expert = (open_page(tab, site.home, entry).inner_text() for entry in (0, 64))
    tab.close()
    assert "Entry 0" in memory and "read +" in memory and "Drift" in memory
    assert "Layer 1, expert 0" in expert and "Drift" not in expert and "· read" not in expert
