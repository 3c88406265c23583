"""`vitral recipes`."""

from __future__ import annotations

from vitral.cli.command import Answer, Arguments, NoKeys, command
from vitral.cli.table import table
from vitral.errors import UserError, nearest
from vitral.run.config import recipes

HELP = """usage: vitral recipes [RECIPE] [--json]

Lists the training recipes, or prints one: the YAML file to copy and change.

examples:
  vitral recipes
  vitral recipes digits > mine.yaml
"""


@command(HELP, NoKeys)
def run(arguments: Arguments, _: NoKeys) -> Answer:
    """List the recipes, or print one."""
    texts = {name: path.read_text(encoding="utf-8") for name, path in recipes().items()}
    if arguments.words:
        name = arguments.words[0]
        if name not in texts:
            raise UserError("unknown recipe", where=name, expected=", ".join(texts), nearest=nearest(name, texts))
        return Answer({"name": name, "yaml": texts[name]}, lambda: texts[name].removesuffix("\n"))
    summaries = {name: text.splitlines()[0].lstrip("# ") for name, text in texts.items()}
    rows = [{"name": name, "summary": text} for name, text in summaries.items()]
    return Answer(rows, lambda: table((), summaries.items()))
