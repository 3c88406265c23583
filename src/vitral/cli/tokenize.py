"""`vitral tokenize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitral.cli.command import Answer, Arguments, command
from vitral.cli.images import Bad, check_exist, image_paths, output_file
from vitral.errors import UserError, taken
from vitral.run.command_options import TokenizeOptions

HELP = """usage: vitral tokenize MODEL [IMAGE|FOLDER|CODES.npz... | data=DATA] out=FILE.npz|DIR [key=value ...] [--json]

Turns images into the integer codes of an image tokenizer (objective.kind=tokenizer), and codes into images. Of images
out=FILE.npz gets codes, int16 or int32 [N, rows, columns], and images, their names; with data= also splits, labels and
classes; and the number of codes and a checksum of the tokenizer. Of such a file out=DIR gets a PNG for each image;
codes of another tokenizer are refused. An image that cannot be read is left out; more than max_bad of them (with data=:
data.max_bad) give exit code 2. `vitral docs visual-tokens` explains tokenizers.

{keys}

examples:
  vitral tokenize runs/tokenizer data=digits out=codes.npz
  vitral tokenize runs/tokenizer photos/ out=photos.npz
  vitral tokenize runs/tokenizer photos.npz out=reconstructions
"""


@command(HELP, TokenizeOptions)
def run(arguments: Arguments, options: TokenizeOptions) -> Answer:
    """Encode or decode, and print."""
    model, *names = arguments.words
    is_data = bool(options.model_fields_set & {"data", "split"})
    if bool(names) == is_data:
        raise UserError(
            "expected images or a file of codes, or data=", got="both" if names else "neither",
            hint="vitral tokenize MODEL IMAGE [IMAGE ...] out=FILE.npz, or MODEL data=DATA out=FILE.npz",
        )  # fmt: skip
    check_exist(names)
    if options.out is None:
        raise UserError("no place for the result given", where="out", hint="out=FILE.npz, or of codes out=DIR")
    is_codes = any(name.endswith(".npz") for name in names)
    if is_codes and len(names) > 1:
        raise UserError("expected one file of codes alone", got=" ".join(names), hint="vitral tokenize MODEL CODES.npz")
    if is_codes:
        from vitral.run.tokenize import decode

        found = decode(model, Path(names[0]), Path(options.out), options)
        return Answer(found, lambda: f"{found['count']:,} images of {found['model']} in {found['out']}")
    out = output_file(Path(options.out), "FILE.npz", ".npz")
    if out.exists() and not options.overwrite:
        raise taken(out, overwrite=True)
    from vitral.run.tokenize import encode

    bad = Bad(options.data.max_bad, "data.max_bad") if is_data else Bad(options.max_bad)
    found = encode(model, image_paths(names) if names else None, out, options, bad.report)
    code = bad.exit_code(found["count"] + found["failed"])
    return Answer(found, lambda: _text(found), code)


def _text(found: dict[str, Any]) -> str:
    rows, columns = found["grid"]
    used = f"{found['codes_used']:,} of {found['codes']:,} codes used, perplexity {found['code_perplexity']:.1f}"
    return f"{found['out']}: codes of {found['count']:,} images, {rows} x {columns} each; {used}"
