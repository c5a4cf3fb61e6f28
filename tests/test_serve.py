"""The server listens on this machine alone, refuses what it cannot open, and stops when told to."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from memscope.errors import InputError
from memscope.serve import allowed_hosts, check_address, check_recordings, serve_app, streamlit_command
from memscope.store import read_info, write_info


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def server(tiny_recording_path: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running app, started from a folder that has an ``app`` package of its own."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise RuntimeError('the wrong app')")
    port = free_port()
    command = [sys.executable, "-P", "-m", "memscope", "app", str(tiny_recording_path), "--port", str(port)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(120):
        if process.poll() is not None or _answers(port):
            break
        time.sleep(0.25)
    yield process, port
    process.kill()
    process.communicate()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _open_session(port: int, host: str, origin: str) -> int:
    """Status of the answer to a page that asks for a session."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("GET", "/_stcore/stream", skip_host=True)
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    for name, value in {"Host": host, "Origin": origin, **upgrade, **key}.items():
        connection.putheader(name, value)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_server_listens_on_this_machine_alone_refuses_other_sites_and_ends_on_ctrl_c(
    server: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = server
    assert _answers(port)
    listening = [c.laddr for c in psutil.Process(process.pid).net_connections("inet") if c.status == "LISTEN"]
    assert [tuple(address) for address in listening] == [("127.0.0.1", port)]
    assert psutil.Process(process.pid).children(recursive=True) == []
    own = f"127.0.0.1:{port}"
    assert _open_session(port, own, f"http://{own}") == 101
    assert _open_session(port, own, "http://elsewhere.example") == 403
    assert _open_session(port, f"elsewhere.example:{port}", f"http://elsewhere.example:{port}") == 403
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert f"http://127.0.0.1:{port}" in errors
    assert "Traceback" not in errors


def test_a_folder_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        serve_app(tmp_path / "missing", "127.0.0.1", free_port())
    with pytest.raises(InputError, match="not a recording"):
        serve_app(tmp_path, "127.0.0.1", free_port())


def test_an_unfinished_recording_is_refused(tiny_recording_path: Path, tmp_path: Path) -> None:
    write_info(tmp_path, read_info(tiny_recording_path).model_copy(update={"complete": False}))
    with pytest.raises(InputError, match="unfinished"):
        check_recordings(tmp_path)


def test_a_folder_of_recordings_is_accepted(tiny_recording_path: Path) -> None:
    check_recordings(tiny_recording_path.parent)


def test_a_busy_port_is_refused_by_name(tiny_recording_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: in use"):
            serve_app(tiny_recording_path, "127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(InputError, match="--host"):
        check_address(host, free_port())


def test_the_recording_goes_by_environment_variable(
    tiny_recording_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.delenv("MEMSCOPE_RECORDINGS", raising=False)
    monkeypatch.chdir(tmp_path)
    serve_app(tiny_recording_path, "127.0.0.1", free_port())
    serve_app(None, "127.0.0.1", free_port())
    opened = [environment["MEMSCOPE_RECORDINGS"] for _, _, environment in started]
    assert opened == [str(tiny_recording_path.resolve()), str(tmp_path.resolve() / "recordings")]


def test_protections_are_on_whatever_the_users_streamlit_config_says() -> None:
    command = streamlit_command(Path("app.py"), "127.0.0.1", 8501)
    for option in ("server.enableCORS=true", "server.enableXsrfProtection=true", "browser.gatherUsageStats=false"):
        assert f"--{option}" in command
    assert [word for word in command if "allowedHosts" in word] == [
        "--server.allowedHosts=localhost",
        "--server.allowedHosts=127.0.0.1",
    ]


def test_listening_everywhere_still_asks_for_this_machine_by_name() -> None:
    names = allowed_hosts("0.0.0.0")
    assert socket.gethostname() in names
    assert "0.0.0.0" not in names
