"""Map a function over many items on a Ray cluster, results in the order of the items."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from vitral.errors import RunFailed, UserError
from vitral.optional_imports import optional
from vitral.predictor import Predictor
from vitral.run.command_options import EmbedOptions, PredictOptions, ServeOptions
from vitral.serve.ray_cluster import cluster, resources, share_out

T = TypeVar("T")
OptionsT = TypeVar("OptionsT", PredictOptions, EmbedOptions, ServeOptions)
Work = Callable[[Any], Iterable[T]]


def alone(options: OptionsT, device: str) -> OptionsT:
    """The same options for one process on this device, without Ray."""
    keys = options.model_dump(exclude_unset=True, exclude={"engine", "ray"})
    return type(options).model_validate({**keys, "device": device})


def auto_device(predictor: Predictor, device: str) -> str:
    """Resolve `device` in a cluster: auto is the CPU for an export, with or without GPUs."""
    return "cpu" if predictor.is_export and device == "auto" else device


def cut(paths: Sequence[str], size: int) -> list[Sequence[str]]:
    """The same paths in items of `size`."""
    return [paths[start : start + size] for start in range(0, len(paths), size)]


class _Done(NamedTuple):
    """What came of one item: answers, and the mistake that ended them, if one did."""

    answers: list[Any]
    mistake: UserError | None


class Worker:
    """One process of the cluster: opens the work once, then does one item after the other and keeps nothing.

    folder: where the command was called; names of files mean what they mean there, if this machine has that folder.
    """

    def __init__(self, open_work: Callable[[str], Work[Any]], device: str, folder: str) -> None:
        if os.path.isdir(folder):
            os.chdir(folder)
        self._work: Work[Any] | UserError
        try:
            self._work = open_work(device)
        except UserError as error:  # raised in here, it would make Ray start the process again and again
            self._work = error

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[bytes]]:
        """Rows of pickled items, as Ray hands them over, to rows of what came of each."""
        return {"done": [pickle.dumps(self._do(pickle.loads(item))) for item in rows["item"]]}

    def _do(self, item: Any) -> _Done:
        found: list[Any] = []
        if isinstance(self._work, UserError):
            return _Done(found, self._work)
        try:
            for answer in self._work(item):
                found.append(answer)  # noqa: PERF402 - those before a mistake stay
        except UserError as error:
            return _Done(found, error)
        return _Done(found, None)


def map_on_cluster(
    open_work: Callable[[str], Work[T]], items: Sequence[Any], device: str, workers: int | None
) -> Generator[T]:
    """What the work makes of each item, in the order of the items, by a pool of Ray actors.

    open_work: called once in each process, with the device to compute on; it can be pickled, and so can items and
    answers. device, workers: see `share_out`. Raises the UserError of the first item that has one, after all answers
    before it, and RunFailed where Ray itself fails.
    """
    with cluster() as ray:
        data: Any = optional("ray.data")
        share = share_out(resources(ray), device, workers)
        context = data.DataContext.get_current()
        context.enable_progress_bars, context.execution_options.preserve_order = False, True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        arguments = open_work, "cuda" if share.gpus else "cpu", os.getcwd()
        rows = data.from_items([{"item": pickle.dumps(item)} for item in items]).map_batches(
            Worker, fn_constructor_args=arguments, batch_size=1, num_cpus=share.cpus, num_gpus=share.gpus,
            compute=data.ActorPoolStrategy(size=min(share.workers, len(items))),
        )  # fmt: skip
        try:
            for row in rows.iter_rows():
                done: _Done = pickle.loads(row["done"])
                yield from done.answers
                if done.mistake is not None:
                    raise done.mistake
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [""]
            raise RunFailed(f"Ray: {type(error).__name__}: {lines[0]} {lines[-1]}") from error
