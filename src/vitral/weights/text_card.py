"""The model card of a model that writes text."""

from __future__ import annotations

from typing import Any

import yaml

from vitral import markdown
from vitral.models.registry import FAMILIES
from vitral.models.summary import count_parameters
from vitral.report.render import to_markdown
from vitral.weights.card import making
from vitral.weights.text_folder import TextFolderConfig


def text_card(config: TextFolderConfig) -> str:
    """Markdown behind a YAML header: what the model is, its numbers with their intervals, how it was made, how to use
    it, and what nobody has tested."""
    task = config.make_task()
    reads = "an image" if config.architecture.reads_images else "a text"
    longest = config.search.max_length if config.architecture.decodes_steps else config.architecture.frames
    title = (
        f"# {markdown.text(config.name)}\n\nA {FAMILIES[config.architecture.family].title} "
        f"({count_parameters(config.architecture):,} parameters): "
        f"it reads {reads} and writes a text of up to {longest} tokens."
    )
    sections = task.card(config.provenance)
    numbers = to_markdown(sections) if sections else "## Numbers\n\nNone: nothing has been measured with these weights."
    word = "IMAGE" if config.architecture.reads_images else '--text "TEXT"'
    use = f"## Use\n\n```\nvitral predict . {word}\n```"
    limits = f"## Limits\n\n* {task.limits}\n* License: not stated. It depends on the texts of the training."
    parts = [title, numbers, making(config.provenance, inputs=task.inputs_name), use, limits]
    header = yaml.safe_dump(text_header(config), sort_keys=False)
    return f"---\n{header}---\n" + "\n\n".join(part for part in parts if part) + "\n"


def text_header(config: TextFolderConfig) -> dict[str, Any]:
    """The YAML header."""
    tags = [FAMILIES[config.architecture.family].tag]
    return {"library_name": "vitral", "pipeline_tag": config.make_task().hub_type, "tags": tags}
