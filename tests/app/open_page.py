"""A page of the app as its address opens it, without a browser."""

from pathlib import Path

from streamlit.testing.v1 import AppTest

import app

FRAME = Path(app.__file__).parent / "streamlit_app.py"


def open_page(name: str, recording: str | None = "tiny", **values: object) -> AppTest:
    """Run a page, at first without any state, with what its address says of the recording and of its fields."""
    test = AppTest.from_file(str(FRAME), default_timeout=120)
    if name != "overview":
        test.switch_page(f"app_pages/{name}.py")
    for key, value in {"recording": recording, **values}.items():
        if value is not None:
            test.query_params[key] = str(value)
    return test.run()
