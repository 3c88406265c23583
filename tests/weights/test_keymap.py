"""Rules: templates, each operation by hand, both directions, and what maps may not say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.weights.google_npz import bit_rules, rules
from vitral.weights.keymap import Op, Template, invert, load_map, rule, translate


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("blocks.{i}.norm1.{end}", "blocks.12.norm1.bias", {"i": "12", "end": "bias"}),
        ("blocks.{i}.norm1.{end}", "blocks.x.norm1.bias", None),
        ("blocks.{i}.norm1.{end}", "blocks.1.norm1.running_mean", None),
        ("block{i+1}/unit{j+1:02}/a", "block1/unit03/a", {"i": "0", "j": "2"}),
        ("block{i+1}/unit{j+1:02}/a", "block1/unit3/a", None),
        ("gamma_{n:[12]}", "gamma_3", None),
        ("decoder{rest}", "decoder.a.b", {"rest": ".a.b"}),
        ("a{i}b{i}", "a3b3", {"i": "3"}),
        ("a{i}b{i}", "a3b4", None),
        ("?pos[1:2]", "pos", {}),
    ],
)
def test_templates(text: str, name: str, values: dict[str, str] | None) -> None:
    template = Template(text)
    assert template.match(name) == values
    if values is not None:
        assert template.fill(values) == name


@pytest.mark.parametrize(
    ("op", "shapes", "expected"),
    [
        ("rename", [(2, 3)], lambda a: a),
        ("transpose", [(2, 3)], lambda a: a.T),
        ("transpose", [(4, 5, 3, 2)], lambda a: torch.einsum("hwio->oihw", a)),
        ("vector", [(1, 1, 1, 3)], lambda a: a[0, 0, 0]),
        ("merge", [(2, 3), (2, 3)], lambda a, b: torch.cat([a, b])),
        ("rows", [(1, 2, 3), (1, 4, 3)], lambda a, b: torch.cat([a, b], 1)),
        ("add", [(1, 1, 3), (1, 1, 3)], lambda a, b: a + b),
        ("multiply", [(3,), (3,)], lambda a, b: a * b),
        ("zeros", [(5, 2)], lambda a: torch.zeros(5)),
        ("heads_in", [(6, 2, 3), (6, 2, 3)], lambda a, b: torch.cat([a.reshape(6, 6).T, b.reshape(6, 6).T])),
        ("heads_in", [(2, 3), (2, 3)], lambda a, b: torch.cat([a.reshape(6), b.reshape(6)])),
        ("heads_out", [(2, 3, 6)], lambda a: a.reshape(6, 6).T),
    ],
)
def test_operations(op: Op, shapes: list[tuple[int, ...]], expected) -> None:
    parts = [tensor(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    foreign = {f"x{n}": part for n, part in enumerate(parts)}
    found = translate([rule(list(foreign), "y", op)], foreign).tensors
    torch.testing.assert_close(found["y"], expected(*parts), rtol=0, atol=0)


def test_split_is_merge_backwards() -> None:
    x = tensor(6, 2)
    found = translate([rule("kv", ["k", "v"], "split")], {"kv": x}).tensors
    assert torch.equal(torch.cat([found["k"], found["v"]]), x)
    assert torch.equal(invert([rule("kv", ["k", "v"], "split")], found, heads=1)["kv"], x)


def test_class_token_and_its_position_become_one() -> None:
    foreign = {"cls": tensor(1, 1, 4), "pos": tensor(1, 5, 4, seed=1)}
    found = translate([rule(["cls", "pos[0:1]"], "cls_token", "add"), rule("pos[1:]", "pos_embed")], foreign)
    assert torch.equal(found.tensors["cls_token"], foreign["cls"] + foreign["pos"][:, :1])
    assert torch.equal(found.tensors["pos_embed"], foreign["pos"][:, 1:])
    assert not found.unexpected


def test_absent_biases_of_keys_are_zero() -> None:
    foreign = {"q": tensor(2), "v": tensor(2, seed=1)}
    merge = [rule(["q", "?k", "v"], "qkv", "merge"), rule("q", "qkv", "zeros")]
    assert torch.equal(
        translate(merge, foreign).tensors["qkv"], torch.cat([foreign["q"], torch.zeros(2), foreign["v"]])
    )


def test_names_that_no_rule_knows_are_told_and_dropped_ones_too() -> None:
    found = translate(
        [rule("a", "b"), rule("head.{rest}", None)], {"a": tensor(1), "c": tensor(1), "head.x": tensor(1)}
    )
    assert (list(found.tensors), found.unexpected, found.dropped) == (["b"], ["c"], ["head.x"])


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"y: two rules give this name\n.*a and b"):
        translate([rule("a", "y"), rule("b", "y")], {"a": tensor(1), "b": tensor(1)})


def test_an_operation_that_does_not_fit_names_the_tensor() -> None:
    with pytest.raises(UserError, match="a: op merge does not fit"):
        translate([rule(["a", "b"], "y", "merge")], {"a": tensor(2, 3), "b": tensor(2, 4)})


@pytest.mark.parametrize("layout", [rules, bit_rules])
def test_layouts_go_both_ways_bit_for_bit(layout) -> None:
    ours = {
        "cls_token": tensor(1, 1, 6), "pos_embed": tensor(1, 5, 6), "norm.weight": tensor(6), "norm.bias": tensor(6),
        "blocks.11.attn.qkv.weight": tensor(18, 6), "blocks.11.attn.qkv.bias": tensor(18),
        "blocks.11.attn.proj.weight": tensor(6, 6), "blocks.0.mlp.fc1.weight": tensor(12, 6), "head.bias": tensor(3),
    } if layout is rules else {
        "stem.conv.weight": tensor(4, 3, 7, 7), "stages.0.blocks.11.conv2.weight": tensor(4, 4, 3, 3),
        "stages.1.blocks.0.downsample.conv.weight": tensor(8, 4, 1, 1), "head.fc.weight": tensor(3, 8, 1, 1),
    }  # fmt: skip
    foreign = invert(layout({}), ours, heads=2)
    back = translate(layout({}), foreign)
    assert not back.unexpected
    assert back.tensors.keys() == ours.keys()
    assert all(torch.equal(back.tensors[name], ours[name]) for name in ours)


def test_what_has_no_place_is_refused() -> None:
    with pytest.raises(UserError, match=r"no place.*\n.*gamma"):
        invert(rules({}), {"blocks.0.ls1.gamma": tensor(3)}, heads=1)


MAP = """
rules:
  - {from: "enc.{i}.ln.{end}", to: "blocks.{i}.norm1.{end}"}
  - {from: ["enc.{i}.q.{end}", "enc.{i}.k.{end}", "enc.{i}.v.{end}"], to: "blocks.{i}.attn.qkv.{end}", op: merge}
  - {from: "dec.{rest}", to: null}
architecture: {heads: 3}
"""


def test_a_map_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(MAP, encoding="utf-8")
    found = load_map(str(path))
    foreign = {f"enc.4.{part}.weight": tensor(3, 3, seed=n) for n, part in enumerate("qkv")} | {"dec.x": tensor(1)}
    done = translate(found.rules, foreign)
    assert torch.equal(
        done.tensors["blocks.4.attn.qkv.weight"], torch.cat([foreign[f"enc.4.{p}.weight"] for p in "qkv"])
    )
    assert (done.unexpected, done.dropped, found.architecture) == ([], ["dec.x"], {"heads": 3})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("rules:\n  - {from: a, to: b, op: rotate}\n", "rule 1: op"),
        ("rules:\n  - {from: [a, b], to: c}\n", "takes one name"),
        ("rules:\n  - {from: a, to: 'b.{i}'}\n", "placeholders that a does not have"),
        ("rules:\n  - {from: ['?a', b], to: c, op: merge}\n", "cannot be optional"),
        ("rules:\n  - {from: a, to: b, op: drop}\n", "op drop"),
        ("rules:\n  - {from: a, form: b}\n", "form"),
        ("rule: []\n", "rule"),
    ],
)
def test_maps_that_make_no_sense(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"map\.yaml") as caught:
        load_map(str(path))
    assert part in str(caught.value)
