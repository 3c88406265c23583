"""Install Vitral, or any pip arguments, with the build of PyTorch that fits this machine.

    python tools/install.py                      same as: pip install -e .
    python tools/install.py -e ".[serve]"        any arguments of pip install

On Linux the package index serves PyTorch with CUDA, several gigabytes. Without an NVIDIA GPU, this installs the CPU
build, about 200 MB, from PyTorch's CPU index (TORCH_CPU_INDEX: a mirror of it) or from the local wheels of pip's
configuration. If neither has it, it prints this and installs the default build of pip. On other systems the default
build is for CPUs. Requires only Python 3.11 and pip.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints/cpu.txt"
CPU_INDEX = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
PIP = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
# Run in a new process, since this one may have cached the packages before the installation.
REPORT = """
from importlib.metadata import distributions
sizes = {}
for each in distributions():
    size = sum(file.size or 0 for file in each.files or ())
    name = (each.metadata["Name"] or "").lower().replace("_", "-")
    sizes[name] = (each.version, size, any("cuda" in need or "nvidia" in need for need in each.requires or ()))
if "torch" in sizes:
    version, size, cuda = sizes["torch"]
    cuda = "+cpu" not in version and (cuda or "+cu" in version)
    if cuda:
        size += sum(row[1] for name, row in sizes.items() if name.startswith(("nvidia-", "cuda-")) or name == "triton")
    build = "CUDA build, with its libraries" if cuda else "CPU build"
    print(f"torch {version}: {build}, {size / 1e6:,.0f} MB on disk")
"""


def has_gpu() -> bool:
    """Return whether an NVIDIA driver responds."""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def take_cpu_torch() -> None:
    """Install the CPU build, so that pip finds the requirement satisfied. Print a message if there is none."""
    pinned = re.search(r"^torch==([\w.]+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    # The local version +cpu matches no other build.
    expected = f"torch=={pinned[1]}+cpu"
    quick = ["--no-deps", "--timeout", "15", "--retries", "1", "--index-url", CPU_INDEX]
    done = subprocess.run([*PIP, *quick, expected], capture_output=True, encoding="utf-8")
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
        print(f"No {expected} in {CPU_INDEX}, nor in the local wheels of pip's configuration ({reason.strip()}).")
        print("Installing the default build of pip: usually the CUDA build, several GB. Ctrl-C stops this.", flush=True)


def has_torch() -> bool:
    """Return whether torch is installed; an installed torch stays unchanged."""
    return subprocess.run([sys.executable, "-m", "pip", "show", "-qq", "torch"], capture_output=True).returncode == 0


def main(words: list[str]) -> int:
    """Install, and return the exit code of pip."""
    words = words or ["-e", str(ROOT)]
    gpu = has_gpu()
    if not gpu and sys.platform == "linux" and not has_torch():
        print("No NVIDIA GPU found: installing PyTorch's CPU build, about 200 MB ...", flush=True)
        take_cpu_torch()
    pins = [] if gpu else ["-c", str(CONSTRAINTS)]
    code = subprocess.run([*PIP, *pins, *words]).returncode
    if code == 0:
        subprocess.run([sys.executable, "-c", REPORT], check=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
