"""Connect to the Ray cluster of RAY_ADDRESS, or start one on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from vitral.errors import UserError
from vitral.optional_imports import install, optional

_SECONDS_TO_ANSWER = 5.0
_CORES_EACH = 4  # per CPU worker, where the number of workers is not set


class Share(NamedTuple):
    """How a cluster is shared out: how many workers, and the processors and GPUs that each has to itself."""

    workers: int
    cpus: int
    gpus: int


@contextmanager
def cluster() -> Generator[Any]:
    """The module ray, connected: to the cluster at RAY_ADDRESS, or else to one of this machine's processors and GPUs
    that ends with the block. A connection that the process has already is used and left.

    Nothing is reported to anybody, no dashboard is started, and stdout stays clean. Raises UserError without the extra
    and where no cluster answers.
    """
    # Read when ray is imported, and passed on to what it starts.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray Serve restarts the listening process after 5 s: a busy machine may need them for its imports.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    try:
        ray: Any = optional("ray")
        optional("ray.data")
    except ImportError as error:
        raise UserError("Ray is not installed", where="engine", got=f"ray: {error}", hint=install("ray")) from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        if address == "local":
            quiet["include_dashboard"] = False
        else:
            _check_answers(address)
        ray.init(address=address, **quiet)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UserError("no Ray cluster", where="RAY_ADDRESS", got=f"{address}: {reason}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises UserError for an address where nothing listens: Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        if address == "auto":
            return
        raise UserError("not an address of a cluster", where="RAY_ADDRESS", got=address, expected="HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        hint = "`ray start --head` starts one; without RAY_ADDRESS this machine alone works."
        raise UserError("no Ray cluster answers", where="RAY_ADDRESS", got=f"{address}: {error}", hint=hint) from None


def resources(ray: Any) -> list[Mapping[str, float]]:
    """What each machine of the cluster has: "CPU", "GPU", ..."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def share_out(nodes: Iterable[Mapping[str, float]], device: str, workers: int | None) -> Share:
    """Processors and GPUs of each worker, as many as fit.

    device: auto (GPUs where the cluster has any), cpu or cuda. workers: None for one a GPU, else one for every four
    processors. Raises UserError for more workers than there is room for, and for another device.
    """
    nodes = list(nodes)
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError("Ray gives each worker a GPU", where="device", got=device, expected="auto, cpu or cuda")
    if device == "cuda" and not gpus:
        raise UserError("the cluster has no GPU", where="device", got=device, expected="auto or cpu")
    on_gpus = device != "cpu" and gpus > 0
    cores = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    if on_gpus:
        room, unit, cpus = gpus, "GPUs", min(cpu // gpu for cpu, gpu in cores if gpu)
        expected = workers or gpus
    else:
        room, unit = sum(cpu for cpu, _ in cores), "processors"
        expected = workers or max(1, sum(cpu // _CORES_EACH for cpu, _ in cores))
        fits = [each for each in range(1, room + 1) if sum(cpu // each for cpu, _ in cores) >= expected]
        cpus = max(fits, default=0)
    if expected > room:
        raise UserError(
            "the cluster has no room for so many workers", where="ray.workers", got=expected,
            expected=f"{room} at most, its {unit}",
        )  # fmt: skip
    return Share(expected, cpus, int(on_gpus))
