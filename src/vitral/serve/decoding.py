"""Decoding of images from requests, in a thread of the server or in a process that can be ended.

This module is what the processes import, so it holds the function that they run and the loop around it. A process
has a memory limit, a low priority and one job at a time; it ends with the server.
"""

from __future__ import annotations

import io
import math
import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from vitral.data.decode import PILLOWS_LIMIT_OFF, pixels
from vitral.data.image_spec import ImageSpec
from vitral.data.resize import fit_image
from vitral.errors import UserError
from vitral.predictor import decode_image
from vitral.serve.image_headers import outline

Step = Literal["count", "decode", "fit"]
PIXEL_BYTES = 4  # of a pixel that counts once against max_pixels; deeper images count in proportion
_PEAK_BYTES, _SPARE_BYTES = 24, 2**28  # memory of a process: per pixel of max_pixels, and for everything else
_NICENESS = 10  # so that the model and small images come first
_SAMPLE_BYTES = {"I": 4, "F": 4, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}


class Job(NamedTuple):
    """An image, and what to do with it: count its pixels, decode it, or also resize it to the model's size."""

    data: bytes
    spec: ImageSpec
    step: Step


class DecodedImage(NamedTuple):
    """The array, uint8 or float32 [C, H, W], None where the pixels are only counted; height and width of the image as
    it is seen; its pixels as they count against max_pixels."""

    array_CHW: np.ndarray[tuple[int, ...], np.dtype[np.uint8 | np.float32]] | None
    size: tuple[int, int]
    counted: int


class Problem(NamedTuple):
    """Why there is no such array: status, code and text of the answer, which the image's name precedes."""

    status: int
    code: str
    text: str


class Heavy(NamedTuple):
    """Not done here: this image belongs into a process. counted: its pixels as they count against max_pixels, or the
    most that they may be."""

    counted: int


def try_light(job: Job) -> DecodedImage | Problem | Heavy:
    """Do the job where that is cheap for certain, whatever the file holds; refuse it by its first bytes if possible."""
    found = outline(job.data)
    if found.is_endless:
        return Problem(413, "too_many_segments", "more segments than any encoder writes")
    if found.width is None or found.height is None or found.pixel_bytes is None:
        return Heavy(job.spec.max_pixels)
    count = _count(found.width, found.height, found.pixel_bytes, job.spec.max_pixels)
    if isinstance(count, Problem):
        return count
    return do(job) if found.is_light else Heavy(count)


def do(job: Job) -> DecodedImage | Problem:
    """Do the job, whatever it takes."""
    try:
        width, height = pixels(job.data)  # `header` would read a PNG to its end, for its EXIF
        count = _count(width, height, _pixel_bytes(job.data), job.spec.max_pixels)
        if isinstance(count, Problem):
            return count
        if job.step == "count":
            return DecodedImage(None, (height, width), count)
        image_CHW = decode_image(job.data, job.spec)
        size = (image_CHW.shape[1], image_CHW.shape[2])
        if job.step == "fit":
            image_CHW = fit_image(image_CHW, job.spec.image_size, job.spec)
        return DecodedImage(image_CHW.numpy(), size, count)
    except UserError as error:
        if isinstance(error.__cause__, MemoryError):
            return _NO_ROOM
        return Problem(422, "bad_image", error.what)
    except Exception as error:  # of a decoder or a plugin; the process, or the server, continues
        # torch says RuntimeError where it gets no memory.
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
            return _NO_ROOM
        return Problem(422, "bad_image", f"decoding failed: {type(error).__name__}: {error}")


_NO_ROOM = Problem(413, "too_large_image", "decoding takes more memory than max_pixels allows for")


def _pixel_bytes(data: bytes) -> int:
    """Bytes per pixel as the file stores them: channels times bytes per sample."""
    known = outline(data).pixel_bytes
    if known is not None:
        return known
    # What cannot be opened has no pixels.
    with suppress(Exception), PILLOWS_LIMIT_OFF, Image.open(io.BytesIO(data)) as image:
        if image.mode in _SAMPLE_BYTES:
            return _SAMPLE_BYTES[image.mode]
        deep = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
        return len(image.getbands()) * (2 if deep else 1)
    return PIXEL_BYTES


def _count(width: int, height: int, pixel_bytes: int, most: int) -> int | Problem:
    """Pixels as they count against `most`, the limit."""
    count = math.ceil(width * height * max(pixel_bytes, PIXEL_BYTES) / PIXEL_BYTES)
    if count <= most:
        return count
    deep = f" of {pixel_bytes} bytes, counted as {count:,}" if pixel_bytes > PIXEL_BYTES else ""
    text = f"{width} x {height} = {width * height:,} pixels{deep}, and the limit is {most:,} (max_pixels)"
    return Problem(413, "too_many_pixels", text)


def work(pipe: Connection, max_pixels: int) -> None:
    """The life of a process: jobs come as (job, seconds), answers go back. Memory beyond the limit is an error in the
    job, time beyond `seconds` ends the process even if the server is gone by then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a signal to all processes of a terminal or service is the server's
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    _limit_memory(_PEAK_BYTES * max_pixels + _SPARE_BYTES)
    with suppress(AttributeError, OSError):
        os.nice(_NICENESS)
    with suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            job, seconds = pipe.recv()
            _alarm(math.ceil(seconds) + 1)
            pipe.send(do(job))
            _alarm(0)


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _limit_memory(count: int) -> None:
    """At most so many bytes beyond what the process has now, where the system can limit that."""
    try:
        import resource  # Unix only

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (now + count, now + count))
    except (ImportError, OSError, ValueError):
        return
