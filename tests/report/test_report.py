"""The report as a browser would read it: whole, closed to the network, safe with any name. N samples, C classes."""

from __future__ import annotations

import base64
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vitral.evaluate.calibration import reliability_bins, softmax
from vitral.evaluate.classification import classification_metrics
from vitral.evaluate.metric import percent
from vitral.report import plots
from vitral.report.classification import classification_sections
from vitral.report.render import photo
from vitral.report.run_report import write_report
from vitral.tasks.classification import LOSS_NOTE, Classification

TOP1 = Classification.metrics[0]
VOID = {"meta", "link", "img", "br"}
NASTY = [
    '<b>"x"&',
    "$a_{b$",
    "日本語",
    "<script>alert(1)</script>",
    "a" * 80,
    "it's",
    "\udc80",
    "\x01\n",
    "plain",
    "last",
]


class Page(HTMLParser):
    """Tags with attributes, text by section heading, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {"": ""}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.sections[""] = ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.sections[data] = ""
        elif self.open and self.open[-1] not in ("style", "title"):
            self.sections[list(self.sections)[-1]] += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def arguments(classes: list[str], count: int = 300, side: int = 8, **changes: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    labels_N = np.arange(count) % len(classes)
    logits_NC = random.normal(size=(count, len(classes))) + 2 * np.eye(len(classes))[labels_N]
    probabilities_NC = softmax(logits_NC)
    predicted_N = probabilities_NC.argmax(axis=1)
    mistakes = [
        (
            random.random((side, side)),
            classes[labels_N[i]],
            classes[predicted_N[i]],
            float(probabilities_NC[i].max()),
            f"{i}.png",
        )
        for i in np.nonzero(predicted_N != labels_N)[0]
    ]
    metrics = classification_metrics(logits_NC, labels_N, classes)
    rows: list[dict[str, Any]] = [{"step": s, "epoch": 0, "loss": 2 / s, "lr": 1e-3} for s in range(1, 50)]
    rows += [{"step": 25, "val_loss": 0.5, "val_top1": 0.8}, {"step": 50, "val_loss": float("nan"), "val_top1": 0.9}]
    return {
        "title": 'run <b>"x"&',
        "summary": {
            "train_seconds": 83.41,
            "steps": 2000,
            "seed": 0,
            "recipe": "digits",
            "parameters": 206154,
            "odd_<i>": [1, 2],
        },
        "metrics_rows": rows,
        "evaluation": {**metrics, "split": "test", "probabilities": probabilities_NC, "labels": labels_N},
        "mistakes": mistakes,
        "config_yaml": "seed: 0\nnote: '<script>alert(1)</script>'\n",
        "notes": ["3 images <twice> & more"],
        **changes,
    }


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return report(tmp_path_factory.mktemp("nasty"), NASTY)


def write(path: Path, *, evaluation: dict[str, Any], mistakes: list[Any], **given: Any) -> None:
    write_report(
        path,
        sections=classification_sections(evaluation, mistakes),
        loss_note=LOSS_NOTE,
        primary=TOP1,
        loss_unit="nats",
        **given,
    )


def report(folder: Path, classes: list[str], **changes: Any) -> tuple[str, Page]:
    path = folder / "report.html"
    write(path, **arguments(classes, **changes))
    assert [each.name for each in folder.iterdir()] == ["report.html"]
    assert path.stat().st_size < 3_000_000
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_sections_stand_in_order_with_their_numbers(nasty: tuple[str, Page]) -> None:
    given = arguments(NASTY)
    text, page = nasty
    assert list(page.sections)[1:] == [
        "Key facts",
        "Training curves",
        "Confusion matrix",
        "Classes, worst first",
        "Reliability",
        "Worst mistakes",
        "Notes from the data",
        "Configuration",
    ]
    evaluation = given["evaluation"]
    low, high = evaluation["top1_interval"]
    assert "206,154" in page.sections["Key facts"]
    assert "83.4 s" in page.sections["Key facts"]
    assert f"{100 * evaluation['ece']:.2f} %" in page.sections["Reliability"]
    assert f"24 of {len(given['mistakes'])} mistakes" in page.sections["Worst mistakes"]
    assert len(page.attributes("figure")) == 24
    headline = " ".join(re.sub("<[^>]*>", "", text).split())
    assert f"{100 * evaluation['top1']:.2f} % of 300 test images classified correctly" in headline
    assert f"95 % interval {100 * low:.2f} to {100 * high:.2f} %" in headline


def test_nothing_is_requested_and_nothing_runs(nasty: tuple[str, Page]) -> None:
    text, page = nasty
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "form", "base", "video", "audio", "i"}
    assert all((each["src"] or "").startswith("data:") for each in page.attributes("img"))
    assert [each["href"] for each in page.attributes("link")] == ["data:,"]
    assert not re.search(r"https?://|url\(|@import|srcset|\son\w+=", text)
    assert any("default-src 'none'" in (each.get("content") or "") for each in page.attributes("meta"))


def test_figures_ask_for_nothing_either(nasty: tuple[str, Page]) -> None:
    _, page = nasty
    figures = [
        base64.b64decode((each["src"] or "").split(",")[1])
        for each in page.attributes("img")
        if "svg" in (each["src"] or "")
    ]
    assert len(figures) == 5
    for figure in figures:
        for element in ElementTree.fromstring(figure).iter():
            links = [value for key, value in element.attrib.items() if key.endswith(("href", "src"))]
            assert all(link.startswith(("#", "data:")) for link in links)
            assert not str(element.tag).endswith(("script", "foreignObject"))


def test_names_are_escaped_and_shown_as_they_are(nasty: tuple[str, Page]) -> None:
    text, page = nasty
    for name in ('<b>"x"&', "$a_{b$", "日本語", "<script>alert(1)</script>", "a" * 80, "it's"):
        assert name in page.sections["Classes, worst first"]
    assert "<script>alert(1)" not in text
    assert "<b>&quot;x" not in text.replace("<b>&lt;b", "")
    assert "3 images <twice> & more" in page.sections["Notes from the data"]
    assert "<script>alert(1)</script>" in page.sections["Configuration"]
    assert all(each["alt"] for each in page.attributes("img"))


def test_small_images_keep_their_pixels(nasty: tuple[str, Page]) -> None:
    _, page = nasty
    photos = [each for each in page.attributes("img") if each.get("width")]
    assert {(each["width"], each["height"], each["class"]) for each in photos} == {("8", "8", "pixels")}
    worst = max(arguments(NASTY)["mistakes"], key=lambda mistake: mistake[3])
    stored = Image.open(io.BytesIO(base64.b64decode((photos[0]["src"] or "").split(",")[1])))
    assert np.array_equal(np.asarray(stored), np.rint(worst[0] * 255).astype(np.uint8))


def test_classes_are_sorted_worst_first_and_unknown_last(tmp_path: Path) -> None:
    given = arguments(["a", "b", "c"])
    per_class = {"a": 0.9, "b": 0.5, "c": None}
    given["evaluation"]["per_class"] = {
        name: {"precision": f1, "recall": f1, "f1": f1, "count": 5} for name, f1 in per_class.items()
    }
    write(tmp_path / "r.html", **given)
    body = (tmp_path / "r.html").read_text(encoding="utf-8").split("Classes, worst first")[1]
    assert re.findall(r'scope="row">(\w)</th><td>([^<]*)', body) == [("b", "50.0"), ("a", "90.0"), ("c", "–")]


@pytest.mark.parametrize("classes", [2, 150])
def test_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    _, page = report(tmp_path, [f"class {index}" for index in range(classes)], side=300)
    assert len([each for each in page.attributes("img") if each.get("width") == "256"]) == len(
        page.attributes("figure")
    )


def test_missing_parts_are_said(tmp_path: Path) -> None:
    given = arguments(["a", "b"], metrics_rows=[], mistakes=[], notes=[], summary={}, config_yaml="")
    del given["evaluation"]["probabilities"]
    write(tmp_path / "report.html", **given)
    sections = Page((tmp_path / "report.html").read_text(encoding="utf-8")).sections
    assert "No steps recorded" in sections["Training curves"]
    assert "no diagram" in sections["Reliability"]
    assert "Nothing to note" in sections["Notes from the data"]


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write(path, **arguments(["a", "b"]))
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0"), (1, "100.0"), (0.986, "98.6"), (0.99996, "99.996"), (0.0004, "0.04"), (0.9999, "99.99")],
)
def test_percent_is_never_a_false_zero_or_hundred(share: float, text: str) -> None:
    assert percent(share, 1) == text


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4)])
def test_photo_keeps_bytes_and_colors(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    media, content, size = photo(image)
    expected = image if len(shape) == 2 else image[:, :, :3] if shape[2] > 2 else image[:, :, 0]
    assert (media, size) == ("image/png", (7, 5))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), expected)
    with pytest.raises(ValueError, match="no picture"):
        photo(np.zeros((2, 2, 5)))


def texts(svg: bytes) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_confusion_matrix_names_classes_and_counts() -> None:
    shown = texts(plots.confusion_matrix([[31, 4], [0, 57]], ["<cat>", "$d_{o$g"]))
    assert {"31", "4", "57", "<cat>", "$d_{o$g", "predicted class", "true class"} <= set(shown)
    names = [f"kind {index}" for index in range(100)]
    shown = texts(plots.confusion_matrix(np.eye(100, dtype=int), names))
    assert all(shown.count(name) == 2 for name in names)


def test_curves_have_units_and_skip_what_is_not_finite() -> None:
    rows = [{"step": 1, "loss": float("nan"), "lr": 0.1}, {"step": 2, "loss": None, "lr": 0.2}]
    assert list(plots.training_curves(rows, TOP1)) == ["Learning rate"]
    figures = plots.training_curves(
        [*rows, *({"step": s, "loss": 1 / s, "val_top1": 0.5} for s in range(3, 9000))], TOP1, "nats"
    )
    assert list(figures) == ["Loss", "Validation top-1", "Learning rate"]
    assert "loss (nats)" in texts(figures["Loss"])
    assert "top-1 (%)" in texts(figures["Validation top-1"])
    assert all(len(figure) < 60_000 for figure in figures.values())


def test_curves_of_unlabeled_images_are_shares_and_skip_rows_without_them() -> None:
    rows: list[dict[str, Any]] = [{"step": 0, "val_top1": 0.5}, {"step": 1, "pseudo_share": 0.25, "unlabeled_loss": 2}]
    rows += [{"step": 2, "class_entropy": math.log(7)}, {"step": 3, "class_entropy": math.log(7)}]
    figures = plots.unlabeled_curves(rows, 7)
    titles = ["Unlabeled images that teach", "Entropy of the mean prediction", "Loss on unlabeled images"]
    assert list(figures) == titles
    assert "entropy / ln(classes)" in texts(figures[titles[1]])
    assert {"0.0", "1.0"} <= set(texts(figures[titles[1]])), "ln(7) over ln(7) is 1"
    assert "unlabeled images (%)" in texts(figures[titles[0]])
    assert list(plots.unlabeled_curves(rows[2:], 7)) == titles[1:2]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_percentages_stay_between_0_and_100(share: float) -> None:
    figure = plots.training_curves([{"step": s, "val_top1": share} for s in range(1, 9)], TOP1)["Validation top-1"]
    ticks = [float(text.replace("\u2212", "-")) for text in texts(figure) if re.fullmatch(r"[-\u2212\d.]+", text)]
    assert 0 <= min(ticks) <= max(ticks) <= 100
    assert 100 * share in ticks


def test_accuracy_over_work_is_in_percent() -> None:
    curves = {"merging": [(1.0, 0.99, 0.97, 1.0), (0.5, 0.86, 0.82, 0.9)], "one": [(0.7, 0.98, 0.96, 0.99)]}
    text = plots.accuracy_over_work(curves).decode()
    for word in ("merging", "one", "remaining multiply-accumulates (%)", "top-1 accuracy (%)", ">90<", ">70<"):
        assert word in text


def test_reliability_diagram_writes_the_counts() -> None:
    probabilities_NC = np.repeat([[0.9, 0.1], [0.6, 0.4]], [37, 12], axis=0)
    shown = texts(plots.reliability_diagram(reliability_bins(probabilities_NC, np.zeros(49, int))))
    assert {"37", "12", "accuracy (%)", "confidence (%)"} <= set(shown)


def test_same_figure_same_bytes_and_settings_untouched() -> None:
    with matplotlib.rc_context({"text.usetex": True, "font.size": 40}):
        before = dict(matplotlib.rcParams)
        first = plots.confusion_matrix([[3, 1], [0, 2]], ["a", "b"])
        assert dict(matplotlib.rcParams) == before
    assert plots.confusion_matrix([[3, 1], [0, 2]], ["a", "b"]) == first


def test_pyplot_and_torch_stay_out() -> None:
    names = "('matplotlib.pyplot', 'torch', 'sklearn')"
    pages = "vitral.report.run_report, vitral.report.classification"
    code = f"import sys, {pages}; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"
