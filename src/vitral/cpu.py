"""Instruction sets of this processor that decide which matrix kernels are used."""

from __future__ import annotations

import platform
from pathlib import Path

# As Linux names them, x86 first; a kernel's result can depend on each.
_SETS = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")


def instruction_sets() -> list[str]:
    """Their names in a fixed order; last what torch makes of them (which ATEN_CPU_CAPABILITY limits), as torch:avx2.

    Without /proc/cpuinfo the machine's kind stands for the rest.
    """
    import torch

    flags = _flags()
    found = [name for name in _SETS if name in flags] if flags else [platform.machine().lower() or "unknown"]
    return [*found, f"torch:{torch.backends.cpu.get_cpu_capability().lower().replace(' ', '_')}"]


def _flags() -> set[str]:
    """Of the first core. Linux calls them flags (x86) or Features (Arm)."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
