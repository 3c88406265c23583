"""Shared parts of all commands: positional arguments and keys, help page, JSON or text, exit codes.

A command is a function that takes its arguments and options and returns an `Answer`. The first line of its help page
defines its positional arguments: MODEL is required, [NAME] optional, IMAGE... may be repeated.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vitral.cli.usage import page
from vitral.config import Config, ConfigT, build, with_overrides
from vitral.errors import UserError, nearest
from vitral.models.presets import PRESETS
from vitral.models.registry import families_of
from vitral.models.sequence_config import SequenceConfig
from vitral.run.config import expand_data
from vitral.weights.text_kind import is_text_model


class Arguments(NamedTuple):
    """One command line, parsed: positional arguments, key=value pairs, flags."""

    words: list[str]
    pairs: dict[str, str]
    json: bool
    help: bool


class Answer(NamedTuple):
    """Result of a command: `data` is printed as JSON with --json, else `text()`; `code` is the exit code."""

    data: Any
    text: Callable[[], str]
    code: int = 0


class NoKeys(Config):
    """Options of a command that takes no keys."""


Run = Callable[[Arguments], int]


def command(
    usage: str, options: type[Config] | None = None, *, text: type[Config] | None = None,
    help_page: Callable[[Sequence[str]], str] | None = None,
) -> Callable[[Callable[..., Answer | int]], Run]:  # fmt: skip
    """Decorate the function of a command. usage: its help page, with {keys} in place of the keys of `options`. Without
    `options` the command parses its pairs. text: the keys where the first word is a model that writes text, or a preset
    of one. A command that prints while it works returns its exit code.

    --help and wrong usage are handled before the decorated function imports anything.
    """

    def keys(arguments: Arguments) -> type[Config] | None:
        return text if text is not None and arguments.words and _writes_text(arguments.words[0]) else options

    def decorate(work: Callable[..., Answer | int]) -> Run:
        def run(arguments: Arguments) -> int:
            if arguments.help:
                print(
                    help_page(arguments.words) if help_page else page(usage, keys(arguments), arguments.words), end=""
                )
                return 0
            _check_words(usage, arguments.words)
            own = keys(arguments)
            answer = work(arguments) if own is None else work(arguments, _options(own, arguments.pairs))
            if isinstance(answer, int):
                return answer
            print(json.dumps(answer.data) if arguments.json else answer.text())
            return answer.code

        return run

    return decorate


def group(usage: str, commands: Mapping[str, Run], options: type[Config] | None = None) -> Run:
    """Return a command with subcommands, selected by the first word. options: keys on the common help page."""

    def run(arguments: Arguments) -> int:
        if not arguments.words:
            print(page(usage, options), end="", file=sys.stdout if arguments.help else sys.stderr)
            return 0 if arguments.help else 2
        name, *words = arguments.words
        if name not in commands:
            close = nearest(name, commands)
            raise UserError("unknown subcommand", where=name, expected=", ".join(commands), nearest=close)
        return commands[name](arguments._replace(words=words))

    return run


def own_options(model: type[ConfigT], pairs: Mapping[str, str]) -> tuple[ConfigT, dict[str, str]]:
    """Split the keys of a command that starts training runs: its own options, and the keys of the runs."""
    own = {key: value for key, value in pairs.items() if key in model.model_fields}
    return build(model, with_overrides(model, {}, own)), {key: pairs[key] for key in pairs if key not in own}


def missed(messages: Sequence[str]) -> int:
    """Print one message on stderr per missed limit. Return exit code 3, or 0 without messages."""
    for text in messages:
        print(text, file=sys.stderr)
    return 3 if messages else 0


def _writes_text(model: str) -> bool:
    """Whether MODEL, a folder or a preset, writes text."""
    return is_text_model(model) or PRESETS.get(model, {}).get("family") in families_of(SequenceConfig)


def _options(model: type[ConfigT], pairs: Mapping[str, str]) -> ConfigT:
    keys = expand_data(pairs) if "data" in model.model_fields else pairs
    return build(model, with_overrides(model, {}, keys))


def _check_words(usage: str, words: Sequence[str]) -> None:
    """Raise UserError for positional arguments that the usage line does not allow."""
    lines = usage.partition("\n\n")[0]
    parts = re.sub(r"^usage: vitral (?:[a-z|-]+ )*", "", lines.partition("\n")[0] + " ")
    names = [part for part in re.findall(r"\[[^]]*\]|\S+", parts) if re.match(r"\[?[A-Z][^=]*([|].*)?$", part)]
    required = [name for name in names if not name.startswith("[") and "=" not in name]
    most = float("inf") if any("..." in name for name in names) else len(names)
    if len(words) < len(required):
        raise UserError(f"missing argument: {' '.join(required[len(words) :])}", hint=lines)
    if len(words) > most:
        raise UserError(f"unexpected argument: {' '.join(words[len(names) :])}", hint=lines)
