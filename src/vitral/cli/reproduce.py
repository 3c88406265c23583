"""`vitral reproduce`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitral.cli.command import Answer, Arguments, command, group, own_options
from vitral.cli.table import table
from vitral.cli.usage import page
from vitral.reproduce.config import BiasOptions, ReproduceOptions

HELP = """usage: vitral reproduce positions|inductive-bias [key=value ...] [--json]

Repeats a comparison of the ViT paper at your scale, with several seeds per row, and prints the table.

positions       no positions, 1-D, 2-D and relative ones, at the stem or in every layer (appendix D.4, table 8), beside
                the paper's numbers; checks whether the paper's ordering holds
inductive-bias  ViT and ResNet on fractions of the train images, and the share of predictions unchanged by shifts of the
                image (sections 3.1 and 4.3), with a plot. Both train with the recipe's optimizer and learning rate
                (tuned for ViT unless optim.* is given) and the same number of steps for every fraction

{keys}

and every key of `vitral train` except those that the comparison sets: seed, overwrite, finish, train.steps,
train.epochs, data.path, data.source; for positions also model.positions and model.positions_at; for inductive-bias also
model.name (vit= and cnn= name the presets; other model.* keys apply to the ViT). Ctrl-C saves and prints the command
that continues.

examples:
  vitral reproduce positions data=digits
  vitral reproduce positions data=PHOTOS seeds=5 steps=3000 model.pool=cls
  vitral reproduce inductive-bias fractions=0.1,1 cnn=resnet18_cifar
"""


def _help(words: Sequence[str]) -> str:
    return page(HELP, BiasOptions, words)


@command(HELP, help_page=_help)
def _positions(arguments: Arguments) -> Answer:
    options, pairs = own_options(ReproduceOptions, arguments.pairs)
    from vitral.reproduce.position_embeddings import positions

    found = positions(options, pairs)
    return Answer(found, lambda: positions_text(found))


@command(HELP, help_page=_help)
def _bias(arguments: Arguments) -> Answer:
    options, pairs = own_options(BiasOptions, arguments.pairs)
    from vitral.reproduce.inductive_bias import inductive_bias

    found = inductive_bias(options, pairs)
    return Answer(found, lambda: bias_text(found))


def positions_text(found: Mapping[str, Any]) -> str:
    """Return the table of positions and its conclusions as text."""
    rows = [
        (
            row["variant"],
            *("-" if value is None else f"{100 * value:.2f}" for value in (row["mean"], row["std"], row["paper"])),
        )
        for row in found["rows"]
    ]
    c = found["claims"]
    return "\n".join([
        table(("positions", "top-1, %", "std", "paper, %"), rows), "",
        f"{found['seeds']} seeds per row, {found['count']} {found['split']} images of {found['data']}, "
        f"{found['steps']} steps; paper: ViT-B/16, ImageNet, 5 shots (table 8)",
        f"none is the worst: {'yes' if c['none_is_worst'] else 'no'} (paper: yes); the mean of all others is higher by "
        f"{100 * c['gap']:.2f} +- {100 * c['gap_error']:.2f} points (paper: {100 * c['gap_paper']:.2f})",
        f"range among the others: {100 * c['range']:.2f} points (paper: {100 * c['range_paper']:.2f})",
        f"rank correlation with the paper over its {sum(row['paper'] is not None for row in found['rows'])} rows: "
        f"{c['rank_correlation']:.2f}",
    ])  # fmt: skip


def bias_text(found: Mapping[str, Any]) -> str:
    """Return the table of ViT and CNN and the lead of the CNN as text."""
    keys = ("mean", "std", "consistency_mean", "consistency_std")
    rows = [
        (row["model"], f"{row['fraction']:g}", row["images"], *(f"{100 * row[key]:.2f}" for key in keys))
        for row in found["rows"]
    ]
    means = {(row["model"], row["fraction"]): row["mean"] for row in found["rows"]}
    leads = {f: 100 * (means["CNN", f] - means["ViT", f]) for f in found["fractions"]}
    return "\n".join([
        table(("model", "fraction", "images", "top-1, %", "std", "unchanged by shifts, %", "std"), rows), "",
        f"{found['seeds']} seeds per row; shifts by {found['shift']} pixels in 8 directions",
        f"both models with the recipe's optimizer and learning rate, unless optim.* was given; {found['steps']} "
        "steps for every fraction",
        f"lead of the CNN, points: {', '.join(f'{lead:+.2f} at {f:g}' for f, lead in leads.items())}",
    ])  # fmt: skip


run = group(HELP, {"positions": _positions, "inductive-bias": _bias}, BiasOptions)
