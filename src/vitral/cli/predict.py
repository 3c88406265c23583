"""`vitral predict`."""

from __future__ import annotations

import json
from pathlib import Path

from vitral.cli.main import Arguments
from vitral.config import build, help_text, with_overrides
from vitral.errors import UserError
from vitral.run.options import PredictOptions

HELP = """usage: vitral predict MODEL IMAGE|FOLDER... [key=value ...]

Prints one JSON line an image: {{"image", "predictions": [{{"label", "index", "score"}}]}}, the likeliest class first.
MODEL is a bundled name (vitral-digits), a model folder, a run folder, weights of another library or a name on the
Hugging Face hub. A folder means all images in it.

key, type, default, meaning:

{keys}

examples:
  vitral predict vitral-digits digit.png
  vitral predict runs/mine photo.jpg holiday/ topk=1
"""


def run(arguments: Arguments) -> int:
    """Predict and print."""
    if arguments.help:
        print(HELP.format(keys=help_text(PredictOptions)), end="")
        return 0
    if len(arguments.words) < 2:
        raise UserError("a model and at least one image are wanted", hint="vitral predict MODEL IMAGE [IMAGE ...]")
    options = build(PredictOptions, with_overrides(PredictOptions, {}, arguments.pairs))
    model, *names = arguments.words
    for name in names:
        if not Path(name).exists():
            raise UserError("no such image", where=name)
    from vitral.data.folder import images_below
    from vitral.predictor import load

    predictor = load(model, options.device, options.image_size, options.position_resize)
    paths = [
        str(path) for name in names for path in (images_below(Path(name)) if Path(name).is_dir() else [Path(name)])
    ]
    if not paths:
        raise UserError("no images in here", where=", ".join(names))
    for start in range(0, len(paths), options.batch_size):
        batch = paths[start : start + options.batch_size]
        try:
            answers = predictor.predict(batch, options.topk, options.batch_size)
        except UserError:  # one by one: the answers before the image that cannot be read are not lost
            answers = (predictor.predict(path, options.topk)[0] for path in batch)
        for answer in answers:
            print(json.dumps(answer, ensure_ascii=False), flush=True)
    return 0
