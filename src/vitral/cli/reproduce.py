"""`vitral reproduce`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from vitral.cli.command import Answer, Arguments, Run, command, group, own_options
from vitral.cli.reproduce_text import bias_text, confidence_text, fgsm_text, positions_text, vat_text
from vitral.cli.usage import page
from vitral.reproduce.config import BiasOptions, ConfidenceOptions, FgsmOptions, ReproduceOptions, VatOptions
from vitral.reproduce.lstm.config import LstmOptions

NAMES = "positions|inductive-bias|fgsm|vat|confidence|lstm"
ABOUT = {
    "positions": "no positions, 1-D, 2-D and relative ones, at the stem or in every layer (arXiv 2010.11929, appendix "
    "D.4, table 8), beside the paper's numbers; checks whether the paper's ordering holds",
    "inductive-bias": "ViT and ResNet on fractions of the train images, and the share of predictions unchanged by "
    "shifts of the image (2010.11929, sections 3.1 and 4.3), with a plot. Both train with the recipe's optimizer and "
    "learning rate (tuned for ViT unless optim.* is given) and the same number of steps for every fraction",
    "fgsm": "catastrophic overfitting of FGSM adversarial training (2001.03994, 2007.02617): FGSM, FGSM-RS, N-FGSM, "
    "FGSM + GradAlign and PGD at one radius, with a plot of accuracy under FGSM and PGD over the steps; checks whether "
    "FGSM overfits and N-FGSM does not",
    "vat": "VAT on images without labels beside the labels alone (1704.03976), on the same draws of few labels, with a "
    "plot over the number of labels; checks whether the gain is largest with the fewest",
    "confidence": "plain, embedding-FGM and pixel-FGSM training (1605.07725, 1412.6572): confidence and calibration on "
    "test images and on images of no known class, with a plot; checks whether the attacks improve them",
    "lstm": "the Transformer beside LSTMs of as many parameters (1706.03762, 1409.3215, 1409.0473, 1508.04025): "
    "accuracy, reach of gradients, speed; masks, scale, positions and heads changed, with plots and a page",
}
KEYS = {
    "positions": "model.positions and model.positions_at",
    "inductive-bias": "model.name (vit= and cnn= name the presets; other model.* keys apply to the ViT)",
    "fgsm": "objective.kind, objective.attack.kind, .eps and .steps, objective.align, eps_warmup and monitor_images",
    "vat": "objective.kind and eps, data.shots, data.labels_per_class, data.unlabeled and data.unlabeled_ratio",
    "confidence": "objective.kind, objective.attack.kind and eps, objective.clean_weight",
    "lstm": "model.name, model.attention, device and the lengths of data (model.* keys apply to the Transformer)",
}
EXAMPLES = {
    "positions": "positions data=PHOTOS seeds=5 steps=3000 model.pool=cls",
    "inductive-bias": "inductive-bias fractions=0.1,1 cnn=resnet18_cifar",
    "fgsm": "fgsm data=digits eps=0.3 seeds=2",
    "vat": "vat labels=4,10 steps=1200",
    "confidence": "confidence outside=photos seeds=5",
    "lstm": "lstm parts=gradients,speed seeds=5",
}
SHARED = """\
{keys}

and every key of `vitral train` except those that the comparison sets: seed, overwrite, finish, train.steps,
train.epochs, data.path, data.source; OWN. Ctrl-C saves and prints the command that continues. A table.json with all
numbers, and the plot, are in out.

examples:
"""


def _about(name: str) -> str:
    return f"{name:16}{ABOUT[name]}"


HELP = "\n".join([
    f"usage: vitral reproduce {NAMES} [key=value ...] [--json]", "",
    "Repeats a comparison of a paper at your scale, with several seeds per row, and prints the table.", "",
    *map(_about, ABOUT), "", "`vitral reproduce NAME --help` lists the keys of one comparison. Those of all are:", "",
    SHARED.replace("OWN", "others are on the page of each")
    + "\n".join(f"  vitral reproduce {words}" for words in EXAMPLES.values()),
])  # fmt: skip


def _help_of(name: str) -> str:
    own = SHARED.replace("OWN", f"and {KEYS[name]}")
    return (
        f"usage: vitral reproduce {name} [key=value ...] [--json]\n\n{_about(name)}\n\n{own}  vitral reproduce "
        + (EXAMPLES[name])
    )


def _comparison(name: str, options: type[Any], function: str, text: Callable[[Mapping[str, Any]], str]) -> Run:
    """Return the subcommand of a comparison: its function, "module.function" of `vitral.reproduce`, and its text."""

    def help_page(words: Sequence[str]) -> str:
        return page(_help_of(name), options, words)

    @command(HELP, help_page=help_page)
    def run(arguments: Arguments) -> Answer:
        given, pairs = own_options(options, arguments.pairs)
        module, _, attribute = function.rpartition(".")
        found = getattr(import_module(f"vitral.reproduce.{module}"), attribute)(given, pairs)
        return Answer(found, lambda: text(found))

    return run


def _lstm_text(found: Mapping[str, Any]) -> str:
    from vitral.reproduce.lstm.comparison import lstm_text

    return lstm_text(found)


run = group(
    HELP,
    {
        "positions": _comparison("positions", ReproduceOptions, "position_embeddings.positions", positions_text),
        "inductive-bias": _comparison("inductive-bias", BiasOptions, "inductive_bias.inductive_bias", bias_text),
        "fgsm": _comparison("fgsm", FgsmOptions, "fgsm.fgsm", fgsm_text),
        "vat": _comparison("vat", VatOptions, "vat.vat", vat_text),
        "confidence": _comparison("confidence", ConfidenceOptions, "confidence.confidence", confidence_text),
        "lstm": _comparison("lstm", LstmOptions, "lstm.comparison.lstm", _lstm_text),
    },
    ReproduceOptions,
)
