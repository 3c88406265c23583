"""Keys of the commands that use a model: one class per command."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, Strict, model_validator

from vitral.attacks.config import AnyAttack, PgdConfig, fraction
from vitral.compression.config import EViTConfig, ToMeConfig
from vitral.config import Config, Count, Pair, Share
from vitral.data.config import DataSource, ValueRange
from vitral.evaluate.config import Evaluators, FewshotConfig, KnnConfig, LinearConfig
from vitral.evaluate.metric import missed_limits
from vitral.export.config import ExportOptions
from vitral.interpret.config import GradientsConfig
from vitral.serve.config import ServeConfig

_MAX_PIXELS = Field(
    default=None,
    description="size limit of one image, in pixels of up to 4 bytes; null: as in the model's config.json",
)
_FEATURES = (
    "features of an image; pooled: the input of the head; cls: the class token; avg: the mean over patches; cls_avg: "
    "both, concatenated"
)
_MAX_BAD = "number of unreadable images above which the exit code is 2; the others are processed in any case"
_RAY_ENGINE: Any = Field(
    default="torch",
    description="inference engine; onnx and openvino take seconds to start; auto: the fastest one with equal logits; "
    "ray: torch in the workers of a Ray cluster",
)
_MIN_TOP1: Any = Field(
    default=None, ge=0, le=1, description="smallest allowed top-1 accuracy, as a share, else exit code 3"
)


# Groups of keys that only one value of another key reads: that of the group's name.
_CHOSEN_BY = {
    "tome": "reduce", "evit": "reduce", "knn": "kind", "linear": "kind", "fewshot": "kind", "ray": "engine",
}  # fmt: skip


class ModelUse(Config):
    """Keys that every use of a model takes."""

    image_size: Count | Pair | None = Field(
        default=None, description="input size in pixels: one number or height,width; null: the model's size"
    )
    position_resize: Literal["bicubic_antialias", "bicubic", "google"] | None = Field(
        default=None, description="resampling of learned positions to another image_size; null: as in config.json"
    )
    value_range: ValueRange | None = Field(
        default=None,
        description="[black, white] level of images with more than 8 bits per sample (float, 16 and 32 bits); null: as "
        "in the model's config.json",
    )
    reduce: Literal["auto", "none", "tome", "evit"] = Field(
        default="auto",
        description="token reduction without training; tome: merge similar tokens (ToMe); evit: keep the patches with "
        "the most attention from the class token (EViT); auto: the model's learned pruner, if it has one",
    )
    tome: ToMeConfig = ToMeConfig()
    evit: EViTConfig = EViTConfig()
    device: str = Field(default="auto", description="device: auto, cpu, cuda or cuda:N")

    @model_validator(mode="after")
    def _no_group_ignored(self) -> ModelUse:
        for group, key in _CHOSEN_BY.items():
            if group in self.model_fields_set and (value := getattr(self, key)) != group:
                reason = "without engine=ray" if group == "ray" else f"with {key}={value}"
                raise ValueError(f"the keys {group}.* have no effect {reason}")
        return self


class EngineUse(ModelUse):
    """Keys of a use that only predicts."""

    engine: Literal["torch", "onnx", "openvino", "auto"] = Field(
        default="torch",
        description="inference engine; onnx and openvino take seconds to start; auto: the fastest with equal logits",
    )
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="precision of the computation")


class RayConfig(Config):
    """Workers on a Ray cluster: the cluster at the environment variable RAY_ADDRESS, else a new one on this machine."""

    workers: Count | None = Field(
        default=None,
        description="number of worker processes, each with a copy of the model; null: one per GPU, or one per 4 CPU "
        "cores",
    )


class EvalOptions(EngineUse):
    """Keys of `vitral eval`."""

    data: DataSource = DataSource()
    split: Literal["auto", "train", "val", "test"] = Field(
        default="auto", description="images to measure on; auto: test, else val, else all images"
    )
    compare: str | None = Field(default=None, description="second model to compare on the same images")
    min_top1: float | None = _MIN_TOP1
    min_map: float | None = Field(
        default=None, ge=0, le=1, description="multi-label: smallest allowed mAP, as a share, else exit code 3"
    )
    min_ap: float | None = Field(
        default=None, ge=0, le=1, description="detection: smallest allowed AP, as a share, else exit code 3"
    )
    min_ap50: float | None = Field(
        default=None, ge=0, le=1, description="detection: smallest allowed AP50, as a share, else exit code 3"
    )
    max_mae: float | None = Field(
        default=None, ge=0, description="regression: exit code 3 if the mean absolute error, in units, is above"
    )
    eval: Evaluators = Field(
        default_factory=dict,
        description="evaluators by name, each with its keys; none: the default of the task",
    )
    batch_size: int = Field(default=256, ge=1, description="number of images per batch")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by key: min_METRIC or max_METRIC."""
        keys = [key for key in EvalOptions.model_fields if key.startswith(("min_", "max_"))]
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}

    def missed(self, found: Mapping[str, Any]) -> list[str]:
        """Return one sentence per metric that is beyond its limit."""
        return missed_limits(self.limits, found)


class ProbeOptions(ModelUse):
    """Keys of `vitral probe`."""

    kind: Literal["knn", "linear", "fewshot"] = Field(
        default="knn", description="type of probe: k nearest neighbors, a linear classifier, or few-shot least squares"
    )
    data: DataSource = DataSource()
    split: Literal["auto", "val", "test"] = Field(default="auto", description="images to measure on; auto: test or val")
    features: Literal["pooled", "cls", "avg", "cls_avg"] = Field(default="pooled", description=_FEATURES)
    layer: Literal["auto"] | int | None = Field(
        default=None,
        description="features after this layer, the mean over its patches or pixels, in place of `features`: its "
        "place, from 0 (of an Image GPT the embedding; -1: the last); auto: with kind=linear, the layer that is best "
        "on held-out train images",
    )
    knn: KnnConfig = KnnConfig()
    linear: LinearConfig = LinearConfig()
    fewshot: FewshotConfig = FewshotConfig()
    min_top1: float | None = _MIN_TOP1
    out: str | None = Field(default=None, description="layer=auto: PNG file to write, the accuracy of each layer")
    overwrite: bool = Field(default=False, description="replace an existing file")
    batch_size: int = Field(default=256, ge=1, description="number of images per batch")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ProbeOptions:
        if self.layer is not None and "features" in self.model_fields_set:
            raise ValueError(f"features has no effect with layer={self.layer}")
        if self.layer == "auto" and (self.kind != "linear" or len(self.linear.l2) == 1):
            raise ValueError("layer=auto chooses by held-out images: kind=linear with several linear.l2")
        if self.out is not None and self.layer != "auto":
            raise ValueError("out has no effect without layer=auto")
        if self.overwrite and self.out is None:
            raise ValueError("overwrite=true has no effect without out=FILE.png")
        return self


class AttackOptions(ModelUse):
    """Keys of `vitral attack`."""

    attack: AnyAttack = PgdConfig()
    data: DataSource = DataSource()
    split: Literal["auto", "train", "val", "test"] = Field(
        default="auto", description="images to attack; auto: test, else val, else all images"
    )
    samples: Count = Field(
        default=500, description="most images that are attacked, evenly spaced; more narrow the interval"
    )
    curve: Annotated[tuple[Annotated[str, BeforeValidator(str)], ...], Strict(False)] = Field(
        default=("0.25x", "0.5x", "2x"),
        description="further sizes of change for the curve of accuracy: multiples of attack.eps such as 0.5x, or "
        "values such as 4/255; 0 and attack.eps are always in it",
    )
    transfer: str | None = Field(
        default=None,
        description="second model that is attacked instead, as MODEL; its adversarial images are shown to MODEL",
    )
    check: Literal["warn", "strict", "none"] = Field(
        default="warn",
        description="tests for a weak attack or masked gradients; warn: print and report what fails; strict: also exit "
        "code 3; none: no tests",
    )
    min_top1: float | None = Field(
        default=None, ge=0, le=1, description="smallest allowed top-1 under attack, as a share, else exit code 3"
    )
    seed: int = Field(default=0, ge=0, description="seed of random starts and squares")
    out: str | None = Field(default=None, description="folder to write: page, pictures and JSON; null: none")
    overwrite: bool = Field(default=False, description="replace the earlier output of `vitral attack` in out")
    batch_size: int = Field(default=64, ge=1, description="number of images per batch")

    def sizes(self) -> list[float]:
        """Return all sizes of change of the curve, ascending, with 0 and attack.eps."""
        radius = self.attack.radius
        return sorted({0.0, radius, *(_size(text, radius, self.attack.norm) for text in self.curve)})

    @model_validator(mode="after")
    def _nothing_ignored(self) -> AttackOptions:
        if self.overwrite and self.out is None:
            raise ValueError("overwrite=true has no effect without out=DIR")
        if self.transfer is not None and "check" in self.model_fields_set and self.check != "none":
            raise ValueError(
                f"check={self.check} has no effect with transfer: the tests are of attacks on MODEL itself"
            )
        self.sizes()
        return self


def _size(text: str, radius: float, norm: str) -> float:
    """Return an item of `curve`, a multiple ("0.5x") or a value ("4/255"). Raises ValueError for other text and for a
    value out of range."""
    number = fraction(text.strip().removesuffix("x"))
    try:
        value = float(number)
    except ValueError:
        raise ValueError(f"curve={text}: expected a multiple of attack.eps as 0.5x, or a value as 4/255") from None
    most = 1.0 if norm == "linf" else math.inf
    if text.strip().endswith("x"):
        value = min(value * radius, most)
    if not (0 <= value <= most and math.isfinite(value)):
        hint = f" Is {text}/255 meant?" if value > most else ""
        raise ValueError(f"curve={text}: sizes of change are in units of [0,1].{hint}")
    return value


class EmbedOptions(ModelUse):
    """Keys of `vitral embed`."""

    data: DataSource = DataSource()
    split: Literal["all", "train", "val", "test"] = Field(default="all", description="images of the data set to embed")
    features: Literal["pooled", "cls", "avg", "cls_avg", "patches"] = Field(
        default="pooled", description=f"{_FEATURES}; patches: one vector per patch"
    )
    max_pixels: Count | None = _MAX_PIXELS
    out: str | None = Field(default=None, description=".npz file to write; null: print one JSON line per image")
    overwrite: bool = Field(default=False, description="replace an existing file")
    batch_size: int = Field(default=256, ge=1, description="number of images per batch")
    max_bad: int = Field(default=0, ge=0, description=f"{_MAX_BAD}; for data=: data.max_bad")
    engine: Literal["torch", "ray"] = Field(
        default="torch", description="inference engine; torch: this process; ray: the workers of a Ray cluster"
    )
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _nothing_ignored(self) -> EmbedOptions:
        if self.overwrite and self.out is None:
            raise ValueError("overwrite=true has no effect without out=FILE.npz")
        if "max_bad" in self.model_fields_set and self.model_fields_set & {"data", "split"}:
            raise ValueError("max_bad has no effect with data=, data.max_bad has")
        return self


# Visualizations of an image, and of a model alone.
ImageMethod = Literal[
    "rollout", "gradient_attention", "integrated_gradients", "attention", "similarity", "norms", "lens", "groups"
]
ModelMethod = Literal["filters", "positions", "distance", "cka"]
IMAGE_METHODS, MODEL_METHODS = get_args(ImageMethod), get_args(ModelMethod)
# Keys that only some methods read.
_READ_BY = {
    "token": {"attention", "rollout", "gradient_attention", "similarity"},
    "layers": {"attention", "similarity", "norms"},
    "heads": {"attention"},
    "fuse": {"rollout"},
    "reduce": {"groups"},
    "label": {"gradient_attention", "integrated_gradients", "lens"},
    "gradients": {"integrated_gradients"},
    "batch_size": {"distance", "cka", "integrated_gradients"},
    "compare": {"cka"},
    **{key: {"distance", "cka"} for key in ("data", "split", "images")},
}


class ExplainOptions(ModelUse):
    """Keys of `vitral explain`."""

    max_pixels: Count | None = _MAX_PIXELS
    out: str | None = Field(default=None, description="folder to write; must be new or empty")
    overwrite: bool = Field(default=False, description="replace the earlier output of `vitral explain` in out")
    methods: Annotated[tuple[Literal[ImageMethod, ModelMethod], ...], Strict(False)] = Field(
        default=(),
        description="visualizations to draw; empty: all that apply (distance needs data=, cka needs compare=, groups "
        "needs reduce=)",
    )
    compare: str | None = Field(
        default=None, description="cka: second model whose layers are compared, as MODEL; null: the model with itself"
    )
    token: str | None = Field(
        default=None,
        description="token whose attention is shown: cls, distill, register:0, a patch as row,column, or mean (over "
        "all patches); null: cls if the head reads it, else mean",
    )
    layers: Annotated[tuple[int, ...], Strict(False)] = Field(
        default=(), description="layers to show, counted from 0 (-1 is the last); empty: up to six, evenly spaced"
    )
    heads: Annotated[tuple[int, ...], Strict(False)] = Field(
        default=(), description="attention heads to show in addition to their mean; empty: all, up to twelve"
    )
    fuse: Literal["mean", "max"] = Field(default="mean", description="rollout: how the heads of a layer are combined")
    label: str | None = Field(
        default=None, alias="class", description="name or index of the class to explain; null: the predicted class"
    )
    gradients: GradientsConfig = GradientsConfig()
    data: DataSource = DataSource()
    split: Literal["auto", "train", "val", "test"] = Field(
        default="auto", description="images of the data set to use; auto: test, else val, else train"
    )
    images: int = Field(default=128, ge=2, description="number of images, evenly spaced, for distance and cka")
    batch_size: int = Field(
        default=16, ge=1, description="images, or steps of integrated gradients, per batch; cka needs 4 or more"
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ExplainOptions:
        set_keys, names = self.model_fields_set, {name: info.alias for name, info in type(self).model_fields.items()}
        for key, readers in _READ_BY.items():
            drawn = readers & set(self.methods) if self.methods else readers - {"distance", "cka"} or "data" in set_keys
            drawn = drawn or (not self.methods and self.compare is not None)
            if key in set_keys and not drawn:
                needs = " or ".join(sorted(readers)) if self.methods else "data= or methods=distance"
                raise ValueError(f"{names[key] or key} has no effect without {needs}")
        return self


class SweepOptions(Config):
    """Keys of `vitral sweep`, beside those of its runs."""

    dev: float | None = Field(
        default=None, description="share of the train images that score the points; null: data.val_fraction"
    )
    retrain: bool = Field(
        default=True, description="retrain the best setting on all training data and evaluate it on the test split"
    )
    out: str | None = Field(default=None, description="folder of the sweep; null: runs/sweep-RECIPE-TIME")
    resume: bool = Field(default=False, description="continue the sweep in out")
    overwrite: bool = Field(default=False, description="replace the sweep in out")


class PruneOptions(Config):
    """Keys of `vitral prune`."""

    data: DataSource = DataSource()
    split: Literal["auto", "train", "val", "test"] = Field(
        default="train", description="images for the importance estimate; auto: test, else val, else all"
    )
    images: int | None = Field(default=4096, ge=2, description="number of these images, evenly spaced; null: all")
    flops: float = Field(default=0.7, gt=0, lt=1, description="largest remaining share of the multiply-accumulates")
    out: str | None = Field(default=None, description="folder of the pruned model")
    overwrite: bool = Field(default=False, description="replace an existing model in out")
    batch_size: int = Field(default=64, ge=1, description="number of images per batch")
    device: str = Field(default="auto", description="device: auto, cpu, cuda or cuda:N")


class SampleOptions(Config):
    """Keys of `vitral sample`."""

    n: Count = Field(default=16, description="number of images to draw")
    temperature: float = Field(
        default=1.0, gt=0, description="divides the logits of each pixel's color; below 1 favors probable colors"
    )
    top_k: int = Field(default=0, ge=0, description="draw from the k most probable colors; 0: from all")
    top_p: Share = Field(
        default=1.0, gt=0, description="draw from the smallest set of colors with this probability (nucleus)"
    )
    steps: Count = Field(
        default=8,
        description="of a model with model.mask_ratio=cosine (MaskGIT): passes through the model per image, at most as "
        "many as it has pixels",
    )
    choice_temperature: float = Field(
        default=4.5, ge=0,
        description="of such a model: scale of the Gumbel noise in the choice of the pixels that stay after a step; 0: "
        "the surest ones",
    )  # fmt: skip
    label: str | None = Field(
        default=None, alias="class", description="name or index of the class to draw; null: any; see model.class_tokens"
    )
    complete: str | None = Field(
        default=None, description="image file whose upper half is given; the lower half is drawn"
    )
    seed: int = Field(default=0, ge=0, description="seed of the draws")
    data: DataSource = DataSource()
    out: str | None = Field(default=None, description="folder to write; must be new or empty")
    overwrite: bool = Field(default=False, description="replace the earlier output of `vitral sample` in out")
    batch_size: int = Field(default=64, ge=1, description="number of images that are drawn at once")
    device: str = Field(default="auto", description="device: auto, cpu, cuda or cuda:N")


class TokenizeOptions(Config):
    """Keys of `vitral tokenize`."""

    data: DataSource = DataSource()
    split: str = Field(default="all", description="images of the data set: all, train, val or test; with data=")
    out: str | None = Field(
        default=None, description="FILE.npz for codes; of codes the folder for images, which must be new or empty"
    )
    overwrite: bool = Field(default=False, description="replace an existing file")
    batch_size: int = Field(default=64, ge=1, description="number of images that are computed at once")
    max_bad: int = Field(default=0, ge=0, description=_MAX_BAD)
    device: str = Field(default="auto", description="device: auto, cpu, cuda or cuda:N")


class SummaryOptions(Config):
    """Keys of `vitral summary`."""

    image_size: Count | Pair | None = Field(
        default=None, description="input size in pixels: one number or height,width; null: the model's size"
    )
    precision: Literal["float32", "bfloat16", "bfloat16_params"] = Field(
        default="float32", description="training precision of the memory estimate"
    )
    out: str | None = Field(default=None, description="PNG file to write, with the growth of compute and memory")
    overwrite: bool = Field(default=False, description="replace an existing file")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> SummaryOptions:
        if self.overwrite and self.out is None:
            raise ValueError("overwrite=true has no effect without out=FILE.png")
        return self


class ExportCommandOptions(ExportOptions):
    """Keys of `vitral export`."""

    data: DataSource = DataSource()
    split: Literal["auto", "train", "val", "test"] = Field(
        default="auto", description="images of the data set for the comparison; auto: test, else val"
    )

    @model_validator(mode="after")
    def _split_of_something(self) -> ExportCommandOptions:
        if not self.data.named:
            if "split" in self.model_fields_set:
                raise ValueError("split has no effect without data=DIR")
            for key in self.data.model_fields_set:
                raise ValueError(f"data.{key} has no effect without data=DIR")
        return self


class PredictOptions(EngineUse):
    """Keys of `vitral predict`."""

    # Wider than the overridden type, which is safe for a frozen field.
    engine: Literal["torch", "onnx", "openvino", "auto", "ray"] = _RAY_ENGINE  # pyright: ignore[reportIncompatibleVariableOverride]
    topk: int = Field(default=5, ge=1, description="number of classes per image, most likely first")
    threshold: float | None = Field(
        default=None, ge=0, lt=1, description="detector: lowest score of a box; null: as the model folder says"
    )
    draw: str | None = Field(default=None, description="detector: new folder for pictures with boxes, classes, scores")
    max_pixels: Count | None = _MAX_PIXELS
    batch_size: int = Field(default=64, ge=1, description="number of images per batch")
    max_bad: int = Field(default=0, ge=0, description=_MAX_BAD)
    ray: RayConfig = RayConfig()


class DoctorOptions(Config):
    """Keys of `vitral doctor MODEL`."""

    accept: bool = Field(default=False, description="write new digests after an intended edit, if all else is valid")


class PushOptions(Config):
    """Keys of `vitral push`."""

    private: bool = Field(default=False, description="make a new repository private")
    license: str | None = Field(
        default=None,
        description="license identifier of the Hub: apache-2.0, cc-by-4.0, other, ...; null: as in the card",
    )
    overwrite: bool = Field(default=False, description="replace the model in a repository that already holds files")


class ServeOptions(EngineUse, ServeConfig):
    """Keys of `vitral serve`."""

    engine: Literal["torch", "onnx", "openvino", "auto", "ray"] = _RAY_ENGINE  # pyright: ignore[reportIncompatibleVariableOverride]
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ServeOptions:
        if self.engine == "ray" and self.port == 0:
            raise ValueError("port=0 has no effect with engine=ray: set port to a free port")
        if self.engine == "ray" and "body_seconds" in self.model_fields_set:
            raise ValueError("body_seconds has no effect with engine=ray, which passes on complete requests")
        return self
