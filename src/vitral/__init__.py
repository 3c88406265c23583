"""Vitral: train, evaluate, explain, export and serve Vision Transformers. See `vitral --help` and the names below.

train(recipe, overrides, out=) -> summary         train a model: from images to a model folder
sweep(recipe, {key: [values]}, overrides)          compare settings, retrain the best on all training data
load(model) -> Predictor                          .predict(paths_or_arrays, topk=5)
load_text(model) -> TextPredictor                 of a model that writes text: .predict(texts_or_images)
create_model(name, num_classes=, image_size=)     any preset as a torch module
create_attack(kind, eps=)                         attack(model, images, labels) -> adversarial images
list_models(pattern)                              names of the presets
register_objective(Config, Class)                 add an objective of your own to objective.kind
VitralClassifier                                  scikit-learn's fit / predict / predict_proba / score
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitral.version import __version__

if TYPE_CHECKING:
    from vitral.attacks.registry import create_attack
    from vitral.errors import UserError
    from vitral.estimator import VitralClassifier
    from vitral.models.create import create_model
    from vitral.models.presets import list_models
    from vitral.predictor import Predictor, load
    from vitral.run.register_objective import register_objective
    from vitral.run.sweep import sweep
    from vitral.run.train import train
    from vitral.text_predictor import TextPredictor, load_text

_HOMES = {
    "Predictor": "vitral.predictor",
    "TextPredictor": "vitral.text_predictor",
    "UserError": "vitral.errors",
    "VitralClassifier": "vitral.estimator",
    "create_attack": "vitral.attacks.registry",
    "create_model": "vitral.models.create",
    "list_models": "vitral.models.presets",
    "load": "vitral.predictor",
    "load_text": "vitral.text_predictor",
    "register_objective": "vitral.run.register_objective",
    "sweep": "vitral.run.sweep",
    "train": "vitral.run.train",
}

__all__ = [
    "Predictor", "TextPredictor", "UserError", "VitralClassifier", "__version__", "create_attack", "create_model",
    "list_models", "load", "load_text", "register_objective", "sweep", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vitral' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
