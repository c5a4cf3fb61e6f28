"""Does ``find_anomalies`` find the planted anomalies, and no others? Many recordings with all kinds, and with none.

    python -m benchmarks.anomalies --seeds 50

prints for each length of bursts (correlation of neighbouring tokens' selections): the planted rows that were found, the
false rows, and the clean recordings with any false row; then, of the clean recordings, the rows with an effect above
the threshold that only their p-value held back.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from memscope.query.recording import Recording
from memscope.report.anomalies import COLUMNS, find_anomalies
from memscope.testing.anomalies import KINDS, PlantedText, plant_anomalies


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--bursts", type=float, nargs="+", default=[0.0, 0.5, 0.8, 0.95, 0.99])
    arguments = parser.parse_args()
    print("burst  planted  found  false rows  |  clean recordings  with a false row  held back")
    for burst in arguments.bursts:
        planted = [_rows(seed, burst, KINDS) for seed in range(arguments.seeds)]
        clean = [_rows(1000 + seed, burst, ()) for seed in range(arguments.seeds)]
        truth = sum(len(anomaly.rows) for anomaly, _, _ in planted)
        hits = sum(len(anomaly.rows & rows) for anomaly, rows, _ in planted)
        false = sum(len(rows - anomaly.rows) for anomaly, rows, _ in planted)
        wrong = sum(bool(rows) for _, rows, _ in clean)
        held_back = sum(held for _, _, held in clean)
        print(
            f"{burst:5.2f}  {truth:7d}  {hits:5d}  {false:10d}  |  {len(clean):16d}  {wrong:16d}  {held_back:9d}",
            flush=True,
        )


def _rows(seed: int, burst: float, kinds: tuple[str, ...]) -> tuple[PlantedText, set[tuple[object, ...]], int]:
    with TemporaryDirectory() as folder:
        planted = plant_anomalies(Path(folder) / "recording", seed, kinds, burst)
        recording = Recording(planted.path)
        table = find_anomalies(recording)[list(COLUMNS[:5])].itertuples(index=False, name=None)
        named = {tuple(row) for row in table}
        return planted, named, len(find_anomalies(recording, 1e9)) - len(named)


if __name__ == "__main__":
    main()
