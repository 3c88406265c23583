"""`vitral push`."""

from __future__ import annotations

from vitral.cli.command import Answer, Arguments, command
from vitral.run.command_options import PushOptions

HELP = """usage: vitral push MODEL OWNER/NAME [key=value ...] [--json]

Uploads a model folder to the Hugging Face Hub in one commit: config.json, model.safetensors, the model card, README.md,
and tokenizer.json of a model that writes text. `vitral predict OWNER/NAME photo.jpg` then loads it from the Hub. MODEL
is a bundled model, a model folder or a run folder. The repository is created if it does not exist. A token with write
access comes from `hf auth login` or HF_TOKEN. Needs pip install "vitral[hub]".

{keys}

examples:
  vitral push runs/mine anna/flowers private=true
  vitral push runs/mine anna/flowers license=cc-by-4.0 overwrite=true
"""


@command(HELP, PushOptions)
def run(arguments: Arguments, options: PushOptions) -> Answer:
    """Upload the model folder, its card included, and print the address of the repository."""
    model, repository = arguments.words
    from vitral.engines import find_export
    from vitral.errors import UserError
    from vitral.weights.find_model import find_model
    from vitral.weights.folder import is_ours
    from vitral.weights.push import push
    from vitral.weights.text_kind import find_text_export

    if find_export(model) is not None or find_text_export(model) is not None:
        raise UserError("this is an export", where=model, expected="the model folder that it was made from")
    path = find_model(model)
    if not is_ours(path):
        hint = f"vitral weights convert {model} out=DIR, then push DIR"
        raise UserError("weights of another library", where=model, expected="a model folder", hint=hint)
    license, overwrite = options.license, options.overwrite
    url = push(path, repository, private=options.private, license=license, overwrite=overwrite)
    return Answer({"repository": repository, "url": url}, lambda: url)
