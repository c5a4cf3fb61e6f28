"""The app as a person uses it, in Chromium: served by the real command, clicked, typed into, read.

Every test fails on a console error, a page error, an exception box, a request to another site, or when text of the
corpus was run as a script.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from memscope.query import Recording

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).is_file(), reason=f"no Chromium at {CHROMIUM}"),
]

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# On a page's address Streamlit's client looks for the server below that page first, and then at the root.
_PROBES = re.compile(r"/(prompts|entries|gate_bias)/_stcore/(health|host-config)$")


@pytest.fixture(scope="module")
def address(tiny_recording_path: Path) -> Iterator[str]:
    """A running app."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "memscope", "app", str(tiny_recording_path), "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1)
                break
            except OSError:
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        _, log = server.communicate(timeout=20)
        assert server.returncode == 0, log
        assert "Traceback" not in log, log


@pytest.fixture(scope="module")
def hostile_entry(tiny_recording: Recording) -> int:
    """The one entry whose sentence holds markup."""
    [entry] = tiny_recording.entries(search="script")["entry"]
    return int(entry)


@pytest.fixture(scope="module")
def browser():
    playwright.expect.set_options(timeout=20_000)  # a busy machine is no failure
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address: str):
    """An empty tab that notes everything that goes wrong."""
    tab = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    tab.set_default_timeout(30_000)
    wrong: list[str] = []

    def note_console(message) -> None:
        if message.type == "error" and not _PROBES.search(message.location.get("url", "")):
            wrong.append(f"console: {message.text} {message.location}")

    def note_request(request) -> None:
        own = (address, address.replace("http", "ws", 1), "data:", "blob:")
        if not request.url.startswith(own):
            wrong.append(f"request to {request.url}")

    tab.on("console", note_console)
    tab.on("pageerror", lambda error: wrong.append(f"page error: {error}"))
    tab.on("request", note_request)
    tab.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    yield tab
    assert tab.get_by_test_id("stException").count() == 0
    assert tab.evaluate("window.hacked") is None
    assert wrong == []
    tab.context.close()


def visit(page, url: str, title: str) -> None:
    page.goto(url)
    page.get_by_role("heading", name=title, exact=True).wait_for()
    settle(page)


def settle(page) -> None:
    """Wait until the script has run."""
    page.wait_for_timeout(300)
    page.wait_for_function("document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'")


def expect_address(page, pattern: str) -> None:
    """Streamlit changes the address a moment after the page."""
    playwright.expect(page).to_have_url(re.compile(pattern))


def test_the_overview_shows_numbers_findings_and_the_training_curve(page, address: str) -> None:
    visit(page, address, "Overview")
    playwright.expect(page.get_by_test_id("stMetric").first).to_contain_text("Recorded tokens")
    playwright.expect(page.get_by_text("Is the gate biased?")).to_be_visible()
    figure = page.get_by_role("img", name="Loss and entries used over training steps")
    figure.scroll_into_view_if_needed()
    page.wait_for_function("image => image.complete && image.naturalWidth > 500", arg=figure.element_handle())
    expect_address(page, "recording=tiny")


def test_the_menu_leads_to_every_page(page, address: str) -> None:
    visit(page, address, "Overview")
    for title in ("Prompts", "Entries", "Gate bias", "Overview"):
        page.get_by_test_id("stSidebarNav").get_by_role("link", name=title).click()
        page.get_by_role("heading", name=title, exact=True).wait_for()
        settle(page)
        expect_address(page, "recording=tiny")


def test_a_clicked_token_shows_its_entries_in_every_layer(page, address: str) -> None:
    visit(page, f"{address}/prompts", "Prompts")
    token = page.get_by_role("option").nth(7)
    token.click()
    page.get_by_role("heading", name="Token 7", exact=True).wait_for()
    settle(page)
    assert token.get_attribute("aria-selected") == "true"
    expect_address(page, "token=7")
    for layer in (0, 1):
        playwright.expect(page.get_by_text(f"Layer {layer}", exact=True)).to_be_visible()
    playwright.expect(page.get_by_role("link", name=re.compile("Open entry"))).to_have_count(2)


def test_tokens_can_be_picked_with_the_keyboard(page, address: str) -> None:
    visit(page, f"{address}/prompts?token=3", "Prompts")
    page.get_by_role("option").nth(3).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Token 4", exact=True).wait_for()
    settle(page)
    assert page.evaluate("document.activeElement.shadowRoot?.activeElement?.title ?? document.activeElement.title")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    settle(page)
    expect_address(page, r"token=(1[1-9]|[2-9]\d)")


def test_hostile_text_is_text(page, address: str, hostile_entry: int) -> None:
    visit(page, f"{address}/prompts?doc=0", "Prompts")
    tokens = page.get_by_role("listbox", name="Tokens")
    playwright.expect(tokens).to_contain_text("<script>window.hacked = true</script>")
    playwright.expect(tokens).to_contain_text("**bold**")
    playwright.expect(page.get_by_label("Document")).to_have_value("0: <b>Hostile</b>")
    visit(page, f"{address}/entries?entry={hostile_entry}", "Entries")
    playwright.expect(page.get_by_text("<img src=x onerror=", exact=False).first).to_be_visible()
    assert page.locator("script:not([src])").filter(has_text="hacked").count() == 0
    assert page.locator("img[src=x]").count() == 0


def test_a_typed_text_is_read_by_the_model(page, address: str) -> None:
    visit(page, f"{address}/prompts", "Prompts")
    page.get_by_role("radio", name="Your own text").click()
    page.get_by_label("Text to read").fill("Ada Holm was born in <b>Aston</b> .")
    page.get_by_role("button", name="Read it").click()
    playwright.expect(page.get_by_role("listbox", name="Tokens")).to_contain_text("<b>Aston</b>")
    settle(page)
    page.get_by_role("option").nth(2).click()
    page.get_by_role("heading", name="Token 2", exact=True).wait_for()
    playwright.expect(page.get_by_role("region", name="Most likely next tokens")).to_be_visible()
    expect_address(page, "token=2")
    visit(page, page.url, "Prompts")
    page.get_by_role("heading", name="Token 2", exact=True).wait_for()
    playwright.expect(page.get_by_role("listbox", name="Tokens")).to_contain_text("<b>Aston</b>")


def test_an_entry_opens_from_a_token_and_leads_back_to_one(page, address: str) -> None:
    visit(page, f"{address}/prompts?doc=1&token=5", "Prompts")
    link = page.get_by_role("link", name=re.compile("Open entry")).first
    number = re.search(r"\d+", link.inner_text())[0]
    link.click()
    page.get_by_role("heading", name=f"Entry {number}", exact=True).wait_for()
    settle(page)
    expect_address(page, f"entry={number}")
    page.locator("button.context").first.click()
    page.get_by_role("heading", name="Prompts", exact=True).wait_for()
    settle(page)
    expect_address(page, r"token=\d+")


def test_entries_can_be_searched_and_opened(page, address: str, hostile_entry: int) -> None:
    visit(page, f"{address}/entries", "Entries")
    page.get_by_role("textbox", name="Search").fill("script")
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_text("1 of 64 entries")).to_be_visible()
    settle(page)
    expect_address(page, "q=script")
    grid = page.get_by_test_id("stDataFrame").first.bounding_box()
    page.mouse.click(grid["x"] + 18, grid["y"] + 53)  # the box of the first row
    page.get_by_role("heading", name=f"Entry {hostile_entry}", exact=True).wait_for()
    playwright.expect(page.get_by_text("<script>window.hacked").first).to_be_visible()
    page.get_by_role("button", name="All entries").click()
    playwright.expect(page.get_by_text("1 of 64 entries")).to_be_visible()


def test_the_figures_of_gate_bias_follow_the_choice(page, address: str) -> None:
    visit(page, f"{address}/gate_bias", "Gate bias")
    figures = page.get_by_test_id("stImage").locator("img")
    playwright.expect(figures).to_have_count(5)
    before = figures.first.get_attribute("src")
    page.get_by_role("radio", name="read weight").click()
    settle(page)
    page.wait_for_function("([image, old]) => image.src !== old", arg=[figures.first.element_handle(), before])
    expect_address(page, "by=read")
    with page.expect_download() as download:
        page.get_by_role("button", name="Evenness as CSV").click()
    assert Path(download.value.path()).read_text().startswith("layer,entries,selections")


def test_a_bad_address_gets_a_sentence(page, address: str) -> None:
    visit(page, f"{address}/entries?entry=99999", "Entries")
    playwright.expect(page.get_by_text("There is no such entry")).to_be_visible()
    visit(page, f"{address}/prompts?doc=abc&token=-4", "Prompts")
    playwright.expect(page.get_by_text("There is no such doc")).to_be_visible()
    playwright.expect(page.get_by_text("There is no such token")).to_be_visible()
