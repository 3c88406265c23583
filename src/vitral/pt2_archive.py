"""Which PT2 archives are opened: those of tensors and one graph, in which torch can find nothing to run but tensor
operators.

torch reads such an archive by code of Python: symbolic expressions are evaluated, names of nodes become source text
that is executed, names of operators are looked up in all of torch, specifications of containers import modules. So
every string of the graph is matched against what an export needs, before torch sees it.
"""

from __future__ import annotations

import ast
import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vitral.errors import UserError
from vitral.files import parse_json


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# All that an archive of one program consists of, below its first folder: tensors as plain bytes.
_PLAIN = re.compile(
    r"[^/]+/(data/weights/(weight_\d+|\w+_weights_config\.json)|data/constants/(tensor_\d+|\w+_constants_config\.json)"
    r"|data/sample_inputs/\w+\.pt|models/\w+\.json|archive_(format|version)|byteorder|\.data/\w+|extra/vitral\.json)"
)
_LARGEST = 2**26  # bytes of a JSON part; of a graph of 110 layers there are 2 million
_MOST = 2_000_000  # values in it
# Nodes of Python's syntax: each symbolic expression of an export has 20, those of 110 layers 30,000. SymPy reads each
# again and compares the arguments of a function with one another.
_LONGEST_TERM, _TERMS, _ARGUMENTS = 100, 50_000, 4
_ITEM_BITS = {1: 8, 2: 8, 3: 16, 4: 32, 5: 64, 6: 16, 7: 32, 8: 64, 12: 8, 13: 16}  # of torch's schema, without complex

# Operators of tensors that compute, view and copy. None reads files, takes addresses or goes outside its arguments.
_ATEN = _words(
    "__and__ __or__ _assert_scalar _assert_tensor_metadata _softmax _to_copy _unsafe_view abs adaptive_avg_pool2d "
    "add addmm alias amax amin any all arange argmax avg_pool2d batch_norm bmm bitwise_and bitwise_not bitwise_or "
    "cat ceil chunk clamp clamp_max clamp_min clone constant_pad_nd contiguous conv2d conv_transpose2d convolution "
    "copy cos cumsum detach div dropout einsum embedding eq erf exp expand expand_as flatten floor floor_divide full "
    "full_like gather ge gelu group_norm gt index_select layer_norm le lift_fresh_copy linalg_vector_norm linear log "
    "logical_and logical_not logical_or lt masked_fill matmul max max_pool2d maximum mT mean min minimum mm mul "
    "native_group_norm native_layer_norm narrow ne neg new_full new_ones new_zeros numpy_T ones ones_like outer pad "
    "permute pow reciprocal relu relu_ remainder repeat reshape roll round rsqrt rsub scaled_dot_product_attention "
    "select sigmoid silu sin slice softmax softplus split split_with_sizes sqrt square squeeze stack sub sum "
    "sym_constrain_range sym_constrain_range_for_size sym_numel sym_size t tanh to topk transpose true_divide "
    "type_as unbind unflatten unsqueeze var var_mean view view_as where zeros zeros_like"
)
_PYTHON = _words(
    "_operator.add _operator.and_ _operator.eq _operator.floordiv _operator.ge _operator.getitem _operator.gt "
    "_operator.le _operator.lt _operator.mod _operator.mul _operator.ne _operator.neg _operator.sub _operator.truediv "
    "math.ceil math.floor math.trunc torch.sym_float torch.sym_int torch.sym_max torch.sym_min torch.sym_not"
)
_TARGET = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)", re.ASCII)
_NAME = re.compile(r"((?!__)[A-Za-z_]\w{0,300})?", re.ASCII)
_PATH = re.compile(r"((?!__)\w+(\.(?!__)\w+)*)?", re.ASCII)
_WORD = re.compile(r"[\w.+-]{0,100}", re.ASCII)
_PATHS = ("parameter_name", "buffer_name", "tensor_constant_name", "fqn")
_NOTES = ("stack_trace", "nn_module_stack", "torch_fn")  # read by people alone
_NEVER = ("as_graph", "as_operator", "as_custom_obj", "custom_obj", "as_complex")
_EMPTY = ("guards_code", "treespec_namedtuple_fields", "custom_obj_values")

_TEXT = re.compile(r"[A-Za-z0-9_ (),.'=+\-*/%<>]{1,2000}", re.ASCII)
_SYMBOL = re.compile(r"(s|u|zf|zuf)\d{1,9}", re.ASCII)
_FUNCTIONS = _words(
    "Add And CeilDiv CeilToInt CleanDiv Eq Equality Float FloorDiv FloorToInt FloatTrueDiv Ge GreaterThan Gt Identity "
    "IntTrueDiv Integer Le LessThan Lt Max Min Mod ModularIndexing Mul Ne Not Or PythonMod Rational RoundToInt "
    "StrictGreaterThan StrictLessThan ToFloat TruncToFloat TruncToInt Unequality Where ceiling floor"
)
_POWERS = frozenset(("Pow", "PowByNatural", "FloatPow"))
_ASSUMED = _words("integer negative nonnegative nonpositive nonzero positive real")
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
_COMPARED = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


class Refused(ValueError):
    """Something in an archive that no export needs."""

    what = "this archive may hold code, so it is not opened"


class TwiceNamed(Refused):
    """An entry that torch's reader, which ignores case, might take for another one that was looked at."""

    what = "two entries of this archive have one name"


def check_archive(path: Path) -> None:
    """Raises UserError for an archive with anything that torch would unpickle, evaluate or run as machine code, and for
    one that may be read in two ways."""
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_names(archive)
            _parts(archive, torch._C.PyTorchFileReader(where))  # pyright: ignore[reportPrivateUsage]
    except Refused as error:
        raise UserError(error.what, where=where, got=error) from None
    except Exception as error:  # no archive, damaged, or a pickle that is refused
        raise UserError("not a PT2 archive of tensors and one graph", where=where, got=str(error)[:300]) from None


def _check_names(archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    for name, count in Counter(name.lower() for name in names).items():
        if count > 1:
            raise TwiceNamed(name)
    wrong = [each.filename for each in archive.infolist() if not _PLAIN.fullmatch(each.filename) or not _stored(each)]
    models = [name for name in names if "/models/" in name]
    roots = {name.partition("/")[0] for name in names}
    for name in wrong + models[1:] + sorted(roots)[1:]:
        raise Refused(name[:300])


def _stored(entry: zipfile.ZipInfo) -> bool:
    """As it lies there: a compressed entry may be of any size."""
    return entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size


def _parts(archive: zipfile.ZipFile, reader: Any) -> None:
    """reader: torch's own, so that what is looked at is what it will load."""
    sizes = {entry.filename.partition("/")[2]: entry.file_size for entry in archive.infolist()}
    if sizes.keys() != set(reader.get_all_records()):
        raise ValueError("two readers find two lists of entries")
    for name, size in sizes.items():
        if name.endswith("_config.json"):
            _check_tensors(name, _read(reader, name, size)["config"], sizes)
        elif name.startswith("models/"):
            _walk(_read(reader, name, size), "")
        elif name.startswith("data/sample_inputs/") and size:
            raise Refused(f"{name} is a pickle, which exports do without: export the model again")


def _read(reader: Any, name: str, size: int) -> Any:
    """A JSON part of bounded size and structure."""
    if size > _LARGEST:
        raise Refused(f"{name} has {size} bytes")
    return parse_json(reader.get_record(name), where=name, max_items=_MOST)


def _check_tensors(config: str, entries: dict[str, Any], sizes: dict[str, int]) -> None:
    """Of each tensor: plain bytes that are there, as many as its sizes say. Weights in memory are then no larger than
    the file."""
    folder = config.rpartition("/")[0]
    for name, entry in entries.items():
        if entry["use_pickle"] or not _PATH.fullmatch(name) or not _WORD.fullmatch(entry["path_name"]):
            raise Refused(f"{config}: {name[:100]}")
        meta = entry["tensor_meta"]
        _walk(meta, "")
        count = math.prod(_whole(size) for size in meta["sizes"])
        there = sizes[f"{folder}/{entry['path_name']}"]
        if count * _ITEM_BITS[meta["dtype"]] > 8 * there:
            raise ValueError(f"{name} has {count} numbers, its file {there} bytes")


def _whole(size: Any) -> int:
    number = size["as_int"]
    if type(number) is not int or number < 0:
        raise ValueError(f"a size of {number!r:.100}")
    return number


def _walk(tree: Any, key: str) -> None:
    """Everything that is below a key, without recursion. Raises Refused for a string that is not of the narrow form of
    its key, and for more symbolic expressions than exports have."""
    left: list[tuple[Any, str]] = [(tree, key)]
    nodes = 0
    while left:
        value, key = left.pop()
        if isinstance(value, str):
            if not _CHECKS.get(key, _WORD.fullmatch)(value):
                raise Refused(f"{key}: {value[:200]!r}")
            nodes += _size(value) if key == "expr_str" else 0
        elif isinstance(value, list):
            left += [(each, key) for each in value]
        elif isinstance(value, dict):
            left += [(each, name) for name, each in _entries(key, value)]
    if nodes > _TERMS:
        raise Refused(f"symbolic expressions of {nodes:,} terms, more than {_TERMS:,}")


def _entries(key: str, value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if key == "metadata":
        for name, text in value.items():
            if name not in _NOTES or not isinstance(text, str) or len(text) > 100_000:
                raise Refused(f"metadata {name[:100]}")
        return
    for name, each in value.items():
        if not _NAME.fullmatch(name) or (name in _NEVER and each is not None) or (name in _EMPTY and each):
            raise Refused(f"{name[:100]}: {each!r:.200}")
        yield name, each


def _is_operator(text: str) -> bool:
    found = _TARGET.fullmatch(text)
    return text in _PYTHON if found is None else found[1] in _ATEN and not found[2].startswith("__")


def _is_tree(text: str) -> bool:
    """A specification of tuples, lists and dictionaries with plain keys, and of nothing that imports its class."""
    version, tree = parse_json(text, where="specification", max_items=10_000)
    left = [tree]
    while left:
        each = left.pop()
        if set(each) != {"type", "context", "children_spec"}:
            return False
        kind, context = each["type"], each["context"]
        if kind == "builtins.dict":
            keys = parse_json(context, where="specification", max_items=10_000)
            if not isinstance(keys, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in keys):
                return False
        elif (kind, context) not in (("builtins.tuple", "null"), ("builtins.list", "null"), (None, None)):
            return False
        left += each["children_spec"]
    return version == 1


def is_expression(text: str) -> bool:
    """Arithmetic of symbols and whole numbers, as torch writes it and SymPy reads it."""
    if not _TEXT.fullmatch(text):
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    nodes = list(ast.walk(tree))
    powers = [each for each in nodes if isinstance(each, ast.Pow) or _called(each) in _POWERS]
    return len(nodes) <= _LONGEST_TERM and len(powers) <= 4 and _is_term(tree)


@lru_cache(1000)
def _size(text: str) -> int:
    """Of an expression: nodes of its syntax."""
    return sum(1 for _ in ast.walk(ast.parse(text.strip(), mode="eval")))


def _called(node: ast.AST) -> str | None:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None


def _is_term(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=bool()):
            return True
        case ast.Constant(value=int() | float() as number):
            return abs(number) < 2**64
        case ast.Name(id=name):
            return _SYMBOL.fullmatch(name) is not None or name in ("true", "false", "int_oo", "oo")
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _is_term(operand)
        case ast.BinOp(left=left, op=operator, right=right) if isinstance(operator, _OPERATORS):
            fine = _is_term(left) and _is_term(right)
            return fine and (not isinstance(operator, ast.Pow) or _is_exponent(right))
        case ast.Compare(left=left, ops=operators, comparators=others):
            return all(isinstance(each, _COMPARED) for each in operators) and all(map(_is_term, [left, *others]))
        case ast.Call(args=arguments, keywords=keywords):
            return _is_call(_called(node), arguments, keywords)
        case _:
            return False


def _is_call(name: str | None, arguments: list[ast.expr], keywords: list[ast.keyword]) -> bool:
    if name == "Symbol":
        text = arguments[0].value if len(arguments) == 1 and isinstance(arguments[0], ast.Constant) else None
        assumed = all(
            each.arg in _ASSUMED and isinstance(each.value, ast.Constant) and isinstance(each.value.value, bool)
            for each in keywords
        )
        return isinstance(text, str) and _SYMBOL.fullmatch(text) is not None and assumed
    if keywords or len(arguments) > _ARGUMENTS or not all(map(_is_term, arguments)):
        return False
    return name in _FUNCTIONS or (name in _POWERS and len(arguments) == 2 and _is_exponent(arguments[1]))


def _is_exponent(node: ast.AST) -> bool:
    """A small whole number: a power of more digits than that would be computed at once."""
    if _called(node) == "Integer" and isinstance(node, ast.Call) and len(node.args) == 1:
        node = node.args[0]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value <= 4


# Of the strings of a graph, by the key under which they lie: what is named nowhere is one word.
_CHECKS: dict[str, Callable[[str], object]] = {
    "target": _is_operator, "expr_str": is_expression, "in_spec": _is_tree, "out_spec": _is_tree,
    "type": lambda text: text == "cpu", "name": _NAME.fullmatch, "as_name": _NAME.fullmatch,
    "forward_arg_names": _NAME.fullmatch, **dict.fromkeys(_PATHS, _PATH.fullmatch),
}  # fmt: skip
