"""List every settable key of a configuration class: name, type, default and meaning; format values as words.

Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

REQUIRED = "required"
_KINDS = {int: "whole number", float: "number", str: "text", bool: "true | false", NoneType: "null"}


class Key(NamedTuple):
    """One settable key: dotted name, type, default and meaning (with its unit)."""

    name: str
    annotation: Any
    type_text: str
    default: Any
    help: str


# The keys of each class, and the validator that they are of: a rebuilt class has another one.
_known: dict[type[BaseModel], tuple[Any, list[Key]]] = {}


def describe(model: type[BaseModel]) -> list[Key]:
    """Return every leaf key below a config model, in order of definition."""
    validator = model.__pydantic_validator__
    if model not in _known or _known[model][0] is not validator:
        _known[model] = validator, _keys(model, "")
    return [*_known[model][1]]


def _keys(model: type[BaseModel], prefix: str) -> list[Key]:
    keys: list[Key] = []
    for name, info in model.model_fields.items():
        full = prefix + (info.alias or name)  # a key may be a reserved word of Python: class
        nested = info.annotation
        if models := [part for part in plain_types(nested) if isinstance(part, type) and issubclass(part, BaseModel)]:
            keys += _merged([_keys(part, full + ".") for part in models])
        else:
            keys.append(Key(full, nested, _type_text(nested), _default(info), info.description or ""))
    return keys


def _merged(members: list[list[Key]]) -> list[Key]:
    """Return the keys of all members of a union, each once. If a Literal tells the members apart, the help of a key
    that only some have names these members."""
    found: dict[str, list[Key]] = {}
    for key in (key for member in members for key in member):
        found.setdefault(key.name, []).append(key)
    tags = next((name for name, same in found.items() if _tells_apart(same, len(members))), "")
    kinds = [next((key.type_text for key in member if key.name == tags), "") for member in members]
    merged: list[Key] = []
    for name, (first, *others) in found.items():
        where = [kind for kind, member in zip(kinds, members, strict=True) if name in {key.name for key in member}]
        if name == tags:
            texts = [f"{key.type_text}: {key.help}" for key in (first, *others)]
            annotation = Literal[tuple(kinds)]  # pyright: ignore[reportInvalidTypeForm]
            merged.append(Key(name, annotation, " | ".join(kinds), first.default, "; ".join(texts)))
        elif tags and len(where) < len(members):
            merged.append(first._replace(help=f"{', '.join(where)}: {first.help}"))
        else:
            merged.append(first)
    return merged


def _tells_apart(same: list[Key], members: int) -> bool:
    texts = {
        key.type_text for key in same if get_origin(key.annotation) is Literal and len(get_args(key.annotation)) == 1
    }
    return len(texts) == len(same) == members > 1


def _default(info: FieldInfo) -> Any:
    return REQUIRED if info.is_required() else info.get_default(call_default_factory=True)  # pyright: ignore[reportCallIssue]


def plain_types(annotation: Any) -> Iterator[Any]:
    """Yield the plain types that an annotation admits; a Literal counts as the types of its values."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from plain_types(get_args(annotation)[0])
    elif origin is Literal:
        yield from (type(value) for value in get_args(annotation))
    elif origin in (tuple, dict):
        yield origin
    elif origin is not None or get_args(annotation):
        for part in get_args(annotation):
            yield from plain_types(part)
    else:
        yield annotation


def item_type(annotation: Any) -> Any:
    """The type of the values of the list that an annotation admits; None where it admits none."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return None
    return next((found for part in get_args(annotation) if (found := item_type(part)) is not None), None)


def _type_text(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(parts[0])
    if origin is Literal:
        return " | ".join(str(value) for value in parts)
    if origin is tuple:
        item = _type_text(parts[0])
        item += "s" * item.endswith("number")
        return f"list of {item}" if parts[-1] is ... else f"{len(parts)} {item}"
    if origin is dict:
        return "group of keys"
    if origin is not None or parts:
        texts = [_type_text(part) for part in parts if part is not NoneType]
        return " or ".join(dict.fromkeys([*texts, *["null"] * (NoneType in parts)]))
    return _KINDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def as_word(value: Any, *, brackets: bool = False) -> str:
    """A value as it is written on the command line, without brackets, which some shells take for patterns: lists with
    commas, an empty one as `none`. brackets: keep them, where commas separate the values of a grid."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        items = [as_word(item) for item in value]
        is_plain = not brackets and not any(isinstance(item, str) and set(item) & set(",[]\"'") for item in value)
        return (",".join(items) or "none") if is_plain else json.dumps(list(value), ensure_ascii=False)
    return str(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested tree as dotted keys; an empty group is a value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {prefix + name: value}
    return flat
