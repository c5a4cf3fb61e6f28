"""The compiled loops of ``cpu/`` and the kernels of ``gpu/``, and which of them a tensor is for.

The loops are built once with the machine's own compiler, the kernels by Triton when they are first called. Everything
that uses them has a plain PyTorch path, which is the reference, and the way where there is no compiler or no Triton.
Each file of both folders names the reference that it equals. ``native_for`` is the one function that chooses by device.
"""

import hashlib
import os
import platform
import sysconfig
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

SOURCES = Path(__file__).with_name("cpu")
"""Folder of the sources; ``library.cpp`` includes all others."""
# Sums may be reassociated, which vector registers need. Not -ffast-math: NaN must stay NaN.
FLAGS = ["-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-fassociative-math", "-fno-signed-zeros"]
OFF = "MEMSCOPE_NO_NATIVE"
"""Environment variable that keeps loops and kernels from being built and used."""


@cache
def native() -> Any:
    """``torch.ops.memscope``, built at the first call; none if that fails, with a warning that says why."""
    if os.environ.get(OFF):
        return None
    try:
        _load()
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        warnings.warn(f"training runs without compiled loops, up to twice as slow: {reason}", stacklevel=2)
        return None
    return torch.ops.memscope


@cache
def kernels() -> Any:
    """The kernels of ``gpu/``; none without Triton, with a warning that says what to install."""
    if os.environ.get(OFF):
        return None
    try:
        from memscope.model.ops.gpu import loops
    except ImportError as error:
        missing = "pip install 'memscope[triton]'"
        warnings.warn(f"the GPU gathers slots, which takes time and memory: {error}; {missing}", stacklevel=2)
        return None
    return loops


def native_for(tensor: Tensor) -> Any:
    """The loops or kernels for the device of a tensor, else none: then the caller takes its plain PyTorch path.

    Both have the same names and arguments, but that ``gated_gelu`` and ``softmax_read`` are for the CPU alone.
    """
    match tensor.device.type:
        case "cpu":
            return native()
        case "cuda":
            return kernels()
    return None


def _load() -> None:
    """Load the shared library, built if it is not there."""
    from torch.utils import cpp_extension

    library = Path(cpp_extension.get_default_build_root()) / f"{_name()}.so"
    if library.is_file():
        torch.ops.load_library(library)
    else:
        _build(library)


def _build(library: Path) -> None:
    """Build the shared library, load it and keep it.

    The kept file is not loaded: a process that built at the same time may have put its own there by then, and PyTorch
    ends a process that registers the same operators from two files.
    """
    from torch.utils import cpp_extension

    library.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of its own, then renamed: a build that was killed leaves a lock on its folder that the next waits for.
    with TemporaryDirectory(dir=library.parent, prefix=library.stem) as folder:
        path = os.environ.get("PATH", "")
        os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), path])  # where pip put ninja
        source = str(SOURCES / "library.cpp")
        try:
            cpp_extension.load(
                library.stem, [source], extra_cflags=FLAGS, build_directory=folder, is_python_module=False
            )
        finally:
            os.environ["PATH"] = path
        (Path(folder) / library.name).replace(library)


def _name() -> str:
    """The library's name, another for other sources, flags, PyTorch or processor."""
    paths = sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")])
    sources = [text for path in paths for text in (path.name, path.read_text())]
    version = hashlib.sha256("\n".join([*sources, *FLAGS, torch.__version__, _processor()]).encode())
    return f"memscope_{version.hexdigest()[:12]}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.machine())
