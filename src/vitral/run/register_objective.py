"""Register objectives defined outside of the package."""

from __future__ import annotations

from typing import Any, get_args

from vitral.errors import UserError
from vitral.objectives.base_config import ViewedConfig
from vitral.objectives.objective import Objective
from vitral.objectives.registry import OBJECTIVES
from vitral.run.config import RunConfig


def register_objective(config: type[ViewedConfig], objective: type[Objective]) -> None:
    """Add an objective of your own as an `objective.kind`, until this process ends.

    `config` has a field `kind` whose annotation is a Literal of one name, and the keys of the objective, which the
    command line and `--help` then know as objective.KEY. Raises UserError for a kind that exists, and for a class
    without one.
    """
    field = config.model_fields.get("kind")
    names = get_args(field.annotation) if field is not None else ()
    if len(names) != 1:
        raise UserError(
            "an objective's configuration needs a field `kind`", where=config.__name__, expected='kind: Literal["NAME"]'
        )
    if names[0] in OBJECTIVES:
        raise UserError("an objective of this kind exists", where=config.__name__, got=names[0])
    OBJECTIVES[names[0]] = objective
    known: Any = RunConfig.model_fields["objective"]
    known.annotation = known.annotation | config
    RunConfig.model_rebuild(force=True)
