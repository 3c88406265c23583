"""Sharded weights (FSDP2) and sharded checkpoints, written by all processes.

FSDP (Zhao et al. 2023, arXiv 2304.11277) keeps of weights, gradients, optimizer and average a slice on each process and
gathers one block at a time. Imported only when used: it takes a second and a half.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from vitral import distributed
from vitral.atomic_files import flush, partial_of
from vitral.files import MIB, read_bounded, read_json
from vitral.weights.tensors import DamagedFile, file_checksum

FACTS, FACTS_BYTES = "state.json", 256 * MIB
FACTS_SUM = "state.json.crc32"  # the checksum of FACTS, which holds those of all other files


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Cut the model's weights over all processes, block by block, in place. To be done before an optimizer is made."""
    mesh = init_device_mesh(device.type, (distributed.world(),))
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name in ("encode", "pool", "classify"):  # objectives call these directly
        register_fsdp_forward_method(model, name)
    return model


def like(tensor: Tensor, model: Tensor | None) -> Tensor:
    """A whole tensor, cut as `model` is."""
    if not isinstance(model, DTensor) or isinstance(tensor, DTensor) or tensor.shape != model.shape:
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)


def write_shards(path: Path, tensors: Mapping[str, Tensor], facts: str, make_way: Callable[[], None]) -> None:
    """All processes write their slices (torch.distributed.checkpoint) into one folder under a temporary name; with the
    checksums of its files and `facts` it is then renamed to `path`. Raises OSError, on all, where that fails."""
    writer = FileSystemWriter(_begin(path))
    _complete(path, lambda: state_dict_saver.save(dict(tensors), storage_writer=writer), facts, make_way)


class ShardWriter:
    """`write_shards` beside the run, one checkpoint at a time: the run waits while its slices are copied in memory, and
    continues while the copy is written. To be made by all processes, and called by all alike."""

    def __init__(self) -> None:
        self._group = distributed.second_group()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def start(self, path: Path, tensors: Mapping[str, Tensor], facts: str, make_way: Callable[[], None]) -> None:
        """As `write_shards`; what fails after the copy is raised by `settle`. `path` is there when all is written."""
        assert self._running is None, "settle first"
        partial, stager = _begin(path), DefaultStager(StagingOptions(False, False, False, False))
        try:
            written: Any = state_dict_saver.async_save(
                dict(tensors), storage_writer=FileSystemWriter(partial), process_group=self._group, async_stager=stager
            )
        finally:
            stager.close()  # the copy is made, and kept by what writes it
        self._running = self._thread.submit(_complete, path, written.result, facts, make_way, self._group)

    def settle(self, *, wait: bool) -> None:
        """Raises what the last checkpoint failed by, OSError on all processes, once; `wait` for its end first."""
        if self._running is not None and (wait or self._running.done()):
            running, self._running = self._running, None
            running.result()


def _begin(path: Path) -> Path:
    """An empty folder under a temporary name. Raises OSError, on all, where there is no place for it."""
    partial, trouble = partial_of(path), None
    if distributed.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
        except OSError as error:
            trouble = str(error)
    if (trouble := distributed.first_trouble(trouble)) is not None:  # known to all, before they write together
        raise OSError(f"{path} could not be written: {trouble}")
    return partial


def _complete(
    path: Path, write: Callable[[], Any], facts: str, make_way: Callable[[], None], group: Any = None
) -> None:
    """`write` or wait for the slices, add checksums and facts, give the folder its name. `group`: see `gather`."""
    partial, main = partial_of(path), distributed.is_main()
    trouble, sums = None, dict[str, str]()
    try:
        write()
        own = [
            *partial.glob(f"__{distributed.rank()}_*"),
            *([partial / ".metadata"] if main else []),
        ]  # the list of all tensors
        sums = {file.name: file_checksum(file) for file in own}
    except (OSError, CheckpointException) as error:
        trouble = str(error)
    gathered = distributed.gather((trouble, sums), group)
    troubles = [text for text, _ in gathered if text is not None]
    if main and not troubles:
        try:
            merged = {name: value for _, part in gathered for name, value in part.items()}
            text = json.dumps({"state": facts, "sums": merged})
            (partial / FACTS).write_text(text, encoding="utf-8")
            (partial / FACTS_SUM).write_text(file_checksum(partial / FACTS), encoding="utf-8")
            for file in (*partial.iterdir(), partial):
                flush(file)
            make_way()
            partial.replace(path)
            flush(path.parent)
        except OSError as error:
            troubles = [str(error)]
    if main and troubles:
        shutil.rmtree(partial, ignore_errors=True)
    troubles = distributed.broadcast_from_main(troubles, group)
    if troubles:
        raise OSError(f"{path} could not be written: {troubles[0]}")


def read_shards(path: Path, model_of: Callable[[str], Tensor | None]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_shards` wrote, on any number of processes, each tensor cut as `model_of(name)` is; and
    {"state": facts}. Raises DamagedFile, on all, where a checksum is of another content."""
    state, trouble = "", None
    try:
        if read_bounded(path / FACTS_SUM, 100) != file_checksum(path / FACTS).encode():
            raise ValueError(f"{FACTS} is damaged: its checksum is of another content")
        tree = read_json(path / FACTS, FACTS_BYTES)
        state, sums = str(tree["state"]), dict(tree["sums"])
        for name in sorted(sums)[distributed.rank() :: distributed.world()]:
            if file_checksum(path / name) != sums[name]:
                trouble = f"{name}: damaged: its checksum is of another content"
    except (OSError, ValueError, TypeError, LookupError) as error:
        trouble = f"not readable as a sharded checkpoint: {error}"
    if (trouble := distributed.first_trouble(trouble)) is not None:  # known to all, before they read together
        raise DamagedFile(trouble, where=str(path))
    tensors: dict[str, Any] = {}
    for name, entry in FileSystemReader(path).read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        model = model_of(name)
        if model is not None and model.shape == entry.size:
            tensors[name] = torch.empty_like(model)
        else:
            tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns that one process reads alone; that is intended
        state_dict_loader.load(tensors, storage_reader=FileSystemReader(path), no_dist=distributed.world() == 1)
    return tensors, {"state": state}
