"""Everything a run needs to go on as if it had never stopped, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitral.errors import UserError
from vitral.optim.ema import WeightEMA
from vitral.optim.masters import Bfloat16Copy
from vitral.weights.tensors import check_match, load_tensors, save_tensors


@dataclass
class Progress:
    """Where a run is. `step` counts finished updates, `skipped` those among
    them that were not finite and moved nothing; `stale` validations since the best one."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = -1
    best_score: float = -1.0
    best_loss: float = float("inf")
    stale: int = 0
    skipped: int = 0
    done: bool = False

    def better(self, score: float, loss: float) -> bool:
        """Whether a validation beats the best one: by top-1 or mAP, and by loss where that is equal."""
        return (score, -loss) > (self.best_score, -self.best_loss)


@dataclass
class TrainState:
    """The moving parts of a run, held together so that they are saved and restored together."""

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    ema: WeightEMA | None
    progress: Progress
    fingerprint: str = ""  # of the data
    low: Bfloat16Copy | None = None  # what is computed with, where that is not the objective itself

    def save(self, path: Path) -> None:
        """Weights, optimizer, EMA, progress, random states and thread count. Raises OSError and keeps an older file."""
        tensors = {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        tensors |= {f"optim.{name}.{key}": tensor for name, key, tensor in self._optimizer_tensors()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.average.state_dict().items()}
        facts = {
            "progress": asdict(self.progress),
            "ema_updates": self.ema.updates if self.ema else 0,
            "threads": torch.get_num_threads(),
            "fingerprint": self.fingerprint,
        }
        save_tensors(path, tensors, {"state": json.dumps(facts)})

    def load(self, path: Path) -> None:
        """Restore what `save` wrote, the thread count too. Raises UserError for another architecture's file."""
        tensors, metadata = load_tensors(path)
        if "state" not in metadata:
            raise UserError("not a checkpoint of a run", where=str(path))
        facts = json.loads(metadata["state"])
        if facts["fingerprint"] != self.fingerprint:
            raise UserError("the data have changed since this checkpoint", where=str(path))
        weights = _below(tensors, "objective.")
        check_match(self.objective.state_dict(), weights, str(path))
        self.objective.load_state_dict(weights)
        if self.low is not None:
            self.low.refresh()
        self._load_optimizer(_below(tensors, "optim."))
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        if self.ema is not None:
            self.ema.average.load_state_dict(_below(tensors, "ema."))
            self.ema.updates = facts["ema_updates"]
        self.progress.__dict__.update(facts["progress"])
        torch.set_num_threads(facts["threads"])

    def _names(self) -> dict[int, str]:
        """The optimizer's own numbering of parameters, by name."""
        names = {id(parameter): name for name, parameter in self.objective.named_parameters()}
        ordered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return {number: names[id(parameter)] for number, parameter in enumerate(ordered)}

    def _optimizer_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        names = self._names()
        for number, entries in self.optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    yield names[number], key, value

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state = self.optimizer.state_dict()
        state["state"] = {}
        for number, name in self._names().items():
            entries = {key: tensor for key, tensor in _below(tensors, f"{name}.").items() if "." not in key}
            if entries:
                state["state"][number] = entries
        self.optimizer.load_state_dict(state)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
