"""`vitral embed`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitral.cli.images import check_exist, image_paths
from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError
from vitral.run.config import expand_data
from vitral.run.options import EmbedOptions

if TYPE_CHECKING:
    from vitral.run.embed import Row

HELP = """usage: vitral embed MODEL IMAGE|FOLDER... | data=DATA [out=FILE.npz] [key=value ...] [--json]

What a model's encoder makes of each image, before any head: one vector, or with features=patches one a patch. Without
out=, or with --json, one JSON line an image: {{"image", "embedding"}}, of data also "split" and "label" ("labels" where
an image may have several). out= writes arrays: embeddings float32 [N, D], images; of data also splits, labels, classes.

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
            "a model, and either images or data=, are wanted",
            got=" ".join([*arguments.words, *arguments.pairs]) or "none",
            hint="vitral embed MODEL IMAGE [IMAGE ...], or vitral embed MODEL data=DATA",
        )  # fmt: skip
    check_exist(names)
    out = None if options.out is None else _writable(Path(options.out), options.overwrite)
    from vitral.run.embed import embeddings, write_npz
    from vitral.training.journal import console_logging

    console_logging()
    classes, rows = embeddings(model, image_paths(names) if names else None, options)
    kept: list[Row] = []
    for row in rows:
        if out is None or arguments.json:
            print(json.dumps(_line(row, classes), ensure_ascii=False), flush=True)
        if out is not None:
            kept.append(row)
    if out is not None:
        shape = " x ".join(map(str, write_npz(out, kept, classes)))
        print(f"{out}: embeddings {shape}", file=sys.stderr)
    return 0


def _writable(out: Path, overwrite: bool) -> Path:
    """Found out before minutes are spent on the images."""
    if out.suffix != ".npz" or out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(
            "not a file that can be written", where="out", got=out, wanted="FILE.npz in a folder that is there"
        )
    if out.exists() and not overwrite:
        raise UserError("this file is there already", where="out", got=out, hint="overwrite=true replaces it.")
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
