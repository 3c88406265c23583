"""Cache of the images that visitors of the explorer sent lately, as model input: views need no second upload.

Shape letters: C channels, H W image height and width, T tokens, h heads.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from vitral.predictor import Predictor

MOST_IMAGES, MOST_BYTES = 64, 256 * 2**20
MOST_MAP_BYTES = 256 * 2**20  # of the one image whose attention maps are kept, too


@dataclass
class CachedImage:
    """One image: its bytes, what `model` gets of it, and, of the last one looked at, the map of every layer."""

    model: weakref.ref[Predictor]
    x_CHW: Tensor
    data: bytes
    maps: list[Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Memory of all but the maps, about."""
        return self.x_CHW.nbytes + len(self.data)


class ImageCache:
    """The last images, by model and id; the least recently used go first. For one thread."""

    def __init__(self, most_images: int = MOST_IMAGES, most_bytes: int = MOST_BYTES) -> None:
        self.most_images, self.most_bytes = most_images, most_bytes
        self._given: OrderedDict[tuple[str, str], CachedImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._given)

    @property
    def nbytes(self) -> int:
        """Memory of all images."""
        return sum(given.nbytes for given in self._given.values())

    def put(self, model: str, key: str, given: CachedImage) -> None:
        """Keep this one, which may push others out; one that alone is too large is not kept."""
        self._given.pop((model, key), None)
        self._given[model, key] = given
        while len(self._given) > self.most_images or self.nbytes > self.most_bytes:
            self._given.popitem(last=False)

    def get(self, model: str, key: str, predictor: Predictor) -> CachedImage | None:
        """What was kept, unless it is gone or was meant for a model that has been replaced since."""
        given = self._given.get((model, key))
        if given is None or given.model() is not predictor:
            return None
        self._given.move_to_end((model, key))
        return given

    def data(self, key: str) -> bytes | None:
        """The bytes of an image that was given to any model."""
        return next((given.data for (_, each), given in self._given.items() if each == key), None)

    def keep_maps(self, given: CachedImage, maps: list[Tensor]) -> None:
        """Keep the maps of this image, and of no other."""
        for other in self._given.values():
            other.maps = None
        given.maps = maps
