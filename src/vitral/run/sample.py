"""Draw images from a model of the codes of images, and show the nearest train images beside them.

Shape letters: N samples, C channels, H W height and width, T codes of an image, X values of an image, K neighbors.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitral.data.dataset import spaced
from vitral.errors import UserError, nearest
from vitral.models.igpt import IGPT
from vitral.models.masked_sampling import MaskedSteps, draw_codes
from vitral.models.registry import code_model
from vitral.models.search_config import SearchConfig
from vitral.predictor import Predictor, load
from vitral.report.sections import Facts, Figure, Note, Part, Picture, Section, Table
from vitral.run.command_options import SampleOptions
from vitral.run.inference_inputs import image_batches, open_images
from vitral.run.page_folder import page_folder
from vitral.training.metrics_log import console_logging, log

PAGE, RECORD = "sample.html", "sample.json"
_NEIGHBORS = 3
_CELL = 96  # pixels of a sample's longer side in the picture of all, about
_REFERENCE = 500  # images that the model has not learned from, whose distances are compared


def sample(model: str, options: SampleOptions) -> dict[str, Any]:
    """Write pictures and a page to `options.out`. Returns the output of `vitral sample --json`: `model`, `page`,
    `files`, and `samples`: `file` and, with data, `nearest` and `distance`; `bits_per_token` of each and their mean,
    where the model gives the probability of an image; `train`: comparison with the train images.

    Raises UserError for a model that cannot, an unknown class, an image that cannot be read, and a folder that another
    program wrote.
    """
    console_logging()
    if options.out is None:
        raise UserError("no folder for the samples given", where="out", hint="out=DIR")
    folder = page_folder(options.out, overwrite=options.overwrite, page=PAGE, record=RECORD, command="vitral sample")
    predictor = load(model, options.device)
    network = _require_sampler(predictor, model, options)
    label, given_T = _label(predictor, network, options), None
    if options.complete is not None:
        image_CHW = predictor.preprocess(options.complete).to(predictor.device)
        given_T = network.codes(image_CHW[None])[0, : network.config.upper_half]
    # Before images are drawn, which takes longer: the data may be wrong.
    near = _Neighbors(predictor, network, options, model) if options.data.named else None
    codes_NT = _draw(network, options, label, given_T)
    images_NCHW = network.images(codes_NT).cpu()
    names = [f"sample-{number:04d}.png" for number in range(len(codes_NT))]
    samples: list[dict[str, Any]] = [{"file": name} for name in names]
    found: dict[str, Any] = {
        "model": model, "page": str(folder.path / PAGE), "files": [PAGE, RECORD, "samples.png", *names],
        "samples": samples,
    }  # fmt: skip
    if network.config.causal:
        bits_N = torch.cat([_bits(network, part_BT, label) for part_BT in codes_NT.split(options.batch_size)])
        found["bits_per_token"] = float(bits_N.mean())
        for row, bits in zip(samples, bits_N.tolist(), strict=True):
            row["bits_per_token"] = round(bits, 4)
    if near is not None:
        found["train"] = near.describe(codes_NT, samples)
    figures = [
        Figure(_png(_picture(image_CHW)), name, name=name) for image_CHW, name in zip(images_NCHW, names, strict=True)
    ]
    grid = Figure(_png(_grid(images_NCHW)), "all samples", "All samples, row by row", name="samples.png")
    folder.write(f"Samples of {model}", _sections(grid, images_NCHW, found, near), [grid, *figures], found)
    return found


def _require_sampler(predictor: Predictor, model: str, options: SampleOptions) -> IGPT:
    network = None if predictor.is_export else code_model(predictor.model)
    if network is None or not network.config.draws:
        raise UserError(
            "this model cannot draw images", where=model, got=predictor.config.name,
            expected="an Image GPT that predicts each pixel from those before it, or with model.mask_ratio=cosine, as "
            "the recipes digits_igpt and digits_maskgit make",
        )  # fmt: skip
    useless = sorted({"steps", "choice_temperature"} & options.model_fields_set)
    if network.config.causal and useless:
        raise UserError("has no effect: this model draws pixel by pixel", where=useless[0], got=model)
    return network.eval()


def _label(predictor: Predictor, network: IGPT, options: SampleOptions) -> int:
    """The class to draw; -1: any."""
    if options.label is None:
        return -1
    classes = list(predictor.task.state.get("classes", ()))[: network.config.class_tokens]
    if not network.config.class_tokens:
        hint = "Train one with model.class_tokens=N, the number of classes."
        raise UserError("this model has learned no classes", where="class", got=options.label, hint=hint)
    if options.label in classes:
        return classes.index(options.label)
    if options.label.isdecimal() and int(options.label) < network.config.class_tokens:
        return int(options.label)
    raise UserError("unknown class", where="class", got=options.label, expected=", ".join(classes[:20]),
                    nearest=nearest(options.label, classes))  # fmt: skip


def _draw(network: IGPT, options: SampleOptions, label: int, given_T: Tensor | None) -> Tensor:
    """Codes of all samples, [N, T]."""
    config = SearchConfig(
        search="sample", temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, seed=options.seed
    )
    masked = None if network.config.causal else MaskedSteps(options.steps, options.choice_temperature)
    rows = list[Tensor]()
    for start in range(0, options.n, options.batch_size):
        numbers = range(start, min(start + options.batch_size, options.n))
        labels_B = torch.full((len(numbers),), label, device=network.device)
        given_BT = None if given_T is None else given_T.expand(len(numbers), -1)
        rows.append(draw_codes(network, labels_B, config, numbers, given_BT, masked))
        log.info("%d of %d samples", numbers.stop, options.n)
    return torch.cat(rows)


@torch.inference_mode()
def _bits(network: IGPT, codes_NT: Tensor, label: int) -> Tensor:
    """Bits per token of each image given its class, [N]."""
    labels_N = torch.full((len(codes_NT),), label, device=codes_NT.device)
    return network.nll(network.read(codes_NT, labels_N).patches_BND, codes_NT).mean(1) / math.log(2)


class _Neighbors:
    """The train images as their codes show them, and the nearest ones of samples: Euclidean distance of all values in
    [0,1]."""

    def __init__(self, predictor: Predictor, network: IGPT, options: SampleOptions, model: str) -> None:
        self._network, self._predictor, self._batch_size = network, predictor, options.batch_size
        dataset, _ = open_images(predictor.config, options.data, predictor.config, model)
        if "train" not in dataset.splits:
            raise UserError("the data have no train images", where="data", got=dataset.name)
        self.names = dataset.splits["train"].names
        self._dataset = dataset
        self.codes_MT = self._codes("train")
        self.places_NK = torch.zeros(0, _NEIGHBORS, dtype=torch.int64)

    def describe(self, codes_NT: Tensor, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Add `nearest` and `distance` to each sample; return the comparison as JSON."""
        distances_NK, self.places_NK = self._nearest(codes_NT.cpu())
        for row, place, distance in zip(
            samples, self.places_NK[:, 0].tolist(), distances_NK[:, 0].tolist(), strict=True
        ):
            row |= {"nearest": self.names[place], "distance": round(distance, 4)}
        copies = (codes_NT.cpu() == self.codes_MT[self.places_NK[:, 0]]).all(1)
        found = {
            "count": len(self.codes_MT), "distance": float(distances_NK[:, 0].mean()), "copies": int(copies.sum())
        }  # fmt: skip
        held = next((name for name in ("test", "val") if name in self._dataset.splits), None)
        if held is not None:
            reference_NK, _ = self._nearest(self._codes(held, _REFERENCE))
            found |= {"split": held, "reference": float(reference_NK[:, 0].mean())}
        return found

    def picture(self, place: int) -> Picture:
        """A train image as its codes show it."""
        codes_1T = self.codes_MT[place][None].to(self._network.device)
        return Picture(_picture(self._network.images(codes_1T)[0].cpu()), self.names[place])

    @torch.inference_mode()
    def _codes(self, split: str, most: int | None = None) -> Tensor:
        part = self._dataset.splits[split]
        part = part if most is None else part.subset(spaced(len(part), most))
        batches = image_batches(self._predictor, part, self._batch_size)
        return torch.cat([self._network.codes(images_BCHW).cpu() for images_BCHW, _ in batches])

    @torch.inference_mode()
    def _values(self, codes_NT: Tensor) -> Tensor:
        """The pixels of these codes, [N, X]."""
        return self._network.images(codes_NT.to(self._network.device)).flatten(1).cpu()

    def _nearest(self, codes_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and places of the nearest train images, [N, K]."""
        own_NX = self._values(codes_NT)
        parts = [
            torch.cdist(own_NX, self._values(part_BT), compute_mode="donot_use_mm_for_euclid_dist")
            for part_BT in self.codes_MT.split(1024)
        ]
        found = torch.cat(parts, dim=1).topk(min(_NEIGHBORS, len(self.codes_MT)), largest=False)
        return found.values, found.indices


def _sections(grid: Figure, images_NCHW: Tensor, found: dict[str, Any], near: _Neighbors | None) -> list[Section]:
    facts, has_bits = list[tuple[str, Any]](), "bits_per_token" in found
    if has_bits:
        facts.append(("bits per token of the samples", round(found["bits_per_token"], 3)))
    notes: list[Part] = []
    if near is None:
        notes.append(Note("Not compared with train images: data=DATA does it."))
    else:
        train = found["train"]
        facts.append(("mean distance to the nearest train image", round(train["distance"], 3)))
        if "reference" in train:
            facts.append((f"the same of {train['split']} images", round(train["reference"], 3)))
        facts.append(("exact copies of a train image", train["copies"]))
        notes.append(Note("Samples much nearer to train images than images that the model never saw are copies."))
    columns = ["Sample", "", *(["Bits per token"] if has_bits else [])]
    rows: list[list[Any]] = []
    for number, (image_CHW, row) in enumerate(zip(images_NCHW, found["samples"], strict=True)):
        cells: list[Any] = [row["file"], Picture(_picture(image_CHW), row["file"])]
        cells += [row["bits_per_token"]] if has_bits else []
        if near is not None:
            places = near.places_NK[number].tolist()
            cells += [row["distance"], *(near.picture(place) for place in places)]
        rows.append(cells)
    if near is not None:
        columns += ["Distance", "Nearest train image", *[""] * (near.places_NK.shape[1] - 1)]
    return [
        Section("", [*([Facts(facts)] if facts else []), *notes, grid]),
        Section("Each sample", [Table(columns, rows)]),
    ]


def _picture(image_CHW: Tensor) -> np.ndarray[Any, Any]:
    """The image as bytes [H, W] or [H, W, 3]; alpha is left out."""
    pixels_HWC = (image_CHW * 255).round().byte().permute(1, 2, 0).numpy()
    return pixels_HWC[..., 0] if pixels_HWC.shape[2] < 3 else pixels_HWC[..., :3]


def _grid(images_NCHW: Tensor) -> np.ndarray[Any, Any]:
    """All images in one, enlarged, row by row, with black lines between."""
    count, height, width = len(images_NCHW), *images_NCHW.shape[2:]
    columns = math.ceil(count**0.5)
    scale = max(1, _CELL // max(height, width))
    step_y, step_x = height * scale + 2, width * scale + 2
    cells = [_picture(image_CHW).repeat(scale, 0).repeat(scale, 1) for image_CHW in images_NCHW]
    sheet = np.zeros((-(-count // columns) * step_y, columns * step_x, *cells[0].shape[2:]), np.uint8)
    for number, cell in enumerate(cells):
        top, left = number // columns * step_y, number % columns * step_x
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="png")
    return buffer.getvalue()
