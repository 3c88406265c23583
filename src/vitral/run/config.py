"""RunConfig: every key of a training run; recipes, YAML files and `key=value` words to one configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vitral.config import Count, Tree, build, describe, flatten, load_yaml, nullable, with_overrides
from vitral.config_keys import as_word
from vitral.data.config import UNLABELED, AugmentConfig, CheckConfig, DataConfig, StreamConfig
from vitral.errors import UserError, command, nearest
from vitral.evaluate.config import Evaluators
from vitral.models.config import ModelConfig
from vitral.models.presets import PRESETS, resolve
from vitral.models.registry import families_of
from vitral.objectives.config import ObjectiveConfig, SupervisedConfig
from vitral.run.run_keys import RunKeys
from vitral.run.text_config import TextRunConfig
from vitral.training.config import LoraConfig

_NULL = (None, "null", "")
_FROM_DATA = ("family", "image_size", "in_channels", "num_classes", "mean", "std", "tokenizer")


class ModelOptions(nullable(*families_of(ModelConfig).values(), exclude=_FROM_DATA)):  # pyright: ignore[reportUntypedBaseClass]
    """A preset and changes of it; null leaves the preset's value."""

    name: str = Field(default="auto", description="model preset (see `vitral models`); auto: the architecture of init")
    patch_size: Count | Literal["auto"] | None = Field(
        default=None, description="side length of a patch in pixels; auto: about 8 patches per side, of 2 pixels up"
    )
    tokenizer: str | None = Field(
        default=None,
        description="Image GPT: image tokenizer whose codes are predicted, a run or model folder of "
        "objective.kind=tokenizer; it is copied into the model and not trained; null: a palette of colors",
    )
    head_bias: float = Field(
        default=0.0, description="initial value of the head's biases; with objective.loss=sigmoid -6.9 for rare classes"
    )

    def options(self) -> dict[str, Any]:
        """Return the options that are set, as `models.presets.resolve` takes them."""
        return {
            key: value
            for key, value in self.model_dump(exclude={"name", "head_bias", "tokenizer"}).items()
            if value is not None
        }


class RunConfig(RunKeys):
    """Keys of a run that learns from images."""

    assembly: ClassVar[str] = "vitral.run.image_run:ImageRun"

    init_head: bool = Field(default=False, description="also load the head of init; the data need the same classes")
    data: DataConfig = DataConfig()
    check: CheckConfig = CheckConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelOptions = ModelOptions()
    lora: LoraConfig = LoraConfig()
    eval: Evaluators = Field(
        default_factory=dict,
        description="evaluators by name, each with its keys, as {clean: {}}; the first one's metric chooses the best "
        "checkpoint; none: the default of the task",
    )
    objective: ObjectiveConfig = SupervisedConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        if self.init is None and self.model.name == "auto":
            raise ValueError(
                "init=MODEL (a run, a file or a hub name) or model.name=PRESET is needed; presets: vitral models"
            )
        if self.init_head and (self.init is None or self.model.head_bias):
            raise ValueError("init_head=true loads the head of init: set init=MODEL, and not model.head_bias")
        self.objective.check(self)
        self._check_streams()
        if self.train.patience is not None and (self.data.validation == "none" or self.train.eval_every == "end"):
            raise ValueError("train.patience needs validations during the run")
        self._check_frozen()
        if self.train.parallel == "fsdp" and self.optim.name in ("muon", "lars"):
            raise ValueError(f"{self.optim.name} needs whole matrices: not with train.parallel=fsdp, but with ddp")
        if self.train.parallel == "fsdp" and self.precision == "bfloat16_params":
            raise ValueError("precision=bfloat16_params keeps whole copies: not with train.parallel=fsdp, but with ddp")
        return self

    def _check_streams(self) -> None:
        """Check the images without labels against the streams, and mixing against the streams that mix."""
        data, streams = self.data, self.objective.streams
        part = "data.labeled_images" if self.objective.learns_boxes else "data.labels_per_class"
        ways = {f"data.{key}": getattr(data, key) for key in ("unlabeled", "labels_per_class", "labeled_images")}
        given = [key for key, value in ways.items() if value is not None]
        if UNLABELED not in streams:
            given = [key for key in given if key != part or not self.objective.learns_boxes]
            if given or data.unlabeled_ratio != 1:
                keys = ", ".join([*given, *(["data.unlabeled_ratio"] if data.unlabeled_ratio != 1 else [])])
                hint = ". data.shots=N trains on N images of each class and leaves the others out"
                raise ValueError(
                    f"objective.kind={self.objective.kind} learns from no unlabeled images, so {keys} would have no "
                    "effect" + (hint if data.labels_per_class is not None else "")
                )
        elif len(given) != 1:
            raise ValueError(
                f"objective.kind={self.objective.kind} learns from unlabeled images too, of one source: expected "
                f"data.unlabeled=PATH or {part}=N, got {' and '.join(given) or 'neither'}"
            )
        elif data.labels_per_class is not None and data.shots is not None:
            raise ValueError("data.shots leaves out the images that data.labels_per_class would use without labels")
        if (self.augment.mixup or self.augment.cutmix) and not any(traits.mixed for traits in streams.values()):
            raise ValueError(
                f"objective.kind={self.objective.kind} mixes no images: set augment.mixup=0 augment.cutmix=0"
            )
        if (self.augment.mosaic or self.augment.copy_paste) and not self.objective.learns_boxes:
            raise ValueError(
                f"objective.kind={self.objective.kind} learns no boxes: set augment.mosaic=0 augment.copy_paste=0"
            )

    def _check_frozen(self) -> None:
        alone = self.train.freeze == "encoder"
        first = self.objective.head_only
        keys = {"objective.head_only_fraction": first, "lora.rank": self.lora.rank, "train.freeze": alone}
        for key, value in keys.items():
            if value and self.init is None:
                raise ValueError(f"{key} needs init: without it the encoder would stay random")
        model = self.model.options()
        idle = {
            "objective.head_only_fraction=0": first, "lora.rank=null": self.lora.rank,
            "optim.layer_decay=1": self.optim.layer_decay != 1, "model.dropout=0": model.get("dropout"),
            "model.drop_path=0": model.get("drop_path"),
            "train.activation_checkpointing=none": self.train.activation_checkpointing not in ("auto", "none"),
        }  # fmt: skip
        if alone and any(idle.values()):
            off = [word for word, is_on in idle.items() if is_on]
            names = ", ".join(word.partition("=")[0] for word in off)
            # A recipe may have set it: the message holds the words that turn it off.
            raise ValueError(f"no effect with train.freeze=encoder: {names}. Set {' '.join(off)}")


def recipes() -> dict[str, Path]:
    """Return names and files of the recipes in the package."""
    root = resources.files("vitral") / "recipes"
    return {path.stem: path for path in sorted(Path(str(root)).glob("*.yaml"))}


def load_config(recipe: str | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Load the configuration of a run on images, see `load_run`. Raises UserError for a recipe of another kind."""
    config = load_run(recipe, overrides)
    if not isinstance(config, RunConfig):
        hint = "vitral train, eval, predict, serve, export and summary work with models that write text."
        raise UserError("this works for models of images only, so far", where=config.recipe, hint=hint)
    return config


def load_run(recipe: str | None, overrides: Mapping[str, Any]) -> RunKeys:
    """Load a recipe by its name or a YAML file, with dotted keys on top; a path of images means `small` on these.
    Raises UserError for anything unknown or wrong.

    `data=X` is short for `data.path=X`; a path given without a source makes the source `auto`; train.epochs given
    replaces a recipe's train.steps, and data.unlabeled its data.labels_per_class or data.labeled_images; a model.name
    replaces the parts of the model that its preset sets, and, if the family differs from the recipe's, all model keys
    of the recipe; another objective.kind replaces all objective keys of the recipe. The default recipe is `small` if
    data is given, else `digits`.
    """
    if recipe is not None:
        recipe, overrides = recipe_and_data([recipe], overrides)
    overrides = flatten(expand_data(overrides))
    if "train.epochs" in overrides:
        overrides.setdefault("train.steps", None)
    recipe = recipe or ("small" if "data.path" in overrides else "digits")
    path = _recipe_path(recipe)
    tree = load_yaml(path)
    if path in recipes().values():
        tree.setdefault("recipe", recipe)
    model, kind = run_class(tree), overrides.get("objective.kind")
    if model is RunConfig:
        if overrides.get("data.unlabeled") not in _NULL:
            overrides |= {key: overrides.get(key) for key in ("data.labels_per_class", "data.labeled_images")}
        if "data.path" in overrides:
            overrides.setdefault("data.source", "auto")
        if kind is not None and kind != flatten(tree).get("objective.kind", "supervised"):
            tree.pop("objective", None)
            tree.pop("eval", None)  # evaluators of another task
    _resolve_name(tree, overrides.get("model.name"))
    return build(model, with_overrides(model, tree, overrides))


def run_class(tree: Mapping[str, Any]) -> type[RunKeys]:
    """Return the class of a run's configuration, by its key `task`."""
    return TextRunConfig if tree.get("task") == "text" else RunConfig


def is_recipe(word: str) -> bool:
    """Return whether a word is the name of a recipe or of a YAML file."""
    return word in recipes() or Path(word).suffix in (".yaml", ".yml")


def recipe_and_data(words: Sequence[str], keys: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the recipe among the words, and the keys; a word that is a path and no recipe is the data. Raises
    UserError for more than one of either."""
    paths = [word for word in words if not is_recipe(word) and Path(word).expanduser().exists()]
    named = [word for word in words if word not in paths]
    if len(named) > 1:
        raise UserError("one recipe at a time", got=" ".join(named), hint="Other words are key=value, as data=PHOTOS.")
    recipe = next(iter(named), None)
    if not paths:
        return recipe, dict(keys)
    given = [f"{key}={keys[key]}" for key in ("data", "data.path") if keys.get(key) not in _NULL]
    if len(paths) > 1 or given:
        raise UserError("one path of data at a time", where="data", got=" ".join([*paths, *given]))
    return recipe, {**keys, "data": paths[0]}


def _resolve_name(tree: Tree, name: object) -> None:
    """Remove from a recipe's model the keys that contradict the preset `name`."""
    before = flatten(tree).get("model.name")
    if str(name) not in PRESETS:
        return
    if _family(name) != _family(before):
        tree.pop("model", None)
        return
    parts = {*PRESETS[str(name)], *PRESETS.get(str(before), {})}
    model = tree.get("model", {})
    tree["model"] = {k: v for k, v in model.items() if k not in parts or (v != "auto" and name == before)}


def _family(name: object) -> str:
    """Return the family of a preset; `auto` counts as ViT, whose keys the recipes with init set."""
    return PRESETS.get(str(name), {}).get("family", "vit")


def expand_data(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `data=X` as `data.path=X` and paths as text. Raises UserError if both are given (null: not given)."""
    keys = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in overrides.items()}
    if "data" in keys and not isinstance(keys["data"], Mapping):
        if keys["data"] in _NULL:
            del keys["data"]
            return {"data.path": None, **keys}
        if keys.get("data.path") not in _NULL:
            raise UserError(
                "given twice: as data and as data.path", where="data", got=f"{keys['data']} and {keys['data.path']}"
            )
        keys["data.path"] = keys.pop("data")
    return keys


def _recipe_path(recipe: str) -> Path:
    known = recipes()
    if recipe in known:
        return known[recipe]
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise UserError("no such file", where=recipe)
    raise UserError("unknown recipe", where=recipe, expected=", ".join(known), nearest=nearest(recipe, known))


def recipe_values(recipe: str) -> Tree:
    """Return the settings of a recipe with dotted keys, which `--help` shows as defaults."""
    return flatten(load_yaml(_recipe_path(recipe)))


def keys_of(recipe: str | None) -> type[RunKeys]:
    """Return the class of the keys of a recipe, for `--help`."""
    return RunConfig if recipe is None else run_class(load_yaml(_recipe_path(recipe)))


def draft_architecture(config: RunConfig) -> ModelConfig | None:
    """Return the architecture of model.name and its options before the data resolve an `auto`; None for that of init.

    Raises UserError for an unknown name, unknown options, and options that contradict each other.
    """
    if config.model.name == "auto":
        return None
    options, size = config.model.options(), config.data.image_size
    if options.get("patch_size") == "auto":
        del options["patch_size"]
    elif size != "auto":
        options["image_size"] = size
    return resolve(config.model.name, **options)


def streams_of(config: RunConfig, architecture: ModelConfig) -> dict[str, StreamConfig]:
    """Return the streams of a run's batches by name: views, samples per batch, and sampling."""
    views = config.objective.views(config.augment, architecture.image_size, architecture.stride)
    streams: dict[str, StreamConfig] = {}
    for name, traits in config.objective.streams.items():
        off: dict[str, Any] = {} if traits.mixed else {"mixup": 0.0, "cutmix": 0.0}
        batch_size, balance = config.train.batch_size, config.data.balance
        if name == UNLABELED:
            batch_size, balance = batch_size * config.data.unlabeled_ratio, "none"
            off |= {"repeated_aug": 1, "mosaic": 0.0, "copy_paste": 0.0}
        augment = config.augment.model_copy(update=off)
        streams[name] = StreamConfig(batch_size, augment, balance, views[name], traits.labeled)
    return streams


# Keys that do not change the computation: a resumed run may change them.
FREE = {
    "memory", "resume", "overwrite", "finish", "out", "recipe", "report", "device", "check.allow", "check.skip",
    "data.workers", "data.cache_mb", "train.log_every", "train.save_seconds", "train.parallel",
    "train.max_nonfinite_steps", "train.tensorboard", "train.activation_checkpointing",
}  # fmt: skip


def difference(one: RunKeys, other: RunKeys) -> list[tuple[str, Any, Any]]:
    """Return the keys in which two configurations differ, with both values, except those in FREE."""
    mine, theirs = one.model_dump(), other.model_dump()
    names = [key.name for key in describe(type(one)) if key.name not in FREE]
    rows = [(name, _value(mine, name), _value(theirs, name)) for name in names]
    return [row for row in rows if row[1] != row[2]]


def _value(tree: Any, key: str) -> Any:
    """Return the value of a dotted key, or None for an unknown key."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def reproduce_command(config: RunConfig | TextRunConfig) -> str | None:
    """The command line of a run by a bundled recipe; None for other runs. Folders are named by their last part."""
    if config.recipe not in recipes():
        return None
    given = {"init": config.init} if config.init else {}  # some recipes cannot do without
    if config.model.name != recipe_values(config.recipe).get("model.name", "auto"):
        given["model.name"] = config.model.name  # it brings its own parts
    try:
        changed = difference(load_run(config.recipe, given), config)
    except UserError:
        return None
    # The source auto is a path's own default.
    keys = [(key, value) for key, _, value in changed if (key, value) != ("data.source", "auto")]
    words = ["vitral", "train", config.recipe]
    for key, value in [*given.items(), *keys]:
        if key in ("data.path", "data.unlabeled", "init") and Path(value or "").exists():
            value = Path(value).name
        words.append(f"{key}={as_word(value)}")
    return command(*words)
