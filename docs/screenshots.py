"""Screenshots of every page of the app, for the README and the guide.

    python docs/screenshots.py recordings/demo                     # writes docs/images/*.png
    python docs/screenshots.py recordings --recording demo-steps/step-00000800 \
        --with demo-steps/step-00000600 --only compare             # two checkpoints on the same text
    python docs/screenshots.py recordings/olmoe                    # of a mixture of experts: the page of routing

Every page must show a number that the recording itself gives (``numbers``). ``docs/images/pictures.json`` keeps it and
the run, and the tests hold pictures and docs against it.

Needs playwright and a Chromium (``--chromium PATH``; default: the one on the path), and Pillow, which comes with
matplotlib: pictures are kept small by a palette of 256 colours. The same recording gives the same pictures.
"""

import argparse
import hashlib
import io
import json
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
from urllib.parse import urlencode

import numpy as np
from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from memscope.base.files import write_text
from memscope.query.charts import map_points
from memscope.query.recording import Recording
from memscope.report.facts import load_sentence_facts, sentence_finding
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
    **{"prompts": 1180, "words": 900, "entry": 1120, "overview": 1040, "map": 1080},
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
READ = "Apollo was the god of"
"""What a layer of sentences reads words for."""
WHAT_IF = "Apollo was the god of the sun and of music in ancient Greece."
"""What the model reads with and without its memory."""


def entry_shown(recording: Recording) -> int:
    """The entry of the picture of one: the most used."""
    return int(recording.entries(limit=1)["entry"][0])


def token_shown(recording: Recording) -> int:
    """The place of the token of the picture of a text: its longest word."""
    words = recording.trace(0, 0, 120).tokens
    words = words[words["text"].str.fullmatch(" [a-z]+")]
    return int(words["pos"][words["text"].str.len().idxmax()])


def numbers(recording: Recording) -> dict[str, str]:
    """A number that the page of each picture shows, as the recording gives it; the count of tokens for all others."""
    info, run, places = recording.info, recording.run_summary, recording.map()
    d = f"{recording.total_selections(info.layers[0]):,}"
    known = {"gate_bias": d, "profiles": d, "compare": d, "entries": f"of {info.knowledge_num:,}"}
    if info.predictions:
        loss = recording.trace(0, 0, 120).tokens.set_index("pos")["loss"]
        known |= {"overview": f"{recording.census.loss:.3f}", "prompts": f"{loss[token_shown(recording)]:.2f} nats"}
    if run:
        known["training"] = f"{run['parameters']:,}"
    if places is not None:
        known["map"] = f"{len(places):,} in all"
    if (asked := load_sentence_facts(recording.path)) is not None:
        known["facts"] = next(iter(re.findall(r"\S+ are answered", sentence_finding(asked))))
    total = int(recording.entry(entry_shown(recording)).usage["count"].sum())
    return known | {"entry": f"{total:,}", "": f"{info.rows:,}"}


def views(recording: Recording, other: str | None) -> dict[str, str]:
    """Address of every picture, by its name; entry and token are the same whenever the recording is."""
    entry, token = entry_shown(recording), token_shown(recording)
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
    reading = [site.layer for site in recording.info.sites if site.kind == "text"]
    if reading:
        pages["words"] = ("prompts", {"source": "your text", "text": READ, "layer": reading[0]})
    if any((recording.path / name).is_file() for name in ("facts.json", "sentence_facts.json")):
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


def take(page: Page, address: str, path: Path, number: str) -> str:
    """One picture, once the page has come to rest; returns its SHA-256.

    Raises:
        SystemExit: the picture is too large, or its page does not show the number.
    """
    page.set_viewport_size(
        {"width": SIZE["width"], "height": HEIGHTS.get(path.stem.removesuffix("_dark"), SIZE["height"])}
    )
    page.goto(address)
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_timeout(500)
    page.wait_for_function("document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    try:
        page.get_by_text(number).first.wait_for(state="attached")  # sees what is in shadow roots, too
    except PlaywrightTimeout:
        sys.exit(f"{address}: the page does not show {number}, which the recording gives")
    page.wait_for_timeout(2000)  # tables and maps are drawn on a canvas, which nothing announces
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        sys.exit(f"{path}: {size:,} bytes, more than {MAX_BYTES:,}")
    print(f"{path}  {size:,} bytes")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def note(folder: Path, recording: Recording, taken: dict[str, tuple[str, str]]) -> None:
    """Write down which run pictures are of, and the number that each page showed; others keep what is known of them."""
    path, run = folder / "pictures.json", recording.run_summary
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    of = {
        "run": recording.info.run_name,
        "fingerprint": recording.info.fingerprint,
        "tokens": recording.info.rows,
        "valid_loss": run.get("valid_loss"),
    }
    known |= {name: {"number": number, "sha256": sha256, **of} for name, (number, sha256) in taken.items()}
    write_text(path, json.dumps(dict(sorted(known.items())), indent=2) + "\n")


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
    taken: dict[str, tuple[str, str]] = {}
    name = arguments.recording or arguments.recordings.name
    shown = Recording(arguments.recordings / arguments.recording if arguments.recording else arguments.recordings)
    shows = numbers(shown)
    with running_app(arguments.recordings) as app, sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=arguments.chromium, args=ARGUMENTS)
        for theme, suffix in (("light", ""), ("dark", "_dark")):
            page = chromium.new_context(color_scheme=theme, device_scale_factor=1).new_page()  # type: ignore[arg-type]
            page.set_default_timeout(180_000)  # a busy machine takes its time
            for picture, view in views(shown, arguments.other).items():
                wanted = picture in (arguments.only or [picture]) and (theme == "light" or picture in arguments.dark)
                if wanted:
                    number, path = shows.get(picture, shows[""]), arguments.out / f"{picture}{suffix}.png"
                    taken[path.stem] = (number, take(page, f"{app}/{view}&recording={name}", path, number))
        chromium.close()
    note(arguments.out, shown, taken)


if __name__ == "__main__":
    main()
