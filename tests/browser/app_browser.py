"""A served app and tabs that note everything that goes wrong, for the tests in this folder."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from app.model.process import OFF

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
# WebGL comes from software here, so the GPU is not switched off.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",
    "--process-per-site",  # tabs of the app share a process, which has read Streamlit's scripts
]
SIZE = {"width": 1280, "height": 900}
# On a page's address Streamlit's client looks for the server below that page first, and then at the root. A page that
# is left early asks in vain for pictures that the server has dropped; those of pages that stand are looked at.
_IN_VAIN = re.compile(r"/\w+/_stcore/(health|host-config)$|/media/\w+\.png$")


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The app as ``memscope app`` starts it: its address and its process; checks that it stops without a complaint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "memscope", "app", str(folder), "--port", str(port)]
    environment = os.environ | {OFF: "1"}  # most tests ask no model, which takes seconds to load
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1)
                break
            except OSError:
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}", psutil.Process(server.pid)
    finally:
        server.terminate()
        _, log = server.communicate(timeout=20)
        assert server.returncode == 143, log
        assert "Traceback" not in log, log


def reader(browser):
    """A reader's own browser: its tabs load Streamlit's scripts once, and nothing moves, which takes time to draw."""
    return browser.new_context(viewport=SIZE, reduced_motion="reduce")


def new_tab(context):
    """An empty tab."""
    tab = context.new_page()
    tab.set_default_timeout(120_000)  # a busy machine is no failure
    return tab


@contextmanager
def watched(tab, address: str) -> Iterator[object]:
    """A tab, in which nothing may have gone wrong at the end of the block."""
    wrong: list[str] = []

    def note_console(message) -> None:
        if message.type == "error" and not _IN_VAIN.search(message.location.get("url", "")):
            wrong.append(f"console: {message.text} {message.location}")

    def note_request(request) -> None:
        if not request.url.startswith((address, address.replace("http", "ws", 1), "data:", "blob:")):
            wrong.append(f"request to {request.url}")

    def note_dialog(dialog) -> None:
        wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    notes = {
        "console": note_console,
        "pageerror": lambda error: wrong.append(f"page error: {error}"),
        "request": note_request,
        "dialog": note_dialog,
    }
    for event, note in notes.items():
        tab.on(event, note)
    try:
        yield tab
        check(tab)
        assert wrong == [], wrong
    finally:
        for event, note in notes.items():
            tab.remove_listener(event, note)


@contextmanager
def watched_tab(context, address: str) -> Iterator[object]:
    """An empty tab of its own; at its end nothing may have gone wrong in it."""
    tab = new_tab(context)
    with watched(tab, address):
        yield tab
    tab.close()


def check(page) -> None:
    """Nothing on the page failed, and no text was run or read as markup."""
    assert page.get_by_test_id("stException").count() == 0, page.get_by_test_id("stException").first.inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script:not([src])").filter(has_text="hacked").count() == 0
    assert page.locator("a[href^='javascript']").count() == 0


def visit(page, url: str, title: str) -> None:
    """Open a view and wait until it stands."""
    page.goto(url)
    page.get_by_role("heading", name=title, exact=True).wait_for()
    settle(page)


def follow(page, url: str, title: str) -> None:
    """Open a view as the button for back and forward does: by its address, but in the page that is there."""
    page.evaluate("url => { history.pushState({}, '', url); dispatchEvent(new PopStateEvent('popstate')) }", url)
    page.get_by_role("heading", name=title, exact=True).wait_for()
    settle(page)


def settle(page) -> None:
    """Wait until the script has run."""
    page.wait_for_timeout(300)
    page.wait_for_function("document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'")


def menu(page, title: str) -> None:
    """Go to a page by the menu."""
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=title, exact=True).click()
    page.get_by_role("heading", name=title, exact=True).wait_for()
    settle(page)
