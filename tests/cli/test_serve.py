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

from app.server import HEADERS, allowed_hosts, server_options
from memscope.base.errors import InputError
from memscope.cli.serve import check_address, check_recordings, serve_app
from memscope.recording.info import read_info, write_info


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


def _get(port: int, path: str, origin: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={} if origin is None else {"Origin": origin})
    answer = connection.getresponse()
    answer.read()
    return answer


@pytest.mark.slow
def test_the_server_listens_on_this_machine_alone_refuses_other_sites_and_ends_on_ctrl_c(
    server: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = server
    assert _answers(port)
    listening = [c.laddr for c in psutil.Process(process.pid).net_connections("inet") if c.status == "LISTEN"]
    assert [tuple(address) for address in listening] == [("127.0.0.1", port)]
    [model] = psutil.Process(process.pid).children(recursive=True)
    assert "app.model" in model.cmdline() and not model.net_connections("inet")
    own = f"127.0.0.1:{port}"
    assert _open_session(port, own, f"http://{own}") == 101
    assert _open_session(port, f"localhost:{port}", f"http://localhost:{port}") == 101
    other_port, elsewhere = f"127.0.0.1:{port + 1}", f"elsewhere.example:{port}"
    for origin in ("http://elsewhere.example", f"http://{other_port}", "http://localhost", f"http://localhost:{port}"):
        assert _open_session(port, own, origin) == 403, origin
    for origin in ("null", f"http://{own}.example", f"http://{own}@{other_port}", "file://"):
        assert _open_session(port, own, origin) == 403, origin
    assert _open_session(port, elsewhere, f"http://{elsewhere}") == 403
    for path in ("/", "/_stcore/health", "/no/such/page", "/media/none.csv"):
        assert _get(port, path, f"http://{other_port}").status == 403
        for name, value in HEADERS.items():
            assert _get(port, path).headers[name] == value
    assert "frame-ancestors 'none'" in HEADERS["Content-Security-Policy"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert psutil.wait_procs([model], 20)[1] == []
    assert f"http://127.0.0.1:{port}" in errors.splitlines()[0]
    assert errors.splitlines()[-1] == "memscope: stopped"
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_server_can_be_stopped_while_a_session_waits_and_before_it_serves(tiny_recording_path: Path) -> None:
    port = free_port()
    words = [sys.executable, "-m", "memscope", "app", str(tiny_recording_path), "--port", str(port)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "Ctrl-C stops it" in process.stderr.readline()  # the next program is loaded now
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1].splitlines()[-1:] == ["memscope: stopped by SIGTERM"]
    assert process.returncode == 143


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
    options = server_options("127.0.0.1", 8501)
    assert options["server.enableCORS"] and options["server.enableXsrfProtection"]
    assert not options["browser.gatherUsageStats"] and not options["server.enableAgentApi"]
    assert options["client.showErrorDetails"] == "none"
    assert options["server.allowedHosts"] == ["localhost", "127.0.0.1"]


def test_listening_everywhere_still_asks_for_this_machine_by_name() -> None:
    names = allowed_hosts("0.0.0.0")
    assert socket.gethostname() in names
    assert "0.0.0.0" not in names
