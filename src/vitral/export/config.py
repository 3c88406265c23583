"""Keys of `vitral export`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vitral.config import Config, Count, Pair

FOLDERS = ("hf", "timm")
# Keys that folders of other libraries, which hold float32 weights and no graph, do not read.
_OF_GRAPHS = (
    "takes", "batch", "nms", "precision", "quantize", "images", "max_difference", "min_agreement", "data", "split",
)  # fmt: skip


class ExportOptions(Config):
    """Format, precision and limits of an export."""

    format: Literal["hf", "timm", "onnx", "pt2", "openvino"] = Field(
        description="hf, timm: a folder for transformers or timm; onnx, pt2, openvino: the whole function as a graph"
    )
    out: str = Field(description="folder to write")
    overwrite: bool = Field(default=False, description="replace an existing export in out")
    image_size: Count | Pair | None = Field(
        default=None, description="input size in pixels: one number or height,width; null: the model's size"
    )
    takes: Literal["pixels", "resized"] = Field(
        default="pixels",
        description="input of the graph; pixels: uint8 [batch, height, width, channels] of any size; resized: float32 "
        "[batch, channels, height, width] in [0,1], at the model's size",
    )
    batch: Count | None = Field(
        default=None,
        description="fixed batch size of the graph; null: any; with takes=resized all shapes are then static, as some "
        "accelerators require",
    )
    nms: bool = Field(
        default=False,
        description="detectors, with format=onnx or openvino: end the graph with non-maximum suppression, so that it "
        "gives detections instead of all boxes",
    )
    precision: Literal["float32", "bfloat16", "int8"] = Field(default="float32", description="precision of computation")
    quantize: Literal["dynamic", "static"] | None = Field(
        default=None,
        description="int8: scales of the activations; dynamic: computed per batch; static: calibrated once on 64 "
        "images; null: dynamic for onnx, static for openvino",
    )
    images: int = Field(
        default=32, ge=1, description="number of images in the comparison with the model; from data, or built-in ones"
    )
    max_difference: float | None = Field(
        default=None,
        gt=0,
        description="largest allowed difference of a logit, else exit code 3; null: with float32 0.001, or 0.0001 of "
        "the largest logit if that is more; otherwise no limit",
    )
    min_agreement: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="smallest allowed top-1 agreement, as a share, or mean cosine similarity of features for a model "
        "without a head, else exit code 3; null: float32 1, bfloat16 and int8 0.95; for features 0.9999, "
        "0.99, 0.95",
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ExportOptions:
        if self.format in FOLDERS:
            for key in _OF_GRAPHS:
                if key in self.model_fields_set:
                    raise ValueError(f"{key} has no effect with format={self.format}")
        if self.quantize and self.precision != "int8":
            raise ValueError("quantize has no effect without precision=int8")
        if (self.format, self.precision) == ("onnx", "bfloat16"):
            raise ValueError("ONNX Runtime has no bfloat16 matrix products on CPUs: use format=openvino or format=pt2")
        if self.format == "pt2" and self.nms:
            raise ValueError("torch has no operator of non-maximum suppression: use format=onnx or format=openvino")
        if (self.format, self.precision) == ("pt2", "int8"):
            raise ValueError("precision=int8 needs format=onnx or format=openvino")
        if self.format == "openvino" and self.quantize == "dynamic":
            raise ValueError("OpenVINO computes dynamic int8 in float32: use quantize=static")
        return self
