"""The device, precision, processes and memory of a running model."""

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from memscope.base.errors import InputError
from memscope.base.work import ALONE, Processes


def pick_device(name: str) -> torch.device:
    """The device of a name: ``auto`` takes CUDA, then MPS, then the CPU; other names are torch devices.

    Under torchrun, ``auto`` takes the GPU of this process.

    Raises:
        InputError: the device is unknown, or this machine lacks it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch built without the device raises AssertionError
        raise InputError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}); try --device auto"
        ) from error
    return device


_BFLOAT16_LOOPS = ("avx512_bf16", "amx_bf16", "bf16")
"""What CPUs call their instructions for it; without them float32 is faster."""


def pick_dtype(name: str, device: torch.device) -> str:
    """The autocast type of a name: ``auto`` takes bfloat16 where the device multiplies it faster, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        fast = any(has.get(instructions) for instructions in _BFLOAT16_LOOPS)
    return "bfloat16" if fast else "float32"


def processes() -> Processes:
    """This process among those of ``torchrun``, joined through Accelerate; a single process without ``torchrun``."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState

    # Processes wait for one another and send results here; gloo can do that on every device. The timeout is long for
    # slow ones.
    state = PartialState(cpu=True, timeout=timedelta(days=7))
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone, _gather_lists)


def _gather_lists(own: list[Any]) -> list[Any]:
    is_main = torch.distributed.get_rank() == 0
    lists: list[list[Any]] | None = [[] for _ in range(torch.distributed.get_world_size())] if is_main else None
    torch.distributed.gather_object(own, lists)
    return [each for list_ in lists or () for each in list_]


def agreed(number: int, device: torch.device) -> int:
    """The first process's ``number``, in all processes that train together: machines may round differently."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return number
    shared = torch.tensor(number, device=device)
    torch.distributed.broadcast(shared, src=0)
    return int(shared)


def gather_rows(*parts: torch.Tensor) -> list[torch.Tensor]:
    """Concatenate rows over all processes, in order; the processes may hold different numbers of rows.

    Args:
        parts: tensors with equally many rows in this process.
    """
    count = torch.tensor([len(parts[0])], device=parts[0].device)
    counts = [torch.zeros_like(count) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(counts, count)
    lengths = [int(count) for count in counts]
    return [_gathered(part, lengths) for part in parts]


def _gathered(part: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    padded = part.new_zeros(max(lengths), *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in lengths]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([rows[:length] for rows, length in zip(parts, lengths, strict=True)])


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[None]:
    """Mixed-precision context for a config's ``dtype``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=pick_dtype(dtype, device) == "bfloat16")


_Name = TypeVar("_Name", bound=Hashable)


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on a device; on a GPU a copy that comes in its turn, without waiting for what is under way there."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def on_host(tensors: Mapping[_Name, torch.Tensor]) -> dict[_Name, np.ndarray]:
    """Tensors as arrays, after one wait for a GPU and not one for each."""
    copies = {name: tensor.to("cpu", non_blocking=tensor.is_cuda) for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return {name: copy.numpy() for name, copy in copies.items()}


def peak_rss_bytes() -> int:
    """Largest resident set size of this process so far, in bytes."""
    if sys.platform == "linux":  # ru_maxrss would count the memory of the parent process at the start of this one
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning each to the kernel; call once, before the work.

    A training step frees and allocates the same large tensors again and again. By default glibc unmaps, maps and
    page-faults each of them every time, which takes a third of a step on a CPU. Does nothing on other C libraries.
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_threshold, one_gib = -1, -3, 1 << 30
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, one_gib)
        libc.mallopt(m_trim_threshold, one_gib)


def in_huge_pages(tensor: torch.Tensor) -> torch.Tensor:
    """Ask Linux to use pages of 2 MiB for a tensor that was not written to yet; returns the tensor.

    Reads of random rows of a large table walk the page tables for every row when pages have 4 KiB.
    """
    if tensor.device.type == "cpu" and sys.platform == "linux":
        madv_hugepage, page = 14, resource.getpagesize()
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        first = -(-start // page) * page
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(max(0, stop - first)), madv_hugepage)
    return tensor


def return_freed_memory() -> None:
    """Return the memory to the kernel that ``keep_freed_memory`` made glibc keep; call between two kinds of work."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
