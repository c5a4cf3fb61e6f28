"""A folder of recordings for the tests of the app: a small one with a map, and a twin to compare it with."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memscope.base.seals import hashes, write_sealed
from memscope.recording.info import read_info

HOSTILE_CLUSTER = "<img src=x onerror='window.hacked = true'>"


def make_folder(recording: Path, folder: Path) -> Path:
    """Copy a recording into ``folder`` as ``tiny`` with a map, and as ``twin`` without one; returns the folder."""
    tiny = shutil.copytree(recording, folder / "tiny")
    shutil.copytree(recording, folder / "deeper" / "twin")
    entries = read_info(tiny).knowledge_num
    entry = np.arange(entries, dtype=np.uint32)
    angle = 2 * np.pi * entry / entries
    places = {"x": np.cos(angle), "y": np.sin(angle), "cluster": entry % 2}
    columns = {"entry": pa.array(entry), **{name: pa.array(values) for name, values in places.items()}}
    pq.write_table(pa.table(columns), tiny / "map.parquet")
    names = [HOSTILE_CLUSTER, "born, town"]
    clusters = [{"cluster": number, "size": entries // 2, "name": name} for number, name in enumerate(names)]
    worth = {"trustworthiness": 0.7, "neighbours_kept": 0.1}
    said = {"trusted": True, "why_not": [], "feature": "values", "chosen_among": [], "clusters": clusters}
    said |= {"trustworthiness": 0.9, "neighbours_kept": 0.4, "yardstick": {"pca": worth, "random": worth}}
    said |= {"measured_on": {"apart_from_trial": True}}
    write_sealed(tiny / "map.json", said | {"files": hashes(tiny, ["map.parquet"])})
    return folder
