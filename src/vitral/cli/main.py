"""The command `vitral`: dispatch to commands; turn errors into one message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from vitral.distributed import launch
from vitral.errors import Interrupted, RunFailed, UserError, json_safe, nearest, shown_lines
from vitral.errors import command as command_line
from vitral.training.signals import CommandSignals, signum_of
from vitral.version import __version__

COMMANDS = {
    "train": "train a model with a recipe, on your images or built-in ones",
    "sweep": "compare settings, then retrain the best on all training data",
    "eval": "measure a model: accuracy with its interval, per class, calibration",
    "attack": "measure a model on adversarial images",
    "probe": "measure frozen features: k-NN, linear classifier, few shots",
    "estimate": "estimate the memory of a training run, and what fits",
    "summary": "print shapes, parameters and compute of a model",
    "predict": "classify images",
    "sample": "draw images from an Image GPT, or complete one",
    "tokenize": "turn images into integer codes, or codes into images",
    "embed": "write features of images, as a file or as JSON lines",
    "explain": "visualize attention, rollout, gradients, filters, positions",
    "prune": "remove the least important attention heads and MLP features",
    "reproduce": "repeat papers' comparisons: positions, ResNet, FGSM, VAT",
    "data": "check, describe or convert images and labels",
    "weights": "convert or inspect weights of other libraries",
    "export": "export to another library or runtime, and compare the outputs",
    "serve": "serve predictions, features and attention over HTTP",
    "push": "upload a model folder to the Hugging Face Hub",
    "models": "list the model presets with their sizes",
    "recipes": "list the training recipes, or show one",
    "docs": "list the pages of the documentation, or show one",
    "doctor": "print system facts for a bug report, or verify a model",
}

# Commands of other tools, and their equivalents.
ELSEWHERE = {
    "check": "data check", "stats": "data stats", "fit": "train", "finetune": "train finetune", "pretrain": "train",
    "val": "eval", "validate": "eval", "test": "eval", "evaluate": "eval", "infer": "predict", "classify": "predict",
    "inference": "predict", "features": "embed", "list": "models", "info": "summary", "flops": "summary",
    "plan": "estimate RECIPE, or vitral summary MODEL", "memory": "estimate", "convert": "weights convert",
    "quantize": "export", "benchmark": "export", "upload": "push", "settings": "doctor", "checks": "doctor",
}  # fmt: skip

HELP = """Vitral: train, evaluate, explain and deploy Vision Transformers on your own images.

usage: vitral COMMAND [words] [key=value ...] [--json] [--help]

{commands}

vitral COMMAND --help lists its keys; --version prints the version; --debug shows tracebacks; arguments after -- are
file names. Keys are written with dots, as in the YAML files: optim.lr=3e-4

  vitral train digits                        a first model in a minute
  vitral train small data=PHOTOS             a model for your own images, one folder per class
  vitral predict runs/NAME/model photo.jpg   classes of a photo, one JSON line per image
"""

FLAGS = ("--json", "--help", "--debug", "--version")


def entry() -> None:
    """Run the console script and exit with the code of `main`. Slow imports happen after signals are handled."""
    with CommandSignals() as signals:
        sys.exit(signals.run(lambda: main(sys.argv[1:])))


def main(argv: list[str]) -> int:
    """Run one command: 0 done, 1 failed, 2 wrong usage, config or data, 3 threshold missed, 128 + signal if stopped."""
    if isinstance(sys.stdout, TextIOWrapper):  # escapes for names that a pipe or terminal cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    stream = sys.stdout
    sys.stdout = cast(TextIO, _Printable(stream))
    try:
        return _main(argv)
    finally:
        sys.stdout = stream


class _Printable:
    """stdout that escapes control characters, which file names may contain."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text with its control characters as escapes."""
        return self._stream.write(json_safe(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _main(argv: list[str]) -> int:
    try:
        code = _dispatch(argv)
        sys.stdout.flush()  # a closed pipe is handled here, not when Python flushes at exit
        return code
    except (UserError, RunFailed, Interrupted) as error:
        if "--debug" in argv:
            raise
        if launch().rank == 0 or isinstance(error, RunFailed):  # errors of all processes are printed once
            print(shown_lines(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr)
        return 128 + signum_of(stop)
    except BrokenPipeError:
        # The reader has closed the pipe: nothing may be flushed into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a path too long or forbidden; failures of a run arrive as RunFailed
        if "--debug" in argv:
            raise
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
        print(f"error: {UserError(error.strerror or str(error) or type(error).__name__, where=where)}", file=sys.stderr)
        return 2


def _dispatch(argv: list[str]) -> int:
    from vitral.cli.usage import fitted  # here, so that `entry` already handles signals
    from vitral.config import split_words

    end = argv.index("--") if "--" in argv else len(argv)
    before, files = _with_text(argv[:end]), argv[end + 1 :]
    flags = [word for word in before if word.startswith("-")]
    words, pairs = split_words(word for word in before if not word.startswith("-"))
    for place, word in enumerate(before):
        if word.startswith("-") and word not in (*FLAGS, "-h"):
            raise _unknown_option(word, before[place + 1 :])
    words += files
    if "--version" in flags or words == ["version"]:
        print(f"vitral {__version__}")
        return 0
    wants_help = "--help" in flags or "-h" in flags
    if words[:1] == ["help"]:
        words, wants_help = words[1:], True
    if not words:
        rows = "\n".join(f"  {name:<9}  {summary}" for name, summary in COMMANDS.items())
        print(fitted(HELP.format(commands=rows)), end="", file=sys.stdout if wants_help else sys.stderr)
        return 0 if wants_help else 2
    command = words[0]
    if command not in COMMANDS:
        hint = f"Use: vitral {ELSEWHERE[command]}" if command in ELSEWHERE else None
        close = nearest(command, COMMANDS) if hint is None else None
        raise UserError("unknown command", where=command, expected=", ".join(COMMANDS), nearest=close, hint=hint)
    if launch().world > 1 and command != "train":
        what = f"`vitral {command}` cannot run under torchrun ({launch().world} processes found)"
        raise UserError(what, hint="Only `vitral train` can.")
    from vitral.cli.command import Arguments  # imports the keys of all commands

    run = import_module(f"vitral.cli.{command}").run
    try:
        return int(run(Arguments(words[1:], pairs, "--json" in flags, wants_help)))
    except UserError as error:
        names = [name for name in (f"{key}={value}" for key, value in pairs.items()) if Path(name).exists()]
        if not names:
            raise
        hint = f"A file of this name exists. To pass it: {command_line(f'./{names[0]}')}"
        raise UserError(str(error), hint=hint) from None


def _with_text(words: list[str]) -> list[str]:
    """`--text TEXT` as the key `text`; the text is taken as it is."""
    if "--text" not in words:
        return words
    place = words.index("--text")
    if place + 1 == len(words):
        raise UserError("no text is given", where="--text", expected='--text "TEXT"')
    return [*words[:place], f"text={words[place + 1]}", *words[place + 2 :]]


def _unknown_option(word: str, after: Sequence[str]) -> UserError:
    """Return the error of an unknown option: it may be a key, or a file whose name starts with a dash."""
    if Path(word).exists():
        return UserError("an existing file looks like an option", where=word, hint=f"To pass it: ./{word}")
    name, equals, value = word.lstrip("-").partition("=")
    if not equals and (close := nearest(word, FLAGS)):
        return UserError("unknown option", where=word, nearest=close)
    if not equals:
        value = after[0] if after and not after[0].startswith("-") else "VALUE"
    hint = f"Keys are written key=value: {command_line(f'{name}={value}')}"
    return UserError("unknown option", where=word, hint=hint)
