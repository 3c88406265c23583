"""`vitral predict`."""

from __future__ import annotations

import json

from vitral.cli.images import check_exist, image_paths
from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError
from vitral.run.options import PredictOptions

HELP = """usage: vitral predict MODEL IMAGE|FOLDER... [key=value ...]

Prints one JSON line an image: {{"image", "predictions": [{{"label", "index", "score"}}]}}, the likeliest class first.
MODEL is a bundled name (vitral-digits), a model folder, a run folder, weights of another library or a name on the
Hugging Face hub. A folder means all images in it.

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
        raise UserError("a model and at least one image are wanted", hint="vitral predict MODEL IMAGE [IMAGE ...]")
    options = build(PredictOptions, with_overrides(PredictOptions, {}, arguments.pairs))
    model, *names = arguments.words
    check_exist(names)
    from vitral.run.predict import predictions

    for answer in predictions(model, image_paths(names), options):
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    return 0
