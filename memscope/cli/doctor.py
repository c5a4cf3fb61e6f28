"""The command ``doctor``: what memscope runs on here, and what makes it slow."""

import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from memscope.base.work import cores
from memscope.cli.options import DeviceOption, show

_PACKAGES = ["memscope", "torch", "transformer-lens", "transformers", "tokenizers", "numpy", "numba", "duckdb"]
_PACKAGES += ["pandas", "streamlit", "umap-learn"]
_LETTERS = {"Chinese": "中", "Japanese": "あ", "Korean": "한", "Arabic": "ع", "Hindi": "अ", "emoji": "😀"}
"""A character of each script that figures may have to draw."""
_ROOM = 10 << 30
"""Free bytes of a disk below which a recording of some length may fill it."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(doctor)


def doctor(device: DeviceOption = "auto") -> None:
    """Print versions, device, compiler, threads and fonts, and what is slow here and why."""
    notes: list[str] = []
    for name, found in _looks(device, notes):
        show(f"{name:<12}{found}")
    show("", "Slow or missing here:" if notes else "Nothing here is slower than it need be.")
    for note in notes:
        show(f"- {note}")


def _looks(device: str, notes: list[str]) -> Iterator[tuple[str, str]]:
    """What there is, by name; ``notes`` takes what is slow."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)

    import torch

    from memscope.base.runtime import pick_device, pick_dtype

    chosen = pick_device(device)
    named = f" ({torch.cuda.get_device_name(chosen)})" if chosen.type == "cuda" else ""
    dtype = pick_dtype("auto", chosen)
    yield "device", f"{chosen}{named}, trains in {dtype}"
    if chosen.type == "cpu":
        notes.append("no GPU is used; the presets demo and *_small are made for that, the others are not")
        yield "processor", f"{torch.backends.cpu.get_cpu_capability()} vectors"
        if dtype == "float32":
            notes.append("this processor has no instructions for bfloat16, so it trains in float32")
        yield "compiler", _compiler(notes)
    if chosen.type == "cuda":
        yield "triton", _triton(notes)
    yield "threads", _threads(torch.get_num_threads(), notes)
    yield "memory", _memory()
    free = shutil.disk_usage(Path.cwd()).free
    yield "disk", f"{free / 1e9:.0f} GB free in {Path.cwd()}"
    if free < _ROOM:
        notes.append(f"the disk has {free / 1e9:.1f} GB left; the demo's recording takes 0.45 GB for a million tokens")
    yield "fonts", _fonts(notes)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _compiler(notes: list[str]) -> str:
    """Whether the compiled loops can be used; builds them if they are not there."""
    from memscope.model.ops.native import OFF, native

    if os.environ.get(OFF):
        notes.append(f"{OFF} is set: training runs without compiled loops, up to twice as slow; unset it")
        return f"not used ({OFF} is set)"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built = native() is not None
    command = os.environ.get("CXX", "c++")
    if built:
        return f"{shutil.which(command) or command}, loops are built"
    notes.extend(f"{warning.message}; apt install g++" for warning in caught)
    return f"{command}, loops cannot be built"


def _triton(notes: list[str]) -> str:
    """Whether the kernels for GPUs can be used."""
    from memscope.model.ops.native import OFF, kernels

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        there = kernels() is not None
    notes.extend(str(warning.message) for warning in caught)
    if os.environ.get(OFF):
        notes.append(f"{OFF} is set: the GPU gathers slots, which takes time and memory; unset it")
    return _version("triton") if there else "not used"


def _threads(used: int, notes: list[str]) -> str:
    there = cores()
    busy = os.getloadavg()[0]
    limits = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    if used < there:
        notes.append(f"torch uses {used} of {there} cores{f', as {limits[0]} says' if limits else ''}")
    if busy > there:
        notes.append(
            f"other processes want the {there} cores: the load of the last minute was {busy:.1f}; several threads "
            "are far faster then with GOMP_SPINCOUNT=1000, which memscope train sets if it sees that at its start"
        )
    return f"{used} of {there} cores{''.join(f', {limit}' for limit in limits)}; load {busy:.1f}"


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB free"


def _fonts(notes: list[str]) -> str:
    """The font of figures. Pages have their letters drawn by the browser."""
    from matplotlib import font_manager, rcParams
    from matplotlib.ft2font import FT2Font

    path = font_manager.findfont(font_manager.FontProperties(family=rcParams["font.family"]))
    font = FT2Font(path)
    if missing := [script for script, letter in _LETTERS.items() if not font.get_char_index(ord(letter))]:
        notes.append(f"figures show boxes for {', '.join(missing)}: {font.family_name} lacks them")
    return f"{font.family_name} in figures"
