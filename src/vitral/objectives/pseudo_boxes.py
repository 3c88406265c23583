"""Semi-supervised detection: pseudo-boxes of an EMA teacher, and Soft Teacher (Xu et al. 2021, arXiv 2106.09018).

The teacher reads the weak view of images without annotations before batches are cut, so that its boxes are counted for
the whole batch. Shape letters: B batch, D width of the encoder, M pseudo-boxes of an image, N true boxes of an image, J
jittered boxes, R boxes that are scored, 4 a box (x0, y0, x1, y1), 6 a detection: box, score, class, 33 a homogeneous
3 x 3 matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitral.data.box_ops import pairwise_iou
from vitral.data.boxes import MIN_SIDE
from vitral.data.config import UNLABELED
from vitral.data.counter_rng import normals
from vitral.data.geometry import transform_boxes, transform_points
from vitral.models.detector import Detector
from vitral.models.model import ImageModel
from vitral.models.registry import detector
from vitral.models.select_boxes import select_boxes
from vitral.objectives.detection import Detection, image_weights, step_output
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.pseudo_boxes_config import PseudoBoxesConfig, SoftTeacherConfig
from vitral.objectives.second_stage_loss import MATCH, Relevance
from vitral.objectives.teacher import EMATeacher
from vitral.structs import Batch, StepOutput

MAX_IOU, MOST = 0.6, 100  # of the teacher's detections
VISIBLE = 0.3  # share of a box that the other view must show
AT_ONCE = 8  # unlabeled images that the teacher reads at once: with jitter it scores up to 1,000 boxes of each
COUNTS = ("pseudo_count", "pseudo_right", "hidden_found", "hidden_count", "reliable_count", "tried_count")
RATIOS = (
    ("pseudo_precision", "pseudo_right", "pseudo_count"), ("pseudo_recall", "hidden_found", "hidden_count"),
    ("reliable_share", "reliable_count", "tried_count"),
)  # fmt: skip


class PseudoBoxes(Detection):
    """Boxes that the teacher finds with a score of `threshold` or more are learned as annotations are.

    The loss is that of `Detection` on labeled images, plus that on unlabeled ones times `unlabeled_weight`, mean over
    images, by the same number: the positive locations of the labeled images and these images. So an image in which the
    teacher finds little teaches little. In the first `supervised_warmup` share of the run unlabeled images are not
    used, and the teacher is the model itself. The teacher is evaluated and saved.
    """

    def __init__(self, factory: Callable[[], ImageModel], config: PseudoBoxesConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.shared, self.seed, self.steps = config, context.seed, context.steps
        self.warmup_steps = min(round(config.supervised_warmup * context.steps), max(context.steps - 1, 0))
        self.teacher = EMATeacher(self.model, factory())

    @property
    def eval_model(self) -> ImageModel:
        """The teacher."""
        assert isinstance(self.teacher.module, ImageModel)
        return self.teacher.module

    @property
    def teaching(self) -> Detector:
        """The teacher as a detector."""
        found = detector(self.eval_model)
        assert found is not None
        return found

    def compile_key(self, step: int) -> int | None:
        """None: how many boxes there are depends on the teacher."""
        return None

    def prepare_batches(self, batches: Mapping[str, Batch], step: int) -> Mapping[str, Batch]:
        """Add what `Detection` adds, and to unlabeled images, after the warm-up, `pseudo_targets`."""
        found = {**batches, "labeled": self.located_batch(batches["labeled"])}
        if step >= self.warmup_steps:
            batch = batches[UNLABELED]
            found[UNLABELED] = batch._replace(targets=self.located(self.pseudo_targets(batch, step)))
        return found

    @torch.no_grad()
    def pseudo_targets(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """What the teacher finds in the weak view, in pixels of the strong one: `boxes` [B, M, 4] and `box_class`
        [B, M], -1 in rows that teach no class; `is_known` [B, A]: the locations that the weak view shows too. And what
        the teacher is watched by, the same number [B] for each image: `pseudo_boxes` an image, and where the data know
        the boxes, `pseudo_precision` and `pseudo_recall`."""
        images = len(batch.sample_ids_B)
        parts = [self._found(batch.slice(start, start + AT_ONCE), step) for start in range(0, images, AT_ONCE)]
        rows = max(part["box_class"].shape[1] for part in parts)
        joined = {name: torch.cat([_padded(part[name], name, rows) for part in parts]) for name in parts[0]}
        watched = {name: joined.pop(name).sum() for name in COUNTS if name in joined}
        ratios = {"pseudo_boxes": watched["pseudo_count"] / images}
        for name, part, whole in RATIOS:
            if part in watched:
                ratios[name] = watched[part] / watched[whole].clamp(min=1)
        return joined | {name: value.expand(images) for name, value in ratios.items()}

    def _found(self, batch: Batch, step: int) -> dict[str, Tensor]:
        weak, strong = batch.views
        map_BDhw = self.teaching.patch_map(weak.images_BCHW)
        maps = self.teaching.pyramid(map_BDhw)
        outputs_BAX = self.teaching.read(maps)
        found_BM6 = select_boxes(outputs_BAX, self.least_score, MAX_IOU, MOST).to(outputs_BAX.device)
        rows = max(1, int((found_BM6[..., 5] >= 0).sum(1).max()))
        boxes_BM4, score_BM, class_BM = found_BM6[:, :rows, :4], found_BM6[:, :rows, 4], found_BM6[:, :rows, 5].long()
        size = strong.images_BCHW.shape[-2], strong.images_BCHW.shape[-1]
        between_B33 = strong.matrix_B33.double() @ weak.matrix_B33.double().inverse()
        moved_BM4, visible_BM = transform_boxes(between_B33, boxes_BM4.double(), size)
        large_BM = ((moved_BM4[..., 2:] - moved_BM4[..., :2]) >= MIN_SIDE).all(2)
        seen_BM = (class_BM >= 0) & large_BM & (visible_BM >= VISIBLE)
        sure_BM = seen_BM & (score_BM >= self.shared.threshold)
        back_B33 = between_B33.inverse()
        centers_BA2 = self.detector.centers_A2.double().expand(len(batch.sample_ids_B), -1, -1)
        before_BA2 = transform_points(back_B33, centers_BA2 - 0.5) + 0.5
        within_BA2 = (before_BA2 > 0) & (before_BA2 < before_BA2.new_tensor([size[1], size[0]]))
        return {
            "boxes": moved_BM4.float() * seen_BM[..., None], "box_class": torch.where(sure_BM, class_BM, -1),
            "is_known": within_BA2.all(2),
            **self.watched(boxes_BM4, torch.where(score_BM >= self.shared.threshold, class_BM, -1), batch.targets),
            **self.more_targets(
                maps, map_BDhw, found_BM6[:, :rows], seen_BM, back_B33, batch.sample_ids_B, step
            ),
        }  # fmt: skip

    @property
    def least_score(self) -> float:
        """The score below which a box teaches nothing."""
        return self.shared.threshold

    def more_targets(
        self, maps: list[Tensor], map_BDhw: Tensor, found_BM6: Tensor, seen_BM: Tensor, back_B33: Tensor,
        sample_ids_B: Tensor, step: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Further targets; none. maps, map: the teacher's pyramid, and what it is made of. found: in pixels of the weak
        view, to which `back` leads from the strong one. seen: whether the strong one shows it."""
        return {}

    @staticmethod
    def watched(boxes_BM4: Tensor, class_BM: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Counts of images [B]: pseudo-boxes, and where the true ones are known, how many of the former are right, how
        many of the latter are found, and these. A box is right where a true one of its class overlaps it by an IoU of
        0.5 or more, and a true one is found alike."""
        is_pseudo_BM = class_BM >= 0
        found = {"pseudo_count": is_pseudo_BM.sum(1)}
        if "hidden_boxes" not in targets:
            return found
        true_BN4, true_BN = targets["hidden_boxes"], targets["hidden_class"]
        alike_BMN = (class_BM[..., None] == true_BN[:, None]) & is_pseudo_BM[..., None]
        alike_BMN &= pairwise_iou(boxes_BM4[:, :, None], true_BN4[:, None]) >= MATCH
        return {
            **found, "pseudo_right": alike_BMN.any(2).sum(1), "hidden_found": alike_BMN.any(1).sum(1),
            "hidden_count": (true_BN >= 0).sum(1),
        }  # fmt: skip

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The loss and its parts; of unlabeled images `unlabeled_...`, and monitors: `pseudo_boxes` an image,
        `pseudo_precision` and `pseudo_recall` where the data know the boxes."""
        batch = batches["labeled"]
        weight_B = image_weights(batch.targets)
        parts = self.parts(self.detector.maps(batch.views[0].images_BCHW), batch.targets, weight_B)
        watched = dict[str, Tensor]()
        if step >= self.warmup_steps:
            own = batches[UNLABELED]
            maps = self.detector.maps(own.views[1].images_BCHW)
            found = self.parts(maps, own.targets, image_weights(own.targets), self.relevance(own, watched))
            share = self.shared.unlabeled_weight * len(weight_B) / len(own.sample_ids_B)
            parts |= {f"unlabeled_{name}": share * part for name, part in found.items()}
            watched |= _monitors(own.targets)
        out = step_output(parts, weight_B.sum())
        return out._replace(metrics={**out.metrics, **watched})

    def relevance(self, batch: Batch, watched: dict[str, Tensor]) -> Relevance | None:
        """Weights of boxes as background, see `second_stage_parts`: None, all alike. `watched` gets monitors."""
        return None

    def after_update(self, step: int, means: Mapping[str, Tensor], found_inf: Tensor) -> None:
        """Move the teacher towards the model; in the warm-up it becomes a copy."""
        since = step - self.warmup_steps
        decay = 0.0 if since < 0 else min(self.shared.teacher_ema, (1 + since) / (10 + since))
        self.teacher.update(decay, found_inf)

    def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
        """Warn where the teacher is sure of nothing."""
        if metrics["step"] > self.warmup_steps + self.steps / 10 and metrics.get("pseudo_boxes", 1) == 0:
            return (
                "the teacher finds no box in unlabeled images with a score of objective.threshold, so they teach "
                "nothing. A lower threshold, a longer objective.supervised_warmup or more steps may help"
            )
        return None


class SoftTeacher(PseudoBoxes):
    """Soft Teacher, on the second stage of the detector.

    Classes: boxes of score `threshold` are objects; other boxes count as background by the teacher's probability that
    they are, read in the weak view, so that what it may have missed is not unlearned. Boxes: those that the teacher
    finds again from jittered ones (section 3.3: box jittering) teach where objects are, whatever their score is above
    `min_score`. Unlike in the paper weights are a mean over each image, and the dense head learns as from
    `PseudoBoxes`.
    """

    def __init__(self, factory: Callable[[], ImageModel], config: SoftTeacherConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.soft = config

    @property
    def least_score(self) -> float:
        """The lower one of both thresholds."""
        return min(self.soft.min_score, self.soft.threshold)

    def more_targets(
        self, maps: list[Tensor], map_BDhw: Tensor, found_BM6: Tensor, seen_BM: Tensor, back_B33: Tensor,
        sample_ids_B: Tensor, step: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        """`reliable` [B, M]: the rows that teach boxes; `teacher_map` and `back`: what `relevance` reads."""
        tried_BM = seen_BM & (found_BM6[..., 4] >= self.soft.min_score)
        reliable_BM = tried_BM & (self.spread(maps, found_BM6[..., :4], sample_ids_B, step) < self.soft.max_spread)
        return {
            "reliable": reliable_BM, "reliable_count": reliable_BM.sum(1), "tried_count": tried_BM.sum(1),
            "teacher_map": map_BDhw, "back": back_B33,
        }  # fmt: skip

    def spread(self, maps: list[Tensor], boxes_BM4: Tensor, sample_ids_B: Tensor, step: int) -> Tensor:
        """How differently the teacher refines jittered copies of each box, [B, M]: the standard deviation of each
        coordinate in sides of the box, mean over the four (equation 8)."""
        c, (images, rows, _) = self.soft, boxes_BM4.shape
        side_BM4 = (boxes_BM4[..., 2:] - boxes_BM4[..., :2]).clamp(min=MIN_SIDE).repeat(1, 1, 2)
        noise_BX = normals(self.seed, step, 0, sample_ids_B.to(boxes_BM4.device), rows * c.jitters * 4)
        noise_BMJ4 = noise_BX.to(boxes_BM4.dtype).view(images, rows, c.jitters, 4)
        jittered_BMJ4 = boxes_BM4[:, :, None] + c.jitter * noise_BMJ4 * side_BM4[:, :, None]
        _, refined_BR4 = self.teaching.rescore(maps, jittered_BMJ4.flatten(1, 2))
        return (refined_BR4.view_as(jittered_BMJ4).std(2) / side_BM4).mean(-1)

    def relevance(self, batch: Batch, watched: dict[str, Tensor]) -> Relevance | None:
        """The teacher's probability of background; 0 for what the weak view does not show. `watched` gets its mean over
        proposals, `background_weight`."""
        targets = batch.targets
        if "teacher_map" not in targets:
            return None  # a batch without values, by which memory is estimated
        with torch.no_grad():
            maps = self.teaching.pyramid(targets["teacher_map"])
        size = batch.views[0].images_BCHW.shape[-2], batch.views[0].images_BCHW.shape[-1]

        @torch.no_grad()
        def background(boxes_BR4: Tensor) -> Tensor:
            weak_BR4, visible_BR = transform_boxes(targets["back"], boxes_BR4.double(), size)
            p_BRK, _ = self.teaching.rescore(maps, weak_BR4.to(boxes_BR4.dtype))
            weight_BR = p_BRK[..., -1] * (visible_BR >= VISIBLE)
            watched["background_weight"] = weight_BR[:, : self.detector.config.outputs].mean()
            return weight_BR

        return background


def _monitors(targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = ("pseudo_boxes", *(name for name, _, _ in RATIOS))
    return {name: targets[name].float().mean() for name in names if name in targets}


def _padded(rows: Tensor, name: str, count: int) -> Tensor:
    """Targets with a row for each box, [B, M, ...], with `count` rows."""
    if name not in ("boxes", "box_class", "reliable"):
        return rows
    more = rows.new_full((len(rows), count - rows.shape[1], *rows.shape[2:]), -1 if name == "box_class" else 0)
    return torch.cat([rows, more], dim=1)
