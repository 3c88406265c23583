"""`vitral push`: a model folder to the Hugging Face hub."""

from __future__ import annotations

from vitral.engines import find_export
from vitral.errors import UserError
from vitral.run.command_options import PushOptions
from vitral.weights.find_model import find_model
from vitral.weights.folder import is_ours
from vitral.weights.hub import push


def push_model(model: str, repository: str, options: PushOptions) -> str:
    """The web address of the repository that holds the model folder now, its card as it is in the folder."""
    if find_export(model) is not None:
        raise UserError("this is an export", where=model, expected="the model folder that it was made from")
    path = find_model(model)
    if not is_ours(path):
        hint = f"vitral weights convert {model} out=DIR, then push DIR"
        raise UserError("weights of another library", where=model, expected="a model folder", hint=hint)
    return push(path, repository, private=options.private, license=options.license, overwrite=options.overwrite)
