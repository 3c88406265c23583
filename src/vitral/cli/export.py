"""`vitral export`."""

from __future__ import annotations

import json
import sys

from vitral.cli.main import Arguments
from vitral.config import build, help_text, with_overrides
from vitral.errors import UserError
from vitral.export.config import ExportOptions

HELP = """usage: vitral export MODEL format=hf|timm out=DIR [key=value ...] [--json]

Writes a model for another library, with its class names and preprocessing, and reads it back to compare the outputs.
MODEL is a bundled name, a model folder, a run folder, foreign weights or a name on the Hugging Face hub.

key, type, default, meaning:

{keys}

examples:
  vitral export runs/mine format=hf out=mine-hf         AutoModelForImageClassification.from_pretrained("mine-hf")
  vitral export runs/mine format=timm out=mine-timm     timm.create_model("local-dir:mine-timm", pretrained=True)
"""


def run(arguments: Arguments) -> int:
    """Export and compare."""
    if arguments.help:
        print(HELP.format(keys=help_text(ExportOptions)), end="")
        return 0
    if len(arguments.words) != 1:
        got = " ".join(arguments.words) or "none"
        raise UserError("one model is wanted", got=got, hint="vitral export MODEL format=hf|timm out=DIR")
    options = build(ExportOptions, with_overrides(ExportOptions, {}, arguments.pairs))
    from vitral.export.write import export

    written = export(arguments.words[0], options)
    for note in written.notes:
        print(note, file=sys.stderr)
    if arguments.json:
        tree = {"out": str(written.out), "max_difference": written.difference, "images": written.images}
        print(json.dumps({**tree, "notes": written.notes}))
    else:
        print(f"{written.out}: read back, outputs differ by at most {written.difference:.1e} ({written.images} images)")
    return 0
