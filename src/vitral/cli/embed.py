"""`vitral embed`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitral.cli.command import Arguments, command
from vitral.cli.images import Bad, check_exist, image_paths, output_file
from vitral.errors import UserError, taken
from vitral.run.command_options import EmbedOptions

if TYPE_CHECKING:
    from vitral.run.embed import Row

HELP = """usage: vitral embed MODEL [IMAGE|FOLDER... | data=DATA] [out=FILE.npz] [key=value ...] [--json]

Writes the features of each image, the output of the encoder before any head: one vector, or with features=patches one
per patch. Without out=, or with --json, prints one JSON line per image: {{"image", "embedding"}}, with data= also
"split" and "label" ("labels" for multi-label data). out= writes arrays: embeddings float32 [N, D], images; with data=
also splits, labels, classes. An image that cannot be read gets {{"image", "error"}} (in the file: failed, errors), and
the others are still processed; more than max_bad of them (with data=: data.max_bad) give exit code 2.

{keys}

examples:
  vitral embed vitral-digits digit.png
  vitral embed runs/mine photos/ more.jpg out=photos.npz
  vitral embed runs/mine data=PHOTOS split=test features=cls out=test.npz
  vitral embed runs/mine data=PHOTOS out=all.npz engine=ray       on all machines of a Ray cluster
"""


@command(HELP, EmbedOptions)
def run(arguments: Arguments, options: EmbedOptions) -> int:
    """Embed, then write or print."""
    model, *names = arguments.words
    if bool(names) == bool(options.model_fields_set & {"data", "split"}):
        raise UserError(
            "expected either images or data=",
            got=" ".join([*arguments.words, *arguments.pairs]),
            hint="vitral embed MODEL IMAGE [IMAGE ...], or vitral embed MODEL data=DATA",
        )  # fmt: skip
    check_exist(names)
    out = None if options.out is None else output_file(Path(options.out), "FILE.npz", ".npz")
    if out is not None and out.exists() and not options.overwrite:
        raise taken(out, overwrite=True)
    from vitral.run.embed import Failed, Row, embeddings, write_npz

    paths = image_paths(names) if names else None
    classes, rows = embeddings(model, paths, options)
    kept, failed, total = list[Row](), list[Failed](), 0
    bad = Bad(options.max_bad) if names else Bad(options.data.max_bad, "data.max_bad")
    for row in rows:
        total += 1
        if out is None or arguments.json:
            line = row._asdict() if isinstance(row, Failed) else _line(row, classes)
            print(json.dumps(line, ensure_ascii=False), flush=True)
        if isinstance(row, Failed):
            bad.report(row.error)
            failed.append(row)
        elif out is not None:
            kept.append(row)
    if out is not None and kept:
        shape = " x ".join(map(str, write_npz(out, kept, classes, failed)))
        print(f"{out}: embeddings {shape}", file=sys.stderr)
    return bad.exit_code(total)


def _line(row: Row, classes: Sequence[str]) -> dict[str, Any]:
    line: dict[str, Any] = {"image": row.image, "embedding": row.embedding.tolist()}
    if row.label is None:
        return line
    line["split"] = row.split
    if row.label.dtype.kind == "f":
        line["values"] = dict(zip(classes, row.label.tolist(), strict=True))
    elif row.label.ndim:
        line["labels"] = [name for name, there in zip(classes, row.label, strict=True) if there]
    else:
        line["label"] = classes[row.label]
    return line
