"""The check of data: how fast, and how many planted look-alikes it finds among real images.

    python benchmarks/data_check.py FOLDER                      # image files, in class folders or not
    python benchmarks/data_check.py FOLDER images=20000 planted=200 seed=0 sheet=others.png workers=2 save=FILE.json

First all images of FOLDER (up to 50,000) are checked: decoded, hashed, compared. Then `images` of them, drawn at
random, with `planted` of these planted again: resized by 1 to 3 (bicubic), cropped by 2 % at a random place, saved as
JPEG 70; with change=mirrored, tinted (channels times 0.6 to 1.5) or cropped (80 to 95 % of each side) that besides.
Printed: seconds, share of the planted pairs found, and the number of other pairs; `sheet` shows these side by
side, to be looked at.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitral.config import parse_yaml, split_words
from vitral.data.check import check_dataset
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.files import encoded_dataset, files_part
from vitral.data.folder import images_below
from vitral.version import __version__

MOST = 50_000


def main() -> None:
    words, pairs = split_words(sys.argv[1:])
    options: dict[str, Any] = {
        "images": 20_000,
        "planted": 200,
        "seed": 0,
        "sheet": None,
        "workers": None,
        "work": "look-alikes",
        "change": "saved",
        "save": None,
    }
    options |= {key: parse_yaml(value) for key, value in pairs.items()}
    paths = [str(path) for path in images_below(Path(words[0]))][:MOST]
    started = time.perf_counter()
    report = check_dataset(flat(paths), workers=options["workers"])
    whole = {"checked": len(paths), "seconds": round(time.perf_counter() - started, 1),
             "findings": {each.code: dict(each.numbers) for each in report.findings}}  # fmt: skip
    print(json.dumps(whole))
    random = np.random.default_rng(options["seed"])
    chosen = [paths[i] for i in np.sort(random.permutation(len(paths))[: options["images"]])]
    result, others = look_alikes(
        chosen, options["planted"], random, Path(options["work"]), options["workers"], options["change"]
    )
    print(json.dumps(result))
    if options["save"]:
        tree = {"environment": environment(), "results": [whole, {**result, "seed": options["seed"]}]}
        Path(options["save"]).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    if options["sheet"]:
        contact_sheet(others).save(options["sheet"])


def environment() -> dict[str, Any]:
    """Versions and machine."""
    return {
        "vitral": __version__, "torch": str(torch.__version__), "pillow": Image.__version__, "numpy": np.__version__,
        "python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count(),
    }  # fmt: skip


def flat(paths: list[str]) -> Dataset:
    """These files as one split of one class."""
    part = files_part(Path("/"), paths, np.zeros(len(paths), np.int64))
    return encoded_dataset("flat", ["all"], {"train": part}, DataConfig(channels=3), (), ())


def look_alikes(
    paths: list[str],
    planted: int,
    random: np.random.Generator,
    folder: Path,
    workers: int | None = None,
    change: str = "saved",
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Plant changed copies of some of these files in `folder` and check all; numbers, and the other pairs found."""
    folder.mkdir(parents=True, exist_ok=True)
    expected: set[tuple[str, str]] = set()
    for number, place in enumerate(random.permutation(len(paths))[:planted].tolist()):
        copy = folder / f"{number:05d}.jpg"
        with Image.open(paths[place]) as image:
            changed(CHANGES[change](image.convert("RGB"), random), random).save(copy, "JPEG", quality=70)
        expected.add((paths[place], str(copy.resolve())))
    copies = [copy for _, copy in expected]
    started = time.perf_counter()
    report = check_dataset(flat([*paths, *copies]), workers=workers)
    seconds = time.perf_counter() - started
    groups = [group for each in report.findings if each.code == "near" for group in each.groups]
    found = {(group[0].name, group[1].name) for group in groups}
    others = sorted((one, other) for one, other in found - expected if not {one, other} & set(copies))
    beside = len(found - expected) - len(others)  # a copy beside a true look-alike of its original
    return {
        "images": len(paths), "planted": len(expected), "found": len(found & expected),
        "recall": round(len(found & expected) / len(expected), 4), "change": change, "other_pairs": len(others),
        "pairs_of_copies_with_others": beside, "seconds": round(seconds, 1),
    }, others  # fmt: skip


def changed(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """2 % cropped off each axis at a random place, between pixels; 1 to 3 times the size."""
    width, height = image.size
    left, top = random.uniform(0, 0.02, 2)
    scale = random.uniform(1, 3)
    box = (left * width, top * height, (left + 0.98) * width, (top + 0.98) * height)
    return image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC, box=box)


def mirrored(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Left for right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def tinted(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Each channel times 0.7 to 1.3, all times 0.8 to 1.2, and up to 20 levels more or less."""
    gains = random.uniform(0.7, 1.3, 3) * random.uniform(0.8, 1.2)
    values = np.asarray(image) * gains + random.uniform(-20, 20)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def cropped(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """80 to 95 % of each side at a random place, at the old size."""
    share, (left, top) = random.uniform(0.8, 0.95), random.uniform(0, 1, 2)
    width, height = image.size
    left, top = left * (1 - share) * width, top * (1 - share) * height
    box = (left, top, left + share * width, top + share * height)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


CHANGES = {"saved": lambda image, random: image, "mirrored": mirrored, "tinted": tinted, "cropped": cropped}


def contact_sheet(pairs: list[tuple[str, str]], side: int = 64, columns: int = 12) -> Image.Image:
    """Pairs side by side."""
    rows = max(1, -(-len(pairs) // columns))
    sheet = Image.new("RGB", (columns * (2 * side + 12), rows * (side + 6)), "white")
    for place, pair in enumerate(pairs):
        for member, path in enumerate(pair):
            with Image.open(path) as image:
                shown = image.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(
                shown, ((place % columns) * (2 * side + 12) + member * (side + 2), place // columns * (side + 6))
            )
    return sheet


if __name__ == "__main__":
    main()
