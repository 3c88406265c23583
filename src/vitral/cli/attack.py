"""`vitral attack`."""

from __future__ import annotations

from vitral.cli.command import Answer, Arguments, command, missed
from vitral.cli.images import skipped_lines
from vitral.run.command_options import AttackOptions

HELP = """usage: vitral attack MODEL [key=value ...] [--json]

Measures a classifier on adversarial images: top-1 under attack with a 95 % Wilson interval, over the size of the
change, per class, with confidence and the worst examples. attack.kind=ensemble is AutoAttack without FAB: APGD-CE,
targeted APGD-DLR and Square in a row, each on the images that are left. MODEL is as in `vitral predict`; an export has
no gradients, so only attack.kind=square works on it, or transfer=MODEL. Without data= the images are those of the
training run. Tests for weak attacks and masked gradients print a warning; with check=strict they also give exit code 3,
as does a top-1 under attack below min_top1. `vitral docs attacks` explains attacks and tests.

{keys}

examples:
  vitral attack vitral-digits attack.eps=0.1
  vitral attack runs/mine attack.kind=ensemble attack.eps=4/255 samples=1000 out=attacked
  vitral attack runs/mine attack.kind=apgd attack.norm=l2 attack.eps=0.5 curve=0.1,0.2
  vitral attack runs/b transfer=runs/a              do the adversarial images of one model fool another?
"""


@command(HELP, AttackOptions)
def run(arguments: Arguments, options: AttackOptions) -> Answer:
    """Attack and print."""
    from vitral.run.attack import measure

    result, sections, failed = measure(arguments.words[0], options)
    limits = [
        f"check=strict: expected that {check.expects}; {check.text}" for check in failed if options.check == "strict"
    ]
    if options.min_top1 is not None and result["robust_top1"] < options.min_top1:
        limits.append(f"robust_top1 {result['robust_top1']:.4f} is below min_top1={options.min_top1}")

    def text() -> str:
        from vitral.report.render import to_console

        page = [f"\n{result['page']}"] if "page" in result else []
        return "\n".join([to_console(sections), *skipped_lines(result["skipped"]), *page])

    return Answer(result, text, missed(limits))
