"""``python -m app run SCRIPT ...``: Streamlit's command line, as ``memscope.serve`` starts it, with a plain ending.

When Python unloads DuckDB and torch in turn, their threads trip over each other now and then: leak reports, even an
abort. All that the app holds is read-only, so it leaves without that once the server has stopped.
"""

import os
import sys
import traceback

from streamlit.web.cli import main

code = 0
try:
    main(prog_name="streamlit")
except SystemExit as stop:
    code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
except BaseException:  # nothing is swallowed: os._exit skips Python's own report, so it is made here
    traceback.print_exc()
    code = 1
if "app.report_file" in sys.modules:
    sys.modules["app.report_file"].drop_reports()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
