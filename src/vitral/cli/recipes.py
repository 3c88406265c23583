"""`vitral recipes`."""

from __future__ import annotations

import json

from vitral.cli.main import Arguments
from vitral.cli.usage import fitted
from vitral.errors import UserError, nearest
from vitral.run.config import recipes

HELP = """usage: vitral recipes [RECIPE] [--json]

Lists the training recipes, or prints one: the YAML file to copy and change.

examples:
  vitral recipes
  vitral recipes digits > mine.yaml
"""


def run(arguments: Arguments) -> int:
    """List the recipes, or print one."""
    if arguments.help:
        print(fitted(HELP), end="")
        return 0
    known = recipes()
    if arguments.pairs or len(arguments.words) > 1:
        raise UserError("one recipe at most is wanted", got=" ".join([*arguments.words, *arguments.pairs]))
    if arguments.words:
        name = arguments.words[0]
        if name not in known:
            raise UserError("no such recipe", where=name, wanted=", ".join(known), nearest=nearest(name, known))
        print(known[name].read_text(encoding="utf-8"), end="")
        return 0
    summaries = {name: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for name, path in known.items()}
    if arguments.json:
        print(json.dumps([{"name": name, "summary": text} for name, text in summaries.items()]))
        return 0
    width = max(map(len, summaries))
    for name, text in summaries.items():
        print(f"{name:<{width}}  {text}")
    return 0
