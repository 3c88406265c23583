"""`vitral push`."""

from __future__ import annotations

import json

from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError
from vitral.run.options import PushOptions

HELP = """usage: vitral push MODEL OWNER/NAME [key=value ...] [--json]

Brings a model folder to the Hugging Face hub: config.json, model.safetensors and the card, README.md, in one commit.
`vitral predict OWNER/NAME photo.jpg` takes it from there. MODEL is a bundled name, a model folder or a run folder. The
repository is made where there is none; a token that may write comes from `hf auth login` or HF_TOKEN. Needs
pip install "vitral[hub]".

key=default, meaning (type):

{keys}

examples:
  vitral push runs/mine anna/flowers private=true
  vitral push runs/mine anna/flowers license=cc-by-4.0 overwrite=true
"""


def run(arguments: Arguments) -> int:
    """Push, and say where it is."""
    if arguments.help:
        print(page(HELP, PushOptions, arguments.words), end="")
        return 0
    if len(arguments.words) != 2:
        got = " ".join(arguments.words) or "none"
        raise UserError("give a model and a name on the hub", got=got, hint="vitral push MODEL OWNER/NAME")
    options = build(PushOptions, with_overrides(PushOptions, {}, arguments.pairs))
    model, repository = arguments.words
    from vitral.run.push import push_model

    url = push_model(model, repository, options)
    print(json.dumps({"repository": repository, "url": url}) if arguments.json else url)
    return 0
