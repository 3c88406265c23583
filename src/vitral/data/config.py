"""What to read, how to shape it, and how to vary it in training."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, Field, Strict, model_validator

from vitral.config import Config, Count, Pair, Shares
from vitral.data.findings import known_codes

Channels = Annotated[int, Field(ge=1, le=4)]
Names = Annotated[tuple[str, ...], Strict(False)]
SourceName = Literal["auto", "digits", "folder", "filename", "images", "table", "cifar", "hf", "yaml"]
Validation = Literal["own", "dev", "none"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]
MAX_PIXELS = 150_000_000  # three bytes each: 450 MB; the largest phone cameras give 108 to 200 million


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"two numbers above 0, the smaller one first, are wanted, got {list(pair)}")
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


class SourceConfig(Config):
    """Where the images come from, and how the source is read: the same keys for training and for evaluation."""

    path: str | None = Field(
        default=None, description="folder, manifest, shards or YAML of the data; `data=X` is short for it"
    )
    source: SourceName = Field(default="auto", description="kind of data; auto looks at the path")
    pattern: str | None = Field(
        default=None, description="regular expression over file names with a group (?P<label>...), maybe (?P<split>...)"
    )
    image_column: str | None = Field(default=None, description="column of file or image; null: by its name or type")
    label_column: str | None = Field(default=None, description="column of label or labels; null: by its name or type")
    target: Annotated[Names, Field(min_length=1)] | None = Field(
        default=None, description="columns of numbers to learn with objective.kind=regression, as x,y; null: labels"
    )
    split_column: str | None = Field(default=None, description="column of train, val or test; null: `split`, if any")
    label_separator: str | None = Field(
        default=None, min_length=1, description="between several labels of one image (multi-label); null: one label"
    )
    classes: Names | None = Field(default=None, description="class names in order of their indices; null: sorted")
    subset: str | None = Field(default=None, description="configuration of a Hugging Face dataset")
    streaming: bool = Field(default=False, description="always false: a stream has no places to resume at")
    max_bad: int = Field(default=0, ge=0, description="damaged images, over all splits, left out before it is an error")
    max_pixels: Count = Field(
        default=MAX_PIXELS,
        description="largest image that is read, in pixels of up to 4 bytes (deeper ones count more), by its header",
    )
    verify: bool = Field(default=True, description="compare CIFAR files with the published md5 sums")


class Description(Config):
    """A YAML file that describes data: the same keys as in a run, paths relative to the file."""

    source: SourceName = "auto"
    path: str | None = None
    splits: dict[Literal["train", "val", "test"], str] | None = None
    pattern: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    label_separator: Annotated[str, Field(min_length=1)] | None = None
    classes: Names | None = None
    subset: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        if (self.path is None) == (self.splits is None):
            raise ValueError("either path, or splits with a path for train, val and test, is needed")
        if self.splits is not None and "train" not in self.splits:
            raise ValueError("splits needs a path for train")
        return self


class DataConfig(SourceConfig):
    """Where the images come from and what the model sees of them."""

    range_key: ClassVar[str] = "data.value_range"  # what messages call it

    image_size: Count | Pair | Literal["auto"] = Field(
        default="auto",
        description="side or height,width, pixels; auto: of init or preset; of the data if patch_size=auto",
    )
    channels: Channels | Literal["auto"] = Field(
        default="auto", description="1 grey, 3 RGB, 4 RGBA; auto: from the data"
    )
    fit: Literal["crop", "squash"] = Field(
        default="crop", description="to the model's shape by centre crop, or by changing the aspect"
    )
    interpolation: Interpolation | Literal["auto"] = Field(
        default="auto", description="filter of the resize, antialiased; auto: of init, else bicubic"
    )
    crop_ratio: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        default="auto",
        description="resized to size / crop_ratio, then cut at the centre (timm's crop_pct); auto: of init, else 1; "
        "training with augment.crop takes 1",
    )
    mean: Shares | Literal["auto"] = Field(
        default="auto", description="per channel, in [0,1]; auto: of the train split, or of init"
    )
    std: Shares | Literal["auto"] = Field(
        default="auto", description="per channel, in [0,1]; auto: of the train split, or of init"
    )
    val_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of train held out where there is no validation split"
    )
    validation: Validation = Field(
        default="own",
        description="own: that of the data, else held out of train; dev: always held out of train, and the test images "
        "are left alone; none: train on all, keep the last weights",
    )
    shots: Count | None = Field(
        default=None,
        description="train images of each class that are learned from, drawn by seed from what validation leaves; "
        "null: all",
    )
    background: str = Field(default="#ffffff", description="colour behind transparency: a name or #rrggbb")
    value_range: ValueRange | Literal["auto"] | None = Field(
        default="auto",
        description="[black, white] of samples of more than 8 bits (float, 16 and 32 bits); auto: from all images of "
        "the data, null: what each file's format says (16 bits: 0 to 65535, floats: 0 to 1)",
    )
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto", description="threads or processes that decode files, beside the caller; auto: one a core"
    )
    worker_kind: Literal["threads", "fork", "spawn"] = Field(
        default="threads",
        description="threads; processes (fork, spawn) help where the Python code of a source takes the time; "
        "validation always uses threads",
    )
    balance: Literal["none", "class", "sqrt"] = Field(
        default="none", description="classes in training: as in the data, equally often, or by the root of their counts"
    )
    cache_mb: int = Field(default=2048, ge=0, description="decoded images kept in memory up to this many MB a split")


class AugmentConfig(Config):
    """How training images are varied. Evaluation never is."""

    crop: Literal["none", "random_resized"] = Field(
        default="none", description="random_resized: a random part of the image, resized to the model's shape"
    )
    crop_scale: ShareRange = Field(
        default=(0.08, 1.0), description="least and largest area of a crop, shares of the image"
    )
    crop_ratio: Rising = Field(default=(0.75, 1.3333), description="least and largest width / height of a crop")
    pad_crop: int = Field(default=0, ge=0, description="whole-pixel shift up to this many pixels (pad, then crop)")
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of a left-right flip")
    flip_vertical: float = Field(default=0.0, ge=0, le=1, description="probability of an upside-down flip")
    rotate: float = Field(default=0.0, ge=0, le=180, description="largest angle, degrees either way")
    scale: float = Field(
        default=0.0, ge=0, lt=10, description="largest zoom: 0.1 is a factor of 1/1.1 to 1.1, log-uniform"
    )
    shear: float = Field(default=0.0, ge=0, lt=60, description="largest horizontal shear, degrees either way")
    translate: float = Field(default=0.0, ge=0, le=1, description="largest shift, as a share of the side, subpixel")
    fill: Literal["zeros", "grey", "border", "reflection"] = Field(
        default="zeros", description="what lies outside the image: black, mid-grey, its edge, its mirror"
    )
    policy: Literal["none", "randaugment", "trivial", "three"] = Field(
        default="none",
        description="RandAugment, TrivialAugment (wide), or one of grey, solarize, blur as DeiT III's 3-Augment",
    )
    num_ops: int = Field(default=2, ge=0, le=16, description="operations of randaugment, one after the other")
    magnitude: float = Field(default=9.0, ge=0, le=30, description="strength of randaugment: 0 none to 30 largest")
    magnitude_std: float = Field(
        default=0.0, ge=0, le=30, description="standard deviation of randaugment's strength from draw to draw"
    )
    interpolation: Literal["nearest", "bilinear"] = Field(
        default="bilinear", description="of the policy's shears, shifts and rotations"
    )
    brightness: float = Field(default=0.0, ge=0, le=1, description="colour jitter: factor 1 - this to 1 + this")
    contrast: float = Field(default=0.0, ge=0, le=1, description="colour jitter: factor 1 - this to 1 + this")
    saturation: float = Field(default=0.0, ge=0, le=1, description="colour jitter: factor 1 - this to 1 + this")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="colour jitter: largest turn, 0.5 is half the circle")
    jitter_prob: float = Field(default=1.0, ge=0, le=1, description="probability that a sample's colours are jittered")
    grey: float = Field(default=0.0, ge=0, le=1, description="probability of greyscale")
    solarize: float = Field(default=0.0, ge=0, le=1, description="probability that bright pixels are inverted")
    solarize_from: float = Field(default=0.5, ge=0, le=1, description="brightness in [0,1] from which solarize inverts")
    posterize: float = Field(default=0.0, ge=0, le=1, description="probability of fewer levels a channel")
    posterize_bits: int = Field(default=4, ge=1, le=8, description="bits a channel that posterize keeps")
    equalize: float = Field(default=0.0, ge=0, le=1, description="probability of an equalized histogram")
    autocontrast: float = Field(default=0.0, ge=0, le=1, description="probability of each channel stretched to [0,1]")
    invert: float = Field(default=0.0, ge=0, le=1, description="probability of the negative")
    sharpen: float = Field(default=0.0, ge=0, le=1, description="probability of a change of sharpness")
    sharpen_factor: float = Field(default=2.0, ge=0, le=10, description="0 smooth, 1 unchanged, 2 sharp")
    blur: float = Field(default=0.0, ge=0, le=1, description="probability of Gaussian blur")
    blur_sigma: Rising = Field(
        default=(0.1, 2.0), description="least and largest standard deviation of the blur, pixels; policy three too"
    )
    erase: float = Field(default=0.0, ge=0, le=1, description="probability of random erasing")
    erase_scale: ShareRange = Field(
        default=(0.02, 0.3333), description="least and largest area that is erased, shares of the image"
    )
    erase_ratio: Rising = Field(default=(0.3, 3.3), description="least and largest height / width of what is erased")
    erase_fill: Literal["zeros", "mean", "noise"] = Field(
        default="zeros", description="what replaces it: black, the image's mean colour, uniform noise a pixel"
    )
    repeats: Count = Field(
        default=1, description="times that a batch holds each of its samples, each varied differently; divides it"
    )
    mixup: float = Field(default=0.0, ge=0, description="alpha of the Beta distribution of mixup's weight; 0: off")
    cutmix: float = Field(
        default=0.0, ge=0, description="alpha of CutMix; 0: off; with mixup on too, each group of 8 draws one"
    )
    mix_prob: float = Field(
        default=1.0, ge=0, le=1, description="share of the groups of 8 images that are mixed at all"
    )

    @property
    def moves(self) -> bool:
        """Whether any geometric change is asked for."""
        flips = self.flip or self.flip_vertical
        return bool(self.pad_crop or flips or self.rotate or self.scale or self.shear or self.translate)

    @property
    def jitters(self) -> bool:
        """Whether colour jitter is asked for."""
        return bool(self.jitter_prob and (self.brightness or self.contrast or self.saturation or self.hue))


class ViewConfig(NamedTuple):
    """How a sample is shown once: varied so, at this (height, width)."""

    augment: AugmentConfig
    size: tuple[int, int]


class CheckConfig(Config):
    """The check of the data before a run."""

    allow: Annotated[Names, AfterValidator(known_codes)] = Field(
        default=(), description="codes of findings that do not refuse the run; errors in it are shown as warnings"
    )
    skip: bool = Field(default=False, description="train unchecked data; the log and the model's card say so")
