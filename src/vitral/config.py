"""Read YAML files and `key=value` words into frozen, typed models; report all mistakes in one message.

Nothing here imports torch, so that help and config errors take no time.
"""

from __future__ import annotations

import re
from collections.abc import Container, Hashable, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Self, TypeVar

import yaml
from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, create_model
from pydantic_core import ErrorDetails

from vitral.config_keys import Key as Key
from vitral.config_keys import describe, item_type, plain_types
from vitral.config_keys import flatten as flatten
from vitral.errors import UserError, shown
from vitral.files import MAX_DEPTH, MIB, read_text, whole_number
from vitral.validation_messages import complaint

Tree = dict[str, Any]


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, no silent conversion ("3" is not a number), no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with changed fields. The names must be fields; the values are not validated."""
        assert update is None or update.keys() <= type(self).model_fields.keys(), sorted(update)
        return super().model_copy(update=update, deep=deep)


def changed_keys(config: Config, names: Iterable[str]) -> list[str]:
    """Those of these fields whose value is not the default."""
    fields = type(config).model_fields
    return [name for name in names if getattr(config, name) != fields[name].default]


def reject_unused(config: Config, used: Mapping[str, bool]) -> None:
    """Raise ValueError for the first field that is set but not read. used: whether each field is read."""
    for name in changed_keys(config, (name for name, is_read in used.items() if not is_read)):
        description = type(config).model_fields[name].description
        raise ValueError(f"{name}={getattr(config, name)} has no effect here: {description}")


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


# PyYAML takes 20 us a value and 1 us a byte. A mapping of ImageNet-21k's classes has 43,700 values.
YAML_BYTES, YAML_NODES = MIB, 50_000


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars (1e-3 is a number; no, yes, on, off are words) and no duplicate keys.

    Nesting and number of nodes, with every alias counted as its target, are limited before values are built.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0
        self.deepest = 0  # level of the deepest node so far of the subtree that is read
        self.sizes: dict[str, tuple[int, int]] = {}  # nodes and levels below each anchor

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One node and all below it. Raises MarkedYAMLError beyond the limits."""
        event = self.peek_event()
        anchor = str(getattr(event, "anchor", None) or "")
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias and anchor in self.anchors and anchor not in self.sizes:
            raise yaml.MarkedYAMLError(problem=f"*{anchor} contains itself", problem_mark=event.start_mark)
        before, outer = self.nodes, self.deepest
        nodes, levels = self.sizes.get(anchor, (1, 1)) if is_alias else (1, 1)
        self.nodes, self.deepest = self.nodes + nodes, self.depth + levels
        if self.deepest > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=event.start_mark)
        if self.nodes > YAML_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {YAML_NODES:,} values", problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)  # pyright: ignore[reportUnknownMemberType]
        self.depth -= 1
        if anchor and not is_alias:
            self.sizes[anchor] = self.nodes - before, self.deepest - self.depth
        self.deepest = max(outer, self.deepest)
        return node


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {}
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+|(0|[1-9][0-9]*)(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "merge": (r"<<", "<"),
}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first) + [""] * (_tag == "null")
    )
_SCALARS["float"] = (f"{_SCALARS['float'][0]}|{_SCALARS['int'][0]}", "")  # as a tag: `!!float 1`


def _fault(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _scalar(loader: _Loader, node: yaml.Node) -> Any:
    """A plain value, or one with a tag of its own, which must match its tag."""
    kind = node.tag.rpartition(":")[2]
    if not isinstance(node, yaml.ScalarNode) or not re.fullmatch(_SCALARS[kind][0], node.value):
        raise _fault(node, f"expected a value of type {kind}, got {_brief(node)}")
    if kind == "int":
        try:
            return whole_number(node.value)
        except ValueError as error:
            raise _fault(node, str(error)) from None
    if kind == "float":
        return float(node.value.replace(".inf", "inf").replace(".nan", "nan").replace("_", ""))
    return node.value.lower() == "true" if kind == "bool" else None


def _unique_mapping(loader: _Loader, node: yaml.Node) -> dict[Hashable, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _fault(node, f"expected a mapping, got {_brief(node)}")
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _fault(key_node, "a key must be plain text")
        key = key_node.value if key_node.tag.endswith(":merge") else loader.construct_object(key_node, deep=True)  # pyright: ignore[reportUnknownMemberType]
        if key in seen:
            raise _fault(key_node, f"the key {key!r} appears twice")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


def _sequence(loader: _Loader, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise _fault(node, f"expected a list, got {_brief(node)}")
    return loader.construct_sequence(node, deep=True)  # pyright: ignore[reportUnknownMemberType]


def _text(loader: _Loader, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _fault(node, f"expected text, got {_brief(node)}")
    return node.value


def _unknown_tag(loader: _Loader, node: yaml.Node) -> Any:
    raise _fault(node, f"unsupported tag {shown(node.tag)[:80]}")


def _brief(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    return repr(node.value if len(node.value) <= 40 else f"{node.value[:40]}...")


for _tag, _constructor in (
    *((kind, _scalar) for kind in ("bool", "int", "float", "null")),
    ("str", _text), ("seq", _sequence), ("map", _unique_mapping),
):  # fmt: skip
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _constructor)
_Loader.add_constructor("tag:yaml.org,2002:merge", _text)
_Loader.add_constructor(None, _unknown_tag)  # pyright: ignore[reportArgumentType]


class _Dumper(yaml.SafeDumper):
    """YAML that quotes every text which YAML 1.1 or 1.2 would read as another type."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def load_yaml(path: Path) -> Tree:
    """Return the mapping in a YAML file. Raises UserError, with file and line, for bad syntax, for duplicate keys,
    and beyond the limits on size, nesting and number of values."""
    tree = parse_yaml(read_text(path, YAML_BYTES), shown(str(path)))
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError("a mapping of names to values is expected at the top", where=str(path), got=type(tree).__name__)
    return tree


def parse_yaml(text: str, where: str | None = None) -> Any:
    """Return the value of a YAML text, by the rules of `load_yaml`. where: the file, for the message."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, problem = mark.line + 1 if mark else None, error.problem or error.context
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"the character {chr(error.character)!r} is not allowed"
    except (ValueError, OverflowError) as error:  # the scanner's own numbers: escapes, the version
        line, problem = None, str(error).partition(";")[0]
    at = where if where is None or line is None else f"{where}:{line}"
    raise UserError(f"not readable as YAML: {problem}", where=at)


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """Return YAML text that `load_yaml` reads back as the same tree."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def split_words(words: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Split command-line words into plain ones and `key=value` pairs. Raises UserError for a repeated key."""
    plain: list[str] = []
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            plain.append(word)
        elif key in pairs:
            raise UserError("given twice on the command line", where=key, got=f"{pairs[key]} and {value}")
        else:
            pairs[key] = value
    return plain, pairs


def with_overrides(model: type[Config], tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Tree:
    """Return a copy of `tree` with dotted keys replaced. Text is parsed by the key's type: `out=010` stays
    text, a list needs no brackets (`layers=0,-1`), and `none` is an empty one."""
    result = _copy(tree)
    fields = {key.name: key.annotation for key in describe(model)}
    for name, value in overrides.items():
        node, *rest = name.split(".")
        if len(rest) > MAX_DEPTH:
            raise UserError("unknown key", where=name[:80])
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
    is_unquoted = bare[:1] + bare[-1:] == "[]" and not set(bare) & set("\"'")
    if is_unquoted and item is not None and set(plain_types(item)) == {str}:
        bare = bare[1:-1] or "none"
    is_list = item is not None and not bare.startswith("[")
    if is_list and bare == "none" and str not in kinds:
        return []
    if is_list and ("," in bare or (kinds <= {tuple, NoneType} and bare not in ("", "null", "~"))):
        return [_from_text(part.strip(), item) for part in bare.removesuffix(",").split(",")]
    try:
        value = parse_yaml(text)
    except UserError:
        return text
    # A list of one needs no comma.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return [value] if is_list and is_number and not kinds & {int, float} else value


def build(model: type[ConfigT], tree: Any, *, where: str | None = None) -> ConfigT:
    """Return the validated model. Raises one UserError for all wrong keys, with expected and received values, and for a
    tree that is not a mapping."""
    if not isinstance(tree, Mapping):
        raise UserError("not readable", where=where, got=type(tree).__name__, expected="an object of names and values")
    try:
        return model.model_validate(dict(tree))
    except ValidationError as error:
        by_key: dict[str, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            by_key.setdefault(_key_of(model, detail), []).append(detail)
        text = "\n".join(str(complaint(model, name, details)) for name, details in by_key.items())
        raise UserError(text if where is None else f"{where}:{' ' if len(by_key) == 1 else chr(10)}{text}") from None


def _key_of(model: type[Config], detail: ErrorDetails) -> str:
    """Return the dotted key of an error, without the members of a union or the places in a list."""
    names = {key.name for key in describe(model)}
    known = {name.rsplit(".", drop)[0] for name in names for drop in range(name.count(".") + 1)}
    location, path = [str(part) for part in detail["loc"]], ""
    for before, part, behind in zip(["", *location], location, [*location[1:], ""], strict=False):
        longer = f"{path}.{part}" if path else part
        # The kind of a union may be called like a key of another kind.
        is_kind = behind and path.endswith(before) and f"{path}.{behind}" in known and f"{path}.kind" in known
        path = longer if longer in known and not is_kind else path
    if path in names or path == ".".join(location):
        return path
    return f"{path}.{location[-1]}" if path else ".".join(location)
