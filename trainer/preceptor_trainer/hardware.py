"""What this machine computes with: device, memory, number format, and how fast it really multiplies."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_AMPERE = 8
"""CUDA capability from which bf16 is native."""
_PROBE_SIZE = 1024
"""Side of the multiplied matrices: large enough to reach the peak, small enough for 10 products in a second."""


@dataclass(frozen=True)
class Hardware:
    """What training has to do with."""

    device: Literal["cpu", "cuda"]
    name: str
    threads: int
    """Threads that torch multiplies with on the processor."""
    memory_bytes: int
    """Free now: the GPU's memory, or what this process may still take of the machine's."""
    best_dtype: Literal["float32", "bfloat16", "float16"]
    """What `dtype: auto` means here: float32 on a CPU, so that every CPU reaches the same adapter."""
    total_bytes: int = 0
    """All memory of the GPU, the engine's share included; 0 where nobody asked."""


def detect_hardware() -> Hardware:
    """Looks at the first CUDA device, or else at the processor."""
    import torch  # Seconds to import, which `--help` must not wait for.

    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        native = torch.cuda.get_device_capability(0)[0] >= _AMPERE
        free, total = torch.cuda.mem_get_info(0)
        name = torch.cuda.get_device_name(0)
        return Hardware("cuda", name, threads, int(free), "bfloat16" if native else "float16", int(total))
    return Hardware("cpu", _cpu_name(), threads, free_memory(), "float32")


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that this process may still take, in bytes; a container's limit counts."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return available
    return available if limit == "max" else max(0, min(available, int(limit) - used))


def matrix_rate(device: str, *, seconds: float = 1.0) -> float:
    """Measures the float32 matrix rate, in FLOP/s: the best product of about `seconds` of them."""
    import torch

    left = torch.randn(_PROBE_SIZE, _PROBE_SIZE, device=device, dtype=torch.float32)
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        left @ left
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return float(2 * _PROBE_SIZE**3 / best)


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "processor"
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else "processor"
