"""The scikit-learn estimator: scikit-learn's own checks, real digits, images of every form, mistakes."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from tests.helpers import write_digits
from vitral.estimator import VitralClassifier

Array = np.ndarray[Any, Any]

NARROW = {
    "model.width": 16, "model.depth": 1, "model.heads": 2, "model.mlp_dim": 32, "train.ema": 0.9,
    "train.patience": None, "train.eval_every": 5.0,
}  # fmt: skip
TINY = VitralClassifier(epochs=10, batch_size=16, lr=3e-3, overrides=NARROW)
QUICK = {**NARROW, "train.steps": 3, "train.eval_every": 100.0}
LEARNS = {**QUICK, "train.steps": 60, "optim.lr": 1e-2, "model.width": 32, "augment.translate": 0.0}


@pytest.mark.filterwarnings("default")
@parametrize_with_checks([TINY])
def test_scikit_learns_checks(estimator: VitralClassifier, check: Callable[[VitralClassifier], None]) -> None:
    """An array [n, features] is folded to images of one row or to squares."""
    if getattr(check, "func", check).__name__ == "check_methods_sample_order_invariance":
        pytest.skip("asks for 1e-9, which float32 gives on some processors; the next test asks for 1e-6")
    check(estimator)


def test_the_order_of_samples_changes_nothing_but_rounding() -> None:
    X, y = stripes()
    model, order = quick().fit(X, y), np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(model.predict_proba(X[order]), model.predict_proba(X)[order], rtol=0, atol=1e-6)
    assert (model.predict(X[order]) == model.predict(X)[order]).all()


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    bunch: Any = load_digits()
    return bunch.images, bunch.target


def quick(**more: Any) -> VitralClassifier:
    keys: dict[str, Any] = {"overrides": QUICK, "batch_size": 16, **more}
    return VitralClassifier(**keys)


def stripes(count: int = 40, channels: int = 3) -> tuple[Array, Array]:
    """uint8 images [n, 8, 8, channels] that are bright on the left (class 0) or on the right (class 1)."""
    y_N = np.arange(count) % 2
    images_NHWC = np.random.default_rng(0).integers(0, 60, (count, 8, 8, channels), dtype=np.uint8)
    images_NHWC[y_N == 0, :, :4] += 180
    images_NHWC[y_N == 1, :, 4:] += 180
    return images_NHWC, y_N


def test_it_learns_the_digits(digits: tuple[Array, Array]) -> None:
    X, y = digits
    still = {f"augment.{name}": 0.0 for name in ("rotate", "scale", "translate", "mixup")}
    narrow = {"model.width": 64, "model.depth": 3, "model.mlp_dim": 128, "model.pool": "avg", "train.ema": 0.9}
    model = VitralClassifier(epochs=30, batch_size=32, lr=3e-3, overrides={**narrow, **still})
    model.fit(X[:300], y[:300])
    assert model.score(X[300:700], y[300:700]) > 0.4
    proba_NC = model.predict_proba(X[300:310])
    np.testing.assert_allclose(proba_NC.sum(axis=1), 1, atol=1e-5)
    assert (model.predict(X[300:310]) == model.classes_[proba_NC.argmax(axis=1)]).all()
    assert model.summary_["recipe"] == "VitralClassifier"


def test_the_same_images_in_other_forms_give_the_same_model(digits: tuple[Array, Array]) -> None:
    """uint8, floats of [0,1], flat rows, a channel axis: all of them are the same pixels."""
    X, y = (np.rint(digits[0] * (255 / 16)).astype(np.uint8)[:60], digits[1][:60])
    X[0, 0, :2] = 0, 255
    expected = quick().fit(X, y).predict_proba(X)
    for form in (
        X[..., None],
        X.reshape(60, 64),
        X / 255,
        (X / 255).astype(np.float32),
        X.astype(np.int64),
        X * 2.0 - 7,
    ):
        np.testing.assert_array_equal(quick().fit(form, y).predict_proba(form), expected)
    np.testing.assert_array_equal(quick().fit(X, y).predict_proba(X / 255), expected)
    np.testing.assert_array_equal(quick().fit(X * 1.0, y).predict_proba(X), expected, "floats to 255 train, uint8 asks")


def test_color_images_names_and_shapes() -> None:
    X, y = stripes()
    names = np.array(["left", "right"])[y]
    model = quick(overrides=LEARNS).fit(X, names)
    assert list(model.classes_) == ["left", "right"]
    assert model.score(X, names) > 0.9
    assert model.predictor_.config.architecture.in_channels == 3
    flat = quick(image_shape=(8, 8, 3)).fit(X.reshape(40, -1), y)
    np.testing.assert_array_equal(flat.predict_proba(X.reshape(40, -1)), quick().fit(X, y).predict_proba(X))
    wide = quick(image_shape=(4, 16)).fit(stripes(channels=1)[0].reshape(40, 64), y)
    assert wide.predictor_.config.architecture.image_size == (4, 16)


@pytest.mark.parametrize("names", [[3, 9], ["owl", "cat"], [-1, 1], [2.0, 5.0]])
def test_the_run_folder_names_classes_as_fit_did(names: list[Any], tmp_path: Path) -> None:
    images_NHWC, y_N = stripes()
    labels = np.array(names)[y_N]
    overrides = {**LEARNS, "out": str(tmp_path / "kept")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = quick(overrides=overrides).fit(images_NHWC, labels)
    assert model.predictor_.classes == tuple(map(str, sorted(names)))
    answers = model.predictor_.predict(list(images_NHWC), topk=1)
    assert [answer["predictions"][0]["label"] for answer in answers] == [
        str(label) for label in model.predict(images_NHWC)
    ]
    rows = (tmp_path / "kept" / "predictions.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert {row.split(",")[1] for row in rows} == set(map(str, names))
    for row in rows:
        place = int(row.split("[")[1].split("]")[0])
        assert row.split(",")[1] == str(labels[place])


def test_equal_seeds_give_equal_models_and_others_do_not() -> None:
    X, y = stripes()
    one, same, other = (quick(random_state=seed).fit(X, y).predict_proba(X) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_parameters_clones_and_copies() -> None:
    X, y = stripes()
    model = quick(epochs=3, image_shape=(8, 8, 3))
    assert model.get_params() == {
        "epochs": 3, "batch_size": 16, "lr": 1e-3, "image_shape": (8, 8, 3), "val_fraction": 0.1, "random_state": 0,
        "overrides": QUICK, "verbose": False,
    }  # fmt: skip
    model.set_params(lr=2e-3, image_shape=None).fit(X, y)
    copy: Any = clone(model)
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, "predictor_")
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))


def test_it_works_in_cross_validation() -> None:
    X, y = stripes()
    scores = cross_val_score(quick(overrides=LEARNS), X, y, cv=2)
    assert scores.min() > 0.8


def test_every_parameter_reaches_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = stripes(50)
    overrides = {**NARROW, "out": "kept", "optim.clip": 0.5}
    model = VitralClassifier(
        epochs=2, batch_size=10, lr=0.25, val_fraction=0.2, random_state=7, overrides=overrides, verbose=True
    )
    model.fit(X, y)
    text = Path("kept/config.yaml").read_text(encoding="utf-8")
    for line in ("lr: 0.25", "batch_size: 10", "epochs: 2", "seed: 7", "val_fraction: 0.2", "clip: 0.5", "flip: 0.0"):
        assert f"{line}\n" in text or f"{line}.0\n" in text, line
    assert model.summary_["steps"] == 8
    assert "40 train, 10 val" in capsys.readouterr().err
    quick().fit(X, y)
    assert capsys.readouterr().err == ""
    assert [path.name for path in Path().iterdir()] == ["kept"], "nothing else is left behind"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros((40, 2, 3, 4, 5))}, r"not an array of images[\s\S]*\[40, 2, 3, 4, 5\]"),
        ({"X": np.zeros((40, 8, 8, 5))}, r"not an array of images"),
        ({"X": np.full((40, 8, 8), np.nan)}, "NaN"),
        ({"X": np.zeros((39, 8, 8))}, "inconsistent numbers of samples"),
        ({"y": np.zeros(40, int)}, r"at least two classes[\s\S]*1 class"),
        ({"y": np.linspace(0, 1, 40)}, "Unknown label type"),
        ({"y": np.array([*[0] * 39, 1])}, "one image is too few"),
        ({"image_shape": (4, 4)}, r"image_shape[\s\S]*product of 64"),
        ({"epochs": 0}, "train.epochs"),
        ({"epochs": "many"}, "train.epochs"),
        ({"batch_size": 0}, "train.batch_size"),
        ({"lr": -1.0}, "optim.lr"),
        ({"val_fraction": 1.5}, "data.val_fraction"),
        ({"overrides": {"optim.lrr": 1}}, "did you mean 'optim.lr'"),
        ({"overrides": {"data": "photos"}}, "overrides: fit takes its images as arrays"),
    ],
)
def test_mistakes_are_value_errors_that_say_what_is_wrong(change: dict[str, Any], message: str) -> None:
    X, y = stripes(channels=1)
    given: dict[str, Any] = {"X": X.reshape(40, 64) if "image_shape" in change else X, "y": y, **change}
    parameters = {key: value for key, value in given.items() if key not in ("X", "y")}
    with pytest.raises(ValueError, match=message):
        quick(**parameters).fit(given["X"], given["y"])


def test_floats_beyond_one_are_refused_by_a_model_of_uint8_images() -> None:
    X, y = stripes()
    model = quick().fit(X, y)
    with pytest.raises(ValueError, match=r"training images were uint8[\s\S]*floats in \[0,1\]"):
        model.predict(X * 1.0)
    with pytest.raises(ValueError, match="array of images"):
        model.predict(np.zeros((2, 8, 8, 9), np.uint8))


def test_pixels_of_files_and_arrays_are_the_same(tmp_path: Path, digits: tuple[Array, Array]) -> None:
    """A fitted model's predictor reads files as `vitral predict` does."""
    X, y = np.rint(digits[0] * (255 / 16)).astype(np.uint8), digits[1]
    model = quick().fit(X[:60], y[:60])
    files = write_digits(tmp_path / "d", range(5))
    np.testing.assert_array_equal(
        model.predictor_.probabilities([path for path, _, _ in files]), model.predict_proba(X[:5])
    )


def test_arrays_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    """The same image with two labels is a Python warning, the rest stands in the log; nothing is refused."""
    clean, y = stripes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick().fit(clean, y)
    X = clean.copy()
    first, other = (int(np.flatnonzero(y == label)[0]) for label in np.unique(y)[:2])
    X[other] = X[first]
    X[int(np.flatnonzero(y == y[first])[1])] = 7
    with pytest.warns(UserWarning, match=r"X: 1 group.*with different labels \[duplicates-labels\]"):
        quick(verbose=True).fit(X, y)
    assert "of one color all over [constant]: X[" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(overrides={**QUICK, "check.allow": ["duplicates-labels"]}).fit(X, y)
        quick(overrides={**QUICK, "check.skip": True}).fit(X, y)
