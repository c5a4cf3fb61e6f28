"""Screenshots of every page of the app, for the README and the guide.

    python docs/screenshots.py recordings/demo                     # writes docs/images/*.png
    python docs/screenshots.py recordings --recording demo --with later     # with the compare page
    python docs/screenshots.py recordings/olmoe                    # of a mixture of experts: the page of routing

Needs playwright and a Chromium (``--chromium PATH``; default: the one on the path), and Pillow, which comes with
matplotlib: pictures are kept small by a palette of 256 colours. The same recording gives the same pictures.
"""

import argparse
import io
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

from memscope.query.charts import map_points
from memscope.query.recording import Recording
from memscope.report.routing import is_routed

SIZE: ViewportSize = {"width": 1280, "height": 900}
MAX_BYTES = 300_000
# WebGL comes from software where there is no GPU.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--enable-unsafe-swiftshader",
]
HEIGHTS = {
    **{"prompts": 1180, "entry": 1120, "overview": 1040, "map": 1080},
    **{
        "reading": 660,
        "profiles": 1000,
        "compare": 880,
        "gate_bias": 880,
        "training": 920,
        "what_if": 1100,
        "facts": 1000,
        "load": 640,
        "atlas": 760,
    },
}
"""Heights of pictures that are not as high as ``SIZE``."""
WHAT_IF = "Apollo was the god of the sun and of music in ancient Greece."
"""What the model reads with and without its memory."""


def views(recording: Recording, other: str | None) -> dict[str, str]:
    """Address of every picture, by its name; entry and token are the same whenever the recording is."""
    entry = int(recording.entries(limit=1)["entry"][0])
    words = recording.trace(0, 0, 120).tokens
    words = words[words["text"].str.fullmatch(" [a-z]+")]
    token = int(words["pos"][words["text"].str.len().idxmax()])
    layer = recording.info.layers[len(recording.info.layers) // 2]
    pages: dict[str, tuple[str, dict[str, object]]] = {
        "overview": ("", {}),
        "training": ("", {"part": "training"}),
        "prompts": ("prompts", {"doc": 0, "token": token, "layer": layer}),
        "entries": ("entries", {}),
        "entry": ("entries", {"entry": entry}),
        "gate_bias": ("gate_bias", {}),
        "preferences": ("gate_bias", {"part": "preferences"}),
        "profiles": ("gate_bias", {"part": "profiles"}),
        "reading": ("reading", {"part": "gate against read", "layer": layer}),
    }
    if is_routed(recording):
        pages = {"load": ("routing", {"part": "load"}), "atlas": ("routing", {"part": "atlas", "layer": layer})}
        return {name: f"{page}?{urlencode(values)}" for name, (page, values) in pages.items()}
    if (recording.path / "facts.json").is_file():
        pages["facts"] = ("facts", {})
    pages["what_if"] = ("what_if", {"change": "scale", "amount": 0, "text": WHAT_IF, "token": 5})
    places = recording.map()
    if places is not None:
        used = recording.usage().sum(0)[places["entry"]] > 0
        x, y = (1000 * map_points.unit_places(places)[used][["x", "y"]].median()).astype(int)
        ring = [(x + int(90 * np.cos(a)), y + int(70 * np.sin(a))) for a in np.linspace(0, 2 * np.pi, 25)[:-1]]
        pages["map"] = ("map", {"by": "cluster", "lasso": ".".join(f"{a}_{b}" for a, b in ring)})
    if other is not None:
        pages["compare"] = ("compare", {"with": other, "part": "metrics"})
    return {name: f"{page}?{urlencode(values)}" for name, (page, values) in pages.items()}


@contextmanager
def running_app(recordings: Path) -> Iterator[str]:
    """The app on a free port; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "memscope", "app", str(recordings), "--port", str(port)])
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
    page.set_viewport_size(
        {"width": SIZE["width"], "height": HEIGHTS.get(path.stem.removesuffix("_dark"), SIZE["height"])}
    )
    page.goto(address)
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_timeout(500)
    page.wait_for_function("document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    page.wait_for_timeout(2000)  # tables and maps are drawn on a canvas, which nothing announces
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        sys.exit(f"{path}: {size:,} bytes, more than {MAX_BYTES:,}")
    print(f"{path}  {size:,} bytes")


def main() -> None:
    """Parse the command line and take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="a recording, or a folder of them")
    parser.add_argument("--recording", help="name of the one to show, where there are several")
    parser.add_argument("--with", dest="other", help="name of the one to compare it with")
    parser.add_argument("--only", nargs="*", help="names of pictures; default: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--dark", nargs="*", default=["prompts", "map"], help="names to take on a dark page as well")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = arguments.recording or arguments.recordings.name
    shown = Recording(arguments.recordings / arguments.recording if arguments.recording else arguments.recordings)
    with running_app(arguments.recordings) as app, sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=arguments.chromium, args=ARGUMENTS)
        for theme, suffix in (("light", ""), ("dark", "_dark")):
            page = chromium.new_context(color_scheme=theme, device_scale_factor=1).new_page()  # type: ignore[arg-type]
            for picture, view in views(shown, arguments.other).items():
                wanted = picture in (arguments.only or [picture]) and (theme == "light" or picture in arguments.dark)
                if wanted:
                    take(page, f"{app}/{view}&recording={name}", arguments.out / f"{picture}{suffix}.png")
        chromium.close()


if __name__ == "__main__":
    main()
