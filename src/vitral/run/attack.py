"""Attack a model: accuracy on adversarial images, with tests of the attack's strength, a page and pictures.

Shape letters: N images, B batch, K classes, C H W channels, height and width of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitral.attacks.attack import Attack, Classifier
from vitral.attacks.config import AttackConfig, SquareConfig, check_classes, check_length, step_warnings
from vitral.attacks.ensemble import Ensemble
from vitral.attacks.registry import attack_of
from vitral.data.dataset import Split, spaced
from vitral.errors import UserError, plural
from vitral.evaluate.attack_checks import Check, CheckImages, attack_checks
from vitral.evaluate.calibration import expected_calibration_error
from vitral.evaluate.classification import wilson_interval
from vitral.evaluate.config import check_bounded
from vitral.evaluate.metric import Metric, eps_text
from vitral.evaluate.robustness import attack_batch
from vitral.models.registry import has_input_gradients
from vitral.predictor import Predictor
from vitral.report.attack import Example, attack_sections
from vitral.report.sections import Figure, Section
from vitral.run.attack_examples import attention_of, worst_first
from vitral.run.command_options import AttackOptions
from vitral.run.eval_target import classifier_of
from vitral.run.inference_inputs import image_batches, load_used, open_images, split_name
from vitral.run.page_folder import PageFolder, page_folder
from vitral.training.metrics_log import console_logging, log

PAGE, RECORD = "report.html", "attack.json"
_CHECKED = 100  # images of the tests of an attack's strength
_WORST = 12


class Measured(NamedTuple):
    """The result as JSON, its sections for page and console, and the tests that failed."""

    result: dict[str, Any]
    sections: list[Section]
    failed: list[Check]


@dataclass(frozen=True)
class Victim:
    """The model whose answers count, as a function of images; the model that is attacked; and sizes of change that its
    images can hold."""

    predictor: Predictor
    classifier: nn.Module | Classifier
    source: nn.Module | Classifier
    levels: int | None  # of pixels, for an export that takes 8 bits
    notes: list[str]

    @property
    def has_gradients(self) -> bool:
        """Whether the attacked model has gradients by the images."""
        return has_input_gradients(self.source)

    def eps(self, eps: float) -> float:
        """Return the size of change that an attack may use: of 8-bit images a whole number of levels."""
        return eps if self.levels is None else math.floor(eps * self.levels + 1e-6) / self.levels

    def images(self, images_BCHW: Tensor) -> Tensor:
        """Return the images that are attacked."""
        return images_BCHW if self.levels is None else (images_BCHW * self.levels).round() / self.levels


@dataclass
class Rows:
    """Outcomes of all images at one size of change, and the worst of them as examples."""

    eps: float
    clean_NK: Tensor
    adversarial_NK: Tensor
    by_N: Tensor
    labels_N: Tensor
    worst: list[Example]

    @property
    def robust_N(self) -> Tensor:
        """Whether an image is answered correctly before and after this attack alone."""
        return (self.clean_NK.argmax(1) == self.labels_N) & (self.by_N < 0)


def attack(model: str, options: AttackOptions | None = None) -> dict[str, Any]:
    """Return the result of `measure`."""
    return measure(model, options or AttackOptions()).result


def measure(model: str, options: AttackOptions) -> Measured:
    """Return the output of `vitral attack --json`, and write page, pictures and JSON to `options.out`.

    Raises UserError for a model without classes, an attack that does not fit it, data of other classes, and a folder
    that another program wrote.
    """
    console_logging()
    config = options.attack
    check_bounded(config, "attack.kind")
    folder = None
    if options.out is not None:
        folder = page_folder(
            options.out, overwrite=options.overwrite, page=PAGE, record=RECORD, command="vitral attack"
        )
    predictor = load_used(model, options)
    task = predictor.task
    predictor.require_answers()
    if not (task.has_classes and task.is_exclusive):
        raise UserError("attacks need a model with one class per image", where=model, got=task.name,
                        expected="classification")  # fmt: skip
    check_classes(config, len(predictor.classes), "attack")
    check_length(config, *_input(predictor), "attack")
    victim = _victim(model, predictor, options)
    dataset, skipped = open_images(predictor.config, options.data, predictor.config, model)
    name = split_name(dataset, options.split)
    split = task.match(dataset, dataset.splits[name])
    places = spaced(len(split), options.samples)
    for warning in step_warnings(config, "attack"):
        log.warning("%s", warning)
    rows = [_attacked(victim, split, places, eps, options) for eps in dict.fromkeys(map(victim.eps, options.sizes()))]
    main = next(each for each in rows if each.eps == victim.eps(config.radius))
    checks = [] if options.check == "none" or options.transfer else _checks(victim, split, places, main, rows, options)
    failed = [check for check in checks if check.passed is False]
    result: dict[str, Any] = {
        "model": model, "data": dataset.name, "task": task.name, "split": name, "count": len(places),
        "attack": config.model_dump(exclude_none=True) | {"eps": main.eps}, "seed": options.seed,
        **({"transfer": options.transfer} if options.transfer else {}),
        **_numbers(predictor, config, main, rows), "checks": [check.row() for check in checks],
        "notes": victim.notes, "skipped": skipped.get(name, []),
    }  # fmt: skip
    for check in failed:
        log.warning(
            "the real accuracy under attack may be lower. Expected: %s. Measured: %s", check.expects, check.text
        )
    examples = _examples(victim, split, main.worst)
    result["examples"] = [example.row() for example in examples]
    probabilities = [predictor.scores(logits_NK).numpy() for logits_NK in (main.clean_NK, main.adversarial_NK)]
    sections, figures = attack_sections(result, examples, [each.max(1) for each in probabilities])
    if folder is not None:
        _write(folder, model, sections, figures, result)
    return Measured(result, sections, failed)


def _write(
    folder: PageFolder, model: str, sections: Sequence[Section], figures: Sequence[Figure], result: dict[str, Any]
) -> None:
    result["page"] = str(folder.path / PAGE)
    result["files"] = [PAGE, RECORD, *(figure.name for figure in figures)]
    folder.write(f"{model} under attack", sections, figures, result)


def _victim(model: str, predictor: Predictor, options: AttackOptions) -> Victim:
    """Return what is attacked. Raises UserError for an attack by gradients on an export."""
    config, classifier, notes = options.attack, classifier_of(predictor), list[str]()
    source, levels = classifier, None
    if options.transfer is not None:
        other = load_used(options.transfer, options)
        if (other.classes, *_input(other)) != (predictor.classes, *_input(predictor)):
            raise UserError(
                "transfer needs a model with the same classes and the same size and channels of images",
                where="transfer", got=f"{len(other.classes)} classes, {_input(other)}",
                expected=f"{len(predictor.classes)} classes, {_input(predictor)}",
            )  # fmt: skip
        source = classifier_of(other)
        notes.append(f"The adversarial images are those of {options.transfer}, shown to {model}.")
        if config.stops_early:
            notes.append(
                f"{config.kind} changes an image no further once {options.transfer} answers wrongly, so few changes "
                "fool another model: attack.kind=pgd takes all its steps."
            )
    has_gradients = has_input_gradients(source)
    if not (config.black_box or has_gradients):
        raise UserError(
            "this attack needs gradients by the images, which exports and models of codes do not have",
            where="attack.kind", got=config.kind, expected="square",
            hint="Or transfer=MODEL: another model, as the one that an export was made from.",
        )  # fmt: skip
    if not has_gradients:
        notes.append("There are no gradients by the images: only Square is possible, which is weaker than attacks by "
                     "gradients.")  # fmt: skip
    if predictor.engine.takes == "pixels":
        levels = 255
        spec = predictor.config.preprocessing
        if spec.crop_pct != 1:
            raise UserError(
                "this export crops its images, so changed pixels are not its input", where=model,
                hint="vitral export MODEL takes=resized makes one that is attacked as the model is.",
            )  # fmt: skip
        if math.floor(config.radius * levels + 1e-6) == 0:
            raise UserError("this export takes images of 8 bits", where="attack.eps", got=config.radius,
                            expected="at least 1/255")  # fmt: skip
        if config.norm == "l2":
            raise UserError(
                "this export takes images of 8 bits, whose rounding changes lengths", where="attack.norm", got="l2",
                expected="linf", hint="vitral export MODEL takes=resized makes one that is attacked as the model is.",
            )  # fmt: skip
        notes.append("The export takes images of 8 bits: images are rounded, and eps is rounded down to n/255.")
    return Victim(predictor, classifier, source, levels, notes)


def _input(predictor: Predictor) -> tuple[tuple[int, int], int]:
    return predictor.config.preprocessing.image_size, predictor.config.architecture.in_channels


def _parts(config: AttackConfig, classes: int) -> list[Attack]:
    """Return the attacks of an ensemble, or the attack alone."""
    whole = attack_of(config)
    return whole.parts(classes) if isinstance(whole, Ensemble) else [whole]


def _attacked(victim: Victim, split: Split, places: list[int], eps: float, options: AttackOptions) -> Rows:
    """Attack all images at one size of change."""
    attacks = _parts(options.attack, len(victim.predictor.classes)) if eps else []
    found: list[tuple[Tensor, ...]] = []
    worst, done = list[Example](), 0
    log.info("attacking %d images with %s, eps %s", len(places), options.attack.kind, eps_text(eps))
    for images_BCHW, labels_B in image_batches(victim.predictor, split.subset(places), options.batch_size):
        x_BCHW = victim.images(images_BCHW)
        own = places[done : done + len(labels_B)]
        done += len(own)
        ids_B = torch.tensor(own, device=labels_B.device)
        batch = attack_batch(
            attacks, victim.classifier, x_BCHW, labels_B, ids_B, eps=eps, seed=options.seed, source=victim.source
        )
        found.append(tuple(each.cpu() for each in (batch.clean_BK, batch.adversarial_BK, batch.by_B, labels_B)))
        if eps == victim.eps(options.attack.radius):
            worst = worst_first([*worst, *_fooled(victim.predictor, x_BCHW, batch, own)])[:_WORST]
    clean_NK, adversarial_NK, by_N, labels_N = (torch.cat(each) for each in zip(*found, strict=True))
    return Rows(eps, clean_NK, adversarial_NK, by_N, labels_N, worst)


def _fooled(predictor: Predictor, images_BCHW: Tensor, batch: Any, places: Sequence[int]) -> list[Example]:
    """Return the images of a batch whose answers changed."""
    rows = (batch.by_B >= 0).nonzero()[:, 0].tolist()
    before_BK, after_BK = (predictor.scores(each).cpu().numpy() for each in (batch.clean_BK, batch.adversarial_BK))
    return [
        Example(
            places[row], int(batch.labels_B[row]), before_BK[row], after_BK[row],
            images_BCHW[row].cpu().numpy(), batch.adversarial_BCHW[row].cpu().numpy(),
        )
        for row in rows
    ]  # fmt: skip


def _checks(
    victim: Victim, split: Split, places: list[int], main: Rows, rows: Sequence[Rows], options: AttackOptions
) -> list[Check]:
    """Run the tests on some of the images that are answered correctly."""
    right = (main.clean_NK.argmax(1) == main.labels_N).nonzero()[:, 0].tolist()
    if not right:
        victim.notes.append("No image is answered correctly, so there is nothing to test the attack on.")
        return []
    chosen = [right[place] for place in spaced(len(right), _CHECKED)]
    own = [places[row] for row in chosen]
    batches = [
        (victim.images(images_BCHW), labels_B)
        for images_BCHW, labels_B in image_batches(victim.predictor, split.subset(own), options.batch_size)
    ]
    images_NCHW, labels_N = (torch.cat(each) for each in zip(*batches, strict=True))
    device = labels_N.device
    images = CheckImages(
        victim.classifier, images_NCHW, labels_N, torch.tensor(own, device=device), main.robust_N[chosen].to(device),
        options.seed, victim.has_gradients,
    )  # fmt: skip
    log.info("testing the attack on %d images", len(own))
    curve = [(each.eps, float(each.robust_N.float().mean()), len(places)) for each in rows]
    config = options.attack.model_copy(update={"eps": main.eps})
    return attack_checks(images, config, curve)


def _numbers(predictor: Predictor, config: AttackConfig, main: Rows, rows: Sequence[Rows]) -> dict[str, Any]:
    """Return accuracies, curve, classes and confidences. An image that is fooled at one size of change is so at all
    larger ones, whose balls contain its adversarial image."""
    labels_N, count = main.labels_N, len(main.labels_N)
    right_N = main.clean_NK.argmax(1) == labels_N
    curve: list[dict[str, Any]] = []
    robust_N, robust_of = right_N, dict[float, Tensor]()
    for each in rows:
        robust_N = robust_N & each.robust_N
        robust_of[each.eps] = robust_N
        probabilities_NK = predictor.scores(each.adversarial_NK).numpy()
        curve.append({
            "eps": each.eps, **_share("robust_top1", robust_N), "count": count,
            "mean_confidence": float(probabilities_NK.max(1).mean()),
            "ece": expected_calibration_error(probabilities_NK, labels_N.numpy()),
        })  # fmt: skip
    robust_N = robust_of[main.eps]
    per_class = {
        label: {
            "count": int((own_N := labels_N == number).sum()), "clean": int(right_N[own_N].sum()),
            "robust": int(robust_N[own_N].sum()),
        }
        for number, label in enumerate(predictor.classes)
    }  # fmt: skip
    found = _share("robust_top1", robust_N)
    low, high = found["robust_top1_interval"]
    primary = Metric("robust_top1", "", found["robust_top1"], (low, high))
    parts = [
        {"attack": text, "fooled": int((main.by_N == number).sum())}
        for number, text in enumerate(_part_text(part.config) for part in _parts(config, len(predictor.classes)))
    ]
    return {
        "primary": primary.row(), **found, **_share("clean_top1", right_N), "parts": parts, "curve": curve,
        "per_class": per_class,
    }  # fmt: skip


def _part_text(config: AttackConfig) -> str:
    """Describe one attack: "apgd, dlr, 9 targets, 100 steps"."""
    words = [getattr(config, "loss", "")]
    words += [plural(value, key[:-1]) for key in ("targets", "steps", "restarts") if (value := getattr(config, key, 0))]
    words += [plural(config.queries, "query", "queries")] if isinstance(config, SquareConfig) else []
    return ", ".join([config.kind, *filter(None, words)])


def _share(name: str, which_N: Tensor) -> dict[str, Any]:
    total = int(which_N.sum())
    return {name: total / len(which_N), f"{name}_interval": list(wilson_interval(total, len(which_N)))}


def _examples(victim: Victim, split: Split, worst: Sequence[Example]) -> list[Example]:
    """Add names, and the attention before and after, if the model has attention."""
    predictor = victim.predictor
    return [
        example._replace(
            name=str(split.names[example.place]), classes=predictor.classes,
            attention=attention_of(predictor, example.image_CHW, example.adversarial_CHW),
        )
        for example in worst
    ]  # fmt: skip
