"""`vitral predict`."""

from __future__ import annotations

import json

from vitral.cli.images import Bad, check_exist, image_paths
from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError
from vitral.run.options import PredictOptions

HELP = """usage: vitral predict MODEL IMAGE|FOLDER... [key=value ...]

Prints one JSON line an image: {{"image", "predictions": [{{"label", "index", "score"}}]}}, the likeliest class first.
MODEL is a bundled name (vitral-digits), a model folder, a run folder, weights of another library or a name on the
Hugging Face hub. A folder means all images in it. An image that cannot be read gets {{"image", "error"}} and the others
are answered all the same; with more than max_bad of them the exit code is 2.

key=default, meaning (type):

{keys}

examples:
  vitral predict vitral-digits digit.png
  vitral predict runs/mine photo.jpg holiday/ topk=1
  vitral predict runs/mine /data/photos engine=ray        on all machines of a Ray cluster (vitral docs many-machines)
"""


def run(arguments: Arguments) -> int:
    """Predict and print."""
    if arguments.help:
        print(page(HELP, PredictOptions, arguments.words), end="")
        return 0
    if len(arguments.words) < 2:
        missing = "image is missing" if arguments.words else "model and image are missing"
        raise UserError(missing, hint="vitral predict MODEL IMAGE [IMAGE ...]")
    options = build(PredictOptions, with_overrides(PredictOptions, {}, arguments.pairs))
    model, *names = arguments.words
    check_exist(names)
    from vitral.run.predict import predictions
    from vitral.training.journal import console_logging

    console_logging()

    paths = image_paths(names)
    bad = Bad(options.max_bad)
    for answer in predictions(model, paths, options):
        print(json.dumps(answer, ensure_ascii=False), flush=True)
        if "error" in answer:
            bad.say(answer["error"])
    return bad.exit_code(len(paths))
