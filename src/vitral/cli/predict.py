"""`vitral predict`."""

from __future__ import annotations

import json

from vitral.cli.command import Arguments, command
from vitral.cli.images import Bad, check_exist, image_paths
from vitral.run.command_options import PredictOptions

HELP = """usage: vitral predict MODEL IMAGE|FOLDER... [key=value ...]

Prints one JSON line per image: {{"image", "predictions": [{{"label", "index", "score"}}]}}, most likely class first.
MODEL is a bundled model (vitral-digits), a model folder, a run folder, weights of another library or a name on the
Hugging Face Hub. FOLDER stands for all images in it. An image that cannot be read gets {{"image", "error"}}, and the
others are still processed; more than max_bad of them give exit code 2.

{keys}

examples:
  vitral predict vitral-digits digit.png
  vitral predict runs/mine photo.jpg holiday/ topk=1
  vitral predict runs/mine /data/photos engine=ray        on all machines of a Ray cluster (vitral docs ray)
"""


@command(HELP, PredictOptions)
def run(arguments: Arguments, options: PredictOptions) -> int:
    """Predict and print."""
    model, *names = arguments.words
    check_exist(names)
    from vitral.run.predict import predictions

    paths = image_paths(names)
    bad = Bad(options.max_bad)
    for answer in predictions(model, paths, options):
        print(json.dumps(answer, ensure_ascii=False), flush=True)
        if "error" in answer:
            bad.report(answer["error"])
    return bad.exit_code(len(paths))
