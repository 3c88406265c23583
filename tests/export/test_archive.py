"""PT2 archives of strangers: only those are opened that hold tensors and one graph, and can be read in one way."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vitral
from tests.helpers import random_model
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.pt2_archive import check_archive, is_expression


def test_an_archive_that_may_hold_code_is_not_opened() -> None:
    """Of what torch would unpickle or load as machine code there is nothing in our own archives."""
    random_model(Path("model"))
    assert main(["export", "model", "format=pt2", "out=there"]) == 0
    check_archive(Path("there/model.pt2"))
    with zipfile.ZipFile("there/model.pt2") as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(inside)).split("/")[0]

    class Evil:
        def __reduce__(self) -> Any:
            return Path("was-here").touch, ()

    as_pickle = {name: data.replace(b'"use_pickle": false', b'"use_pickle": true') for name, data in inside.items()}
    sample = next(name for name in inside if "sample_inputs" in name)
    assert inside[sample] == b""
    for change in (
        {f"{root}/data/constants/opaque_obj_0": pickle.dumps(Evil())},
        {f"{root}/data/aotinductor/model/model.so": b"machine code"},
        {"serialized_exported_program.json": b"{}"},
        as_pickle,
        {sample: pickled_archive(Evil())},
        {sample: pickled_archive({"harmless": 1})},
    ):
        with zipfile.ZipFile("evil.pt2", "w") as archive:
            for name, data in {**inside, **change}.items():
                archive.writestr(name, data)
        with pytest.raises(UserError, match=r"may hold code|not a PT2 archive"):
            vitral.load("evil.pt2")
    assert not Path("was-here").exists()


def pickled_archive(value: Any) -> bytes:
    """As torch.save writes it."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def test_an_archive_that_may_be_read_in_two_ways_is_not_opened() -> None:
    """torch's reader looks for names without regard to case."""
    random_model(Path("model"))
    assert main(["export", "model", "format=pt2", "out=there"]) == 0
    inside = Path("there/model.pt2").read_bytes()
    with zipfile.ZipFile("there/model.pt2") as archive:
        name = next(name for name in archive.namelist() if name.endswith("weight_0"))
    root, _, rest = name.partition("/")
    for again in (name, f"{root.swapcase()}/{rest}"):
        Path("evil.pt2").write_bytes(inside)
        with warnings.catch_warnings(), zipfile.ZipFile("evil.pt2", "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(again, b"other weights")
        with pytest.raises(UserError, match="two entries of this archive have one name"):
            vitral.load("evil.pt2")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The entries of an archive of ours."""
    folder = tmp_path_factory.mktemp("pt2")
    random_model(folder / "model")
    assert main(["export", str(folder / "model"), "format=pt2", f"out={folder / 'there'}", "images=1"]) == 0
    with zipfile.ZipFile(folder / "there/model.pt2") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(inside: dict[str, bytes], path: str = "evil.pt2", kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in inside.items():
            archive.writestr(name, data)
    return Path(path)


CODE = "__import__('pathlib').Path('was-here').touch()"
Change = Callable[[dict[str, Any]], None]


def in_graph(*keys: Any, value: Any) -> Change:
    """Puts the value in the place that the keys lead to; None is the first entry of a dictionary."""

    def change(tree: dict[str, Any]) -> None:
        place: Any = tree["graph_module"]
        for key in keys[:-1]:
            place = place[next(iter(place)) if key is None else key]
        place[next(iter(place)) if keys[-1] is None else keys[-1]] = value

    return change


def renamed(tree: dict[str, Any]) -> None:
    """A node whose name is a line of Python: the graph's source text has it on the left of an assignment."""
    graph = tree["graph_module"]["graph"]
    old = graph["nodes"][0]["name"]
    text = json.dumps(tree).replace(f'"{old}"', json.dumps(f"x = {CODE}; {old}"))
    tree.clear()
    tree.update(json.loads(text))


def guarded(tree: dict[str, Any]) -> None:
    tree["guards_code"] = [CODE]


ENUM = json.dumps({"__enum__": True, "fqn": "evil:Enum", "name": "A"})
SPEC = '[1, {"type": "%s", "context": %s, "children_spec": []}]'
SYMBOLS = ("graph", "sym_int_values", None, "as_expr", "expr_str")
CALLED = ("module_call_graph", 0, "signature")
WRONG: dict[str, Change] = {
    "an expression": in_graph(*SYMBOLS, value=CODE),
    "an expression by attributes": in_graph(*SYMBOLS, value="().__class__.__base__.__subclasses__()"),
    "an expression in an argument": in_graph(*SYMBOLS, value=f"Mul(Integer(2), {CODE})"),
    "a symbol that is code": in_graph(*SYMBOLS, value=f'Symbol("{CODE}")'),
    "a power without end": in_graph(*SYMBOLS, value="9**9**9"),
    "a size": in_graph("graph", "tensor_values", None, "sizes", value=[{"as_expr": {"expr_str": CODE, "hint": None}}]),
    "a function of torch": in_graph("graph", "nodes", 0, "target", value="torch.hub.load"),
    "a module of torch": in_graph("graph", "nodes", 0, "target", value="torch.os.system"),
    "a function of the operator module": in_graph("graph", "nodes", 0, "target", value="_operator.attrgetter"),
    "an operator that maps files": in_graph("graph", "nodes", 0, "target", value="torch.ops.aten.from_file.default"),
    "an operator as an argument": in_graph(
        "graph", "nodes", 0, "inputs", 0, "arg", value={"as_operator": "torch.hub.load"}
    ),
    "a text as an argument": in_graph("graph", "nodes", 0, "inputs", 0, "arg", value={"as_string": "/etc/passwd"}),
    "a class that is imported": in_graph(*CALLED, "in_spec", value=SPEC % ("builtins.dict", json.dumps(f"[{ENUM}]"))),
    "a factory that is imported": in_graph(
        *CALLED, "out_spec",
        value=SPEC % ("collections.defaultdict", '{"default_factory_module": "evil", "default_factory_name": "A"}'),
    ),
    "the name of an argument": in_graph(*CALLED, "forward_arg_names", value=[f"images={CODE}"]),
    "the name of a node": renamed,
    "a weight that is an attribute of a class": in_graph(
        "signature", "input_specs", 0, "parameter", "parameter_name", value="__class__.forward"
    ),
    "a guard": guarded,
    "an expression of many arguments": in_graph(*SYMBOLS, value=f"Max({', '.join(f's{n}' for n in range(300))})"),
    "an expression of many terms": in_graph(
        *SYMBOLS, value=f"Max({','.join(f's{n}*s{n + 1}-s{n + 2}' for n in range(120))})"
    ),
    "many expressions": in_graph(
        "graph", "sym_int_values",
        value={f"s{n}": {"as_expr": {"expr_str": "(s77+2)*3", "hint": None}} for n in range(20_000)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("as_folder", [False, True])
def test_no_text_of_a_graph_is_run(
    case: str, as_folder: bool, exported: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """Symbolic expressions, names of nodes and operators, container types and guards are all evaluated, executed or
    imported by torch: none of these archives reaches it."""
    inside = dict(exported)
    name = next(name for name in inside if "/models/" in name)
    tree = json.loads(inside[name])
    WRONG[case](tree)
    inside[name] = json.dumps(tree).encode()
    Path("evil.py").write_text(f"{CODE}\nA = int\n", encoding="utf-8")
    Image.new("L", (8, 8)).save("gray.png")
    model = "evil.pt2"
    if as_folder:
        model = "plain"
        Path("plain").mkdir()
        Path("plain/config.json").write_text('{"format": "vitral-export-1", "kind": "pt2"}', encoding="utf-8")
    write(inside, f"{model}/model.pt2" if as_folder else model)
    assert main(["predict", model, "gray.png"]) == 2
    said = capsys.readouterr()
    assert not Path("was-here").exists()
    assert said.out == ""
    assert said.err.count("\n") <= 4
    assert "may hold code" in said.err


def test_an_archive_names_no_path_of_this_machine(exported: dict[str, bytes]) -> None:
    graph = next(data for name, data in exported.items() if "/models/" in name)
    assert str(Path(vitral.__file__).parent).encode() not in graph


def test_an_archive_takes_no_more_memory_than_its_file(exported: dict[str, bytes]) -> None:
    config = next(name for name in exported if name.endswith("_weights_config.json"))
    tree = json.loads(exported[config])
    first = next(iter(tree["config"].values()))
    first["tensor_meta"]["sizes"] = [{"as_int": 10**12}]
    weight = f"{config.rpartition('/')[0]}/{first['path_name']}"
    huge = {**exported, config: json.dumps(tree).encode(), weight: b""}
    with pytest.raises(UserError, match="1000000000000 numbers"):
        check_archive(write(huge))
    with pytest.raises(UserError, match="may hold code"):
        check_archive(write(exported, kind=zipfile.ZIP_DEFLATED))
    model = next(name for name in exported if "/models/" in name)
    for text in ("[" * 500_000, '{"a":' * 100_000, "[" + "[]," * 5_000_000 + "[]]"):
        with pytest.raises(UserError, match=r"evil\.pt2"):
            check_archive(write({**exported, model: text.encode()}))


@pytest.mark.parametrize(
    "text",
    [
        "Mul(Integer(8), Symbol('s14', positive=True, integer=True))", "FloorDiv(s0 + 1, 2)", "2*s0**2", "-u3",
        "Max(1, s34)",
        "Pow(Symbol('s1', integer=True), Integer(2))", "Eq(s0, 2)", "s0 < 4", "ModularIndexing(s0, 2, 3)", "7",
    ],
)  # fmt: skip
def test_arithmetic_of_symbols_is_an_expression(text: str) -> None:
    sympy: Any = pytest.importorskip("sympy")
    assert is_expression(text)
    assert sympy.sympify(text, locals={"FloorDiv": sympy.Function("FloorDiv")}) is not None


@pytest.mark.parametrize(
    "text",
    [
        CODE, "s0.__class__", "lambda: 1", "[s0]", "(s0, 1)", "s0 if s1 else 2", "S('x')", "N(1)", "'a'", "s0 # a",
        "s0\n", "s0[0]",
        "Symbol('a')", "Symbol('s0', cls=s1)", "Pow(Integer(9), Integer(99))", "9**9**9", "x", "Max(*s0)", "",
        "\uff530",
        "(" * 300 + "s0" + ")" * 300, "9" * 500, "exec('')", "Mul(Integer(2), print(1))", "s0 and s1",
        "((((2**4)**4)**4)**4)**4",
        f"Max({', '.join(f's{n}' for n in range(300))})", "+".join(f"s{n}" for n in range(60)), "Max(1, 2, 3, 4, s0)",
    ],
)  # fmt: skip
def test_anything_else_is_none(text: str) -> None:
    assert not is_expression(text)


def test_flipped_bits_are_one_message(exported: dict[str, bytes]) -> None:
    """Or another archive that is none of code; never another kind of error."""
    whole = write(exported).read_bytes()
    draw = random.Random(0)
    for _ in range(100):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        Path("evil.pt2").write_bytes(data)
        with contextlib.suppress(UserError):
            check_archive(Path("evil.pt2"))
    for size in range(0, len(whole), len(whole) // 50):
        Path("evil.pt2").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"evil\.pt2"):
            vitral.load("evil.pt2")
