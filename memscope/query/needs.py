"""What columns of tables need of a recording, so that no table has a column of which the recording knows nothing.

known_columns(recording.info, table)      # without read weights where nothing reads apart from the gate
"""

import re

import pandas as pd

from memscope.recording.info import RecordingInfo
from memscope.recording.sites import Has

NEEDS: dict[str, Has] = {
    **dict.fromkeys(("gate", "gate_sum", "gate_entropy", "gate_top_share", "gate_entropy_histogram"), "scores"),
    **dict.fromkeys(("read", "read_sum", "read_signed_sum", "read_per_selection", "signed_per_selection"), "reads"),
    **dict.fromkeys(("read_entropy", "effective_entries_read", "read_top_share", "read_share_histogram"), "reads"),
    **dict.fromkeys(("gate_read_rank_correlation", "gate_attention_rank_correlation"), "reads"),
    **dict.fromkeys(("unread_share", "unread_share_by_norm", "silent_tokens"), "reads"),
    **dict.fromkeys(("margin", "score_margin", "by_score_share", "margin_histogram"), "margin"),
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
