"""`vitral weights`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import ConfigT, build, with_overrides
from vitral.errors import UserError, nearest, shown_lines
from vitral.weights.config import ConvertOptions, InspectOptions

if TYPE_CHECKING:
    from vitral.weights.convert import Understood
    from vitral.weights.reading import Source

HELP = """usage: vitral weights convert SOURCE out=DIR [key=value ...] [--json]
       vitral weights inspect SOURCE [key=value ...] [--json]

convert    weights of another library as a model folder
inspect    format, tensors and architecture of a checkpoint, and what would not fit; writes nothing

SOURCE is a file (.npz, .safetensors, .pth, .pt, .bin), a folder of transformers or timm, or a name on the Hugging Face
hub. Formats are told by their names; `vitral docs weights` lists them.

key=default, meaning (type):

{keys}

examples:
  vitral weights inspect ViT-B_16.npz
  vitral weights convert ViT-B_16.npz out=vit-b16
  vitral weights convert checkpoint.pth out=mine map=map.yaml heads=6
"""


def run(arguments: Arguments) -> int:
    """Run convert or inspect."""
    actions: dict[str, Callable[[Arguments], int]] = {"convert": _convert, "inspect": _inspect}
    if arguments.help or not arguments.words:
        print(page(HELP, ConvertOptions, arguments.words), end="", file=sys.stdout if arguments.help else sys.stderr)
        return 0 if arguments.help else 2
    action, *words = arguments.words
    if action not in actions:
        raise UserError("no such action", where=action, wanted=", ".join(actions), nearest=nearest(action, actions))
    if len(words) != 1:
        got = " ".join(words) or "none"
        raise UserError("one file, folder or name is wanted", got=got, hint=f"vitral weights {action} SOURCE")
    return actions[action](arguments._replace(words=words))


def _options(model: type[ConfigT], arguments: Arguments) -> ConfigT:
    return build(model, with_overrides(model, {}, arguments.pairs))


def _convert(arguments: Arguments) -> int:
    options = _options(ConvertOptions, arguments)
    from vitral.models.summary import count_parameters
    from vitral.weights.card import model_card
    from vitral.weights.convert import read_foreign
    from vitral.weights.find import find_model
    from vitral.weights.folder import free_place, is_ours, save_folder

    out = free_place(options.out, options.overwrite)
    path = find_model(arguments.words[0])
    if is_ours(path):
        raise UserError("this is a model folder already", where=str(path))
    found = read_foreign(path, options)
    for note in found.notes:
        print(shown_lines(note), file=sys.stderr)
    config = found.config
    save_folder(out, found.model, config, model_card(config, found.notes))
    parameters = count_parameters(config.architecture)
    shape = " x ".join(map(str, config.architecture.image_size))
    if arguments.json:
        print(
            json.dumps(
                {"out": str(out), "parameters": parameters, "classes": len(config.classes), "notes": found.notes}
            )
        )
    else:
        print(f"{out}: {parameters:,} parameters, {len(config.classes):,} classes, images of {shape} pixels")
    return 0


def _inspect(arguments: Arguments) -> int:
    options = _options(InspectOptions, arguments)
    from vitral.weights.convert import understand
    from vitral.weights.find import find_model
    from vitral.weights.folder import is_ours
    from vitral.weights.reading import read

    path = find_model(arguments.words[0])
    if is_ours(path):
        raise UserError("this is a model folder of Vitral", where=str(path), hint="Its config.json says all.")
    source = read(Path(path))
    try:
        tree = _tree(understand(source, options))
    except UserError as error:  # what is in the file is shown all the same: it is what a map is written from
        tree = {"source": source.where, "format": None, "tensors": _tensors(source), "error": str(error)}
        print(json.dumps(tree) if arguments.json else "\n".join(_table(tree)))
        raise
    print(json.dumps(tree) if arguments.json else _text(tree))
    return 0


def _tensors(source: Source) -> dict[str, Any]:
    return {
        name: {"shape": list(tensor.shape), "type": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in source.tensors.items()
    }


def _tree(found: Understood) -> dict[str, Any]:
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


def _table(tree: dict[str, Any]) -> list[str]:
    known = f"format {tree['format']}" if tree["format"] else "no known format"
    lines = [f"{tree['source']}: {known}, {len(tree['tensors'])} tensors", ""]
    width = max(map(len, tree["tensors"]))
    for name, each in tree["tensors"].items():
        shape = " x ".join(map(str, each["shape"]))
        lines.append(f"{name:<{width}}  {each['type']:<9} {shape}")
    return lines


def _text(tree: dict[str, Any]) -> str:
    lines = _table(tree)
    lines += ["", *(f"{key}: {value}" for key, value in tree["architecture"].items()), ""]
    for key in ("dropped", "ignored", "missing", "unexpected", "other shape"):
        lines.append(f"{key}: {', '.join(tree[key]) or 'none'}")
    return "\n".join([*lines, "", *tree["notes"]])
