"""JPEG file to a 224 x 224 random resized crop in one thread: ours beside torchvision v2 on PIL images and on tensors.

    python benchmarks/data.py                            # needs python tools/install.py -e ".[bench]"
    python benchmarks/data.py rounds=30 save=benchmarks/results/data.json

Files are of two sizes and two kinds: `photo` is band-limited noise with a natural image's 1/f spectrum at JPEG
quality 90 (hard for entropy decoders: about 2 to 4 bits a pixel), `cifar` real CIFAR-10 test images, enlarged with
Lanczos's filter and tiled (smooth: about 1), where the pack lies beside the checkout. All contestants crop the same
boxes, drawn once as for training (area 0.08 to 1), flip every second image, and end at uint8 [3, 224, 224]; their
outputs must agree to a few levels on average. They take turns file by file, in a new order each
round; time is that of the thread on its core. Each row gives images per second, and
the median over the rounds of peer time / our time with its quartiles: above 1 we are faster.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.oracles import load_oracle
from vitral.config import parse_yaml, split_words
from vitral.data.counter_rng import Draws
from vitral.data.crop import draw_boxes
from vitral.data.jpeg_crop import Box, crop_jpeg, open_jpeg
from vitral.version import __version__

SIDE = 224
SIZES = ((375, 500), (1500, 2000))
Contestant = Callable[[str, Box, bool], Tensor]


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options: dict[str, Any] = {"rounds": 15, "files": 24, "save": None, **{k: parse_yaml(v) for k, v in pairs.items()}}
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, make in (("photo", photo), ("cifar", cifar)):
            for size in SIZES:
                files = write(Path(folder), kind, make, size, options["files"])
                if files:
                    results.append(measure(kind, size, files, options["rounds"]))
                    print(show(results[-1]), flush=True)
    if options["save"]:
        text = json.dumps({"environment": environment(), "results": results}, indent=2)
        Path(options["save"]).write_text(text + "\n", encoding="utf-8")


def photo(size: tuple[int, int], number: int) -> Image.Image:
    """Gray structure with amplitudes that fall as 1/f (van der Schaaf and van Hateren 1996), and fainter color."""
    dice = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1]))
    frequency[0, 0] = 1
    layers = []
    for power, contrast in ((1.3, 50), (1.6, 12), (1.6, 12), (1.6, 12)):
        waves = np.exp(2j * np.pi * dice.random(frequency.shape)) / frequency**power
        layer = np.fft.irfft2(waves, s=size)
        layers.append(layer / layer.std() * contrast)
    pixels = 120 + layers[0][..., None] + np.stack(layers[1:], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def cifar(size: tuple[int, int], number: int) -> Image.Image | None:
    """A mosaic of test images, each enlarged to a quarter of the picture's width; None where the pack isn't there."""
    pack = Path(__file__).resolve().parents[1] / "../shared/data"
    if not (pack / "cifar10-test.npz").is_file():
        return None
    images = cifar_images(pack)
    tile = size[1] // 4
    mosaic = Image.new("RGB", (size[1], size[0]))
    for place in range(16):
        image = Image.fromarray(images[(16 * number + place) % len(images)])
        mosaic.paste(image.resize((tile, tile), Image.Resampling.LANCZOS), (place % 4 * tile, place // 4 * tile))
    return mosaic


_cache: list[Any] = []


def cifar_images(pack: Path) -> Any:
    """The test images, uint8 [N, 32, 32, 3], by the pack's own unpacker."""
    if not _cache:
        sys.path.insert(0, str(pack))
        from unpack import load  # pyright: ignore[reportMissingImports]

        _cache.append(load("test")[0])
    return _cache[0]


def write(folder: Path, kind: str, make: Callable[..., Any], size: tuple[int, int], count: int) -> list[str]:
    files: list[str] = []
    for number in range(count):
        image = make(size, number)
        if image is None:
            return []
        files.append(str(folder / f"{kind}-{size[0]}-{number}.jpg"))
        image.save(files[-1], quality=90)
    return files


def contestants() -> dict[str, Contestant]:
    load_oracle("torchvision")
    import torchvision.transforms.v2.functional as functional

    F: Any = functional  # its types say Tensor, and PIL images are taken too

    def ours(path: str, box: Box, flip: bool) -> Tensor:
        jpeg = open_jpeg(path)
        assert jpeg is not None
        image_CHW = crop_jpeg(jpeg, [box], [(SIDE, SIDE)], 3)[0][0]
        return image_CHW.flip(-1) if flip else image_CHW

    def pil(path: str) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    def v2_pil(path: str, box: Box, flip: bool) -> Tensor:
        image = F.resized_crop(pil(path), *box, [SIDE, SIDE], antialias=True)
        return F.pil_to_tensor(F.horizontal_flip(image) if flip else image)

    def v2_tensor(path: str, box: Box, flip: bool) -> Tensor:
        image_CHW = F.resized_crop(F.pil_to_tensor(pil(path)), *box, [SIDE, SIDE], antialias=True)
        return F.horizontal_flip(image_CHW) if flip else image_CHW

    return {"ours": ours, "torchvision v2, PIL images": v2_pil, "torchvision v2, uint8 tensors": v2_tensor}


def measure(kind: str, size: tuple[int, int], files: list[str], rounds: int) -> dict[str, Any]:
    sample_ids_B, sizes_B2 = torch.arange(len(files)), torch.tensor([size] * len(files))
    who, seconds = contestants(), {name: [] for name in contestants()}
    dice = random.Random(0)
    for turn in range(rounds + 1):  # the first one warms up, and its outputs are compared
        draws = Draws(0, turn, 0, sample_ids_B)
        boxes = [tuple(row) for row in draw_boxes(draws, sizes_B2, (0.08, 1.0), (3 / 4, 4 / 3)).tolist()]
        total = dict.fromkeys(who, 0.0)
        for number, (path, box) in enumerate(zip(files, boxes, strict=True)):
            outputs: dict[str, Tensor] = {}
            for name in dice.sample(list(who), len(who)):
                start = time.thread_time()
                outputs[name] = who[name](path, box, number % 2 == 1)
                total[name] += time.thread_time() - start
            if turn == 0:
                agree(outputs)
        if turn:
            for name, spent in total.items():
                seconds[name].append(spent)
    ratios = {
        name: [theirs / mine for theirs, mine in zip(seconds[name], seconds["ours"], strict=True)]
        for name in who
        if name != "ours"
    }
    return {
        "files": kind, "height": size[0], "width": size[1], "count": len(files), "rounds": rounds,
        "bits_per_pixel": round(8 * sum(Path(f).stat().st_size for f in files) / len(files) / size[0] / size[1], 2),
        "images_per_second": {n: round(len(files) / statistics.median(s), 1) for n, s in seconds.items()},
        "ratios": {name: [round(q, 3) for q in statistics.quantiles(found)] for name, found in ratios.items()},
    }  # fmt: skip


def agree(outputs: dict[str, Tensor]) -> None:
    """Within 4 levels of 255 on average: a DCT scale and whole pixels at the box's edge are all that may differ."""
    for name, output in outputs.items():
        assert output.dtype == torch.uint8, name
        assert output.shape == (3, SIDE, SIDE), name
        difference = (output.float() - outputs["ours"].float()).abs().mean().item()
        assert difference < 4, (name, difference)


def show(row: dict[str, Any]) -> str:
    lines = [f"{row['width']}x{row['height']} {row['files']}, {row['bits_per_pixel']} bits a pixel"]
    for name, speed in row["images_per_second"].items():
        low, middle, high = row["ratios"].get(name, (1, 1, 1))
        faster = f"   ours is {middle:.2f} times as fast ({low:.2f} to {high:.2f})" if name in row["ratios"] else ""
        lines.append(f"  {name:32} {speed:8.1f} images/s{faster}")
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    load_oracle("torchvision")
    import torchvision

    return {
        "versions": {
            "vitral": __version__, "torch": str(torch.__version__), "torchvision": torchvision.__version__,
            "pillow": Image.__version__, "libjpeg_turbo": features.version("libjpeg_turbo"), "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "platform": platform.platform(), "processor": platform.processor(), "threads": torch.get_num_threads(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
