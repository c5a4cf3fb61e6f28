"""What columns of tables need of a recording, so that no table has a column of which the recording knows nothing.

known_columns(recording.info, table)      # without read weights where nothing reads apart from the gate
"""

import re

import pandas as pd

from memscope.recording.census_file import MEANS_NEED
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import Has

NEEDS: dict[str, Has] = {
    **MEANS_NEED,
    **dict.fromkeys(("gate", "gate_sum", "gate_entropy_histogram"), "scores"),
    **dict.fromkeys(("read", "read_sum", "read_signed_sum", "read_per_selection", "signed_per_selection"), "reads"),
    **{"read_share_histogram": "reads", "margin_histogram": "margin"},
    **dict.fromkeys(("drift", "kept", "kept_at_init", "decoded"), "drift"),
    **dict.fromkeys(("sentence", "subject", "predicate", "object"), "starts"),
}
"""What a recording must have for a column, by the column's name without ``_a``, ``_b``, ``_change`` and ``_se``."""
_SIDE = re.compile(r"(_a|_b|_change)?(_se)?$")


def is_known(info: RecordingInfo, column: str) -> bool:
    """Whether a recording has what a column needs."""
    name = _SIDE.sub("", column)
    if name == "loss":
        return info.predictions
    return name not in NEEDS or info.has(NEEDS[name])


def known_columns(info: RecordingInfo, table: pd.DataFrame) -> pd.DataFrame:
    """The table without the columns of which a recording knows nothing."""
    return table[[column for column in table if is_known(info, str(column))]]
