"""`vitral weights`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitral.cli.command import Answer, Arguments, command, group
from vitral.cli.table import table
from vitral.errors import UserError, shown_lines
from vitral.weights.config import ConvertOptions, InspectOptions

if TYPE_CHECKING:
    from vitral.weights.convert import ParsedCheckpoint
    from vitral.weights.read_files import Source

HELP = """usage: vitral weights convert SOURCE out=DIR [key=value ...] [--json]
       vitral weights inspect SOURCE [key=value ...] [--json]

convert    write weights of another library as a model folder
inspect    print format, tensors and architecture of a checkpoint, and what does not fit; writes nothing

SOURCE is a file (.npz, .safetensors, .pth, .pt, .bin), a folder of transformers or timm, or a name on the Hugging Face
Hub. The format is detected from the parameter names; `vitral docs weights` lists the known ones.

{keys}

examples:
  vitral weights inspect ViT-B_16.npz
  vitral weights convert ViT-B_16.npz out=vit-b16
  vitral weights convert checkpoint.pth out=mine map=map.yaml heads=6
"""


@command(HELP, ConvertOptions)
def _convert(arguments: Arguments, options: ConvertOptions) -> Answer:
    from vitral.models.summary import count_parameters
    from vitral.weights.card import model_card
    from vitral.weights.convert import read_external
    from vitral.weights.find_model import find_model
    from vitral.weights.folder import free_place, is_ours, save_folder

    out = free_place(options.out, options.overwrite)
    path = find_model(arguments.words[0])
    if is_ours(path):
        raise UserError("already a model folder of Vitral", where=str(path))
    found = read_external(path, options)
    for note in found.notes:
        print(shown_lines(note), file=sys.stderr)
    config = found.config
    save_folder(out, found.model, config, model_card(config, found.notes))
    parameters = count_parameters(config.architecture)
    shape = " x ".join(map(str, config.architecture.image_size))
    text = f"{out}: {parameters:,} parameters, {len(config.classes):,} classes, images of {shape} pixels"
    tree = {"out": str(out), "parameters": parameters, "classes": len(config.classes), "notes": found.notes}
    return Answer(tree, lambda: text)


@command(HELP, InspectOptions)
def _inspect(arguments: Arguments, options: InspectOptions) -> Answer:
    from vitral.weights.convert import parse_checkpoint
    from vitral.weights.find_model import find_model
    from vitral.weights.folder import is_ours
    from vitral.weights.read_files import read

    path = find_model(arguments.words[0])
    if is_ours(path):
        raise UserError("already a model folder of Vitral", where=str(path), hint="See its config.json.")
    source = read(Path(path))
    try:
        tree = _tree(parse_checkpoint(source, options))
    except UserError as error:  # print the tensors: they are needed to write a map
        tree = {"source": source.where, "format": None, "tensors": _tensors(source), "error": str(error)}
        print(json.dumps(tree) if arguments.json else _table(tree))
        raise
    return Answer(tree, lambda: _text(tree))


def _tensors(source: Source) -> dict[str, Any]:
    return {
        name: {"shape": list(tensor.shape), "type": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in source.tensors.items()
    }


def _tree(found: ParsedCheckpoint) -> dict[str, Any]:
    return {
        "source": found.source.where,
        "format": found.format.name,
        "tensors": _tensors(found.source),
        "architecture": found.architecture.model_dump(),
        "dropped": found.dropped,
        "ignored": found.ignored,
        **found.faults(),
        "notes": found.notes,
    }


def _table(tree: dict[str, Any]) -> str:
    known = f"format {tree['format']}" if tree["format"] else "no known format"
    rows = [(name, each["type"], " x ".join(map(str, each["shape"]))) for name, each in tree["tensors"].items()]
    return f"{tree['source']}: {known}, {len(rows)} tensors\n\n{table(('tensor', 'type', 'shape'), rows)}"


def _text(tree: dict[str, Any]) -> str:
    lines = [_table(tree), "", *(f"{key}: {value}" for key, value in tree["architecture"].items()), ""]
    faults = ("dropped", "ignored", "missing", "unexpected", "other shape")
    lines += [f"{key}: {', '.join(tree[key]) or 'none'}" for key in faults]
    return "\n".join([*lines, "", *tree["notes"]])


run = group(HELP, {"convert": _convert, "inspect": _inspect}, ConvertOptions)
