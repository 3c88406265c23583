"""KoLeo regularizer: the Kozachenko-Leonenko entropy estimate spreads features evenly over the sphere.

Sablayrolles et al. 2019 (arXiv 1806.03198), as DINOv2 (2304.07193, section 4) uses it. Shape letters: B images, A
images of all processes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vitral import distributed
from vitral.objectives.losses import wide

_NEAREST = 1e-8  # distances are counted from here, so that equal features have a finite loss, and no gradient


def koleo(features_BD: Tensor) -> Tensor:
    """-mean log(distance to the nearest other image) of the normalized features, in at least float32.

    The distance is sqrt(d^2 + 1e-16): about log(d + 1e-8) of the paper's code, but smooth. Neighbors are sought among
    the images of all processes, and gradients flow to both of a pair. Asserts that there are two images or more.
    """
    device = features_BD.device.type
    with torch.autocast("cpu" if device == "meta" else device, enabled=False):
        own_BD = normalize(wide(features_BD), dim=1)
        all_AD = distributed.all_rows(own_BD)
        B, A = len(own_BD), len(all_AD)
        assert A >= 2, "one image has no neighbor"
        with torch.no_grad():
            near_BA = own_BD @ all_AD.T
            place_B = torch.arange(B, device=own_BD.device) + distributed.rank() * B
            nearest_B = near_BA.scatter(1, place_B[:, None], -2.0).argmax(1)
        square_B = (own_BD - all_AD[nearest_B]).square().sum(1)
        return -(square_B + _NEAREST**2).sqrt().log().mean()
