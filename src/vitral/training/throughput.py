"""Throughput of the loop: samples per second, time per step, and the shares of it that wait for data or use the
device."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import torch

from vitral.structs import Batch

# Dense bfloat16 matrix products with float32 sums, operations a second, by a part of the device's name (data sheets).
PEAKS = {
    "B200": 2250e12, "GH200": 989e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "A100": 312e12, "A30": 165e12, "A10G": 70e12, "A10": 125e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


def peak_flops(device: torch.device, autocast: torch.dtype | None) -> float | None:
    """What the device can do at most with bfloat16; None where that is not known, or computed with something else."""
    if device.type != "cuda" or autocast != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


@dataclass(frozen=True)
class Reading:
    """Of the steps since the last reading. data_wait: share of the time until a batch was there, its augmentation on a
    CPU included. mfu: model FLOPs (of every trained sample, whatever is dropped or recomputed) over the device's peak.
    """

    samples_per_second: float
    step_ms: float
    data_wait: float
    mfu: float | None = None

    def row(self) -> dict[str, float]:
        """For the journal; what is not known is left out."""
        known = {
            "samples_per_second": round(self.samples_per_second, 1), "step_ms": round(self.step_ms, 3),
            "data_wait": round(self.data_wait, 4),
        }  # fmt: skip
        return known if self.mfu is None else {**known, "mfu": round(self.mfu, 4)}

    def __str__(self) -> str:
        digits = 0 if self.step_ms >= 10 else 1
        step = f"{self.step_ms:,.{digits}f} ms/step"
        text = f"{self.samples_per_second:.0f} samples/s, {step}, {self.data_wait:.0%} data wait"
        return text if self.mfu is None else f"{text}, {self.mfu:.1%} of peak"


class Throughput:
    """Times the steps of a loop. images: samples of a step, all streams together. image_flops: operations per sample;
    peak: of the device, operations per second, or None."""

    def __init__(self, images: int, image_flops: float = 0.0, peak: float | None = None) -> None:
        self.images, self.image_flops, self.peak = images, image_flops, peak
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        self.last: Reading | None = None
        self._started: float | None = None

    def batches(self, stream: Iterator[Mapping[str, Batch]]) -> Generator[Mapping[str, Batch]]:
        """The stream, with the time taken from the request for a batch until `stop` or the next request."""
        while True:
            self._started = time.perf_counter()
            batches = next(stream, None)
            if batches is None:
                self._started = None
                return
            self.waited += time.perf_counter() - self._started
            yield batches
            self.stop()

    def stop(self) -> None:
        """A step has ended; what follows (validating, saving) is not counted."""
        if self._started is not None:
            self.seconds += time.perf_counter() - self._started
            self.steps += 1
            self._started = None

    def read(self) -> Reading:
        """What was measured since the last reading, of at least one step."""
        self.stop()
        rate = self.steps * self.images / self.seconds
        mfu = rate * self.image_flops / self.peak if self.peak and self.image_flops else None
        self.last = Reading(rate, 1000 * self.seconds / self.steps, self.waited / self.seconds, mfu)
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        return self.last
