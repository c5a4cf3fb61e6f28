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


def known_numbers(info: RecordingInfo, table: pd.DataFrame) -> pd.DataFrame:
    """``known_columns`` of a table with a column ``entry``; NaN in rows of entries none of whose layers has the number.

    Only numbers of usage are looked at: others are null already where nothing is known.
    """
    table = known_columns(info, table)
    for bank in info.banks:
        lacking = [
            column
            for column in table
            if NEEDS.get(column) in ("scores", "reads") and not any(NEEDS[column] in site.has for site in bank)
        ]
        if lacking:
            own = table["entry"].between(bank[0].own.start, bank[0].own.stop - 1)
            table = table.assign(**{column: table[column].mask(own) for column in lacking})
    return table
