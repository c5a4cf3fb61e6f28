"""Start the app (``app/streamlit_app.py``) as a local web page.

``python -m app`` serves the page and replaces this process, so that no process stays behind when it is stopped. Only
the app imports Streamlit.
"""

import errno
import os
import signal
import socket
import sys
from pathlib import Path

import memscope
from memscope.base.errors import InputError
from memscope.base.stop import hold_signals
from memscope.recording.info import INFO, RECORDINGS, read_info

_ANY_ADDRESS = ("0.0.0.0", "::")


def serve_app(recording: Path | None, host: str, port: int) -> None:
    """Serve the app until it is stopped; does not return.

    Args:
        recording: a recording or a folder of them; none takes ``$MEMSCOPE_RECORDINGS`` or ``recordings``.
        host: address to listen on.
        port: port to listen on.

    Raises:
        InputError: the path is not a recording, or the address or port cannot be listened on.
    """
    if recording is not None:
        check_recordings(recording)
    check_address(host, port)
    package = Path(memscope.__file__).resolve().parent.parent
    command = [sys.executable, "-P", "-m", "app", host, str(port)]  # -P: not the app/ of the current folder
    opened = recording or Path(os.environ.get(RECORDINGS) or "recordings")
    search = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, RECORDINGS: str(opened.resolve()), "PYTHONPATH": os.pathsep.join(search)}
    shown = "localhost" if host in _ANY_ADDRESS else f"[{host}]" if ":" in host else host
    print(f"memscope: http://{shown}:{port}  (Ctrl-C stops it)", file=sys.stderr, flush=True)
    unblocked = hold_signals()  # until the next program handles them
    try:
        os.execve(command[0], command, environment)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def check_recordings(path: Path) -> None:
    """Check that ``path`` is a recording, a run, or a folder with at least one of them.

    Raises:
        InputError: the path is neither, or the recording cannot be read or is unfinished.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; make a recording with 'memscope record'")
    if not (path / INFO).is_file() and any(path.glob(f"*/{INFO}")):
        return  # the app says which of several cannot be opened
    if not (path / INFO).is_file() and [*path.glob("metrics.jsonl"), *path.glob("*/metrics.jsonl")]:
        return  # the app follows runs without a recording
    info = read_info(path)
    if not info.complete:
        raise InputError(
            f"{path}: this recording is unfinished ({info.rows:,} of {info.total_tokens:,} tokens); "
            "run the same 'memscope record' command again to complete it"
        )


def check_address(host: str, port: int) -> None:
    """Check that ``host`` and ``port`` can be listened on.

    Raises:
        InputError: the address is of another machine, the port is in use, or the port needs more rights.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise InputError(f"--host {host}: no such address ({error.strerror}); try --host 127.0.0.1") from error
    with socket.socket(family, kind, protocol) as probe:
        if os.name == "posix":
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as the server does: ignore connections that are still closing
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"--port {port}: in use on {host}; choose another, like --port {port + 1}") from error
            raise InputError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from error
