"""`vitral eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitral.cli.command import Answer, Arguments, command, missed
from vitral.cli.images import skipped_lines
from vitral.run.command_options import EvalOptions
from vitral.run.text_options import TextEvalOptions

if TYPE_CHECKING:
    from vitral.run.evaluate import Measured

HELP = """usage: vitral eval MODEL [key=value ...] [--json]

Measures a model on labeled images: top-1 with a 95 % Wilson interval, top-5, precision and recall of each class,
confusions, calibration; for multi-label data mean average precision and F1; for numbers mean absolute error, R2 and
more; for boxes COCO's average precision with a bootstrap interval, and the kinds of errors. Without data= the images
are those of the training run. A metric beyond min_top1, min_map, min_ap, min_ap50 or max_mae gives exit code 3.

{keys}

examples:
  vitral eval vitral-digits
  vitral eval runs/mine/model data=OTHER_PHOTOS min_top1=0.9
  vitral eval runs/b/model compare=runs/a/model             compare on the same images
  vitral eval runs/TEXT --help                              keys of a model that writes text: error rates, BLEU
"""


@command(HELP, EvalOptions, text=TextEvalOptions)
def run(arguments: Arguments, options: EvalOptions | TextEvalOptions) -> Answer:
    """Evaluate and print."""
    if isinstance(options, TextEvalOptions):
        from vitral.run.text_eval import measure_text

        measured = measure_text(arguments.words[0], options)
    else:
        from vitral.run.evaluate import measure

        measured = measure(arguments.words[0], options)
    return Answer(measured.result, lambda: _text(measured), missed(options.missed(measured.result)))


def _text(measured: Measured) -> str:
    from vitral.report.render import to_console

    task, evaluation, result = measured
    lines = [to_console(task.console(evaluation))]
    lines += skipped_lines(result["skipped"])
    if "compare" in result:
        lines.append(f"\n{task.comparison(result['compare'])}")
    return "\n".join(lines)
