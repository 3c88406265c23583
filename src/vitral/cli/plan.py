"""`vitral plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError
from vitral.models.presets import PRESETS
from vitral.run.config import load_config, recipes
from vitral.run.options import PlanOptions

HELP = """usage: vitral plan RECIPE [memory=8GB] [key=value ...] [--json]
       vitral plan MODEL [key=value ...] [--json]

Says how much memory training by a recipe takes before anything runs, and which micro-batch and checkpointing fit into
`memory` (without it what is free) at the recipe's batch size, as little as possible computed twice. Takes the keys of
`vitral train`. Of a preset or a model folder: parameters, multiply-accumulates and memory of one image, how they grow
with its size, the size of patches and the number of blocks, and the way of an image through it with every shape.
`vitral docs memory` has the formula.

keys with MODEL, key=default, meaning (type):

{keys}

examples:
  vitral plan digits
  vitral plan deit_s16_in1k memory=8GB device=cuda
  vitral plan pretrain_in1k_b16 memory=24GB device=cuda precision=bfloat16_params
  vitral plan vit_base_patch16_224 image_size=384
  vitral plan vit_base_patch16_224 out=growth.png
"""


def run(arguments: Arguments) -> int:
    """Plan a recipe or a model."""
    if arguments.help:
        print(page(HELP, PlanOptions, arguments.words), end="")
        return 0
    if len(arguments.words) != 1:
        raise UserError(
            "one recipe or model is wanted", got=" ".join(arguments.words) or "none", hint="vitral plan --help"
        )
    name = arguments.words[0]
    if name in recipes() or Path(name).suffix in (".yaml", ".yml"):
        config = load_config(name, arguments.pairs)
        from vitral.run.plan import plan_recipe

        found = plan_recipe(config)
        text = _recipe_text
    else:
        _refuse_unknown(name)
        options = build(PlanOptions, with_overrides(PlanOptions, {}, arguments.pairs))
        from vitral.run.plan import plan_model

        found = plan_model(name, options)
        text = _model_text
    print(json.dumps(found) if arguments.json else text(found))
    return 0


def _refuse_unknown(name: str) -> None:
    from vitral.errors import nearest
    from vitral.weights.folder import find_folder

    try:
        if name not in PRESETS:
            find_folder(name)
    except UserError as error:
        if Path(name).expanduser().exists():
            raise
        close = nearest(name, [*recipes(), *PRESETS])
        raise UserError("no recipe, preset or model of this name", where=name, nearest=close or error.nearest) from None


def _recipe_text(found: dict[str, Any]) -> str:
    from vitral.training.plan import show_bytes

    size, blocks, batch = found["image_size"], found["blocks"], found["batch_size"]
    verdict = "fits into" if found["fits"] else "DOES NOT FIT into"
    rows = [
        f"{row['micro_batch']:>11} {row['accumulation']:>12} {row['checkpointing']:>8} of {blocks:<4}"
        f"{show_bytes(row['memory_bytes']):>9}  {'too much' * (row['memory_bytes'] > found['limit_bytes'])}"
        for row in found["alternatives"]
    ]
    chosen = f"train.micro_batch={found['micro_batch']} train.checkpointing={found['checkpointing'] or 'none'}"
    return "\n".join(
        [
            *_work(found, size), "",
            f"a step of {batch} images on {found['device']}, {found['precision']}: about"
            f" {show_bytes(found['memory_bytes'])}, {verdict} {show_bytes(found['limit_bytes'])} with",
            f"  {chosen}", "",
            *_parts(found["parts"]), "", "micro-batch accumulation  blocks twice   memory", *rows,
        ]
    )  # fmt: skip


def _model_text(found: dict[str, Any]) -> str:
    from vitral.training.plan import show_bytes

    way = [f"  {stage['stage']:<38} {' x '.join(map(str, stage['shape']))}" for stage in found["walk"]]
    closed = [f"  {name:<11} {count:>17,}" for name, count in found.get("formula", {}).items()]
    if closed:
        closed = ["", "by the formula, N tokens of D features, D_h in the MLP:", *closed]
    return "\n".join(
        [
            *_work(found, found["image_size"]), *closed, "",
            f"training with AdamW on one image, {found['precision']}: about {show_bytes(found['memory_bytes'])}", "",
            *_parts(found["parts"]), "",
            "what an image adds, by its size:", *_growth(found["sizes"], "image_size"),
            *(row for key, title in _SERIES.items() if key in found for row in ("", title, *_growth(found[key], key))),
            "", "the way of an image:", *way,
        ]
    )  # fmt: skip


_SERIES = {"patch_size": "by the size of a patch:", "depth": "by the number of blocks:"}


def _growth(rows: list[dict[str, Any]], key: str) -> list[str]:
    from vitral.training.plan import show_bytes

    lines = [f"  {key.replace('_', ' '):<13} {'parameters':>15} {'operations':>18}   forward  training"]
    for row in rows:
        value = " x ".join(map(str, row[key])) if isinstance(row[key], list) else str(row[key])
        lines.append(
            f"  {value:<13} {row['parameters']:>15,} {row['macs']:>18,} {show_bytes(row['forward_bytes']):>9}"
            f" {show_bytes(row['training_bytes']):>9}"
        )
    return lines


_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def _work(found: dict[str, Any], size: list[int]) -> list[str]:
    parts = [
        f"  {name:<11} {count:>17,}  {100 * count / found['macs']:5.1f} %"
        for name, count in found["macs_parts"].items()
    ]
    whole, macs = found["macs_all_tokens"], found["macs"]
    title = f"work of one image of {size[0]} x {size[1]}, forward: multiply-accumulates (MAC), operations (FLOP)"
    scale, unit = next((pair for pair in _UNITS if macs >= pair[0]), _UNITS[-1])
    rows = [("all tokens (as published)", whole), ("computed here", macs)]
    return [
        f"{found['parameters']:,} parameters", title,
        *(
            f"  {name:<26} {count / scale:>9,.2f} {unit}MAC {2 * count / scale:>9,.1f} {unit}FLOP"
            for name, count in rows
        ),
        *(["  (the last block computes only the tokens that the head reads)"] if whole != macs else []),
        f"parts of the {macs:,} multiply-accumulates computed here:", *parts,
    ]  # fmt: skip


def _parts(parts: dict[str, int]) -> list[str]:
    from vitral.training.plan import show_bytes

    return [f"  {name:<11} {show_bytes(count):>9}" for name, count in parts.items() if count]
