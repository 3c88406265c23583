"""`vitral embed`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitral.cli.images import Bad, check_exist, image_paths
from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError, taken
from vitral.run.config import expand_data
from vitral.run.options import EmbedOptions

if TYPE_CHECKING:
    from vitral.run.embed import Row

HELP = """usage: vitral embed MODEL IMAGE|FOLDER... | data=DATA [out=FILE.npz] [key=value ...] [--json]

What a model's encoder makes of each image, before any head: one vector, or with features=patches one a patch. Without
out=, or with --json, one JSON line an image: {{"image", "embedding"}}, of data also "split" and "label" ("labels" where
an image may have several). out= writes arrays: embeddings float32 [N, D], images; of data also splits, labels, classes.
An image that cannot be read gets {{"image", "error"}} (in a file: failed, errors) and the others are embedded all the
same; with more than max_bad of them (of data: data.max_bad) the exit code is 2.

key=default, meaning (type):

{keys}

examples:
  vitral embed vitral-digits digit.png
  vitral embed runs/mine photos/ more.jpg out=photos.npz
  vitral embed runs/mine data=PHOTOS split=test features=cls out=test.npz
  vitral embed runs/mine data=PHOTOS out=all.npz engine=ray       on all machines of a Ray cluster
"""


def run(arguments: Arguments) -> int:
    """Embed, then write or print."""
    if arguments.help:
        print(page(HELP, EmbedOptions, arguments.words), end="")
        return 0
    options = build(EmbedOptions, with_overrides(EmbedOptions, {}, expand_data(arguments.pairs)))
    model, *names = arguments.words or [""]
    if not model or bool(names) == bool(options.model_fields_set & {"data", "split"}):
        raise UserError(
            "give a model, and either images or data=",
            got=" ".join([*arguments.words, *arguments.pairs]) or "none",
            hint="vitral embed MODEL IMAGE [IMAGE ...], or vitral embed MODEL data=DATA",
        )  # fmt: skip
    check_exist(names)
    out = None if options.out is None else _writable(Path(options.out), options.overwrite)
    from vitral.run.embed import Failed, Row, embeddings, write_npz
    from vitral.training.journal import console_logging

    console_logging()
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
            bad.say(row.error)
            failed.append(row)
        elif out is not None:
            kept.append(row)
    if out is not None and kept:
        shape = " x ".join(map(str, write_npz(out, kept, classes, failed)))
        print(f"{out}: embeddings {shape}", file=sys.stderr)
    return bad.exit_code(total)


def _writable(out: Path, overwrite: bool) -> Path:
    """Found out before minutes are spent on the images."""
    if out.suffix != ".npz" or out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(
            "not a file that can be written", where="out", got=out, wanted="FILE.npz in a folder that is there"
        )
    if out.exists() and not overwrite:
        raise taken(out, overwrite=True)
    return out


def _line(row: Row, classes: Sequence[str]) -> dict[str, Any]:
    line: dict[str, Any] = {"image": row.image, "embedding": row.embedding.tolist()}
    if row.label is None:
        return line
    line["split"] = row.split
    if row.label.ndim:
        line["labels"] = [name for name, there in zip(classes, row.label, strict=True) if there]
    else:
        line["label"] = classes[row.label]
    return line
