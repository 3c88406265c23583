"""`vitral predict`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vitral.cli.command import Arguments, command
from vitral.cli.images import Bad, check_exist, image_paths
from vitral.errors import UserError
from vitral.run.command_options import PredictOptions
from vitral.run.text_options import TextPredictOptions

HELP = """usage: vitral predict MODEL [IMAGE|FOLDER|TEXTFILE...] [key=value ...]

Prints one JSON line per image: {{"image", "predictions": [{{"label", "index", "score"}}]}}, most likely class first.
MODEL is a bundled model (vitral-digits), a model folder, a run folder, weights of another library or a name on the
Hugging Face Hub. FOLDER stands for all images in it. An image that cannot be read gets {{"image", "error"}}, and the
others are still processed; more than max_bad of them give exit code 2. A detector gives {{"image", "detections":
[{{"label", "index", "score", "box"}}]}}, boxes as x0, y0, x1, y1 in pixels of the upright image, best score first;
draw=DIR writes pictures with them. A model that writes text gives {{"text",
"score"}} for each image, or for each line of a TEXTFILE; --text TEXT reads one text. `vitral predict MODEL --help`
shows its keys.

{keys}

examples:
  vitral predict vitral-digits digit.png
  vitral predict runs/mine photo.jpg holiday/ topk=1
  vitral predict runs/mine /data/photos engine=ray        on all machines of a Ray cluster (vitral docs ray)
  vitral predict runs/BOXES photos/ threshold=0.5 draw=pictures
  vitral predict runs/TEXT --text "physics" search.search=beam
"""


@command(HELP, PredictOptions, text=TextPredictOptions)
def run(arguments: Arguments, options: PredictOptions | TextPredictOptions) -> int:
    """Predict and print."""
    model, *names = arguments.words
    if isinstance(options, TextPredictOptions):
        return _write(model, names, options)
    if not names:
        raise UserError("missing argument: IMAGE|FOLDER...", hint=HELP.partition("\n\n")[0])
    check_exist(names)
    from vitral.run.predict import predictions

    paths = image_paths(names)
    bad = Bad(options.max_bad)
    for answer in predictions(model, paths, options):
        print(json.dumps(answer, ensure_ascii=False), flush=True)
        if "error" in answer:
            bad.report(answer["error"])
    return bad.exit_code(len(paths))


def _write(model: str, names: Sequence[str], options: TextPredictOptions) -> int:
    """Print what the model writes for each text or image."""
    check_exist(names)
    from vitral.files import MIB, read_lines
    from vitral.text_predictor import load_text
    from vitral.training.metrics_log import console_logging

    console_logging()
    predictor = load_text(model, options.device)
    if predictor.reads_images:
        if options.text is not None:
            raise UserError("this model reads images, not texts", where="text", got=options.text)
        sources: Sequence[Any] = image_paths(names)
    else:
        lines = [line for name in names for line in read_lines(name, 256 * MIB)]
        sources = [*([] if options.text is None else [options.text]), *lines]
        if not sources:
            hint = 'vitral predict MODEL --text "TEXT", or a file with a text in each line'
            raise UserError("missing argument: a text", hint=hint)
    bad = Bad(options.max_bad, inputs=predictor.task.inputs_name)
    for answer in predictor.predict(sources, options.search, options.batch_size, tolerant=True):
        print(json.dumps(answer, ensure_ascii=False), flush=True)
        if "error" in answer:
            bad.report(answer["error"])
    return bad.exit_code(len(sources))
