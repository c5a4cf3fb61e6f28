"""Screenshots of every page of the app, for the README and the guide.

    python docs/screenshots.py recordings/demo          # writes docs/images/*.png

Needs playwright and a Chromium (``--chromium PATH``; default: the one on the path).
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, sync_playwright

from memscope.query import Recording

SIZE: ViewportSize = {"width": 1280, "height": 900}
MAX_BYTES = 400_000
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def views(recording: Recording) -> dict[str, str]:
    """Address of every picture, by its name; entry and token are the same whenever the recording is."""
    entry = int(recording.entries(limit=1)["entry"][0])
    words = recording.trace(0, 0, 120).tokens
    token = int(words["pos"][words["text"].str.len().idxmax()])
    return {
        "overview": "",
        "prompts": f"prompts?doc=0&token={token}",
        "entries": "entries",
        "entry": f"entries?entry={entry}",
        "gate_bias": "gate_bias",
    }


@contextmanager
def running_app(recording: Path) -> Iterator[str]:
    """The app on a free port; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "memscope", "app", str(recording), "--port", str(port)])
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
        server.wait()


def take(page: Page, address: str, path: Path) -> None:
    """One picture, once the page has come to rest."""
    page.goto(address)
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_timeout(500)
    page.wait_for_function("document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    page.wait_for_timeout(1000)  # tables are drawn on a canvas, which nothing announces
    page.screenshot(path=path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        sys.exit(f"{path}: {size:,} bytes, more than {MAX_BYTES:,}")
    print(f"{path}  {size:,} bytes")


def main() -> None:
    """Parse the command line and take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with running_app(arguments.recording) as app, sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=arguments.chromium, args=ARGUMENTS)
        context = chromium.new_context(viewport=SIZE, color_scheme=arguments.theme, device_scale_factor=1)
        page = context.new_page()
        for name, view in views(Recording(arguments.recording)).items():
            take(page, f"{app}/{view}", arguments.out / f"{name}.png")
        chromium.close()


if __name__ == "__main__":
    main()
