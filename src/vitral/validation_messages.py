"""Turn validation errors of a configuration into messages: one per key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from vitral.config_keys import Key, describe, flatten
from vitral.errors import UserError, nearest, nearest_key

# The value has another type than the key: the message lists what the key takes.
_OF_TYPE = {
    "int_type", "int_parsing", "int_from_float", "int_parsing_size", "float_type", "float_parsing", "bool_type",
    "bool_parsing", "string_type", "literal_error", "tuple_type", "list_type", "none_required",
}  # fmt: skip
_GROUP = {"model_type", "model_attributes_type", "dict_type", "union_tag_not_found"}
# The type is right, the value is not.
_LIMITS = {
    "finite_number": "a finite number", "greater_than": "greater than {gt}", "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}", "less_than_equal": "{le} or less", "too_short": "{min_length} or more values",
    "too_long": "at most {max_length} values", "dict_type": "a group of keys", "model_type": "a group of keys",
}  # fmt: skip
# Names in other tools: the first of our keys that a command has is suggested.
_ELSEWHERE = {
    "data.path": "dataset images folder path root data_dir train_dir",
    "train.batch_size batch_size": "batch bs batch_size per_device_train_batch_size",
    "data.image_size image_size": "imgsz img_size input_size size resolution image_size",
    "init": "pretrained weights checkpoint ckpt finetune initial_checkpoint",
    "train.epochs": "max_epochs num_epochs num_train_epochs n_epochs epochs",
    "train.steps": "max_steps iterations",
    "optim.lr": "lr lr0 learning_rate base_lr blr",
    "optim.name": "optimizer opt", "optim.weight_decay": "wd weight_decay decay", "optim.clip": "clip_grad",
    "optim.schedule": "sched lr_scheduler_type scheduler",
    "optim.warmup": "warmup_epochs warmup_ratio warmup_steps",
    "model.name": "arch architecture backbone model_name", "model.drop_path": "drop_path",
    "augment.policy": "aa auto_augment auto_aug", "augment.mixup": "mixup", "augment.cutmix": "cutmix",
    "augment.flip": "hflip fliplr", "objective.label_smoothing": "label_smoothing smoothing",
    "train.ema": "model_ema ema", "train.patience": "patience", "train.freeze": "freeze",
    "data.workers": "workers num_workers dataloader_num_workers",
    "data.val_fraction": "val_split valid_pct split_ratio",
    "precision": "amp half fp16 bf16 mixed_precision", "overwrite": "exist_ok",
    "out": "output output_dir output_path project name save_dir dst", "topk": "top_k top topk",
}  # fmt: skip
_ALIASES = {alias: ours.split() for ours, names in _ELSEWHERE.items() for alias in names.split()}


def complaint(model: type[BaseModel], name: str, details: list[ErrorDetails]) -> UserError:
    """Return the message about one key; a union of types reports one error per member."""
    keys = {key.name: key for key in describe(model)}
    detail = details[0]
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found") and isinstance(detail["input"], Mapping):
        return _wrong_tag(name, detail)
    if detail["type"] == "extra_forbidden":
        return _unknown_key(keys, name, detail["input"])
    if detail["type"] == "value_error":
        return UserError(str(detail["msg"]).removeprefix("Value error, "), where=name or None)
    below = [key for key in keys.values() if key.name.startswith(f"{name}.")]
    if below and name not in keys and any(each["type"] in _GROUP for each in details):
        return _group(name, detail["input"], below)
    expected = keys[name].type_text if name in keys else None
    if detail["type"] == "missing" and not _in_list(detail):
        named = keys[name].help if name in keys else f"Its keys: {', '.join(key.name for key in below[:4])}"
        return UserError("required, but not given", where=name, expected=expected, hint=named or None)
    limits = [_limit(each) for each in details if each["type"] not in _OF_TYPE and not _in_list(each)]
    if limits or expected is None:
        expected = " or ".join(dict.fromkeys(limits or [_limit(each) for each in details]))
    got = detail["input"]
    options = _options(keys.get(name))
    close = nearest(got, options) if isinstance(got, str) else None
    return UserError("wrong value", where=name or None, got=repr(got), expected=expected, nearest=close)


def _in_list(detail: ErrorDetails) -> bool:
    """Return whether a list of fixed length has too few values."""
    return detail["type"] == "missing" and bool(detail["loc"]) and isinstance(detail["loc"][-1], int)


def _limit(detail: ErrorDetails) -> str:
    if detail["type"] == "string_pattern_mismatch":
        return f"text of the form {detail.get('ctx', {}).get('pattern')}"
    if detail["type"] in _LIMITS:
        context = detail.get("ctx", {})
        return _LIMITS[detail["type"]].format(
            **{name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
        )
    return str(detail["msg"]).removeprefix("Input should be ")


def _options(key: Key | None) -> list[str]:
    """Return the words that a key takes."""

    def words(annotation: Any) -> list[str]:
        return [word for part in get_args(annotation) for word in ([part] if isinstance(part, str) else words(part))]

    return words(key.annotation) if key else []


def _wrong_tag(name: str, detail: ErrorDetails) -> UserError:
    context: dict[str, Any] = detail.get("ctx", {})
    options = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
    got, tag = context.get("tag"), str(context.get("discriminator", "")).strip("'")
    close = nearest(str(got), options)
    return UserError("wrong value", where=f"{name}.{tag}", got=repr(got), expected=" | ".join(options), nearest=close)


def _unknown_key(keys: Mapping[str, Key], name: str, value: Any) -> UserError:
    if name in keys:  # of another member of the union
        hint = f"It is one of {keys[name].help.partition(':')[0]}."
        return UserError("key of another kind", where=name, got=value, hint=hint)
    below = next(iter(flatten(value)), "") if isinstance(value, Mapping) else ""
    full = f"{name}.{below}" if below else name  # an unknown group is reported by its first key
    ours = next((key for key in _ALIASES.get(full, ()) if key in keys), None)
    if ours is not None:
        return UserError("unknown key", where=full, nearest=ours, hint=f"{ours}: {keys[ours].help}")
    return UserError("unknown key", where=full, nearest=nearest_key(full, keys))


def _group(name: str, got: Any, below: list[Key]) -> UserError:
    """Return the error of a value in place of a group: names the key that takes this value, or the group's keys."""
    text = str(got)
    exact = [key.name for key in below if text in _options(key)]
    close = [key.name for key in below if nearest(text, _options(key))]
    named = [key.name for key in below if key.name == f"{name}.name"]
    what = "a group of keys, not a key"
    if exact or close:
        key = (exact or close)[0]
        word = nearest(text, _options(next(each for each in below if each.name == key)))
        return UserError(what, where=name, got=repr(got), nearest=f"{key}={word}")
    if named:
        return UserError(what, where=name, got=repr(got), nearest=f"{named[0]}={text}")
    shown = ", ".join(key.name for key in below[:4])
    return UserError(what, where=name, got=repr(got), hint=f"Its keys: {shown}{', ...' * (len(below) > 4)}")
