"""The machine: its name in records, the cores that are ours, and how its memory is kept. Standard library, torch on demand."""
import ctypes
import os
import re
import shutil
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

from lc.errors import InputError


def threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs() -> int:
    """Runs to make at a time: 1 with a GPU, else one for each core, 4 at most; two runs with a core each get more done than one on both."""
    return 1 if shutil.which("nvidia-smi") else min(4, threads())


def device_name(device) -> str:
    """The torch device as records name it."""
    if device.type == "cuda":
        import torch
        return torch.cuda.get_device_name(device)
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = [re.search(rf"^{key}\s*: *(.*)", text, re.M) for key in ("model name", "cpu family", "model")]
    name, *kind = (one and one[1].strip() for one in found)
    return f"{name or 'CPU'}{' (family {}, model {})'.format(*kind) * all(kind)}, {threads()} cores"  # clouds give many kinds one name


def keep_memory() -> None:
    """Let glibc keep what is freed for what is allocated next, instead of handing it back: fresh pages cost up to a fifth of a forward
    (results/NOTES.md). Elsewhere nothing happens."""
    with suppress(OSError, AttributeError):
        for option, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            ctypes.CDLL("libc.so.6").mallopt(option, value)


@contextmanager
def alone_in(folder: Path):
    """Within the block no other process is in it; InputError if one is."""
    import fcntl  # not on Windows
    at = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every network's disk can
            try:
                fcntl.flock(at, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another process is at work in {folder}; wait for it, and call again") from None
        yield
    finally:
        os.close(at)


def end_with_parent(parent: int) -> None:
    """Have Linux end this process when the one that began it, number `parent`, ends, however that happens: a killed run leaves no workers."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    os.getppid() == parent or os._exit(1)  # it may have ended before Linux was asked
