"""A ViT as a scikit-learn classifier: arrays of images in, predictions out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from vitral.data.dataset import Dataset, fingerprint, memory_split
from vitral.data.splits import with_validation
from vitral.errors import UserError
from vitral.predictor import Predictor, load
from vitral.run.check import check_given
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.training.metrics_log import console_logging, console_silence

Array = np.ndarray[Any, Any]


class VitralClassifier(ClassifierMixin, BaseEstimator):
    """fit / predict / predict_proba / score on arrays of images: the recipe `small`, the loop of `vitral train`.

    X: [n, height, width] or [n, height, width, channels], uint8 or floats; or [n, features], which `image_shape`
    (height, width[, channels]) says how to fold: without it a square number of features is a square image, any
    other one row. Floats are taken from the range [0,1], or from that of the training images where those leave it,
    and kept to 8 bits a channel, as image files do; a model of uint8 images takes floats in [0,1] only. Images are
    not mirrored unless `overrides` says so. A tenth of the images (`val_fraction`) chooses the best step.

    epochs (None: the recipe's 1,500 steps), batch_size, lr, random_state: as train.epochs, train.batch_size, optim.lr
    and seed. overrides: any other key of `vitral train`, dotted (`out` keeps the run folder). verbose: show the run's
    log. Images are checked first; what would refuse a run (the same image with two labels) is a Python warning here.
    Raises UserError (a ValueError) for input that is none of this.
    """

    def __init__(
        self,
        *,
        epochs: float | None = None,
        batch_size: int = 32,
        lr: float = 1e-3,
        image_shape: tuple[int, ...] | None = None,
        val_fraction: float = 0.1,
        random_state: int | np.random.RandomState | None = 0,
        overrides: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.image_shape = image_shape
        self.val_fraction = val_fraction
        self.random_state = random_state
        self.overrides = overrides
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> VitralClassifier:
        """Train on images X and labels y (numbers or names, two classes or more)."""
        checked: Any = validate_data(self, X, y, allow_nd=True)
        pixels, y = checked
        check_classification_targets(y)
        self.classes_, labels_N = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError("at least two classes are expected", got=f"1 class: {self.classes_[0]}")
        self.range_ = _value_range(pixels)
        images_NCHW = self._images(pixels)
        config = load_config("small", self._keys(images_NCHW))
        names = [f"X[{index}]" for index in range(len(labels_N))]
        split = memory_split(images_NCHW, labels_N.astype(np.int64), names, images_NCHW.shape[1])
        whole = Dataset(
            name="X", classes=tuple(map(str, self.classes_)), splits={"train": split},
            channels=images_NCHW.shape[1], notes=(), fingerprint=fingerprint([images_NCHW.data, split.labels_N.data]),
        )  # fmt: skip
        if self.verbose:
            console_logging()
        logs = nullcontext() if self.verbose else console_silence()
        with logs, tempfile.TemporaryDirectory() as folder:
            out = config.out or str(Path(folder) / "run")
            check_given(whole, config)
            self.summary_ = run(config.model_copy(update={"out": out}), with_validation(whole, self.val_fraction))
            self.predictor_: Predictor = load(Path(out) / "model")
        return self

    def predict_proba(self, X: Any) -> Array:
        """Return probabilities [n, classes], float32, in the order of `classes_`; rows sum to 1."""
        check_is_fitted(self, "predictor_")
        pixels: Any = validate_data(self, X, allow_nd=True, reset=False)
        return self.predictor_.probabilities([image.transpose(1, 2, 0) for image in self._images(pixels)])

    def predict(self, X: Any) -> Array:
        """Return the most probable class of each image."""
        check_is_fitted(self, "predictor_")
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _keys(self, images_NCHW: Array) -> dict[str, Any]:
        """Return overrides of the recipe: no flips; under 8 pixels also patch_size 1 and no geometric augmentation."""
        keys: dict[str, Any] = {
            "recipe": "VitralClassifier", "report": False, "seed": self._seed(), "optim.lr": self.lr,
            "train.batch_size": self.batch_size, "data.val_fraction": self.val_fraction, "augment.flip": 0.0,
        }  # fmt: skip
        keys |= {} if self.epochs is None else {"train.epochs": self.epochs}
        keys = {key: value.item() if isinstance(value, np.generic) else value for key, value in keys.items()}
        foreign = {"data", "data.path", "data.source", "data.validation", "resume"} & set(self.overrides or {})
        if foreign:
            raise UserError(
                "fit takes its images as arrays and always starts a new run", where="overrides", got=", ".join(foreign)
            )
        height, width = images_NCHW.shape[-2:]
        if min(height, width) < 8:
            keys |= {"data.image_size": (height, width), "model.patch_size": 1}
            keys |= {"augment.rotate": 0.0, "augment.scale": 0.0, "augment.translate": 0.0}
        return keys | dict(self.overrides or {})

    def _seed(self) -> Any:
        """Return an int as it is; draw a seed for None and a RandomState, as scikit-learn does."""
        if self.random_state is None or isinstance(self.random_state, np.random.RandomState):
            return int(check_random_state(self.random_state).randint(2**31))
        return self.random_state

    def _images(self, pixels: Array) -> Array:
        """uint8 [n, channels, height, width]."""
        if pixels.ndim == 2:
            pixels = pixels.reshape(len(pixels), *self._shape(pixels.shape[1]))
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        if pixels.ndim != 4 or not 1 <= pixels.shape[-1] <= 4:
            expected = "[n, height, width], [n, height, width, 1 to 4 channels] or [n, features]"
            raise UserError("not an array of images", where="X", got=list(pixels.shape), expected=expected)
        return np.ascontiguousarray(self._bytes(pixels).transpose(0, 3, 1, 2))

    def _bytes(self, pixels: Array) -> Array:
        if pixels.dtype == np.uint8 and self.range_ in (None, (0.0, 1.0)):
            return pixels
        if self.range_ is None and _value_range(pixels) != (0.0, 1.0):
            got = f"{pixels.dtype} from {pixels.min()} to {pixels.max()}"
            raise UserError("the training images were uint8", where="X", got=got, expected="uint8, or floats in [0,1]")
        low, high = self.range_ or (0.0, 1.0)
        return np.round(np.clip((pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8)

    def _shape(self, features: int) -> tuple[int, ...]:
        if self.image_shape is None:
            side = math.isqrt(features)
            return (side, side) if side * side == features else (1, features)
        if math.prod(self.image_shape) != features:
            raise UserError(
                "image_shape doesn't fit the features",
                where="image_shape",
                got=self.image_shape,
                expected=f"a product of {features}",
            )
        return tuple(self.image_shape)


def _value_range(pixels: Array) -> tuple[float, float] | None:
    """Return the values of black and white: 0 and 1, or the extremes of images outside [0, 1]; None for uint8."""
    if pixels.dtype == np.uint8:
        return None
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1
