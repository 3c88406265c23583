"""Names and layouts of foreign tensors to ours, and back: ordered lists of rules, in Python or in a map.yaml.

Shape letters: D width, h heads, d features of a head, O I output and input channels, H W height and width of a kernel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, Strict, model_validator
from torch import Tensor

from vitral.config import Config, Shares, build, load_yaml
from vitral.data.image_spec import ResizeSpec
from vitral.errors import UserError

Values = dict[str, str]
Op = Literal[
    "rename", "transpose", "vector", "merge", "rows", "add", "multiply", "split", "zeros", "heads_in", "heads_out",
    "drop",
]  # fmt: skip

_PLACEHOLDER = re.compile(r"\{(\w+)(?:\+(\d+))?(?::((?:[^{}]|\{[^{}]*\})+))?\}")
_KINDS = {"i": r"\d+", "j": r"\d+", "n": r"\d+", "end": "weight|bias"}
_SLICE = re.compile(r"\[(\d*):(\d*)\]$")


class Template:
    """A name with placeholders: `blocks.{i}.norm1.{end}`.

    {i}, {j} and {n} stand for numbers, {end} for weight or bias, any other name for anything; `{n:[12]}` gives a
    regular expression of its own. `{i+1}` is a number that counts from one where ours counts from zero, `{i+1:02}` one
    of two digits. A slice behind the name, `[1:2]`, takes these rows of the tensor's second axis. A question mark in
    front makes it optional.
    """

    def __init__(self, text: str) -> None:
        self.text, self.optional = text, text.startswith("?")
        bare = text.removeprefix("?")
        found = _SLICE.search(bare)
        self.rows = slice(*(int(end) if end else None for end in found.groups())) if found else None
        bare = bare[: found.start()] if found else bare
        self._parts: list[str | tuple[str, int, int]] = []  # texts, and (name, offset, digits)
        pattern, last, seen = "", 0, set[str]()
        for match in _PLACEHOLDER.finditer(bare):
            name, offset, kind = match[1], int(match[2] or 0), match[3]
            digits = int(kind) if kind and re.fullmatch(r"0\d", kind) else 0
            expression = f"\\d{{{digits}}}" if digits else kind or _KINDS.get(name, ".+")
            before = bare[last : match.start()]
            pattern += re.escape(before) + (f"(?P={name})" if name in seen else f"(?P<{name}>{expression})")
            self._parts += [before, (name, offset, digits)]
            seen.add(name)
            last = match.end()
        self._parts.append(bare[last:])
        try:
            self._pattern = re.compile(pattern + re.escape(bare[last:]))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression in {text[:80]!r}: {error}") from None
        self.names = frozenset(seen)

    def match(self, name: str) -> Values | None:
        """What the placeholders stand for in this name, counted from zero; None where it does not fit."""
        found = self._pattern.fullmatch(name)
        if found is None:
            return None
        values: Values = found.groupdict()
        for part in self._parts:
            if isinstance(part, tuple) and (part[1] or part[2]):
                values[part[0]] = str(int(values[part[0]]) - part[1])
        return values

    def fill(self, values: Mapping[str, str]) -> str:
        """The name with these values in place of the placeholders."""
        return "".join(part if isinstance(part, str) else _number(values[part[0]], *part[1:]) for part in self._parts)


def _number(value: str, offset: int, digits: int) -> str:
    return f"{int(value) + offset:0{digits}}" if offset or digits else value


class Rule(Config):
    """One line of a map: foreign tensors to tensors of ours.

    rename: as it is. transpose: [in, out] to [out, in], [H, W, I, O] to [O, I, H, W]. vector: of one axis. merge: one
    behind the other along the first axis, an optional one that is absent as zeros. rows: along the second axis. add:
    their sum. multiply: their product, value by value. split: equal parts along the first axis, one for each name in
    `to`. heads_in: weights [D, h, d] or biases [h, d], transposed, flattened, merged. heads_out: [h, d, D], flattened
    and transposed. zeros: as many as the tensors have rows, where no other rule gives that name. drop: declared as not
    needed.
    """

    source: tuple[str, ...] = Field(alias="from", strict=False, min_length=1)
    target: tuple[str, ...] = Field(alias="to", strict=False, default=())
    op: Op = "rename"

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        tree = {key: [value] if isinstance(value, str) and key != "op" else value for key, value in tree.items()}
        return tree | {"to": [], "op": "drop"} if tree.get("to", ()) is None else tree

    @model_validator(mode="after")
    def _check(self) -> Rule:
        many_in, many_out = self.op in ("merge", "rows", "add", "multiply", "heads_in", "zeros"), self.op == "split"
        if (len(self.source) > 1 and not many_in) or (len(self.target) > 1 and not many_out):
            raise ValueError(f"op {self.op} takes one name, from {list(self.source)} to {list(self.target)}")
        if (self.op == "drop") == bool(self.target):
            raise ValueError(f"op {self.op} with `to: {list(self.target)}`; names that are not needed have `to: null`")
        first, *others = self.sources
        if first.optional:
            raise ValueError(f"the first of several names cannot be optional: {first.text}")
        for template in (*others, *self.targets):
            if not template.names <= first.names:
                raise ValueError(f"{template.text} has placeholders that {first.text} does not have")
        return self

    @cached_property
    def sources(self) -> tuple[Template, ...]:
        """Templates of the foreign names."""
        return tuple([Template(text) for text in self.source])

    @cached_property
    def targets(self) -> tuple[Template, ...]:
        """Templates of our names."""
        return tuple([Template(text) for text in self.target])


def rule(source: str | Sequence[str], target: str | Sequence[str] | None, op: Op = "rename") -> Rule:
    """A rule, as a map.yaml has it."""
    return Rule.model_validate({"from": source, "to": target, "op": op})


class MapImages(ResizeSpec):
    """How images are prepared; mean and std per channel, or one for all, in units of [0,1] images."""

    resize_mode: Literal["crop", "squash", "pad"] = "crop"
    mean: Shares = ()
    std: Shares = ()


class Map(Config):
    """A map.yaml: key rules, and facts on architecture and images that the tensors do not hold."""

    rules: tuple[Rule, ...] = Field(strict=False)
    architecture: dict[str, Any] = Field(default_factory=dict)
    preprocessing: MapImages = MapImages()
    classes: Annotated[tuple[str, ...], Strict(False)] = ()


def load_map(path: str) -> Map:
    """The map of a YAML file. Raises UserError for anything that is not one."""
    tree = load_yaml(Path(path).expanduser())
    rules = tree.get("rules")
    if not isinstance(rules, list) or not all(isinstance(each, dict) for each in rules):
        raise UserError("a list of rules is expected", where=f"{path}: rules", got=type(rules).__name__)
    made = [build(Rule, each, where=f"{path}: rule {number}") for number, each in enumerate(rules, 1)]
    return build(Map, {**tree, "rules": made}, where=path)


class Translation(NamedTuple):
    """Tensors by our names, and the foreign names that no rule knows or that rules declare as not needed."""

    tensors: dict[str, Tensor]
    unexpected: list[str]
    dropped: list[str]


def translate(rules: Sequence[Rule], foreign: Mapping[str, Tensor]) -> Translation:
    """ExternalModel tensors by our names. The first rule that wants a tensor has it; a slice leaves it to other slices.

    Raises UserError where two rules give one name, or where a tensor has not the shape that an operation needs.
    """
    ours: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    taken, sliced, dropped = set[str](), set[str](), list[str]()
    for each in rules:
        for name in foreign if each.op != "zeros" else ():
            values = each.sources[0].match(name)
            if values is None or (parts := _parts(each, values, foreign, taken, sliced)) is None:
                continue
            for template in each.sources:
                (taken if template.rows is None else sliced).add(template.fill(values))
            dropped += [name] if each.op == "drop" else []
            targets = [template.fill(values) for template in each.targets]
            for target, tensor in zip(targets, _apply(each, parts, name), strict=True):
                if target in ours:
                    raise UserError("two rules give this name", where=target, got=f"{origin[target]} and {name}")
                ours[target], origin[target] = tensor, name
    _fill_with_zeros(ours, [each for each in rules if each.op == "zeros"], foreign)
    return Translation(ours, [name for name in foreign if name not in taken | sliced], dropped)


def _parts(
    each: Rule, values: Values, foreign: Mapping[str, Tensor], taken: set[str], sliced: set[str]
) -> list[Tensor] | None:
    """The tensors of a rule, or None where one that it needs is absent or belongs to an earlier rule."""
    found: list[Tensor] = []
    for template in each.sources:
        name = template.fill(values)
        if name in foreign and name not in taken and (template.rows is not None or name not in sliced):
            found.append(foreign[name] if template.rows is None else foreign[name][:, template.rows])
        elif template.optional:
            found.append(torch.zeros_like(found[0]))
        else:
            return None
    return found


def _fill_with_zeros(ours: dict[str, Tensor], rules: Sequence[Rule], foreign: Mapping[str, Tensor]) -> None:
    """What no rule gave; these rules only look at tensors, which belong to others."""
    for each in rules:
        for name in foreign:
            values = each.sources[0].match(name)
            if values is not None and (parts := _parts(each, values, foreign, set(), set())) is not None:
                zeros = parts[0].new_zeros(sum(part.shape[0] for part in parts))
                ours.setdefault(each.targets[0].fill(values), zeros)


def _apply(each: Rule, parts: list[Tensor], name: str) -> list[Tensor]:
    try:
        return _FORWARD[each.op](parts, len(each.targets))
    except (RuntimeError, ValueError, IndexError):
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise UserError(f"op {each.op} does not fit this tensor", where=name, got=shapes) from None


def invert(rules: Sequence[Rule], ours: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """The foreign tensors that `translate` makes ours of, bit for bit; heads: of the attention.

    Raises UserError for tensors that these rules have no place for.
    """
    foreign: dict[str, Tensor] = {}
    left = dict(ours)
    for each in rules:
        if each.op not in _INVERSE or any(template.rows is not None for template in each.sources):
            continue  # ours do not say what the foreign ones were
        for name in list(left):
            values = each.targets[0].match(name) if name in left else None
            if values is None or not each.sources[0].names <= values.keys():
                continue
            names = [template.fill(values) for template in each.targets]
            if all(target in left for target in names):
                parts = _INVERSE[each.op]([left.pop(target) for target in names], len(each.sources), heads)
                foreign |= {t.fill(values): part for t, part in zip(each.sources, parts, strict=True)}
    if left:
        raise UserError("these tensors have no place in that format", got=", ".join(list(left)[:4]))
    return foreign


def _transposed(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.permute(axes if x.dim() == 4 else (1, 0)).contiguous()


def _heads_in(parts: list[Tensor], _: int) -> list[Tensor]:
    flat = [part.flatten() if part.dim() == 2 else part.flatten(1).permute(1, 0) for part in parts]
    return [torch.cat(flat).contiguous()]


def _no_heads_in(parts: list[Tensor], count: int, heads: int) -> list[Tensor]:
    pieces = [piece if piece.dim() == 1 else piece.permute(1, 0) for piece in parts[0].chunk(count)]
    return [piece.unflatten(-1, (heads, -1)).contiguous() for piece in pieces]


_FORWARD: dict[Op, Callable[[list[Tensor], int], list[Tensor]]] = {
    "rename": lambda parts, _: parts,
    "transpose": lambda parts, _: [_transposed(parts[0], (3, 2, 0, 1))],
    "vector": lambda parts, _: [parts[0].flatten()],
    "merge": lambda parts, _: [torch.cat(parts)],
    "rows": lambda parts, _: [torch.cat(parts, dim=1)],
    "add": lambda parts, _: [sum(parts[1:], parts[0])],
    "multiply": lambda parts, _: [math.prod(parts[1:], start=parts[0])],
    "split": lambda parts, count: [part.contiguous() for part in parts[0].unflatten(0, (count, -1)).unbind()],
    "heads_in": _heads_in,
    "heads_out": lambda parts, _: [parts[0].flatten(0, 1).permute(1, 0).contiguous()],
    "drop": lambda parts, _: [],
}

_INVERSE: dict[Op, Callable[[list[Tensor], int, int], list[Tensor]]] = {
    "rename": lambda parts, _, __: parts,
    "transpose": lambda parts, _, __: [_transposed(parts[0], (2, 3, 1, 0))],
    "vector": lambda parts, _, __: parts,
    "merge": lambda parts, count, _: [part.contiguous() for part in parts[0].chunk(count)],
    "split": lambda parts, _, __: [torch.cat(parts)],
    "heads_in": _no_heads_in,
    "heads_out": lambda parts, _, heads: [parts[0].permute(1, 0).unflatten(0, (heads, -1)).contiguous()],
}
