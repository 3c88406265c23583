"""Steps with non-finite loss or gradient: skipped, recorded, traced to the first module that causes it.

Whether a step is bad is a number on the device, `found_inf`; optimizer and average leave everything as it is where it
is 1, so nobody waits for it. On a CPU it is read at once. On CUDA it is copied beside the computation and read a step
later, when the device is busy with the next gradients and before they move anything: the weights are then still those
that the bad step met. Of many processes all skip a step that is bad on any.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_leaves

from vitral import distributed
from vitral.atomic_files import remove
from vitral.errors import RunFailed, command
from vitral.objectives.objective import Objective
from vitral.structs import Batch, device_of, micro_batches, sample_places
from vitral.training.config import TrainConfig
from vitral.training.metrics_log import log
from vitral.training.train_state import SHARDED, WHOLE, TrainState

NONFINITE = "nonfinite"  # the folder, in that of the run
STEPS, STATE = "steps.jsonl", "state"  # the latter a file or a folder, as checkpoints are
NOTHING = "nothing in this batch alone; the sum or the norm of its gradients overflows"
CUT = "not looked for, as the weights are cut over processes"
BOUND = "not looked for, as no process can compute its loss without the others"


@dataclass
class _Step:
    """One step whose flag has not been read."""

    number: int
    random: list[Tensor]
    loss: Tensor
    norm: Tensor
    flag: Tensor
    copied: torch.cuda.Event | None

    def is_nonfinite(self) -> bool:
        """Waits for the copy of the flag alone, not for what the device got to do since."""
        if self.copied is not None:
            self.copied.synchronize()
        return bool(self.flag)


class NonFiniteGuard:
    """Checks every step between its gradients and its update.

    batches: those of a step, by stream, to trace a step that was not finite. run: the run folder, which gets a folder
    `nonfinite` then. late: read the flag a step later, as on CUDA.
    """

    def __init__(
        self, state: TrainState, batches: Callable[[int], Mapping[str, Batch]], run: Path, config: TrainConfig, *,
        late: bool | None = None,
    ) -> None:  # fmt: skip
        self.state, self.batches, self.run, self.config, self.streak = state, batches, run, config, 0
        self.device = next(state.objective.parameters()).device
        self.late = self.device.type == "cuda" if late is None else late
        self._running = _running_statistics(state.objective)
        self._before: tuple[list[Tensor], list[Tensor]] = [], []
        self._waiting: _Step | None = None

    def begin(self) -> None:
        """Before a step's forward pass: remember its random state, and what the pass changes on the way."""
        self._before = _random_state(self.device), [buffer.clone() for buffer in self._running]

    def check(self, loss: Tensor, norm: Tensor) -> Tensor:
        """`found_inf` of the step whose gradients are complete; given to the optimizer. Reads the flag of the step
        before, or, if not late, of this one: raises RunFailed where there were too many."""
        found_inf = distributed.all_reduce_max((~(loss.isfinite() & norm.isfinite())).float())
        random, running = self._before
        for buffer, before in zip(self._running, running, strict=True):
            buffer.copy_(torch.where(found_inf > 0, before, buffer))
        self.sync()
        self._waiting = _Step(self.state.progress.step, random, loss, norm, *_fetch(found_inf))
        if not self.late:
            self.sync()
        self.state.optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
        return found_inf

    def sync(self) -> None:
        """Read the flag that is still out. Raises RunFailed where too many steps in a row were bad."""
        step, self._waiting = self._waiting, None
        if step is None:
            return
        if not step.is_nonfinite():
            self.streak = 0
            return
        self.streak += 1
        is_over = self.streak >= self.config.max_nonfinite_steps
        self.state.progress.skipped += 1
        loss = distributed.mean([step.loss])[0]
        values = f"the loss is {loss.item()}, the gradient's norm {step.norm.item()}"
        with _random_of(self.device, step.random):
            found, places = self._trace(step.number)
            log.warning("step %d is skipped: %s; first not finite: %s", step.number + 1, values, found)
            row = {"step": step.number, "said": values, "found": found, **by_stream("keys", places)}
            self._write(row, is_last=is_over)
        if is_over:
            raise RunFailed(
                f"{self.streak} steps in a row were not finite; at step {step.number + 1} {values}; a lower optim.lr "
                f"may help.\n  First not finite: {found}. Replay that batch with:\n  "
                f"{command('vitral', 'doctor', str(self.run))}"
            )

    def _trace(self, number: int) -> tuple[str, dict[str, list[int]]]:
        """What is first not finite, on the first process that finds something, and the samples of all, by stream."""
        batches, objective = self.batches(number), self.state.objective
        if any(map(distributed.is_sharded, objective.parameters())):  # looking would have to be in step on all
            found = CUT
        elif distributed.world() > 1 and isinstance(objective, Objective) and objective.uses_collectives:
            found = BOUND
        else:
            micro, autocast = self.config.micro_batch, self.state.autocast
            found = first_non_finite(objective, batches, number, micro=micro, autocast=autocast)
        gathered = distributed.gather((found, {name: sample_places(batch).tolist() for name, batch in batches.items()}))
        places = {name: [place for _, each in gathered for place in each[name]] for name in batches}
        return next((text for text, _ in gathered if text != NOTHING), NOTHING), places

    def _write(self, row: Mapping[str, Any], *, is_last: bool) -> None:
        """A line for the step; with the last one that is borne the state that it met, too, to which all add."""
        folder = self.run / NONFINITE
        with _reported():
            if distributed.is_main():
                folder.mkdir(exist_ok=True)
                with (folder / STEPS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                for suffix in (WHOLE, SHARDED) if is_last else ():
                    remove(folder / f"{STATE}{suffix}")
        if is_last:
            with _reported():
                state = replace(self.state, progress=replace(self.state.progress, step=row["step"]))
                state.save(folder / f"{STATE}{WHOLE}")


@contextmanager
def _reported() -> Generator[None]:
    try:
        yield
    except OSError as error:
        log.error("the bad step could not be written down: %s", error)


def by_stream(key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The first stream's value under `key`, the others' under STREAM_key."""
    return {key if number == 0 else f"{name}_{key}": value for number, (name, value) in enumerate(values.items())}


def first_non_finite(
    objective: nn.Module, batches: Mapping[str, Batch], step: int, *, micro: int | None, autocast: torch.dtype | None
) -> str:
    """Run the batches of a step once more, with hooks on every module, and say where numbers first stop to be finite.

    Look at images, weights, outputs of modules in the order of the computation, the loss; then at the gradients of
    these outputs, from the loss back. Gradients in `.grad`, running statistics and weights stay as they are.
    """
    if isinstance(objective, Objective):
        batches = objective.prepare_batches(batches, step)
    for number, (name, batch) in enumerate(batches.items()):
        for view in batch.views:
            is_wrong_B = ~view.images_BCHW.isfinite().flatten(1).all(dim=1).cpu()
            if is_wrong_B.any():
                which = "" if number == 0 else f" of the stream {name}"
                return f"the images{which}, samples {sample_places(batch)[is_wrong_B].tolist()[:10]}"
    for name, parameter in objective.named_parameters():
        if not parameter.isfinite().all():
            return f"the parameter {name}"
    running = _running_statistics(objective)
    before = [buffer.clone() for buffer in running]
    try:
        for part in micro_batches(batches, micro):
            found = _trace(objective, part, step, autocast)
            if found is not None:
                return found
    finally:
        for buffer, old in zip(running, before, strict=True):
            buffer.copy_(old)
    return NOTHING


def _trace(objective: nn.Module, part: Mapping[str, Batch], step: int, autocast: torch.dtype | None) -> str | None:
    forward, backward = list[str](), list[str]()

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in tree_leaves(output):
                if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                    continue
                if not forward and not tensor.isfinite().all():
                    forward.append(name)
                if tensor.requires_grad:
                    tensor.register_hook(lambda grad: backward.append(name) if not grad.isfinite().all() else None)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in objective.named_modules() if name]
    device = device_of(part).type
    try:
        with torch.enable_grad(), torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None):
            loss = objective(part, step).loss_sum
        if forward:
            return f"the output of {forward[0]}"
        if not loss.isfinite():
            return "the loss itself, of finite outputs"
        trained = {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}
        grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
        if backward:
            return f"the gradient of the output of {backward[0]}"
        wrong = [name for name, grad in zip(trained, grads, strict=True) if not grad.isfinite().all()]
        return f"the gradient of {wrong[-1]}" if wrong else None
    finally:
        for hook in hooks:
            hook.remove()


def _running_statistics(objective: nn.Module) -> list[Tensor]:
    """What a forward pass changes: of batch norms, mean, variance and count."""
    return [buffer for module in objective.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers()]


def _fetch(flag: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if not flag.is_cuda:
        return flag, None
    host = torch.empty(flag.shape, pin_memory=True).copy_(flag, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host, copied


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextmanager
def _random_of(device: torch.device, random: list[Tensor]) -> Generator[None]:
    """The random state of an earlier moment, for a while."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(random[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(random[1], device)
        yield
