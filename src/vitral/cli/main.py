"""The command `vitral`: finds the command, turns mistakes into one message and an exit code."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NamedTuple, TextIO, cast

from vitral.config import split_words
from vitral.distributed import launch
from vitral.errors import Interrupted, RunFailed, UserError, nearest, printable
from vitral.version import __version__

COMMANDS = {
    "train": "train a model by a recipe, on your images or built-in ones",
    "sweep": "compare settings on a part of the train images, train the best on all of them",
    "eval": "measure a model: accuracy with its interval, per class, calibration",
    "probe": "judge a model's features: nearest neighbours, linear classifier, few shots",
    "plan": "memory and work of a recipe or a model, before anything runs",
    "predict": "name what is on images",
    "embed": "features of images, as a file or as JSON lines",
    "explain": "look inside: attention, rollout, gradients, layers, filters, positions",
    "prune": "a smaller model: the heads and hidden features that matter least are taken out",
    "reproduce": "a paper's comparison at your scale: position embeddings, ViT against ResNet",
    "data": "check images and labels, say what they consist of, convert them",
    "weights": "read the weights of other libraries: convert, inspect",
    "export": "write a model for another library or runtime, and prove it",
    "serve": "answer over HTTP: predictions, features, attention, with dynamic batching",
    "push": "bring a model folder to the Hugging Face hub",
    "models": "list the model presets with their sizes",
    "recipes": "list the training recipes, or show one",
    "doctor": "versions, device, memory, speed: what a bug report needs",
}

HELP = """Vitral: the Vision Transformer, whole.

usage: vitral COMMAND [words] [key=value ...] [--json] [--help]

{commands}

vitral COMMAND --help says more; --version prints the version; --debug shows tracebacks.
Keys are written as in the YAML files, with dots: optim.lr=3e-4

  vitral train digits                        a first model in a minute
  vitral train small data=PHOTOS             a model of your own images, one folder a class
  vitral predict runs/NAME/model photo.jpg   what it sees
"""

FLAGS = ("--json", "--help", "--debug", "--version")


class Arguments(NamedTuple):
    """One command line, cut up: plain words, key=value pairs, flags."""

    words: list[str]
    pairs: dict[str, str]
    json: bool
    help: bool


def entry() -> None:
    """The console script: exits with `main`'s code."""
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run one command: 0 done, 1 failed, 2 wrong usage, config or data, 3 threshold missed, 128 + signal if stopped."""
    if isinstance(sys.stdout, TextIOWrapper):  # a pipe or terminal that cannot show a name shows its escape
        sys.stdout.reconfigure(errors="backslashreplace")
    stream = sys.stdout
    sys.stdout = cast(TextIO, _Printable(stream))
    try:
        return _main(argv)
    finally:
        sys.stdout = stream


class _Printable:
    """stdout without control characters, which names in files and folders may hold."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text with its control characters as escapes."""
        return self._stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _main(argv: list[str]) -> int:
    try:
        code = _dispatch(argv)
        sys.stdout.flush()  # a closed pipe can be answered here, but not when Python flushes at exit
        return code
    except (UserError, RunFailed, Interrupted) as error:
        if "--debug" in argv:
            raise
        if launch().rank == 0 or isinstance(error, RunFailed):  # what concerns all processes is said once
            print(printable(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing may be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a path too long or forbidden; a run's own troubles arrive as RunFailed
        if "--debug" in argv:
            raise
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2


def _dispatch(argv: list[str]) -> int:
    flags = [word for word in argv if word.startswith("-")]
    words, pairs = split_words(word for word in argv if not word.startswith("-"))
    for flag in flags:
        if flag not in (*FLAGS, "-h"):
            name = re.sub(r"^-+", "", flag)
            hint = "Keys are written key=value, as in optim.lr=3e-4." if name not in FLAGS else None
            raise UserError("unknown option", where=flag, nearest=nearest(flag, FLAGS), hint=hint)
    if "--version" in flags:
        print(f"vitral {__version__}")
        return 0
    wants_help = "--help" in flags or "-h" in flags
    if not words:
        rows = "\n".join(f"  {name:<9} {summary}" for name, summary in COMMANDS.items())
        print(HELP.format(commands=rows), end="", file=sys.stdout if wants_help else sys.stderr)
        return 0 if wants_help else 2
    command = words[0]
    if command not in COMMANDS:
        raise UserError(
            "unknown command", where=command, wanted=", ".join(COMMANDS), nearest=nearest(command, COMMANDS)
        )
    if launch().world > 1 and command != "train":
        raise UserError("works in one process", where=command, got=f"{launch().world} processes", wanted="train")
    run = import_module(f"vitral.cli.{command}").run
    return int(run(Arguments(words[1:], pairs, "--json" in flags, wants_help)))
