"""The card says what summary.json says, and its header is one that the hub reads."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import TINY, random_model, write_colors
from vitral.cli.main import main
from vitral.config import split_words
from vitral.evaluate.classification import wilson_interval
from vitral.run.config import RunConfig, difference, load_config, reproduce_command
from vitral.run.evaluate import evaluate
from vitral.run.train import run
from vitral.tasks.classification import worst_classes
from vitral.weights.card import header_of, model_card, with_header
from vitral.weights.folder import find_folder
from vitral.weights.folder import load_config as load_folder_config


def header(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_numbers_are_those_of_the_summary(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    card = (trained / "model/README.md").read_text(encoding="utf-8")
    low, high = summary["top1_interval"]
    assert f"On {summary['count']} test images:" in card
    interval = f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
    assert f"- top-1: {100 * summary['top1']:.2f} % {interval}" in card
    assert f"- ECE: {100 * summary['ece']:.2f} %" in card
    assert ("scaled by a temperature" in card) == (summary["temperature"] != 1)
    assert f"{summary['parameters']:,} parameters" in card
    assert f"of step {summary['best_step']}, the best on validation data" in card
    assert "1,293 train, 144 val, 360 test images" in card
    result = header(card)["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    assert result["metrics"][0]["value"] == summary["top1"]
    assert f"95 % interval {low:.4f} to {high:.4f}" in result["metrics"][0]["name"]


def test_the_worst_classes_are_those_of_an_evaluation(trained: Path) -> None:
    per_class = evaluate(str(trained))["per_class"]
    card = (trained / "model/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (\d+) of (\d+) \| ([\d.]+) to ([\d.]+) % \|$", card, re.MULTILINE)
    assert len(rows) == 5
    for name, found, count, low, high in rows:
        assert int(found) / int(count) == pytest.approx(per_class[name]["recall"])
        assert int(count) == per_class[name]["count"]
        assert [low, high] == [f"{100 * end:.2f}" for end in wilson_interval(int(found), int(count))]
    others = {name: row["recall"] for name, row in per_class.items()}
    worst = {row[0]: others.pop(row[0]) for row in rows}
    assert max(worst.values()) <= min(others.values())
    assert worst_classes({"a": {"recall": None, "count": 0}}) == []


def test_the_command_trains_so_again(tmp_path: Path) -> None:
    write_colors(Path("pets and more"))
    random_model(Path("model"))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("digits", {"optim.lr": 3e-4, "train.epochs": 2, "model.depth": 2, "seed": 5}),
        ("small", {"data": "pets and more", "data.mean": [0.5], "data.image_size": [8, 12]}),
        ("finetune", {"data": "pets and more", "init": "model", "objective.label_smoothing": 0.2}),
    ]
    for recipe, keys in cases:
        asked = load_config(recipe, keys)
        command = reproduce_command(asked)
        assert command is not None
        words, pairs = split_words(shlex.split(command))
        assert words == ["vitral", "train", recipe]
        assert difference(load_config(recipe, pairs), asked) == []
        assert len(pairs) <= len(keys) + 1, "nothing that the recipe says by itself"
    away = str(reproduce_command(load_config("small", {"data": str(tmp_path / "pets and more")})))
    assert away.endswith("'data.path=pets and more'"), "where it is is nobody else's business"
    own = RunConfig.model_validate({**load_config("digits", {}).model_dump(), "recipe": "mine"})
    assert reproduce_command(own) is None


def test_names_of_any_kind_stay_valid(tmp_path: Path) -> None:
    """YAML words, Markdown's own signs and colons in names of classes and data."""
    for number, name in enumerate(("no", "a: b", "x|y")):
        write_colors(Path("on: # 1"), name, count=6, first=6 * number)
    keys = {**TINY, "data": "on: # 1", "data.image_size": 8, "model.name": "vit_micro_patch2_8", "check.skip": True}
    run(load_config("small", {**keys, "out": "run"}))
    card = Path("run/model/README.md").read_text(encoding="utf-8")
    assert header(card)["model-index"][0]["results"][0]["dataset"]["name"] == "on: # 1"
    assert "| x\\|y |" in card
    assert "no, x|y" in card
    assert str(tmp_path) not in card


def test_what_has_not_been_measured_has_no_number(tmp_path: Path, trained: Path) -> None:
    assert main(["prune", str(trained), "out=smaller", "flops=0.8", "images=64"]) == 0
    card = Path("smaller/README.md").read_text(encoding="utf-8")
    found = load_folder_config(Path("smaller"))
    assert f"{found.provenance['pruned']['parameters'][1]:,} parameters" in card
    assert "nothing has been measured with these weights" in card
    assert "model-index" not in header(card)
    assert "of them found" not in card
    assert str(trained.parent) not in card
    assert card == model_card(found), "all that it says is in config.json"


def test_nothing_known_is_a_card_too() -> None:
    random_model(Path("model"), ())
    card = model_card(load_folder_config(Path("model")), ["a note"])
    assert header(card)["pipeline_tag"] == "image-feature-extraction"
    assert "gives features and names nothing" in card
    assert "- a note\n" in card
    assert "vitral predict" not in card


def test_of_converted_and_then_pruned_weights_the_story_is_in_order() -> None:
    pruned = {"model": "a/b", "data": "pets", "split": "val", "images": 8, "parameters": [9, 6], "macs": [4, 2]}
    told = {"converted_from": {"file": "b.npz", "format": "google"}, "pruned": pruned}
    told["versions"] = {"vitral": "1", "torch": "2"}
    card = model_card(load_folder_config(random_model(Path("model"))).model_copy(update={"provenance": told}))
    making = card.partition("## Making\n\n")[2].partition("\n\n## Use")[0].split("\n\n")
    assert [part.split()[0] for part in making] == ["Converted", "Then", "Made"]
    assert making[0] == "Converted by `vitral weights convert` from b.npz (format `google`)."


@pytest.mark.parametrize("told", [{}, {"converted_from": {"file": "b.npz", "format": "google"}}])
def test_a_license_is_in_the_header_and_in_words(told: dict[str, Any]) -> None:
    config = load_folder_config(random_model(Path("model"))).model_copy(update={"provenance": told})
    plain = model_card(config)
    assert "not stated" in plain
    assert with_header(plain, header_of(config), None) == plain
    for card in (plain, with_header(plain, header_of(config), "mit")):
        found = with_header(card, header_of(config), "apache-2.0")
        assert header(found)["license"] == "apache-2.0"
        assert re.findall("^.*[Ll]icense: .*$", found, re.MULTILINE) == [
            "license: apache-2.0", "* License: apache-2.0."
        ]  # fmt: skip
    own = "* License: for research, see the site.\n"
    assert with_header(own, header_of(config), "other").endswith(own)


@pytest.mark.oracle
def test_the_hubs_own_reader_finds_the_same(trained: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(trained / "model/README.md")
    summary = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    assert card.data.library_name == "vitral"
    assert card.data.pipeline_tag == "image-classification"
    result = card.data.eval_results[0]
    assert (result.metric_type, result.metric_value) == ("accuracy", summary["top1"])
    assert (result.dataset_name, result.dataset_split, result.task_type) == ("digits", "test", "image-classification")
    encoder = hub.ModelCard(model_card(load_folder_config(random_model(Path("model"), ()))))
    assert encoder.data.pipeline_tag == "image-feature-extraction"


def test_the_bundled_card_is_one_of_these() -> None:
    folder = find_folder("vitral-digits")
    text, config = (folder / "README.md").read_text(encoding="utf-8"), load_folder_config(folder)
    assert header(text) == header(model_card(config))
    assert text.partition("## Use")[2] == model_card(config).partition("## Use")[2]


HOSTILE = (
    "<script>alert(1)</script>", "a\n\n## Numbers\n\n**99 %** of all", "`code` [x](http://y.z)", "\x1b[31mred", "x|y",
    "*bold* _it_", "hot_dog", "# top",
)  # fmt: skip


def test_names_from_anywhere_stay_text() -> None:
    """HTML, Markdown, line breaks and control characters in class names, file names, recipes and paths."""
    markdown = pytest.importorskip("markdown_it", reason="a Markdown parser is not installed")
    config = load_folder_config(random_model(Path("model"), HOSTILE))
    metrics = {"top1": 0.5, "top1_interval": [0.4, 0.6], "split": "val", "count": 4, "ece": 0.1}
    told: dict[str, Any] = {
        "recipe": HOSTILE[2], "seed": 0, "steps": 1, "step": 1, "weights": "plain weights", "init": "a/" + HOSTILE[0],
        "command": "vitral train x\n```\n<b>", "metrics": metrics,
        "data": {"path": "/p/" + HOSTILE[0], "source": HOSTILE[1], "fingerprint": "``", "counts": {"val": 4},
                 "notes": [HOSTILE[0], HOSTILE[1]]},
        "worst_classes": [{"class": name, "found": 0, "count": 1, "interval": [0, 1]} for name in HOSTILE],
    }  # fmt: skip
    card = model_card(config.model_copy(update={"provenance": told, "name": HOSTILE[1]}))
    body = card.split("---\n", 2)[2]
    html = markdown.MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    assert not re.findall(r"<(script|a |img|b>|h2>Numbers</h2>\s*<p><strong>99)", html)
    sections = re.findall(r"^## .*$", body, re.MULTILINE)
    assert sections == ["## Numbers", "## Making", "## Use", "## Limits"]
    assert "\x1b" not in card
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3
    assert "hot_dog" in body
    assert "<td># top</td>" in html
