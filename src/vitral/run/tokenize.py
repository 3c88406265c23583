"""Codes of many images as a file, and images of such a file.

Shape letters: N images, B batch, C channels, H W image height and width, h w rows and columns of codes, T = h w.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitral.archive_limits import open_zip
from vitral.atomic_files import whole_file, whole_folder
from vitral.errors import UserError, taken
from vitral.evaluate.reconstruction import entropy_bits
from vitral.files import open_regular
from vitral.models.image_tokenizer import ImageTokenizer
from vitral.models.registry import image_tokenizer
from vitral.predictor import Predictor, load
from vitral.run.command_options import TokenizeOptions
from vitral.run.inference_inputs import image_batches, open_images
from vitral.training.metrics_log import console_logging, log
from vitral.weights.tensors import checksum

Array = np.ndarray[Any, np.dtype[Any]]
_INT16 = 2**15  # codes that fit


class CodeFile(NamedTuple):
    """Codes int64 [N, h, w] with the names of their images, and what made them: a tokenizer of so many codes."""

    codes_Nhw: Array
    images: list[str]
    codes: int
    tokenizer: str


def encode(
    model: str, paths: Sequence[str] | None, out: Path, options: TokenizeOptions, report: Callable[[str], None]
) -> dict[str, Any]:
    """Write the codes of image files, or with `paths` None of the data, as FILE.npz. Returns the output of `vitral
    tokenize --json`. report: gets a line for each image that cannot be read, and is left out."""
    console_logging()
    predictor, network = _open(model, options.device)
    rows, failed = list[Array](), list[str]()
    names, more = list[str](), dict[str, Any]()

    def encoded(images_BCHW: Tensor) -> None:
        with torch.inference_mode():
            codes_BT = network.codes(images_BCHW.to(network.device)).cpu()
        kind = np.int16 if network.config.codes <= _INT16 else np.int32
        rows.append(codes_BT.unflatten(1, network.grid).numpy().astype(kind))
        log.info("%d images", sum(map(len, rows)))

    if paths is None:
        names, more = _encode_data(model, predictor, options, encoded, report, failed)
    else:
        for images, part in _read(predictor, paths, options.batch_size, report, failed):
            encoded(images)
            names += part
    if not rows:
        raise UserError("no image can be read", where=model)
    codes_Nhw = np.concatenate(rows)
    with whole_file(out) as partial, partial.open("wb") as file:
        np.savez(
            file, allow_pickle=False, codes=codes_Nhw, images=np.array(names), **more,
            code_count=np.array(network.config.codes), tokenizer=np.array(checksum(network.state_dict(), {})),
        )  # fmt: skip
    counts_K = np.bincount(codes_Nhw.flatten(), minlength=network.config.codes)
    return {
        "model": model, "out": str(out), "count": len(codes_Nhw), "failed": len(failed), "grid": list(network.grid),
        "codes": network.config.codes, "codes_used": int((counts_K > 0).sum()),
        "code_perplexity": 2 ** entropy_bits(counts_K),
    }  # fmt: skip


def _encode_data(
    model: str, predictor: Predictor, options: TokenizeOptions, encoded: Callable[[Tensor], None],
    report: Callable[[str], None], failed: list[str],
) -> tuple[list[str], dict[str, Any]]:  # fmt: skip
    dataset, skipped = open_images(predictor.config, options.data, predictor.config, model)
    for text in (text for texts in skipped.values() for text in texts):
        report(text)
        failed.append(text)
    parts = {name: split for name, split in dataset.splits.items() if options.split in ("all", name)}
    if not parts:
        known = ", ".join(("all", *dataset.splits))
        raise UserError("the data have no such split", where="split", got=options.split, expected=known)
    for split in parts.values():
        for images_BCHW, _ in image_batches(predictor, split, options.batch_size):
            encoded(images_BCHW)
    names = [name for split in parts.values() for name in split.names]
    labels = np.concatenate([split.labels_N for split in parts.values()])
    splits = np.array([name for name, split in parts.items() for _ in range(len(split))])
    return names, {"splits": splits, "labels": labels, "classes": np.array(dataset.classes)}


def _read(
    predictor: Predictor, paths: Sequence[str], size: int, report: Callable[[str], None], failed: list[str]
) -> Iterator[tuple[Tensor, list[str]]]:
    """The images of files as the model takes them, in batches, with their names."""
    for start in range(0, len(paths), size):
        images, names = list[Tensor](), list[str]()
        for path in paths[start : start + size]:
            try:
                images.append(predictor.preprocess(path))
                names.append(path)
            except UserError as error:
                report(str(error))
                failed.append(path)
        if images:
            yield torch.stack(images), names


def decode(model: str, source: Path, out: Path, options: TokenizeOptions) -> dict[str, Any]:
    """Write the images of a file of codes as PNGs into the new folder `out`. Returns the output of `vitral tokenize
    --json`. Raises UserError for codes that are not of this tokenizer."""
    console_logging()
    _, network = _open(model, options.device)
    found = read_codes(source)
    _check(found, network, source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise taken(out, overwrite=False)
    digits = max(len(str(len(found.images) - 1)), 4)
    files = [f"image-{number:0{digits}d}.png" for number in range(len(found.images))]
    with whole_folder(out) as folder, torch.inference_mode():
        for start in range(0, len(files), options.batch_size):
            codes_BT = torch.from_numpy(found.codes_Nhw[start : start + options.batch_size]).flatten(1)
            images_BCHW = network.images(codes_BT.to(network.device)).cpu()
            for image_CHW, file in zip(images_BCHW, files[start:], strict=False):
                _write_png(folder / file, image_CHW)
            log.info("%d of %d images", start + len(images_BCHW), len(files))
    images = [{"image": name, "file": file} for name, file in zip(found.images, files, strict=True)]
    return {"model": model, "out": str(out), "count": len(files), "images": images}


def _open(model: str, device: str) -> tuple[Predictor, ImageTokenizer]:
    predictor = load(model, device)
    network = None if predictor.is_export else image_tokenizer(predictor.model)
    if network is None:
        raise UserError(
            "this model is no image tokenizer", where=model, got=predictor.config.name,
            expected="an image tokenizer, as `vitral train digits_vq` makes",
        )  # fmt: skip
    return predictor, network.eval()


def read_codes(path: Path) -> CodeFile:
    """A file that `encode` has written. Raises UserError for anything else."""
    with open_regular(path) as file:
        content = io.BytesIO(file.read())
    try:
        open_zip(content, str(path)).close()
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("codes", "images", "code_count", "tokenizer")}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError("not a file of codes", where=str(path), got=error, hint=_HINT) from None
    codes, names, count, tokenizer = found.values()
    is_right = codes.ndim == 3 and codes.dtype.kind in "iu" and len(codes) and names.shape == codes.shape[:1]
    if not is_right or names.dtype.kind != "U" or count.dtype.kind not in "iu" or count.ndim or tokenizer.ndim:
        shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in found.items())
        raise UserError("not a file of codes", where=str(path), got=shapes, hint=_HINT,
                        expected="codes, integers [N, rows, columns], and N images")  # fmt: skip
    return CodeFile(codes.astype(np.int64), names.tolist(), int(count), str(tokenizer))


_HINT = "vitral tokenize MODEL data=DATA out=FILE.npz writes one."


def _check(found: CodeFile, network: ImageTokenizer, source: Path) -> None:
    mine = network.config
    grid = found.codes_Nhw.shape[1:]
    if grid != network.grid:
        by = " x ".join(map(str, network.grid))
        raise UserError("codes of another grid", where=str(source), got=" x ".join(map(str, grid)), expected=by)
    if found.codes != mine.codes:
        raise UserError("codes of another tokenizer", where=str(source), got=f"{found.codes} codes",
                        expected=f"{mine.codes} codes")  # fmt: skip
    own = checksum(network.state_dict(), {})
    if found.tokenizer != own:
        raise UserError("codes of another tokenizer", where=str(source), got=f"checksum {found.tokenizer[:64]}",
                        expected=own)  # fmt: skip
    least, most = int(found.codes_Nhw.min()), int(found.codes_Nhw.max())
    if least < 0 or most >= mine.codes:
        raise UserError("codes outside the codebook", where=str(source), got=f"{least} to {most}",
                        expected=f"0 to {mine.codes - 1}")  # fmt: skip


def _write_png(path: Path, image_CHW: Tensor) -> None:
    pixels_HWC = (image_CHW * 255).round().byte().permute(1, 2, 0).numpy()
    pixels = np.ascontiguousarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
    Image.fromarray(pixels).save(path)
