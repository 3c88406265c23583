"""`vitral docs`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vitral.cli.command import Answer, Arguments, NoKeys, command
from vitral.cli.table import table
from vitral.errors import UserError, nearest

HELP = """usage: vitral docs [PAGE] [--json]

Lists the pages of the documentation, or prints one as Markdown.

examples:
  vitral docs
  vitral docs serving
"""


@command(HELP, NoKeys)
def run(arguments: Arguments, _: NoKeys) -> Answer:
    """List the pages, or print one."""
    found = pages()
    if not found:
        raise UserError("this installation has no documentation", hint="Install a wheel or work in a checkout.")
    if not arguments.words:
        texts = {name: path.read_text(encoding="utf-8") for name, path in found.items()}
        titles = {name: text.partition("\n")[0].lstrip("# ") for name, text in texts.items()}
        return Answer(titles, lambda: table((), titles.items()))
    name = arguments.words[0].removeprefix("docs/").removesuffix(".md")
    if name not in found:
        raise UserError("unknown page", where=name, expected=", ".join(found), nearest=nearest(name, found))
    text = found[name].read_text(encoding="utf-8")
    return Answer({"page": name, "markdown": text}, lambda: text.removesuffix("\n"))


def pages() -> dict[str, Path]:
    """Return names and files of the documentation: in the package, or in a checkout."""
    package = Path(str(resources.files("vitral")))
    for folder in (package / "docs", package.parents[1] / "docs"):
        if found := sorted(folder.glob("*.md")):
            return {path.stem: path for path in found}
    return {}
