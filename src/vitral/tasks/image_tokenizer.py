"""Image tokenizers: images to codes and back, evaluated by reconstruction and by the use of the codes.

Shape letters: N images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from vitral.data.dataset import Dataset, Split
from vitral.errors import UserError
from vitral.evaluate.config import ReconstructionConfig
from vitral.evaluate.metric import Metric
from vitral.report.image_tokenizer import use_sections, warning_note, worse_than_kmeans
from vitral.report.sections import Section
from vitral.tasks.task import Array, Evaluation, Evaluator, Found, Samples, Subject, Task

if TYPE_CHECKING:
    from vitral.models.config import ModelConfig

_NORMAL = 1.959963984540054  # standard deviations of a 95 % interval

PSNR = Metric("psnr", "PSNR", None, format="number", unit="dB")
SSIM = Metric("ssim", "SSIM", None, format="number")
MAE = Metric("mae", "mean absolute error, of [0,1]", None, higher_is_better=False, format="number")
BASELINE = Metric("kmeans_psnr", "PSNR of k-means of patches, as many codes", None, format="number", unit="dB")
USED = Metric("codes_used", "codes used", None)
PERPLEXITY = Metric("code_perplexity", "perplexity of the codes", None, format="number")
RATE = Metric("bits_per_image", "bits per image, all codes of equal length", None, higher_is_better=False,
              format="number")  # fmt: skip
ENTROPY = Metric("entropy_bits_per_image", "bits per image by the codes' frequencies", None, higher_is_better=False,
                 format="number")  # fmt: skip
PIXEL_RATE = Metric("bits_per_pixel", "bits per pixel", None, higher_is_better=False, format="number")
ENTROPY_PIXEL_RATE = Metric("entropy_bits_per_pixel", "bits per pixel by the codes' frequencies", None,
                            higher_is_better=False, format="number")  # fmt: skip


def reconstruction(task: Task, subject: Subject, config: ReconstructionConfig) -> Iterator[Found]:
    """Quality of reconstructions, the mean over images, and use of the codes over the whole split."""
    from vitral.evaluate.reconstruction import bits_per_image, kmeans_tokenizer, reconstruct
    from vitral.models.fit_codes import count_images
    from vitral.models.registry import image_tokenizer

    model = image_tokenizer(subject.model)
    assert model is not None
    found, c = reconstruct(model, subject.batches(subject.split, None)), model.config
    for metric, values_N in ((PSNR, found.psnr_N), (SSIM, found.ssim_N), (MAE, found.mae_N)):
        mean, half = float(values_N.mean()), _NORMAL * float(values_N.std()) / math.sqrt(len(values_N))
        yield replace(metric, value=mean, interval=(mean - half, mean + half))
    bits, entropy, pixels = bits_per_image(c.codes, c.tokens), found.entropy * c.tokens, math.prod(c.image_size)
    for metric, value in (
        (USED, found.used), (PERPLEXITY, 2**found.entropy), (RATE, bits), (ENTROPY, entropy),
        (PIXEL_RATE, bits / pixels), (ENTROPY_PIXEL_RATE, entropy / pixels),
    ):  # fmt: skip
        yield replace(metric, value=value)
    if config.baseline and not subject.in_training and not c.reads_raw_images:
        made = kmeans_tokenizer(model, (images for images, _ in subject.batches("train", count_images(c))))
        if made is not None:
            baseline_N = reconstruct(made, subject.batches(subject.split, None)).psnr_N
            yield replace(BASELINE, value=float(baseline_N.mean()))
    yield "code_counts", found.counts_K.tolist()
    yield "count", len(found.psnr_N)


@dataclass(frozen=True)
class ImageTokenization(Task):
    """One code for each patch of an image."""

    name: ClassVar[str] = "image_tokenizer"
    metrics: ClassVar[tuple[Metric, ...]] = (
        PSNR, BASELINE, SSIM, MAE, USED, PERPLEXITY, RATE, ENTROPY, PIXEL_RATE, ENTROPY_PIXEL_RATE
    )  # fmt: skip
    evaluators: ClassVar[dict[str, Evaluator]] = {"reconstruction": reconstruction}
    headline: ClassVar[tuple[str, ...]] = (
        "psnr", "psnr_interval", "kmeans_psnr", "ssim", "mae", "codes_used", "code_perplexity", "bits_per_image",
        "entropy_bits_per_image", "count",
    )  # fmt: skip
    tables: ClassVar[tuple[str, ...]] = ("code_counts",)
    has_head: ClassVar[bool] = False
    export_names: ClassVar[tuple[str, ...]] = ("features",)
    limits: ClassVar[str] = (
        "Codes lose detail. PSNR measures pixels and not what people or other models see; compare tokenizers of equal "
        "codes and grids."
    )
    hub_type: ClassVar[str] = "image-to-image"
    more_commands: ClassVar[tuple[str, ...]] = ("vitral tokenize . data=FOLDER out=codes.npz",)
    loss_note: ClassVar[str] = "The training loss is in units of the images' deviation, and includes the penalty."

    @classmethod
    def fits(cls, architecture: ModelConfig) -> bool:
        """Whether it makes codes."""
        return architecture.is_tokenizer

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Accept any annotations."""
        return cls()

    def match(self, dataset: Dataset, split: Split) -> Split:
        """Any images."""
        return replace(split, labels_N=np.full(len(split), -1))

    def require_evaluators(self, where: str) -> None:
        """Images are all that reconstruction needs."""

    def own_sections(self, evaluation: Evaluation | None, samples: Samples) -> list[Section]:
        """Headline, use of the codes, and reconstructions beside originals."""
        if evaluation is None:
            return [Section("", ["Not evaluated: there are no validation or test images."])]
        primary, *others = self.of_values(evaluation.values)
        label = f"{primary.label}, mean over {evaluation.values['count']:,} {evaluation.split} images"
        values = evaluation.values
        return [
            Section(
                "", [replace(primary, label=label), *warning_note(values["psnr"], values.get("kmeans_psnr")), *others]
            ),
            *use_sections(values["code_counts"], evaluation.split, samples.pictures),
        ]

    def log_lines(self, evaluation: Evaluation) -> list[str]:
        """Also the use of the codes, and k-means beside it."""
        found = evaluation.values
        lines = super().log_lines(evaluation)
        lines.append(f"{USED.text(found['codes_used'])} of the codes used, perplexity {found['code_perplexity']:.1f}")
        if "kmeans_psnr" in found:
            lines.append(f"k-means of patches, as many codes: PSNR {found['kmeans_psnr']:.2f} dB")
            warning = worse_than_kmeans(found["psnr"], found["kmeans_psnr"])
            lines += [f"warning: {warning}"] if warning else []
        return lines

    def require_answers(self, where: str) -> None:
        """Refuse: there is nothing but codes and images."""
        hint = "`vitral tokenize` turns images into codes and back, `vitral eval` measures reconstructions."
        raise UserError("an image tokenizer predicts nothing about an image", where=where, hint=hint)

    def hub_scores(self, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """PSNR."""
        return [{"type": "psnr", "value": metrics["psnr"], "name": "PSNR in dB"}]

    def measure(self, outputs_NS: Array, annotations: Array) -> dict[str, Any]:
        """Tokenizers have no outputs of a head to measure."""
        raise NotImplementedError
