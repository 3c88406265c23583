"""`vitral docs`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vitral.cli.main import Arguments
from vitral.cli.usage import fitted
from vitral.errors import UserError, nearest

HELP = """usage: vitral docs [PAGE]

Lists the pages of the documentation, or prints one as Markdown.

examples:
  vitral docs
  vitral docs serving
"""


def run(arguments: Arguments) -> int:
    """List the pages, or print one."""
    if arguments.help:
        print(fitted(HELP), end="")
        return 0
    if arguments.pairs or len(arguments.words) > 1:
        raise UserError("one page at a time", got=" ".join([*arguments.words, *arguments.pairs]))
    found = pages()
    if not found:
        raise UserError("the pages are not in this installation", where="docs", hint="Install a wheel or a checkout.")
    if not arguments.words:
        width = max(map(len, found))
        for name, path in found.items():
            title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
            print(f"{name:<{width}}  {title}")
        return 0
    name = arguments.words[0].removeprefix("docs/").removesuffix(".md")
    if name not in found:
        raise UserError("no such page", where=name, wanted=", ".join(found), nearest=nearest(name, found))
    print(found[name].read_text(encoding="utf-8"), end="")
    return 0


def pages() -> dict[str, Path]:
    """Names and files of the documentation: in the package, or beside the sources of a checkout."""
    package = Path(str(resources.files("vitral")))
    for folder in (package / "docs", package.parents[1] / "docs"):
        if found := sorted(folder.glob("*.md")):
            return {path.stem: path for path in found}
    return {}
