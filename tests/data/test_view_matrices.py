"""`View.matrix_B33` by truth: source images whose values are their coordinates, read back from what the loader gives.

The first channel of a source is proportional to x, the second to y, the third is even: where it is not, a pixel shows
what lies outside. A view's pixel (u, v) must show the source at matrix^-1 (u, v, 1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from vitral.data.augment_policies import Op, draw_ops
from vitral.data.config import AugmentConfig, DataConfig, Interpolation, StreamConfig, ViewConfig
from vitral.data.counter_rng import Draws
from vitral.data.dataset import Split, memory_split
from vitral.data.image_spec import ResizeSpec
from vitral.data.image_store import ImageStore, RandomCrop
from vitral.data.loader import StreamLoader
from vitral.data.resize import shown_box
from vitral.data.sources import open_dataset
from vitral.structs import View

EVEN, FLOOR = 200, 10  # levels of the third channel, and of the first pixel of the others
SIZE = (24, 20)
PLAIN = ResizeSpec(resize_mode="crop")
JPEGS = {1: (187, 251), 2: (251, 187), 3: (187, 251), 4: (131, 97), 5: (97, 131), 6: (187, 251), 7: (131, 97),
         8: (251, 187)}  # fmt: skip
PNGS = ((47, 61), (61, 47), (33, 25), (20, 331), (187, 3 * 97), (41, 41), (29, 71), (100, 99))
_STORE = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposition that an EXIF orientation undoes
CROP: dict[str, Any] = {"crop": "random_resized", "crop_scale": (0.3, 1.0)}
AUGMENTS = {
    name: AugmentConfig.model_validate(keys)
    for name, keys in {
        "none": {},
        "flip": {"flip": 0.5},
        "flip_vertical": {"flip_vertical": 0.5},
        "rotate": {"rotate": 30},
        "scale": {"scale": 0.3},
        "shear": {"shear": 12},
        "translate": {"translate": 0.2},
        "pad_crop": {"pad_crop": 3},
        "erase": {"random_erasing": 1.0, "erase_fill": "zeros"},
        "crop": CROP,
        "trivial": {"policy": "trivial"},
        "randaugment": {"policy": "randaugment", "num_ops": 2},
        "all": {**CROP, "flip": 0.5, "flip_vertical": 0.5, "rotate": 20, "scale": 0.2, "shear": 8, "translate": 0.1},
        "crop_policy": {**CROP, "flip": 0.5, "policy": "trivial"},
    }.items()
}


def grad(size: tuple[int, int]) -> float:
    """Levels per pixel."""
    return 235 / (max(size) - 1)


def ramp(size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[H, W, 3] with the coordinates as values."""
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    return np.rint(np.stack([x * grad(size) + FLOOR, y * grad(size) + FLOOR, 0 * x + EVEN], -1)).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Split, list[tuple[int, int]]]:
    """PNGs of odd sizes, and JPEGs of every EXIF orientation; with the upright size of each."""
    root = tmp_path_factory.mktemp("ramps")
    sizes: dict[str, tuple[int, int]] = {}
    for number, (name, size, turn) in enumerate(
        [("p.png", size, 1) for size in PNGS] + [("j.jpg", size, turn) for turn, size in JPEGS.items()]
    ):
        path: Path = root / "train" / "ab"[number % 2] / f"{number:02}{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image, exif = Image.fromarray(ramp(size)), Image.Exif()
        if name.endswith("jpg"):
            exif[0x0112] = turn
            stored = image if turn == 1 else image.transpose(Image.Transpose(_STORE[turn]))
            stored.save(path, quality=98, subsampling=0, exif=exif)
            with Image.open(path) as found:
                upright = np.asarray(ImageOps.exif_transpose(found)).astype(int)
            assert abs(upright - ramp(size)).max() <= 4, "the file itself is as meant"
        else:
            image.save(path)
        sizes[path.name] = size
    split = open_dataset(DataConfig(path=str(root), source="folder", value_range=None)).splits["train"]
    return split, [sizes[Path(name).name] for name in split.names]


def opened(
    split: Split,
    fit: ResizeSpec = PLAIN,
    *,
    cached: bool = True,
    crops: tuple[RandomCrop, ...] = (),
    workers: int = 2,
) -> ImageStore:
    return ImageStore(
        split, SIZE, fit, exact=False, workers=workers, cache_mb=100 if cached else 0, device=torch.device("cpu"),
        crops=crops,
    )  # fmt: skip


def check(view: View, sizes: list[tuple[int, int]], which: Tensor | None = None, share: float = 0.1) -> None:
    """Of the samples `which` pixels that show the source, two pixels away from what does not, tell where they are."""
    images_BCHW = view.images_BCHW * 255
    height, width = images_BCHW.shape[-2:]
    even = ((images_BCHW[:, 2:] - EVEN).abs() < 2.5).float()
    inner = F.max_pool2d(F.pad(1 - even, (2, 2, 2, 2), value=1.0), 5, 1)[:, 0] == 0
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels_3X = torch.stack([u, v, torch.ones_like(u)]).flatten(1).double()
    checked, total = 0, 0
    for i in range(len(images_BCHW)) if which is None else which.nonzero()[:, 0].tolist():
        matrix = view.matrix_B33[i].double()
        source_2X = (torch.linalg.inv(matrix) @ pixels_3X)[:2]
        axes = 1 / torch.linalg.svdvals(matrix[:2, :2]).min()  # source pixels per view pixel, at most
        limits = torch.tensor([sizes[i][1], sizes[i][0]])[:, None] - 1
        margin = 2 + 2.5 * axes
        mine = inner[i].flatten() & ((source_2X > margin) & (source_2X < limits - margin)).all(0)
        found_2X = (images_BCHW[i, :2].flatten(1).double() - FLOOR) / grad(sizes[i])
        error_2X = (found_2X - source_2X)[:, mine]
        checked, total = checked + int(mine.sum()), total + mine.numel()
        if mine.sum() < 12:
            continue
        levels = 3 / grad(sizes[i])  # rounded to whole levels up to three times, and by the JPEG
        assert error_2X.abs().max() < 0.15 * axes + levels, (i, sizes[i], error_2X.abs().max())
        assert error_2X.mean(1).abs().max() < 0.06 * axes + 0.2 * levels, (i, sizes[i], error_2X.mean(1))
    assert checked > share * total, checked / max(total, 1)


def geometric(loader: StreamLoader, step: int, size: tuple[int, int]) -> Tensor:
    """Which samples of a step a policy moves alone, and leaves the values of."""
    rows = loader.sampler.rows(step, loader.first, loader.last)
    draws = Draws(loader.seed, torch.from_numpy(rows.draw_B), 0, torch.from_numpy(rows.index_B))
    todo = draw_ops(loader.views[0].augment, draws, size)
    return torch.ones(len(rows.index_B)).bool() if todo is None else (todo.op_RB <= Op.ROTATE).all(0)


@pytest.mark.parametrize("name", list(AUGMENTS))
@pytest.mark.parametrize("how", ["cached", "read", "cut"])
def test_views_of_files_tell_where_their_pixels_were(
    files: tuple[Split, list[tuple[int, int]]], name: str, how: str
) -> None:
    """From a cache of resized images, from files resized whole, and from boxes that were cut while decoding."""
    split, sizes = files
    config = AUGMENTS[name]
    if how == "cut" and config.crop == "none":
        pytest.skip("nothing is cut")
    crops = (RandomCrop(3, config.crop_scale, config.aspect_ratio),) if how == "cut" else ()
    with opened(split, cached=how == "cached", crops=crops) as store:
        loader = StreamLoader(store, StreamConfig(len(split), config), 3)
        for step in range(2):
            batch = loader.batch(step)
            mine = [sizes[key] for key in batch.sample_ids_B.tolist()]
            check(batch.views[0], mine, geometric(loader, step, SIZE), share=0.04)


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.7])
def test_views_tell_how_the_store_resized(
    files: tuple[Split, list[tuple[int, int]]],
    mode: Literal["crop", "squash", "pad"],
    interpolation: Interpolation,
    crop_pct: float,
) -> None:
    split, sizes = files
    for cached in (True, False):
        with opened(
            split, ResizeSpec(resize_mode=mode, interpolation=interpolation, crop_pct=crop_pct), cached=cached
        ) as store:
            batch = StreamLoader(store, StreamConfig(len(split), AugmentConfig(flip=0.5)), 3).batch(0)
        check(batch.views[0], [sizes[key] for key in batch.sample_ids_B.tolist()])


def test_views_of_each_size_have_their_own_matrices(files: tuple[Split, list[tuple[int, int]]]) -> None:
    split, sizes = files
    views = tuple(ViewConfig(AUGMENTS[name], size) for name, size in (("crop", (24, 20)), ("all", (40, 32))))
    crops = tuple(
        RandomCrop(3, v.augment.crop_scale, v.augment.aspect_ratio, size=v.size, view=n) for n, v in enumerate(views)
    )
    for cut in ((), crops):
        with opened(split, crops=cut) as store:
            batch = StreamLoader(store, StreamConfig(len(split), AugmentConfig(), views=views), 3).batch(1)
        mine = [sizes[key] for key in batch.sample_ids_B.tolist()]
        for view in batch.views:
            check(view, mine, share=0.04)


@pytest.mark.parametrize("size", [(24, 20), (37, 53), (11, 17)])
def test_views_of_images_in_memory_tell_where_their_pixels_were(size: tuple[int, int]) -> None:
    images = np.repeat(ramp(size).transpose(2, 0, 1)[None], 16, axis=0)
    split = memory_split(images, np.arange(16) % 2, [str(i) for i in range(16)], 3)
    for name in ("none", "all"):
        with opened(split) as store:
            batch = StreamLoader(store, StreamConfig(16, AUGMENTS[name]), 3).batch(0)
        check(batch.views[0], [size] * 16, share=0.04 if min(size) > 11 else 0.0)


def test_any_number_of_workers_tells_the_same(files: tuple[Split, list[tuple[int, int]]]) -> None:
    split, _ = files
    crop = AUGMENTS["crop"]
    for crops in ((), (RandomCrop(3, crop.crop_scale, crop.aspect_ratio),)):
        found: list[View] = []
        for workers in (0, 2):
            with opened(split, cached=False, crops=crops, workers=workers) as store:
                found.append(list(StreamLoader(store, StreamConfig(len(split), crop), 3).stream(0, 4))[-1].views[0])
        assert torch.equal(found[0].images_BCHW, found[1].images_BCHW)
        assert torch.equal(found[0].matrix_B33, found[1].matrix_B33)


def test_mixing_moves_nothing(files: tuple[Split, list[tuple[int, int]]]) -> None:
    split, _ = files
    with opened(split) as store:
        plain, mixed = (
            StreamLoader(store, StreamConfig(16, config), 3).batch(0)
            for config in (AugmentConfig(rotate=20), AugmentConfig(rotate=20, mixup=0.5, cutmix=0.5))
        )
    assert torch.equal(plain.views[0].matrix_B33, mixed.views[0].matrix_B33)
    assert not torch.equal(plain.views[0].images_BCHW, mixed.views[0].images_BCHW)


@pytest.mark.parametrize(
    ("source", "size", "fit", "box"),
    [
        ((24, 20), (24, 20), ResizeSpec(resize_mode="crop"), (0, 0, 24, 20)),
        ((48, 60), (24, 20), ResizeSpec(resize_mode="crop"), (0, 10, 48, 40)),
        ((60, 40), (24, 20), ResizeSpec(resize_mode="crop"), (6, 0, 48, 40)),
        ((9, 30), (3, 5), ResizeSpec(resize_mode="squash"), (0, 0, 9, 30)),
        ((20, 40), (16, 16), ResizeSpec(resize_mode="pad"), (-10, 0, 40, 40)),
        ((40, 20), (16, 16), ResizeSpec(resize_mode="pad", crop_pct=0.5), (10, 0, 20, 20)),
        (
            (256, 512),
            (224, 224),
            ResizeSpec(resize_mode="crop", interpolation="bicubic", crop_pct=0.875),
            (16, 144, 224, 224),
        ),
        (
            (512, 256),
            (224, 224),
            ResizeSpec(resize_mode="squash", interpolation="bicubic", crop_pct=0.875),
            (32, 16, 448, 224),
        ),
        # 8 times the target's aspect is kept, then the middle of that.
        ((10, 1000), (20, 20), ResizeSpec(resize_mode="crop"), (0, 495, 10, 10)),
    ],
)
def test_the_box_that_a_resized_image_shows(
    source: tuple[int, int], size: tuple[int, int], fit: ResizeSpec, box: tuple[float, ...]
) -> None:
    assert shown_box(source, size, fit) == pytest.approx(box)
