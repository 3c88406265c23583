"""Keys of the data: source, preprocessing, augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, Field, Strict, model_validator

from vitral.config import Config, Count, Pair, Share, Shares
from vitral.data.findings import known_codes

Channels = Annotated[int, Field(ge=1, le=4)]
Names = Annotated[tuple[str, ...], Strict(False)]
Codes = Annotated[Names, AfterValidator(known_codes)]
SourceName = Literal[
    "auto", "digits", "folder", "filename", "images", "table", "cifar", "hf", "yaml", "coco", "voc", "yolo",
    "box_table", "digits_scenes",
]  # fmt: skip
Validation = Literal["own", "dev", "none"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]
UNLABELED = "unlabeled"  # name of the stream that reads images without labels
MAX_INPUT_PIXELS = 4096**2  # of a model's input, which takes 12 bytes per pixel of color
MAX_PIXELS = 150_000_000  # three bytes each: 450 MB; the largest phone cameras give 108 to 200 million


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"two numbers above 0, the smaller one first, are expected, got {list(pair)}")
    return pair


def _shares(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[1] > 1:
        raise ValueError(f"shares end at 1, got {list(pair)}")
    return _rising(pair)


def _apart(pair: tuple[float, float]) -> tuple[float, float]:
    if not pair[0] < pair[1]:
        raise ValueError(f"black comes first and is below white, got {list(pair)}")
    return pair


Rising = Annotated[tuple[float, float], Strict(False), AfterValidator(_rising)]
ValueRange = Annotated[tuple[float, float], Strict(False), AfterValidator(_apart)]
ShareRange = Annotated[tuple[float, float], Strict(False), AfterValidator(_shares)]


class SourceKeys(Config):
    """Location, format and layout of the images: keys of a run, and of a YAML file that describes data."""

    path: str | None = Field(
        default=None,
        description="folder, manifest, shards or YAML file with the images; `data=X` is short for data.path=X; null: "
        "the images of the training run to measure a model on, built-in images to compare an export on",
    )
    source: SourceName = Field(default="auto", description="format of the data; auto: detect it from the path")
    pattern: str | None = Field(
        default=None, description="regular expression of file names with groups (?P<label>...) and maybe (?P<split>...)"
    )
    image_column: str | None = Field(default=None, description="column of image or file; null: by its name or type")
    label_column: str | None = Field(default=None, description="column of label or labels; null: by its name or type")
    split_column: str | None = Field(
        default=None, description="column with train, val or test; null: the column `split` if there is one"
    )
    label_separator: str | None = Field(
        default=None, min_length=1, description="separator between labels of one image (multi-label); null: one label"
    )
    classes: Names | None = Field(default=None, description="class names in index order; null: those in use, sorted")
    subset: str | None = Field(default=None, description="configuration name of a Hugging Face dataset")
    box_format: Literal["xyxy", "xywh", "cxcywh"] | None = Field(
        default=None,
        description="numbers of a box in coco, box_table and hf; xyxy: corners; xywh: corner and size; cxcywh: center "
        "and size; null: xywh, in a table what its columns are called",
    )
    box_unit: Literal["pixels", "normalized"] = Field(
        default="pixels", description="unit of these numbers; normalized: shares of the image's width and height"
    )


class Description(SourceKeys):
    """Keys of a YAML file that describes data: those of a run, with paths relative to the file."""

    splits: dict[Literal["train", "val", "test"], str] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        if (self.path is None) == (self.splits is None):
            raise ValueError("either path, or splits with a path for train, val and test, is needed")
        if self.splits is not None and "train" not in self.splits:
            raise ValueError("splits needs a path for train")
        return self


class DataSource(SourceKeys):
    """Which images are read: the same keys for training, evaluation and export."""

    target: Annotated[Names, Field(min_length=1)] | None = Field(
        default=None,
        description="columns with the numbers to learn with objective.kind=regression, as x,y; null: learn labels",
    )
    max_bad: int = Field(
        default=0, ge=0, description="number of damaged images, over all splits, that are skipped without an error"
    )
    max_pixels: Count = Field(
        default=MAX_PIXELS,
        description="size limit of one image, in pixels of up to 4 bytes (larger pixels count in proportion), checked "
        "in the file header before decoding",
    )
    verify: bool = Field(default=True, description="compare CIFAR files with the published MD5 checksums")

    @property
    def named(self) -> bool:
        """Whether a location or a built-in source is set."""
        return self.path is not None or self.source != "auto"

    @property
    def place(self) -> Path:
        """The path of a source that has one, with ~ replaced."""
        assert self.path is not None
        return Path(self.path).expanduser()


class ReadConfig(DataSource):
    """Keys that change the pixels that are read."""

    range_key: ClassVar[str] = "data.value_range"  # its name in messages

    channels: Channels | Literal["auto"] = Field(
        default="auto", description="number of channels: 1 gray, 3 RGB, 4 RGBA; auto: detect from the data"
    )
    background: str = Field(default="#ffffff", description="color behind transparent pixels: a name or #rrggbb")
    value_range: ValueRange | Literal["auto"] | None = Field(
        default="auto",
        description="[black, white] level of images with more than 8 bits per sample (float, 16 and 32 bits); auto: "
        "the range over all images; null: the range of the file format (16 bits: 0 to 65535, floats: 0 to "
        "1)",
    )


class DataConfig(ReadConfig):
    """Location of the images, and their preprocessing for the model."""

    image_size: Count | Pair | Literal["auto"] = Field(
        default="auto",
        description="side length, or height,width, in pixels; auto: that of init or the preset, or of the data if "
        "model.patch_size=auto",
    )
    resize_mode: Literal["crop", "squash", "pad"] = Field(
        default="crop",
        description="resizing to the model's shape; crop: resize and center-crop; squash: resize without "
        "keeping the aspect ratio; pad: resize to fit inside, gray bars at the sides (letterbox)",
    )
    interpolation: Interpolation | Literal["auto"] = Field(
        default="auto", description="resize filter, antialiased; auto: that of init, else bicubic"
    )
    crop_pct: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        default="auto",
        description="share of the resized image's side that the center crop keeps (timm's crop_pct); auto: that of "
        "init, else 1; 1 when training with augment.crop",
    )
    mean: Shares | Literal["auto"] = Field(
        default="auto", description="mean per channel for normalization, in [0,1]; auto: of the train split, or of init"
    )
    std: Shares | Literal["auto"] = Field(
        default="auto",
        description="standard deviation per channel for normalization, in [0,1]; auto: of the train split, or of init",
    )
    val_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of train held out for validation if there is no validation split"
    )
    validation: Validation = Field(
        default="own",
        description="images for validation; own: the validation split of the data, else a part of train; dev: always a "
        "part of train, leaving the test split untouched; none: train on all images and save the last "
        "weights",
    )
    shots: Count | None = Field(
        default=None, description="train images per class, drawn by seed after the validation split; null: all"
    )
    unlabeled: str | None = Field(
        default=None,
        description="path of images without labels, for objectives with an unlabeled stream; takes every layout that "
        "path takes and reads its train split without labels; null: none",
    )
    labels_per_class: Count | None = Field(
        default=None,
        description="number of train images per class that keep their labels, drawn by seed; the others are read "
        "without labels; null: all keep them",
    )
    labeled_images: Count | None = Field(
        default=None,
        description="detection: number of train images that keep their boxes, drawn by seed; the others are read "
        "without boxes, or left out by objectives without an unlabeled stream; null: all keep them",
    )
    unlabeled_ratio: Count = Field(
        default=1, description="unlabeled images per labeled image in a step (mu of FixMatch)"
    )
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto",
        description="number of threads that decode files, in addition to the main thread; auto: one per core",
    )
    balance: Literal["none", "class", "sqrt"] = Field(
        default="none",
        description="class frequencies in training; none: as in the data; class: equal; sqrt: in proportion to the "
        "square root of the class counts",
    )
    cache_mb: int = Field(default=2048, ge=0, description="memory for decoded images, in MB per split")


class AugmentConfig(Config):
    """Augmentation of training images. Evaluation uses none."""

    crop: Literal["none", "random_resized"] = Field(
        default="none", description="random_resized: crop a random part of the image and resize it to the model's shape"
    )
    crop_scale: ShareRange = Field(
        default=(0.08, 1.0), description="smallest and largest area of the random crop, as shares of the image"
    )
    aspect_ratio: Rising = Field(
        default=(0.75, 1.3333), description="smallest and largest aspect ratio (width / height) of the random crop"
    )
    pad_crop: int = Field(default=0, ge=0, description="largest random shift in whole pixels (pad, then crop)")
    flip: Share = Field(default=0.0, description="probability of a horizontal flip")
    flip_vertical: Share = Field(default=0.0, description="probability of a vertical flip")
    rotate: float = Field(default=0.0, ge=0, le=180, description="largest rotation in degrees, either way")
    scale: float = Field(
        default=0.0, ge=0, lt=10, description="largest zoom: 0.1 zooms by a factor from 1/1.1 to 1.1, log-uniform"
    )
    shear: float = Field(default=0.0, ge=0, lt=60, description="largest horizontal shear in degrees, either way")
    translate: Share = Field(
        default=0.0, description="largest shift as a share of the side length, with subpixel precision"
    )
    fill: Literal["zeros", "gray", "border", "reflection"] = Field(
        default="zeros",
        description="fill outside the image; zeros: black; gray: mid-gray; border: the edge pixels; reflection: the "
        "mirrored image",
    )
    policy: Literal["none", "randaugment", "trivial", "three_augment"] = Field(
        default="none",
        description="augmentation policy: RandAugment, TrivialAugment (wide), or three_augment: DeiT III's 3-Augment "
        "(one of grayscale, solarize, blur)",
    )
    num_ops: int = Field(default=2, ge=0, le=16, description="randaugment: number of operations per image")
    magnitude: float = Field(default=9.0, ge=0, le=30, description="randaugment: strength of the operations, 0 to 30")
    magnitude_std: float = Field(
        default=0.0, ge=0, le=30, description="randaugment: standard deviation of the strength between draws"
    )
    interpolation: Literal["nearest", "bilinear"] = Field(
        default="bilinear", description="filter of the policy's shears, shifts and rotations"
    )
    brightness: Share = Field(
        default=0.0, description="color jitter: brightness is multiplied by a factor from 1 - x to 1 + x"
    )
    contrast: Share = Field(
        default=0.0, description="color jitter: contrast is multiplied by a factor from 1 - x to 1 + x"
    )
    saturation: Share = Field(
        default=0.0, description="color jitter: saturation is multiplied by a factor from 1 - x to 1 + x"
    )
    hue: float = Field(default=0.0, ge=0, le=0.5, description="color jitter: largest hue rotation, in turns")
    jitter_prob: Share = Field(default=1.0, description="probability of color jitter")
    gray: Share = Field(default=0.0, description="probability of conversion to grayscale")
    solarize: Share = Field(default=0.0, description="probability of solarization (inverted bright pixels)")
    solarize_from: Share = Field(default=0.5, description="brightness in [0,1] from which solarize inverts")
    posterize: Share = Field(default=0.0, description="probability of posterization (fewer color levels)")
    posterize_bits: int = Field(default=4, ge=1, le=8, description="bits per channel after posterize")
    equalize: Share = Field(default=0.0, description="probability of histogram equalization")
    autocontrast: Share = Field(default=0.0, description="probability of stretching each channel to [0,1]")
    invert: Share = Field(default=0.0, description="probability of inverting the colors")
    sharpen: Share = Field(default=0.0, description="probability of changing the sharpness")
    sharpen_factor: float = Field(default=2.0, ge=0, le=10, description="sharpness: 0 smooth, 1 unchanged, 2 sharp")
    blur: Share = Field(default=0.0, description="probability of Gaussian blur")
    blur_sigma: Rising = Field(
        default=(0.1, 2.0),
        description="smallest and largest standard deviation of blur, pixels; also for three_augment",
    )
    random_erasing: Share = Field(default=0.0, description="probability of random erasing")
    erase_scale: ShareRange = Field(
        default=(0.02, 0.3333), description="smallest and largest erased area, as shares of the image"
    )
    erase_ratio: Rising = Field(
        default=(0.3, 3.3), description="smallest and largest aspect ratio (height / width) of the erased area"
    )
    erase_fill: Literal["zeros", "mean", "noise"] = Field(
        default="zeros",
        description="fill of the erased area; zeros: black; mean: the image's mean color; noise: uniform noise per "
        "pixel",
    )
    repeated_aug: Count = Field(
        default=1,
        description="repeated augmentation: number of copies of each sample in a batch, each augmented differently; "
        "divides the batch size",
    )
    mixup: float = Field(default=0.0, ge=0, description="alpha of the Beta distribution of mixup's weight; 0: off")
    cutmix: float = Field(
        default=0.0,
        ge=0,
        description="CutMix: alpha of the Beta distribution of the mixing weight; 0: off; with mixup too, each group "
        "of 8 images draws one of the two",
    )
    mix_prob: Share = Field(default=1.0, description="share of the groups of 8 images that are mixed")
    mosaic: Share = Field(
        default=0.0, description="detection: share of the images that become a mosaic of four (YOLOv4); 0: off"
    )
    copy_paste: Share = Field(
        default=0.0,
        description="detection: share of the images that get boxes of another one pasted, each with a probability of "
        "1/2, at their places there; 0: off",
    )

    @property
    def moves(self) -> bool:
        """Whether any geometric change is configured."""
        flips = self.flip or self.flip_vertical
        return bool(self.pad_crop or flips or self.rotate or self.scale or self.shear or self.translate)

    @property
    def jitters(self) -> bool:
        """Whether color jitter is configured."""
        return bool(self.jitter_prob and (self.brightness or self.contrast or self.saturation or self.hue))


class ViewConfig(NamedTuple):
    """One view of a sample: its augmentation and its size (height, width)."""

    augment: AugmentConfig
    size: tuple[int, int]


class StreamConfig(NamedTuple):
    """One stream of training batches: samples per batch, over all processes; the keys of the complete stream: repeated
    augmentation and mixing of `augment`, class `balance`; the views of each sample; whether batches hold labels; and of
    boxes, the share of the area that a view must show of a box to keep it."""

    batch_size: int
    augment: AugmentConfig
    balance: Literal["none", "class", "sqrt"] = "none"
    views: tuple[ViewConfig, ...] = ()
    labeled: bool = True
    min_visible: float = 0.3


class CheckConfig(Config):
    """Keys of the data check before a run."""

    allow: Codes = Field(
        default=(), description="finding codes that do not refuse the run; errors with these codes become warnings"
    )
    skip: bool = Field(default=False, description="train without checking the data; log and model card state it")
