"""Who reads the images: the calling thread, threads, or processes. All give the same bits.

Threads are the rule: Pillow's decoders and torch's resizing let other threads run meanwhile, nothing is copied between
processes, and no `__main__` guard is needed. Processes are for sources whose Python code takes most of the time.
A request for a batch is cut into as many parts as there are workers. Shape letters: B images of a batch.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import pickle
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

import torch
import torch.multiprocessing
from torch import Tensor

from vitral.data.reading import ImageReader, Reading, Request
from vitral.errors import RunFailed, UserError

# Batches that are read while one is in use; there is room for one more, which may be asked for out of turn.
AHEAD = 2
_PARTS = 16  # images a task of a thread: small enough that all threads end together
_UNGUARDED = 79
_GUARD = """Put what the script does under a guard, so that the processes can import it:
    if __name__ == "__main__":
        vitral.train(...)
  or leave data.worker_kind at threads."""


class Pool(Protocol):
    """Takes requests; the returned function waits for the images. Closed, it leaves nothing behind."""

    def submit(self, request: Request) -> Callable[[], Reading]: ...

    def close(self) -> None: ...


def make_pool(reader: ImageReader, workers: int, kind: str, batch: int, *, pinned: bool) -> Pool:
    """`workers` threads or processes (kind threads, fork or spawn) for requests of up to `batch` images; with 0 workers
    images are read when they are waited for. Raises UserError where processes cannot be started as asked."""
    assert kind in ("threads", "fork", "spawn"), kind
    if kind == "threads" or workers == 0:
        return Threads(reader, workers, pinned=pinned)
    return Processes(reader, workers, kind, batch, pinned=pinned)


class Threads:
    """Decoding in threads of this process, or in the caller's (0 workers)."""

    def __init__(self, reader: ImageReader, workers: int, *, pinned: bool) -> None:
        self.reader, self.pinned = reader, pinned
        self._pool = ThreadPoolExecutor(workers, "vitral-reader") if workers else None

    def submit(self, request: Request) -> Callable[[], Reading]:
        """Start reading; errors are raised when they are waited for, the first by place in the batch."""
        with torch.inference_mode(False):  # the threads that fill it are not in the caller's mode
            room = self.reader.empty(len(request), pinned=self.pinned)
        jobs: list[Future[None]] = []
        if self._pool is not None:
            for start in range(0, len(request), _PARTS):
                part = room.rows(start, start + _PARTS)
                jobs.append(self._pool.submit(self.reader.fill, request.part(start, start + _PARTS), part))

        def ready() -> Reading:
            if self._pool is None:
                with torch.inference_mode(False):
                    self.reader.fill(request, room)
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                for job in jobs:
                    job.cancel()
                raise
            return room

        return ready

    def close(self) -> None:
        """End the threads after the image that each is at."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class _Slot(NamedTuple):
    """Shared memory of one request."""

    index_B: Tensor
    draw_B: Tensor
    room: Reading


class _Task(NamedTuple):
    slot: int
    start: int
    stop: int
    crop: bool


class Processes:
    """Decoding in processes of our own, into shared memory; each has one pipe, and answers in order.

    Raises UserError from the constructor where the data cannot be sent, shared memory is too small, or the script lacks
    a `__main__` guard; RunFailed from waiting where a process has died.
    """

    def __init__(self, reader: ImageReader, workers: int, kind: str, batch: int, *, pinned: bool) -> None:
        refuse_unguarded()
        self.reader, self.batch, self.pinned = reader, batch, pinned
        self._slots = [_shared(reader, batch, workers, kind) for _ in range(AHEAD + 2)]
        self._free = list(range(len(self._slots)))
        self._asked, self._answered = 0, [0] * workers
        self._errors: dict[int, Exception] = {}
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        atexit.register(self.close)  # before multiprocessing's own, which would wait for the processes
        try:
            self._start(workers, kind)
        except BaseException:
            self.close()
            raise

    def submit(self, request: Request) -> Callable[[], Reading]:
        """Hand out the parts. No more than `AHEAD` + 2 requests may be waited for at a time."""
        assert len(request) <= self.batch, (len(request), self.batch)
        number, place, workers = self._asked, self._free.pop(), len(self._pipes)
        self._asked += 1
        slot = self._slots[place]
        slot.index_B[: len(request)] = torch.from_numpy(request.index_B)
        if request.draw_B is not None:
            slot.draw_B[: len(request)] = torch.from_numpy(request.draw_B)
        for worker, pipe in enumerate(self._pipes):
            start, stop = (len(request) * n // workers for n in (worker, worker + 1))
            with contextlib.suppress(OSError):  # a dead process is found when its answer is waited for
                pipe.send(_Task(place, start, stop, request.draw_B is not None))

        def ready() -> Reading:
            try:
                for worker in range(workers):
                    while self._answered[worker] <= number:
                        self._receive(worker)
                if number in self._errors:
                    raise self._errors.pop(number)
                with torch.inference_mode(False):
                    room = self.reader.empty(len(request), pinned=self.pinned)
                for mine, theirs in zip(room.tensors, slot.room.tensors, strict=True):
                    mine.copy_(theirs[: len(request)])
                return room
            finally:
                self._free.append(place)

        return ready

    def close(self) -> None:
        """End the processes at once: they only read."""
        atexit.unregister(self.close)
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        self._pipes, self._processes = [], []

    def _start(self, workers: int, kind: str) -> None:
        try:
            context: Any = torch.multiprocessing.get_context(kind)
        except ValueError:  # Windows has no fork
            raise UserError(
                "this system cannot start processes that way", where="data.worker_kind", got=kind,
                wanted="threads or spawn",
            ) from None  # fmt: skip
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(self.reader, self._slots, theirs), name="vitral-reader")
            try:
                with warnings.catch_warnings():
                    # Python 3.12 warns of every fork beside threads: the child uses one thread, and none of ours.
                    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
                    process.start()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise UserError(
                    f"these data cannot be sent to other processes ({error})", where="data.worker_kind", got=kind,
                    wanted="threads, or fork where there is fork",
                ) from None  # fmt: skip
            finally:
                theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for worker in range(workers):
            self._receive(worker)
        self._answered = [0] * workers

    def _receive(self, worker: int) -> None:
        """One answer of a process: nothing, or the error of a request, of which the first worker's is kept."""
        pipe, process = self._pipes[worker], self._processes[worker]
        wait([pipe, process.sentinel])
        try:
            if not pipe.poll():
                raise EOFError
            answer = pipe.recv()
        except (EOFError, OSError):
            process.join(5)
            raise _death(process.exitcode) from None
        if isinstance(answer, Exception):
            self._errors.setdefault(self._answered[worker], answer)
        self._answered[worker] += 1


def refuse_unguarded() -> None:
    """Leave quietly where a new process is only importing the script that started it: the first process says why."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds out
        raise SystemExit(_UNGUARDED)


def _death(code: int | None) -> Exception:
    if code == _UNGUARDED:
        return UserError(
            "starting processes imports this script again, and so would start the run again",
            where="data.worker_kind=spawn", hint=_GUARD,
        )  # fmt: skip
    how = f"signal {-code} ({signal.strsignal(-code)})" if code and code < 0 else f"exit code {code}"
    return RunFailed(
        f"a process that reads images has died: {how}. Where memory is short, fewer data.workers or "
        "data.worker_kind=threads help"
    )


def _shared(reader: ImageReader, batch: int, workers: int, kind: str) -> _Slot:
    room = reader.empty(batch)
    each = sum(images_BCHW.nbytes for images_BCHW in room.views)
    needed = (AHEAD + 2) * each
    with contextlib.suppress(OSError):  # Linux only
        free = shutil.disk_usage("/dev/shm").free
        if free < each:
            raise UserError(
                "too little shared memory for the batches of other processes", where="data.worker_kind", got=kind,
                wanted=f"{needed / 2**20:.0f} MB in /dev/shm, where {free / 2**20:.0f} MB are free",
                hint="data.worker_kind=threads needs none; in a container, --shm-size sets it.",
            )  # fmt: skip
    numbers = [torch.zeros(batch, dtype=torch.int64).share_memory_() for _ in range(2)]
    for tensor in room.tensors:
        tensor.zero_().share_memory_()  # takes the memory now, not in the middle of the run
    return _Slot(numbers[0], numbers[1], room)


def _serve(reader: ImageReader, slots: list[_Slot], pipe: Connection) -> None:
    """The life of a process: it ends with its parent, not by the signals that stop a run, which the parent handles."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    with contextlib.suppress(EOFError, OSError):
        pipe.send(True)
        while pipe in wait([pipe, parent.sentinel]):
            pipe.send(_answer(reader, slots, pipe.recv()))


def _answer(reader: ImageReader, slots: list[_Slot], task: _Task) -> Any:
    """True, or the error as it can be sent."""
    slot, part = slots[task.slot], slice(task.start, task.stop)
    request = Request(slot.index_B[part].numpy(), slot.draw_B[part].numpy() if task.crop else None)
    try:
        reader.fill(request, slot.room.rows(task.start, task.stop))
        return True
    except Exception as error:  # whatever it is, it is raised in the process that asked
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error of a class that cannot travel
            return RunFailed(f"reading images failed: {traceback.format_exc()}")
        return error
