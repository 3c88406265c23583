"""Every code block of the README and of three pages is run, as it stands; training is only made shorter."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import VITRAL
from tests.test_config import all_configs
from vitral.cli.main import COMMANDS, main
from vitral.config_keys import describe
from vitral.data.config import AugmentConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {recipe: ["train.steps=6"] for recipe in ("digits", "small", "finetune")}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the README names: a folder of photos of two classes, a photo, a digit."""
    root = tmp_path_factory.mktemp("readme")
    random = np.random.default_rng(0)
    for name, color in (("cat", (200, 60, 60)), ("dog", (60, 60, 200))):
        (root / "PHOTOS" / name).mkdir(parents=True)
        for number in range(20):
            noise = random.integers(-40, 40, (24, 32, 3))
            Image.fromarray(np.uint8(np.clip(noise + color, 0, 255))).save(root / "PHOTOS" / name / f"{number}.jpg")
    Image.open(root / "PHOTOS" / "cat" / "0.jpg").save(root / "photo.jpg")
    (digit,) = [line for line in "".join(blocks("bash")).splitlines() if line.startswith("python -c")]
    subprocess.run([sys.executable, *shlex.split(digit)[1:]], cwd=root, check=True)
    return root


def test_the_readme_has_only_blocks_that_a_test_runs() -> None:
    assert set(re.findall(r"^```(\w*)$", README, re.MULTILINE)) == {"bash", "python", ""}
    assert len(blocks("bash")) >= 4
    assert len(blocks("python")) >= 2


def test_shell_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    for line in "".join(blocks("bash")).splitlines():
        run_line(line)
        assert "Traceback" not in capsys.readouterr().err


def run_line(line: str) -> None:
    """Run `vitral` lines; check that the files and extras in lines of the installation exist."""
    program, *words = shlex.split(line)
    if [program, *words[:1]] == ["vitral", "serve"]:
        with subprocess.Popen([*VITRAL, *words, "port=0"], stdout=subprocess.PIPE, encoding="utf-8") as server:
            assert server.stdout is not None
            assert json.loads(server.stdout.readline())["models"], line
            server.terminate()
    elif program == "vitral":
        recipe = words[1] if words[0] == "train" else ""
        code = main([*words, *SHORT.get(recipe, [])])
        assert code == 0, line
    elif program == "make":
        subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = re.findall(r"\[(.*?)\]", line)
        assert all(extra in project["optional-dependencies"] for extra in extras)
        assert all((ROOT / word).exists() for word in words if word.endswith(".txt"))
    elif [program, *words[:1]] == ["python", "-c"]:
        subprocess.run([sys.executable, *words], check=True)
    else:
        assert line in ("python -m venv .venv", ". .venv/bin/activate", "python tools/install.py")


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})  # the documentation itself


@pytest.mark.parametrize("name", ["probing", "efficiency", "interpretability", "text-data", "training"])
def test_the_blocks_of_a_page(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    page = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    for line in "".join(blocks("bash", page)).splitlines():
        run_line(line)
    for code in blocks("python", page):
        exec(compile(code, f"{name}.md", "exec"), {"__name__": name})


def test_the_readme_links_every_page() -> None:
    assert set(re.findall(r"\(docs/([\w-]+)\.md\)", README)) >= {path.stem for path in (ROOT / "docs").glob("*.md")}


# `model.` is also the start of file names and of Python: only MODEL.KEY=VALUE counts there.
DOTTED_KEY = re.compile(
    r"(?<![\w./-])((?:augment|check|data|lora|objective|optim|train)\.[a-z_][\w.]*|model\.[a-z_]+(?==))"
)
GUIDES = [
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.stem != "LOG"),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "src/vitral/recipes").glob("*.yaml")),
]


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_keys_and_commands_in_the_documentation_exist(path: Path) -> None:
    """LOG.md is left out: it records experiments with the keys of their time."""
    text = path.read_text(encoding="utf-8")
    keys = {key.name for model in all_configs() for key in describe(model)}
    keys |= {name.rpartition(".")[0] for name in keys} | {
        f"objective.strong.{name}" for name in AugmentConfig.model_fields
    }
    named = {found.rstrip(".") for found in DOTTED_KEY.findall(text)}
    named = {name for name in named if Path(name).suffix not in (".py", ".md", ".html", ".yaml")}
    assert not named - keys
    commands = re.findall(r"`vitral ([a-z][\w-]*)|^(?:#? *|.*-m )vitral ([a-z][\w-]*) ", text, re.MULTILINE)
    assert not {first or second for first, second in commands} - {*COMMANDS, "help"}


def test_modules_in_the_architecture_exist() -> None:
    """A file name without a folder is in any room; every room is described."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "vitral"
    paths = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    paths |= {Path(path).name for path in paths} | {
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/*.py")
    }
    assert not set(re.findall(r"`([\w/]+\.py)`", page)) - paths
    rooms = [path for path in package.iterdir() if (path / "__init__.py").is_file() or path.suffix == ".py"]
    named = [f"`{room.name}/`" if room.is_dir() else f"`{room.name}`" for room in rooms if room.name != "__main__.py"]
    assert not [name for name in named if name not in page]


def test_the_table_of_commands_is_complete() -> None:
    assert re.findall(r"^\| `vitral (\w+)", README, re.MULTILINE) == list(COMMANDS)
