"""Show text from outside on a page, with invisible characters written out (``memscope.base.printable``).

Pages and parts show frames, sentences, names and messages through these functions, never by Streamlit alone.
"""

from typing import Any

import pandas as pd
import streamlit as st

from memscope.base.printable import printable, printable_values


def table(data: pd.DataFrame | dict[str, Any], **options: Any) -> Any:
    """``st.dataframe``, with a dash where a value is missing."""
    return st.dataframe(printable_frame(pd.DataFrame(data)), placeholder="–", **options)


def text(body: str, **options: Any) -> None:
    """``st.text``, which shows markup as it is."""
    st.text(printable(body), **options)


def code(body: str, **options: Any) -> None:
    """``st.code``, a box that a reader can copy; long lines are wrapped, so that none is cut."""
    st.code(printable(body), **({"wrap_lines": True} | options))


def printable_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with all its texts printable, also texts in lists."""
    columns = frame.select_dtypes(include=["object", "string"]).columns
    return frame.assign(**{column: frame[column].map(_cell) for column in columns})


def _cell(value: Any) -> Any:
    return printable_values(value.tolist() if hasattr(value, "tolist") else value)
