"""Predict with a model folder or an export: images of any kind in, class names out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitral.data.channels import Decoding, color
from vitral.data.decode import as_image
from vitral.data.image_spec import ImageSpec
from vitral.data.prefetch import in_batches
from vitral.data.resize import fit_image
from vitral.engines import Engine, Exported, TorchEngine, find_export, open_export, verify_export
from vitral.errors import UserError
from vitral.export_check import check_here
from vitral.models.features import KINDS, extract_features
from vitral.models.model import ImageModel
from vitral.models.position import Resize
from vitral.weights.card import model_card
from vitral.weights.find_model import load_model
from vitral.weights.folder import FolderConfig, save_folder
from vitral.weights.push import push


def require_batch_size(size: int) -> None:
    """Raise UserError for a size that no batch can have."""
    if size < 1:
        raise UserError("a batch needs at least one sample", where="batch_size", got=size, expected="1 or more")


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError("no such device", where="device", got=name, expected="auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        hint = "`vitral doctor` shows what is."
        raise UserError("this device is not there", where="device", got=name, expected="auto or cpu", hint=hint)
    if device.type not in ("cpu", "cuda"):
        raise UserError("this device is not supported", where="device", got=name, expected="auto, cpu, cuda or cuda:N")
    return device


_READING = Lock()  # of a file or picture that is open already
_PIXELS_AT_ONCE = 2**24  # of full-size images that an export resizes: each float copy of them takes 12 bytes per pixel
Floats = np.ndarray[Any, np.dtype[np.float32]]
T = TypeVar("T")


def decode_image(image: Any, spec: ImageSpec) -> Tensor:
    """The image as large as it is, uint8 [C,H,W] with the model's channels."""
    rules = Decoding(color(spec.background), spec.max_pixels, spec.value_range, "max_pixels", "value_range")
    is_open = isinstance(image, Image.Image) or hasattr(image, "read")
    with _READING if is_open else nullcontext():  # one thread at a time: the same one may be in a list twice
        return as_image(image, spec.channels, rules=rules)


class Predictor:
    """Predictions of one model folder. Images are preprocessed exactly as in `vitral eval`.

    engine: what computes the logits; None: the model itself. Of an export there is an engine and no model: it predicts
    on the processor, and gives no features.
    """

    def __init__(
        self, model: ImageModel | None, config: FolderConfig, device: str = "auto", engine: Engine | None = None
    ) -> None:
        self.device = pick_device("cpu" if model is None and device == "auto" else device)
        if self.device.type != "cpu" and not isinstance(engine, TorchEngine | None):
            raise UserError("exports run on the processor", where="device", got=device, expected="auto or cpu")
        self._model = None if model is None else model.to(self.device).eval()
        self.engine, self.config, self.classes = engine or TorchEngine(self.model), config, config.classes
        self.task = config.make_task()

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
        """One image as `forward` takes it: resized to float32 [C,H,W] in [0,1], or uint8 [C,H,W] as large as it is, for
        an export that resizes.

        An image is a path, bytes, a PIL image, or an array [H,W] or [H,W,C] of uint8 or of floats in [0,1].
        """
        return self.prepare(image)[0]

    def prepare(self, image: Any) -> tuple[Tensor, tuple[int, int]]:
        """The image as `preprocess` gives it, and its own (height, width), upright, as `postprocess` takes it."""
        spec = self.config.preprocessing
        decoded_CHW = decode_image(image, spec)
        size = decoded_CHW.shape[1], decoded_CHW.shape[2]
        resizes = self.engine.takes == "resized"
        return (fit_image(decoded_CHW, spec.image_size, spec) if resizes else decoded_CHW), size

    @torch.inference_mode()
    def forward(self, images: Sequence[Tensor] | Tensor, features: str | None = None) -> Tensor:
        """Compute the outputs of preprocessed images at once: logits [N, classes] float32 by the engine, or features
        of this kind by the model (see `embed`). Raises UserError where one is NaN or infinite.

        An engine that resizes gets images of one size together, large ones a few at a time.
        """
        compute = self.engine.logits if features is None else partial(extract_features, self.model, kind=features)
        if features is None and self.engine.takes == "pixels":
            outputs = self._pixel_logits(images)
        else:
            images_BCHW = images if isinstance(images, Tensor) else torch.stack(list(images))
            outputs = compute(images_BCHW.to(self.device)).float()
        return require_finite(outputs, self.config.name)

    def _pixel_logits(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            alike.setdefault(tuple(image.shape), []).append(place)
        fixed = (self.engine.metadata.batch if isinstance(self.engine, Exported) else None) or 1
        rows: dict[int, Tensor] = {}
        for (_, height, width), places in alike.items():
            step = max(_PIXELS_AT_ONCE // (height * width) // fixed, 1) * fixed
            for start in range(0, len(places), step):
                portion = places[start : start + step]
                batch_BHWC = torch.stack([images[place] for place in portion]).permute(0, 2, 3, 1).contiguous()
                rows |= dict(zip(portion, self.engine.logits(batch_BHWC), strict=True))
        return torch.stack([rows[place] for place in range(len(images))])

    def _outputs(
        self, images: Iterable[Any], batch_size: int, features: str | None = None
    ) -> Iterator[Output | UserError]:
        """Yield the output of each image in order, or the error of one that cannot be read. Threads decode the next
        `batch_size` images at the same time."""
        require_batch_size(batch_size)

        def attempt(image: Any) -> tuple[Tensor, tuple[int, int]] | UserError:
            try:
                return self.prepare(image)
            except UserError as error:
                return error

        for batch in in_batches(attempt, images, batch_size):
            readable = [each[0] for each in batch if not isinstance(each, UserError)]
            rows = iter(self.forward(readable, features).cpu() if readable else ())
            for each in batch:
                yield each if isinstance(each, UserError) else Output(next(rows), each[1])

    def probabilities(self, images: Iterable[Any], batch_size: int = 64) -> Floats:
        """The `scores` of images of any kind, [images, classes]. The next `batch_size` images are decoded at the same
        time."""
        self.require_answers()
        rows = [_or_raise(found).row for found in self._outputs(images, batch_size)]
        return self.scores(torch.stack(rows) if rows else torch.zeros(0, len(self.classes))).numpy()

    def scores(self, outputs_NS: Tensor) -> Tensor:
        """What outputs [..., S] mean to the task, float32: probabilities, or numbers in units."""
        return self.task.scores(outputs_NS)

    @torch.inference_mode()
    def postprocess(
        self, outputs_NS: Tensor, topk: int = 5, sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Any]]:
        """The task's answer for each image, as JSON beside its name; of classes the `topk` likeliest, best first.

        sizes: (height, width) of the images as `prepare` gives them, for boxes in their pixels; None: in those of the
        model's image."""
        require_finite(outputs_NS, self.config.name)
        return self.answers(self.task.compact(outputs_NS), topk, sizes)

    def answers(
        self, compact: Tensor, topk: int, sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Any]]:  # fmt: skip
        """`postprocess` of what `task.compact` leaves of the outputs."""
        return self.task.answers(compact, topk, sizes, self.config.preprocessing)

    @overload
    def predict(
        self, images: Any, topk: int | None = None, batch_size: int = 64, *, stream: Literal[False] = False
    ) -> list[dict[str, Any]]: ...
    @overload
    def predict(
        self,
        images: Any,
        topk: int | None = None,
        batch_size: int = 64,
        *,
        stream: Literal[True],
        tolerant: bool = False,
    ) -> Iterator[dict[str, Any]]: ...
    def predict(
        self, images: Any, topk: int | None = None, batch_size: int = 64, *, stream: bool = False,
        tolerant: bool = False,
    ) -> list[dict[str, Any]] | Iterator[dict[str, Any]]:  # fmt: skip
        """The `topk` likeliest classes of each image, best first (all of them where there are fewer); a score is the
        class's probability, which in a multi-label model belongs to the class alone. A detector, which answers with all
        boxes above its threshold, refuses `topk`; for others None is 5.

        images: one image or a sequence of them, each as for `preprocess`; an array of four axes, [N,H,W,C], or a list
        counts as many. Returns {"image": path or number, "predictions": [{"label", "index", "score"}]} for each.
        stream: yield one after the other: UserError for an image that cannot be read comes after those before it;
        with `tolerant` it is answered by {"image", "error"} in its place, and the others follow.
        """
        if topk is not None:
            self.task.refuse_topk(topk)
        rows = self._predictions(_as_sequence(images), 5 if topk is None else topk, batch_size, tolerant)
        return rows if stream else list(rows)

    def _predictions(
        self, images: Sequence[Any], topk: int, batch_size: int, tolerant: bool
    ) -> Iterator[dict[str, Any]]:
        if topk < 1:
            raise UserError("at least one class is expected", where="topk", got=topk)
        self.require_answers()
        for number, (image, each) in enumerate(zip(images, self._outputs(images, batch_size), strict=True)):
            name = str(image) if isinstance(image, str | Path) else number
            if tolerant and isinstance(each, UserError):
                yield {"image": name, "error": str(each)}
            else:
                found = _or_raise(each)
                yield {"image": name, **self.postprocess(found.row[None], topk, [found.size])[0]}

    @overload
    def embed(
        self, images: Any, features: str = "pooled", batch_size: int = 64, *, stream: Literal[False] = False
    ) -> Floats: ...
    @overload
    def embed(
        self, images: Any, features: str = "pooled", batch_size: int = 64, *, stream: Literal[True]
    ) -> Iterator[Floats | UserError]: ...
    def embed(
        self, images: Any, features: str = "pooled", batch_size: int = 64, *, stream: bool = False
    ) -> Floats | Iterator[Floats | UserError]:
        """What the encoder makes of each image, before any head: float32 [images, D], not normalized.

        images: as for `predict`, one or many. features: "pooled" (what the head would read), "cls", "avg" (mean over
        the patches), "cls_avg" [images, 2 D], or "patches" [images, N, D], row by row; `models.features` says more.
        stream: yield one after the other, with the UserError in the place of an image that cannot be read.
        Raises UserError for an image that cannot be read, for no image at all and for a class token that the model
        lacks.
        """
        if features not in KINDS:
            raise UserError("no such features", where="features", got=features, expected=", ".join(KINDS))
        outputs = self._outputs(_as_sequence(images), batch_size, features)
        rows = (each if isinstance(each, UserError) else each.row.numpy() for each in outputs)
        if stream:
            return rows
        if not (found := [_or_raise(row) for row in rows]):
            raise UserError("at least one image is expected", where="images")
        return np.stack(found)

    def push_to_hub(
        self, repository: str, *, private: bool = False, license: str | None = None, overwrite: bool = False
    ) -> str:
        """Bring this model to the Hugging Face hub as it is in memory, "owner/name", with a new card made from its
        configuration (`vitral push` takes a folder's own); returns the web address. See `weights.push.push` for keys
        and errors; an export is refused."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            save_folder(folder, self.model, self.config, model_card(self.config))
            return push(folder, repository, private=private, license=license, overwrite=overwrite)

    def require_answers(self) -> None:
        """Raises UserError for a model that gives features only."""
        self.task.require_answers(self.config.name)


class Output(NamedTuple):
    """What a model gives of an image, and the image's own (height, width)."""

    row: Tensor
    size: tuple[int, int]


class NotFinite(UserError):
    """A model's outputs are NaN or infinite."""


def require_finite(answers: Tensor, name: str) -> Tensor:
    """Return the outputs of a model of this name. Raises NotFinite where one is NaN or infinite."""
    if not bool(torch.isfinite(answers).all()):
        hint = "Its weights are damaged, or too large for this precision; `vitral doctor MODEL` checks the files."
        raise NotFinite("the outputs of this model are not finite", where=name, got="NaN or infinity", hint=hint)
    return answers


def _or_raise(row: T | UserError) -> T:
    if isinstance(row, UserError):
        raise row
    return row


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
        return Predictor(None, engine.metadata.model, device, engine)
    return Predictor(*load_model(str(model), image_size, position_resize, verify=verify), device)
