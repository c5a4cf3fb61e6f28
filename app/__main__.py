"""``python -m app HOST PORT``: the app's web server, as ``memscope.cli.serve`` starts it, with a plain ending.

When Python unloads DuckDB and torch in turn, their threads trip over each other now and then: leak reports, even an
abort. All that the app holds is read-only, so it leaves without that once the server has stopped.
"""

import os
import sys
import traceback

from memscope.base.stop import leave, stop_on_signals, stopped, tidy_up

code = 0
try:
    stop_on_signals()
    from app.server import serve

    serve(sys.argv[1], int(sys.argv[2]))
except SystemExit as stop:
    code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
except BaseException:  # nothing is swallowed: os._exit skips Python's own report, so it is made here
    if not stopped():
        traceback.print_exc()
        code = 1
if stopped():
    leave()
tidy_up()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
