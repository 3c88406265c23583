"""Several attacks in a row: the standard evaluation of AutoAttack without FAB. Shape letters: B batch, K classes."""

from __future__ import annotations

from torch import Tensor

from vitral.attacks.apgd import APGD
from vitral.attacks.attack import Attack, Problem
from vitral.attacks.config import ApgdConfig, EnsembleConfig, SquareConfig
from vitral.attacks.square import Square


class Ensemble(Attack):
    """APGD on cross-entropy, targeted APGD on DLR, then Square, each on the samples that are still right (Croce and
    Hein 2020, arXiv 2003.01690, section 6, without FAB).

    With 3 classes DLR is untargeted, with 2 it is left out.
    """

    def parts(self, classes: int) -> list[Attack]:
        """Return the attacks for a model of so many classes, in order."""
        config = self.config
        assert isinstance(config, EnsembleConfig)
        eps, norm, steps = config.radius, config.norm, config.steps
        parts: list[Attack] = [APGD(ApgdConfig(kind="apgd", eps=eps, norm=norm, steps=steps))]
        if classes > 2:
            targets = min(config.targets, classes - 1) if classes > 3 else 0
            parts.append(APGD(ApgdConfig(kind="apgd", eps=eps, norm=norm, steps=steps, loss="dlr", targets=targets)))
        parts.append(Square(SquareConfig(kind="square", eps=eps, norm=norm, queries=config.queries)))
        return parts

    def search(self, problem: Problem) -> Tensor:
        """See the class."""
        logits_BK = problem.model(problem.images_BCHW).detach()
        result_BCHW, wrong_B = problem.images_BCHW.clone(), logits_BK.argmax(1) != problem.true_B
        for attack in self.parts(logits_BK.shape[1]):
            left = (~wrong_B).nonzero()[:, 0]
            if not len(left):
                break
            part = problem.take(left)
            result_BCHW[left] = attack.search(part)
            _, wrong_B[left] = part.measure(result_BCHW[left])
        return result_BCHW
