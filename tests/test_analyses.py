import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "analyses").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_analysis_prints_a_headline_and_writes_figure_and_csv(
    script: Path, tiny_recording_path: Path, tmp_path: Path
) -> None:
    command = [sys.executable, script, tiny_recording_path, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert (tmp_path / f"{script.stem}.png").stat().st_size > 0
    assert len(pd.read_csv(tmp_path / f"{script.stem}.csv")) > 0
    assert script.name in (ROOT / "analyses" / "README.md").read_text()


def test_kl_splits_into_rows_columns_and_entries() -> None:
    sys.path.insert(0, str(ROOT / "analyses"))
    from product_key_rows import split_kl

    # All mass in row 0, even over its 4 columns: KL = ln 4, all of it in the rows.
    row = split_kl(np.array([[1, 1, 1, 1], [0] * 4, [0] * 4, [0] * 4]).ravel())
    assert row == pytest.approx({"kl": np.log(4), "rows": np.log(4), "columns": 0, "entries": 0}, abs=1e-12)
    # The diagonal: rows and columns are even, all of it is in the choice of entries.
    diagonal = split_kl(np.eye(4).ravel())
    assert diagonal == pytest.approx({"kl": np.log(4), "rows": 0, "columns": 0, "entries": np.log(4)}, abs=1e-12)
