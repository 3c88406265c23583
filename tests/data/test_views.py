"""Several views of a sample: each of its own size, its own draws, its own map back to the source."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers import write_shapes
from vitral.data.augment import augment
from vitral.data.config import AugmentConfig, DataConfig, StreamConfig, ViewConfig
from vitral.data.dataset import Split
from vitral.data.image_spec import ResizeSpec
from vitral.data.image_store import ImageStore, RandomCrop
from vitral.data.jpeg_crop import crop_jpeg, open_jpeg
from vitral.data.loader import StreamLoader
from vitral.data.resize import shown_box
from vitral.data.sources import open_dataset

WIDE = AugmentConfig(crop="random_resized", crop_scale=(0.4, 1.0))
SMALL = AugmentConfig(crop="random_resized", crop_scale=(0.05, 0.4), flip=0.5)
VIEWS = (ViewConfig(WIDE, (24, 20)), ViewConfig(WIDE, (24, 20)), ViewConfig(SMALL, (8, 12)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Split:
    root = write_shapes(tmp_path_factory.mktemp("views") / "p", 6)
    for path in sorted(root.rglob("*.png"))[::2]:
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    return open_dataset(DataConfig(path=str(root), source="folder")).splits["train"]


def store(split: Split, *, cut: bool = True) -> ImageStore:
    crops = tuple(
        RandomCrop(5, v.augment.crop_scale, v.augment.aspect_ratio, size=v.size, view=n) for n, v in enumerate(VIEWS)
    )
    return ImageStore(
        split, (24, 20), ResizeSpec(resize_mode="crop"), exact=False, workers=2, cache_mb=100,
        device=torch.device("cpu"), crops=crops if cut else (), )  # fmt: skip


def test_views_from_files_are_equal_read_ahead_and_for_any_processes(photos: Split) -> None:
    with store(photos) as one, store(photos) as other:
        whole = [StreamLoader(one, StreamConfig(16, AugmentConfig(), views=VIEWS), 5).batch(step) for step in (0, 3)]
        again = list(StreamLoader(other, StreamConfig(16, AugmentConfig(), views=VIEWS), 5).stream(0, 4))
        parts = [
            StreamLoader(one, StreamConfig(16, AugmentConfig(), views=VIEWS), 5, rank=rank, world=2).batch(3)
            for rank in (0, 1)
        ]
    for mine, theirs in ((whole[0], again[0]), (whole[1], again[3])):
        for a, b in zip(mine.views, theirs.views, strict=True):
            assert torch.equal(a.images_BCHW, b.images_BCHW)
            assert torch.equal(a.matrix_B33, b.matrix_B33)
    for number, view in enumerate(whole[1].views):
        assert torch.equal(view.images_BCHW, torch.cat([part.views[number].images_BCHW for part in parts]))


@pytest.mark.parametrize("cut", [True, False])
def test_each_view_has_its_size_and_its_own_crop(photos: Split, cut: bool) -> None:
    with store(photos, cut=cut) as opened:
        batch = StreamLoader(opened, StreamConfig(16, AugmentConfig(), views=VIEWS), 5).batch(0)
    assert [tuple(view.images_BCHW.shape) for view in batch.views] == [(16, 3, 24, 20)] * 2 + [(16, 3, 8, 12)]
    first, second = batch.views[:2]
    assert (first.matrix_B33 != second.matrix_B33).flatten(1).any(1).all()


def test_the_share_of_the_image_that_a_view_shows_is_as_asked(photos: Split) -> None:
    """From the maps: area of a view's rectangle in the source over that of the box that the store shows."""
    with store(photos, cut=False) as opened:
        batches = list(StreamLoader(opened, StreamConfig(16, AugmentConfig(), views=VIEWS), 5).stream(0, 12))
    boxes = [
        shown_box((image.shape[1], image.shape[2]), (24, 20), ResizeSpec(resize_mode="crop"))
        for image in map(photos.read, range(len(photos)))
    ]
    areas = torch.tensor([height * width for _, _, height, width in boxes])
    for number, (low, high) in ((0, (0.4, 1.0)), (2, (0.05, 0.4))):
        shares: list[float] = []
        for batch in batches:
            view = batch.views[number]
            height, width = view.images_BCHW.shape[-2:]
            determinant = torch.linalg.det(view.matrix_B33[:, :2, :2]).abs()
            shares += (height * width / determinant / areas[batch.sample_ids_B]).tolist()
        assert low - 0.03 < min(shares) < max(shares) < high + 0.03, (min(shares), max(shares))
        assert max(shares) - min(shares) > 0.5 * (high - low)


def test_a_view_of_another_size_without_a_crop_shows_the_whole_image() -> None:
    ramp = torch.linspace(0, 1, 24)[None, None, None].expand(2, 1, 24, 24)
    view = augment(ramp, AugmentConfig(), 0, torch.zeros(2, dtype=torch.int64), torch.arange(2), size=(12, 12))
    expected = (torch.arange(12) * 2 + 0.5) / 23
    torch.testing.assert_close(view.images_BCHW[0, 0, 5], expected)


def test_one_decoding_gives_what_decoding_for_each_box_gives(photos: Split) -> None:
    """Where no box allows a coarser scale; the boxes lie at the top, in the middle and below."""
    file = photos.file
    assert file is not None
    source = next(file(i) for i in range(len(photos)) if str(file(i)).endswith(".jpg"))
    jpeg = open_jpeg(source)
    assert jpeg is not None
    boxes = [(0, 0, 20, 18), (10, 5, 12, 16), (jpeg.height - 16, jpeg.width - 15, 16, 15)]
    sizes = [(20, 20), (12, 8), (16, 16)]
    together = crop_jpeg(jpeg, boxes, sizes, 3)
    alone: list[tuple[Tensor, object]] = [crop_jpeg(jpeg, [b], [s], 3)[0] for b, s in zip(boxes, sizes, strict=True)]
    for (mine, my_box), (theirs, their_box) in zip(together, alone, strict=True):
        assert my_box == their_box
        assert torch.equal(mine, theirs)


def test_mixing_reaches_every_view(photos: Split) -> None:
    """All views of a sample have the partner and the weight that the targets name."""
    plain = (ViewConfig(AugmentConfig(), (24, 20)), ViewConfig(AugmentConfig(flip=1.0), (24, 20)))
    with store(photos, cut=False) as opened:
        batch = StreamLoader(opened, StreamConfig(16, AugmentConfig(mixup=1.0), views=plain), 5).batch(0)
        sources = StreamLoader(opened, StreamConfig(16, AugmentConfig(), views=plain), 5).batch(0)
        with pytest.raises(AssertionError):
            StreamLoader(opened, StreamConfig(16, AugmentConfig(mixup=1.0), views=VIEWS), 5)
    assert len(batch.views) == 2
    label, partner, weight = (batch.targets[name] for name in ("label", "partner", "weight"))
    for view, source in zip(batch.views, sources.views, strict=True):
        rows = [(sources.targets["label"] == name).nonzero().flatten() for name in partner]
        weight_111 = weight[:, None, None, None]
        others = (view.images_BCHW - source.images_BCHW * weight_111) / (1 - weight_111).clamp(min=1e-6)
        for place, of_partner in enumerate(rows):
            if weight[place] < 0.9:
                distances = (source.images_BCHW[of_partner] - others[place]).abs().flatten(1).amax(1)
                assert distances.min() < 1e-4, "the other image of the mixture is one of the partner's class"
    assert (partner != label).any()
