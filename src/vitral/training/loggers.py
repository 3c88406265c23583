"""Loggers beside the metrics log: TensorBoard, or any object with three methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from vitral.config import dump_yaml
from vitral.errors import UserError
from vitral.optional_imports import install
from vitral.training.metrics_log import log


class Logger(Protocol):
    """What `vitral.train(..., loggers=[...])` takes. A logger that raises is left out from then on; the run
    continues."""

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """The run starts, or resumes after `step`; `config` is that of config.yaml."""
        ...

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl: "step", "epoch" and numbers."""
        ...

    def close(self) -> None:
        """The run has ended, however."""
        ...


class TensorBoard:
    """Scalars as TensorBoard's event files in `folder`. Raises UserError where the package is missing."""

    def __init__(self, folder: Path) -> None:
        if find_spec("tensorboard") is None:
            raise UserError("TensorBoard is not installed", where="train.tensorboard", hint=install("tensorboard"))
        self.folder = folder

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Open the event file; on a resume what was written behind `step` is hidden."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1)
        self.writer.add_text("config", f"```\n{dump_yaml(dict(config))}```", step)

    def row(self, row: Mapping[str, Any]) -> None:
        """Every number of the row by its name."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class Loggers:
    """Loggers as one, none of which can end a run."""

    def __init__(self, loggers: Sequence[Logger] = (), config: Mapping[str, Any] | None = None) -> None:
        self.loggers, self.config = list(loggers), config or {}

    def start(self, step: int) -> None:
        """Start all loggers."""
        self._each(lambda logger: logger.start(self.config, step))

    def row(self, row: Mapping[str, Any]) -> None:
        """Pass on a row."""
        self._each(lambda logger: logger.row(row))

    def close(self) -> None:
        """Close all loggers."""
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        for logger in tuple(self.loggers):
            try:
                call(logger)
            except Exception as error:
                log.error("%s is left out from here on: %s: %s", type(logger).__name__, type(error).__name__, error)
                self.loggers.remove(logger)
