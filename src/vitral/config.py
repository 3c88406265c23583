"""YAML files and `key=value` words become one tree, the tree becomes frozen, typed models, mistakes become one message.

Nothing here imports torch: help and config errors answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Container, Hashable, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar

import yaml
from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, create_model
from pydantic_core import ErrorDetails

from vitral.complaints import complaint
from vitral.errors import UserError
from vitral.keys import Key as Key
from vitral.keys import describe, item_type, plain_types
from vitral.keys import flatten as flatten
from vitral.keys import help_text as help_text

Tree = dict[str, Any]


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, no silent conversion ("3" is no number), no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


def refuse_idle(config: Config, used: Mapping[str, bool]) -> None:
    """Raise ValueError for the first field that is set although nothing reads it: `used` says which are read."""
    for name, is_read in used.items():
        info = type(config).model_fields[name]
        value = getattr(config, name)
        if not is_read and value != info.default:
            raise ValueError(f"{name}={value} has no effect here: {info.description}")


ConfigT = TypeVar("ConfigT", bound=Config)

Count = Annotated[int, Ge(1)]
# Sequences: YAML writes them as lists, frozen models hold tuples.
Pair = Annotated[tuple[int, int], Strict(False)]
Floats = Annotated[tuple[float, ...], Strict(False)]
Share = Annotated[float, Ge(0), Le(1)]
Shares = Annotated[tuple[Share, ...], Strict(False)]


def nullable(*models: type[BaseModel], exclude: Container[str] = ()) -> type[Config]:
    """A config class of the fields of all `models`, each of which may be null, and is by default."""
    fields: dict[str, Any] = {}
    for model in models:
        for name, info in model.model_fields.items():
            if name not in exclude and name not in fields:
                bound: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
                fields[name] = (bound | None, Field(default=None, description=info.description))
    return create_model("Nullable", __base__=Config, **fields)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars (1e-3 is a number; no, yes, on, off are words) and no duplicate keys."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+|(0|[1-9][0-9]*)(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first) + [""] * (_tag == "null")
    )


def _unique_mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)  # pyright: ignore[reportUnknownMemberType]
        if not isinstance(key, Hashable) or key in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands here twice", problem_mark=key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def load_yaml(path: Path) -> Tree:
    """The mapping in a YAML file. Raises UserError, with file and line, for bad syntax or duplicate keys."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"not readable as YAML: {error.problem}", where=f"{path}{line}") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start})", where=str(path), hint="Save the file as UTF-8.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError("a mapping of names to values is wanted at the top", where=str(path), got=type(tree).__name__)
    return tree


def parse_yaml(text: str) -> Any:
    """The value that a YAML text stands for, by the rules of `load_yaml`."""
    return yaml.load(text, Loader=_Loader)


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """YAML text that `load_yaml` reads back as the same tree."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def split_words(words: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Command-line words: plain ones, and `key=value` pairs. Raises UserError for a key named twice."""
    plain: list[str] = []
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            plain.append(word)
        elif key in pairs:
            raise UserError("named twice on the command line", where=key, got=f"{pairs[key]} and {value}")
        else:
            pairs[key] = value
    return plain, pairs


def with_overrides(model: type[Config], tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Tree:
    """A copy of `tree` with dotted keys replaced. Text is read as the key's type wants it: `out=010` stays
    text, a list needs no brackets (`layers=0,-1`), and `none` is an empty one."""
    result = _copy(tree)
    fields = {key.name: key.annotation for key in describe(model)}
    for name, value in overrides.items():
        node, *rest = name.split(".")
        target = result
        for step in rest:
            child = target.setdefault(node, {})
            if not isinstance(child, dict):
                raise UserError("this key holds a value, not a group of keys", where=name, got=child)
            target, node = child, step
        target[node] = _from_text(value, fields.get(name)) if isinstance(value, str) else value
    return result


def _copy(tree: Mapping[str, Any]) -> Tree:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _from_text(text: str, annotation: Any) -> Any:
    kinds, item = set(plain_types(annotation)), item_type(annotation)
    if str in kinds and not kinds & {int, float, bool, tuple}:
        return None if NoneType in kinds and text in ("null", "") else text
    bare = text.strip()
    if (
        item is not None
        and set(plain_types(item)) == {str}
        and bare[:1] + bare[-1:] == "[]"
        and not set(bare) & set("\"'")
    ):
        bare = bare[1:-1] or "none"
    is_list = item is not None and not bare.startswith("[")
    if is_list and bare == "none" and str not in kinds:
        return []
    if is_list and ("," in bare or (kinds <= {tuple, NoneType} and bare not in ("", "null", "~"))):
        return [_from_text(part.strip(), item) for part in bare.removesuffix(",").split(",")]
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        return text
    # A list of one may stand bare.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return [value] if is_list and is_number and not kinds & {int, float} else value


def build(model: type[ConfigT], tree: Mapping[str, Any], *, where: str | None = None) -> ConfigT:
    """The validated model, or one UserError that names every wrong key, what it got and what it wants."""
    try:
        return model.model_validate(dict(tree))
    except ValidationError as error:
        by_key: dict[str, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            by_key.setdefault(_key_of(model, detail), []).append(detail)
        text = "\n".join(str(complaint(model, name, details)) for name, details in by_key.items())
        raise UserError(text if where is None else f"{where}:{' ' if len(by_key) == 1 else chr(10)}{text}") from None


def _key_of(model: type[Config], detail: ErrorDetails) -> str:
    """The dotted key that an error is about, without the members of a union or the places in a list."""
    names = {key.name for key in describe(model)}
    known = {name.rsplit(".", drop)[0] for name in names for drop in range(name.count(".") + 1)}
    location, path = [str(part) for part in detail["loc"]], ""
    for part in location:
        longer = f"{path}.{part}" if path else part
        path = longer if longer in known else path
    if path in names or path == ".".join(location):
        return path
    return f"{path}.{location[-1]}" if path else ".".join(location)
