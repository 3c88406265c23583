"""A loaded model folder, or an export of one, that takes images of any kind and answers with class names."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitral.data.ahead import in_batches
from vitral.data.decode import Decoding, as_image, colour
from vitral.data.resize import fit_image
from vitral.engines import Engine, Exported, TorchEngine, find_export, open_export, verify_export
from vitral.errors import UserError
from vitral.models.features import KINDS, extract_features
from vitral.models.model import ImageModel
from vitral.models.position import Resize
from vitral.proof import check_here
from vitral.weights.card import model_card
from vitral.weights.find import load_model
from vitral.weights.folder import FolderConfig, Preprocessing, save_folder
from vitral.weights.hub import push


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError("no such device", where="device", got=name, wanted="auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise UserError(
            "this device is not there",
            where="device",
            got=name,
            wanted="auto or cpu",
            hint="`vitral doctor` shows what is.",
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError("this device is not supported", where="device", got=name, wanted="auto, cpu, cuda or cuda:N")
    return device


_READING = Lock()  # of a file or picture that is open already
_PIXELS_AT_ONCE = 2**24  # of full-size images that an export resizes: each float copy of them takes 12 bytes a pixel
Floats = np.ndarray[Any, np.dtype[np.float32]]


class Preparation(NamedTuple):
    """How images become a model's input: what its folder says, and the largest image. It can be pickled."""

    recipe: Preprocessing
    max_pixels: int

    def prepared(self, image: Any) -> Tensor:
        """As `Predictor.preprocess`."""
        return self.fitted(self.decoded(image))

    def decoded(self, image: Any) -> Tensor:
        """The image as large as it is, uint8 [C,H,W] with the model's channels."""
        recipe = self.recipe
        rules = Decoding(colour(recipe.background), self.max_pixels, recipe.value_range, "max_pixels", "value_range")
        if isinstance(image, Image.Image) or hasattr(image, "read"):
            with _READING:  # one thread at a time: the same one may be in a list twice
                return as_image(image, self.recipe.channels, rules=rules)
        return as_image(image, self.recipe.channels, rules=rules)

    def fitted(self, image_CHW: Tensor) -> Tensor:
        """A decoded image at the model's size, float32 [C,H,W] in [0,1]."""
        return fit_image(image_CHW, self.recipe.image_size, self.recipe.fitting)


class Predictor:
    """Predictions of one model folder. Images are preprocessed exactly as in `vitral eval`.

    engine: what computes the logits; None: the model itself. Of an export there is an engine and no model: it predicts
    on the processor, and gives no features. `max_pixels`: larger images are refused; at first what the folder says.
    """

    def __init__(
        self, model: ImageModel | None, config: FolderConfig, device: str = "auto", engine: Engine | None = None
    ) -> None:
        self.device = pick_device("cpu" if model is None and device == "auto" else device)
        if self.device.type != "cpu" and not isinstance(engine, TorchEngine | None):
            raise UserError("exports run on the processor", where="device", got=device, wanted="auto or cpu")
        self._model = None if model is None else model.to(self.device).eval()
        self.engine, self.config, self.classes = engine or TorchEngine(self.model), config, config.classes
        self.task = config.make_task()
        self.max_pixels = config.preprocessing.max_pixels

    @property
    def model(self) -> ImageModel:
        """The network: what is inside and features are its own, whatever engine computes the logits. Raises UserError
        for an export, which is one closed function."""
        if self._model is None:
            hint = "Take the model folder that it was made from."
            raise UserError("an export predicts classes and gives nothing else", where=self.config.name, hint=hint)
        return self._model

    @property
    def is_export(self) -> bool:
        """Whether there is no model."""
        return self._model is None

    def preprocess(self, image: Any) -> Tensor:
        """One image to the model's input, float32 [C,H,W] in [0,1].

        An image is a path, bytes, a PIL image, or an array [H,W] or [H,W,C] of uint8 or of floats in [0,1].
        """
        return self.preparation.prepared(image)

    @property
    def preparation(self) -> Preparation:
        """How images become the model's input, without the model."""
        return Preparation(self.config.preprocessing, self.max_pixels)

    def ready(self, image: Any) -> Tensor:
        """One image as the engine takes it: resized like `preprocess` does, or only decoded, uint8 [C,H,W]."""
        return self.preprocess(image) if self.engine.takes == "resized" else self.preparation.decoded(image)

    def logits(self, images: Sequence[Tensor]) -> Tensor:
        """Logits [images, classes] float32 of decoded images, uint8 [C,H,W] of any sizes, all at once.

        An engine that resizes by itself gets those of one size together, of large ones a few at a time.
        """
        is_fitted = self.engine.takes == "resized"
        return self.logits_of([self.preparation.fitted(image) for image in images] if is_fitted else images)

    @torch.inference_mode()
    def logits_of(self, images: Sequence[Tensor]) -> Tensor:
        """The same of images that are `ready`. Raises UserError where a logit is NaN or infinite."""
        return require_finite(self._logits_of(images), self.config.name)

    def _logits_of(self, images: Sequence[Tensor]) -> Tensor:
        if self.engine.takes == "resized":
            return self.engine.logits(torch.stack(list(images)).to(self.device))
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            alike.setdefault(tuple(image.shape), []).append(place)
        fixed = (self.engine.shipment.batch if isinstance(self.engine, Exported) else None) or 1
        rows: dict[int, Tensor] = {}
        for (_, height, width), places in alike.items():
            step = max(_PIXELS_AT_ONCE // (height * width) // fixed, 1) * fixed
            for start in range(0, len(places), step):
                portion = places[start : start + step]
                batch_BHWC = torch.stack([images[place] for place in portion]).permute(0, 2, 3, 1).contiguous()
                rows |= dict(zip(portion, self.engine.logits(batch_BHWC), strict=True))
        return torch.stack([rows[place] for place in range(len(images))])

    def _probabilities(self, images: Iterable[Any], batch_size: int) -> Iterator[Floats | UserError]:
        """One row after the other, or what is wrong with the image."""
        self.require_answers()
        return _rows(self.ready, lambda ready: self.scores(self.logits_of(ready)).cpu().numpy(), images, batch_size)

    def probabilities(self, images: Iterable[Any], batch_size: int = 64) -> Floats:
        """[images, classes] float32 in [0,1], of the logits over the folder's temperature: softmax, rows sum to 1; or
        sigmoid, each class by itself, where an image may have several. The next `batch_size` images are decoded
        meanwhile."""
        rows = list(_all_or_raise(self._probabilities(images, batch_size)))
        return np.stack(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def scores(self, logits_BC: Tensor) -> Tensor:
        """What outputs [..., S] mean, float32, as `probabilities` gives them."""
        return self.task.scores(logits_BC)

    def predict(self, images: Any, topk: int = 5, batch_size: int = 64) -> list[dict[str, Any]]:
        """The `topk` likeliest classes of each image, best first (all of them where there are fewer); a score is the
        class's probability, which in a multi-label model belongs to the class alone.

        images: one image or a sequence of them, each as for `preprocess`; an array of four axes, [N,H,W,C], or a list
        counts as many. Returns {"image": path or number, "predictions": [{"label", "index", "score"}]} for each.
        """
        return list(self.predictions(images, topk, batch_size))

    def predictions(
        self, images: Any, topk: int = 5, batch_size: int = 64, *, tolerant: bool = False
    ) -> Generator[dict[str, Any]]:
        """As `predict`, one after the other: UserError for an image that cannot be read comes after those before it;
        with `tolerant` it is answered by {"image", "error"} in its place, and the others follow."""
        if topk < 1:
            raise UserError("at least one class is wanted", where="topk", got=topk)
        many = _as_sequence(images)
        rows = self._probabilities(many, batch_size)
        for number, row_C in enumerate(rows if tolerant else _all_or_raise(rows)):
            image = many[number]
            name = str(image) if isinstance(image, str | Path) else number
            if isinstance(row_C, UserError):
                yield {"image": name, "error": str(row_C)}
            else:
                yield {"image": name, **self.task.answer(row_C, topk)}

    @torch.inference_mode()
    def features(self, images_BCHW: Tensor, kind: str = "pooled") -> Floats:
        """What `embed` gives, of images that are the model's input already: [B,C,H,W] in [0,1]."""
        features = extract_features(self.model, images_BCHW.to(self.device), kind).float().cpu()
        return require_finite(features, self.config.name).numpy()

    def embed(self, images: Any, features: str = "pooled", batch_size: int = 64) -> Floats:
        """What the encoder makes of each image, before any head: float32 [images, D], not normalised.

        images: as for `predict`, one or many. features: "pooled" (what the head would read), "cls", "avg" (mean over
        the patches), "cls_avg" [images, 2 D], or "patches" [images, N, D], row by row; `models.features` says more.
        Raises UserError for an image that cannot be read, for no image at all and for a class token that the model
        lacks.
        """
        rows = list(self.embeddings(images, features, batch_size))
        if not rows:
            raise UserError("at least one image is wanted", where="images")
        return np.stack(rows)

    def embeddings(self, images: Any, features: str = "pooled", batch_size: int = 64) -> Generator[Floats]:
        """As `embed`, one after the other: UserError for an image that cannot be read comes after those before it."""
        yield from _all_or_raise(self.attempt_embeddings(images, features, batch_size))

    def attempt_embeddings(
        self, images: Any, features: str = "pooled", batch_size: int = 64
    ) -> Iterator[Floats | UserError]:
        """The same, with the UserError in the place of an image that cannot be read."""
        if features not in KINDS:
            raise UserError("no such features", where="features", got=features, wanted=", ".join(KINDS))
        embed = partial(self.features, kind=features)
        return _rows(self.preprocess, lambda ready: embed(torch.stack(ready)), _as_sequence(images), batch_size)

    def push_to_hub(
        self, repository: str, *, private: bool = False, license: str | None = None, overwrite: bool = False
    ) -> str:
        """Bring this model to the Hugging Face hub as it is in memory, "owner/name", with a card made anew from its
        configuration (`vitral push` takes a folder's own); returns the web address. See `weights.hub.push` for keys
        and errors; an export is refused."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            save_folder(folder, self.model, self.config, model_card(self.config))
            return push(folder, repository, private=private, license=license, overwrite=overwrite)

    def require_answers(self) -> None:
        """Raises UserError for a model that gives features only."""
        self.task.require_answers(self.config.name)


class NotFinite(UserError):
    """A model's outputs are NaN or infinite."""


def require_finite(answers: Tensor, name: str) -> Tensor:
    """Return the outputs of a model of this name. Raises NotFinite where one is NaN or infinite."""
    if not bool(torch.isfinite(answers).all()):
        hint = "Its weights are damaged, or too large for this precision; `vitral doctor MODEL` checks the files."
        raise NotFinite("the outputs of this model are not finite", where=name, got="NaN or infinity", hint=hint)
    return answers


def _rows(
    read: Callable[[Any], Tensor], compute: Callable[[list[Tensor]], Floats], images: Iterable[Any], batch_size: int
) -> Iterator[Floats | UserError]:
    """A row of what is computed for each image, in order; for one that cannot be read the error instead. The next
    `batch_size` images are read by threads meanwhile."""

    def attempt(image: Any) -> Tensor | UserError:
        try:
            return read(image)
        except UserError as error:
            return error

    for batch in in_batches(attempt, images, batch_size):
        ready = [each for each in batch if not isinstance(each, UserError)]
        rows = iter(compute(ready) if ready else ())
        for each in batch:
            yield each if isinstance(each, UserError) else next(rows)


def _all_or_raise(rows: Iterable[Floats | UserError]) -> Iterator[Floats]:
    for row in rows:
        if isinstance(row, UserError):
            raise row
        yield row


def _as_sequence(images: Any) -> Sequence[Any]:
    if isinstance(images, list | tuple):
        return images
    if isinstance(images, Iterator) and not hasattr(images, "read"):  # an open file is one image
        return list(images)
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        return list(images)
    return [images]


def load(
    model: str | Path,
    device: str = "auto",
    image_size: int | tuple[int, int] | None = None,
    position_resize: Resize | None = None,
    *,
    verify: bool = True,
) -> Predictor:
    """The predictor of a bundled name, a model or run folder, an export, foreign weights, or a name on the hub. Raises
    UserError if there is none.

    image_size: pixels, one number or (height, width), to use it at another size than its own. position_resize:
    "bicubic_antialias", "bicubic" or "google", how its positions are then interpolated; else as its folder says.
    verify: compare the files of a model folder or an export with the digests in config.json; `weights.digests` says
    when they are hashed. Pass False for a folder that was edited, or use `vitral doctor FOLDER accept=true` once.
    """
    exported = find_export(str(model))
    if exported is not None:
        for key, value in (("image_size", image_size), ("position_resize", position_resize)):
            if value is not None:
                hint = "vitral export takes image_size."
                raise UserError("an export has the size that it was made for", where=key, got=value, hint=hint)
        if verify:
            verify_export(exported)
        engine = open_export(exported)
        check_here(exported, engine)
        return Predictor(None, engine.shipment.model, device, engine)
    return Predictor(*load_model(str(model), image_size, position_resize, verify=verify), device)
