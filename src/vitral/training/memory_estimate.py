"""Estimate the memory of a run before it starts, and choose the micro-batch that fits a limit.

docs/memory.md explains the parts. It is of one process and its own allocations: a CUDA context, a decoder's buffers and
images that are kept decoded come on top.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from vitral.models.architecture_config import ArchitectureConfig
from vitral.models.config import ModelConfig
from vitral.models.cost import Device, Kept, Precision
from vitral.models.summary import count_parameters, forward_bytes, kept_activations

CPU_SHARE = 0.8  # of the available memory that memory=auto takes: the rest of the machine works too
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Job:
    """What decides a run's memory.

    architecture: the model that learns; a ModelConfig where images are evaluated. parameters: all that the objective
    holds (heads, decoder, teacher), trained: those that take gradients. kept: what a step on so many samples keeps.
    sample_bytes: one sample's images, as loaded and in all views, and ids of its texts. optimizer, average: float32
    values in the optimizer's state and in the moving average. validation: images evaluated at once. adds_up: whether
    micro-batches give the result of the whole batch.
    """

    architecture: ArchitectureConfig
    parameters: int
    trained: int
    batch_size: int
    kept: Callable[[int], Kept]
    sample_bytes: int
    precision: Precision = "float32"
    optimizer: int = 0
    average: int = 0
    validation: int = 0
    adds_up: bool = True


def model_job(
    architecture: ModelConfig, batch_size: int, precision: Precision = "float32", *, device: Device = "cpu",
    state: int = 2, ema: bool = False, validation: int = 0,
) -> Job:  # fmt: skip
    """Return the job of training a whole model on labels. state: values that the optimizer keeps for each parameter."""
    count = count_parameters(architecture)
    measure = partial(kept_activations, architecture, precision=precision, device=device)
    pixels = architecture.in_channels * math.prod(architecture.image_size)
    return Job(
        architecture, count, count, batch_size, interpolated(measure, batch_size), 8 * pixels, precision,
        state * count, count * ema, validation,
    )  # fmt: skip


def interpolated(measure: Callable[[int], Kept], largest: int) -> Callable[[int], Kept]:
    """Return what is kept of any number of samples up to `largest`, from two measurements at most: it is linear in the
    samples, up to the rounding of drop-path."""
    small = max(largest // 2, min(largest, 2))

    def kept(samples: int) -> Kept:
        high = measure(largest)
        if samples == largest:
            return high
        if small == largest:
            return high.nothing().between(high, samples / largest)
        return measure(small).between(high, (samples - small) / (largest - small))

    return kept


class Parts(NamedTuple):
    """Bytes at the moment when they are most."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    average: int = 0
    images: int = 0
    activations: int = 0
    workspace: int = 0


class Choice(NamedTuple):
    """One way through a batch, and its predicted peak in bytes. checkpointing: blocks computed twice."""

    micro_batch: int
    accumulation: int
    checkpointing: int
    memory_bytes: int


def predict(job: Job, micro_batch: int, checkpointing: int = 0) -> Parts:
    """The peak of a run: in a forward or a backward pass, in the optimizer's step or in a validation."""
    a, low, is_cut = job.architecture, job.precision == "bfloat16_params", micro_batch < job.batch_size
    images = job.sample_bytes * job.batch_size
    weights = job.parameters * (6 if low else 4)
    moment = partial(Parts, weights, optimizer=4 * job.optimizer, average=4 * job.average, images=images)
    summed = 4 * job.trained * is_cut * low  # of earlier micro-batches, beside the copy's own
    arriving = job.trained * (2 if low else 4)
    kept = job.kept(micro_batch)
    workspace, waiting = max(kept.peak - kept.total(), 0), summed + arriving * is_cut
    moments = [
        moment(gradients=4 * job.trained),
        moment(gradients=waiting, activations=kept.total(checkpointing), workspace=workspace),
    ]
    for activations, done in _backward(kept, checkpointing):
        gradients = summed + (arriving if is_cut else round(arriving * done))
        moments.append(moment(gradients=gradients, activations=activations, workspace=kept.passing))
    if job.validation:
        assert isinstance(a, ModelConfig)
        pixels = a.in_channels * math.prod(a.image_size)
        evaluated = forward_bytes(a, job.validation)
        moments.append(moment(images=4 * pixels * job.validation, workspace=evaluated))
    return max(moments, key=sum)


def _backward(kept: Kept, checkpointing: int) -> Iterator[tuple[int, float]]:
    """The activations alive as each block's gradients begin, the last block first, and the share of gradients done."""
    count, k = len(kept.blocks), checkpointing
    yield kept.total(k), 0.0
    for j in reversed(range(count)):
        inputs = sum(kept.inputs[: min(j + 1, k)])
        alive = kept.blocks[j] if j < k else sum(kept.blocks[k : j + 1])
        yield kept.stem + inputs + alive, (count - 1 - j) / count


def choose(job: Job, limit: float, micro_batch: int | None = None, checkpointing: int | None = None) -> Choice | None:
    """The way through a batch that fits into `limit` bytes with the fewest blocks computed twice, and of those the
    largest micro-batch; None if nothing fits. What is given stays.

    A batch norm's statistics are of a micro-batch, so there the micro-batch stays whole as long as it can.
    """
    total = job.architecture.block_count
    blocks = range(total + 1) if checkpointing is None else [checkpointing]
    sizes = micro_batches(job) if micro_batch is None else [micro_batch]
    ways = [(size, again) for again in blocks for size in sizes]
    if job.architecture.uses_batch_statistics:
        ways = [(size, again) for size in sizes for again in blocks]
    return next((found for way in ways if (found := _choice(job, *way)).memory_bytes <= limit), None)


def alternatives(job: Job, limit: float) -> list[Choice]:
    """For none, a quarter, half, three quarters and all of the blocks computed twice: the largest micro-batch that
    fits, and where none does the smallest."""
    total = job.architecture.block_count
    counts = sorted({round(total * quarter / 4) for quarter in range(5)})
    return [choose(job, limit, None, count) or _choice(job, micro_batches(job)[-1], count) for count in counts]


def _choice(job: Job, micro_batch: int, checkpointing: int) -> Choice:
    accumulation = math.ceil(job.batch_size / micro_batch)
    return Choice(micro_batch, accumulation, checkpointing, sum(predict(job, micro_batch, checkpointing)))


def micro_batches(job: Job) -> list[int]:
    """Sizes into which the batch can be cut evenly, up to a shorter last one, the largest first; drop-path has to leave
    out one whole sample at least."""
    rate = job.architecture.dropped_samples
    sizes = {math.ceil(job.batch_size / count) for count in range(1, job.batch_size + 1)}
    useful = [size for size in sizes if not rate or round(size * (1 - rate)) != size]
    return sorted(useful or [job.batch_size], reverse=True)


def read_bytes(text: str) -> int:
    """8GB, 512 MiB ... as bytes."""
    found = re.fullmatch(r"([\d.]+)\s*((?:[KMGT]i?)?)B", text)
    assert found is not None, text
    return int(float(found[1]) * _UNITS[found[2]])


def show_bytes(count: float) -> str:
    """Bytes as people say them."""
    unit = next((unit for unit in "TGMK" if count >= _UNITS[unit]), "")
    return f"{count / _UNITS[unit]:.3g} {unit}B"


def free_bytes(device: torch.device) -> int:
    """What a run may take now: on CUDA what is free, on a CPU a share of what system and container have left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(CPU_SHARE * min(_system_free(), _container_free()))


def _system_free() -> float:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        return 1024.0 * int(lines["MemAvailable"].split()[0])
    if hasattr(os, "sysconf"):  # not what is free, but what there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    return math.inf


def _container_free() -> float:
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return math.inf
    return math.inf if limit == "max" else int(limit) - int(used)
