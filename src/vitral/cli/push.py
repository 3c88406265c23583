"""`vitral push`."""

from __future__ import annotations

from vitral.cli.command import Answer, Arguments, command
from vitral.run.command_options import PushOptions

HELP = """usage: vitral push MODEL OWNER/NAME [key=value ...] [--json]

Uploads a model folder to the Hugging Face Hub in one commit: config.json, model.safetensors and the model card,
README.md. `vitral predict OWNER/NAME photo.jpg` then loads it from the Hub. MODEL is a bundled model, a model folder or
a run folder. The repository is created if it does not exist. A token with write access comes from `hf auth login` or
HF_TOKEN. Needs pip install "vitral[hub]".

{keys}

examples:
  vitral push runs/mine anna/flowers private=true
  vitral push runs/mine anna/flowers license=cc-by-4.0 overwrite=true
"""


@command(HELP, PushOptions)
def run(arguments: Arguments, options: PushOptions) -> Answer:
    """Push, and print the address."""
    model, repository = arguments.words
    from vitral.run.push import push_model

    url = push_model(model, repository, options)
    return Answer({"repository": repository, "url": url}, lambda: url)
