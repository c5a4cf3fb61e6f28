"""How long does a reader of the app wait for what each action shows?

    memscope record runs/demo --corpus data/wiki/train.jsonl --out recordings/large --tokens 246154
    memscope map runs/demo recordings/large
    python benchmarks/walk_app.py recordings --recording large         # alone in its folder: without the page Compare

Opens the app in headless Chromium and does what a reader does: goes through all pages, clicks a token, types texts,
lets the model write, sorts, filters and opens entries, draws a lasso, changes layers, asks what if. Every round has
other texts, tokens, layers and entries. An action takes from the click until its answer stands, figures and all.
Prints medians and the worst of all rounds, and the CPU time of the server and the model's process beside them, which
tells what is slow on a busy machine. It starts the app three times anew: from the command to the first page, and from
there to the first answer, for a reader who pastes a text at once, for one who types it at once, and for one who looks
at the page first (``--look``), and who then walks. The recording is of a run that memscope trained, whose entries
started from sentences; that of the demo with 246,154 tokens has 12.8 million selections.
"""

import argparse
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))
from screenshots import ARGUMENTS, running_app

from memscope.query.catalog import find_recordings
from memscope.query.recording import Recording

STANDS = """() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'
    && [...document.images].every(image => image.complete)"""
TEXTS = (
    "Apollo was the god of",
    "Alabama is a state located in the",
    "Aristotle was a Greek",
    "Anarchism is a political",
)
STARTED = "from the command to the first page"
_KEY = 100
"""Milliseconds from key to key of a reader who types."""


class Walk:
    """One reader, and how long each action took."""

    def __init__(self, page: Page, server: psutil.Process):
        self.page, self.server = page, server
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.cpu: dict[str, list[float]] = defaultdict(list)

    def do(self, name: str, act: Callable[[], object], answer: Callable[[], object]) -> None:
        """Act, and wait until the answer is there and the page has come to rest."""
        cpu, started = _cpu(self.server), time.perf_counter()
        act()
        answer()
        self.page.wait_for_function(STANDS)
        self.seconds[name].append(time.perf_counter() - started)
        self.cpu[name].append(_cpu(self.server) - cpu)
        print(f"{name}: {self.seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
        if self.page.get_by_test_id("stException").count():
            sys.exit(f"{name}: the page shows an error")

    def menu(self, title: str) -> None:
        """Open a page by the menu."""
        link = self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=title, exact=True)
        self.do(f"open {title}", link.click, self.heading(title))

    def part(self, page: str, name: str) -> None:
        """Choose a part of a page."""
        part = self.page.get_by_role("radio", name=name, exact=True)
        self.do(f"{page}: {name.lower()}", part.click, self.address(f"part={name.lower().replace(' ', '.')}"))

    def heading(self, name: str) -> Callable[[], object]:
        """Wait for a heading."""
        return self.page.get_by_role("heading", name=name, exact=True).first.wait_for

    def text(self, said: str) -> Callable[[], object]:
        """Wait for a text."""
        return self.page.get_by_text(re.compile(said)).first.wait_for

    def address(self, pattern: str) -> Callable[[], object]:
        """Wait for an address, which the page writes when it has run."""
        return lambda: self.page.wait_for_url(re.compile(pattern))


def walk(reader: Walk, address: str, recording: Recording, turn: int, other: bool) -> None:
    """One round through the app."""
    layers = [site.layer for site in recording.info.sites if "reads" in site.has]
    page, layer = reader.page, layers[turn % len(layers)]
    reader.do("open the app", lambda: page.goto(address), reader.heading("Overview"))
    prompts(reader, turn)
    entries(reader, turn)
    if recording.map_info:
        bank_map(reader)
    reader.menu("Gate bias")
    for part in ("Preferences", "Profiles", "Layers"):
        reader.part("Gate bias", part)
    reader.menu("Reading")
    reader.part("Reading", "Gate against read")
    for number in (layers[(turn + 1) % len(layers)], layer):
        layer_of = page.get_by_role("radio", name=str(number), exact=True)
        if layer_of.get_attribute("aria-checked") != "true":
            figure = page.get_by_alt_text(re.compile(f"in layer {number}"))
            reader.do("Reading: another layer", layer_of.click, figure.wait_for)
    reader.menu("Facts")
    what_if(reader, turn)
    if other:
        reader.menu("Compare")
        reader.part("Compare", "Entries")


def prompts(reader: Walk, turn: int) -> None:
    """Read a document, then texts of one's own."""
    page, text = reader.page, f"{TEXTS[turn % len(TEXTS)]} {turn}" if turn >= len(TEXTS) else TEXTS[turn]
    reader.menu("Prompts")
    tokens = page.get_by_role("listbox", name=re.compile("Tokens")).get_by_role("option")
    number = 20 + 3 * turn
    reader.do("Prompts: another token", tokens.nth(number).click, reader.heading(f"Token {number}"))
    own = page.get_by_role("radio", name="Your text", exact=True)
    reader.do("Prompts: your text", own.click, page.get_by_label("Text to read").wait_for)
    for more in ("", " and"):
        page.get_by_label("Text to read").fill(text + more)
        read(reader, text + more, "Prompts: read a text")
    going = page.get_by_role("radio", name="Your text, continued", exact=True)
    reader.do("Prompts: 40 tokens written", going.click, page.locator(".token.new").last.wait_for)


def read(reader: Walk, text: str, name: str) -> None:
    """Have the model read a text."""
    page = reader.page
    page.get_by_label("Text to read").fill(text)
    shown = page.get_by_role("listbox", name=re.compile("Tokens")).filter(has_text=text)
    reader.do(name, page.get_by_role("button", name="Read it").click, shown.wait_for)


def entries(reader: Walk, turn: int) -> None:
    """Sort, filter and search the bank, open an entry and go on to the next."""
    page = reader.page
    reader.menu("Entries")
    if page.get_by_role("button", name="All entries").count():  # the menu leads back to the entry of the last round
        page.get_by_role("button", name="All entries").click()
        page.wait_for_function(STANDS)
    order, column = (("drift", "drift"), ("readability", "readability"), ("number", "entry"))[turn % 3]
    page.get_by_label("Sort by").click()
    option = page.get_by_role("option", name=order, exact=True)
    reader.do("Entries: sort", option.click, reader.address(f"sort={column}"))
    bar = page.locator(".list").get_by_role("button", name=re.compile("^most in layer")).nth(turn % 2)
    reader.do("Entries: filter", lambda: bar.press("Enter"), reader.address("most_in="))
    clear = page.get_by_role("button", name="Clear all")
    reader.do("Entries: clear the filter", clear.click, lambda: clear.wait_for(state="detached"))
    search = page.get_by_role("textbox", name="Search")
    search.fill(("god", "state", "school", "war", "water")[turn % 5])
    reader.do("Entries: search", lambda: search.press("Enter"), reader.address("q="))
    table = page.get_by_test_id("stDataFrame").first
    table.locator("canvas").first.wait_for()
    page.wait_for_timeout(500)  # rows are drawn a moment after the table stands
    box = table.bounding_box()
    assert box is not None
    row = 53 + 35 * (turn % 3)
    reader.do(
        "Entries: open one", lambda: page.mouse.click(box["x"] + 18, box["y"] + row), reader.address(r"entry=\d+")
    )
    url = page.url
    reader.do(
        "Entries: the next one", lambda: page.keyboard.press("n"), lambda: page.wait_for_url(lambda to: to != url)
    )


def bank_map(reader: Walk) -> None:
    """Open the map, draw a lasso."""
    page = reader.page
    reader.menu("Map")
    stage = page.locator(".stage[data-ready]")
    reader.do("Map: points drawn", lambda: None, stage.wait_for)
    if page.get_by_role("button", name="Drop the lasso").count():
        page.get_by_role("button", name="Drop the lasso").click()
        page.wait_for_function(STANDS)
    box = stage.locator("canvas").bounding_box()
    assert box is not None
    middle, far = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2), 0.3 * box["height"]
    page.get_by_role("button", name="Lasso", exact=True).click()
    page.mouse.move(middle[0], middle[1] - far)
    page.mouse.down()
    for x, y in ((far, -far), (far, far), (-far, far), (-far, -far), (0, -far)):
        page.mouse.move(middle[0] + x, middle[1] + y, steps=6)
        page.wait_for_timeout(30)
    reader.do("Map: lasso", page.mouse.up, reader.text("inside the lasso"))


def what_if(reader: Walk, turn: int) -> None:
    """Read a text with a memory of half the strength, then without it."""
    page, amount = reader.page, 0.5 + turn / 100
    reader.menu("What if")
    page.get_by_label("Text to read").fill(f"{TEXTS[turn % len(TEXTS)]} what if {turn}")
    read = page.get_by_role("button", name="Read it")
    reader.do("What if: read a text", read.click, reader.address(f"what.if.{turn}"))
    scale = page.get_by_role("radio", name="scale the memory", exact=True)
    if scale.get_attribute("aria-checked") != "true":
        reader.do("What if: scale the memory", scale.click, reader.address("change=scale"))
    page.get_by_label("Factor", exact=True).fill(f"{amount:g}")
    change = page.get_by_role("button", name="Change it")
    reader.do("What if: change it", change.click, reader.address(f"amount={amount:g}"))


def show(reader: Walk, recording: Recording) -> None:
    """Print the table."""
    rows = [(name, values) for name, values in reader.seconds.items() if values]
    print(f"{recording.total_selections():,} selections, {recording.info.rows:,} tokens")
    print(f"\n{'action':<34}{'median ms':>11}{'worst ms':>10}{'server CPU ms':>15}{'times':>7}")
    for name, values in rows:
        numbers = f"{1e3 * median(values):>11,.0f}{1e3 * max(values):>10,.0f}{1e3 * median(reader.cpu[name]):>15,.0f}"
        print(f"{name:<34}{numbers}{len(values):>7}")
    walked = [(name, values) for name, values in rows if not name.startswith(("from ", "first "))]
    every = [value for _, values in walked for value in values]
    cpu = [value for name, _ in walked for value in reader.cpu[name]]
    print(f"\n{'all actions':<34}{1e3 * median(every):>11,.0f}{1e3 * max(every):>10,.0f}{1e3 * median(cpu):>15,.0f}")


@contextmanager
def started(reader: Walk, recordings: Path, name: str, look: int, key: int = 0) -> Iterator[str]:
    """Start the app, open its first page, look at it for some seconds, then have a text read; gives the address.

    The text is typed, with ``key`` milliseconds from key to key, or pasted.
    """
    page, began = reader.page, time.perf_counter()
    with running_app(recordings) as address:
        reader.server = _server()
        page.goto(f"{address}/?recording={name}")
        reader.heading("Overview")()
        page.wait_for_function(STANDS)
        reader.seconds[STARTED].append(time.perf_counter() - began)
        reader.cpu[STARTED].append(_cpu(reader.server))
        page.wait_for_timeout(1000 * look)
        page.goto(f"{address}/prompts?recording={name}&source=your+text")
        page.get_by_label("Text to read").wait_for()
        page.wait_for_function(STANDS)
        if key:
            page.get_by_label("Text to read").press_sequentially(TEXTS[0], delay=key)
        when = f"{look} s later" if look else "at once"
        read(reader, TEXTS[0], f"first answer, {'typed' if key else 'pasted'} {when}")
        yield f"{address}/?recording={name}"
        page.goto("about:blank")


def main() -> None:
    """Parse, walk, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recordings", type=Path, help="a recording, or a folder of them")
    parser.add_argument("--recording", help="name of the one to walk through, where there are several")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--look", type=int, default=10, help="seconds that a reader looks at the first page")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    found = find_recordings(arguments.recordings)
    name = arguments.recording or next(iter(found))
    recording = Recording(found[name])
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=arguments.chromium, args=ARGUMENTS)
        context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        page = context.new_page()
        page.set_default_timeout(120_000)  # a busy machine is no failure
        reader = Walk(page, psutil.Process())
        with started(reader, arguments.recordings, name, 0):
            pass
        with started(reader, arguments.recordings, name, 0, _KEY):
            pass
        with started(reader, arguments.recordings, name, arguments.look) as address:
            for turn in range(arguments.rounds):
                walk(reader, address, recording, turn, len(found) > 1)
        browser.close()
    show(reader, recording)


def _server() -> psutil.Process:
    """The process of the app."""
    [server] = [one for one in psutil.Process().children(True) if "app" in one.cmdline()]
    return server


def _cpu(server: psutil.Process) -> float:
    """Seconds of the server, and of the process in which the model runs."""
    all_times = [one.cpu_times() for one in (server, *server.children())]
    return sum(times.user + times.system for times in all_times)


if __name__ == "__main__":
    main()
