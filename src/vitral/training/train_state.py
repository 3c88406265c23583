"""State of a run for an exact resume: written atomically, verified when read.

The newest checkpoint is `last`, the one before it `previous`; at every moment at least one of them is whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitral import distributed
from vitral.atomic_files import remove
from vitral.errors import UserError
from vitral.evaluate.metric import Metric
from vitral.files import parse_json
from vitral.objectives.objective import Objective
from vitral.optim.ema import WeightEMA
from vitral.optim.master_weights import ComputeCopy
from vitral.training.parallel import Parallel
from vitral.weights.tensors import DamagedFile, check_match, load_tensors, save_tensors

if TYPE_CHECKING:
    from vitral.training.sharded import ShardWriter

LAST, PREVIOUS, DAMAGED = "last", "previous", "damaged"
BEST = "best.safetensors"  # the weights of the best validation so far
WHOLE, SHARDED = ".safetensors", ".sharded"  # a file, or a folder to which every process has added its part


@dataclass
class Progress:
    """Where a run is. `step` counts finished updates, `skipped` those among
    them that were not finite and moved nothing; `stale` validations since the best one."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = -1
    best_score: float | None = None
    best_loss: float = float("inf")
    stale: int = 0
    skipped: int = 0
    done: bool = False

    def better(self, primary: Metric, loss: float) -> bool:
        """Whether a validation beats the best one: by its primary metric, and by `loss` where that is equal."""
        if self.best_score is None:
            return primary.value is not None
        if primary.value == self.best_score:
            return loss < self.best_loss
        return primary.better(self.best_score)

    def forget_best(self) -> None:
        """The next validation is the best one."""
        self.best_step, self.best_score, self.best_loss, self.stale = -1, None, float("inf"), 0


@dataclass
class TrainState:
    """The moving parts of a run, held together so that they are saved and restored together."""

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    ema: WeightEMA | None
    progress: Progress
    fingerprint: str = ""  # of the data
    init: str = ""  # fingerprint of the weights that the run started from
    compute_copy: ComputeCopy | None = None  # what is computed with, where that is not the objective itself
    parallel: Parallel | None = None
    autocast: torch.dtype | None = None  # precision of matrix products; None: that of the weights
    steps: int = 0  # of the whole run
    writer: ShardWriter | None = None  # of sharded checkpoints that are written beside the run

    def save(self, path: Path, *, beside: bool = False) -> None:
        """Weights, optimizer, EMA, rows of the objective, progress, random states and thread count; an older file
        becomes the `previous` one. Raises OSError and leaves both as they were where the new one cannot be written.

        Of many processes the main one writes `path`; where weights are sharded, all write the folder `path`, but with
        SHARDED for its suffix. To be called by all of them. beside: where weights are sharded, return when they are
        copied; `settle` then says whether they have been written, and is to be called before the next save.
        """
        tensors = self._tensors()
        for rank, states in enumerate(distributed.gather(_random_states(self._device))):
            tensors |= {f"rng.{kind}.{rank}": state for kind, state in states.items()}
        if isinstance(self.objective, Objective):
            parts = distributed.gather({name: rows.cpu() for name, rows in self.objective.rows.items()})
            tensors |= {f"rows.{name}": torch.cat([part[name] for part in parts]) for name in parts[0]}
        facts = {
            "progress": asdict(self.progress),
            "steps": self.steps,
            "ema_updates": self.ema.updates if self.ema else 0,
            "threads": torch.get_num_threads(),
            "processes": distributed.world(),
            "fingerprint": self.fingerprint,
            "init": self.init,
        }
        text = json.dumps(facts)
        if any(map(distributed.is_sharded, tensors.values())):
            from vitral.training.sharded import ShardWriter, write_shards

            if beside and self.writer is None:
                self.writer = ShardWriter()
            write = self.writer.start if beside and self.writer is not None else write_shards
            write(path.with_suffix(SHARDED), tensors, text, lambda: _make_way(path.parent))
        elif distributed.is_main():
            save_tensors(path, tensors, {"state": text}, checked=True, make_way=lambda: _make_way(path.parent))

    def settle(self, *, wait: bool) -> None:
        """Raises OSError, once, where a checkpoint that was written beside the run has failed; `wait`: for its end."""
        if self.writer is not None:
            self.writer.settle(wait=wait)

    def load_newest(self, folder: Path) -> list[str]:
        """Restore the newest whole checkpoint; returns what there is to say of others. A damaged one is set aside.

        Raises UserError where no checkpoint is whole, or where it belongs to another run.
        """
        notes: list[str] = []
        for path in distributed.broadcast_from_main(list(_checkpoints(folder))):
            found, trouble = None, None
            try:
                found = self._read(path)
            except DamagedFile as error:
                trouble = str(error)
            trouble = distributed.first_trouble(trouble)
            if found is not None and trouble is None:
                self._restore(path, *found)
                if path.stem == PREVIOUS:
                    notes.append(f"resuming from the checkpoint before the last one, {path}")
                return notes
            notes.append(str(trouble))
            if distributed.is_main():
                aside = path.with_stem(DAMAGED)
                remove(aside)
                path.replace(aside)
        hint = "Pass overwrite=true to start again."
        raise UserError("no checkpoint can be read", where=str(folder), got="; ".join(notes), hint=hint)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote, on as many processes or others. Raises UserError for another run's file, and
        DamagedFile."""
        self._restore(path, *self._read(path))

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        if not path.is_dir():
            return load_tensors(path, checked=True)
        from vitral.training.sharded import read_shards

        return read_shards(path, self._model_of)

    def _restore(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        if "state" not in metadata:
            raise UserError("not a checkpoint of a run", where=str(path))
        facts = parse_json(metadata["state"], where=str(path), constants=True)
        if facts["fingerprint"] != self.fingerprint:
            raise UserError("the data have changed since this checkpoint", where=str(path))
        if facts["init"] != self.init:
            raise UserError("the weights of init have changed since this checkpoint", where=str(path))
        check_match(self.objective.state_dict(), _below(tensors, "objective."), str(path))
        if any(distributed.is_sharded(tensor) for tensor in self.objective.state_dict().values()):
            from vitral.training.sharded import like

            tensors = {name: like(tensor, self._model_of(name)) for name, tensor in tensors.items()}
        self.objective.load_state_dict(_below(tensors, "objective."))
        if self.compute_copy is not None:
            self.compute_copy.refresh()
        self._load_optimizer(_below(tensors, "optim."))
        if isinstance(self.objective, Objective):
            self.objective.rows = self._own_rows(_below(tensors, "rows."))
        if self.ema is not None:
            self.ema.average.load_state_dict(_below(tensors, "ema."))
            self.ema.updates = facts["ema_updates"]
        self.progress.__dict__.update(facts["progress"])
        cpu, cuda = (tensors.get(f"rng.{kind}.{distributed.rank()}") for kind in ("cpu", "cuda"))
        if cpu is not None:  # a process that was not there before keeps the seed of its own
            torch.set_rng_state(cpu)
        if cuda is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(cuda, self._device)
        if facts["processes"] == distributed.world():
            torch.set_num_threads(facts["threads"])

    @property
    def _device(self) -> torch.device:
        return next(self.objective.parameters()).device

    def _own_rows(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process's rows of what all have saved, copied to the device of the weights."""
        own = {name: slice(*distributed.shard_range(len(tensor))) for name, tensor in rows.items()}
        return {name: rows[name][part].to(self._device, copy=True) for name, part in own.items()}

    def _tensors(self) -> dict[str, Tensor]:
        """Weights, optimizer state and average, by name."""
        tensors = {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        names = self._names()
        for number, entries in self.optimizer.state_dict()["state"].items():
            found = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
            tensors |= {f"optim.{names[number]}.{key}": tensor for key, tensor in found.items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.average.state_dict().items()}
        return tensors

    def _model_of(self, name: str) -> Tensor | None:
        """The tensor that the one of this name is cut like: an optimizer's like the weights that it moves."""
        kind, _, name = name.partition(".")
        if kind == "optim":
            return dict(self.objective.named_parameters()).get(name.rpartition(".")[0])
        module = {"objective": self.objective, "ema": self.ema.average if self.ema else None}.get(kind)
        return module.state_dict().get(name) if module is not None else None

    def _names(self) -> dict[int, str]:
        """The optimizer's own numbering of parameters, by name."""
        names = {id(parameter): name for name, parameter in self.objective.named_parameters()}
        ordered = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        return {number: names[id(parameter)] for number, parameter in enumerate(ordered)}

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state = self.optimizer.state_dict()
        state["state"] = {}
        for number, name in self._names().items():
            entries = {key: tensor for key, tensor in _below(tensors, f"{name}.").items() if "." not in key}
            if entries:  # copied: the file is mapped, and a mapped file cannot be renamed on Windows
                state["state"][number] = {key: tensor.clone() for key, tensor in entries.items()}
        self.optimizer.load_state_dict(state)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to resume from."""
    return any(_checkpoints(folder))


def _checkpoints(folder: Path) -> Iterator[Path]:
    """The newest first."""
    names = (folder / f"{stem}{suffix}" for stem in (LAST, PREVIOUS) for suffix in (WHOLE, SHARDED))
    return (path for path in names if path.exists())


def _make_way(folder: Path) -> None:
    """The last checkpoint becomes the one before; a kill at any moment leaves one of them whole."""
    last = [path for path in _checkpoints(folder) if path.stem == LAST]
    if last:
        for suffix in (WHOLE, SHARDED):
            remove(folder / f"{PREVIOUS}{suffix}")
    for path in last:
        path.replace(path.with_stem(PREVIOUS))


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Those of the processor and of the CUDA device that trains, which is not always torch's current one."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
