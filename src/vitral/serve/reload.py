"""Hot reload: detect a replaced model folder, load it beside the old model, and swap."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from vitral.files import require_regular
from vitral.serve.batcher import warm_up
from vitral.serve.metrics import Metrics
from vitral.serve.model_worker import AnyPredictor, ModelSource, ModelWorker, run_in_thread

log = logging.getLogger("vitral")

_SUFFIXES = {".json", ".safetensors", ".onnx", ".data", ".pt2", ".xml", ".bin"}
Signature = tuple[tuple[str, int, int, int, int], ...]


def signature(path: Path) -> Signature | None:
    """Names, sizes, inodes, and times of change of the files that a model is; None while there are none.

    Of the two times of change a copy may keep the first and nothing can set the second; inodes are used again at once.
    """
    try:
        stats = [(file.name, file.stat()) for file in _files(path)]
    except OSError:  # between a removal and a renaming
        return None
    return tuple((name, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats) or None


def _files(path: Path) -> list[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if file.suffix in _SUFFIXES]


async def watch(worker: ModelWorker, source: ModelSource, seconds: float, max_batch: int, metrics: Metrics) -> None:
    """Look every so many seconds, for ever. What changed and stands still is loaded in another thread; a folder that
    cannot be loaded leaves the old model in service, and is tried again when it changes."""
    known = before = source.seen
    while True:
        await asyncio.sleep(seconds)
        now = await asyncio.to_thread(signature, source.path)
        if now is not None and known != now == before and await _replaced(worker, source, now, max_batch, metrics):
            known = now
        before = now


async def _replaced(
    worker: ModelWorker, source: ModelSource, found: Signature, max_batch: int, metrics: Metrics
) -> bool:
    """Whether the files that were found have been dealt with."""

    def load() -> AnyPredictor:
        for file in _files(source.path):
            require_regular(file)
        predictor = source.load()
        warm_up(predictor, max_batch)
        return predictor

    try:
        loaded = await asyncio.to_thread(run_in_thread, load, worker.threads)
    except Exception as error:
        loaded = error
    if await asyncio.to_thread(signature, source.path) != found:
        return False  # changed in the meantime, so it may be a mixture
    if isinstance(loaded, Exception):
        worker.failure = str(loaded).splitlines()[0] if str(loaded) else type(loaded).__name__
        metrics.reloads.labels(worker.name, "failed").inc()
        fields = {"model": worker.name, "reason": worker.failure}
        log.error("the replaced model cannot be loaded, the old one stays", extra={"fields": fields})
    else:
        worker.replace(loaded)
        metrics.reloads.labels(worker.name, "ok").inc()
        log.info("reloaded", extra={"fields": {"model": worker.name, "engine": loaded.engine.name}})
    return True
