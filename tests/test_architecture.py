"""Rules of the package that no linter checks; docs/architecture.md has the reasons."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vitral"
SOURCES = sorted(PACKAGE.rglob("*.py"))
OURS = SOURCES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))

MAX_FILE, MAX_FUNCTION = 500, 60  # lines
NEVER_IMPORTED = {"torchvision", "timm", "transformers"}

# Help, recipes and config errors must not import torch, which takes 1.5 s on two cores: all commands, all config
# modules, and these:
LIGHT = (
    "errors",
    "version",
    "structs",
    "files",
    "config",
    "models.presets",
    "models.registry",
    "models.search_config",
    "run",
    "run.command_options",
)
HEAVY = ("torch", "sklearn", "scipy", "matplotlib")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(tree: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Line, module and imported names of every import statement. A relative import shows as "."."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." if node.level else node.module or ""
            yield node.lineno, module, tuple(alias.name for alias in node.names)


def _is_room(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def test_there_is_code_to_look_at():
    assert len(SOURCES) > 10


def test_import_contract():
    # In a process of its own: import-linter configures logging, and so silences ours.
    code = "import sys; from importlinter.cli import lint_imports; "
    code += "sys.exit(lint_imports(config_filename='pyproject.toml', no_cache=True, no_logo=True))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert found.returncode == 0, found.stdout


def test_modules_say_what_they_are_for():
    silent = [_name(path) for path in SOURCES if not ast.get_docstring(_tree(path))]
    assert not silent, "\n".join(silent)


def test_files_are_short():
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in OURS}
    long = [f"{name} has {lines} lines" for name, lines in lengths.items() if lines > MAX_FILE]
    assert not long, "which concept is missing?\n" + "\n".join(long)


def test_functions_are_short():
    long: list[str] = []
    for path in SOURCES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long.append(f"{_name(path)}:{node.lineno}: {node.name} has {lines} lines")
    assert not long, "which concept is missing?\n" + "\n".join(long)


def test_nothing_is_put_off():
    marks = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X"))
    texts = {_name(path): path.read_text(encoding="utf-8") for path in OURS}
    found = [f"{name}: {line}" for name, text in texts.items() for line in re.findall(rf"\b(?:{marks})\b.*", text)]
    assert not found, "\n".join(found)


def test_imports_are_whole_and_direct():
    """The public names in `vitral/__init__.py` are for users: one import of them inside ties everything in a knot."""
    wrong: list[str] = []
    for path in SOURCES:
        for line, module, names in _imports(_tree(path)):
            where = f"{_name(path)}:{line}"
            if module == ".":
                wrong.append(f"{where}: a relative import")
            elif module.split(".")[0] in NEVER_IMPORTED:
                wrong.append(f"{where}: {module} is for tests only, never a dependency")
            elif module == "vitral" and not (names and all(map(_is_room, names))):
                wrong.append(f"{where}: imports the package itself")
    assert not wrong, "\n".join(wrong)


FAMILY_CLASSES = {"ViTConfig", "ResNetConfig", "VisionTransformer", "ResNet"}


def test_the_registry_alone_asks_which_family_a_model_is_of():
    """Others ask the properties of its configuration, or `token_config` and `token_encoder`."""
    asked: list[str] = []
    for path in SOURCES:
        if path == PACKAGE / "models" / "registry.py":
            continue
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                named = {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)}
                asked += [f"{_name(path)}:{node.lineno}"] * bool(named & FAMILY_CLASSES)
    assert not asked, "\n".join(asked)


# Bounded readers of untrusted files, and functions that open files for them. `serve.request_parsing` limits the
# structure.
GATES = {"config", "files", "archive_limits", "weights.tensors", "serve.request_parsing"}
UNBOUNDED = {("json", "load"), ("json", "loads"), ("yaml", "load"), ("yaml", "safe_load"), ("", "safe_open")}


def test_files_of_strangers_go_through_the_gate():
    wrong: list[str] = []
    for path in SOURCES:
        if ".".join(path.relative_to(PACKAGE).with_suffix("").parts) in GATES:
            continue
        tree = _tree(path)
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        pairs = [
            (ast.unparse(each.value), each.attr, each.lineno) for each in called if isinstance(each, ast.Attribute)
        ]
        pairs += [("", each.id, each.lineno) for each in called if isinstance(each, ast.Name)]
        pairs += [(module, name, line) for line, module, names in _imports(tree) for name in names]
        wrong += [f"{_name(path)}:{line}: {name}" for module, name, line in pairs if (module, name) in UNBOUNDED]
    assert not wrong, "read_json, parse_json or parse_yaml bounds it:\n" + "\n".join(wrong)


def _light_modules() -> list[str]:
    paths = [*PACKAGE.glob("*/config.py"), *PACKAGE.glob("cli/[!_]*.py")]
    return sorted({*LIGHT, *(".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths)})


@pytest.mark.parametrize("module", _light_modules())
def test_light_module_imports_nothing_heavy(module: str):
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {HEAVY!r}:\n"
        "            raise RuntimeError(f'{name} is imported at import time')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"import vitral.{module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr


# Only the task knows the kind of answer: no tests of metric names or configuration classes.
ASKS_A_KEY = re.compile(r"""["'](top1|map|knn_top1|mae|ece|exact_match|per_class|confusion)["'] (not )?in\b""")
OBJECTIVE_CONFIG = re.compile(r"(Supervised|DynamicViT|MaskedPatch|Mae|SelfDistillation|Dino|Ibot|Regression)Config")
OBJECTIVE_ROOMS = ("objectives", "tasks")


def test_nobody_guesses_the_task():
    wrong: list[str] = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        wrong += [f"{_name(path)}: {found[0]}" for found in ASKS_A_KEY.finditer(text)]
        if path.relative_to(PACKAGE).parts[0] in OBJECTIVE_ROOMS:
            continue
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                kinds = ast.unparse(node.args[1])
                if OBJECTIVE_CONFIG.search(kinds):
                    wrong.append(f"{_name(path)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "a task or a property of the configuration should say it:\n" + "\n".join(wrong)
