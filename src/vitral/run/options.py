"""Keys of the commands that use a model: one class for each command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from vitral.config import Config, Count, Pair
from vitral.data.config import SourceConfig, ValueRange
from vitral.efficient.config import KeepConfig, MergeConfig
from vitral.evaluate.config import Evaluators, FewshotConfig, KnnConfig, LinearConfig
from vitral.export.config import ExportOptions
from vitral.interpret.config import GradientsConfig
from vitral.serve.config import ServeConfig


class EvalData(SourceConfig):
    """Which images to measure on; without a path, those of the training run."""

    path: str | None = Field(
        default=None, description="images with known classes; `data=X` is short for it; null: as in training"
    )


_MAX_PIXELS = Field(
    default=None,
    description="largest image that is read, in pixels of up to 4 bytes; null: as the model says",
)
_MAX_BAD = "images that may be unreadable before the exit code is 2; the others are answered in any case"


class ModelUse(Config):
    """How a model is used, whatever for."""

    image_size: Count | Pair | None = Field(
        default=None, description="pixels, one number or height,width; null: the model's own size"
    )
    position_resize: Literal["bicubic_antialias", "bicubic", "google"] | None = Field(
        default=None, description="learned positions at another image_size; null: as the model says"
    )
    value_range: ValueRange | None = Field(
        default=None,
        description="[black, white] of samples of more than 8 bits (float, 16 and 32 bits); null: as the model says",
    )
    reduce: Literal["auto", "none", "merge", "keep"] = Field(
        default="auto",
        description="fewer tokens on the way: similar ones merged, or only those kept that the class token attends to; "
        "auto: by the model's own pruner, if it has one",
    )
    merge: MergeConfig = MergeConfig()
    keep: KeepConfig = KeepConfig()
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")

    @model_validator(mode="after")
    def _nothing_reduced_in_vain(self) -> ModelUse:
        for kind in ("merge", "keep"):
            if kind != self.reduce and kind in self.model_fields_set:
                raise ValueError(f"the keys {kind}.* mean nothing to reduce={self.reduce}")
        return self


class EngineUse(ModelUse):
    """How a model that only predicts is used."""

    engine: Literal["torch", "onnx", "openvino", "auto"] = Field(
        default="torch",
        description="what computes; others than torch take seconds to start; auto: the fastest that gives equal logits",
    )
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of the computation")


class RayConfig(Config):
    """How work is spread over a Ray cluster: the one that the environment variable RAY_ADDRESS names, else a new one on
    this machine."""

    workers: Count | None = Field(
        default=None,
        description="processes, each with the model; null: one a GPU, else one for every four processors",
    )


def check_ray(engine: str, keys: set[str]) -> None:
    """Raises ValueError for keys of Ray without it."""
    if engine != "ray" and "ray" in keys:
        raise ValueError("the keys ray.* have no effect without engine=ray")


class EvalOptions(EngineUse):
    """Keys of `vitral eval`."""

    data: EvalData = EvalData()
    split: Literal["auto", "train", "val", "test"] = Field(
        default="auto", description="auto: test if there is one, else val, else all"
    )
    compare: str | None = Field(default=None, description="a second model, on the same images: McNemar's paired test")
    min_top1: float | None = Field(default=None, ge=0, le=1, description="exit code 3 if top-1, as a share, is below")
    min_map: float | None = Field(
        default=None, ge=0, le=1, description="multi-label: exit code 3 if mean average precision, as a share, is below"
    )
    max_mae: float | None = Field(
        default=None, ge=0, description="regression: exit code 3 if the mean absolute error, in units, is above"
    )
    eval: Evaluators = Field(
        default_factory=dict,
        description="evaluators by name, each with its keys; none: the default of the task",
    )
    batch_size: int = Field(default=256, ge=1, description="images at once")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by key: min_METRIC or max_METRIC."""
        keys = [key for key in EvalOptions.model_fields if key.startswith(("min_", "max_"))]
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}

    def missed(self, found: Mapping[str, Any]) -> list[str]:
        """A sentence for each metric that is beyond its limit."""
        rows = [(key, limit, found[key[4:]]) for key, limit in self.limits.items()]
        return [
            f"{key[4:]} {value:.4f} is {'below' if key.startswith('min') else 'above'} {key}={limit}"
            for key, limit, value in rows
            if (value < limit if key.startswith("min") else value > limit)
        ]


class ProbeOptions(ModelUse):
    """Keys of `vitral probe`."""

    kind: Literal["knn", "linear", "fewshot"] = Field(
        default="knn", description="nearest neighbours, a linear classifier, or regression on a few images a class"
    )
    data: EvalData = EvalData()
    split: Literal["auto", "val", "test"] = Field(
        default="auto", description="which images are judged; auto: test if there is one, else val"
    )
    features: Literal["pooled", "cls", "avg", "cls_avg"] = Field(
        default="pooled", description="what the head would read, class token, mean over the patches, or these two"
    )
    knn: KnnConfig = KnnConfig()
    linear: LinearConfig = LinearConfig()
    fewshot: FewshotConfig = FewshotConfig()
    min_top1: float | None = Field(default=None, ge=0, le=1, description="exit code 3 if top-1, as a share, is below")
    batch_size: int = Field(default=256, ge=1, description="images at once")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ProbeOptions:
        for kind in ("knn", "linear", "fewshot"):
            if kind != self.kind and kind in self.model_fields_set:
                raise ValueError(f"the keys {kind}.* mean nothing to kind={self.kind}")
        return self


class EmbedOptions(ModelUse):
    """Keys of `vitral embed`."""

    data: EvalData = EvalData()
    split: Literal["all", "train", "val", "test"] = Field(default="all", description="of the data: which images")
    features: Literal["pooled", "cls", "avg", "cls_avg", "patches"] = Field(
        default="pooled",
        description="what the head would read, class token, mean over the patches, these two, or every patch",
    )
    max_pixels: Count | None = _MAX_PIXELS
    out: str | None = Field(default=None, description=".npz file to write; null: one JSON line an image on stdout")
    overwrite: bool = Field(default=False, description="replace the file if it is there")
    batch_size: int = Field(default=256, ge=1, description="images at once")
    max_bad: int = Field(default=0, ge=0, description=f"{_MAX_BAD}; of data: data.max_bad")
    engine: Literal["torch", "ray"] = Field(
        default="torch", description="what computes: torch here, or in the processes of a Ray cluster"
    )
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _nothing_ignored(self) -> EmbedOptions:
        check_ray(self.engine, self.model_fields_set)
        if self.overwrite and self.out is None:
            raise ValueError("overwrite=true has no effect without out=FILE.npz")
        if "max_bad" in self.model_fields_set and self.model_fields_set & {"data", "split"}:
            raise ValueError("max_bad has no effect with data=, data.max_bad has")
        return self


# What `vitral explain` can draw of an image, and of a model alone.
IMAGE_METHODS = (
    "rollout",
    "gradient_attention",
    "integrated_gradients",
    "attention",
    "similarity",
    "norms",
    "lens",
    "groups",
)
MODEL_METHODS = ("filters", "positions", "distance", "cka")
# Keys that some methods alone read.
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
    out: str | None = Field(default=None, description="folder to write; has to be new or empty")
    overwrite: bool = Field(default=False, description="replace what vitral explain has written there before")
    methods: Annotated[
        tuple[
            Literal[
                "rollout", "gradient_attention", "integrated_gradients", "attention", "similarity", "norms", "lens",
                "groups", "filters", "positions", "distance", "cka",
            ],
            ...,
        ],
        Strict(False),
    ] = Field(
        default=(),
        description="what is drawn; empty: all that fits (distance only with data=, cka with compare=, groups with "
        "reduce=)",
    )  # fmt: skip
    compare: str | None = Field(
        default=None, description="cka: the model to compare layers with, as MODEL; null: the model with itself"
    )
    token: str | None = Field(
        default=None,
        description="whose attention: cls, distill, register:0, a patch as row,column, or mean (of all patches); "
        "null: cls where the head reads it, else mean",
    )
    layers: Annotated[tuple[int, ...], Strict(False)] = Field(
        default=(), description="that are shown, from 0, -1 is the last; empty: up to six, evenly spread"
    )
    heads: Annotated[tuple[int, ...], Strict(False)] = Field(
        default=(), description="whose attention is shown beside their mean; empty: all, up to twelve"
    )
    fuse: Literal["mean", "max"] = Field(default="mean", description="rollout: what becomes of a layer's heads")
    label: str | None = Field(
        default=None, alias="class", description="name or number of the class to explain; null: the predicted one"
    )
    gradients: GradientsConfig = GradientsConfig()
    data: EvalData = EvalData()
    split: Literal["auto", "train", "val", "test"] = Field(
        default="auto", description="of the data; auto: test if there is one, else val, else train"
    )
    images: int = Field(
        default=128, ge=2, description="of the data, evenly spread, for the distance of attention and cka"
    )
    batch_size: int = Field(
        default=16, ge=1, description="images, or steps of integrated gradients, at once; cka: 4 or more"
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


class PruneOptions(Config):
    """Keys of `vitral prune`."""

    data: EvalData = EvalData()
    split: Literal["auto", "train", "val", "test"] = Field(
        default="train", description="images that say what matters; auto: test if there is one, else val, else all"
    )
    images: int | None = Field(default=4096, ge=2, description="so many of them, evenly spaced; null: all")
    flops: float = Field(default=0.7, gt=0, lt=1, description="share of the multiply-accumulates that stays, at most")
    out: str | None = Field(default=None, description="folder of the smaller model")
    overwrite: bool = Field(default=False, description="replace the model in out")
    batch_size: int = Field(default=64, ge=1, description="images at once")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")


class PlanOptions(Config):
    """Keys of `vitral plan MODEL`; `vitral plan RECIPE` takes those of `vitral train`."""

    image_size: Count | Pair | None = Field(
        default=None, description="pixels, one number or height,width; null: the model's own size"
    )
    precision: Literal["float32", "bfloat16", "bfloat16_params"] = Field(
        default="float32", description="that training would have"
    )
    out: str | None = Field(default=None, description="PNG file to write: how work and memory grow")
    overwrite: bool = Field(default=False, description="replace the file if it is there")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> PlanOptions:
        if self.overwrite and self.out is None:
            raise ValueError("overwrite=true has no effect without out=FILE.png")
        return self


class ExportData(EvalData):
    """Which images an export is compared on."""

    path: str | None = Field(default=None, description="your images; `data=X` is short for it; null: built-in ones")

    @property
    def named(self) -> bool:
        """Whether there are any."""
        return self.path is not None or self.source != "auto"


class ShipOptions(ExportOptions):
    """Keys of `vitral export`."""

    data: ExportData = ExportData()
    split: Literal["auto", "train", "val", "test"] = Field(
        default="auto", description="of the data: which images are compared; auto: test if there is one, else val"
    )

    @model_validator(mode="after")
    def _split_of_something(self) -> ShipOptions:
        if not self.data.named:
            if "split" in self.model_fields_set:
                raise ValueError("split has no effect without data=DIR")
            for key in self.data.model_fields_set:
                raise ValueError(f"data.{key} has no effect without data=DIR")
        return self


class PredictOptions(EngineUse):
    """Keys of `vitral predict`."""

    # Wider than what it overrides, which is safe for what nobody can assign to.
    engine: Literal["torch", "onnx", "openvino", "auto", "ray"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="torch",
        description="what computes; others than torch take seconds to start; auto: the fastest that gives equal "
        "logits; ray: torch, in the processes of a Ray cluster",
    )
    topk: int = Field(default=5, ge=1, description="classes an image, the likeliest first")
    max_pixels: Count | None = _MAX_PIXELS
    batch_size: int = Field(default=64, ge=1, description="images at once")
    max_bad: int = Field(default=0, ge=0, description=_MAX_BAD)
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _nothing_ignored(self) -> PredictOptions:
        check_ray(self.engine, self.model_fields_set)
        return self


class DoctorOptions(Config):
    """Keys of `vitral doctor MODEL`."""

    accept: bool = Field(
        default=False,
        description="write digests of the model folder as it is now, after an edit of your own, if all else is right",
    )


class PushOptions(Config):
    """Keys of `vitral push`."""

    private: bool = Field(default=False, description="whether a new repository is seen by its owner alone")
    license: str | None = Field(
        default=None,
        description="by the hub's names: apache-2.0, cc-by-4.0, other, ...; null: as the card says, if it does",
    )
    overwrite: bool = Field(default=False, description="replace the model in a repository that holds files")


class ServeOptions(EngineUse, ServeConfig):
    """Keys of `vitral serve`."""

    engine: Literal["torch", "onnx", "openvino", "auto", "ray"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="torch",
        description="what computes; others than torch take seconds to start; auto: the fastest that gives equal "
        "logits; ray: torch, in the processes of a Ray cluster",
    )
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ServeOptions:
        check_ray(self.engine, self.model_fields_set)
        if self.engine == "ray" and self.port == 0:
            raise ValueError("port=0 is not for engine=ray: name a free port")
        if self.engine == "ray" and "body_seconds" in self.model_fields_set:
            raise ValueError("body_seconds has no effect with engine=ray, which hands over whole requests")
        return self
