"""How much memory a run takes, before anything runs, and which micro-batch and checkpointing fit into a limit.

docs/memory.md has the formula. It is of one process and its own allocations: a CUDA context, a decoder's buffers and
images that are kept decoded come on top.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from vitral.models.activations import Kept, Precision, kept_activations
from vitral.models.config import ResNetConfig, ViTConfig
from vitral.models.flops import total_tokens

CPU_SHARE = 0.8  # of the available memory that memory=auto takes: the rest of the machine works too
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Job:
    """What decides a run's memory. trained: parameters that take gradients; encoder_trained: whether gradients pass
    through the encoder. state: values that the optimizer keeps for each trained one. validation: images judged at once.
    """

    architecture: ViTConfig | ResNetConfig
    parameters: int
    trained: int
    batch_size: int
    precision: Precision = "float32"
    state: int = 2
    ema: bool = False
    encoder_trained: bool = True
    validation: int = 0
    device: Literal["cpu", "cuda"] = "cpu"


class Parts(NamedTuple):
    """Bytes at the moment when they are most."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    images: int
    activations: int
    workspace: int


class Choice(NamedTuple):
    """One way through a batch, and its predicted peak in bytes. checkpointing: blocks computed twice."""

    micro_batch: int
    accumulation: int
    checkpointing: int
    memory_bytes: int


def count_blocks(architecture: ViTConfig | ResNetConfig) -> int:
    """Blocks that can be checkpointed."""
    return architecture.depth if isinstance(architecture, ViTConfig) else sum(architecture.blocks)


def predict(job: Job, micro_batch: int, checkpointing: int = 0) -> Parts:
    """The peak of a run: in a backward pass, in the optimizer's step or in a validation."""
    a, low = job.architecture, job.precision == "bfloat16_params"
    pixels = a.in_channels * a.image_size[0] * a.image_size[1]
    weights = job.parameters * (6 if low else 4)
    lasting = {
        "weights": weights, "optimizer": 4 * job.state * job.trained, "average": 4 * job.parameters * job.ema,
    }  # fmt: skip
    images = 8 * pixels * job.batch_size  # in float32, as loaded and as augmented
    summed = 4 * job.trained * (micro_batch < job.batch_size) * low  # of earlier micro-batches, beside the copy's own
    arriving = job.trained * (2 if low else 4)
    moments = [Parts(gradients=4 * job.trained, images=images, activations=0, workspace=0, **lasting)]
    kept = kept_activations(a, micro_batch, job.precision, job.device)
    for activations, done in _backward(kept, checkpointing if job.encoder_trained else 0):
        gradients = summed + (arriving if micro_batch < job.batch_size else round(arriving * done))
        activations = activations if job.encoder_trained else kept.head
        moments.append(
            Parts(gradients=gradients, images=images, activations=activations, workspace=kept.workspace, **lasting)
        )
    judged = forward_bytes(a, job.validation)
    moments.append(Parts(gradients=0, images=4 * pixels * job.validation, activations=0, workspace=judged, **lasting))
    return max(moments, key=sum)


def _backward(kept: Kept, checkpointing: int) -> Iterator[tuple[int, float]]:
    """The activations alive as each block's gradients begin, the last block first, and the share of gradients done."""
    count, k = len(kept.blocks), checkpointing
    yield kept.total(k), 0.0
    for j in reversed(range(count)):
        inputs = sum(kept.inputs[: min(j + 1, k)])
        alive = kept.blocks[j] if j < k else sum(kept.blocks[k : j + 1])
        yield kept.stem + inputs + alive, (count - 1 - j) / count


def forward_bytes(architecture: ViTConfig | ResNetConfig, samples: int) -> int:
    """The largest moment of a forward pass in float32 that keeps nothing: inside a block's MLP, or its attention."""
    a = architecture
    if isinstance(a, ViTConfig):
        gates = 2 if a.mlp == "swiglu" else 1
        inner = max((gates + 1) * max(a.mlp_dims_of_blocks), 4 * max(a.heads_of_blocks) * (a.width // a.heads))
        return 4 * samples * total_tokens(a) * (2 * a.width + inner)
    return 3 * kept_activations(a, samples, "float32").workspace // 2 if samples else 0


def choose(job: Job, limit: float, micro_batch: int | None = None, checkpointing: int | None = None) -> Choice | None:
    """The way through a batch that fits into `limit` bytes with the fewest blocks computed twice, and of those the
    largest micro-batch; None if nothing fits. What is given stays.

    A batch norm's statistics are of a micro-batch, so there the micro-batch stays whole as long as it can.
    """
    total = count_blocks(job.architecture)
    blocks = range(total + 1) if checkpointing is None else [checkpointing]
    sizes = micro_batches(job) if micro_batch is None else [micro_batch]
    ways = [(size, again) for again in blocks for size in sizes]
    if isinstance(job.architecture, ResNetConfig) and job.architecture.norm == "batch":
        ways = [(size, again) for size in sizes for again in blocks]
    return next((found for way in ways if (found := _choice(job, *way)).memory_bytes <= limit), None)


def alternatives(job: Job, limit: float) -> list[Choice]:
    """For none, a quarter, half, three quarters and all of the blocks computed twice: the largest micro-batch that
    fits, and where none does the smallest."""
    total = count_blocks(job.architecture)
    counts = sorted({round(total * quarter / 4) for quarter in range(5)})
    return [choose(job, limit, None, count) or _choice(job, micro_batches(job)[-1], count) for count in counts]


def _choice(job: Job, micro_batch: int, checkpointing: int) -> Choice:
    accumulation = math.ceil(job.batch_size / micro_batch)
    return Choice(micro_batch, accumulation, checkpointing, sum(predict(job, micro_batch, checkpointing)))


def micro_batches(job: Job) -> list[int]:
    """Sizes into which the batch can be cut evenly, up to a shorter last one, the largest first; drop-path has to leave
    out one whole sample at least."""
    rate = job.architecture.drop_path if isinstance(job.architecture, ViTConfig) else 0.0
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
