"""Configuration: what is typed is what is meant, or an error that says where."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, Strict

import vitral
from vitral import validation_messages
from vitral.cli.usage import key_lines
from vitral.config import (
    Config,
    Pair,
    Shares,
    build,
    describe,
    dump_yaml,
    flatten,
    load_yaml,
    parse_yaml,
    split_words,
    with_overrides,
)  # fmt: skip
from vitral.config_keys import as_word
from vitral.errors import UserError
from vitral.run.command_options import EvalOptions
from vitral.run.config import RunConfig


class Inner(Config):
    rate: float = Field(default=1e-3, gt=0, description="a rate")
    name: Literal["adamw", "sgd"] = "adamw"
    mean: Shares | Literal["auto"] = "auto"


class Outer(Config):
    inner: Inner = Inner()
    out: str | None = None
    size: Annotated[int, Field(ge=1)] | Pair | None = None
    steps: int = 3
    on: bool = False


def made(**pairs: str) -> Outer:
    return build(Outer, with_overrides(Outer, {}, {key.replace("__", "."): value for key, value in pairs.items()}))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 1e5), ("-.5", -0.5), ("3.", 3.0), ("010", "010"), ("08", "08"), ("no", "no"),
        ("on", "on"), ("Yes", "Yes"),
        ("true", True), ("null", None), ("~", None), ("", None), ("12", 12), ("-7", -7), ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("[1, 2]", [1, 2]), ("0x10", "0x10"), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_scalars_are_read_as_people_mean_them(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_a_duplicate_key_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("optim:\n  lr: 1\n  lr: 2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.yaml:3: .*'lr' appears twice"):
        load_yaml(path)


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just words", "1: 2"])
def test_only_a_mapping_of_names_is_a_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="mapping"):
        load_yaml(path)


def test_bad_yaml_and_bad_bytes_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: [1,\nb: 2", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.yaml:2"):
        load_yaml(path)
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        load_yaml(path)
    path.write_bytes(b"\xef\xbb\xbfname: 3")
    assert load_yaml(path) == {"name": 3}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"inner__rate": "-1"}, "inner.rate: wrong value\n  got:    -1\n  expected: greater than 0"),
        ({"inner__rate": ".nan"}, "finite"),
        ({"inner__rate": "nan"}, "number"),
        ({"inner__rate": "fast"}, "number"),
        ({"inner__name": "adam"}, "did you mean 'adamw'"),
        ({"innr__rate": "1"}, "did you mean 'inner.rate'"),
        ({"rate": "1"}, "did you mean 'inner.rate'"),
        ({"inner__ratee": "1"}, "inner.ratee: unknown key"),
        ({"steps": "2.5"}, "steps"),
        ({"steps": "true"}, "steps"),
        ({"on": "yes"}, "on: wrong value"),
        ({"size": "[1]"}, "size"),
        ({"size": "-4"}, "size"),
        ({"inner": "3"}, "inner"),
    ],
)
def test_wrong_words_are_refused_with_the_key_named(pairs: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        made(**pairs)
    assert message in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(UserError, match=r"(?s)inner\.rate.*steps"):
        made(inner__rate="-1", steps="x")


def test_text_stays_text_where_text_is_wanted() -> None:
    assert made(out="010").out == "010"
    assert made(out="1e3").out == "1e3"
    assert made(out="null").out is None
    assert made(inner__mean="[0.5, 1]").inner.mean == (0.5, 1.0)
    assert made(size="[8, 16]").size == (8, 16)
    assert made(size="null").size is None
    assert made(out="none").out == "none"


def test_a_list_of_one_may_stand_without_brackets() -> None:
    class Listed(Config):
        allow: Annotated[tuple[str, ...], Strict(False)] = ()

    assert build(Listed, with_overrides(Listed, {}, {"allow": "dup"})).allow == ("dup",)
    assert build(Listed, with_overrides(Listed, {}, {"allow": "[a, b]"})).allow == ("a", "b")


class Lists(Config):
    words: Annotated[tuple[str, ...], Strict(False)] = ()
    layers: Annotated[tuple[int, ...], Strict(False)] | None = None
    size: Annotated[int, Field(ge=1)] | Pair | Literal["auto"] = "auto"
    mean: Shares | Literal["auto", "none"] = "auto"
    pick: Annotated[tuple[Literal["rollout", "lens"], ...], Strict(False)] = ()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("words=a,b", ("a", "b")), ("words=010,1e3", ("010", "1e3")), ("words=[010, no]", ("010", "no")),
        ("words=null,~", ("null", "~")), ("words=none", ()), ("words=[]", ()), ("words=a,", ("a",)),
        ('words=["a, b", c]', ("a, b", "c")), ("words=*.example.org,b", ("*.example.org", "b")),
        ("words=a, b", ("a", "b")), ("words=7", ("7",)),
        ("layers=0,-1", (0, -1)), ("layers=3", (3,)), ("layers=-1,", (-1,)), ("layers=null", None), ("layers=none", ()),
        ("layers=[0,-1]", (0, -1)),
        ("size=8,16", (8, 16)), ("size=8", 8), ("size=auto", "auto"),
        ("mean=0.5,.25", (0.5, 0.25)), ("mean=0.5", (0.5,)), ("mean=none", "none"),
        ("pick=rollout,lens", ("rollout", "lens")), ("pick=lens", ("lens",)),
    ],
)  # fmt: skip
def test_lists_need_no_brackets(word: str, value: object) -> None:
    key, _, text = word.partition("=")
    made = getattr(build(Lists, with_overrides(Lists, {}, {key: text})), key)
    assert made == value
    if made is not None:
        again = with_overrides(Lists, {}, {key: as_word(made)})
        assert getattr(build(Lists, again), key) == value, "it is written as it is read"


def configs() -> list[type[Config]]:
    """Every configuration class of the package."""
    for module in pkgutil.walk_packages(vitral.__path__, "vitral."):
        if module.name.rpartition(".")[2] in ("config", "options"):
            importlib.import_module(module.name)
    found: list[type[Config]] = []
    todo: list[type[Config]] = [Config]
    while todo:
        for each in todo.pop().__subclasses__():
            todo.append(each)
            found += [each] if each.__module__.startswith("vitral.") and not inspect.isabstract(each) else []
    return found


# Words of the validator and of Python: no user has to know them.
FOREIGN = re.compile(
    r"[Ff]ield required|[Ii]nput should|valid (dictionary|string|integer|number|boolean|tuple|list)|instance of|"
    r"dictionary|Options\b|Config\b|\btuple\b|\bint\b|\bstr\b|\bfloat\b|\bbool\b|NoneType|pydantic|at least \d+ item"
)


@pytest.mark.parametrize("model", configs(), ids=lambda model: f"{model.__module__}.{model.__qualname__}")
def test_no_word_of_the_validator_reaches_the_user(model: type[Config]) -> None:
    """Every key of every class, with values of every wrong kind."""
    wrong: list[Any] = ["@", 1.5, -7, 10**400, True, None, [], ["@"], [1.5] * 9, {}, {"a": 1}]
    groups = {key.name.rpartition(".")[0] for key in describe(model)} - {""}
    for name in [*(key.name for key in describe(model)), *groups]:
        for value in [*wrong, float("inf"), float("nan")]:
            assert not FOREIGN.search(refusal(model, name, value)), f"{name}={value!r}"


def refusal(model: type[Config], name: str, value: Any) -> str:
    """What is said of this value, without the value itself; nothing where it is right."""
    try:
        build(model, with_overrides(model, {}, {name: value}))
    except UserError as error:
        return "\n".join(line for line in str(error).splitlines() if not line.startswith("  got: "))
    return ""


def test_suggested_keys_of_other_tools_exist() -> None:
    known = {key.name for model in configs() for key in describe(model)}
    assert {ours for names in validation_messages._ALIASES.values() for ours in names} <= known


def test_a_group_of_keys_is_no_value_and_a_value_no_group() -> None:
    with pytest.raises(UserError, match="holds a value"):
        with_overrides(Outer, {"inner": 3}, {"inner.rate": "1"})


def test_overrides_leave_the_given_tree_alone() -> None:
    tree = {"inner": {"rate": 1.0}}
    assert with_overrides(Outer, tree, {"inner.rate": "2"}) == {"inner": {"rate": 2}}
    assert tree == {"inner": {"rate": 1.0}}


def test_words_and_pairs() -> None:
    assert split_words(["digits", "a.b=1=2", "x/y=z"]) == (["digits", "x/y=z"], {"a.b": "1=2"})
    with pytest.raises(UserError, match="twice"):
        split_words(["a=1", "a=2"])


def test_what_is_dumped_is_read_back_the_same(tmp_path: Path) -> None:
    tree = {"a": {"rate": 1e-05, "name": "no", "text": "1e3", "on": True, "many": [1, 2.5]}, "größe": None}
    path = tmp_path / "a.yaml"
    path.write_text(dump_yaml(tree), encoding="utf-8")
    assert load_yaml(path) == tree


def test_help_names_every_key_with_default_and_meaning() -> None:
    assert [key.name for key in describe(Outer)] == [
        "inner.rate", "inner.name", "inner.mean", "out", "size", "steps", "on",
    ]  # fmt: skip
    text = "\n".join(key_lines(describe(Outer), {"inner.rate": 0.5}))
    assert "inner.rate" in text
    assert "0.5" in text
    assert "a rate" in text
    assert "adamw | sgd" in text


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1]}) == {"a.b.c": 1, "d": [1]}


@pytest.mark.parametrize(
    ("model", "key", "near"),
    [
        (EvalOptions, "data.background", None),
        (EvalOptions, "data.batch", None),
        (EvalOptions, "data.image_colum", "data.image_column"),
        (EvalOptions, "data.clases", "data.classes"),
        (EvalOptions, "batchsize", "batch_size"),
        (EvalOptions, "min_topl", "min_top1"),
        (EvalOptions, "epochs", None),
        (RunConfig, "lr", "optim.lr"),
        (RunConfig, "train.lr", "optim.lr"),
        (RunConfig, "learning_rate", "optim.lr"),
        (RunConfig, "epoch", "train.epochs"),
        (RunConfig, "trian.steps", "train.steps"),
        (RunConfig, "optim.wheight_decay", "optim.weight_decay"),
        (RunConfig, "augment.mixpu", "augment.mixup"),
        (RunConfig, "data.xyz", None),
        (RunConfig, "workers", "data.workers"),
    ],
)
def test_suggestions_are_close_or_none(model: type[Config], key: str, near: str | None) -> None:
    with pytest.raises(UserError, match="unknown key") as caught:
        build(model, with_overrides(model, {}, {key: 1}))
    text = str(caught.value)
    assert (f"did you mean {near!r}?" in text) if near else ("did you mean" not in text)


def _chain(levels: int) -> str:
    """A text of few signs whose aliases nest deeply."""
    return "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, levels))])


def _bomb(levels: int, form: str) -> str:
    rows = [f"a0: &a0 {form.format(*['x'] * 9)}"]
    rows += [f"a{i}: &a{i} {form.format(*[f'*a{i - 1}'] * 9)}" for i in range(1, levels)]
    return "\n".join(rows)


LIST = "[{}, {}, {}, {}, {}, {}, {}, {}, {}]"
MAP = "{{a: {}, b: {}, c: {}, d: {}, e: {}, f: {}, g: {}, h: {}, i: {}}}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_bomb(12, LIST), ":5: not readable as YAML: more than 50,000 values"),
        (_bomb(12, MAP), ":5: not readable as YAML: more than 50,000 values"),
        (_bomb(9, LIST) + "\n? *a8\n: 1", "more than 50,000 values"),
        ("a: &a [1, 2]\n? *a\n: 1", ":1: not readable as YAML: a key must be plain text"),
        ("path: x\nclasses: [*a]", ":2: not readable as YAML: found undefined alias"),
        ("a: &a [1, *a]", "*a contains itself"),
        ("a: &a {b: {c: *a}}", "*a contains itself"),
        (_chain(500), ":63: not readable as YAML: nested deeper than 64 levels"),
        ("seed: " + "[" * 10_000, "nested deeper than 64 levels"),
        ("seed: " + "{a: " * 10_000, "nested deeper than 64 levels"),
        ("\n".join(" " * i + "a:" for i in range(900)), ":64: not readable as YAML: nested deeper than 64 levels"),
        ("a: 1\nb: \a", ":2: not readable as YAML: the character"),
        ("a: 1\nseed: !!int abc", ":2: not readable as YAML: expected a value of type int, got 'abc'"),
        ("seed: !!int 1:1:1", "expected a value of type int"),
        ("seed: !!float [1]", "expected a value of type float, got a list"),
        ("seed: !!bool maybe", "expected a value of type bool"),
        ("seed: !!null x", "expected a value of type null"),
        ("seed: !!seq x", "expected a list"),
        ("seed: !!map [x]", "expected a mapping"),
        ("seed: !!str [x]", "expected text"),
        ("seed: !!timestamp 2020-99-99", "unsupported tag tag:yaml.org,2002:timestamp"),
        ("seed: !!binary x", "unsupported tag"),
        ("seed: !!set {a}", "unsupported tag"),
        ("seed: !!python/object/apply:os.system [ls]", "unsupported tag"),
        ("seed: " + "9" * 6000, "6,000 digits does not fit into 64 bits"),
        ('seed: "\\Uffffffff"', "not readable as YAML"),
        ("%YAML " + "9" * 6000 + ".1\n---\na: 1", "not readable as YAML"),
        ("a: " + "x" * (1 << 20), "file too large"),
        ("[" + "x, " * 51_000 + "]", "more than 50,000 values"),
    ],
)  # fmt: skip
def test_yaml_is_bounded_before_it_is_built(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        load_yaml(path)
    assert time.process_time() - start < 5
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 500


def test_aliases_and_tags_within_the_limits_are_read() -> None:
    text = "base: &b {x: 1, y: [1, 2]}\nc: {<<: *b, y: *b}\nd: !!str 3\ne: !!float 3\nf: !!int 1_000\ng: &g x\nh: *g"
    base = {"x": 1, "y": [1, 2]}
    assert parse_yaml(text) == {
        "base": base,
        "c": {"x": 1, "y": base},
        "d": "3",
        "e": 3.0,
        "f": 1000,
        "g": "x",
        "h": "x",
    }
    names = [f"class number {index}" for index in range(22_000)]  # as many as ImageNet-21k has
    assert parse_yaml(dump_yaml({"classes": names})) == {"classes": names}


@pytest.mark.parametrize(
    "value", [_bomb(9, LIST), "[" * 10_000, "!!int abc", "!!timestamp 2020-99-99", "9" * 6000, "\a", "&a [*a]"]
)
@pytest.mark.parametrize("key", ["rate", "pair", "count"])
def test_values_on_the_command_line_are_bounded_alike(key: str, value: str) -> None:
    class Small(Config):
        rate: float = 1.0
        pair: Pair = (1, 2)
        count: int | None = None

    with pytest.raises(UserError, match=key) as caught:
        build(Small, with_overrides(Small, {}, {key: value}))
    assert len(str(caught.value)) < 3000


def test_a_key_of_many_parts_is_unknown() -> None:
    with pytest.raises(UserError, match="unknown key"):
        with_overrides(Config, {}, {".".join("a" * 100_000): "1"})


def test_a_copy_has_the_fields_of_its_class() -> None:
    assert Inner().model_copy(update={"rate": 0.5}).rate == 0.5
    with pytest.raises(AssertionError, match="rat"):
        Inner().model_copy(update={"rat": 0.5})


def test_a_description_explains_the_values_that_its_key_takes() -> None:
    """`...; crop: ...; squash: ...`: each word before a colon is a value of the key, in every configuration class."""
    wrong: list[str] = []
    for key in (key for model in all_configs() for key in describe(model)):
        values = set(re.split(r" \| | or ", key.type_text))
        if key.name.endswith(".kind") or not values & set(re.findall(r"; (\w+): ", key.help)):
            continue
        named = re.findall(r"; ([a-z]\w*): ", key.help)
        wrong += [f"{key.name}: {word} is not in {key.type_text}" for word in named if word not in values]
    assert not wrong, "\n".join(wrong)


def all_configs() -> list[type[Config]]:
    for module in pkgutil.walk_packages(vitral.__path__, "vitral."):
        if module.name.endswith((".config", ".command_options")) and module.name != "vitral.config":
            importlib.import_module(module.name)
    pending, found = [Config], list[type[Config]]()
    while pending:
        pending += (new := [each for each in pending.pop().__subclasses__() if each.__module__.startswith("vitral.")])
        found += new
    return found
