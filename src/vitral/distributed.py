"""The processes of a run: rank and world size, and exchange between processes. With one process all of it is the
identity.

Only this file and `training/parallel.py` speak to torch.distributed. Torch is imported by what needs it, so that the
command line can ask which process it is without waiting for it.
"""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from vitral.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

T = TypeVar("T")
TIMEOUT = timedelta(hours=1)  # for the others while one process writes the model folder, or is not heard
_POLL = 0.2  # seconds


class Launch(NamedTuple):
    """Environment of the launcher: this process among all (`rank` of `world`) and among those of its machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """From torchrun's variables, else from those of a SLURM job step (srun), else one process."""
    if "RANK" in environ and "WORLD_SIZE" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_TASKS_PER_NODE")
    else:
        return Launch(0, 1, 0, 1)
    rank, world, local_rank = (int(environ.get(name, "0")) for name in names[:3])
    local = re.match(r"\d+", environ.get(names[3], ""))  # SLURM writes "4(x2)" for four on each of two machines
    return Launch(rank, world, local_rank, min(int(local[0]), world) if local else world)


def slurm_address(environ: Mapping[str, str]) -> tuple[str, str]:
    """Host and port where the processes of a SLURM job step meet: the first machine, a port of the job's number."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "localhost")
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)  # "gpu[03-05,09]-ib,login1": gpu03-ib
    host = "".join(part or "" for part in found.groups()) if found else nodes
    return host, str(20000 + int(environ.get("SLURM_JOB_ID", "0")) % 20000)


@contextmanager
def processes(device: str, *, alone: bool = False) -> Generator[None]:
    """Joins the processes that the launcher started; `alone` also forms a group of one (FSDP wants one)."""
    import torch
    import torch.distributed as dist

    here = launch()
    if (here.world == 1 and not alone) or dist.is_initialized():
        yield
        return
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(here.local_rank)
    store = dist.HashStore() if here.world == 1 else None  # pyright: ignore[reportPrivateImportUsage]
    if store is None and "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm_address(os.environ)
    if store is None:  # of each restart by torchrun its own names, or it would meet the addresses of the dead
        attempt = f"restart{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        group: Any = dist  # whose stores are public, but not marked so
        store = group.PrefixStore(attempt, next(iter(group.rendezvous("env://", here.rank, here.world)))[0])
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        rank=here.rank, world_size=here.world, store=store, timeout=TIMEOUT,
    )  # fmt: skip
    try:
        yield
        dist.barrier()  # the main process still writes: nobody leaves before it
    finally:
        gc.collect()  # DDP is in cycles that hold the group, whose threads must end before the interpreter does
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """This process's own GPU where several were started and `device` names none: "cuda:LOCAL_RANK"."""
    import torch

    if launch().world == 1 or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{launch().local_rank}"


def rank() -> int:
    """The number of this process, from 0."""
    return _group().get_rank() if _joined() else 0


def world() -> int:
    """How many processes there are."""
    return _group().get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def shard_range(count: int) -> tuple[int, int]:
    """First and last + 1 of `count` things that are this process's: contiguous, sizes differ by one at most."""
    return count * rank() // world(), count * (rank() + 1) // world()


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set on any process."""
    if world() == 1:
        return flags
    import torch

    flags_F = torch.tensor(flags, dtype=torch.uint8)
    _group().all_reduce(flags_F, _group().ReduceOp.MAX)
    return tuple(bool(flag) for flag in flags_F.tolist())


def mean(values: Iterable[Tensor]) -> list[Tensor]:
    """Tensors averaged over the processes, each of its own shape, in one exchange."""
    values = list(values)
    if world() == 1 or not values:
        return values
    import torch

    joined = torch.cat([value.detach().double().flatten() for value in values])
    _group().all_reduce(joined)
    parts = (joined / world()).split([value.numel() for value in values])
    return [part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True)]


def all_reduce_max(value: Tensor) -> Tensor:
    """The largest of the processes' values, on each of them; nobody waits for the device."""
    if world() > 1:
        _group().all_reduce(value := value.clone(), _group().ReduceOp.MAX)
    return value


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of the processes' values, on each of them; gradients flow back to all of them. All processes call this,
    in the forward pass and, where gradients are taken, in the backward pass."""
    if world() == 1:
        return value
    from torch.distributed.nn.functional import all_reduce  # pyright: ignore[reportMissingTypeStubs]

    return all_reduce(value.clone())


def all_rows(rows_BX: Tensor) -> Tensor:
    """The rows of all processes, of which each has as many, in the order of the processes; gradients flow back."""
    if world() == 1:
        return rows_BX
    import torch

    own = len(rows_BX)
    before, behind = rank() * own, (world() - 1 - rank()) * own
    empty = [rows_BX.new_zeros(count, *rows_BX.shape[1:]) for count in (before, behind)]
    return all_reduce_sum(torch.cat([empty[0], rows_BX, empty[1]]))


def gather_rows(rows_NX: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rows of all processes, in the order of the processes, on each of them. Counts may differ, even be 0."""
    if world() == 1:
        return rows_NX
    import numpy as np
    import torch

    counts = gather(len(rows_NX))
    padded_MX = torch.zeros((max(counts), *rows_NX.shape[1:]), dtype=torch.from_numpy(rows_NX).dtype)
    padded_MX[: len(rows_NX)] = torch.from_numpy(rows_NX)
    all_PMX = [torch.empty_like(padded_MX) for _ in counts]
    _group().all_gather(all_PMX, padded_MX)
    return np.concatenate([part_MX[:count].numpy() for part_MX, count in zip(all_PMX, counts, strict=True)])


def gather(value: T, group: Any = None) -> list[T]:
    """The value of every process, on each of them; of a thread with the `second_group` that is its own."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    _group().all_gather_object(values, value, group=group)
    return values


def broadcast_from_main(value: T, group: Any = None) -> T:
    """The main process's value, on all; `group` as for `gather`."""
    return gather(value, group)[0]


def first_trouble(trouble: str | None) -> str | None:
    """The trouble of the first process that has one, on all of them."""
    return next((text for text in gather(trouble) if text is not None), None)


def second_group() -> Any:
    """The same processes once more, over gloo: what a thread says there does not meet the messages of the run."""
    return _group().new_group(backend="gloo")


def barrier() -> None:
    """Wait for all."""
    if world() > 1:
        _group().barrier()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a slice of a tensor that is cut over the processes."""
    return hasattr(tensor, "full_tensor")  # a DTensor; its class is not imported where there is none


def gather_full(tensor: Tensor) -> Tensor:
    """The tensor itself, put together again if it is cut; then all processes must call this."""
    cut: Any = tensor
    return cut.full_tensor() if is_sharded(tensor) else tensor


@contextmanager
def error_barrier() -> Generator[None]:
    """A stretch in which a UserError on any process becomes one on all, so that none waits for another in vain."""
    mine: UserError | None = None
    try:
        yield
    except UserError as error:
        mine = error
    found = first_trouble(str(mine) if mine is not None else None)
    if found is not None:
        raise mine or UserError(found)


@contextmanager
def first_of_machine_first() -> Generator[None]:
    """On each machine one process goes ahead (and leaves results in a cache), then the others; all leave together.

    However long it takes: who works says so every few seconds, and who waits gives up only when nothing was heard for
    `TIMEOUT`. Raises RuntimeError then. Collectives would end after that time although the others work.
    """
    if world() == 1:
        yield
        return
    waits = launch().local_rank > 0
    firsts = sum(gather(not waits))
    board = _Board()
    if waits:
        board.wait("first", firsts)
    problem: UserError | None = None
    with board.working():
        try:
            yield
        except UserError as error:
            problem = error
    if not waits:
        board.done("first")
    board.done("all")
    board.wait("all", world())
    if problem is not None:
        raise problem


class _Board:
    """Where the processes of a group write how far they are: counters in the store that they met at."""

    number = 0  # of boards so far, equal on all processes

    def __init__(self) -> None:
        import torch.distributed as dist
        from torch.distributed import distributed_c10d

        _Board.number += 1
        group: Any = dist
        inner: Any = distributed_c10d
        self.store: Any = group.PrefixStore(f"board {_Board.number}", inner._get_default_store())

    def done(self, what: str) -> None:
        self.store.add(what, 1)

    def wait(self, what: str, count: int) -> None:
        """Until `count` processes are done with it."""
        heard, since = -1, time.monotonic()
        while self.store.add(what, 0) < count:
            beats = self.store.add("beats", 0)
            if beats != heard:
                heard, since = beats, time.monotonic()
            elif time.monotonic() - since > TIMEOUT.total_seconds():
                raise RuntimeError(f"no other process was heard for {TIMEOUT}")
            time.sleep(_POLL)

    @contextmanager
    def working(self) -> Generator[None]:
        """Say every few seconds that this process works."""
        ended = threading.Event()

        def beat() -> None:
            with suppress(RuntimeError):  # the store is gone: so is the run
                while not ended.wait(_POLL * 10):
                    self.store.add("beats", 1)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _joined() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def _group() -> Any:
    import torch.distributed as dist

    return dist
