"""Where and in which precision a model runs, and what it used."""

import ctypes
import platform
import resource
import sys
from contextlib import AbstractContextManager

import torch

from memscope.errors import InputError


def pick_device(name: str) -> torch.device:
    """``auto`` takes CUDA, then MPS, then the CPU; other names are torch devices.

    Raises:
        InputError: an unknown device, or one that this machine lacks.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}); try --device auto"
        ) from error
    return device


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[None]:
    """Mixed-precision context for a config's ``dtype``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def peak_rss_bytes() -> int:
    """Largest resident set size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning each to the kernel; call once, before the work.

    A training step frees and asks for the same large tensors over and over; with glibc's default every one of them
    is unmapped, mapped and page-faulted again, a third of a step on a CPU. Does nothing on other C libraries.
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_threshold, one_gib = -1, -3, 1 << 30
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, one_gib)
        libc.mallopt(m_trim_threshold, one_gib)
