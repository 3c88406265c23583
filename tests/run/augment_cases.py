"""Keys of augmentation, another value of each, and how its effect is seen."""

from __future__ import annotations

from tests.run.outcomes import Case, weights

PETS = {"data.path": "pets", "data.source": "folder", "model.name": "vit_micro_patch2_8", "data.image_size": (8, 12)}

AUGMENT_CASES: dict[str, Case] = {
    "augment.pad_crop": Case(2),
    "augment.flip": Case(0.5), "augment.rotate": Case(30.0), "augment.scale": Case(0.5),
    "augment.shear": Case(20.0), "augment.translate": Case(0.2),
    "augment.fill": Case("border", weights, {"augment.translate": 0.5, "data.mean": [0.3]}),
    "augment.crop": Case("random_resized"),
    "augment.crop_scale": Case([0.5, 0.6], weights, {"augment.crop": "random_resized"}),
    "augment.aspect_ratio": Case([0.4, 0.5], weights, {"augment.crop": "random_resized"}),
    "augment.flip_vertical": Case(0.5),
    "augment.policy": Case("trivial"),
    "augment.num_ops": Case(1, weights, {"augment.policy": "randaugment"}),
    "augment.magnitude": Case(20.0, weights, {"augment.policy": "randaugment"}),
    "augment.magnitude_std": Case(3.0, weights, {"augment.policy": "randaugment"}),
    "augment.interpolation": Case("nearest", weights, {"augment.policy": "randaugment"}),
    "augment.brightness": Case(0.4), "augment.contrast": Case(0.4),
    "augment.saturation": Case(0.4, weights, PETS),
    "augment.hue": Case(0.3, weights, PETS),
    "augment.jitter_prob": Case(0.5, weights, {"augment.brightness": 0.4}),
    "augment.gray": Case(0.5, weights, PETS),
    "augment.solarize": Case(0.5),
    "augment.solarize_from": Case(0.2, weights, {"augment.solarize": 1.0}),
    "augment.posterize": Case(0.5, weights, PETS),
    "augment.posterize_bits": Case(1, weights, {"augment.posterize": 1.0}),
    "augment.equalize": Case(0.5, weights, PETS),
    "augment.autocontrast": Case(0.5, weights, PETS),
    "augment.invert": Case(0.5), "augment.sharpen": Case(0.5),
    "augment.sharpen_factor": Case(0.0, weights, {"augment.sharpen": 1.0}),
    "augment.blur": Case(0.5),
    "augment.blur_sigma": Case([0.5, 0.6], weights, {"augment.blur": 1.0}),
    "augment.random_erasing": Case(0.5),
    "augment.erase_scale": Case([0.5, 0.6], weights, {"augment.random_erasing": 1.0}),
    "augment.erase_ratio": Case([0.9, 1.1], weights, {"augment.random_erasing": 1.0}),
    "augment.erase_fill": Case("noise", weights, {"augment.random_erasing": 1.0}),
}  # fmt: skip
