"""The model card, README.md of a model folder: all that it says comes from the folder's config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from vitral import markdown
from vitral.config import parse_yaml
from vitral.errors import UserError, shown
from vitral.models.registry import FAMILIES
from vitral.models.summary import count_parameters
from vitral.report.render import to_markdown
from vitral.weights.folder import FolderConfig

_SHOWN = 20  # classes by name
_LICENSE = re.compile(r"^\* License: (not stated\..*|that of the original weights, .*|[\w.-]+\.)$", re.MULTILINE)
_CHANNELS = {1: "gray", 2: "two channels", 3: "color (RGB)", 4: "four channels"}


def model_card(config: FolderConfig, notes: Sequence[str] = ()) -> str:
    """Markdown behind a YAML header that the Hugging Face hub reads: what the model is, its numbers with their 95 %
    intervals, what it was trained on and how to do that again, how to use it, and what nobody has tested.

    notes: what else there is to say of its making, one line each. A number that config.json does not have is not there.
    """
    parts = [
        _title(config),
        _numbers(config),
        making(config.provenance, notes, _which(config)),
        _use(config),
        _limits(config),
    ]
    return f"---\n{_yaml(header_of(config))}---\n" + "\n\n".join(part for part in parts if part) + "\n"


def header_of(config: FolderConfig) -> dict[str, Any]:
    """The YAML header. It names no license: that is for the owners of the weights and of the images to say."""
    task, objective, metrics = config.make_task(), _objective(config), config.provenance.get("metrics") or {}
    tags = [task.hub_type, FAMILIES[config.architecture.family].tag, *task.tags]
    tags += [objective] if objective != "supervised" else []
    header: dict[str, Any] = {"library_name": "vitral", "pipeline_tag": task.hub_type, "tags": tags}
    if scores := task.hub_scores(metrics):
        source = str(_data(config.provenance).get("source", "unknown"))
        dataset = {"name": _data_name(config.provenance), "type": source, "split": metrics["split"]}
        result = {"task": {"type": task.hub_type}, "dataset": dataset, "metrics": scores}
        header |= {"metrics": [score["type"] for score in scores]}
        header |= {"model-index": [{"name": config.name, "results": [result]}]}
    return header


def with_header(card: str, header: dict[str, Any], license: str | None) -> str:
    """The card with the header that it has, or else with the given one; and with the license, if given, also
    where `model_card` states that there is none. Raises UserError for a header that is no YAML."""
    opened, _, rest = card.partition("---\n")
    head, closed, body = rest.partition("\n---\n")
    text = card
    if not opened and closed:
        try:
            found = parse_yaml(head)
        except UserError as error:
            raise UserError("the header is no YAML", where="README.md", got=str(error).splitlines()[0]) from None
        if not isinstance(found, dict):
            raise UserError("the header is no mapping", where="README.md", got=head[:80])
        header, text = found, body
    if license is not None:
        header = {"license": license, **{key: value for key, value in header.items() if key != "license"}}
        text = _LICENSE.sub(lambda _: f"* License: {license}.", text)
    return f"---\n{_yaml(header)}---\n{text}"


def _yaml(tree: dict[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)


def _title(config: FolderConfig) -> str:
    a, classes, task = config.architecture, config.classes, config.make_task()
    height, width = config.preprocessing.image_size
    kind = f"{FAMILIES[a.family].title} ({markdown.code(config.name)}, {count_parameters(a):,} parameters)"
    body = f"A {kind} for images of {height} x {width} pixels, {_CHANNELS[config.preprocessing.channels]}"
    if not task.has_head:
        how = "" if _objective(config) == "supervised" else f", trained without labels ({_objective(config)})"
        return f"# {markdown.text(config.name)}{how}\n\n{body}. An encoder: it gives features and names nothing."
    more = [f"... ({len(classes):,} in all)"] if len(classes) > _SHOWN else []
    shown = ", ".join([*map(markdown.text, classes[:_SHOWN]), *more])
    return (
        f"# {markdown.text(config.name)}, {task.count_outputs(len(classes))}\n\n{body}. It gives {task.gives}: {shown}."
    )


def _numbers(config: FolderConfig) -> str:
    sections = config.make_task().card(config.provenance)
    nothing = "## Numbers\n\nNone: nothing has been measured with these weights. `vitral eval . data=FOLDER` does it."
    return to_markdown(sections) if sections else nothing


def making(provenance: Mapping[str, Any], notes: Sequence[str] = (), which: str = "", inputs: str = "images") -> str:
    """The section on where weights and data come from. which: the weights of a run that were kept, as a phrase.
    inputs: what the samples are called."""
    data = _data(provenance)
    lines: list[str] = []
    if "counts" in data:
        counts = ", ".join(f"{count:,} {split}" for split, count in data["counts"].items())
        origin = f"source {markdown.code(data['source'])}, fingerprint {markdown.code(data['fingerprint'])}"
        lines.append(f"Data: {markdown.text(_data_name(provenance))} ({origin}), {counts} {inputs}.")
    if "recipe" in provenance:
        start = f", from the weights of {markdown.text(_last(provenance['init']))}" if provenance.get("init") else ""
        steps = f", {provenance['steps']:,} steps" if "steps" in provenance else ""
        recipe = f"Recipe {markdown.code(provenance['recipe'])}, seed {provenance['seed']}"
        lines.append(f"{recipe}{steps}{start}; the weights are {which or provenance['weights']}.")
    parts = ["\n".join(lines)]
    if provenance.get("command"):
        command = markdown.code_block(shown(provenance["command"]))
        parts.append(f"To train it again, with the {inputs} in place:\n\n{command}")
    if "converted_from" in provenance:
        source = provenance["converted_from"]
        file, how = markdown.text(source["file"]), markdown.code(source["format"])
        parts.append(f"Converted by `vitral weights convert` from {file} (format {how}).")
    if "pruned" in provenance:
        parts.append(_pruned(provenance["pruned"]))
    facts = "\n".join(f"- {markdown.text(note)}" for note in (*data.get("notes", ()), *notes))
    made = provenance.get("versions") or {}
    by = f"Made with Vitral {made['vitral']} and torch {made['torch']}." if {"vitral", "torch"} <= made.keys() else ""
    body = "\n\n".join(part for part in (*parts, facts, by) if part)
    return f"## Making\n\n{body}" if body else ""


def _which(config: FolderConfig) -> str:
    """Which weights of a run are kept; empty where they are of no run."""
    provenance = config.provenance
    if "weights" not in provenance:
        return ""
    if not config.make_task().has_head and not provenance.get("validated"):
        return f"{provenance['weights']} of the last step"
    chosen = "the best on validation data" if provenance.get("validated", True) else "the last"
    return f"{provenance['weights']} of step {provenance['step']}, {chosen}"


def _pruned(pruned: dict[str, Any]) -> str:
    (before, after), (work, left) = pruned["parameters"], pruned["macs"]
    source, images = markdown.text(_last(pruned["model"])), f"{pruned['images']} {pruned['split']} images of"
    return (
        f"Then made smaller by `vitral prune` from {source}: {after:,} of {before:,} parameters,\n"
        f"{100 * left / work:.1f} % of the multiply-accumulates. What matters was measured on {images}\n"
        f"{markdown.text(pruned['data'])}. Not fine-tuned since: `vitral train finetune init=.` makes it better."
    )


def _use(config: FolderConfig) -> str:
    if config.make_task().has_head:
        verb, others = "predict", ("vitral eval . data=FOLDER", "vitral export . format=onnx out=for-onnxruntime")
        more = "\n\n`format=hf` and `format=timm` write it for transformers and timm, where these have such a model."
    else:
        others = "vitral probe . data=FOLDER", "vitral train finetune init=. data=FOLDER"
        verb, others = "embed", (*config.make_task().more_commands, *others)
        more = ""
    return f"""## Use

With Vitral and its extra `hub` (`pip install -e ".[hub]"` in a checkout), in this folder, or with the name of its
repository on the hub instead of `.`:

```
vitral {verb} . photo.jpg
{chr(10).join(others)}
```

```python
import vitral

vitral.load(".").{verb}(["photo.jpg"])
```{more}"""


def _limits(config: FolderConfig) -> str:
    shown = config.preprocessing
    height, width = shown.image_size
    ways = {"crop": "scaled and cut at the center", "squash": "squashed", "pad": "scaled, with gray beside it,"}
    fitted = ways[shown.resize_mode]
    converted = "converted_from" in config.provenance
    lines = [
        f"An image is {fitted} to {height} x {width} pixels: what is smaller or outside of that is not seen.",
        *(["Color is turned into gray before the model sees it."] if shown.channels == 1 else []),
        "The numbers hold for images like those that they were measured on; other cameras, crops, places or people "
        "need a test of their own.",
        config.make_task().limits,
        "Not tested: foreign images, damaged or altered ones, images made to deceive, and whether groups of people or "
        "things are treated alike.",
        "License: that of the original weights, which is not stated here."
        if converted
        else "License: not stated. It depends on the images and on the weights that the training started from.",
    ]
    return "## Limits\n\n" + "\n".join(f"* {line}" for line in lines)


def _data(provenance: Mapping[str, Any]) -> dict[str, Any]:
    data = provenance.get("data")
    return data if isinstance(data, dict) else {}


def _data_name(provenance: Mapping[str, Any]) -> str:
    data = _data(provenance)
    return str(data.get("name") or _last(data.get("path") or data.get("source") or "unknown"))


def _last(path: str) -> str:
    """The last part of a path: the rest is nobody else's business."""
    return str(path).replace("\\", "/").rstrip("/").rpartition("/")[2] or str(path)


def _objective(config: FolderConfig) -> str:
    return str(config.provenance.get("objective") or "supervised")
