"""``python -m app HOST PORT``: the app's web server, as ``memscope.cli.serve`` starts it, with a plain exit.

When Python unloads DuckDB and torch one after the other, their threads sometimes conflict: leak reports, even an abort.
The app holds only read-only data, so it skips this and exits at once when the server has stopped.
"""

import os
import sys
import traceback

from memscope.base.stop import leave, stop_on_signals, stopped, tidy_up

code = 0
try:
    stop_on_signals()
    from app import ahead, garbage

    garbage.search_later()
    ahead.begin_model()  # beside what the server imports
    from app.server import serve

    serve(sys.argv[1], int(sys.argv[2]))
except SystemExit as stop:
    code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
except BaseException:  # os._exit skips Python's report of the error, so it is printed here
    if not stopped():
        traceback.print_exc()
        code = 1
if stopped():
    leave()
tidy_up()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
